/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where keys are that are not the store's keeper's: a place is a token, or a pool of them that can all do the
 * same. It has a fair queue, and its members' rings to send to.
 *
 * An operation of a token ends with its keeper. One of a pool goes to another partition when its own dies, is silent or says
 * that it cannot, while its deadline lasts: the first answer is the operation's, others are dropped.
 */
#ifndef KH_AGENT_PLACE_H
#define KH_AGENT_PLACE_H

#include "backend.h"
#include "keyqueue.h"

#define KH_MEMBERS_MAX 32 /* bits of job->tried; those that a reload took out count until their slot is needed */

typedef struct kh_place kh_place;
struct kh_place {
    char name[KH_PLACE_MAX + 1];
    bool is_pool;
    bool gone; /* the configuration has it no more: it ends what it has */
    kh_backend *members[KH_MEMBERS_MAX];
    uint32_t count;  /* slots in use */
    uint32_t active; /* bits: members of the configuration */
    uint32_t turn;   /* breaks ties */
    kh_keyqueue queue;
    kh_job_list in_ring; /* by submitted_ns */
    kh_histogram queued; /* arrival to ring */
    uint64_t done;       /* operations answered, whatever the answer */
    uint64_t moved;      /* sent to one more partition */
    bool told; /* the log has it that nobody serves */
    kh_place *next;
};

/* Takes up the tokens and pools of front->config; the backends are there. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_places_apply(struct kh_front *front);
/* Whether a place refers to it. */
bool kh_places_use(const struct kh_front *front, const kh_backend *backend);
/* Where a key of that tier and place is; NULL: the configuration has no such place. */
kh_place *kh_place_find(const struct kh_front *front, uint32_t tier, const char *name);
/* What a member is to its place at the moment: "up", "down" (no keeper, or its token is away), or (in a pool) "lost": left out. */
const char *kh_place_state(const kh_place *place, uint32_t member);
/* Members that serve. */
uint32_t kh_place_up(const kh_place *place);
/* Queues an admitted job whose key_ref is known, or ends it. */
void kh_place_queue(struct kh_front *front, kh_place *place, kh_job *job);
/* Fills the rings from the queues. */
void kh_places_dispatch(struct kh_front *front);
/* When kh_places_check has to be called next; 0: not before something is sent. */
uint64_t kh_places_due(const struct kh_front *front);
/* Looks for what takes too long in a pool, and asks another partition. */
void kh_places_check(struct kh_front *front);
/* A completion of a token's keeper. */
void kh_place_done(kh_backend *backend, const kh_completion *completion);
/* Four times a second: a partition that is lost and of which nothing is asked may be back. */
void kh_place_rest(kh_backend *backend);
/* Its ring is gone. Returns how many operations failed for it. */
uint32_t kh_place_lost(kh_backend *backend);
/* Milliseconds after which a refused caller may try again. */
uint32_t kh_place_retry_after(const kh_place *place);

#endif

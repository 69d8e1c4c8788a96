/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keepers that the front works with: the store's, and one for each token. A backend is the front's end of
 * one of them: its ring, while it has one, and how it does.
 */
#ifndef KH_AGENT_BACKEND_H
#define KH_AGENT_BACKEND_H

#include "health.h"
#include "histogram.h"
#include "job.h"
#include <ev.h>

struct kh_front;
struct kh_boot_ring;

typedef struct kh_backend kh_backend;
struct kh_backend {
    struct kh_front *front;
    char token[KH_PLACE_MAX + 1]; /* its name in the configuration; empty: the store's keeper */
    kh_keystore *keystore;        /* NULL: it does not serve */
    ev_io io;
    uint32_t sessions;      /* of the token: operations at a time */
    bool configured;        /* the configuration has it */
    bool in_pool;           /* it is a partition */
    kh_health health;       /* a token's */
    kh_histogram took;      /* a token's: from sending to the answer */
    uint64_t done;          /* a token's: answers */
    uint64_t failed;        /* of them, those that were its fault */
    uint64_t losses;        /* how often its keeper was gone */
    uint64_t still_done;    /* how many answers there were when the watch last looked */
    uint32_t still_ticks;   /* and how often it has seen no other since, with work in the ring */
    kh_backend *next;
};

/* Takes up the tokens of front->config. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_backends_apply(struct kh_front *front);
/* NULL: there is none of that name. */
kh_backend *kh_backend_find(struct kh_front *front, const char *token);
/* A keeper serves this ring (takes the descriptors). ring NULL: the store's. */
void kh_backend_ring(struct kh_front *front, const struct kh_boot_ring *ring, int fds[3]);
/* A keeper is gone. */
void kh_backend_down(struct kh_front *front, const struct kh_boot_ring *ring);
/* Takes what its keeper has done, and answers it. */
void kh_backend_collect(kh_backend *backend);
/* Writes the job's record into the ring. False: there is no room. */
bool kh_backend_submit(kh_backend *backend, const kh_job *job);
/* Wakes the keepers that were given work: once per turn. */
void kh_backends_flush(struct kh_front *front);
/* Every quarter of a second: tells the supervisor of a keeper that answers nothing any more. */
void kh_backends_watch(struct kh_front *front);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job: one operation that a caller waits for, from its admission to its reply. Jobs come from a pool that
 * grows in chunks up to a bound and never shrinks, so that the hot path allocates nothing.
 *
 * Legal order:  FREE → LOOKUP → QUEUED → RING → (DELAY →) DONE → FREE; an answer may come from any of them.
 * A job whose caller is gone, has cancelled, or was answered because of the deadline while the job was in the
 * ring is detached (conn NULL): its completion frees it.
 */
#ifndef KH_AGENT_JOB_H
#define KH_AGENT_JOB_H

#include "hash.h"
#include <keyhold/keystore.h>
#include <keyhold/protocol.h>

#define KH_JOB_INLINE 640 /* bytes: every TLS 1.2/1.3 server message, RSA block and signature fits */

typedef enum kh_job_state {
    KH_JOB_FREE,
    KH_JOB_LOOKUP, /* admitted, counted by the queue; waits for the directory when it has an entry */
    KH_JOB_QUEUED, /* in its identity's fair queue */
    KH_JOB_RING,   /* with the keeper */
    KH_JOB_DELAY,  /* done, held back */
    KH_JOB_DONE,   /* in no list; about to be answered */
} kh_job_state;

struct kh_conn;   /* a connection of the front */
struct kh_tenant; /* queue.h */
struct kh_place;  /* place.h */

typedef struct kh_job kh_job;
struct kh_job {
    /* cookie = index | seq << 32: a stale completion finds nobody */
    uint32_t index, seq;
    kh_job_state state;
    kh_op op;
    kh_store_op store_op;
    kh_lane lane;
    struct kh_conn *conn;     /* NULL: nobody waits any more */
    struct kh_tenant *tenant; /* whose queue counts it */
    uint32_t request_id;
    uint64_t key_ref;
    uint32_t scheme, flags, arg;
    uint64_t arrived_ns, submitted_ns, deadline_ns;
    uint64_t release_ns; /* DELAY: when the reply leaves */
    kh_result result;    /* DELAY */
    struct kh_place *place;   /* the token or pool that its key is in; NULL: the store's keeper */
    struct kh_keyflow *flow;  /* QUEUED and RING of a place: keyqueue.h */
    uint32_t tried, asked;    /* RING of a place: members that have had it, and that have not answered yet */
    uint32_t failed;          /* members that said it cannot be done, and should have */
    uint32_t last;            /* the member that had it last, at submitted_ns */
    void *extra;         /* the operation's own state (list), owned by the front's part that set it */
    uint32_t heap_index; /* deadline.h; UINT32_MAX: not in it */
    kh_job *next, *prev; /* flow, waiters or delay list, by state */
    kh_job *conn_next, *conn_prev;
    kh_job *hash_next;
    void *entry;   /* LOOKUP: the directory's entry */
    const void *found; /* the entry that answered it, while it is admitted */
    uint8_t *data; /* `space`, or a large buffer of the pool's */
    uint32_t data_len;
    uint8_t space[KH_JOB_INLINE];
};

typedef struct kh_jobs kh_jobs;

/* At most max_jobs at a time, and max_bytes in their large buffers. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_jobs_new(uint32_t max_jobs, uint64_t max_bytes, kh_jobs **jobs);
void kh_jobs_free(kh_jobs *jobs);
/* New bounds; what is out stays out. */
void kh_jobs_limit(kh_jobs *jobs, uint32_t max_jobs, uint64_t max_bytes);
/*
 * A job with room for data_len bytes (at most KH_RECORD_DATA_MAX), otherwise zero. NULL: the bounds are
 * reached.
 */
kh_job *kh_job_take(kh_jobs *jobs, uint32_t data_len);
/* Wipes the data. The job must be in no list, heap or table. */
void kh_job_release(kh_jobs *jobs, kh_job *job);
uint64_t kh_job_cookie(const kh_job *job);
/* The job with that cookie; NULL when it has been released since. */
kh_job *kh_jobs_find(const kh_jobs *jobs, uint64_t cookie);
uint32_t kh_jobs_in_use(const kh_jobs *jobs);

/* The table of waiting requests by connection and id, for cancel. */
void kh_jobs_enter(kh_jobs *jobs, kh_job *job);
void kh_jobs_leave(kh_jobs *jobs, kh_job *job);
kh_job *kh_jobs_request(const kh_jobs *jobs, const struct kh_conn *conn, uint32_t request_id);

/* A doubly linked list over next and prev. */
typedef struct kh_job_list {
    kh_job *first, *last;
    uint32_t count;
} kh_job_list;
void kh_job_list_append(kh_job_list *list, kh_job *job);
void kh_job_list_remove(kh_job_list *list, kh_job *job);

#endif

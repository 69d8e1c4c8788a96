/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fair queue of a token or pool. What is slow there is slow by its key (a large one, one that needs a touch, a token that
 * shares its sessions), so each key has a flow of its own, with a window of its own in the ring: tenants are served in turn by
 * their weight, within a tenant its keys in turn, and a key whose window is full takes no part until something of it comes back. So a
 * slow key delays no other.
 *
 * Flows are there while they have jobs, waiting or in the ring; they are as many as jobs at most. What is counted, and its
 * bounds, are those of queue.h.
 */
#ifndef KH_AGENT_KEYQUEUE_H
#define KH_AGENT_KEYQUEUE_H

#include "queue.h"

/* Place in a circle of those whose turn comes. */
typedef struct kh_turning {
    struct kh_turning *next, *prev; /* NULL: not in it */
} kh_turning;

/* One tenant's jobs with one key. */
typedef struct kh_keyflow {
    kh_turning turning; /* first; in its line's circle: it has jobs that may go */
    kh_job_list jobs;   /* that wait */
    uint64_t key_ref;
    uint32_t in_ring; /* jobs */
    struct kh_keyline *line;
    struct kh_keyflow *hash_next;
} kh_keyflow;

/* One tenant's flows. */
typedef struct kh_keyline {
    kh_turning turning; /* first; in the queue's circle: it has flows whose turn comes */
    struct kh_keyqueue *queue;
    struct kh_tenant *tenant;
    kh_turning *turn; /* the flow whose turn it is */
    uint32_t flows;
    uint32_t left; /* jobs that it may still send in this turn */
    struct kh_keyline *next;
} kh_keyline;

typedef struct kh_keyqueue kh_keyqueue;
struct kh_keyqueue {
    kh_queue *counted; /* where jobs are counted */
    uint32_t window;   /* jobs of one flow in the ring */
    uint32_t waiting, flows;
    kh_turning *turn;  /* the line whose turn it is */
    kh_keyflow *spare; /* by hash_next */
    uint32_t spares;
    kh_keyflow **table;
};

/* KH_E_MEMORY. */
KH_MUST_USE kh_result kh_keyqueue_init(kh_keyqueue *queue, kh_queue *counted, uint32_t window);
/* It must be empty. */
void kh_keyqueue_clear(kh_keyqueue *queue);
/* Queues an admitted job by job->tenant and job->key_ref; sets job->flow. KH_E_MEMORY: it is still only counted. */
KH_MUST_USE kh_result kh_keyqueue_push(kh_keyqueue *queue, kh_job *job);
/* The next job, no longer counted, but in its flow's window until kh_keyqueue_done; NULL: none may go. */
kh_job *kh_keyqueue_pop(kh_keyqueue *queue);
/* A popped job has its answer, or never went. */
void kh_keyqueue_done(kh_job *job);
/* A queued job leaves (cancelled, expired), no longer counted. */
void kh_keyqueue_remove(kh_job *job);

#endif

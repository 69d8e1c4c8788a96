/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fair queues: one for each lane group and tenant. Within a lane the tenants that have something waiting
 * are served in turn, each as many jobs as its weight says, so a tenant that floods delays only itself. Lanes
 * do not compete here: each has its own window in the ring.
 *
 * Bounds: a job is counted from admission until it leaves for the ring or is answered; per tenant and in
 * total.
 */
#ifndef KH_AGENT_QUEUE_H
#define KH_AGENT_QUEUE_H

#include "job.h"

typedef struct kh_flow {
    kh_job_list jobs;
    struct kh_flow *next, *prev; /* circle of the lane's flows that have jobs */
    struct kh_tenant *tenant;
    uint32_t left; /* jobs that it may still send in this turn */
} kh_flow;

/* Zero-initialise, then set queue_max and weight. Must not move while it has jobs. */
typedef struct kh_tenant {
    kh_flow flows[KH_LANE_COUNT];
    struct kh_keyline *lines; /* its flows at tokens and pools: keyqueue.h */
    uint32_t waiting; /* counted jobs */
    uint32_t queue_max;
    uint32_t weight;
} kh_tenant;

/* Zero-initialise, then set total_max. */
typedef struct kh_queue {
    kh_flow *turn[KH_LANE_COUNT];    /* whose turn it is; NULL: the lane is empty */
    uint32_t waiting[KH_LANE_COUNT]; /* queued jobs */
    uint32_t total, total_max;       /* counted jobs */
} kh_queue;

/* Counts one more job of the tenant. KH_E_OVERLOADED: a bound is reached; nothing is counted. */
KH_MUST_USE kh_result kh_queue_admit(kh_queue *queue, kh_tenant *tenant);
/* An admitted job is answered without having been queued. */
void kh_queue_forget(kh_queue *queue, kh_tenant *tenant);
/* Queues an admitted job in job->lane for job->tenant; its state becomes QUEUED. */
void kh_queue_push(kh_queue *queue, kh_job *job);
/* The next job of the lane, no longer counted; NULL: none. */
kh_job *kh_queue_pop(kh_queue *queue, kh_lane lane);
/* A job that was in the ring has to go again: counted and queued, past the bounds. */
void kh_queue_return(kh_queue *queue, kh_job *job);
/* A queued job leaves (cancelled, expired), no longer counted. */
void kh_queue_remove(kh_queue *queue, kh_job *job);

#endif

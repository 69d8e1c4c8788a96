/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fair queues: weighted round robin over tenants, per lane group. Every job costs one: a lane's jobs cost
 * the same.
 */
#include "queue.h"

kh_result kh_queue_admit(kh_queue *queue, kh_tenant *tenant)
{
    if (queue->total >= queue->total_max || tenant->waiting >= tenant->queue_max) {
        return KH_E_OVERLOADED;
    }
    queue->total++;
    tenant->waiting++;
    return KH_OK;
}

void kh_queue_forget(kh_queue *queue, kh_tenant *tenant)
{
    queue->total--;
    tenant->waiting--;
}

/* A flow that begins to have jobs waits for a whole turn of the others. */
static void link_flow(kh_queue *queue, kh_lane lane, kh_flow *flow)
{
    kh_flow *turn = queue->turn[lane];

    flow->left = flow->tenant->weight;
    if (turn == NULL) {
        flow->next = flow->prev = flow;
        queue->turn[lane] = flow;
        return;
    }
    flow->next = turn;
    flow->prev = turn->prev;
    turn->prev->next = flow;
    turn->prev = flow;
}

static void unlink_flow(kh_queue *queue, kh_lane lane, kh_flow *flow)
{
    if (flow->next == flow) {
        queue->turn[lane] = NULL;
    } else {
        flow->prev->next = flow->next;
        flow->next->prev = flow->prev;
        if (queue->turn[lane] == flow) {
            queue->turn[lane] = flow->next;
        }
    }
    flow->next = flow->prev = NULL;
}

void kh_queue_push(kh_queue *queue, kh_job *job)
{
    kh_flow *flow = &job->tenant->flows[job->lane];

    flow->tenant = job->tenant;
    if (flow->jobs.count == 0) {
        link_flow(queue, job->lane, flow);
    }
    kh_job_list_append(&flow->jobs, job);
    job->state = KH_JOB_QUEUED;
    queue->waiting[job->lane]++;
}

void kh_queue_return(kh_queue *queue, kh_job *job)
{
    queue->total++;
    job->tenant->waiting++;
    kh_queue_push(queue, job);
}

void kh_queue_remove(kh_queue *queue, kh_job *job)
{
    kh_flow *flow = &job->tenant->flows[job->lane];

    kh_job_list_remove(&flow->jobs, job);
    queue->waiting[job->lane]--;
    if (flow->jobs.count == 0) {
        unlink_flow(queue, job->lane, flow);
    }
    kh_queue_forget(queue, job->tenant);
}

kh_job *kh_queue_pop(kh_queue *queue, kh_lane lane)
{
    kh_flow *flow = queue->turn[lane];
    kh_job *job = NULL;

    if (flow == NULL) {
        return NULL;
    }
    job = flow->jobs.first;
    if (flow->left > 0) {
        flow->left--;
    }
    if (flow->left == 0) {
        flow->left = flow->tenant->weight;
        queue->turn[lane] = flow->next;
    }
    kh_queue_remove(queue, job);
    return job;
}

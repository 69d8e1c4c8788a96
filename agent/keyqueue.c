/* SPDX-License-Identifier: Apache-2.0 */
/* The fair queue of a token or pool: tenants in turn, and each tenant's keys in turn. */
#include "keyqueue.h"
#include <stdlib.h>

#define TABLE_SIZE 1024u /* a power of two */
#define SPARES_MAX 256   /* flows that are kept for the next */

/* ---- Circles ---- */

/* Behind all others. */
static void enter(kh_turning **turn, kh_turning *one)
{
    if (*turn == NULL) {
        one->next = one->prev = one;
        *turn = one;
        return;
    }
    one->next = *turn;
    one->prev = (*turn)->prev;
    (*turn)->prev->next = one;
    (*turn)->prev = one;
}

static void leave(kh_turning **turn, kh_turning *one)
{
    if (one->next == one) {
        *turn = NULL;
    } else {
        one->prev->next = one->next;
        one->next->prev = one->prev;
        if (*turn == one) {
            *turn = one->next;
        }
    }
    one->next = one->prev = NULL;
}

/* ---- Lines and flows ---- */

static void enter_flow(kh_keyflow *flow)
{
    kh_keyline *line = flow->line;

    enter(&line->turn, &flow->turning);
    if (line->turning.next == NULL) {
        line->left = line->tenant->weight;
        enter(&line->queue->turn, &line->turning);
    }
}

static void leave_flow(kh_keyflow *flow)
{
    kh_keyline *line = flow->line;

    leave(&line->turn, &flow->turning);
    if (line->turn == NULL) {
        leave(&line->queue->turn, &line->turning);
    }
}

/* Whether its turn comes follows from what it has. */
static void settle(kh_keyflow *flow)
{
    bool may_go = flow->jobs.count > 0 && flow->in_ring < flow->line->queue->window;

    if (may_go && flow->turning.next == NULL) {
        enter_flow(flow);
    } else if (!may_go && flow->turning.next != NULL) {
        leave_flow(flow);
    }
}

static kh_keyflow **bucket_of(const kh_keyqueue *queue, const kh_tenant *tenant, uint64_t key_ref)
{
    uint64_t mixed = (key_ref ^ (uint64_t)(uintptr_t)tenant >> 4) * UINT64_C(0x9e3779b97f4a7c15);

    return &queue->table[mixed >> 54 & (TABLE_SIZE - 1)];
}

static kh_keyline *line_of(kh_keyqueue *queue, kh_tenant *tenant)
{
    kh_keyline *line = tenant->lines;

    while (line != NULL && line->queue != queue) {
        line = line->next;
    }
    if (line == NULL && (line = calloc(1, sizeof *line)) != NULL) {
        line->queue = queue;
        line->tenant = tenant;
        line->next = tenant->lines;
        tenant->lines = line;
    }
    return line;
}

static void drop_line(kh_keyline *line)
{
    kh_keyline **at = &line->tenant->lines;

    while (*at != line) {
        at = &(*at)->next;
    }
    *at = line->next;
    free(line);
}

static kh_keyflow *new_flow(kh_keyqueue *queue)
{
    kh_keyflow *flow = queue->spare;

    if (flow == NULL) {
        return calloc(1, sizeof *flow);
    }
    queue->spare = flow->hash_next;
    queue->spares--;
    return flow;
}

static void recycle(kh_keyqueue *queue, kh_keyflow *flow)
{
    if (queue->spares >= SPARES_MAX) {
        free(flow);
        return;
    }
    *flow = (kh_keyflow){.hash_next = queue->spare};
    queue->spare = flow;
    queue->spares++;
}

static kh_keyflow *flow_of(kh_keyqueue *queue, kh_tenant *tenant, uint64_t key_ref)
{
    kh_keyflow **bucket = bucket_of(queue, tenant, key_ref), *flow = *bucket;
    kh_keyline *line = NULL;

    while (flow != NULL && (flow->key_ref != key_ref || flow->line->tenant != tenant)) {
        flow = flow->hash_next;
    }
    if (flow != NULL) {
        return flow;
    }
    line = line_of(queue, tenant);
    flow = line != NULL ? new_flow(queue) : NULL;
    if (flow == NULL) {
        if (line != NULL && line->flows == 0) {
            drop_line(line);
        }
        return NULL;
    }
    flow->key_ref = key_ref;
    flow->line = line;
    flow->hash_next = *bucket;
    *bucket = flow;
    line->flows++;
    queue->flows++;
    return flow;
}

static void drop_if_empty(kh_keyflow *flow)
{
    kh_keyline *line = flow->line;
    kh_keyqueue *queue = line->queue;
    kh_keyflow **at = NULL;

    if (flow->jobs.count > 0 || flow->in_ring > 0) {
        return;
    }
    for (at = bucket_of(queue, line->tenant, flow->key_ref); *at != flow; at = &(*at)->hash_next) {
    }
    *at = flow->hash_next;
    queue->flows--;
    if (--line->flows == 0) {
        drop_line(line);
    }
    recycle(queue, flow);
}

/* ---- The queue ---- */

kh_result kh_keyqueue_init(kh_keyqueue *queue, kh_queue *counted, uint32_t window)
{
    *queue = (kh_keyqueue){.counted = counted, .window = window, .table = calloc(TABLE_SIZE, sizeof *queue->table)};
    return queue->table != NULL ? KH_OK : KH_E_MEMORY;
}

void kh_keyqueue_clear(kh_keyqueue *queue)
{
    while (queue->spare != NULL) {
        kh_keyflow *flow = queue->spare;

        queue->spare = flow->hash_next;
        free(flow);
    }
    free(queue->table);
    *queue = (kh_keyqueue){0};
}

kh_result kh_keyqueue_push(kh_keyqueue *queue, kh_job *job)
{
    kh_keyflow *flow = flow_of(queue, job->tenant, job->key_ref);

    if (flow == NULL) {
        return KH_E_MEMORY;
    }
    kh_job_list_append(&flow->jobs, job);
    job->flow = flow;
    job->state = KH_JOB_QUEUED;
    queue->waiting++;
    settle(flow);
    return KH_OK;
}

static void take_out(kh_job *job)
{
    kh_keyqueue *queue = job->flow->line->queue;

    kh_job_list_remove(&job->flow->jobs, job);
    queue->waiting--;
    kh_queue_forget(queue->counted, job->tenant);
}

kh_job *kh_keyqueue_pop(kh_keyqueue *queue)
{
    kh_keyline *line = (kh_keyline *)queue->turn;
    kh_keyflow *flow = NULL;
    kh_job *job = NULL;

    if (line == NULL) {
        return NULL;
    }
    flow = (kh_keyflow *)line->turn;
    line->turn = flow->turning.next;
    line->left -= line->left > 0;
    if (line->left == 0) {
        line->left = line->tenant->weight;
        queue->turn = line->turning.next;
    }
    job = flow->jobs.first;
    take_out(job);
    flow->in_ring++;
    settle(flow);
    return job;
}

void kh_keyqueue_done(kh_job *job)
{
    kh_keyflow *flow = job->flow;

    job->flow = NULL;
    flow->in_ring--;
    settle(flow);
    drop_if_empty(flow);
}

void kh_keyqueue_remove(kh_job *job)
{
    kh_keyflow *flow = job->flow;

    take_out(job);
    job->flow = NULL;
    settle(flow);
    drop_if_empty(flow);
}

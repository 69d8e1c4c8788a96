/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations: requests to an agent with a deadline.  One that no agent can
 * take waits for one; one that is refused for now is tried again; one whose
 * connection is lost goes back to wait (each operation can be repeated without
 * harm).  All have the same time, so the list of all is in the order of their
 * deadlines, and one timer does.
 */

#include "ngx_keyhold.h"


/* an agent's keeper that died is back within a second: ask soon, not often */
#define NGX_KEYHOLD_RETRY_MSEC  20


static void ngx_keyhold_op_send(ngx_keyhold_op_t *op);
static void ngx_keyhold_op_wait(ngx_keyhold_op_t *op, ngx_uint_t first);
static void ngx_keyhold_op_delay(ngx_keyhold_op_t *op, ngx_msec_t msec);
static void ngx_keyhold_op_unlink(ngx_keyhold_op_t *op);
static void ngx_keyhold_op_end(ngx_keyhold_op_t *op, kh_result result);
static void ngx_keyhold_op_deadline_handler(ngx_event_t *ev);
static void ngx_keyhold_op_retry_handler(ngx_event_t *ev);


static ngx_queue_t   ngx_keyhold_op_deadlines;
static ngx_queue_t   ngx_keyhold_op_waiting;
static ngx_queue_t   ngx_keyhold_op_delayed;    /* by retry time */
static ngx_event_t   ngx_keyhold_op_deadline_event;
static ngx_event_t   ngx_keyhold_op_retry_event;
static ngx_int_t     ngx_keyhold_op_inflight;


ngx_int_t
ngx_keyhold_op_init(ngx_cycle_t *cycle)
{
    static ngx_connection_t  dumb;

    ngx_queue_init(&ngx_keyhold_op_deadlines);
    ngx_queue_init(&ngx_keyhold_op_waiting);
    ngx_queue_init(&ngx_keyhold_op_delayed);

    dumb.fd = (ngx_socket_t) -1;

    ngx_keyhold_op_deadline_event.handler = ngx_keyhold_op_deadline_handler;
    ngx_keyhold_op_deadline_event.data = &dumb;
    ngx_keyhold_op_deadline_event.log = cycle->log;
    ngx_keyhold_op_deadline_event.cancelable = 1;

    ngx_keyhold_op_retry_event.handler = ngx_keyhold_op_retry_handler;
    ngx_keyhold_op_retry_event.data = &dumb;
    ngx_keyhold_op_retry_event.log = cycle->log;
    ngx_keyhold_op_retry_event.cancelable = 1;

    return NGX_OK;
}


kh_result
ngx_keyhold_op_start(ngx_keyhold_op_t *op)
{
    op->result = KH_OK;
    op->len = 0;
    op->agent = NULL;
    op->detail[0] = '\0';
    op->state = NGX_KEYHOLD_OP_IDLE;

    if (!op->unlimited) {
        if (ngx_keyhold_op_inflight >= ngx_keyhold_conf->max_inflight) {
            return KH_E_OVERLOADED;
        }

        ngx_keyhold_op_inflight++;
    }

    op->started = ngx_current_msec;

    ngx_queue_insert_tail(&ngx_keyhold_op_deadlines, &op->deadlines);

    if (!ngx_keyhold_op_deadline_event.timer_set) {
        ngx_add_timer(&ngx_keyhold_op_deadline_event,
                      ngx_keyhold_conf->timeout);
    }

    if (ngx_queue_empty(&ngx_keyhold_op_waiting)) {
        ngx_keyhold_op_send(op);

    } else {
        ngx_keyhold_op_wait(op, 0);
    }

    return KH_OK;
}


void
ngx_keyhold_op_cancel(ngx_keyhold_op_t *op)
{
    if (op->state == NGX_KEYHOLD_OP_SENT) {
        ngx_keyhold_conn_cancel(op->agent, op->id);
    }

    ngx_keyhold_op_unlink(op);
}


/*
 * The agents in their order.  With several, this is where one is chosen.
 * A request that can never be sent waits for its deadline's event, since
 * the starter has not returned yet.
 */

static void
ngx_keyhold_op_send(ngx_keyhold_op_t *op)
{
    ngx_int_t              rc;
    ngx_uint_t             i;
    ngx_msec_t             spent;
    ngx_keyhold_agent_t  **agents;

    spent = ngx_min(ngx_current_msec - op->started,
                    ngx_keyhold_conf->timeout - 1);

    agents = ngx_keyhold_conf->agents.elts;

    for (i = 0; i < ngx_keyhold_conf->agents.nelts; i++) {

        rc = ngx_keyhold_conn_send(agents[i], op,
                                   ngx_keyhold_conf->timeout - spent);

        if (rc == NGX_OK) {
            op->state = NGX_KEYHOLD_OP_SENT;
            op->agent = agents[i];
            op->sent = ngx_current_msec;
            return;
        }

        if (rc == NGX_ERROR) {
            op->agent = agents[i];
            ngx_keyhold_op_delay(op, 0);
            return;
        }
    }

    ngx_keyhold_op_wait(op, 0);
}


static void
ngx_keyhold_op_wait(ngx_keyhold_op_t *op, ngx_uint_t first)
{
    op->state = NGX_KEYHOLD_OP_WAITING;

    if (first) {
        ngx_queue_insert_head(&ngx_keyhold_op_waiting, &op->queue);

    } else {
        ngx_queue_insert_tail(&ngx_keyhold_op_waiting, &op->queue);
    }
}


static void
ngx_keyhold_op_delay(ngx_keyhold_op_t *op, ngx_msec_t msec)
{
    ngx_queue_t       *q;
    ngx_keyhold_op_t  *other;

    op->state = NGX_KEYHOLD_OP_DELAYED;
    op->retry = ngx_current_msec + msec;

    for (q = ngx_queue_last(&ngx_keyhold_op_delayed);
         q != ngx_queue_sentinel(&ngx_keyhold_op_delayed);
         q = ngx_queue_prev(q))
    {
        other = ngx_queue_data(q, ngx_keyhold_op_t, queue);

        if ((ngx_msec_int_t) (op->retry - other->retry) >= 0) {
            break;
        }
    }

    ngx_queue_insert_after(q, &op->queue);

    if (ngx_queue_head(&ngx_keyhold_op_delayed) == &op->queue) {

        /* a timer that is set would be kept, though it is up to 300 ms late */

        if (ngx_keyhold_op_retry_event.timer_set) {
            ngx_del_timer(&ngx_keyhold_op_retry_event);
        }

        ngx_add_timer(&ngx_keyhold_op_retry_event, msec);
    }
}


static void
ngx_keyhold_op_unlink(ngx_keyhold_op_t *op)
{
    switch (op->state) {

    case NGX_KEYHOLD_OP_WAITING:
    case NGX_KEYHOLD_OP_DELAYED:
        ngx_queue_remove(&op->queue);
        break;

    case NGX_KEYHOLD_OP_SENT:
        break;

    default: /* NGX_KEYHOLD_OP_IDLE */
        return;
    }

    op->state = NGX_KEYHOLD_OP_IDLE;

    ngx_queue_remove(&op->deadlines);

    if (!op->unlimited) {
        ngx_keyhold_op_inflight--;
    }
}


static void
ngx_keyhold_op_end(ngx_keyhold_op_t *op, kh_result result)
{
    ngx_keyhold_op_unlink(op);

    op->result = result;
    op->handler(op);
}


void
ngx_keyhold_op_reply(ngx_keyhold_op_t *op, const kh_reply *reply)
{
    ngx_msec_t  msec, left;

    ngx_keyhold_conn_served(op->agent);

    if (reply->status == KH_OK) {

        if (reply->op == KH_OP_PUBLIC_KEY) {
            if (op->entry != NULL) {
                *op->entry = reply->entry;
            }

        } else if (reply->data.len > op->cap) {
            ngx_keyhold_op_end(op, KH_E_TOO_LARGE);
            return;

        } else {
            ngx_memcpy(op->out, reply->data.data, reply->data.len);
            op->len = reply->data.len;
        }

        ngx_keyhold_op_end(op, KH_OK);
        return;
    }

    ngx_keyhold_detail(op->detail, reply->status, reply->detail);

    if (!kh_result_retryable(reply->status)) {
        ngx_keyhold_op_end(op, reply->status);
        return;
    }

    left = op->started + ngx_keyhold_conf->timeout - ngx_current_msec;
    msec = ngx_max(reply->retry_after_ms, NGX_KEYHOLD_RETRY_MSEC);

    if ((ngx_msec_int_t) left <= (ngx_msec_int_t) msec) {
        ngx_keyhold_op_end(op, reply->status);
        return;
    }

    ngx_keyhold_op_delay(op, msec);
}


void
ngx_keyhold_op_lost(ngx_keyhold_op_t *op)
{
    ngx_keyhold_op_wait(op, 0);
}


void
ngx_keyhold_op_dispatch(void)
{
    ngx_queue_t       *q;
    ngx_keyhold_op_t  *op;

    while (!ngx_queue_empty(&ngx_keyhold_op_waiting)) {

        q = ngx_queue_head(&ngx_keyhold_op_waiting);
        op = ngx_queue_data(q, ngx_keyhold_op_t, queue);

        ngx_queue_remove(&op->queue);

        ngx_keyhold_op_send(op);

        if (op->state == NGX_KEYHOLD_OP_WAITING) {

            /* it keeps its place */

            ngx_queue_remove(&op->queue);
            ngx_keyhold_op_wait(op, 1);
            return;
        }
    }
}


static void
ngx_keyhold_op_deadline_handler(ngx_event_t *ev)
{
    ngx_queue_t          *q;
    ngx_msec_int_t        left;
    ngx_keyhold_op_t     *op;
    ngx_keyhold_agent_t  *agent, **agents;

    agents = ngx_keyhold_conf->agents.elts;

    while (!ngx_queue_empty(&ngx_keyhold_op_deadlines)) {

        q = ngx_queue_head(&ngx_keyhold_op_deadlines);
        op = ngx_queue_data(q, ngx_keyhold_op_t, deadlines);

        left = (ngx_msec_int_t) (op->started + ngx_keyhold_conf->timeout
                                 - ngx_current_msec);

        if (left > 0) {
            ngx_add_timer(ev, (ngx_msec_t) left);
            return;
        }

        agent = op->agent;

        if (op->state == NGX_KEYHOLD_OP_SENT) {

            /* the agent is there and says nothing, to nobody? */

            if ((ngx_msec_int_t) (agent->received - op->sent) >= 0) {
                agent = NULL;
            }

            ngx_snprintf(op->detail, NGX_KEYHOLD_DETAIL_LEN,
                         "no reply from the agent%Z");

        } else {

            if (agents[0]->full && op->detail[0] == '\0') {
                ngx_snprintf(op->detail, NGX_KEYHOLD_DETAIL_LEN,
                             "the agent's credit is used up%Z");
            }

            agent = NULL;
        }

        ngx_keyhold_op_cancel(op);

        op->result = KH_E_DEADLINE;
        op->handler(op);

        if (agent != NULL) {
            ngx_keyhold_conn_stalled(agent);
        }
    }
}


static void
ngx_keyhold_op_retry_handler(ngx_event_t *ev)
{
    ngx_queue_t       *q;
    ngx_msec_int_t     left;
    ngx_keyhold_op_t  *op;

    while (!ngx_queue_empty(&ngx_keyhold_op_delayed)) {

        q = ngx_queue_head(&ngx_keyhold_op_delayed);
        op = ngx_queue_data(q, ngx_keyhold_op_t, queue);

        left = (ngx_msec_int_t) (op->retry - ngx_current_msec);

        if (left > 0) {
            ngx_add_timer(ev, (ngx_msec_t) left);
            return;
        }

        if (op->result != KH_OK) {

            /* it could not be sent at all */

            ngx_keyhold_op_end(op, op->result);
            continue;
        }

        ngx_queue_remove(&op->queue);

        ngx_keyhold_op_send(op);
    }
}

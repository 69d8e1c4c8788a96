/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations: requests to an agent with a deadline.  To which agent one goes,
 * waits for, and goes next, is ngx_keyhold_route.c's business.  All have the
 * same time, so the list of all is in the order of their deadlines, and one
 * timer does.
 */

#include "ngx_keyhold.h"


/* one with many rounds costs as much as so many others */
#define NGX_KEYHOLD_WORK_RSA    8
#define NGX_KEYHOLD_WORK_CURVE  4


static ngx_uint_t ngx_keyhold_op_work(kh_request *req);
static void ngx_keyhold_op_unlink(ngx_keyhold_op_t *op);
static void ngx_keyhold_op_expire(ngx_keyhold_op_t *op);
static void ngx_keyhold_op_deadline_handler(ngx_event_t *ev);
static void ngx_keyhold_op_retry_handler(ngx_event_t *ev);


static ngx_queue_t   ngx_keyhold_op_deadlines;
static ngx_queue_t   ngx_keyhold_op_delayed;    /* by retry time */
static ngx_event_t   ngx_keyhold_op_deadline_event;
static ngx_event_t   ngx_keyhold_op_retry_event;
static ngx_int_t     ngx_keyhold_op_inflight;


ngx_int_t
ngx_keyhold_op_init(ngx_cycle_t *cycle)
{
    static ngx_connection_t  dumb;

    ngx_queue_init(&ngx_keyhold_op_deadlines);
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
    op->tries = 0;
    op->gone = 0;
    op->detail[0] = '\0';

    op->state = NGX_KEYHOLD_OP_IDLE;
    op->delay = 0;
    op->missing = 0;
    op->tried = 0;
    op->refusal = KH_OK;
    op->owes = 0;
    op->work = ngx_keyhold_op_work(op->req);

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

    ngx_keyhold_route(op);

    return KH_OK;
}


static ngx_uint_t
ngx_keyhold_op_work(kh_request *req)
{
    switch (req->op) {

    case KH_OP_SIGN:
        switch (req->scheme) {

        case KH_ECDSA_SHA256:
        case KH_ED25519:
            return 1;

        case KH_ECDSA_SHA384:
        case KH_ECDSA_SHA512:
            return NGX_KEYHOLD_WORK_CURVE;

        default:
            return NGX_KEYHOLD_WORK_RSA;
        }

    case KH_OP_TLS_RSA_DECRYPT:
    case KH_OP_DECRYPT:
        return NGX_KEYHOLD_WORK_RSA;

    default:
        return 1;
    }
}


void
ngx_keyhold_op_cancel(ngx_keyhold_op_t *op)
{
    if (op->state == NGX_KEYHOLD_OP_SENT) {
        ngx_keyhold_conn_cancel(op->agent, op->id);
    }

    ngx_keyhold_op_unlink(op);
}


ngx_msec_int_t
ngx_keyhold_op_left(ngx_keyhold_op_t *op)
{
    return (ngx_msec_int_t) (op->started + ngx_keyhold_conf->timeout
                             - ngx_current_msec);
}


void
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
        ngx_keyhold_route_left(op);
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


void
ngx_keyhold_op_end(ngx_keyhold_op_t *op, kh_result result)
{
    ngx_keyhold_op_unlink(op);

    op->result = result;
    op->handler(op);
}


ngx_int_t
ngx_keyhold_op_reply(ngx_keyhold_op_t *op, const kh_reply *reply,
    const char **why)
{
    *why = ngx_keyhold_check(op, reply);

    if (*why != NULL) {
        return NGX_ERROR;
    }

    ngx_keyhold_conn_served(op->agent);
    ngx_keyhold_route_took(op);

    if (reply->status != KH_OK) {
        ngx_keyhold_detail(op->detail, reply->status, reply->detail);
        ngx_keyhold_route_refused(op, reply->status, reply->retry_after_ms);
        return NGX_OK;
    }

    op->detail[0] = '\0';
    op->agent->refusals = 0;

    if (reply->op == KH_OP_DESCRIBE) {
        if (op->entry != NULL) {
            *op->entry = reply->entry;
        }

    } else {
        ngx_memcpy(op->out, reply->data.data, reply->data.len);
        op->len = reply->data.len;
    }

    ngx_keyhold_op_end(op, KH_OK);

    return NGX_OK;
}


static void
ngx_keyhold_op_deadline_handler(ngx_event_t *ev)
{
    ngx_queue_t          *q;
    ngx_msec_int_t        left;
    ngx_keyhold_op_t     *op;

    while (!ngx_queue_empty(&ngx_keyhold_op_deadlines)) {

        q = ngx_queue_head(&ngx_keyhold_op_deadlines);
        op = ngx_queue_data(q, ngx_keyhold_op_t, deadlines);

        left = ngx_keyhold_op_left(op);

        if (left > 0) {
            ngx_add_timer(ev, (ngx_msec_t) left);
            return;
        }

        ngx_keyhold_op_expire(op);
    }
}


static void
ngx_keyhold_op_expire(ngx_keyhold_op_t *op)
{
    ngx_uint_t            i;
    ngx_msec_t            msec;
    ngx_keyhold_agent_t  *agent, **agents;

    agent = NULL;

    if (op->state == NGX_KEYHOLD_OP_SENT) {

        /* the agent is there and says nothing, to nobody, given some time? */

        msec = ngx_min(ngx_keyhold_conf->try_timeout,
                       ngx_keyhold_conf->timeout / 2);

        if ((ngx_msec_int_t) (op->agent->received - op->sent) < 0
            && ngx_current_msec - op->sent >= msec)
        {
            agent = op->agent;
        }

        ngx_snprintf(op->detail, NGX_KEYHOLD_DETAIL_LEN,
                     "no reply from the agent%Z");

    } else if (op->detail[0] == '\0') {

        agents = ngx_keyhold_conf->agents.elts;
        op->gone = 1;

        for (i = 0; i < ngx_keyhold_conf->agents.nelts; i++) {

            if (op->only != NULL && op->only != agents[i]) {
                continue;
            }

            if (agents[i]->full) {
                ngx_snprintf(op->detail, NGX_KEYHOLD_DETAIL_LEN,
                             "the agent's credit is used up%Z");
            }

            if (agents[i]->ready) {
                op->gone = 0;
            }
        }
    }

    ngx_keyhold_op_cancel(op);

    op->result = KH_E_DEADLINE;
    op->handler(op);

    if (agent != NULL) {
        ngx_keyhold_conn_stalled(agent);
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

            /* there is nobody to send it to, or it can not be sent at all */

            ngx_keyhold_op_end(op, op->result);
            continue;
        }

        ngx_queue_remove(&op->queue);

        ngx_keyhold_route(op);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * To which agent an operation goes, and to which next.
 *
 *   One that no agent can take waits for one: until the agents that could have
 *   its key have been out of reach for 0.9 s; then it fails, and those after
 *   it at once.
 *   One whose connection is lost goes to another agent, or waits (each can be
 *   repeated without harm).
 *
 * What comes after a refusal, and after silence, is ngx_keyhold_retry.c's.
 *
 * With one agent alone there is none but to wait for it.
 */

#include "ngx_keyhold_route.h"


/* a key that all agents lack is asked for as often */
#define NGX_KEYHOLD_MISSING_ASK     1000

/* of a restart nobody is to notice anything */
#define NGX_KEYHOLD_GRACE_MSEC      900

/* so many that wait for one certain agent are looked at in one go */
#define NGX_KEYHOLD_PASSED_MAX      64


static ngx_keyhold_set_t ngx_keyhold_route_set(ngx_keyhold_op_t *op,
    ngx_keyhold_set_t not, ngx_uint_t *others);
static ngx_keyhold_set_t ngx_keyhold_route_failed(ngx_keyhold_op_t *op,
    ngx_keyhold_set_t set);
static uint64_t ngx_keyhold_route_key(ngx_keyhold_op_t *op,
    ngx_uint_t failed);
static ngx_msec_int_t ngx_keyhold_route_missing(ngx_keyhold_op_t *op,
    ngx_keyhold_agent_t *agent);
static void ngx_keyhold_route_wait(ngx_keyhold_op_t *op, ngx_queue_t *queue,
    ngx_uint_t first);
static void ngx_keyhold_route_down_handler(ngx_event_t *ev);


ngx_keyhold_agent_t         **ngx_keyhold_agents;
static ngx_keyhold_share_t   *ngx_keyhold_shares[NGX_KEYHOLD_AGENTS_MAX];
ngx_uint_t                    ngx_keyhold_n;
ngx_keyhold_budget_t          ngx_keyhold_budget;
static ngx_queue_t            ngx_keyhold_waiting;   /* for any agent */
static ngx_queue_t            ngx_keyhold_choosy;    /* for certain ones */
static ngx_event_t            ngx_keyhold_down_event;


void
ngx_keyhold_route_init(ngx_keyhold_conf_t *conf, ngx_log_t *log)
{
    ngx_uint_t               i;
    ngx_keyhold_agent_t     *agent;
    static ngx_connection_t  dumb;

    ngx_keyhold_agents = conf->agents.elts;
    ngx_keyhold_n = conf->agents.nelts;

    ngx_queue_init(&ngx_keyhold_waiting);
    ngx_queue_init(&ngx_keyhold_choosy);
    ngx_keyhold_budget_init(&ngx_keyhold_budget);

    dumb.fd = (ngx_socket_t) -1;

    ngx_keyhold_down_event.handler = ngx_keyhold_route_down_handler;
    ngx_keyhold_down_event.data = &dumb;
    ngx_keyhold_down_event.log = log;
    ngx_keyhold_down_event.cancelable = 1;

    for (i = 0; i < ngx_keyhold_n; i++) {
        agent = ngx_keyhold_agents[i];

        ngx_keyhold_shares[i] = &agent->share;
        ngx_queue_init(&agent->sent);

        agent->overdue.handler = ngx_keyhold_route_overdue_handler;
        agent->overdue.data = agent;
        agent->overdue.log = log;
        agent->overdue.cancelable = 1;
    }
}


/* ---- sending ---- */


/*
 * A request that can never be sent, or that nobody is there for, waits for its
 * event, since the starter has not returned yet.
 */

void
ngx_keyhold_route(ngx_keyhold_op_t *op)
{
    if (op->owes && !ngx_keyhold_budget_take(&ngx_keyhold_budget)) {
        ngx_keyhold_route_later(op, 0);
        return;
    }

    op->owes = 0;

    if (op->tries == 0) {
        ngx_keyhold_budget_earn(&ngx_keyhold_budget);
    }

    if (!ngx_queue_empty(&ngx_keyhold_waiting)) {
        ngx_keyhold_route_wait(op, &ngx_keyhold_waiting, 0);
        return;
    }

    switch (ngx_keyhold_route_to(op, 0)) {

    case NGX_OK:
        return;

    case NGX_ERROR:
        ngx_keyhold_op_delay(op, 0);
        return;

    case NGX_DECLINED:

        if (!ngx_keyhold_route_hopeless(op)) {
            ngx_keyhold_route_wait(op, &ngx_keyhold_choosy, 0);
        }

        return;

    default: /* NGX_AGAIN */

        if (!ngx_keyhold_route_hopeless(op)) {
            ngx_keyhold_route_wait(op, &ngx_keyhold_waiting, 0);
        }
    }
}


ngx_int_t
ngx_keyhold_route_to(ngx_keyhold_op_t *op, ngx_keyhold_set_t not)
{
    ngx_int_t             rc;
    ngx_uint_t            i, others;
    ngx_msec_int_t        left;
    ngx_keyhold_set_t     set, last;
    ngx_keyhold_agent_t  *agent;

    left = ngx_max(ngx_keyhold_op_left(op), 1);
    set = ngx_keyhold_route_set(op, not, &others);
    last = op->tried | ngx_keyhold_route_failed(op, set);

    while (set) {

        i = ngx_keyhold_balance(ngx_keyhold_shares, set, last, op->work,
                                ngx_current_msec);
        agent = ngx_keyhold_agents[i];

        rc = ngx_keyhold_conn_send(agent, op, (ngx_msec_t) left);

        if (rc == NGX_AGAIN) {
            set &= ~ngx_keyhold_bit(i);
            continue;
        }

        op->agent = agent;

        if (rc == NGX_ERROR) {
            return NGX_ERROR;
        }

        op->state = NGX_KEYHOLD_OP_SENT;
        op->sent = ngx_current_msec;
        op->tries++;
        agent->share.work += op->work;

        ngx_queue_insert_tail(&agent->sent, &op->queue);

        if (ngx_keyhold_n > 1 && !agent->overdue.timer_set) {
            ngx_add_timer(&agent->overdue, ngx_keyhold_conf->try_timeout);
        }

        return NGX_OK;
    }

    return others ? NGX_DECLINED : NGX_AGAIN;
}


/* The agents that can take it now; others: there are some that can not. */

static ngx_keyhold_set_t
ngx_keyhold_route_set(ngx_keyhold_op_t *op, ngx_keyhold_set_t not,
    ngx_uint_t *others)
{
    ngx_uint_t            i;
    ngx_msec_int_t        since;
    ngx_keyhold_set_t     set, lacking;
    ngx_keyhold_agent_t  *agent;

    set = 0;
    lacking = 0;
    *others = 0;

    for (i = 0; i < ngx_keyhold_n; i++) {
        agent = ngx_keyhold_agents[i];

        if (!agent->ready || agent->full) {
            continue;
        }

        if ((not & ngx_keyhold_bit(i))
            || (op->only != NULL && op->only != agent))
        {
            *others = 1;
            continue;
        }

        since = ngx_keyhold_route_missing(op, agent);

        if (since == -1) {
            set |= ngx_keyhold_bit(i);
            continue;
        }

        *others = 1;

        if (since >= NGX_KEYHOLD_MISSING_ASK) {
            lacking |= ngx_keyhold_bit(i);
        }
    }

    /* who lacked it may have it by now, and is asked before nobody is */

    return set ? set : lacking;
}


void
ngx_keyhold_route_left(ngx_keyhold_op_t *op)
{
    ngx_queue_remove(&op->queue);
    op->agent->share.work -= op->work;
}


/* ---- keys that an agent lacks, or fails at ---- */


/* What stands for its key, or for that an agent has failed at it. */

static uint64_t
ngx_keyhold_route_key(ngx_keyhold_op_t *op, ngx_uint_t failed)
{
    if (op->missing == 0) {
        op->missing = ngx_keyhold_missing_key(op->req->key.data,
                                              op->req->key.len);
    }

    return failed ? ~op->missing : op->missing;
}


/* Which have failed at its key of late: asked when there is no other. */

static ngx_keyhold_set_t
ngx_keyhold_route_failed(ngx_keyhold_op_t *op, ngx_keyhold_set_t set)
{
    ngx_uint_t              i;
    ngx_keyhold_set_t       failed;
    ngx_keyhold_missing_t  *missing;

    failed = 0;

    for (i = 0; i < ngx_keyhold_n; i++) {
        missing = ngx_keyhold_agents[i]->missing;

        if ((set & ngx_keyhold_bit(i)) && missing != NULL
            && ngx_keyhold_missing_since(missing, ngx_keyhold_route_key(op, 1),
                                         ngx_current_msec)
               != -1)
        {
            failed |= ngx_keyhold_bit(i);
        }
    }

    return failed;
}


static ngx_msec_int_t
ngx_keyhold_route_missing(ngx_keyhold_op_t *op, ngx_keyhold_agent_t *agent)
{
    if (agent->missing == NULL || op->only != NULL) {
        return -1;
    }

    return ngx_keyhold_missing_since(agent->missing,
                                     ngx_keyhold_route_key(op, 0),
                                     ngx_current_msec);
}


void
ngx_keyhold_route_lacks(ngx_keyhold_op_t *op, ngx_keyhold_agent_t *agent,
    ngx_uint_t failed)
{
    if (agent->missing == NULL) {
        agent->missing = ngx_calloc(sizeof(ngx_keyhold_missing_t),
                                    agent->reconnect.log);
        if (agent->missing == NULL) {
            return;
        }
    }

    ngx_keyhold_missing_add(agent->missing, ngx_keyhold_route_key(op, failed),
                            ngx_current_msec);
}


/* ---- waiting ---- */


static void
ngx_keyhold_route_wait(ngx_keyhold_op_t *op, ngx_queue_t *queue,
    ngx_uint_t first)
{
    op->state = NGX_KEYHOLD_OP_WAITING;

    if (first) {
        ngx_queue_insert_head(queue, &op->queue);

    } else {
        ngx_queue_insert_tail(queue, &op->queue);
    }
}


void
ngx_keyhold_route_choosy(ngx_keyhold_op_t *op)
{
    ngx_keyhold_route_wait(op, &ngx_keyhold_choosy, 0);
}


void
ngx_keyhold_route_dispatch(void)
{
    ngx_int_t          rc;
    ngx_uint_t         passed;
    ngx_queue_t       *q, *queue, *first;
    ngx_keyhold_op_t  *op;

    /* those that can not be sent go to the end: once around is enough */

    first = NULL;
    passed = 0;
    queue = &ngx_keyhold_choosy;

    for ( ;; ) {

        if (queue == &ngx_keyhold_choosy
            && (ngx_queue_empty(queue)
                || ngx_queue_head(queue) == first
                || passed == NGX_KEYHOLD_PASSED_MAX))
        {
            queue = &ngx_keyhold_waiting;
        }

        if (ngx_queue_empty(queue)) {
            return;
        }

        q = ngx_queue_head(queue);
        op = ngx_queue_data(q, ngx_keyhold_op_t, queue);

        ngx_queue_remove(q);

        rc = ngx_keyhold_route_to(op, 0);

        switch (rc) {

        case NGX_OK:
            break;

        case NGX_ERROR:
            ngx_keyhold_op_delay(op, 0);
            break;

        case NGX_DECLINED:

            if (ngx_keyhold_route_hopeless(op)) {
                break;
            }

            ngx_keyhold_route_wait(op, &ngx_keyhold_choosy, 0);

            if (first == NULL) {
                first = &op->queue;
            }

            passed++;

            break;

        default: /* NGX_AGAIN: it keeps its place */
            ngx_keyhold_route_wait(op, queue, 1);
            return;
        }
    }
}


/* ---- nobody is there ---- */


ngx_uint_t
ngx_keyhold_agent_gone(ngx_keyhold_agent_t *agent)
{
    return agent->down && !agent->ready
           && ngx_current_msec - agent->down_since >= NGX_KEYHOLD_GRACE_MSEC;
}


ngx_uint_t
ngx_keyhold_route_hopeless(ngx_keyhold_op_t *op)
{
    u_char               *p, *last;
    ngx_uint_t            i, gone;
    ngx_keyhold_agent_t  *agent;

    gone = 0;
    p = op->detail;
    last = p + NGX_KEYHOLD_DETAIL_LEN - 1;

    for (i = 0; i < ngx_keyhold_n; i++) {
        agent = ngx_keyhold_agents[i];

        if ((op->only != NULL && op->only != agent)
            || ngx_keyhold_route_missing(op, agent) != -1)
        {
            continue;
        }

        if (!ngx_keyhold_agent_gone(agent)) {
            return 0;
        }

        gone++;
    }

    if (gone == 0) {

        /* each has been asked, and lacks it */

        op->result = op->refusal ? op->refusal : KH_E_NOT_FOUND;
        ngx_keyhold_op_delay(op, 0);
        return 1;
    }

    op->gone = 1;
    op->agent = NULL;
    op->result = KH_E_UNAVAILABLE;

    for (i = 0; i < ngx_keyhold_n; i++) {
        agent = ngx_keyhold_agents[i];

        if (!ngx_keyhold_agent_gone(agent)
            || (op->only != NULL && op->only != agent))
        {
            continue;
        }

        if (op->agent == NULL) {
            op->agent = agent;
            p = ngx_snprintf(p, last - p, "%s", agent->why);

        } else {
            p = ngx_snprintf(p, last - p, "; agent %V: %s", &agent->name,
                             agent->why);
        }
    }

    *p = '\0';
    ngx_keyhold_op_delay(op, 0);

    return 1;
}


void
ngx_keyhold_route_down(void)
{
    if (!ngx_keyhold_down_event.timer_set && !ngx_terminate) {
        ngx_add_timer(&ngx_keyhold_down_event, NGX_KEYHOLD_GRACE_MSEC);
    }

    ngx_keyhold_route_dispatch();
}


/* Some agent was lost a moment ago: those who wait for it give up, or not. */

static void
ngx_keyhold_route_down_handler(ngx_event_t *ev)
{
    ngx_uint_t            i, n;
    ngx_queue_t          *q, *next, *queues[2];
    ngx_keyhold_op_t     *op;
    ngx_keyhold_agent_t  *agent;

    queues[0] = &ngx_keyhold_choosy;
    queues[1] = &ngx_keyhold_waiting;

    for (n = 0; n < 2; n++) {

        for (q = ngx_queue_head(queues[n]);
             q != ngx_queue_sentinel(queues[n]);
             q = next)
        {
            next = ngx_queue_next(q);
            op = ngx_queue_data(q, ngx_keyhold_op_t, queue);

            ngx_queue_remove(q);

            if (!ngx_keyhold_route_hopeless(op)) {

                /* before it: where it was */

                ngx_queue_insert_tail(next, q);
            }
        }
    }

    /* one that was lost later? */

    for (i = 0; i < ngx_keyhold_n; i++) {
        agent = ngx_keyhold_agents[i];

        if (agent->down && !agent->ready && !ngx_keyhold_agent_gone(agent)) {
            ngx_add_timer(ev, agent->down_since + NGX_KEYHOLD_GRACE_MSEC
                              - ngx_current_msec);
            return;
        }
    }
}


/* ---- lost ---- */


void
ngx_keyhold_route_lost(ngx_keyhold_op_t *op)
{
    ngx_keyhold_route_left(op);

    op->tried &= ~ngx_keyhold_bit(op->agent->index);

    ngx_keyhold_route_wait(op, op->only ? &ngx_keyhold_choosy
                                        : &ngx_keyhold_waiting, 0);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * To which agent an operation goes, and to which next.
 *
 *   One that no agent can take waits for one: until the agents that could have
 *   its key have been out of reach for a second; then it fails, and those after
 *   it at once.
 *   One whose connection is lost goes to another agent, or waits (each can be
 *   repeated without harm).
 *   One that is refused goes to another agent; has every agent refused it, it is
 *   tried again a little later.
 *   One without a reply within keyhold_try_timeout goes to another agent, and
 *   the first is told to forget it.  An agent from which nothing at all came
 *   meanwhile, while another is fast, loses its connection, and so all of them.
 *
 * An operation sent once more to spare time is a second try, and there may be
 * one for ten operations, and fifty saved up (ngx_keyhold_balance.c), so that
 * agents which are slow because they have much to do do not get more of it.
 * What an agent loses or could not do at all costs none.
 *
 * With one agent alone there is none but to wait for it.
 */

#include "ngx_keyhold.h"


/* an agent's keeper that died is back within a second: ask soon, not often */
#define NGX_KEYHOLD_RETRY_MSEC      20
#define NGX_KEYHOLD_RETRY_MAX_MSEC  500

/* a key that all agents lack is asked for as often */
#define NGX_KEYHOLD_MISSING_ASK     1000

/* of a restart nobody is to notice anything */
#define NGX_KEYHOLD_GRACE_MSEC      1000

/* a second look at what is overdue and found nobody else */
#define NGX_KEYHOLD_OVERDUE_MSEC    100

/* an agent that refuses, or is slow, again and again is named as often */
#define NGX_KEYHOLD_SAY_MSEC        10000

/* so many that wait for one certain agent are looked at in one go */
#define NGX_KEYHOLD_PASSED_MAX      64


/* what a refusal means for the other agents */

#define NGX_KEYHOLD_FINAL    0   /* they would say the same */
#define NGX_KEYHOLD_OTHER    1   /* one of them may do it: a second try */
#define NGX_KEYHOLD_BUSY     2   /* the same, and this one is spared a while */
#define NGX_KEYHOLD_UNABLE   3   /* the same, and what it had cost it nothing */
#define NGX_KEYHOLD_LACKING  4   /* it does not have the key */

static const u_char  ngx_keyhold_refusals[] = {
    [KH_E_NOT_FOUND] = NGX_KEYHOLD_LACKING,
    [KH_E_UNAVAILABLE] = NGX_KEYHOLD_UNABLE,
    [KH_E_OVERLOADED] = NGX_KEYHOLD_BUSY,
    [KH_E_THROTTLED] = NGX_KEYHOLD_BUSY,
    [KH_E_MEMORY] = NGX_KEYHOLD_BUSY,
    [KH_E_IO] = NGX_KEYHOLD_BUSY,
    [KH_E_CLOSED] = NGX_KEYHOLD_BUSY,
    [KH_E_STORAGE] = NGX_KEYHOLD_OTHER,
    [KH_E_DAMAGED] = NGX_KEYHOLD_OTHER,
    [KH_E_CRYPTO] = NGX_KEYHOLD_OTHER,
    [KH_E_DEADLINE] = NGX_KEYHOLD_OTHER,
    [KH_E_UNSUPPORTED] = NGX_KEYHOLD_OTHER,
    [KH_E_INTERNAL] = NGX_KEYHOLD_OTHER
};


static ngx_int_t ngx_keyhold_route_to(ngx_keyhold_op_t *op,
    ngx_keyhold_set_t not);
static ngx_keyhold_set_t ngx_keyhold_route_set(ngx_keyhold_op_t *op,
    ngx_keyhold_set_t not, ngx_uint_t *others);
static ngx_msec_int_t ngx_keyhold_route_missing(ngx_keyhold_op_t *op,
    ngx_keyhold_agent_t *agent);
static void ngx_keyhold_route_lacks(ngx_keyhold_op_t *op,
    ngx_keyhold_agent_t *agent);
static void ngx_keyhold_route_wait(ngx_keyhold_op_t *op, ngx_queue_t *queue,
    ngx_uint_t first);
static ngx_uint_t ngx_keyhold_route_hopeless(ngx_keyhold_op_t *op);
static void ngx_keyhold_route_avoid(ngx_keyhold_agent_t *agent,
    ngx_msec_t msec);
static ngx_uint_t ngx_keyhold_route_say(ngx_msec_t *said);
static ngx_int_t ngx_keyhold_route_again(ngx_keyhold_op_t *op,
    ngx_uint_t free);
static void ngx_keyhold_route_later(ngx_keyhold_op_t *op, ngx_msec_t msec);
static ngx_int_t ngx_keyhold_route_move(ngx_keyhold_op_t *op,
    ngx_keyhold_set_t not);
static ngx_uint_t ngx_keyhold_agent_silent(ngx_keyhold_agent_t *agent);
static ngx_uint_t ngx_keyhold_route_others(ngx_keyhold_agent_t *agent,
    ngx_keyhold_set_t *silent);
static void ngx_keyhold_route_overdue_handler(ngx_event_t *ev);
static void ngx_keyhold_route_down_handler(ngx_event_t *ev);


static ngx_keyhold_agent_t  **ngx_keyhold_agents;
static ngx_keyhold_share_t   *ngx_keyhold_shares[NGX_KEYHOLD_AGENTS_MAX];
static ngx_uint_t             ngx_keyhold_n;
static ngx_keyhold_budget_t   ngx_keyhold_budget;
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
        ngx_keyhold_route_later(op, NGX_KEYHOLD_RETRY_MSEC);
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


/*
 * NGX_OK: sent.  NGX_AGAIN: no agent can take anything.  NGX_DECLINED: some can,
 * but not this.  NGX_ERROR: it can never be sent, op->result says why.
 */

static ngx_int_t
ngx_keyhold_route_to(ngx_keyhold_op_t *op, ngx_keyhold_set_t not)
{
    ngx_int_t             rc;
    ngx_uint_t            i, others;
    ngx_msec_int_t        left;
    ngx_keyhold_set_t     set;
    ngx_keyhold_agent_t  *agent;

    left = ngx_max(ngx_keyhold_op_left(op), 1);
    set = ngx_keyhold_route_set(op, not, &others);

    while (set) {

        i = ngx_keyhold_balance(ngx_keyhold_shares, set, op->tried, op->work,
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


/* ---- keys that an agent lacks ---- */


static ngx_msec_int_t
ngx_keyhold_route_missing(ngx_keyhold_op_t *op, ngx_keyhold_agent_t *agent)
{
    if (agent->missing == NULL || op->only != NULL) {
        return -1;
    }

    if (op->missing == 0) {
        op->missing = ngx_keyhold_missing_key(op->req->key.data,
                                              op->req->key.len);
    }

    return ngx_keyhold_missing_since(agent->missing, op->missing,
                                     ngx_current_msec);
}


static void
ngx_keyhold_route_lacks(ngx_keyhold_op_t *op, ngx_keyhold_agent_t *agent)
{
    if (agent->missing == NULL) {
        agent->missing = ngx_calloc(sizeof(ngx_keyhold_missing_t),
                                    agent->reconnect.log);
        if (agent->missing == NULL) {
            return;
        }
    }

    if (op->missing == 0) {
        op->missing = ngx_keyhold_missing_key(op->req->key.data,
                                              op->req->key.len);
    }

    ngx_keyhold_missing_add(agent->missing, op->missing, ngx_current_msec);
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
    ngx_msec_t  grace;

    grace = ngx_max(NGX_KEYHOLD_GRACE_MSEC, agent->conf->connect_timeout);

    return agent->down && !agent->ready
           && ngx_current_msec - agent->down_since >= grace;
}


/*
 * Whether to wait is of no use: then the operation is delayed by nothing, with
 * its result.
 */

static ngx_uint_t
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

        op->result = KH_E_NOT_FOUND;
        *p = '\0';
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
        ngx_add_timer(&ngx_keyhold_down_event,
                      ngx_max(NGX_KEYHOLD_GRACE_MSEC,
                              ngx_keyhold_conf->connect_timeout));
    }

    ngx_keyhold_route_dispatch();
}


/* Some agent was lost a moment ago: those who wait for it give up, or not. */

static void
ngx_keyhold_route_down_handler(ngx_event_t *ev)
{
    ngx_uint_t         i, n;
    ngx_queue_t       *q, *next, *queues[2];
    ngx_keyhold_op_t  *op;

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
        if (ngx_keyhold_agents[i]->down
            && !ngx_keyhold_agent_gone(ngx_keyhold_agents[i]))
        {
            ngx_add_timer(ev, NGX_KEYHOLD_OVERDUE_MSEC);
            return;
        }
    }
}


/* ---- lost and refused ---- */


void
ngx_keyhold_route_lost(ngx_keyhold_op_t *op)
{
    ngx_keyhold_route_left(op);

    op->tried &= ~ngx_keyhold_bit(op->agent->index);

    ngx_keyhold_route_wait(op, op->only ? &ngx_keyhold_choosy
                                        : &ngx_keyhold_waiting, 0);
}


void
ngx_keyhold_route_refused(ngx_keyhold_op_t *op, kh_result status,
    ngx_msec_t retry_after)
{
    ngx_uint_t            kind, free;
    ngx_keyhold_agent_t  *agent;

    agent = op->agent;

    if (ngx_keyhold_n == 1 || op->only != NULL) {

        /* who asks a certain one wants its answer, and the others learn of it */

        if (status == KH_E_NOT_FOUND && ngx_keyhold_n > 1) {
            ngx_keyhold_route_lacks(op, agent);
        }

        if (!kh_result_retryable(status)) {
            ngx_keyhold_op_end(op, status);
            return;
        }

        ngx_keyhold_route_left(op);
        op->refusal = status;
        ngx_keyhold_route_later(op, ngx_max(retry_after,
                                            NGX_KEYHOLD_RETRY_MSEC));
        return;
    }

    kind = (ngx_uint_t) status < sizeof(ngx_keyhold_refusals)
           ? ngx_keyhold_refusals[status] : NGX_KEYHOLD_FINAL;

    if (kind == NGX_KEYHOLD_FINAL || ngx_keyhold_op_left(op) <= 0) {
        ngx_keyhold_op_end(op, status);
        return;
    }

    free = 0;

    if (kind == NGX_KEYHOLD_LACKING) {
        ngx_keyhold_route_lacks(op, agent);
        free = 1;

    } else if (kind != NGX_KEYHOLD_OTHER) {

        if (agent->refusals == 0) {
            agent->refused = ngx_current_msec;
        }

        /* what it had when it became unable is as good as lost */

        free = (kind == NGX_KEYHOLD_UNABLE
                && (ngx_msec_int_t) (agent->refused - op->sent) >= 0);

        ngx_keyhold_route_avoid(agent, retry_after);

        if (ngx_keyhold_route_say(&agent->said[0])) {
            ngx_log_error(NGX_LOG_WARN, agent->reconnect.log, 0,
                          "keyhold: agent %V refuses: %s%s%s, others are "
                          "asked first", &agent->name, kh_result_text(status),
                          op->detail[0] ? ": " : "", op->detail);
        }
    }

    ngx_keyhold_route_left(op);

    op->tried |= ngx_keyhold_bit(agent->index);
    op->refusal = status;

    if (ngx_keyhold_route_again(op, free) == NGX_OK) {
        return;
    }

    op->agent = agent;

    if (kind == NGX_KEYHOLD_LACKING) {

        if (!ngx_keyhold_route_hopeless(op)) {
            ngx_keyhold_route_wait(op, &ngx_keyhold_choosy, 0);
        }

        return;
    }

    if (kind == NGX_KEYHOLD_OTHER) {
        op->result = status;
        ngx_keyhold_op_delay(op, 0);
        return;
    }

    op->owes = (kind == NGX_KEYHOLD_BUSY);

    ngx_keyhold_route_later(op, ngx_max(retry_after, NGX_KEYHOLD_RETRY_MSEC));
}


/* At once, to one that was not asked yet.  NGX_ERROR: it ends with its event. */

static ngx_int_t
ngx_keyhold_route_again(ngx_keyhold_op_t *op, ngx_uint_t free)
{
    if (!free && !ngx_keyhold_budget_take(&ngx_keyhold_budget)) {
        return NGX_DECLINED;
    }

    switch (ngx_keyhold_route_to(op, op->tried)) {

    case NGX_OK:
        return NGX_OK;

    case NGX_ERROR:
        ngx_keyhold_op_delay(op, 0);
        return NGX_OK;

    default:

        if (!free) {
            ngx_keyhold_budget_return(&ngx_keyhold_budget);
        }

        return NGX_DECLINED;
    }
}


/* Each agent refuses: once more, to any, and each time a little later. */

static void
ngx_keyhold_route_later(ngx_keyhold_op_t *op, ngx_msec_t msec)
{
    if (ngx_keyhold_n > 1) {
        op->delay = ngx_min(op->delay * 2, NGX_KEYHOLD_RETRY_MAX_MSEC);
        op->delay = ngx_max(op->delay, msec);
        msec = op->delay;
    }

    op->tried = 0;

    if (ngx_keyhold_op_left(op) <= (ngx_msec_int_t) msec) {
        op->result = op->refusal;
        msec = 0;
    }

    ngx_keyhold_op_delay(op, msec);
}


static void
ngx_keyhold_route_avoid(ngx_keyhold_agent_t *agent, ngx_msec_t msec)
{
    ngx_msec_t  until;

    until = NGX_KEYHOLD_RETRY_MSEC << ngx_min(agent->refusals, 5);

    msec = ngx_current_msec + ngx_max(ngx_min(msec, 1000), until);

    if (agent->share.avoided
        && (ngx_msec_int_t) (agent->share.avoid - ngx_current_msec) > 0)
    {
        return;
    }

    agent->share.avoided = 1;
    agent->share.avoid = msec;
    agent->refusals++;
}


static ngx_uint_t
ngx_keyhold_route_say(ngx_msec_t *said)
{
    if (*said && ngx_current_msec - *said < NGX_KEYHOLD_SAY_MSEC) {
        return 0;
    }

    *said = ngx_current_msec;

    return 1;
}


/* ---- slow and silent ---- */


void
ngx_keyhold_route_took(ngx_keyhold_op_t *op)
{
    ngx_msec_t            msec;
    ngx_keyhold_agent_t  *agent;

    agent = op->agent;
    msec = ngx_current_msec - op->sent;

    if (agent->latency == 0) {
        agent->latency = msec * 8 + 1;

    } else {
        agent->latency += msec - agent->latency / 8;
    }
}


/*
 * Nothing has come for half a try, though the first asked was as long ago; from
 * one that is known to take its time, for twice of that.
 */

static ngx_uint_t
ngx_keyhold_agent_silent(ngx_keyhold_agent_t *agent)
{
    ngx_msec_t         msec;
    ngx_queue_t       *q;
    ngx_keyhold_op_t  *op;

    if (ngx_queue_empty(&agent->sent)) {
        return 0;
    }

    q = ngx_queue_head(&agent->sent);
    op = ngx_queue_data(q, ngx_keyhold_op_t, queue);
    msec = ngx_max(ngx_keyhold_conf->try_timeout / 2, agent->latency / 4);

    return ngx_current_msec - op->sent >= msec
           && ngx_current_msec - agent->received >= msec;
}


/* How many others are known to be fast enough, and which are silent. */

static ngx_uint_t
ngx_keyhold_route_others(ngx_keyhold_agent_t *agent, ngx_keyhold_set_t *silent)
{
    ngx_uint_t            i, n;
    ngx_keyhold_agent_t  *other;

    n = 0;
    *silent = 0;

    for (i = 0; i < ngx_keyhold_n; i++) {
        other = ngx_keyhold_agents[i];

        if (other == agent || !other->ready || other->full) {
            continue;
        }

        if (ngx_keyhold_agent_silent(other)
            || ngx_keyhold_share_reluctant(&other->share, ngx_current_msec))
        {
            *silent |= ngx_keyhold_bit(i);

        } else if (other->latency
                   && other->latency / 8 <= ngx_keyhold_conf->try_timeout / 2)
        {
            n++;
        }
    }

    return n;
}


static void
ngx_keyhold_route_overdue_handler(ngx_event_t *ev)
{
    ngx_uint_t            others;
    ngx_msec_t            next;
    ngx_queue_t          *q, *following;
    ngx_msec_int_t        left;
    ngx_keyhold_op_t     *op;
    ngx_keyhold_set_t     not;
    ngx_keyhold_agent_t  *agent;

    agent = ev->data;

    if (ngx_queue_empty(&agent->sent)) {
        return;
    }

    others = ngx_keyhold_route_others(agent, &not);
    next = 0;

    for (q = ngx_queue_head(&agent->sent);
         q != ngx_queue_sentinel(&agent->sent);
         q = following)
    {
        following = ngx_queue_next(q);
        op = ngx_queue_data(q, ngx_keyhold_op_t, queue);

        left = (ngx_msec_int_t) (op->sent + ngx_keyhold_conf->try_timeout
                                 - ngx_current_msec);

        if (left > 0) {
            next = next ? ngx_min(next, (ngx_msec_t) left) : (ngx_msec_t) left;
            break;
        }

        if (others && ngx_keyhold_agent_silent(agent)) {
            ngx_keyhold_conn_stalled(agent);
            return;
        }

        if (op->only != NULL || ngx_keyhold_route_move(op, not) != NGX_OK)
        {
            next = NGX_KEYHOLD_OVERDUE_MSEC;
        }
    }

    if (next) {
        ngx_add_timer(ev, next);
    }
}


/* To another agent; the one that had it is told to forget it. */

static ngx_int_t
ngx_keyhold_route_move(ngx_keyhold_op_t *op, ngx_keyhold_set_t not)
{
    uint32_t              id;
    ngx_msec_t            sent;
    ngx_queue_t          *prev;
    ngx_keyhold_agent_t  *agent;

    if (!ngx_keyhold_budget_take(&ngx_keyhold_budget)) {
        return NGX_DECLINED;
    }

    agent = op->agent;
    sent = op->sent;
    id = op->id;
    prev = ngx_queue_prev(&op->queue);

    ngx_keyhold_route_left(op);

    not |= op->tried | ngx_keyhold_bit(agent->index);

    if (ngx_keyhold_route_to(op, not) != NGX_OK) {

        ngx_keyhold_budget_return(&ngx_keyhold_budget);

        op->result = KH_OK;
        op->agent = agent;
        op->id = id;
        op->sent = sent;
        agent->share.work += op->work;
        ngx_queue_insert_after(prev, &op->queue);

        return NGX_DECLINED;
    }

    op->tried |= ngx_keyhold_bit(agent->index);

    ngx_keyhold_conn_cancel(agent, id);

    if (ngx_keyhold_route_say(&agent->said[1])) {
        ngx_log_error(NGX_LOG_WARN, agent->reconnect.log, 0,
                      "keyhold: agent %V is slow: no reply within %M ms, "
                      "others are asked as well", &agent->name,
                      ngx_keyhold_conf->try_timeout);
    }

    /* so long it took at least */

    agent->latency += ngx_current_msec - sent - agent->latency / 8;

    return NGX_OK;
}

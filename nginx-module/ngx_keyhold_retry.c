/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When an operation is sent once more.
 *
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
 */

#include "ngx_keyhold_route.h"


/* an agent's keeper that died is back within a second: ask soon, not often */
#define NGX_KEYHOLD_RETRY_MSEC      20
#define NGX_KEYHOLD_RETRY_MAX_MSEC  500

/* a second look at what is overdue and found nobody else */
#define NGX_KEYHOLD_OVERDUE_MSEC    100

/* an agent that refuses, or is slow, again and again is named as often */
#define NGX_KEYHOLD_SAY_MSEC        10000


/* what a refusal means for the other agents */

#define NGX_KEYHOLD_FINAL    0   /* they would say the same */
#define NGX_KEYHOLD_LATE     1   /* one of them may do it: a second try */
#define NGX_KEYHOLD_FAILED   2   /* the same, and for this key they go first */
#define NGX_KEYHOLD_BUSY     3   /* the same, and this one is spared a while */
#define NGX_KEYHOLD_UNABLE   4   /* the same, and what it had cost it nothing */
#define NGX_KEYHOLD_LACKING  5   /* it does not have the key */

static const u_char  ngx_keyhold_refusals[] = {
    [KH_E_NOT_FOUND] = NGX_KEYHOLD_LACKING,
    [KH_E_UNAVAILABLE] = NGX_KEYHOLD_UNABLE,
    [KH_E_OVERLOADED] = NGX_KEYHOLD_BUSY,
    [KH_E_THROTTLED] = NGX_KEYHOLD_BUSY,
    [KH_E_MEMORY] = NGX_KEYHOLD_BUSY,
    [KH_E_IO] = NGX_KEYHOLD_BUSY,
    [KH_E_CLOSED] = NGX_KEYHOLD_BUSY,
    [KH_E_STORAGE] = NGX_KEYHOLD_FAILED,
    [KH_E_DAMAGED] = NGX_KEYHOLD_FAILED,
    [KH_E_CRYPTO] = NGX_KEYHOLD_FAILED,
    [KH_E_DEADLINE] = NGX_KEYHOLD_LATE,
    [KH_E_UNSUPPORTED] = NGX_KEYHOLD_FAILED,
    [KH_E_INTERNAL] = NGX_KEYHOLD_FAILED
};


static ngx_uint_t ngx_keyhold_route_spare(ngx_keyhold_op_t *op,
    ngx_uint_t kind, kh_result status, ngx_msec_t retry_after);
static void ngx_keyhold_route_avoid(ngx_keyhold_agent_t *agent,
    ngx_msec_t msec);
static ngx_uint_t ngx_keyhold_route_say(ngx_msec_t *said);
static ngx_int_t ngx_keyhold_route_again(ngx_keyhold_op_t *op,
    ngx_uint_t free);
static ngx_int_t ngx_keyhold_route_move(ngx_keyhold_op_t *op,
    ngx_keyhold_set_t not);
static void ngx_keyhold_route_slow(ngx_keyhold_agent_t *agent,
    ngx_uint_t others);
static ngx_uint_t ngx_keyhold_agent_silent(ngx_keyhold_agent_t *agent);
static ngx_uint_t ngx_keyhold_route_others(ngx_keyhold_agent_t *agent,
    ngx_keyhold_set_t *silent);


void
ngx_keyhold_route_refused(ngx_keyhold_op_t *op, kh_result status,
    ngx_msec_t retry_after)
{
    ngx_int_t             rc;
    ngx_uint_t            kind, free;
    ngx_keyhold_agent_t  *agent;

    agent = op->agent;

    if (ngx_keyhold_n == 1 || op->only != NULL) {

        /* who asks a certain one wants its answer, and the others learn of it */

        if (status == KH_E_NOT_FOUND && ngx_keyhold_n > 1) {
            ngx_keyhold_route_lacks(op, agent, 0);
        }

        if (!kh_result_retryable(status)) {
            ngx_keyhold_op_end(op, status);
            return;
        }

        ngx_keyhold_route_left(op);
        op->refusal = status;
        ngx_keyhold_route_later(op, retry_after);
        return;
    }

    kind = (ngx_uint_t) status < sizeof(ngx_keyhold_refusals)
           ? ngx_keyhold_refusals[status] : NGX_KEYHOLD_FINAL;

    if (kind == NGX_KEYHOLD_FINAL || ngx_keyhold_op_left(op) <= 0) {
        ngx_keyhold_op_end(op, status);
        return;
    }

    free = ngx_keyhold_route_spare(op, kind, status, retry_after);

    ngx_keyhold_route_left(op);

    op->tried |= ngx_keyhold_bit(agent->index);
    op->refusal = status;

    rc = ngx_keyhold_route_again(op, free);

    if (rc == NGX_OK) {
        return;
    }

    op->agent = agent;

    if (kind == NGX_KEYHOLD_LACKING) {

        if (!ngx_keyhold_route_hopeless(op)) {
            ngx_keyhold_route_choosy(op);
        }

        return;
    }

    if (rc == NGX_DECLINED
        && (kind == NGX_KEYHOLD_LATE || kind == NGX_KEYHOLD_FAILED))
    {
        op->result = status;
        ngx_keyhold_op_delay(op, 0);
        return;
    }

    op->owes = (kind != NGX_KEYHOLD_UNABLE);

    ngx_keyhold_route_later(op, retry_after);
}


/*
 * What the refusal means for who is asked from here on.  1: that the operation
 * goes to another one costs no second try.
 */

static ngx_uint_t
ngx_keyhold_route_spare(ngx_keyhold_op_t *op, ngx_uint_t kind,
    kh_result status, ngx_msec_t retry_after)
{
    ngx_uint_t            free;
    ngx_keyhold_agent_t  *agent;

    agent = op->agent;
    free = 0;

    switch (kind) {

    case NGX_KEYHOLD_LATE:
        return 0;

    case NGX_KEYHOLD_LACKING:
        ngx_keyhold_route_lacks(op, agent, 0);
        return 1;

    case NGX_KEYHOLD_FAILED:
        ngx_keyhold_route_lacks(op, agent, 1);
        break;

    default:

        if (agent->refusals == 0) {
            agent->refused = ngx_current_msec;
        }

        /* what it had when it became unable is as good as lost */

        free = (kind == NGX_KEYHOLD_UNABLE
                && (ngx_msec_int_t) (agent->refused - op->sent) >= 0);

        ngx_keyhold_route_avoid(agent, retry_after);
    }

    if (ngx_keyhold_route_say(&agent->said[0])) {
        ngx_log_error(NGX_LOG_WARN, agent->reconnect.log, 0,
                      "keyhold: agent %V refuses: %s%s%s, others are asked "
                      "first", &agent->name, kh_result_text(status),
                      op->detail[0] ? ": " : "", op->detail);
    }

    return free;
}


/*
 * At once, to one that was not asked yet.  NGX_BUSY: there must be no more second
 * tries now.  NGX_DECLINED: there is none that was not.
 */

static ngx_int_t
ngx_keyhold_route_again(ngx_keyhold_op_t *op, ngx_uint_t free)
{
    if (!free && !ngx_keyhold_budget_take(&ngx_keyhold_budget)) {
        return NGX_BUSY;
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

void
ngx_keyhold_route_later(ngx_keyhold_op_t *op, ngx_msec_t msec)
{
    msec = ngx_max(msec, NGX_KEYHOLD_RETRY_MSEC);

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

    if (op->key == NULL) {

        /* what needs no private key says nothing of those that do */

        return;
    }

    agent = op->agent;
    msec = ngx_current_msec - op->sent;

    if (msec < ngx_keyhold_conf->try_timeout) {
        agent->slows = 0;
        agent->share.trial = 0;
    }

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
                   && other->latency / 8 <= ngx_keyhold_conf->try_timeout * 3 / 4)
        {
            n++;
        }
    }

    return n;
}


void
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

        if (op->only != NULL || ngx_keyhold_route_move(op, not) != NGX_OK) {
            next = NGX_KEYHOLD_OVERDUE_MSEC;

        } else {
            ngx_keyhold_route_slow(agent, others);
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

    /* so long it took at least */

    agent->latency += ngx_current_msec - sent - agent->latency / 8;

    return NGX_OK;
}


/*
 * Others are faster: it is trusted with one at a time until a reply is in time
 * again, and is spared for longer each time that it is not.
 */

static void
ngx_keyhold_route_slow(ngx_keyhold_agent_t *agent, ngx_uint_t others)
{
    ngx_uint_t  shift;

    if (ngx_keyhold_route_say(&agent->said[1])) {
        ngx_log_error(NGX_LOG_WARN, agent->reconnect.log, 0,
                      "keyhold: agent %V is slow: no reply within %M ms, "
                      "others are asked as well", &agent->name,
                      ngx_keyhold_conf->try_timeout);
    }

    if (others == 0) {
        return;
    }

    agent->share.trial = 1;

    if (++agent->slows > 1) {
        shift = ngx_min(agent->slows - 2, 4);

        agent->share.avoided = 1;
        agent->share.avoid = ngx_current_msec
                             + (ngx_keyhold_conf->try_timeout << shift);
    }
}

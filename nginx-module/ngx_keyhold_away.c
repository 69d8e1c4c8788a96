/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An agent whose connection ends: when it is tried again, what is thought of it
 * until then, and what the log says of that.
 *
 * Where there are others, one that was silent or answered wrongly is trusted
 * with one operation at a time until that is answered, and is left out for
 * longer each time it happens again.
 */

#include "ngx_keyhold_conn.h"


/* another reason why an agent is out of reach is news no oftener than so */
#define NGX_KEYHOLD_NEWS_MSEC  10000

/* a connection that was ready for so long was of use, asked or not */
#define NGX_KEYHOLD_STEADY_MSEC  1000

/* left out: doubled with each strike, forgotten after a good while */
#define NGX_KEYHOLD_STRIKE_MSEC  1000
#define NGX_KEYHOLD_STRIKES_MAX  6
#define NGX_KEYHOLD_WRONG_MSEC   5000
#define NGX_KEYHOLD_GOOD_MSEC    60000


static void ngx_keyhold_conn_why(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail);
static ngx_msec_t ngx_keyhold_conn_strike(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_away(ngx_keyhold_agent_t *agent,
    ngx_msec_t msec);


/*
 * The connection could not be made, or is no more: say so once, and try again
 * soon.  Every operation that was on it goes to another agent, or waits for the
 * next connection.
 */

void
ngx_keyhold_conn_lost(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail)
{
    uint32_t    news;
    ngx_uint_t  level, steady;
    ngx_msec_t  msec;

    ngx_keyhold_conn_why(agent, err, text, detail);

    /* the next of the agent's addresses, before anything is said */

    if (!agent->ready && agent->naddrs > 1
        && ++agent->addr < agent->naddrs)
    {
        ngx_keyhold_conn_away(agent, 1);
        return;
    }

    agent->addr = 0;

    /* for another reason than before: once, but not each step of a restart */

    news = ngx_crc32_short(agent->why, ngx_strlen(agent->why));

    level = (agent->down
             && (agent->news == news
                 || ngx_current_msec - agent->told < NGX_KEYHOLD_NEWS_MSEC))
            ? NGX_LOG_DEBUG : NGX_LOG_WARN;

    if (level == NGX_LOG_WARN) {
        agent->news = news;
        agent->told = ngx_current_msec;
    }

    ngx_log_error(level, agent->reconnect.log, 0,
                  "keyhold: agent %V is out of reach: %s, trying again",
                  &agent->name, agent->why);

    /* it may have been let in and cut off in one turn, before we were ready */

    if (agent->ready
        || (agent->session != NULL
            && kh_session_get_state(agent->session) == KH_SESSION_READY))
    {
        steady = agent->ready
                 && (agent->served
                     || ngx_current_msec - agent->since
                        >= NGX_KEYHOLD_STEADY_MSEC);

        agent->unsteady = !steady;

        if (steady) {
            agent->backoff = NGX_KEYHOLD_BACKOFF_MIN;
        }
    }

    msec = agent->backoff;
    agent->backoff = ngx_min(agent->backoff * 2, NGX_KEYHOLD_BACKOFF_MAX);

    ngx_keyhold_conn_away(agent, msec);
}


static void
ngx_keyhold_conn_why(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail)
{
    u_char  *p, *last;

    last = agent->why + NGX_KEYHOLD_DETAIL_LEN - 1;
    p = ngx_snprintf(agent->why, last - agent->why, "%s", text);

    if (detail != NULL && detail[0] != '\0'
        && ngx_strcmp(detail, text) != 0)
    {
        p = ngx_snprintf(p, last - p, ": %s", detail);
    }

    if (err) {
        p = ngx_snprintf(p, last - p, " (%d: ", err);
        p = ngx_strerror(err, p, last - p);
        p = ngx_snprintf(p, last - p, ")");
    }

    *p = '\0';
}


/* It answered what can not be the answer: nothing more that it says is used. */

void
ngx_keyhold_conn_wrong(ngx_keyhold_agent_t *agent, const char *text)
{
    ngx_msec_t  msec;

    ngx_keyhold_conn_why(agent, 0, "it answers wrongly", text);

    msec = ngx_max(ngx_keyhold_conn_strike(agent) * 2,
                   NGX_KEYHOLD_WRONG_MSEC);

    if (agent->conf->agents.nelts == 1) {
        msec = NGX_KEYHOLD_BACKOFF_MAX;
    }

    if (!agent->down || agent->conf->agents.nelts > 1) {
        ngx_log_error(NGX_LOG_ERR, agent->reconnect.log, 0,
                      "keyhold: agent %V is left out for %M ms: %s",
                      &agent->name, msec, agent->why);
    }

    agent->unsteady = 1;
    agent->addr = 0;

    ngx_keyhold_conn_away(agent, msec);
}


/* How long it would have to be left out for the strikes before this one. */

static ngx_msec_t
ngx_keyhold_conn_strike(ngx_keyhold_agent_t *agent)
{
    ngx_msec_t  msec;

    if (agent->ready
        && ngx_current_msec - agent->since >= NGX_KEYHOLD_GOOD_MSEC)
    {
        agent->strikes = 0;
    }

    msec = agent->strikes ? NGX_KEYHOLD_STRIKE_MSEC << (agent->strikes - 1) : 0;

    agent->strikes = ngx_min(agent->strikes + 1, NGX_KEYHOLD_STRIKES_MAX);
    agent->share.trial = 1;

    return msec;
}


static void
ngx_keyhold_conn_away(ngx_keyhold_agent_t *agent, ngx_msec_t msec)
{
    if (!agent->down && (agent->addr == 0 || agent->ready)) {
        agent->down = 1;
        agent->down_since = ngx_current_msec;
    }

    ngx_keyhold_conn_drop(agent, KH_E_CLOSED);

    if (ngx_terminate) {
        return;
    }

    ngx_add_timer(&agent->reconnect, msec);

    ngx_keyhold_route_down();
}


void
ngx_keyhold_conn_broken(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text)
{
    ngx_keyhold_conn_lost(agent, err, text,
                          agent->tls ? ngx_keyhold_tls_why(agent) : NULL);
}


void
ngx_keyhold_conn_stalled(ngx_keyhold_agent_t *agent)
{
    ngx_uint_t  level;
    ngx_msec_t  msec;

    if (agent->session == NULL) {
        return;
    }

    if (agent->conf->agents.nelts == 1) {
        ngx_keyhold_conn_lost(agent, 0, "it does not answer", NULL);
        return;
    }

    msec = ngx_keyhold_conn_strike(agent);

    ngx_keyhold_conn_why(agent, 0, "it does not answer", NULL);

    level = agent->down ? NGX_LOG_INFO : NGX_LOG_WARN;

    ngx_log_error(level, agent->reconnect.log, 0,
                  "keyhold: agent %V is left out until it does: %s, "
                  "trying again in %M ms", &agent->name, agent->why, msec);

    agent->unsteady = 1;
    agent->backoff = NGX_KEYHOLD_BACKOFF_MIN;

    ngx_keyhold_conn_away(agent, msec);
}


/* ---- it is back ---- */


void
ngx_keyhold_conn_back(ngx_keyhold_agent_t *agent)
{
    if (agent->down) {
        agent->down = 0;
        ngx_log_error(NGX_LOG_WARN, agent->reconnect.log, 0,
                      "keyhold: agent %V is back", &agent->name);
    }
}


void
ngx_keyhold_conn_served(ngx_keyhold_agent_t *agent)
{
    if (agent->served) {
        return;
    }

    agent->served = 1;
    agent->unsteady = 0;
    agent->backoff = NGX_KEYHOLD_BACKOFF_MIN;

    ngx_keyhold_conn_back(agent);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker's session with an agent: the protocol is kh_session's, the socket
 * ngx_keyhold_transport.c's; here is when it is opened, what is thought of the
 * agent, and what the log says of it.
 *
 * It is opened in the worker, after the fork, and kept open: an agent that was
 * away is found again within half a second whether or not somebody waits.
 *
 * Where there are others, one that was silent or answered wrongly is trusted
 * with one operation at a time until that is answered, and is left out for
 * longer each time it happens again.
 */

#include "ngx_keyhold.h"

#include <nginx.h>
#include <openssl/rand.h>


#define NGX_KEYHOLD_BACKOFF_MIN  10
#define NGX_KEYHOLD_BACKOFF_MAX  500

/* another reason why an agent is out of reach is news no oftener than so */
#define NGX_KEYHOLD_NEWS_MSEC  10000

/* a connection that was ready for so long was of use, asked or not */
#define NGX_KEYHOLD_STEADY_MSEC  1000

/* left out: doubled with each strike, forgotten after a good while */
#define NGX_KEYHOLD_STRIKE_MSEC  1000
#define NGX_KEYHOLD_STRIKES_MAX  6
#define NGX_KEYHOLD_WRONG_MSEC   5000
#define NGX_KEYHOLD_GOOD_MSEC    60000


static void ngx_keyhold_conn_open(ngx_keyhold_agent_t *agent);
static kh_result ngx_keyhold_conn_session(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_lost(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail);
static void ngx_keyhold_conn_why(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail);
static void ngx_keyhold_conn_wrong(ngx_keyhold_agent_t *agent,
    const char *text);
static ngx_msec_t ngx_keyhold_conn_strike(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_away(ngx_keyhold_agent_t *agent,
    ngx_msec_t msec);
static void ngx_keyhold_conn_drop(ngx_keyhold_agent_t *agent, kh_result why);
static void ngx_keyhold_conn_ready(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_back(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_reconnect_handler(ngx_event_t *ev);


ngx_int_t
ngx_keyhold_conn_init(ngx_keyhold_agent_t *agent, ngx_keyhold_conf_t *conf,
    ngx_log_t *log)
{
    agent->conf = conf;

    agent->reconnect.handler = ngx_keyhold_conn_reconnect_handler;
    agent->reconnect.data = agent;
    agent->reconnect.log = log;
    agent->reconnect.cancelable = 1;

    agent->backoff = NGX_KEYHOLD_BACKOFF_MIN;

    ngx_keyhold_token_lock(agent);
    ngx_keyhold_conn_open(agent);

    return NGX_OK;
}


void
ngx_keyhold_conn_close(ngx_keyhold_agent_t *agent)
{
    if (agent->reconnect.timer_set) {
        ngx_del_timer(&agent->reconnect);
    }

    if (agent->overdue.timer_set) {
        ngx_del_timer(&agent->overdue);
    }

    ngx_keyhold_conn_drop(agent, KH_E_CLOSED);

    if (agent->resume != NULL) {
        SSL_SESSION_free(agent->resume);
        agent->resume = NULL;
    }

    if (agent->missing != NULL) {
        ngx_free(agent->missing);
        agent->missing = NULL;
    }
}


static void
ngx_keyhold_conn_open(ngx_keyhold_agent_t *agent)
{
    kh_result    rc;
    ngx_err_t    err;
    const char  *why;

    err = 0;

    if (ngx_keyhold_transport_open(agent, &err, &why) != NGX_OK) {
        ngx_keyhold_conn_lost(agent, err, why, NULL);
        return;
    }

    rc = ngx_keyhold_conn_session(agent);

    if (rc != KH_OK) {
        ngx_keyhold_conn_lost(agent, 0, kh_result_text(rc), NULL);
        return;
    }

    ngx_add_timer(agent->connection->read, agent->conf->connect_timeout);

    ngx_keyhold_transport_flush(agent);
}


static kh_result
ngx_keyhold_conn_session(ngx_keyhold_agent_t *agent)
{
    kh_session_config  config;

    ngx_memzero(&config, sizeof(kh_session_config));

    config.client_name = NGINX_VER;
    config.identity = "";

    if (agent->cred != NULL) {
        config.identity = agent->cred->identity;
        config.prove = kh_credential_prove;
        config.prove_ctx = agent->cred;
    }

    if (RAND_bytes(config.nonce, KH_NONCE_LEN) != 1) {
        return KH_E_CRYPTO;
    }

    return kh_session_new(&config, &agent->session);
}


/* ---- the end of a connection ---- */


/*
 * The connection could not be made, or is no more: say so once, and try again
 * soon.  Every operation that was on it goes to another agent, or waits for the
 * next connection.
 */

static void
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

static void
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


static void
ngx_keyhold_conn_drop(ngx_keyhold_agent_t *agent, kh_result why)
{
    void        *user;
    kh_session  *session;

    session = agent->session;

    agent->session = NULL;
    agent->ready = 0;
    agent->full = 0;
    agent->served = 0;

    ngx_keyhold_transport_close(agent);

    if (session != NULL) {
        kh_session_abort(session, why);

        while (kh_session_drain(session, &user)) {
            ngx_keyhold_route_lost(user);
        }

        kh_session_free(session);
    }
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


/* ---- and its beginning ---- */


static void
ngx_keyhold_conn_ready(ngx_keyhold_agent_t *agent)
{
    ngx_connection_t  *c;

    c = agent->connection;

    agent->ready = 1;
    agent->since = ngx_current_msec;
    agent->addr = 0;
    agent->refusals = 0;
    agent->share.avoided = 0;

    if (c->read->timer_set) {
        ngx_del_timer(c->read);
    }

    if (agent->down) {
        ngx_keyhold_share_return(&agent->share, ngx_current_msec);
    }

    if (agent->missing != NULL) {

        /* it may be another one by now */

        ngx_memzero(agent->missing, sizeof(ngx_keyhold_missing_t));
    }

    ngx_keyhold_check_closely(agent);

    /* one that lets us in and hangs up is not back: see what it does */

    if (!agent->unsteady) {
        ngx_keyhold_conn_back(agent);
    }

    ngx_keyhold_route_dispatch();
    ngx_keyhold_probe_start(agent);
}


static void
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


/* ---- requests and replies ---- */


ngx_int_t
ngx_keyhold_conn_send(ngx_keyhold_agent_t *agent, ngx_keyhold_op_t *op,
    ngx_msec_t left)
{
    kh_result  rc;

    if (!agent->ready || agent->full) {
        return NGX_AGAIN;
    }

    op->req->deadline_ms = (uint32_t) ngx_min(left, KH_DEADLINE_MAX_MS);

    rc = kh_session_submit(agent->session, op->req, ngx_current_msec, op,
                           &op->id);

    switch (rc) {

    case KH_OK:
        agent->fresh++;
        ngx_keyhold_transport_post(agent);
        return NGX_OK;

    case KH_E_OVERLOADED:
        agent->full = 1;
        return NGX_AGAIN;

    case KH_E_CLOSED:
    case KH_E_MEMORY:
        return NGX_AGAIN;

    default:
        op->result = rc;
        return NGX_ERROR;
    }
}


void
ngx_keyhold_conn_cancel(ngx_keyhold_agent_t *agent, uint32_t id)
{
    if (agent->session != NULL) {
        kh_session_cancel(agent->session, id);
        ngx_keyhold_transport_post(agent);
    }
}


void
ngx_keyhold_conn_input(ngx_keyhold_agent_t *agent)
{
    void              *user;
    size_t             cap;
    u_char            *buf;
    ssize_t            n;
    kh_reply           reply;
    kh_result          rc;
    const char        *detail;
    ngx_connection_t  *c;

    c = agent->connection;

    do {
        buf = kh_session_read_buffer(agent->session, &cap);

        if (buf == NULL) {
            ngx_keyhold_conn_lost(agent, 0, "out of memory", NULL);
            return;
        }

        n = c->recv(c, buf, cap);

        if (n == NGX_AGAIN) {
            break;
        }

        if (n == NGX_ERROR || n == 0) {
            kh_session_why(agent->session, &detail);

            if (detail[0] == '\0' && agent->tls) {
                detail = ngx_keyhold_tls_why(agent);
            }

            ngx_keyhold_conn_lost(agent, 0, (n == NGX_ERROR && agent->tls)
                                            ? "TLS failed"
                                            : "the agent closed the connection",
                                  detail);
            return;
        }

        agent->received = ngx_current_msec;

        kh_session_fed(agent->session, n);

        /*
         * Credit may be free again: also by the reply to a request that was
         * cancelled, which the session keeps to itself.
         */

        agent->full = 0;

        for ( ;; ) {
            rc = kh_session_next(agent->session, &reply, &user);

            if (rc != KH_OK) {
                break;
            }

            if (ngx_keyhold_op_reply(user, &reply, &detail) != NGX_OK) {
                ngx_keyhold_route_lost(user);
                ngx_keyhold_conn_wrong(agent, detail);
                return;
            }
        }

        if (rc == KH_E_MALFORMED) {
            kh_session_why(agent->session, &detail);
            ngx_keyhold_conn_wrong(agent, detail);
            return;
        }

        if (rc != KH_AGAIN) {
            kh_session_why(agent->session, &detail);
            ngx_keyhold_conn_lost(agent, 0, kh_result_text(rc), detail);
            return;
        }

    } while (c->read->ready);

    if (agent->ready) {
        ngx_keyhold_route_dispatch();

    } else if (kh_session_get_state(agent->session) == KH_SESSION_READY) {
        ngx_keyhold_conn_ready(agent);
    }
}


static void
ngx_keyhold_conn_reconnect_handler(ngx_event_t *ev)
{
    ngx_keyhold_agent_t  *agent;

    agent = ev->data;

    ngx_keyhold_conn_open(agent);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker's connection to an agent, in nginx's event loop.  The protocol is
 * kh_session's; here are the socket, the back-off, and the one write at the
 * end of a turn of the loop that carries all requests of that turn.
 *
 * It is opened in the worker, after the fork, and kept open: an agent that was
 * away is found again within half a second whether or not somebody waits.
 */

#include "ngx_keyhold.h"

#include <nginx.h>
#include <openssl/rand.h>


#define NGX_KEYHOLD_BACKOFF_MIN  10
#define NGX_KEYHOLD_BACKOFF_MAX  500

/* so many requests are written without looking for more */
#define NGX_KEYHOLD_BATCH        8

/* a connection that was ready for so long was of use, asked or not */
#define NGX_KEYHOLD_STEADY_MSEC  1000


static void ngx_keyhold_conn_open(ngx_keyhold_agent_t *agent);
static kh_result ngx_keyhold_conn_session(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_lost(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail);
static void ngx_keyhold_conn_drop(ngx_keyhold_agent_t *agent, kh_result why);
static void ngx_keyhold_conn_ready(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_back(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_post_flush(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_flush(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_read_handler(ngx_event_t *rev);
static void ngx_keyhold_conn_write_handler(ngx_event_t *wev);
static void ngx_keyhold_conn_flush_handler(ngx_event_t *ev);
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

    agent->flush.handler = ngx_keyhold_conn_flush_handler;
    agent->flush.data = agent;
    agent->flush.log = log;

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

    ngx_keyhold_conn_drop(agent, KH_E_CLOSED);
}


static void
ngx_keyhold_conn_open(ngx_keyhold_agent_t *agent)
{
    int                s;
    kh_result          rc;
    ngx_err_t          err;
    ngx_log_t         *log;
    ngx_connection_t  *c;

    log = agent->reconnect.log;

    s = socket(agent->sockaddr.sun_family, SOCK_STREAM|SOCK_NONBLOCK
                                           |SOCK_CLOEXEC, 0);
    if (s == -1) {
        ngx_keyhold_conn_lost(agent, ngx_socket_errno, "socket() failed", NULL);
        return;
    }

    /* a full backlog is EAGAIN here, and as good as refused */

    if (connect(s, (struct sockaddr *) &agent->sockaddr, agent->socklen)
        == -1)
    {
        err = ngx_socket_errno;
        (void) ngx_close_socket(s);
        ngx_keyhold_conn_lost(agent, err, "connect() failed", NULL);
        return;
    }

    c = ngx_get_connection(s, log);
    if (c == NULL) {
        (void) ngx_close_socket(s);
        ngx_keyhold_conn_lost(agent, 0, "worker_connections are not enough",
                              NULL);
        return;
    }

    agent->connection = c;

    c->data = agent;
    c->log = log;
    c->log_error = NGX_ERROR_IGNORE_ECONNRESET;
    c->read->log = log;
    c->write->log = log;
    c->read->handler = ngx_keyhold_conn_read_handler;
    c->write->handler = ngx_keyhold_conn_write_handler;
    c->read->cancelable = 1;
    c->recv = ngx_recv;
    c->send = ngx_send;
    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);
    c->start_time = ngx_current_msec;

    /*
     * Not ngx_add_conn(): a Unix socket would wake us each time the agent has
     * taken what we wrote.  Writing is watched from when it has to wait.
     */

    if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        ngx_keyhold_conn_lost(agent, 0, "cannot watch the socket", NULL);
        return;
    }

    c->write->ready = 1;

    rc = ngx_keyhold_conn_session(agent);

    if (rc != KH_OK) {
        ngx_keyhold_conn_lost(agent, 0, kh_result_text(rc), NULL);
        return;
    }

    ngx_add_timer(c->read, agent->conf->connect_timeout);

    ngx_keyhold_conn_flush(agent);
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


/*
 * The connection could not be made, or is no more: say so once, and try again
 * soon.  Every operation that was on it waits for the next one.
 */

static void
ngx_keyhold_conn_lost(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail)
{
    u_char     *p, *last;
    ngx_uint_t  level, steady;

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

    level = agent->down ? NGX_LOG_DEBUG : NGX_LOG_WARN;
    agent->down = 1;

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

    ngx_keyhold_conn_drop(agent, KH_E_CLOSED);

    if (!ngx_terminate) {
        ngx_add_timer(&agent->reconnect, agent->backoff);
        agent->backoff = ngx_min(agent->backoff * 2, NGX_KEYHOLD_BACKOFF_MAX);
    }
}


static void
ngx_keyhold_conn_drop(ngx_keyhold_agent_t *agent, kh_result why)
{
    void              *user;
    kh_session        *session;
    ngx_connection_t  *c;

    session = agent->session;
    c = agent->connection;

    agent->session = NULL;
    agent->connection = NULL;
    agent->ready = 0;
    agent->full = 0;
    agent->served = 0;

    if (agent->flush.posted) {
        ngx_delete_posted_event(&agent->flush);
    }

    if (c != NULL) {
        ngx_close_connection(c);
    }

    if (session != NULL) {
        kh_session_abort(session, why);

        while (kh_session_drain(session, &user)) {
            ngx_keyhold_op_lost(user);
        }

        kh_session_free(session);
    }
}


void
ngx_keyhold_conn_stalled(ngx_keyhold_agent_t *agent)
{
    if (agent->session != NULL) {
        ngx_keyhold_conn_lost(agent, 0, "it does not answer", NULL);
    }
}


static void
ngx_keyhold_conn_ready(ngx_keyhold_agent_t *agent)
{
    ngx_connection_t  *c;

    c = agent->connection;

    agent->ready = 1;
    agent->since = ngx_current_msec;

    if (c->read->timer_set) {
        ngx_del_timer(c->read);
    }

    /* one that lets us in and hangs up is not back: see what it does */

    if (!agent->unsteady) {
        ngx_keyhold_conn_back(agent);
    }

    ngx_keyhold_op_dispatch();
    ngx_keyhold_probe_start(c->log);
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
        ngx_keyhold_conn_post_flush(agent);
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
        ngx_keyhold_conn_post_flush(agent);
    }
}


static void
ngx_keyhold_conn_post_flush(ngx_keyhold_agent_t *agent)
{
    if (!agent->flush.posted) {
        agent->seen = 0;
        ngx_post_event(&agent->flush, &ngx_posted_events);
    }
}


/*
 * Each write wakes the agent, and each wake-up costs both sides as much as
 * a P-256 signature.  So before requests are written the loop looks, without
 * waiting, whether it has other work at hand, which may bring more of them, and
 * goes on so while it does, until there is a batch.  An idle worker pays with
 * one epoll_wait() that returns at once.
 */

static void
ngx_keyhold_conn_flush_handler(ngx_event_t *ev)
{
    ngx_keyhold_agent_t  *agent;

    agent = ev->data;

    if (agent->fresh > agent->seen && agent->fresh < NGX_KEYHOLD_BATCH) {
        agent->seen = agent->fresh;
        ngx_post_event(ev, &ngx_posted_next_events);
        return;
    }

    ngx_keyhold_conn_flush(agent);
}


static void
ngx_keyhold_conn_flush(ngx_keyhold_agent_t *agent)
{
    ssize_t            n;
    kh_bytes           out;
    ngx_connection_t  *c;

    c = agent->connection;

    if (c == NULL) {
        return;
    }

    agent->fresh = 0;

    while (c->write->ready) {

        out = kh_session_output(agent->session);

        if (out.len == 0) {
            break;
        }

        n = c->send(c, (u_char *) out.data, out.len);

        if (n == NGX_AGAIN) {
            break;
        }

        if (n == NGX_ERROR) {
            ngx_keyhold_conn_lost(agent, 0, "the connection broke", NULL);
            return;
        }

        kh_session_sent(agent->session, n);
    }

    if (ngx_handle_write_event(c->write, 0) != NGX_OK) {
        ngx_keyhold_conn_lost(agent, 0, "cannot watch the socket", NULL);
    }
}


static void
ngx_keyhold_conn_read_handler(ngx_event_t *rev)
{
    void                 *user;
    size_t                cap;
    u_char               *buf;
    ssize_t               n;
    kh_reply              reply;
    kh_result             rc;
    const char           *detail;
    ngx_connection_t     *c;
    ngx_keyhold_agent_t  *agent;

    c = rev->data;
    agent = c->data;

    if (rev->timedout) {
        ngx_keyhold_conn_lost(agent, 0, "no answer to hello in time", NULL);
        return;
    }

    if (c->close) {

        /* worker_shutdown_timeout: nothing is to be saved any more */

        ngx_keyhold_conn_lost(agent, 0, "the worker shuts down", NULL);
        return;
    }

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
            ngx_keyhold_conn_lost(agent, 0, "the agent closed the connection",
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

            ngx_keyhold_op_reply(user, &reply);
        }

        if (rc != KH_AGAIN) {
            kh_session_why(agent->session, &detail);
            ngx_keyhold_conn_lost(agent, 0, kh_result_text(rc), detail);
            return;
        }

    } while (rev->ready);

    if (!agent->ready
        && kh_session_get_state(agent->session) == KH_SESSION_READY)
    {
        ngx_keyhold_conn_ready(agent);

    } else if (agent->ready) {
        ngx_keyhold_op_dispatch();
    }

    if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        ngx_keyhold_conn_lost(agent, 0, "cannot watch the socket", NULL);
        return;
    }

    /* auth, credit, cancelled: what the session itself has to say */

    if (kh_session_output(agent->session).len > 0) {
        ngx_keyhold_conn_post_flush(agent);
    }
}


static void
ngx_keyhold_conn_write_handler(ngx_event_t *wev)
{
    ngx_connection_t     *c;
    ngx_keyhold_agent_t  *agent;

    c = wev->data;
    agent = c->data;

    ngx_keyhold_conn_flush(agent);
}


static void
ngx_keyhold_conn_reconnect_handler(ngx_event_t *ev)
{
    ngx_keyhold_agent_t  *agent;

    agent = ev->data;

    ngx_keyhold_conn_open(agent);
}

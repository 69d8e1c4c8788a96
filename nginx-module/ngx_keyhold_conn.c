/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker's session with an agent: the protocol is kh_session's, the socket
 * ngx_keyhold_transport.c's; here is when it is opened, and what is sent and
 * read.  What is thought of an agent whose connection ends is
 * ngx_keyhold_away.c's.
 *
 * It is opened in the worker, after the fork, and kept open: an agent that was
 * away is found again within half a second whether or not somebody waits.
 */

#include "ngx_keyhold_conn.h"

#include <nginx.h>
#include <openssl/rand.h>


static void ngx_keyhold_conn_open(ngx_keyhold_agent_t *agent);
static kh_result ngx_keyhold_conn_session(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_conn_ready(ngx_keyhold_agent_t *agent);
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


void
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


/* ---- it is ready ---- */


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

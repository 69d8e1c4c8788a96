/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket of a worker's connection to an agent, Unix or TCP, with TLS on the
 * latter: connecting, and the one write at the end of a turn of the event loop
 * that carries all requests of that turn.
 *
 * TLS may want to read in order to write and the other way round: so whatever
 * happens on the socket, both are tried.
 */

#include "ngx_keyhold.h"

#include <netinet/tcp.h>


/* an idle connection over a path that is cut is found out after some 25 s */
#define NGX_KEYHOLD_KEEPIDLE   10
#define NGX_KEYHOLD_KEEPINTVL  5
#define NGX_KEYHOLD_KEEPCNT    3

/* so many requests are written without looking for more */
#define NGX_KEYHOLD_BATCH      8


static void ngx_keyhold_transport_options(ngx_keyhold_agent_t *agent, int s);
static ngx_int_t ngx_keyhold_transport_watch(ngx_keyhold_agent_t *agent);
static ngx_int_t ngx_keyhold_transport_connected(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_transport_read_handler(ngx_event_t *rev);
static void ngx_keyhold_transport_write_handler(ngx_event_t *wev);
static void ngx_keyhold_transport_flush_handler(ngx_event_t *ev);


ngx_int_t
ngx_keyhold_transport_open(ngx_keyhold_agent_t *agent, ngx_err_t *err,
    const char **why)
{
    int                s;
    ngx_log_t         *log;
    ngx_addr_t        *addr;
    ngx_connection_t  *c;

    log = agent->reconnect.log;
    addr = &agent->addrs[agent->addr];

    agent->connecting = 0;
    agent->flush.handler = ngx_keyhold_transport_flush_handler;
    agent->flush.data = agent;
    agent->flush.log = log;

    s = socket(addr->sockaddr->sa_family, SOCK_STREAM|SOCK_NONBLOCK
                                          |SOCK_CLOEXEC, 0);
    if (s == -1) {
        *err = ngx_socket_errno;
        *why = "socket() failed";
        return NGX_ERROR;
    }

    ngx_keyhold_transport_options(agent, s);

    /* a Unix socket's full backlog is EAGAIN here, and as good as refused */

    if (connect(s, addr->sockaddr, addr->socklen) == -1) {
        *err = ngx_socket_errno;

        if (*err != NGX_EINPROGRESS) {
            (void) ngx_close_socket(s);
            *why = "connect() failed";
            return NGX_ERROR;
        }

        agent->connecting = 1;
    }

    *err = 0;

    c = ngx_get_connection(s, log);
    if (c == NULL) {
        (void) ngx_close_socket(s);
        *why = "worker_connections are not enough";
        return NGX_ERROR;
    }

    agent->connection = c;

    c->data = agent;
    c->log = log;
    c->log_error = NGX_ERROR_IGNORE_ECONNRESET;
    c->read->log = log;
    c->write->log = log;
    c->read->handler = ngx_keyhold_transport_read_handler;
    c->write->handler = ngx_keyhold_transport_write_handler;
    c->read->cancelable = 1;
    c->recv = ngx_recv;
    c->send = ngx_send;
    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);
    c->start_time = ngx_current_msec;

    if (agent->tls) {
        c->recv = ngx_keyhold_tls_recv;
        c->send = ngx_keyhold_tls_send;

        if (ngx_keyhold_tls_start(agent) != NGX_OK) {
            *why = "TLS can not be started";
            return NGX_ERROR;
        }
    }

    /*
     * Not ngx_add_conn(): a Unix socket would wake us each time the agent has
     * taken what we wrote.  Writing is watched from when it has to wait.
     */

    c->write->ready = !agent->connecting;

    if (ngx_keyhold_transport_watch(agent) != NGX_OK) {
        *why = "cannot watch the socket";
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* Each of them helps, and none is needed. */

static void
ngx_keyhold_transport_options(ngx_keyhold_agent_t *agent, int s)
{
    ngx_uint_t  i;

    struct { int level, name, value; }  options[] = {
        { IPPROTO_TCP, TCP_NODELAY, 1 },
        { SOL_SOCKET, SO_KEEPALIVE, 1 },
        { IPPROTO_TCP, TCP_KEEPIDLE, NGX_KEYHOLD_KEEPIDLE },
        { IPPROTO_TCP, TCP_KEEPINTVL, NGX_KEYHOLD_KEEPINTVL },
        { IPPROTO_TCP, TCP_KEEPCNT, NGX_KEYHOLD_KEEPCNT },
        { IPPROTO_TCP, TCP_USER_TIMEOUT, (int) agent->conf->timeout }
    };

    if (!agent->tls) {
        return;
    }

    for (i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        (void) setsockopt(s, options[i].level, options[i].name,
                          &options[i].value, sizeof(int));
    }
}


void
ngx_keyhold_transport_close(ngx_keyhold_agent_t *agent)
{
    if (agent->flush.posted) {
        ngx_delete_posted_event(&agent->flush);
    }

    ngx_keyhold_tls_end(agent);

    if (agent->connection != NULL) {
        ngx_close_connection(agent->connection);
        agent->connection = NULL;
    }
}


static ngx_int_t
ngx_keyhold_transport_watch(ngx_keyhold_agent_t *agent)
{
    ngx_connection_t  *c;

    c = agent->connection;

    if (ngx_handle_read_event(c->read, 0) != NGX_OK
        || ngx_handle_write_event(c->write, 0) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


void
ngx_keyhold_transport_post(ngx_keyhold_agent_t *agent)
{
    if (!agent->flush.posted && agent->connection != NULL) {
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
ngx_keyhold_transport_flush_handler(ngx_event_t *ev)
{
    ngx_keyhold_agent_t  *agent;

    agent = ev->data;

    if (agent->fresh > agent->seen && agent->fresh < NGX_KEYHOLD_BATCH) {
        agent->seen = agent->fresh;
        ngx_post_event(ev, &ngx_posted_next_events);
        return;
    }

    ngx_keyhold_transport_flush(agent);
}


void
ngx_keyhold_transport_flush(ngx_keyhold_agent_t *agent)
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
            ngx_keyhold_conn_broken(agent, 0, "the connection broke");
            return;
        }

        kh_session_sent(agent->session, n);
    }

    if (ngx_handle_write_event(c->write, 0) != NGX_OK) {
        ngx_keyhold_conn_broken(agent, 0, "cannot watch the socket");
    }
}


static ngx_int_t
ngx_keyhold_transport_connected(ngx_keyhold_agent_t *agent)
{
    int        err;
    socklen_t  len;

    if (!agent->connecting) {
        return NGX_OK;
    }

    err = 0;
    len = sizeof(int);

    if (getsockopt(agent->connection->fd, SOL_SOCKET, SO_ERROR, &err, &len)
        == -1)
    {
        err = ngx_socket_errno;
    }

    if (err) {
        ngx_keyhold_conn_broken(agent, err, "connect() failed");
        return NGX_ERROR;
    }

    agent->connecting = 0;

    return NGX_OK;
}


static void
ngx_keyhold_transport_read_handler(ngx_event_t *rev)
{
    ngx_connection_t     *c;
    ngx_keyhold_agent_t  *agent;

    c = rev->data;
    agent = c->data;

    if (rev->timedout) {
        ngx_keyhold_conn_broken(agent, 0, agent->connecting
                                          ? "no connection in time"
                                          : "no answer to hello in time");
        return;
    }

    if (c->close) {

        /* worker_shutdown_timeout: nothing is to be saved any more */

        ngx_keyhold_conn_broken(agent, 0, "the worker shuts down");
        return;
    }

    if (ngx_keyhold_transport_connected(agent) != NGX_OK) {
        return;
    }

    ngx_keyhold_conn_input(agent);

    if (agent->connection != c) {
        return;
    }

    /* TLS may have something to write of its own */

    if (ngx_keyhold_transport_watch(agent) != NGX_OK) {
        ngx_keyhold_conn_broken(agent, 0, "cannot watch the socket");
        return;
    }

    /* auth, credit, cancelled: what the session itself has to say */

    if (kh_session_output(agent->session).len > 0) {
        ngx_keyhold_transport_post(agent);
    }
}


static void
ngx_keyhold_transport_write_handler(ngx_event_t *wev)
{
    ngx_connection_t     *c;
    ngx_keyhold_agent_t  *agent;

    c = wev->data;
    agent = c->data;

    if (ngx_keyhold_transport_connected(agent) != NGX_OK) {
        return;
    }

    if (agent->tls) {
        ngx_keyhold_conn_input(agent);

        if (agent->connection != c) {
            return;
        }
    }

    ngx_keyhold_transport_flush(agent);
}

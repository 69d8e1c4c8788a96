/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Suspended handshakes in an nginx that knows nothing of them.
 *
 *   gate     (ngx_keyhold_gate.c)  nginx parks the connection with its own
 *            handlers as if the ClientHello had not come; an event is posted.
 *   take     The event puts the read BIO back, puts a handler of ours into
 *            c->ssl->handler, and calls nginx's read handler on a coroutine.
 *   park     Where the provider needs an answer it switches to the event loop.
 *            Until that is there c->read->handler and c->write->handler are
 *            ours and only take note of what happens.
 *   resume   With the answer, or with a failure: nginx's code goes on as if no
 *            time had passed.
 *   give     When nginx calls c->ssl->handler the handshake is over.  That call
 *            is caught, and made on the main stack: no request is ever
 *            processed on a coroutine.
 *
 * An SSL may be freed while its handshake is parked (an upstream connection is
 * closed by its request, not through its own handlers).  A reference keeps it,
 * a cleanup of c->pool notices; then libssl unwinds over null BIOs, and the
 * coroutine is left for good in the info callback at the end of the handshake
 * function, before nginx's code would touch a connection that is no more.
 *
 * The state is in memory of its own, since c->pool may be destroyed under it.
 */

#include "ngx_keyhold_handshake.h"


static void ngx_keyhold_run(ngx_keyhold_handshake_t *hs, ngx_event_t *ev);
static void ngx_keyhold_run_main(void *data);
static void ngx_keyhold_after(ngx_keyhold_handshake_t *hs, ngx_uint_t ended);
static void ngx_keyhold_give(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_wrap(ngx_keyhold_handshake_t *hs);
static ngx_uint_t ngx_keyhold_connected(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_unpark(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_abort(ngx_keyhold_handshake_t *hs, ngx_err_t err);
static void ngx_keyhold_abandon(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_event_handler(ngx_event_t *ev);
static void ngx_keyhold_over_handler(ngx_connection_t *c);
static void ngx_keyhold_cleanup_handler(void *data);
static ngx_uint_t ngx_keyhold_gone(ngx_event_t *rev);

static ngx_queue_t  ngx_keyhold_parked;


void
ngx_keyhold_handshake_init(void)
{
    ngx_queue_init(&ngx_keyhold_parked);
}


void
ngx_keyhold_handshake_exit(void)
{
    ngx_queue_t              *q;
    ngx_keyhold_handshake_t  *hs;

    while (!ngx_queue_empty(&ngx_keyhold_parked)) {
        q = ngx_queue_head(&ngx_keyhold_parked);
        hs = ngx_queue_data(q, ngx_keyhold_handshake_t, queue);

        if (ngx_keyhold_connected(hs)) {
            ngx_keyhold_abort(hs, NGX_ECONNRESET);

        } else {
            ngx_keyhold_abandon(hs);
        }
    }
}


/* ---- taking over, and running nginx's code on a coroutine ---- */


void
ngx_keyhold_handshake_take(ngx_event_t *ev)
{
    ngx_event_t              *rev;
    ngx_connection_t         *c;
    ngx_pool_cleanup_t       *cln;
    ngx_keyhold_handshake_t  *hs;

    hs = ev->data;
    c = hs->connection;

    SSL_set0_rbio(hs->ssl, hs->rbio);
    hs->rbio = NULL;

    rev = c->read;

    if (c->ssl->handler == NULL) {

        /* somebody does not wait for the end of the handshake as usual */

        ngx_keyhold_gate_open(hs->ssl);
        ngx_keyhold_handshake_forget(hs);

        rev->handler(rev);
        return;
    }

    cln = ngx_pool_cleanup_add(c->pool, 0);

    if (cln == NULL) {
        hs->handler = c->ssl->handler;
        ngx_keyhold_give(hs);
        return;
    }

    cln->handler = ngx_keyhold_cleanup_handler;
    cln->data = hs;
    hs->cleanup = cln;

    hs->handler = c->ssl->handler;
    c->ssl->handler = ngx_keyhold_over_handler;

    hs->read_handler = rev->handler;
    hs->write_handler = c->write->handler;

    ngx_keyhold_run(hs, rev);
}


static void
ngx_keyhold_run(ngx_keyhold_handshake_t *hs, ngx_event_t *ev)
{
    ngx_connection_t  *c;

    c = hs->connection;

    c->read->handler = hs->read_handler;
    c->write->handler = hs->write_handler;

    hs->coro = ngx_keyhold_coro_get(c->log);

    if (hs->coro == NULL) {
        ngx_keyhold_give(hs);
        return;
    }

    hs->event = ev;
    hs->running = 1;

    ngx_keyhold_after(hs, ngx_keyhold_coro_start(hs->coro,
                                                 ngx_keyhold_run_main, hs));
}


static void
ngx_keyhold_run_main(void *data)
{
    ngx_keyhold_handshake_t  *hs;

    hs = data;

    hs->event->handler(hs->event);
}


/* Back on the stack that started or resumed the coroutine. */

static void
ngx_keyhold_after(ngx_keyhold_handshake_t *hs, ngx_uint_t ended)
{
    if (!ended) {
        return;
    }

    ngx_keyhold_coro_release(hs->coro);
    hs->coro = NULL;
    hs->running = 0;

    if (hs->freed) {
        ngx_keyhold_handshake_forget(hs);
        return;
    }

    if (hs->orphan) {
        return;
    }

    if (hs->over) {
        ngx_keyhold_give(hs);
        return;
    }

    hs->read_handler = hs->connection->read->handler;
    hs->write_handler = hs->connection->write->handler;

    ngx_keyhold_wrap(hs);
}


/* The handshake is over, or was never ours: the connection is nginx's again. */

static void
ngx_keyhold_give(ngx_keyhold_handshake_t *hs)
{
    ngx_connection_t           *c;
    ngx_connection_handler_pt   handler;

    c = hs->connection;
    handler = hs->handler;

    c->ssl->handler = handler;

    ngx_keyhold_gate_open(hs->ssl);
    ngx_keyhold_handshake_forget(hs);

    handler(c);
}


void
ngx_keyhold_handshake_forget(ngx_keyhold_handshake_t *hs)
{
    if (hs->take.posted) {
        ngx_delete_posted_event(&hs->take);
    }

    if (hs->rbio != NULL) {
        BIO_free(hs->rbio);
    }

    if (hs->cleanup != NULL) {
        hs->cleanup->handler = NULL;
    }

    ngx_free(hs);
}


static void
ngx_keyhold_wrap(ngx_keyhold_handshake_t *hs)
{
    hs->connection->read->handler = ngx_keyhold_event_handler;
    hs->connection->write->handler = ngx_keyhold_event_handler;
}


/*
 * What nginx calls when the handshake is over.  Not on our coroutine when a
 * client certificate's OCSP answer has come.
 */

static void
ngx_keyhold_over_handler(ngx_connection_t *c)
{
    ngx_keyhold_handshake_t  *hs;

    hs = ngx_keyhold_gate_get(c->ssl->connection);

    if (hs->running) {
        hs->over = 1;
        return;
    }

    if (c->read->handler == ngx_keyhold_event_handler) {
        c->read->handler = hs->read_handler;
    }

    if (c->write->handler == ngx_keyhold_event_handler) {
        c->write->handler = hs->write_handler;
    }

    ngx_keyhold_give(hs);
}


/* ---- parking ---- */


ngx_keyhold_handshake_t *
ngx_keyhold_handshake_current(void)
{
    return ngx_keyhold_coro_data();
}


ngx_connection_t *
ngx_keyhold_handshake_connection(ngx_keyhold_handshake_t *hs)
{
    return hs->connection;
}


ngx_int_t
ngx_keyhold_handshake_park(ngx_keyhold_handshake_t *hs, ngx_keyhold_op_t *op)
{
    ngx_connection_t  *c;

    if (hs->failed) {
        ngx_keyhold_op_cancel(op);
        return NGX_ABORT;
    }

    c = hs->connection;

    hs->op = op;
    hs->parked = 1;
    hs->read_handler = c->read->handler;
    hs->write_handler = c->write->handler;

    SSL_up_ref(hs->ssl);
    ngx_queue_insert_tail(&ngx_keyhold_parked, &hs->queue);
    ngx_keyhold_wrap(hs);

    ngx_keyhold_coro_yield();

    /* what others left in the queue is not this handshake's */

    ERR_clear_error();

    return hs->aborted ? NGX_ABORT : NGX_OK;
}


void
ngx_keyhold_handshake_wake(ngx_keyhold_op_t *op)
{
    ngx_keyhold_handshake_t  *hs;

    hs = op->data;

    if (!ngx_keyhold_connected(hs)) {
        ngx_keyhold_abandon(hs);
        return;
    }

    ngx_keyhold_unpark(hs);
    ngx_keyhold_after(hs, ngx_keyhold_coro_resume(hs->coro));
}


/*
 * Whether a parked handshake still has its connection.  One to an upstream of
 * stream{} is closed before the pool, the client's, in which the cleanup is.
 */

static ngx_uint_t
ngx_keyhold_connected(ngx_keyhold_handshake_t *hs)
{
    ngx_connection_t  *c;

    c = hs->connection;

    return c->fd == hs->fd
           && c->number == hs->number
           && c->ssl != NULL
           && c->ssl->connection == hs->ssl;
}


static void
ngx_keyhold_unpark(ngx_keyhold_handshake_t *hs)
{
    hs->parked = 0;
    hs->op = NULL;

    ngx_queue_remove(&hs->queue);

    hs->connection->read->handler = hs->read_handler;
    hs->connection->write->handler = hs->write_handler;

    /* not the last reference: c->ssl has its own */

    SSL_free(hs->ssl);
}


/* The client is gone, or its time is up, or the worker's. */

static void
ngx_keyhold_abort(ngx_keyhold_handshake_t *hs, ngx_err_t err)
{
    ngx_keyhold_op_cancel(hs->op);

    hs->aborted = 1;
    hs->failed = 1;
    hs->err = err;

    ngx_keyhold_unpark(hs);
    ngx_keyhold_after(hs, ngx_keyhold_coro_resume(hs->coro));
}


/* The connection is no more.  Nothing of it may be touched from here on. */

static void
ngx_keyhold_abandon(ngx_keyhold_handshake_t *hs)
{
    BIO             *bio;
    ngx_ssl_conn_t  *ssl;

    ssl = hs->ssl;

    ngx_keyhold_op_cancel(hs->op);

    hs->parked = 0;
    hs->op = NULL;
    hs->aborted = 1;
    hs->failed = 1;
    hs->orphan = 1;

    ngx_queue_remove(&hs->queue);

    /* the descriptor may belong to somebody else by now */

    bio = BIO_new(BIO_s_null());
    SSL_set_bio(ssl, bio, bio);

    (void) ngx_keyhold_coro_resume(hs->coro);

    ngx_keyhold_coro_release(hs->coro);

    ERR_clear_error();

    ngx_keyhold_gate_open(ssl);
    ngx_keyhold_handshake_forget(hs);

    SSL_free(ssl);
}


static void
ngx_keyhold_cleanup_handler(void *data)
{
    ngx_keyhold_handshake_t  *hs;

    hs = data;

    hs->cleanup = NULL;

    if (hs->parked) {
        ngx_keyhold_abandon(hs);
    }
}


/*
 * The handler of both events while the handshake is ours.  Not parked, it is
 * nginx's turn, on a coroutine.  Parked, nginx would only disturb libssl: what
 * came is found when it goes on, except what makes going on pointless.
 */

static void
ngx_keyhold_event_handler(ngx_event_t *ev)
{
    ngx_connection_t         *c;
    ngx_keyhold_handshake_t  *hs;

    c = ev->data;
    hs = ngx_keyhold_gate_get(c->ssl->connection);

    if (!hs->parked) {

        /* a time-out needs no stack, and must not depend on one */

        if (ev->timedout || c->close) {
            c->read->handler = hs->read_handler;
            c->write->handler = hs->write_handler;
            ngx_keyhold_give(hs);
            return;
        }

        ngx_keyhold_run(hs, ev);
        return;
    }

    if (ev->timedout) {
        ngx_keyhold_abort(hs, NGX_ETIMEDOUT);
        return;
    }

    if (c->close || (!ev->write && ngx_keyhold_gone(ev))) {
        ngx_keyhold_abort(hs, NGX_ECONNRESET);
        return;
    }

    if (ngx_event_flags & NGX_USE_LEVEL_EVENT) {

        /* or it would be reported again and again; nginx adds it when it reads */

        if (ev->active) {
            (void) ngx_del_event(ev, ev->write ? NGX_WRITE_EVENT
                                               : NGX_READ_EVENT, 0);
        }

        ev->ready = 0;
    }
}


/*
 * A client that has closed its side, even half, can not finish a handshake: it
 * still owes a Finished message.
 */

static ngx_uint_t
ngx_keyhold_gone(ngx_event_t *rev)
{
    u_char             buf[1];
    ssize_t            n;
    ngx_connection_t  *c;

    if (rev->pending_eof || rev->error) {
        return 1;
    }

    c = rev->data;

    n = recv(c->fd, (char *) buf, 1, MSG_PEEK);

    return n == 0 || (n == -1 && ngx_socket_errno != NGX_EAGAIN
                      && ngx_socket_errno != NGX_EINTR);
}


void
ngx_keyhold_handshake_failed(ngx_keyhold_handshake_t *hs, ngx_err_t err)
{
    hs->failed = 1;
    hs->err = err;
}

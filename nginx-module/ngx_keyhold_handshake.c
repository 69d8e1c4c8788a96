/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Suspended handshakes in an nginx that knows nothing of them.
 *
 *   gate     An info callback sees a handshake start, inside nginx's first
 *            SSL_do_handshake().  The SSL's read BIO is exchanged for one that
 *            answers "retry": nginx parks the connection with its own handlers
 *            as if the ClientHello had not come, and an event is posted.
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

#include "ngx_keyhold.h"

#include <openssl/provider.h>


struct ngx_keyhold_handshake_s {
    ngx_queue_t                 queue;          /* while parked */
    ngx_connection_t           *connection;
    ngx_atomic_uint_t           number;
    ngx_socket_t                fd;
    ngx_ssl_conn_t             *ssl;

    BIO                        *rbio;           /* while gated */
    ngx_event_t                 take;           /* posted */

    ngx_keyhold_coro_t         *coro;           /* while running or parked */
    ngx_event_t                *event;          /* whose handler runs on it */
    ngx_keyhold_op_t           *op;             /* while parked */
    ngx_pool_cleanup_t         *cleanup;

    /* nginx's, while ours are in their places */
    ngx_connection_handler_pt   handler;
    ngx_event_handler_pt        read_handler;
    ngx_event_handler_pt        write_handler;

    ngx_err_t                   err;            /* why it failed */

    unsigned                    running:1;      /* on the coroutine */
    unsigned                    parked:1;
    unsigned                    over:1;         /* c->ssl->handler was called */
    unsigned                    failed:1;
    unsigned                    aborted:1;      /* the operation is cancelled */
    unsigned                    orphan:1;       /* the connection is no more */
    unsigned                    freed:1;        /* its SSL is no more */
};


static void ngx_keyhold_ssl_new(void *parent, void *ptr, CRYPTO_EX_DATA *ad,
    int idx, long argl, void *argp);
static void ngx_keyhold_ssl_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad,
    int idx, long argl, void *argp);
static void ngx_keyhold_info_callback(const ngx_ssl_conn_t *ssl, int where,
    int ret);
static void ngx_keyhold_gate(ngx_ssl_conn_t *ssl);
static ngx_uint_t ngx_keyhold_is_ours(ngx_ssl_conn_t *ssl);
static void ngx_keyhold_take_handler(ngx_event_t *ev);
static void ngx_keyhold_run(ngx_keyhold_handshake_t *hs, ngx_event_t *ev);
static void ngx_keyhold_run_main(void *data);
static void ngx_keyhold_after(ngx_keyhold_handshake_t *hs, ngx_uint_t ended);
static void ngx_keyhold_give(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_wrap(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_unpark(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_abort(ngx_keyhold_handshake_t *hs, ngx_err_t err);
static void ngx_keyhold_abandon(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_forget(ngx_keyhold_handshake_t *hs);
static void ngx_keyhold_event_handler(ngx_event_t *ev);
static void ngx_keyhold_over_handler(ngx_connection_t *c);
static void ngx_keyhold_cleanup_handler(void *data);
static ngx_uint_t ngx_keyhold_gone(ngx_event_t *rev);

static int ngx_keyhold_gate_read(BIO *bio, char *buf, int len);
static int ngx_keyhold_gate_write(BIO *bio, const char *buf, int len);
static long ngx_keyhold_gate_ctrl(BIO *bio, int cmd, long num, void *ptr);


static int          ngx_keyhold_index = -1;          /* of the handshake */
static int          ngx_keyhold_outcome_index = -1;
static BIO_METHOD  *ngx_keyhold_gate_method;
static BIO         *ngx_keyhold_gate_bio;            /* one for all */
static ngx_queue_t  ngx_keyhold_parked;


ngx_int_t
ngx_keyhold_handshake_init(ngx_log_t *log)
{
    ngx_queue_init(&ngx_keyhold_parked);

    if (ngx_keyhold_index != -1) {
        return NGX_OK;
    }

    ngx_keyhold_gate_method = BIO_meth_new(BIO_get_new_index()
                                           |BIO_TYPE_SOURCE_SINK,
                                           "keyhold gate");

    if (ngx_keyhold_gate_method == NULL
        || !BIO_meth_set_read(ngx_keyhold_gate_method, ngx_keyhold_gate_read)
        || !BIO_meth_set_write(ngx_keyhold_gate_method,
                               ngx_keyhold_gate_write)
        || !BIO_meth_set_ctrl(ngx_keyhold_gate_method, ngx_keyhold_gate_ctrl))
    {
        ngx_ssl_error(NGX_LOG_EMERG, log, 0, "BIO_meth_new() failed");
        return NGX_ERROR;
    }

    ngx_keyhold_gate_bio = BIO_new(ngx_keyhold_gate_method);

    if (ngx_keyhold_gate_bio == NULL) {
        ngx_ssl_error(NGX_LOG_EMERG, log, 0, "BIO_new() failed");
        return NGX_ERROR;
    }

    BIO_set_init(ngx_keyhold_gate_bio, 1);

    ngx_keyhold_outcome_index = SSL_get_ex_new_index(0, NULL, NULL, NULL,
                                                     NULL);
    ngx_keyhold_index = SSL_get_ex_new_index(0, NULL, ngx_keyhold_ssl_new,
                                             NULL, ngx_keyhold_ssl_free);

    if (ngx_keyhold_index == -1 || ngx_keyhold_outcome_index == -1) {
        ngx_ssl_error(NGX_LOG_EMERG, log, 0, "SSL_get_ex_new_index() failed");
        return NGX_ERROR;
    }

    return NGX_OK;
}


void
ngx_keyhold_handshake_exit(void)
{
    ngx_queue_t              *q;
    ngx_keyhold_handshake_t  *hs;

    if (ngx_keyhold_index == -1) {
        return;
    }

    while (!ngx_queue_empty(&ngx_keyhold_parked)) {
        q = ngx_queue_head(&ngx_keyhold_parked);
        hs = ngx_queue_data(q, ngx_keyhold_handshake_t, queue);

        ngx_keyhold_abort(hs, NGX_ECONNRESET);
    }
}


/* ---- the gate ---- */


static int
ngx_keyhold_gate_read(BIO *bio, char *buf, int len)
{
    BIO_set_retry_read(bio);
    return -1;
}


static int
ngx_keyhold_gate_write(BIO *bio, const char *buf, int len)
{
    return -1;
}


static long
ngx_keyhold_gate_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
    return cmd == BIO_CTRL_FLUSH;
}


static void
ngx_keyhold_ssl_new(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx,
    long argl, void *argp)
{
    if (ngx_keyhold_conf != NULL) {
        SSL_set_info_callback(parent, ngx_keyhold_info_callback);
    }
}


static void
ngx_keyhold_ssl_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx,
    long argl, void *argp)
{
    ngx_keyhold_handshake_t  *hs;

    hs = ptr;

    if (hs == NULL) {
        return;
    }

    if (hs->running) {

        /* by nginx's own code on the coroutine, which is still in use */

        hs->freed = 1;
        return;
    }

    ngx_keyhold_forget(hs);
}


static void
ngx_keyhold_info_callback(const ngx_ssl_conn_t *ssl_conn, int where, int ret)
{
    void                    (*next)(const SSL *ssl, int type, int val);
    ngx_ssl_conn_t           *ssl;
    ngx_keyhold_handshake_t  *hs;

    ssl = (ngx_ssl_conn_t *) ssl_conn;
    hs = SSL_get_ex_data(ssl, ngx_keyhold_index);

    if (hs != NULL && hs->orphan) {

        /* the connection is not to be touched, by nginx's callback neither */

        if (where & SSL_CB_EXIT) {
            ngx_keyhold_coro_exit();
        }

        return;
    }

    next = SSL_CTX_get_info_callback(SSL_get_SSL_CTX(ssl));

    if (next != NULL) {
        next(ssl_conn, where, ret);
    }

    if (where & SSL_CB_HANDSHAKE_START) {

        if (hs == NULL) {
            ngx_keyhold_gate(ssl);
        }

        return;
    }

    if ((where & SSL_CB_EXIT) && hs != NULL && hs->failed && ret <= 0) {

        /*
         * the log has our line already; nginx sees a connection that broke,
         * which is nothing critical
         */

        ERR_clear_error();
        ngx_set_errno(hs->err);
    }
}


/*
 * Inside the first SSL_do_handshake() of a connection.  Where anything is not
 * as expected the handshake goes on as it is, and waits synchronously.
 */

static void
ngx_keyhold_gate(ngx_ssl_conn_t *ssl)
{
    BIO                      *rbio;
    ngx_connection_t         *c;
    ngx_keyhold_handshake_t  *hs;

    if (ngx_keyhold_conf == NULL || ngx_keyhold_coro_data() != NULL) {
        return;
    }

    c = ngx_ssl_get_connection(ssl);

    if (c == NULL
        || c->ssl == NULL
        || c->ssl->connection != ssl
        || c->ssl->handshaked
        || c->pool == NULL)
    {
        return;
    }

#if (defined NGX_QUIC && NGX_QUIC)
    if (c->quic) {
        return;
    }
#endif

    /* a client's key is known by now, a server's only after the ClientHello */

    if (!SSL_is_server(ssl) && !ngx_keyhold_is_ours(ssl)) {
        return;
    }

    rbio = SSL_get_rbio(ssl);

    if (rbio == NULL || rbio == ngx_keyhold_gate_bio) {
        return;
    }

    hs = ngx_calloc(sizeof(ngx_keyhold_handshake_t), c->log);
    if (hs == NULL) {
        return;
    }

    if (SSL_set_ex_data(ssl, ngx_keyhold_index, hs) == 0) {
        ngx_free(hs);
        return;
    }

    hs->connection = c;
    hs->number = c->number;
    hs->fd = c->fd;
    hs->ssl = ssl;

    hs->take.handler = ngx_keyhold_take_handler;
    hs->take.data = hs;
    hs->take.log = c->log;

    BIO_up_ref(rbio);
    hs->rbio = rbio;

    BIO_up_ref(ngx_keyhold_gate_bio);
    SSL_set0_rbio(ssl, ngx_keyhold_gate_bio);

    ngx_post_event(&hs->take, &ngx_posted_events);
}


static ngx_uint_t
ngx_keyhold_is_ours(ngx_ssl_conn_t *ssl)
{
    EVP_PKEY             *pkey;
    const OSSL_PROVIDER  *provider;

    pkey = SSL_get_privatekey(ssl);

    if (pkey == NULL) {
        return 0;
    }

    provider = EVP_PKEY_get0_provider(pkey);

    return provider != NULL
           && ngx_strncmp(OSSL_PROVIDER_get0_name(provider), "keyhold", 7)
              == 0;
}


/* ---- taking over, and running nginx's code on a coroutine ---- */


static void
ngx_keyhold_take_handler(ngx_event_t *ev)
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

        SSL_set_ex_data(hs->ssl, ngx_keyhold_index, NULL);
        ngx_keyhold_forget(hs);

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
        ngx_log_error(NGX_LOG_ERR, c->log, 0,
                      "keyhold: handshake refused: no memory for its stack");
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
        ngx_keyhold_forget(hs);
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

    SSL_set_ex_data(hs->ssl, ngx_keyhold_index, NULL);
    ngx_keyhold_forget(hs);

    handler(c);
}


static void
ngx_keyhold_forget(ngx_keyhold_handshake_t *hs)
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

    hs = SSL_get_ex_data(c->ssl->connection, ngx_keyhold_index);

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
    ngx_connection_t         *c;
    ngx_keyhold_handshake_t  *hs;

    hs = op->data;
    c = hs->connection;

    if (c->fd != hs->fd
        || c->number != hs->number
        || c->ssl == NULL
        || c->ssl->connection != hs->ssl)
    {
        ngx_keyhold_abandon(hs);
        return;
    }

    ngx_keyhold_unpark(hs);
    ngx_keyhold_after(hs, ngx_keyhold_coro_resume(hs->coro));
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

    SSL_set_ex_data(ssl, ngx_keyhold_index, NULL);
    ngx_keyhold_forget(hs);

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
    hs = SSL_get_ex_data(c->ssl->connection, ngx_keyhold_index);

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


/* ---- outcomes ---- */


void
ngx_keyhold_handshake_failed(ngx_keyhold_handshake_t *hs, ngx_err_t err)
{
    hs->failed = 1;
    hs->err = err;
}


void
ngx_keyhold_handshake_outcome(ngx_keyhold_handshake_t *hs, kh_result status,
    ngx_uint_t usec, ngx_str_t *agent)
{
    ngx_keyhold_outcome_t  *outcome;

    if (hs->orphan) {
        return;
    }

    outcome = SSL_get_ex_data(hs->ssl, ngx_keyhold_outcome_index);

    if (outcome == NULL) {
        outcome = ngx_pcalloc(hs->connection->pool,
                              sizeof(ngx_keyhold_outcome_t));
        if (outcome == NULL) {
            return;
        }

        (void) SSL_set_ex_data(hs->ssl, ngx_keyhold_outcome_index, outcome);
    }

    outcome->status = status;
    outcome->usec += usec;

    if (agent != NULL) {
        outcome->agent = agent;
    }
}


ngx_keyhold_outcome_t *
ngx_keyhold_get_outcome(ngx_connection_t *c)
{
    if (c->ssl == NULL || c->ssl->connection == NULL
        || ngx_keyhold_outcome_index == -1)
    {
        return NULL;
    }

    return SSL_get_ex_data(c->ssl->connection, ngx_keyhold_outcome_index);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a handshake is noticed in an nginx that knows nothing of us: an ex_data
 * index whose "new" callback gives each SSL an info callback.  That covers http,
 * stream, mail and upstream connections without touching their configurations,
 * and survives SNI's change of SSL_CTX.
 *
 * When a handshake starts, inside nginx's first SSL_do_handshake(), the SSL's
 * read BIO is exchanged for one that answers "retry".  So nginx sees a client
 * that has not sent its ClientHello yet, and leaves; an event that was posted
 * then takes over (ngx_keyhold_handshake.c).
 */

#include "ngx_keyhold_handshake.h"

#include <openssl/provider.h>


static void ngx_keyhold_ssl_new(void *parent, void *ptr, CRYPTO_EX_DATA *ad,
    int idx, long argl, void *argp);
static void ngx_keyhold_ssl_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad,
    int idx, long argl, void *argp);
static void ngx_keyhold_info_callback(const ngx_ssl_conn_t *ssl, int where,
    int ret);
static void ngx_keyhold_gate(ngx_ssl_conn_t *ssl);
static void ngx_keyhold_refused(ngx_ssl_conn_t *ssl);
static ngx_uint_t ngx_keyhold_is_ours(ngx_ssl_conn_t *ssl);

static int ngx_keyhold_gate_read(BIO *bio, char *buf, int len);
static int ngx_keyhold_gate_write(BIO *bio, const char *buf, int len);
static long ngx_keyhold_gate_ctrl(BIO *bio, int cmd, long num, void *ptr);


static int          ngx_keyhold_index = -1;          /* of the handshake */
static int          ngx_keyhold_outcome_index = -1;
static BIO_METHOD  *ngx_keyhold_gate_method;
static BIO         *ngx_keyhold_gate_bio;            /* one for all */
static ngx_connection_t  *ngx_keyhold_unsuspended;   /* in its handshake */


ngx_int_t
ngx_keyhold_gate_init(ngx_log_t *log)
{
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

    ngx_keyhold_handshake_forget(hs);
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

    if ((where & SSL_CB_READ_ALERT) == SSL_CB_READ_ALERT
        && (ret & 0xff) == SSL_AD_DECRYPT_ERROR)
    {
        ngx_keyhold_refused(ssl);
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

    if (hs == NULL) {
        ngx_keyhold_unsuspended = (where & SSL_CB_LOOP)
                                  ? ngx_ssl_get_connection(ssl) : NULL;
        return;
    }

    if ((where & SSL_CB_EXIT) && hs->failed && ret <= 0) {

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

    /* QUIC calls libssl while it takes a datagram apart */

    if (c->type == SOCK_DGRAM) {
        return;
    }

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

    hs->take.handler = ngx_keyhold_handshake_take;
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


/* The peer says that our signature does not verify: was it an agent's? */

static void
ngx_keyhold_refused(ngx_ssl_conn_t *ssl)
{
    ngx_keyhold_outcome_t  *outcome;

    outcome = SSL_get_ex_data(ssl, ngx_keyhold_outcome_index);

    if (outcome != NULL && outcome->agent != NULL) {
        ngx_keyhold_check_alert(outcome->agent);
    }
}


ngx_keyhold_handshake_t *
ngx_keyhold_gate_get(ngx_ssl_conn_t *ssl)
{
    return SSL_get_ex_data(ssl, ngx_keyhold_index);
}


void
ngx_keyhold_gate_open(ngx_ssl_conn_t *ssl)
{
    (void) SSL_set_ex_data(ssl, ngx_keyhold_index, NULL);
}


ngx_connection_t *
ngx_keyhold_gate_unsuspended(void)
{
    return ngx_keyhold_unsuspended;
}


/* ---- outcomes ---- */


void
ngx_keyhold_handshake_outcome(ngx_keyhold_handshake_t *hs,
    ngx_keyhold_op_t *op, kh_result status, ngx_uint_t usec)
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
    outcome->tries += op->tries;

    if (op->agent != NULL) {
        outcome->agent = &op->agent->name;
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

/* SPDX-License-Identifier: Apache-2.0 */
/* TLS over a non-blocking descriptor. OpenSSL reads and writes through a BIO of our own, which never raises SIGPIPE
 * and never blocks, whatever the flags of the descriptor. */
#include "stream.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define ALERT_REASONS 1000    /* an alert that came has this and its number as its reason (SSL_AD_REASON_OFFSET) */
#define CERT_LIST_MAX 32768   /* bytes of the peer's certificate chain */

/* ---- The BIO ---- */

static BIO_METHOD *method;
static pthread_once_t method_once = PTHREAD_ONCE_INIT;

static bool again(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

static int socket_read(BIO *bio, char *data, int len)
{
    kh_tls_stream *stream = BIO_get_data(bio);
    ssize_t got = recv(stream->fd, data, (size_t)len, MSG_DONTWAIT);

    BIO_clear_retry_flags(bio);
    if (got < 0 && again(errno)) {
        BIO_set_retry_read(bio);
    } else if (got < 0) {
        stream->error = errno;
    }
    return (int)got;
}

static int socket_write(BIO *bio, const char *data, int len)
{
    kh_tls_stream *stream = BIO_get_data(bio);
    ssize_t sent = send(stream->fd, data, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);

    BIO_clear_retry_flags(bio);
    if (sent < 0 && again(errno)) {
        BIO_set_retry_write(bio);
    } else if (sent < 0) {
        stream->error = errno;
    }
    return (int)sent;
}

static long socket_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH; /* nothing is kept back */
}

static void make_method(void)
{
    BIO_METHOD *made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK | BIO_TYPE_DESCRIPTOR, "keyhold socket");

    if (made != NULL && BIO_meth_set_read(made, socket_read) == 1 && BIO_meth_set_write(made, socket_write) == 1 &&
        BIO_meth_set_ctrl(made, socket_ctrl) == 1) {
        method = made;
        return;
    }
    BIO_meth_free(made);
}

/* ---- What both ends agree on ---- */

kh_result kh_tls_common(SSL_CTX *ctx)
{
    if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) != 1) {
        return KH_E_CRYPTO;
    }
    SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
    /* NO_AUTO_CHAIN: whom we believe is not to be sent along with our own certificate. */
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY);
    SSL_CTX_set_read_ahead(ctx, 0);
    SSL_CTX_set_max_early_data(ctx, 0);
    SSL_CTX_set_max_cert_list(ctx, CERT_LIST_MAX);
    return KH_OK;
}

kh_result kh_tls_stream_start(kh_tls_stream *stream, SSL *ssl, int fd)
{
    BIO *bio = NULL;

    *stream = (kh_tls_stream){.fd = fd};
    pthread_once(&method_once, make_method);
    if (method != NULL && ssl != NULL) {
        bio = BIO_new(method);
    }
    if (bio == NULL) {
        SSL_free(ssl);
        return KH_E_MEMORY;
    }
    BIO_set_data(bio, stream);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio); /* the SSL owns it now */
    stream->ssl = ssl;
    return KH_OK;
}

void kh_tls_stream_end(kh_tls_stream *stream, bool polite)
{
    if (stream->ssl != NULL && polite && stream->finished && !stream->broken) {
        (void)SSL_shutdown(stream->ssl); /* one way; the answer does not matter */
    }
    if (stream->ssl != NULL && stream->finished && (!stream->broken || stream->error != 0)) {
        /* Else OpenSSL would take the session for a bad one, that is not to be resumed. */
        SSL_set_shutdown(stream->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    }
    SSL_free(stream->ssl);
    ERR_clear_error();
    *stream = (kh_tls_stream){.fd = -1};
}

/* ---- Bytes in and out ---- */

static kh_result lost(const kh_tls_stream *stream)
{
    return stream->error == 0 || stream->error == ECONNRESET || stream->error == EPIPE ? KH_E_CLOSED
           : stream->error == ENOMEM || stream->error == ENOBUFS                       ? KH_E_MEMORY
                                                                                       : KH_E_IO;
}

/* What a failed handshake or record means. */
static kh_result refused(const kh_tls_stream *stream)
{
    static const int no_tls[] = {SSL_R_WRONG_VERSION_NUMBER, SSL_R_HTTP_REQUEST,    SSL_R_HTTPS_PROXY_REQUEST,
                                 SSL_R_PACKET_LENGTH_TOO_LONG, SSL_R_BAD_RECORD_TYPE, SSL_R_UNEXPECTED_MESSAGE};
    int reason = ERR_GET_REASON(ERR_peek_error());

    if (reason == ERR_R_MALLOC_FAILURE) {
        return KH_E_MEMORY;
    }
    for (size_t i = 0; i < sizeof(no_tls) / sizeof(no_tls[0]); i++) {
        if (reason == no_tls[i]) {
            return KH_E_MALFORMED;
        }
    }
    /* In TLS 1.3 a client hears only after its handshake that its certificate is not liked. */
    return !stream->finished || (!stream->heard && reason > ALERT_REASONS) ? KH_E_UNAUTHENTICATED : KH_E_MALFORMED;
}

/* What a failed call of OpenSSL's means. */
static kh_result judge(kh_tls_stream *stream, int returned)
{
    int error = SSL_get_error(stream->ssl, returned);

    stream->wants_write = error == SSL_ERROR_WANT_WRITE;
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
        return KH_AGAIN;
    }
    stream->broken = error != SSL_ERROR_ZERO_RETURN;
    return error == SSL_ERROR_ZERO_RETURN ? KH_E_CLOSED
           : error == SSL_ERROR_SYSCALL   ? lost(stream)
           : error == SSL_ERROR_SSL       ? refused(stream)
                                          : KH_E_CRYPTO;
}

static void note_finished(kh_tls_stream *stream)
{
    stream->finished = stream->finished || SSL_is_init_finished(stream->ssl);
}

kh_result kh_tls_stream_read(kh_tls_stream *stream, uint8_t *room, size_t cap, size_t *got)
{
    kh_result result = KH_OK;
    int returned = 0;

    *got = 0;
    ERR_clear_error();
    returned = SSL_read_ex(stream->ssl, room, cap, got);
    if (returned != 1) {
        result = judge(stream, returned);
    } else {
        stream->wants_write = false;
        stream->heard = true;
    }
    note_finished(stream);
    stream->held = result == KH_OK && SSL_pending(stream->ssl) > 0;
    return result;
}

kh_result kh_tls_stream_write(kh_tls_stream *stream, const uint8_t *data, size_t len, size_t *sent)
{
    kh_result result = KH_OK;

    *sent = 0;
    ERR_clear_error();
    while (*sent < len && result == KH_OK) {
        size_t some = 0;
        int returned = SSL_write_ex(stream->ssl, data + *sent, len - *sent, &some);

        stream->wants_write = false;
        if (returned != 1) {
            result = judge(stream, returned);
        }
        *sent += some;
    }
    note_finished(stream);
    return *sent > 0 && result == KH_AGAIN ? KH_OK : result;
}

/* ---- Reasons ---- */

void kh_tls_stream_why(const kh_tls_stream *stream, char why[KH_TLS_WHY_MAX])
{
    long verified = stream->ssl != NULL ? SSL_get_verify_result(stream->ssl) : X509_V_OK;
    unsigned long error = ERR_peek_error();
    int reason = ERR_GET_REASON(error);
    const char *text = error != 0 ? ERR_reason_error_string(error) : NULL;

    if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED && verified != X509_V_OK) {
        snprintf(why, KH_TLS_WHY_MAX, "the peer's certificate is not accepted: %s",
                 X509_verify_cert_error_string(verified));
    } else if (error != 0 && reason > ALERT_REASONS) {
        const char *alert = SSL_alert_desc_string_long(reason - ALERT_REASONS);

        snprintf(why, KH_TLS_WHY_MAX, "the peer refuses: %s", strcmp(alert, "unknown") != 0 || text == NULL ? alert : text);
    } else if (error != 0) {
        snprintf(why, KH_TLS_WHY_MAX, "%s", text != NULL ? text : "TLS failed");
    } else if (stream->error != 0) {
        snprintf(why, KH_TLS_WHY_MAX, "%s", strerror(stream->error));
    } else {
        snprintf(why, KH_TLS_WHY_MAX, "the peer closed the connection");
    }
    ERR_clear_error();
}

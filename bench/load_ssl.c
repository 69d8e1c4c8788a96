/* SPDX-License-Identifier: Apache-2.0 */
/* libssl's way: handshake, perhaps a request, close; all that the command line offers. Edge-triggered. */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static void describe(kh_load_result *result, SSL *ssl)
{
    const unsigned char *alpn = NULL;
    unsigned alpn_len = 0;
    int signature = 0;

    snprintf(result->protocol, sizeof(result->protocol), "%s", SSL_get_version(ssl));
    snprintf(result->cipher, sizeof(result->cipher), "%s", SSL_get_cipher_name(ssl));
    snprintf(result->group, sizeof(result->group), "%s",
             OBJ_nid2sn((int)SSL_get_negotiated_group(ssl) & 0xffff));
    if (SSL_get_peer_signature_type_nid(ssl, &signature) == 1) {
        snprintf(result->signature, sizeof(result->signature), "%s", OBJ_nid2sn(signature));
    }
    SSL_get0_alpn_selected(ssl, &alpn, &alpn_len);
    snprintf(result->alpn, sizeof(result->alpn), "%.*s", (int)alpn_len, alpn != NULL ? (const char *)alpn : "");
}

/* What libssl and the socket say about a connection that cannot go on. */
static void fail_ssl(kh_load_engine *e, kh_load_client *c, int ret)
{
    int os_error = errno;
    int why = SSL_get_error(c->ssl, ret);
    unsigned long code = ERR_peek_error();
    int reason = ERR_GET_REASON(code);
    kh_load_error kind = c->phase == HANDSHAKE ? KH_LOAD_PROTOCOL : KH_LOAD_LOST;
    const char *text = code != 0 ? ERR_reason_error_string(code) : "protocol error";

    ERR_clear_error();
    if (why == SSL_ERROR_SYSCALL && os_error != 0) {
        kh_load_fail_socket(e, c, os_error);
        return;
    }
    if (why == SSL_ERROR_SYSCALL || why == SSL_ERROR_ZERO_RETURN || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        kh_load_fail_closed(e, c);
        return;
    }
    if (reason > SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256) {
        kind = KH_LOAD_ALERT;
    } else if (code != 0 && (reason == SSL_R_CERTIFICATE_VERIFY_FAILED || reason == SSL_R_BAD_SIGNATURE ||
                             ERR_GET_LIB(code) != ERR_LIB_SSL)) {
        kind = KH_LOAD_VERIFY;
    }
    kh_load_fail(e, c, kind, text != NULL ? text : "unknown error");
}

static void begin(kh_load_engine *e, kh_load_client *c)
{
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};

    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->ssl = SSL_new(e->ctx);
    if (c->ssl == NULL || SSL_set_fd(c->ssl, c->fd) != 1 ||
        (e->config->sni != NULL && SSL_set_tlsext_host_name(c->ssl, e->config->sni) != 1) ||
        epoll_ctl(e->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0) {
        kh_load_fail(e, c, KH_LOAD_CONNECT, "cannot set up a connection");
        return;
    }
    SSL_set_connect_state(c->ssl);
}

static bool pinned(kh_load_engine *e, kh_load_client *c)
{
    X509 *peer = e->pin != NULL ? SSL_get0_peer_certificate(c->ssl) : NULL;

    return e->pin == NULL || (peer != NULL && X509_cmp(peer, e->pin) == 0);
}

static void handshake_done(kh_load_engine *e, kh_load_client *c)
{
    if (!pinned(e, c)) {
        kh_load_fail(e, c, KH_LOAD_VERIFY, "not the pinned certificate");
        return;
    }
    if (e->result->protocol[0] == '\0') {
        describe(e->result, c->ssl);
    }
    kh_load_handshake_done(e, c);
    c->phase = e->request != NULL ? ASK : CLOSE;
    if (c->phase == CLOSE) {
        SSL_shutdown(c->ssl);
        ERR_clear_error();
    }
}

/* The whole answer is there (the server closed): is it the right one? */
static void judge_answer(kh_load_engine *e, kh_load_client *c)
{
    c->answer[c->answer_len] = '\0';
    if (strncmp(c->answer, "HTTP/1.1 200", 12) != 0 ||
        (e->config->expect != NULL && strstr(c->answer, e->config->expect) == NULL)) {
        kh_load_fail(e, c, KH_LOAD_ANSWER, c->answer_len == 0 ? "closed before the answer" : "not the expected answer");
        return;
    }
    kh_load_succeed(e, c);
}

/* One step of a connection. False: wait for the socket (or the connection has ended). */
static bool step(kh_load_engine *e, kh_load_client *c)
{
    char sink[512];
    size_t room = KH_LOAD_ANSWER_MAX - 1 - c->answer_len;
    int ret = -1;
    int why;

    errno = 0;
    switch (c->phase) {
    case HANDSHAKE:
        ret = SSL_do_handshake(c->ssl);
        if (ret == 1) {
            handshake_done(e, c);
            return c->phase != IDLE;
        }
        break;
    case ASK:
        ret = SSL_write(c->ssl, e->request, (int)e->request_len);
        if (ret > 0) {
            c->phase = ANSWER;
            return true;
        }
        break;
    case ANSWER:
        ret = room > 0 ? SSL_read(c->ssl, c->answer + c->answer_len, (int)room) : SSL_read(c->ssl, sink, sizeof(sink));
        if (ret > 0) {
            c->answer_len += room > 0 ? (size_t)ret : 0;
            return true;
        }
        if (SSL_get_error(c->ssl, ret) == SSL_ERROR_ZERO_RETURN) {
            judge_answer(e, c);
            return false;
        }
        break;
    case CLOSE:
        ret = SSL_read(c->ssl, sink, sizeof(sink));
        if (ret > 0) {
            return true;
        }
        if (SSL_get_error(c->ssl, ret) == SSL_ERROR_ZERO_RETURN) {
            kh_load_succeed(e, c);
            return false;
        }
        break;
    case IDLE:
        return false;
    }
    why = SSL_get_error(c->ssl, ret);
    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
        fail_ssl(e, c, ret);
    }
    return false;
}

static void drive(kh_load_engine *e, kh_load_client *c)
{
    while (c->phase != IDLE && step(e, c)) {
    }
}

static void drop(kh_load_client *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
}

const kh_load_way kh_load_way_ssl = {begin, drive, drop};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the load engine: connect, handshake, perhaps a request, close. It ends when the server has answered
 * our close, so each success is one that the server has seen through too; anything else is counted under its kind.
 */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- Counting ---------------------------------------------------------------------------------------------------- */

void kh_load_note(kh_load_result *result, const char *text, uint64_t count)
{
    size_t i;

    for (i = 0; i < KH_LOAD_DETAILS; i++) {
        if (result->details[i].count == 0) {
            snprintf(result->details[i].text, sizeof(result->details[i].text), "%s", text);
        }
        if (strncmp(result->details[i].text, text, KH_LOAD_DETAIL_LEN - 1) == 0) {
            result->details[i].count += count;
            return;
        }
    }
}

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

/* ---- The steps ------------------------------------------------------------------------------------------------------ */

void kh_load_drop(kh_load_engine *e, kh_load_client *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
    if (c->fd >= 0) {
        close(c->fd);
    }
    c->fd = -1;
    c->phase = IDLE;
    e->active--;
}

static void fail(kh_load_engine *e, kh_load_client *c, kh_load_error kind, const char *text)
{
    e->result->failed++;
    e->result->window.failed++;
    e->result->errors[kind]++;
    kh_load_note(e->result, text, 1);
    kh_load_drop(e, c);
}

static void succeed(kh_load_engine *e, kh_load_client *c)
{
    e->result->done++;
    kh_load_drop(e, c);
}

/* What libssl and the socket say about a connection that cannot go on. */
static void fail_ssl(kh_load_engine *e, kh_load_client *c, int ret)
{
    int os_error = errno;
    int why = SSL_get_error(c->ssl, ret);
    unsigned long code = ERR_peek_error();
    bool handshake = c->phase == HANDSHAKE;
    kh_load_error kind = handshake ? KH_LOAD_PROTOCOL : KH_LOAD_LOST;
    const char *text = "protocol error";

    if (why == SSL_ERROR_SYSCALL && os_error != 0) {
        text = strerror(os_error);
        kind = os_error == ECONNREFUSED ? KH_LOAD_REFUSED
             : !handshake ? KH_LOAD_LOST
             : os_error == ECONNRESET || os_error == EPIPE ? KH_LOAD_RESET : KH_LOAD_CONNECT;
    } else if (why == SSL_ERROR_SYSCALL || why == SSL_ERROR_ZERO_RETURN ||
               ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        text = handshake ? "closed in the handshake" : "closed before the answer";
        kind = handshake ? KH_LOAD_CLOSED : KH_LOAD_LOST;
    } else if (code != 0) {
        text = ERR_reason_error_string(code);
        if (ERR_GET_REASON(code) > SSL_AD_REASON_OFFSET && ERR_GET_REASON(code) < SSL_AD_REASON_OFFSET + 256) {
            kind = KH_LOAD_ALERT;
        } else if (ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED ||
                   ERR_GET_REASON(code) == SSL_R_BAD_SIGNATURE || ERR_GET_LIB(code) != ERR_LIB_SSL) {
            kind = KH_LOAD_VERIFY;
        }
    }
    fail(e, c, kind, text != NULL ? text : "unknown error");
    ERR_clear_error();
}

/* Non-blocking connect; the handshake's first write waits for it. */
void kh_load_begin(kh_load_engine *e, kh_load_client *c)
{
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};

    e->active++;
    e->result->started++;
    c->begun_ns = kh_now_ns();
    c->due_ns = e->config->interval_ns != 0 ? e->next_ns : c->begun_ns;
    e->next_ns += e->config->interval_ns;
    c->answer_len = 0;
    c->phase = HANDSHAKE;
    c->fd = socket(e->address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fail(e, c, KH_LOAD_CONNECT, strerror(errno));
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(c->fd, e->address->ai_addr, e->address->ai_addrlen) != 0 && errno != EINPROGRESS) {
        fail(e, c, errno == ECONNREFUSED ? KH_LOAD_REFUSED : KH_LOAD_CONNECT, strerror(errno));
        return;
    }
    c->ssl = SSL_new(e->ctx);
    if (c->ssl == NULL || SSL_set_fd(c->ssl, c->fd) != 1 ||
        (e->config->sni != NULL && SSL_set_tlsext_host_name(c->ssl, e->config->sni) != 1) ||
        epoll_ctl(e->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0) {
        fail(e, c, KH_LOAD_CONNECT, "cannot set up a connection");
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
    uint64_t now_ns = kh_now_ns();

    if (!pinned(e, c)) {
        fail(e, c, KH_LOAD_VERIFY, "not the pinned certificate");
        return;
    }
    if (e->result->protocol[0] == '\0') {
        describe(e->result, c->ssl);
    }
    kh_hist_add(&e->result->window.latency, now_ns - c->due_ns);
    if (e->measuring) {
        e->result->measured++;
        kh_hist_add(&e->result->latency, now_ns - c->due_ns);
    }
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
        fail(e, c, KH_LOAD_ANSWER, c->answer_len == 0 ? "closed before the answer" : "not the expected answer");
        return;
    }
    succeed(e, c);
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
            succeed(e, c);
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

void kh_load_drive(kh_load_engine *e, kh_load_client *c)
{
    while (c->phase != IDLE && step(e, c)) {
    }
}

void kh_load_time_out(kh_load_engine *e, kh_load_client *c)
{
    fail(e, c, KH_LOAD_TIMEOUT, c->phase == HANDSHAKE ? "time-out in the handshake" : "time-out after it");
}

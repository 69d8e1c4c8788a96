/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load engine: a fixed number of clients, each of which does one full TLS handshake after another on connections of
 * its own. One thread, edge-triggered epoll. A connection ends when the server has answered our close, so each success
 * is one that the server has seen through too; anything else is counted under its kind.
 *
 * At a rate, connections are due at even distances, and a latency counts from then: when all clients wait for a server
 * that stands still, those that could not even begin are not forgotten.
 */
#include "bench.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX 256
#define ANSWER_MAX 4096
#define SWEEP_MS 100 /* how often time-outs are looked for */

typedef enum phase { IDLE, HANDSHAKE, ASK, ANSWER, CLOSE } phase;

typedef struct client {
    phase phase;
    int fd;
    SSL *ssl;
    uint64_t begun_ns;
    uint64_t due_ns; /* the same, or earlier at a rate */
    size_t answer_len;
    char *answer; /* ANSWER_MAX bytes, only when requests are made */
} client;

typedef struct engine {
    const kh_load_config *config;
    kh_load_result *result;
    SSL_CTX *ctx;
    X509 *pin;
    struct addrinfo *address;
    char *request;
    size_t request_len;
    client *clients;
    unsigned active;
    int epoll;
    bool measuring;  /* within the window */
    bool finishing;  /* begin no more */
    uint64_t next_ns; /* at a rate: when the next connection is due */
    uint64_t window_start_ns, window_end_ns;
    uint64_t client_cpu_start_ns;
} engine;

/* ---- Counting ---------------------------------------------------------------------------------------------------- */

static void note_detail(kh_load_result *result, const char *text)
{
    size_t i;

    for (i = 0; i < KH_LOAD_DETAILS; i++) {
        if (result->details[i].count == 0) {
            snprintf(result->details[i].text, sizeof(result->details[i].text), "%s", text);
        }
        if (strncmp(result->details[i].text, text, KH_LOAD_DETAIL_LEN - 1) == 0) {
            result->details[i].count++;
            return;
        }
    }
}

static uint64_t own_cpu_ns(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return ((uint64_t)usage.ru_utime.tv_sec + (uint64_t)usage.ru_stime.tv_sec) * 1000000000u +
           ((uint64_t)usage.ru_utime.tv_usec + (uint64_t)usage.ru_stime.tv_usec) * 1000u;
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

/* ---- One connection ------------------------------------------------------------------------------------------------ */

static void finish(engine *e, client *c)
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

static void fail(engine *e, client *c, kh_load_error kind, const char *text)
{
    e->result->failed++;
    e->result->window.failed++;
    e->result->errors[kind]++;
    note_detail(e->result, text);
    finish(e, c);
}

static void succeed(engine *e, client *c)
{
    e->result->done++;
    finish(e, c);
}

/* What libssl and the socket say about a connection that cannot go on. */
static void fail_ssl(engine *e, client *c, int ret)
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
static void begin(engine *e, client *c)
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

static bool pinned(engine *e, client *c)
{
    X509 *peer = e->pin != NULL ? SSL_get0_peer_certificate(c->ssl) : NULL;

    return e->pin == NULL || (peer != NULL && X509_cmp(peer, e->pin) == 0);
}

static void handshake_done(engine *e, client *c)
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
static void judge_answer(engine *e, client *c)
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
static bool step(engine *e, client *c)
{
    char sink[512];
    size_t room = ANSWER_MAX - 1 - c->answer_len;
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

/* ---- The loop -------------------------------------------------------------------------------------------------------- */

static void open_window(engine *e, uint64_t now_ns)
{
    e->measuring = true;
    e->window_start_ns = now_ns;
    e->client_cpu_start_ns = own_cpu_ns();
    if (e->config->pids != NULL && !kh_pids_start(e->config->pids)) {
        e->result->pids_gone++;
    }
}

static void close_window(engine *e, uint64_t now_ns)
{
    unsigned gone = 0;

    if (e->measuring) {
        e->measuring = false;
        e->result->window_ns = now_ns - e->window_start_ns;
        e->result->client_cpu_ns = own_cpu_ns() - e->client_cpu_start_ns;
        if (e->config->pids != NULL) {
            e->result->server_cpu_ns = kh_pids_used(e->config->pids, &gone);
            e->result->pids_gone += gone;
        }
    }
    e->finishing = true;
}

/* A window of those that are asked for while the load goes on; the whole run's window is another matter. */
static void cut_window(engine *e, uint64_t now_ns)
{
    kh_load_window *window = &e->result->window;

    *e->config->cut = 0;
    window->closed_ns = now_ns;
    e->config->on_window(window);
    memset(window, 0, sizeof(*window));
    window->opened_ns = now_ns;
}

static void check_time(engine *e, uint64_t now_ns, uint64_t begun_ns)
{
    const kh_load_config *config = e->config;

    if (config->cut != NULL && *config->cut != 0) {
        cut_window(e, now_ns);
    }
    if (!e->finishing && !e->measuring && now_ns - begun_ns >= config->warmup_ns) {
        open_window(e, now_ns);
    }
    if (!e->finishing && ((config->stop != NULL && *config->stop != 0) ||
                          (config->max_handshakes != 0 && e->result->started >= config->max_handshakes) ||
                          (config->duration_ns != 0 && e->measuring &&
                           now_ns - e->window_start_ns >= config->duration_ns))) {
        close_window(e, now_ns);
    }
}

static void sweep_timeouts(engine *e, uint64_t now_ns)
{
    unsigned i;

    for (i = 0; i < e->config->clients; i++) {
        client *c = &e->clients[i];

        if (c->phase != IDLE && now_ns - c->begun_ns > e->config->timeout_ns) {
            fail(e, c, KH_LOAD_TIMEOUT, c->phase == HANDSHAKE ? "time-out in the handshake" : "time-out after it");
        }
    }
}

static bool may_begin(const engine *e, uint64_t now_ns)
{
    return !e->finishing && (e->config->interval_ns == 0 || e->next_ns <= now_ns) &&
           (e->config->max_handshakes == 0 || e->result->started < e->config->max_handshakes);
}

/* A fast failure (refused) is begun anew in the next turn only, so that a dead server makes no endless loop. */
static void begin_idle(engine *e, uint64_t now_ns)
{
    unsigned i;

    for (i = 0; i < e->config->clients && may_begin(e, now_ns); i++) {
        if (e->clients[i].phase == IDLE) {
            begin(e, &e->clients[i]);
        }
    }
}

/* How long to sleep when nothing happens, in ms. */
static int patience(const engine *e, uint64_t now_ns, uint64_t failed_before)
{
    /* Failing at once, again and again, must not eat the CPU that the server under test needs. */
    if (e->active == 0 && e->result->failed > failed_before) {
        return 1;
    }
    if (e->config->interval_ns != 0 && !e->finishing && e->active < e->config->clients &&
        e->next_ns < now_ns + (uint64_t)SWEEP_MS * 1000000u) {
        return e->next_ns > now_ns ? (int)((e->next_ns - now_ns + 999999u) / 1000000u) : 0;
    }
    return SWEEP_MS;
}

static bool loop(engine *e)
{
    struct epoll_event events[EVENTS_MAX];
    uint64_t begun_ns = kh_now_ns();
    uint64_t now_ns = begun_ns;
    uint64_t swept_ns = begun_ns;
    uint64_t failed_before = 0;
    int count;
    int i;

    e->next_ns = e->result->window.opened_ns = begun_ns;
    for (;;) {
        check_time(e, now_ns, begun_ns);
        begin_idle(e, now_ns);
        if (e->active == 0 && e->finishing) {
            return true;
        }
        count = epoll_wait(e->epoll, events, EVENTS_MAX, patience(e, now_ns, failed_before));
        failed_before = e->result->failed;
        if (count < 0 && errno != EINTR) {
            perror("epoll_wait");
            return false;
        }
        for (i = 0; i < count; i++) {
            client *c = events[i].data.ptr;

            while (c->phase != IDLE && step(e, c)) {
            }
            if (c->phase == IDLE && may_begin(e, now_ns) && e->result->failed == failed_before &&
                e->config->max_handshakes == 0) {
                begin(e, c);
            }
        }
        now_ns = kh_now_ns();
        if (now_ns - swept_ns >= (uint64_t)SWEEP_MS * 1000000u) {
            sweep_timeouts(e, now_ns);
            swept_ns = now_ns;
        }
    }
}

/* ---- Set-up ---------------------------------------------------------------------------------------------------------- */

static bool set_alpn(SSL_CTX *ctx, const char *list)
{
    unsigned char wire[256];
    size_t used = 0;
    size_t len;

    while (*list != '\0') {
        len = strcspn(list, ",");
        if (len == 0 || used + 1 + len > sizeof(wire)) {
            return false;
        }
        wire[used++] = (unsigned char)len;
        memcpy(wire + used, list, len);
        used += len;
        list += len + (list[len] == ',');
    }
    return SSL_CTX_set_alpn_protos(ctx, wire, (unsigned)used) == 0;
}

static bool set_version(SSL_CTX *ctx, const char *tls)
{
    int version = tls == NULL ? 0 : strcmp(tls, "1.2") == 0 ? TLS1_2_VERSION
                : strcmp(tls, "1.3") == 0 ? TLS1_3_VERSION : -1;

    return version == 0 || (version > 0 && SSL_CTX_set_min_proto_version(ctx, version) == 1 &&
                            SSL_CTX_set_max_proto_version(ctx, version) == 1);
}

static bool set_verify(engine *e)
{
    const kh_load_config *config = e->config;
    FILE *file;

    if (config->pin != NULL) {
        file = fopen(config->pin, "r");
        e->pin = file != NULL ? PEM_read_X509(file, NULL, NULL, NULL) : NULL;
        if (file != NULL) {
            fclose(file);
        }
        if (e->pin == NULL) {
            return false;
        }
    }
    if (config->cafile != NULL) {
        SSL_CTX_set_verify(e->ctx, SSL_VERIFY_PEER, NULL);
        return SSL_CTX_load_verify_locations(e->ctx, config->cafile, NULL) == 1 &&
               (config->sni == NULL ||
                X509_VERIFY_PARAM_set1_host(SSL_CTX_get0_param(e->ctx), config->sni, 0) == 1);
    }
    return true;
}

/* The first setting that OpenSSL refuses, or NULL. */
static const char *set_up_context(engine *e)
{
    const kh_load_config *config = e->config;

    e->ctx = SSL_CTX_new(TLS_client_method());
    if (e->ctx == NULL) {
        return "no context";
    }
    SSL_CTX_set_session_cache_mode(e->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(e->ctx, SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_COMPRESSION);
    if (!set_version(e->ctx, config->tls)) {
        return "--tls";
    }
    if (config->ciphers != NULL && SSL_CTX_set_cipher_list(e->ctx, config->ciphers) != 1) {
        return "--ciphers";
    }
    if (config->ciphersuites != NULL && SSL_CTX_set_ciphersuites(e->ctx, config->ciphersuites) != 1) {
        return "--ciphersuites";
    }
    if (config->groups != NULL && SSL_CTX_set1_groups_list(e->ctx, config->groups) != 1) {
        return "--groups";
    }
    if (config->sigalgs != NULL && SSL_CTX_set1_sigalgs_list(e->ctx, config->sigalgs) != 1) {
        return "--sigalgs";
    }
    if (config->alpn != NULL && !set_alpn(e->ctx, config->alpn)) {
        return "--alpn";
    }
    return set_verify(e) ? NULL : "--cafile or --pin";
}

static bool set_up(engine *e)
{
    const kh_load_config *config = e->config;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    const char *refused = set_up_context(e);
    int found;
    unsigned i;

    if (refused != NULL) {
        fprintf(stderr, "keyhold-bench: OpenSSL refuses %s\n", refused);
        return false;
    }
    found = getaddrinfo(config->host, config->port, &hints, &e->address);
    if (found != 0) {
        fprintf(stderr, "keyhold-bench: %s:%s: %s\n", config->host, config->port, gai_strerror(found));
        return false;
    }
    if (config->request != NULL) {
        found = asprintf(&e->request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", config->request,
                         config->sni != NULL ? config->sni : config->host);
        if (found < 0) {
            e->request = NULL;
            return false;
        }
        e->request_len = (size_t)found;
    }
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->clients = calloc(config->clients, sizeof(*e->clients));
    for (i = 0; e->clients != NULL && i < config->clients; i++) {
        e->clients[i].fd = -1;
        e->clients[i].answer = config->request != NULL ? malloc(ANSWER_MAX) : NULL;
        if (config->request != NULL && e->clients[i].answer == NULL) {
            return false;
        }
    }
    return e->epoll >= 0 && e->clients != NULL;
}

bool kh_load_run(const kh_load_config *config, kh_load_result *result)
{
    engine e = {.config = config, .result = result, .epoll = -1};
    bool ok = false;
    unsigned i;

    memset(result, 0, sizeof(*result));
    if (config->clients == 0 || !set_up(&e)) {
        goto done;
    }
    ok = loop(&e);
done:
    for (i = 0; e.clients != NULL && i < config->clients; i++) {
        if (e.clients[i].phase != IDLE) {
            finish(&e, &e.clients[i]);
        }
        free(e.clients[i].answer);
    }
    free(e.clients);
    free(e.request);
    if (e.epoll >= 0) {
        close(e.epoll);
    }
    if (e.address != NULL) {
        freeaddrinfo(e.address);
    }
    X509_free(e.pin);
    SSL_CTX_free(e.ctx);
    return ok;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The client's way to an agent on another machine: TLS over TCP. The TLS handshake is part of the first write. */
#include "link.h"
#include "tls/stream.h"

#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define KH_TCP_PREFIX "tcp:"
#define KH_HOST_MAX 253 /* bytes of a DNS name */
#define KH_PORT_MAX 5

typedef struct kh_tcp_link {
    kh_link link; /* first */
    char host[KH_HOST_MAX + 1];
    char port[KH_PORT_MAX + 1];
    char *ca_file, *certificate_file, *key_file, *server_name;
    SSL_CTX *ctx;
    bool fixed; /* ctx is the caller's, and stays */
    SSL_SESSION *session; /* of the connection before, to be resumed; NULL: none */
    kh_tls_stream stream;
} kh_tcp_link;

/* ---- TCP ---- */

/* Waits for a connect to end. errno of it, 0: connected, -1: the time is over. */
static int finish_connect(int fd, uint64_t until_ms)
{
    struct pollfd pollfd = {.fd = fd, .events = POLLOUT};
    socklen_t len = sizeof(int);
    int error = 0;
    int ready = 0;

    do {
        uint64_t now = kh_link_now_ms();

        ready = now < until_ms ? poll(&pollfd, 1, until_ms - now < INT_MAX ? (int)(until_ms - now) : INT_MAX) : 0;
    } while (ready < 0 && errno == EINTR);
    if (ready <= 0) {
        return ready == 0 ? -1 : errno;
    }
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 ? error : errno;
}

/* One address. The same results; *fd is the socket if it is 0. */
static int connect_to(const struct addrinfo *address, uint64_t until_ms, int *fd)
{
    const int on = 1;
    int error = 0;

    *fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0) {
        return errno;
    }
    if (connect(*fd, address->ai_addr, address->ai_addrlen) != 0) {
        error = errno == EINPROGRESS || errno == EINTR ? finish_connect(*fd, until_ms) : errno;
    }
    if (error != 0) {
        close(*fd);
        *fd = -1;
        return error;
    }
    setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(*fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    return 0;
}

/* The addresses in turn; each gets its share of the time that is left, so that a dead one leaves time for the next. */
static kh_result tcp_reach(kh_tcp_link *tcp, uint64_t deadline_ms)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    kh_link *link = &tcp->link;
    unsigned left = 0;
    int error = getaddrinfo(tcp->host, tcp->port, &hints, &list);

    if (error != 0) {
        snprintf(link->detail, sizeof(link->detail), "%s: %s", link->name,
                 error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
        return KH_E_UNAVAILABLE;
    }
    for (const struct addrinfo *at = list; at != NULL; at = at->ai_next) {
        left++;
    }
    error = -1;
    for (const struct addrinfo *at = list; at != NULL && link->fd < 0; at = at->ai_next) {
        uint64_t now = kh_link_now_ms();

        error = connect_to(at, now < deadline_ms ? now + (deadline_ms - now) / left-- : now, &link->fd);
    }
    freeaddrinfo(list);
    if (link->fd < 0) {
        snprintf(link->detail, sizeof(link->detail), "%s: %s", link->name,
                 error < 0 ? "the agent does not accept connections in time" : strerror(error));
        return error < 0 ? KH_E_DEADLINE : KH_E_UNAVAILABLE;
    }
    return KH_OK;
}

/* ---- TLS ---- */

/* A session came that the next connection can resume. */
static int on_session(SSL *ssl, SSL_SESSION *session)
{
    kh_tcp_link *tcp = SSL_get_app_data(ssl);

    SSL_SESSION_free(tcp->session);
    tcp->session = session;
    return 1; /* it is ours now */
}

static bool same_authorities(SSL_CTX *a, SSL_CTX *b)
{
    STACK_OF(X509_OBJECT) *of_a = X509_STORE_get0_objects(SSL_CTX_get_cert_store(a));
    STACK_OF(X509_OBJECT) *of_b = X509_STORE_get0_objects(SSL_CTX_get_cert_store(b));
    bool same = sk_X509_OBJECT_num(of_a) == sk_X509_OBJECT_num(of_b);

    for (int i = 0; same && i < sk_X509_OBJECT_num(of_a); i++) {
        same = X509_cmp(X509_OBJECT_get0_X509(sk_X509_OBJECT_value(of_a, i)),
                        X509_OBJECT_get0_X509(sk_X509_OBJECT_value(of_b, i))) == 0;
    }
    return same;
}

/*
 * A session is of the certificates of before: with a renewed one the agent would go on to see the old one, until that
 * has expired and it refuses us; and an authority that is believed no more would go on to count.
 */
static void drop_old_session(kh_tcp_link *tcp, SSL_CTX *next)
{
    if (tcp->ctx != NULL && X509_cmp(SSL_CTX_get0_certificate(tcp->ctx), SSL_CTX_get0_certificate(next)) == 0 &&
        same_authorities(tcp->ctx, next)) {
        return;
    }
    SSL_SESSION_free(tcp->session);
    tcp->session = NULL;
}

/* Reads the files, again for each connection: they may have been renewed. While they cannot be read the old ones do. */
static kh_result tcp_context(kh_tcp_link *tcp, char *detail)
{
    const kh_client_tls tls = {
        .ca_file = tcp->ca_file, .certificate_file = tcp->certificate_file, .key_file = tcp->key_file};
    SSL_CTX *ctx = NULL;
    kh_result result = KH_OK;

    if (tcp->fixed) {
        return KH_OK;
    }
    result = kh_client_tls_context(&tls, &ctx, detail, KH_LINK_DETAIL_MAX);
    if (result != KH_OK) {
        return tcp->ctx != NULL ? KH_OK : result;
    }
    SSL_CTX_sess_set_new_cb(ctx, on_session);
    drop_old_session(tcp, ctx);
    SSL_CTX_free(tcp->ctx);
    tcp->ctx = ctx;
    return KH_OK;
}

static kh_result tcp_connect(kh_link *link, uint64_t deadline_ms)
{
    kh_tcp_link *tcp = (kh_tcp_link *)link;
    SSL *ssl = NULL;
    kh_result result = tcp_context(tcp, link->detail);

    if (result == KH_OK) {
        result = tcp_reach(tcp, deadline_ms);
    }
    if (result != KH_OK) {
        return result;
    }
    ssl = SSL_new(tcp->ctx);
    if (ssl == NULL) {
        return KH_E_MEMORY;
    }
    result = kh_client_tls_prepare(ssl, tcp->server_name != NULL ? tcp->server_name : tcp->host);
    if (result != KH_OK) {
        SSL_free(ssl);
        snprintf(link->detail, sizeof(link->detail), "%s: not a name that a certificate can have", link->name);
        return result;
    }
    SSL_set_app_data(ssl, tcp);
    if (tcp->session != NULL) {
        (void)SSL_set_session(ssl, tcp->session);
    }
    return kh_tls_stream_start(&tcp->stream, ssl, link->fd); /* takes ssl */
}

/* Takes note of what the stream says of itself. */
static kh_result noted(kh_tcp_link *tcp, kh_result result)
{
    char why[KH_TLS_WHY_MAX];

    tcp->link.held = tcp->stream.held;
    tcp->link.wants_write = tcp->stream.wants_write;
    if (result != KH_OK && result != KH_AGAIN && tcp->link.detail[0] == '\0') {
        kh_tls_stream_why(&tcp->stream, why);
        snprintf(tcp->link.detail, sizeof(tcp->link.detail), "%s: %.180s", tcp->link.name, why);
    }
    return result;
}

static kh_result tcp_read(kh_link *link, uint8_t *room, size_t cap, size_t *got)
{
    kh_tcp_link *tcp = (kh_tcp_link *)link;

    return noted(tcp, kh_tls_stream_read(&tcp->stream, room, cap, got));
}

static kh_result tcp_write(kh_link *link, const uint8_t *data, size_t len, size_t *sent)
{
    kh_tcp_link *tcp = (kh_tcp_link *)link;

    return noted(tcp, kh_tls_stream_write(&tcp->stream, data, len, sent));
}

/* Not politely: in a forked child the connection is the parent's. */
static void tcp_disconnect(kh_link *link)
{
    kh_tls_stream_end(&((kh_tcp_link *)link)->stream, false);
    if (link->fd >= 0) {
        close(link->fd);
    }
    link->fd = -1;
    link->held = link->wants_write = false;
}

static void tcp_free(kh_link *link)
{
    kh_tcp_link *tcp = (kh_tcp_link *)link;

    SSL_SESSION_free(tcp->session);
    SSL_CTX_free(tcp->ctx);
    free(tcp->ca_file);
    free(tcp->certificate_file);
    free(tcp->key_file);
    free(tcp->server_name);
    free(tcp);
}

/* ---- Making one ---- */

/* "tcp:HOST:PORT" or "tcp:[IPV6]:PORT". */
static bool tcp_parse(const char *address, kh_tcp_link *tcp)
{
    const size_t prefix_len = sizeof(KH_TCP_PREFIX) - 1;
    const char *host = address + prefix_len;
    const char *colon = NULL;
    size_t host_len = 0;
    size_t port_len = 0;

    if (strncmp(address, KH_TCP_PREFIX, prefix_len) != 0 || (colon = strrchr(host, ':')) == NULL) {
        return false;
    }
    host_len = (size_t)(colon - host);
    port_len = strlen(colon + 1);
    if (host_len > 2 && host[0] == '[' && host[host_len - 1] == ']') {
        host++;
        host_len -= 2;
    } else if (strcspn(host, ":[]") < host_len) {
        return false;
    }
    if (host_len == 0 || host_len > KH_HOST_MAX || port_len == 0 || port_len > KH_PORT_MAX ||
        strspn(colon + 1, "0123456789") != port_len || atoi(colon + 1) == 0 || atoi(colon + 1) > 65535) {
        return false;
    }
    memcpy(tcp->host, host, host_len);
    memcpy(tcp->port, colon + 1, port_len);
    snprintf(tcp->link.name, sizeof(tcp->link.name), "%.120s", address + prefix_len);
    return true;
}

static bool copy(const char *text, char **into)
{
    *into = text != NULL ? strdup(text) : NULL;
    return (*into == NULL) == (text == NULL);
}

kh_result kh_link_tcp(const char *address, const kh_client_tls *tls, kh_link **link, char *detail)
{
    static const kh_link_ops ops = {tcp_connect, tcp_read, tcp_write, tcp_disconnect, tcp_free};
    kh_tcp_link *tcp = calloc(1, sizeof(*tcp));
    kh_result result = KH_OK;

    *link = NULL;
    if (tcp == NULL) {
        return KH_E_MEMORY;
    }
    tcp->link.ops = &ops;
    tcp->link.fd = -1;
    if (!tcp_parse(address, tcp)) {
        snprintf(detail, KH_LINK_DETAIL_MAX, "%.200s: not an address of the form tcp:HOST:PORT", address);
        result = KH_E_INVALID;
    } else if (!copy(tls->ca_file, &tcp->ca_file) || !copy(tls->certificate_file, &tcp->certificate_file) ||
               !copy(tls->key_file, &tcp->key_file) || !copy(tls->server_name, &tcp->server_name)) {
        result = KH_E_MEMORY;
    }
    if (result == KH_OK && tls->context != NULL) {
        SSL_CTX_up_ref(tls->context);
        SSL_CTX_sess_set_new_cb(tls->context, on_session);
        tcp->ctx = tls->context;
        tcp->fixed = true;
    }
    if (result != KH_OK) {
        tcp_free(&tcp->link);
        return result;
    }
    *link = &tcp->link;
    return KH_OK;
}

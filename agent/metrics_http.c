/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serving the metrics: as much HTTP/1.1 as a scraper needs, one request and one response for each connection.
 * Everything is bounded on its own, so that nobody here takes anything from callers: so many connections,
 * each with a request of so many bytes and so much time; while all are taken, further ones wait in the
 * listener's backlog. The document is made at most ten times a second, however often it is asked for.
 */
#include "metrics.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNS_MAX 16
#define REQUEST_MAX 8192  /* bytes of request line and headers */
#define WRITE_MOST 131072 /* bytes in one turn of the loop */
#define REQUEST_MS 2000   /* to say what it wants */
#define RESPONSE_MS 10000 /* and to take the answer */
#define LINGER_MS 1000    /* and to close, so that what it still sends does not reset the answer */
#define DOCUMENT_MS 100   /* how old a document may be */
#define SWEEP_S 0.25

/* One document, for all who are being sent it. */
typedef struct document {
    char *data;
    size_t len;
    uint64_t made_ms;
    uint32_t users;
} document;

typedef enum http_state { HTTP_FREE, HTTP_READ, HTTP_WRITE, HTTP_LINGER } http_state;

typedef struct http_conn {
    ev_io io;
    struct kh_metrics *metrics;
    http_state state;
    uint64_t until_ms;
    size_t in_len;
    char head[256];
    size_t head_len;
    const char *body; /* of a static text, or of the document */
    size_t body_len;
    document *document; /* NULL: none is used */
    size_t sent;        /* of head and body */
    char in[REQUEST_MAX];
} http_conn;

typedef struct http_listener {
    ev_io io;
    char *address;
    struct http_listener *next;
} http_listener;

typedef struct kh_metrics {
    kh_front *front;
    http_listener *listeners;
    document *newest;
    uint32_t open;
    bool paused; /* out of descriptors: until the next sweep */
    ev_timer sweep;
    http_conn conns[CONNS_MAX];
} kh_metrics;

/* ---- Documents ---- */

static void release(document *doc)
{
    if (doc != NULL && --doc->users == 0) {
        free(doc->data);
        free(doc);
    }
}

/* Counted for the caller; NULL: no memory. */
static document *current(kh_metrics *metrics)
{
    uint64_t now_ms = kh_front_ms(metrics->front);
    document *doc = metrics->newest;

    if (doc == NULL || now_ms - doc->made_ms >= DOCUMENT_MS) {
        metrics->newest = NULL;
        release(doc);
        doc = calloc(1, sizeof *doc);
        if (doc == NULL || (doc->data = kh_metrics_document(metrics->front, &doc->len)) == NULL) {
            free(doc);
            return NULL;
        }
        doc->made_ms = now_ms;
        doc->users = 1;
        metrics->newest = doc;
    }
    doc->users++;
    return doc;
}

/* ---- Accepting ---- */

static void listen_or_not(kh_metrics *metrics)
{
    bool room = metrics->open < CONNS_MAX && !metrics->paused;

    for (http_listener *listener = metrics->listeners; listener != NULL; listener = listener->next) {
        if (room) {
            ev_io_start(metrics->front->loop, &listener->io);
        } else {
            ev_io_stop(metrics->front->loop, &listener->io);
        }
    }
}

static void finish(http_conn *conn)
{
    kh_metrics *metrics = conn->metrics;

    ev_io_stop(metrics->front->loop, &conn->io);
    close(conn->io.fd);
    release(conn->document);
    conn->document = NULL;
    conn->state = HTTP_FREE;
    metrics->open--;
    listen_or_not(metrics);
}

static void on_conn(struct ev_loop *loop, ev_io *io, int events);

static void open_conn(kh_metrics *metrics, int fd)
{
    http_conn *conn = metrics->conns;

    while (conn->state != HTTP_FREE) {
        conn++;
    }
    conn->metrics = metrics;
    conn->state = HTTP_READ;
    conn->in_len = conn->sent = 0;
    conn->until_ms = kh_front_ms(metrics->front) + REQUEST_MS;
    ev_io_init(&conn->io, on_conn, fd, EV_READ);
    conn->io.data = conn;
    ev_io_start(metrics->front->loop, &conn->io);
    metrics->open++;
}

static void on_accept(struct ev_loop *loop, ev_io *io, int events)
{
    kh_metrics *metrics = io->data;

    (void)events;
    metrics->front->now_ns = kh_front_clock();
    while (metrics->open < CONNS_MAX) {
        int fd = accept4(io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            metrics->paused = errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;
            break;
        }
        open_conn(metrics, fd);
    }
    listen_or_not(metrics);
    if (!ev_is_active(&metrics->sweep)) {
        ev_timer_again(loop, &metrics->sweep);
    }
}

static void on_sweep(struct ev_loop *loop, ev_timer *timer, int events)
{
    kh_metrics *metrics = timer->data;

    (void)events;
    metrics->front->now_ns = kh_front_clock();
    metrics->paused = false;
    for (size_t i = 0; i < CONNS_MAX; i++) {
        if (metrics->conns[i].state != HTTP_FREE &&
            metrics->conns[i].until_ms <= kh_front_ms(metrics->front)) {
            finish(&metrics->conns[i]);
        }
    }
    listen_or_not(metrics);
    if (metrics->open == 0) {
        ev_timer_stop(loop, timer);
    }
}

/* ---- The response ---- */

static const struct http_status {
    int code;
    const char *reason, *more, *body;
} statuses[] = {
    {200, "OK", "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n", NULL},
    {400, "Bad Request", "Content-Type: text/plain\r\n", "this is no HTTP/1.1 request\n"},
    {404, "Not Found", "Content-Type: text/plain\r\n", "the metrics are at /metrics\n"},
    {405, "Method Not Allowed", "Allow: GET, HEAD\r\nContent-Type: text/plain\r\n",
     "only GET and HEAD are known here\n"},
    {431, "Request Header Fields Too Large", "Content-Type: text/plain\r\n",
     "request line and headers may have 8192 bytes\n"},
    {503, "Service Unavailable", "Content-Type: text/plain\r\n", "out of memory\n"},
};

static void respond(http_conn *conn, int code, bool with_body)
{
    const struct http_status *status = statuses;
    int len = 0;

    while (status->code != code) {
        status++;
    }
    if (code == 200) {
        conn->document = current(conn->metrics);
        if (conn->document == NULL) {
            respond(conn, 503, with_body);
            return;
        }
    }
    conn->body = conn->document != NULL ? conn->document->data : status->body;
    conn->body_len = conn->document != NULL ? conn->document->len : strlen(status->body);
    len = snprintf(conn->head, sizeof conn->head,
                   "HTTP/1.1 %d %s\r\n%sContent-Length: %zu\r\nConnection: close\r\n\r\n", code,
                   status->reason, status->more, conn->body_len);
    conn->head_len = (size_t)len;
    conn->body_len = with_body ? conn->body_len : 0;
    conn->state = HTTP_WRITE;
    conn->until_ms = kh_front_ms(conn->metrics->front) + RESPONSE_MS;
}

/* Sends the rest of one part, [from, from + len) of all that is to be sent. False: not all of it left. */
static bool send_part(http_conn *conn, const char *data, size_t len, size_t from, bool *failed)
{
    size_t left = from + len - conn->sent;
    ssize_t sent = 0;

    if (conn->sent >= from + len) {
        return true;
    }
    sent = send(conn->io.fd, data + (conn->sent - from), left < WRITE_MOST ? left : WRITE_MOST,
                MSG_NOSIGNAL | MSG_DONTWAIT);
    *failed = sent < 0 && errno != EAGAIN && errno != EINTR;
    conn->sent += sent > 0 ? (size_t)sent : 0;
    return conn->sent == from + len;
}

static void write_some(http_conn *conn)
{
    kh_metrics *metrics = conn->metrics;
    bool failed = false;

    if (send_part(conn, conn->head, conn->head_len, 0, &failed) &&
        send_part(conn, conn->body, conn->body_len, conn->head_len, &failed)) {
        conn->state = HTTP_LINGER;
        conn->until_ms = kh_front_ms(metrics->front) + LINGER_MS;
        shutdown(conn->io.fd, SHUT_WR);
    }
    if (failed) {
        finish(conn);
        return;
    }
    ev_io_stop(metrics->front->loop, &conn->io);
    ev_io_set(&conn->io, conn->io.fd, conn->state == HTTP_WRITE ? EV_WRITE : EV_READ);
    ev_io_start(metrics->front->loop, &conn->io);
}

/* ---- The request ---- */

/* Up to the next space of the line; false: there is none. */
static bool word(char **at, char **start)
{
    char *end = strchr(*at, ' ');

    if (end == NULL || end == *at) {
        return false;
    }
    *start = *at;
    *end = '\0';
    *at = end + 1;
    return true;
}

/* The status for a request line (zero-terminated, which it cuts up). */
static int judge(char *line, bool *with_body)
{
    char *method = NULL, *target = NULL, *path = NULL;

    *with_body = true;
    if (!word(&line, &method) || !word(&line, &target) ||
        (strcmp(line, "HTTP/1.1") != 0 && strcmp(line, "HTTP/1.0") != 0)) {
        return 400;
    }
    *with_body = strcmp(method, "HEAD") != 0;
    if (*with_body && strcmp(method, "GET") != 0) {
        return 405;
    }
    path = strncmp(target, "http://", 7) == 0 ? strchr(target + 7, '/') : target; /* as to a proxy */
    if (path == NULL) {
        return 404;
    }
    path[strcspn(path, "?")] = '\0';
    return strcmp(path, "/metrics") == 0 ? 200 : 404;
}

static void answer(http_conn *conn)
{
    bool with_body = true;
    int code = 400;

    if (memchr(conn->in, '\0', conn->in_len) == NULL) {
        *(char *)memchr(conn->in, '\n', conn->in_len) = '\0';
        conn->in[strcspn(conn->in, "\r")] = '\0';
        code = judge(conn->in, &with_body);
    }
    respond(conn, code, with_body);
    write_some(conn);
}

/* The end of the headers: an empty line. */
static bool complete(const http_conn *conn)
{
    return memmem(conn->in, conn->in_len, "\r\n\r\n", 4) != NULL ||
           memmem(conn->in, conn->in_len, "\n\n", 2) != NULL;
}

static void read_some(http_conn *conn)
{
    ssize_t got = recv(conn->io.fd, conn->in + conn->in_len, sizeof conn->in - conn->in_len, 0);

    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (got <= 0) {
        finish(conn);
        return;
    }
    if (conn->state == HTTP_LINGER) { /* whatever it still says */
        conn->in_len = 0;
        return;
    }
    conn->in_len += (size_t)got;
    if (complete(conn)) {
        answer(conn);
    } else if (conn->in_len == sizeof conn->in) {
        respond(conn, 431, true);
        write_some(conn);
    }
}

static void on_conn(struct ev_loop *loop, ev_io *io, int events)
{
    http_conn *conn = io->data;

    (void)loop;
    (void)events;
    conn->metrics->front->now_ns = kh_front_clock();
    if (conn->state == HTTP_WRITE) {
        write_some(conn);
    } else {
        if (conn->state == HTTP_LINGER) {
            conn->in_len = 0;
        }
        read_some(conn);
    }
}

/* ---- What the configuration names ---- */

static kh_metrics *make(kh_front *front)
{
    kh_metrics *metrics = calloc(1, sizeof *metrics);

    if (metrics != NULL) {
        metrics->front = front;
        ev_timer_init(&metrics->sweep, on_sweep, SWEEP_S, SWEEP_S);
        metrics->sweep.data = metrics;
    }
    return metrics;
}

kh_result kh_metrics_listen(kh_front *front, int fd, const char *address)
{
    kh_metrics *metrics = front->metrics != NULL ? front->metrics : make(front);
    http_listener *listener = NULL;
    kh_result result = KH_E_MEMORY;

    front->metrics = metrics;
    for (listener = metrics != NULL ? metrics->listeners : NULL; listener != NULL;
         listener = listener->next) {
        if (strcmp(listener->address, address) == 0) { /* the same socket, or one in its place; kh_metrics_apply starts it */
            ev_io_stop(front->loop, &listener->io);
            close(listener->io.fd);
            ev_io_set(&listener->io, fd, EV_READ);
            return KH_OK;
        }
    }
    listener = metrics != NULL ? calloc(1, sizeof *listener) : NULL;
    if (listener != NULL && (listener->address = strdup(address)) != NULL) {
        ev_io_init(&listener->io, on_accept, fd, EV_READ);
        listener->io.data = metrics;
        listener->next = metrics->listeners;
        metrics->listeners = listener;
        result = KH_OK;
    } else {
        free(listener);
        close(fd);
    }
    return result;
}

void kh_metrics_apply(kh_front *front)
{
    kh_metrics *metrics = front->metrics;

    for (http_listener **at = metrics != NULL ? &metrics->listeners : NULL; at != NULL && *at != NULL;) {
        http_listener *listener = *at;
        bool named = false;

        for (size_t i = 0; i < front->config->metrics_count; i++) {
            named = named || strcmp(front->config->metrics[i].address, listener->address) == 0;
        }
        if (named) {
            at = &listener->next;
            continue;
        }
        *at = listener->next;
        ev_io_stop(front->loop, &listener->io);
        close(listener->io.fd);
        free(listener->address);
        free(listener);
    }
    if (metrics != NULL) {
        listen_or_not(metrics);
    }
}

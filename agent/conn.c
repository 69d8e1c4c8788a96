/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections. A connection is read as long as its peer takes its replies; it is written after completions and
 * at the end of a turn of the loop (kh_conns_flush); it is freed only then, so that nobody holds a pointer to a
 * freed one.
 */
#include "front.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READS_PER_TURN 4
#define SWEEP_S 0.25
#define CLOSES_PER_TURN 64
#define SWEEP_AGAIN_S 0.001 /* when it left some */

static void list_append(kh_conn_list *list, kh_conn *conn)
{
    conn->list = list;
    conn->next = NULL;
    conn->prev = list->last;
    *(list->last != NULL ? &list->last->next : &list->first) = conn;
    list->last = conn;
    list->count++;
}

static void list_remove(kh_conn *conn)
{
    kh_conn_list *list = conn->list;

    *(conn->prev != NULL ? &conn->prev->next : &list->first) = conn->next;
    *(conn->next != NULL ? &conn->next->prev : &list->last) = conn->prev;
    conn->next = conn->prev = NULL;
    list->count--;
}

static void mark_dirty(kh_conn *conn)
{
    if (!conn->dirty) {
        conn->dirty = true;
        conn->dirty_next = conn->front->dirty;
        conn->front->dirty = conn;
    }
}

static void want_events(kh_conn *conn, int events)
{
    if (conn->io.events == events && (ev_is_active(&conn->io) || events == 0)) {
        return;
    }
    ev_io_stop(conn->front->loop, &conn->io);
    ev_io_set(&conn->io, conn->io.fd, events);
    if (events != 0) {
        ev_io_start(conn->front->loop, &conn->io);
    }
}

void kh_conn_reply(kh_conn *conn, const kh_reply *reply)
{
    kh_result result = KH_OK;

    if (conn->state == KH_CONN_CLOSED) {
        return;
    }
    result = kh_server_reply(conn->server, reply);
    if ((unsigned)reply->op < KH_OPS_ROOM && (unsigned)reply->status < KH_RESULTS_ROOM) {
        conn->front->stats.results[reply->op][reply->status]++;
    }
    if (result == KH_E_ORDER) {
        kh_log(KH_LOG_ERROR, "reply_out_of_order", KH_LT("operation", kh_op_name(reply->op)));
    } else if (result != KH_OK && result != KH_E_CLOSED) {
        conn->state = KH_CONN_LAST;
    }
    mark_dirty(conn);
}

void kh_conn_close(kh_conn *conn, const char *why)
{
    kh_front *front = conn->front;

    if (conn->state == KH_CONN_CLOSED) {
        return;
    }
    kh_log(KH_LOG_DEBUG, "connection_close", KH_LT("why", why), KH_LOG_PEER(conn));
    kh_operation_abandon(conn);
    if (conn->counted) {
        conn->identity->connections--;
        conn->counted = false;
    }
    conn->state = KH_CONN_CLOSED;
    ev_io_stop(front->loop, &conn->io);
    mark_dirty(conn);
}

/*
 * Takes requests out of the session until it wants more bytes, the connection ends, or its share of this turn is
 * used up: the end of the turn sees to the rest.
 */
static void process(kh_conn *conn)
{
    kh_front *front = conn->front;
    kh_request req;
    uint32_t suppressed = 0;

    conn->more = false;
    while (conn->state < KH_CONN_LAST) {
        kh_result result = KH_OK;
        bool was_handshaking = conn->state == KH_CONN_HELLO;

        kh_share_spend(conn);
        if (!kh_share_has_time(conn)) {
            conn->more = true;
            mark_dirty(conn);
            break;
        }
        result = kh_server_next(conn->server, &req);
        if (result == KH_AGAIN) {
            break;
        }
        mark_dirty(conn);
        if (result == KH_E_UNSUPPORTED || result == KH_E_TOO_LARGE) {
            continue; /* answered by the session */
        }
        if (result != KH_OK) {
            front->stats.closed_protocol++;
            if (kh_log_allowed(&front->log_protocol, kh_front_ms(front), &suppressed)) {
                kh_log(KH_LOG_WARN, "protocol_error", KH_LT("why", kh_result_name(result)),
                       KH_LOG_PEER(conn), KH_LN("suppressed", suppressed));
            }
            conn->state = KH_CONN_LAST;
        } else if (req.op == KH_OP_HELLO) {
            kh_auth_hello(conn, &req);
        } else if (req.op == KH_OP_AUTH) {
            kh_auth_proof(conn, &req);
        } else {
            kh_admit(conn, &req);
        }
        if (was_handshaking && conn->state == KH_CONN_READY) {
            list_remove(conn);
            list_append(&front->ready, conn);
        }
    }
}

static void touch(kh_conn *conn)
{
    kh_front *front = conn->front;

    if (conn->state == KH_CONN_READY) {
        conn->active_ms = kh_front_ms(front);
        list_remove(conn);
        list_append(&front->ready, conn);
    }
}

static void read_some(kh_conn *conn)
{
    kh_transport *transport = conn->transport;
    bool came = false;

    for (int i = 0; conn->state < KH_CONN_LAST && !conn->more && (i < READS_PER_TURN || transport->held); i++) {
        size_t cap = 0, got = 0;
        uint8_t *room = kh_server_read_buffer(conn->server, &cap);
        kh_result result = KH_OK;

        if (room == NULL) {
            if (kh_server_wants_read(conn->server)) {
                kh_conn_close(conn, "out of memory");
            }
            return;
        }
        result = transport->ops->read(transport, room, cap, &got);
        if (result == KH_AGAIN) {
            break;
        }
        if (result != KH_OK) {
            kh_conn_close(conn, result == KH_E_CLOSED ? "end of file" : "read failed");
            return;
        }
        came = true;
        kh_server_fed(conn->server, got);
        process(conn);
        if (got < cap && !transport->held) {
            break;
        }
    }
    if (came) {
        touch(conn);
    }
}

static void write_some(kh_conn *conn)
{
    kh_bytes out = kh_server_output(conn->server);
    kh_result result = KH_OK;
    size_t sent = 0;

    if (out.len == 0) {
        conn->stalled_ms = 0;
        return;
    }
    result = conn->transport->ops->write(conn->transport, out.data, out.len, &sent);
    if (result != KH_OK && result != KH_AGAIN) {
        kh_conn_close(conn, "write failed");
        return;
    }
    if (sent > 0) {
        kh_server_sent(conn->server, sent);
        conn->stalled_ms = 0;
    }
    if (kh_server_output(conn->server).len > 0 && conn->stalled_ms == 0) {
        conn->stalled_ms = kh_front_ms(conn->front);
    }
}

static void on_conn(struct ev_loop *loop, ev_io *io, int events)
{
    kh_conn *conn = (kh_conn *)io->data;

    (void)loop;
    if (!kh_share_has_time(conn)) {
        return; /* the next turn is told again */
    }
    conn->front->now_ns = kh_share_begin(conn->front);
    if ((events & EV_WRITE) != 0) { /* here, not at the end of the turn: it takes the caller's own time */
        write_some(conn);
        mark_dirty(conn);
    }
    if ((events & EV_READ) != 0 || conn->transport->wants_write) {
        read_some(conn);
    }
    if (conn->transport->wants_write) {
        mark_dirty(conn); /* the end of this turn asks for the event */
    }
    kh_share_spend(conn);
}

static void destroy(kh_conn *conn)
{
    list_remove(conn);
    conn->transport->ops->free(conn->transport);
    close(conn->io.fd);
    kh_listener_release(conn->listener);
    kh_server_free(conn->server);
    free(conn);
}

/* After the write: what it is interested in now. */
static void settle(kh_conn *conn)
{
    bool unsent = kh_server_output(conn->server).len > 0;

    if (conn->state == KH_CONN_LAST && !unsent) {
        kh_conn_close(conn, "done");
        return;
    }
    want_events(conn, (unsent || conn->transport->wants_write ? EV_WRITE : 0) |
                          (conn->state < KH_CONN_LAST && !conn->more && kh_server_wants_read(conn->server) ? EV_READ : 0));
}

/* Written, and requests taken that waited: for the peer to read, or for this turn. */
static void flush(kh_conn *conn)
{
    bool held = conn->more || !kh_server_wants_read(conn->server);

    write_some(conn);
    if (held && conn->state < KH_CONN_LAST) {
        process(conn);
    }
    if (conn->transport->held && !conn->more && conn->state < KH_CONN_LAST && kh_server_wants_read(conn->server)) {
        read_some(conn); /* bytes that waited for the same, and that no event will tell of */
    }
    if (conn->state != KH_CONN_CLOSED) {
        settle(conn);
    }
    kh_share_spend(conn);
}

/* Those with requests left, and no time left, are the first of the next turn, in their order. */
void kh_conns_flush(kh_front *front)
{
    kh_conn *later = NULL, **end = &later;

    kh_share_begin(front);
    while (front->dirty != NULL) {
        kh_conn *conn = front->dirty;

        front->dirty = conn->dirty_next;
        if (conn->more && conn->state < KH_CONN_LAST && !kh_share_has_time(conn)) {
            if (conn->stalled_ms == 0) {
                write_some(conn);
            }
            conn->dirty_next = NULL;
            *end = conn;
            end = &conn->dirty_next;
            continue;
        }
        conn->dirty = false;
        if (conn->state == KH_CONN_CLOSED) {
            destroy(conn);
        } else {
            flush(conn);
        }
    }
    front->dirty = later;
    if (later != NULL) {
        ev_idle_start(front->loop, &front->busy);
    } else {
        ev_idle_stop(front->loop, &front->busy);
    }
}

bool kh_conns_pending(kh_front *front)
{
    const kh_conn_list *lists[] = {&front->handshaking, &front->ready};

    for (size_t i = 0; i < 2; i++) {
        for (kh_conn *conn = lists[i]->first; conn != NULL; conn = conn->next) {
            if (kh_server_output(conn->server).len > 0) {
                return true;
            }
        }
    }
    return false;
}

/* Whether it could still become what it is: its identity is there, and known in the same way, by the same
 * token. */
static bool still_known(const kh_conn *conn)
{
    return conn->by_token ? conn->identity->credential != NULL && conn->identity->same_token
                          : conn->transport->ops->identify(conn->transport, conn->front) == conn->identity;
}

void kh_conns_apply(kh_front *front)
{
    kh_conn *next = NULL;

    for (kh_conn *conn = front->ready.first; conn != NULL; conn = next) {
        next = conn->next;
        if (conn->state == KH_CONN_READY && !still_known(conn)) {
            kh_conn_close(conn, "identity removed, token or certificates changed");
        }
    }
}

/* ---- Timeouts ---- */

/* Connections that are older than the limit, oldest first, so many at a time. */
static void sweep_list(kh_front *front, kh_conn_list *list, uint64_t limit_ms, uint64_t *counter,
                       const char *why)
{
    uint64_t now_ms = kh_front_ms(front);
    uint32_t closed = 0;
    kh_conn *next = NULL;

    for (kh_conn *conn = list->first;
         conn != NULL && conn->active_ms + limit_ms <= now_ms && closed < CLOSES_PER_TURN; conn = next) {
        next = conn->next;
        if (conn->state != KH_CONN_CLOSED && conn->job_count == 0) {
            ++*counter;
            kh_conn_close(conn, why);
            closed++;
        }
    }
    front->sweep_again = front->sweep_again || closed == CLOSES_PER_TURN;
}

static void log_stalled(const kh_conn *conn)
{
    kh_front *front = conn->front;
    uint32_t suppressed = 0;

    if (kh_log_allowed(&front->log_stalled, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_INFO, "connection_stalled",
               KH_LT("identity", conn->identity != NULL ? conn->identity->name : "unknown"),
               KH_LOG_PEER(conn), KH_LN("suppressed", suppressed));
    }
}

static void sweep_stalled(kh_front *front)
{
    uint64_t now_ms = kh_front_ms(front), limit_ms = (uint64_t)front->config->stall_timeout_ms;
    kh_conn_list *lists[] = {&front->handshaking, &front->ready};

    for (size_t i = 0; i < 2; i++) {
        for (kh_conn *conn = lists[i]->first; conn != NULL; conn = conn->next) {
            if (conn->state != KH_CONN_CLOSED && conn->stalled_ms != 0 &&
                conn->stalled_ms + limit_ms <= now_ms) {
                front->stats.closed_stalled++;
                log_stalled(conn);
                kh_conn_close(conn, "does not read");
            }
        }
    }
}

static void on_sweep(struct ev_loop *loop, ev_timer *timer, int events)
{
    kh_front *front = timer->data;
    long idle_s = front->config->idle_timeout_s;
    bool is_tick = !front->sweep_again;

    (void)events;
    front->now_ns = kh_front_clock();
    front->sweep_again = false;
    sweep_list(front, &front->handshaking, (uint64_t)front->config->handshake_timeout_ms,
               &front->stats.closed_silent, "silent");
    if (idle_s > 0) {
        sweep_list(front, &front->ready, (uint64_t)idle_s * 1000, &front->stats.closed_idle, "idle");
    }
    if (is_tick) {
        sweep_stalled(front);
        kh_dispatch_rates(front);
        kh_backends_watch(front);
    }
    ev_timer_stop(loop, timer);
    ev_timer_set(timer, front->sweep_again ? SWEEP_AGAIN_S : SWEEP_S, 0.);
    ev_timer_start(loop, timer);
}

/* ---- Opening ---- */

kh_result kh_conn_open(kh_listener *listener, int fd, const struct sockaddr *peer)
{
    kh_front *front = listener->front;
    kh_server_config config = {.max_frame = (uint32_t)front->config->frame_max,
                               .credit = (uint32_t)front->config->credit};
    kh_conn *conn = calloc(1, sizeof *conn);

    if (conn == NULL || kh_server_new(&config, &conn->server) != KH_OK ||
        (listener->is_tcp ? kh_transport_tls(listener, fd, peer, &conn->transport)
                          : kh_transport_unix(fd, &conn->transport)) != KH_OK ||
        !kh_room_for_stranger(front, conn->transport->uid)) {
        if (conn != NULL && conn->transport != NULL) {
            conn->transport->ops->free(conn->transport);
        }
        kh_server_free(conn != NULL ? conn->server : NULL);
        free(conn);
        close(fd);
        return KH_E_OVERLOADED;
    }
    conn->front = front;
    conn->listener = listener;
    listener->connections++;
    conn->active_ms = kh_front_ms(front);
    ev_io_init(&conn->io, on_conn, fd, EV_READ);
    conn->io.data = conn;
    list_append(&front->handshaking, conn);
    ev_io_start(front->loop, &conn->io);
    return KH_OK;
}

static void on_busy(struct ev_loop *loop, ev_idle *idle, int events)
{
    (void)loop; /* that it is active is all: the loop does not sleep */
    (void)idle;
    (void)events;
}

void kh_conns_start(kh_front *front)
{
    ev_idle_init(&front->busy, on_busy);
    ev_timer_init(&front->sweep, on_sweep, SWEEP_S, 0.);
    front->sweep.data = front;
    ev_timer_start(front->loop, &front->sweep);
}

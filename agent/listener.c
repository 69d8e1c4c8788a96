/* SPDX-License-Identifier: Apache-2.0 */
/* The front's listening sockets: accepting, and looking away when there is no room for more. */
#include "front.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPT_PAUSE_S 0.1 /* after EMFILE and its like */

static void listen_again(kh_front *front, bool on)
{
    for (kh_listener *listener = front->listeners; listener != NULL; listener = listener->next) {
        if (on && !front->draining) {
            ev_io_start(front->loop, &listener->io);
        } else {
            ev_io_stop(front->loop, &listener->io);
        }
    }
}

static void on_accept_pause(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)events;
    ev_timer_stop(loop, timer);
    listen_again(timer->data, true);
}

static void on_accept(struct ev_loop *loop, ev_io *io, int events)
{
    kh_listener *listener = io->data;
    kh_front *front = listener->front;
    uint32_t suppressed = 0;

    (void)loop;
    (void)events;
    front->now_ns = kh_share_begin(front);
    while (kh_share_spend_accept(front)) {
        struct sockaddr_storage peer = {0};
        socklen_t peer_len = sizeof peer;
        int fd = accept4(io->fd, (struct sockaddr *)&peer, &peer_len, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)) {
            return;
        }
        if (fd <
            0) { /* out of descriptors or memory: the listener stays readable, so look away for a while */
            if (kh_log_allowed(&front->log_full, kh_front_ms(front), &suppressed)) {
                kh_log(KH_LOG_WARN, "accept_failed", KH_LT("error", strerror(errno)),
                       KH_LT("do", "raise LimitNOFILE of the unit above max_connections + 256"),
                       KH_LN("suppressed", suppressed));
            }
            listen_again(front, false);
            ev_timer_set(&front->accept_pause, ACCEPT_PAUSE_S, 0.);
            ev_timer_start(front->loop, &front->accept_pause);
            return;
        }
        listener->accepted++;
        front->stats.accepted++;
        if (kh_conn_open(listener, fd, (const struct sockaddr *)&peer) != KH_OK) {
            return; /* it was closed; the next turn goes on */
        }
    }
}

kh_result kh_listener_add(kh_front *front, int fd, const char *address)
{
    kh_listener *listener = front->listeners;

    while (listener != NULL && strcmp(listener->address, address) != 0) {
        listener = listener->next;
    }
    if (listener != NULL) { /* the file of the socket before is gone; kh_listeners_apply starts this one */
        ev_io_stop(front->loop, &listener->io);
        close(listener->io.fd);
        ev_io_set(&listener->io, fd, EV_READ);
        return KH_OK;
    }
    listener = calloc(1, sizeof *listener);
    if (listener == NULL || (listener->address = strdup(address)) == NULL) {
        free(listener);
        close(fd);
        return KH_E_MEMORY;
    }
    listener->front = front;
    listener->is_tcp = strncmp(address, "tcp:", 4) == 0;
    ev_io_init(&listener->io, on_accept, fd, EV_READ);
    listener->io.data = listener;
    listener->next = front->listeners;
    front->listeners = listener;
    return KH_OK;
}

void kh_listener_release(kh_listener *listener)
{
    listener->connections--;
    if (listener->gone && listener->connections == 0) {
        free(listener->address);
        free(listener);
    }
}

/* The configuration names it no more. */
static void drop(kh_listener *listener)
{
    ev_io_stop(listener->front->loop, &listener->io);
    close(listener->io.fd);
    kh_tls_server_free(listener->tls);
    listener->tls = NULL;
    listener->gone = true;
    listener->connections++; /* ours, until here */
    kh_listener_release(listener);
}

/*
 * Its certificates, read anew. As long as they are the same the server stays, and with it the keys that sessions are
 * resumed with.
 */
static void take_tls(kh_listener *listener, kh_tls_server *next)
{
    if (next == NULL || (listener->tls != NULL && kh_tls_server_same(listener->tls, next))) {
        kh_tls_server_free(next);
        return;
    }
    listener->trust += listener->tls != NULL && !kh_tls_server_same_trust(listener->tls, next);
    kh_tls_server_free(listener->tls);
    listener->tls = next;
}

/* The index of the listener in the configuration; its count: it is not there. */
static size_t find(const kh_front *front, const kh_listener *listener)
{
    size_t i = 0;

    while (i < front->config->listener_count &&
           strcmp(front->config->listeners[i].address, listener->address) != 0) {
        i++;
    }
    return i;
}

void kh_listeners_apply(kh_front *front)
{
    for (kh_listener **at = &front->listeners; *at != NULL;) {
        kh_listener *listener = *at;
        size_t index = find(front, listener);

        if (index == front->config->listener_count) {
            *at = listener->next;
            drop(listener);
            continue;
        }
        listener->administration = front->config->listeners[index].administration;
        take_tls(listener, front->next_tls[index]);
        front->next_tls[index] = NULL;
        if (!front->draining) {
            ev_io_start(front->loop, &listener->io);
        }
        at = &listener->next;
    }
}

void kh_listeners_stop(kh_front *front)
{
    listen_again(front, false);
}

void kh_listeners_start(kh_front *front)
{
    ev_timer_init(&front->accept_pause, on_accept_pause, ACCEPT_PAUSE_S, 0.);
    front->accept_pause.data = front;
    kh_listeners_apply(front);
}

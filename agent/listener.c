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
        int fd = accept4(io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

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
        if (kh_conn_open(front, fd) != KH_OK) {
            return; /* it was closed; the next turn goes on */
        }
    }
}

kh_result kh_listener_add(kh_front *front, int fd, const char *path)
{
    kh_listener *listener = calloc(1, sizeof *listener);

    if (listener == NULL || (listener->path = strdup(path)) == NULL) {
        free(listener);
        close(fd);
        return KH_E_MEMORY;
    }
    listener->front = front;
    ev_io_init(&listener->io, on_accept, fd, EV_READ);
    listener->io.data = listener;
    listener->next = front->listeners;
    front->listeners = listener;
    return KH_OK;
}

void kh_listeners_apply(kh_front *front)
{
    for (kh_listener **at = &front->listeners; *at != NULL;) {
        kh_listener *listener = *at;
        bool named = false;

        for (size_t i = 0; i < front->config->listener_count; i++) {
            named = named || strcmp(front->config->listeners[i].path, listener->path) == 0;
        }
        if (named) {
            if (!front->draining) {
                ev_io_start(front->loop, &listener->io);
            }
            at = &listener->next;
            continue;
        }
        *at = listener->next;
        ev_io_stop(front->loop, &listener->io);
        close(listener->io.fd);
        free(listener->path);
        free(listener);
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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The light way: as few system calls as it takes. The hello is sent at once, which on loopback is connected by then; level-triggered, so
 * that nothing need be read until it would block; our Finished and close_notify are one write.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Sends what there is; *left: the socket took not all of it. False: it failed, and was counted. */
static bool flush(kh_load_engine *e, kh_load_client *c, bool *left)
{
    const uint8_t *bytes;
    size_t len;
    ssize_t sent;

    *left = false;
    for (bytes = kh_light_out(c->light, &len); len > 0; bytes = kh_light_out(c->light, &len)) {
        sent = send(c->fd, bytes, len, MSG_NOSIGNAL);
        if (sent >= 0) {
            kh_light_sent(c->light, (size_t)sent);
        } else if (errno == EAGAIN) {
            *left = true;
            return true;
        } else if (errno != EINTR) {
            kh_load_fail_socket(e, c, errno);
            return false;
        }
    }
    return true;
}

static void wait_for(kh_load_engine *e, kh_load_client *c, int operation, bool out)
{
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};

    if (epoll_ctl(e->epoll, operation, c->fd, &event) != 0) {
        kh_load_fail(e, c, KH_LOAD_CONNECT, "cannot wait for a connection");
        return;
    }
    c->waits_out = out;
}

static void begin(kh_load_engine *e, kh_load_client *c)
{
    bool left;

    if (!kh_light_begin(c->light)) {
        kh_load_fail(e, c, KH_LOAD_CONNECT, "cannot set up a connection");
    } else if (flush(e, c, &left)) {
        wait_for(e, c, EPOLL_CTL_ADD, left);
    }
}

static void describe(kh_load_result *result, const kh_light_conn *light)
{
    snprintf(result->protocol, sizeof(result->protocol), "TLSv1.3");
    snprintf(result->cipher, sizeof(result->cipher), "TLS_AES_128_GCM_SHA256");
    snprintf(result->group, sizeof(result->group), "X25519");
    snprintf(result->signature, sizeof(result->signature), "%s", kh_light_signature(light));
}

/* Our Finished goes out first: a server can do nothing with a handshake that ends here. */
static void finish(kh_load_engine *e, kh_load_client *c)
{
    bool left;

    if (!flush(e, c, &left)) {
        return;
    }
    if (e->result->protocol[0] == '\0') {
        describe(e->result, c->light);
    }
    kh_load_handshake_done(e, c);
    c->phase = CLOSE;
    if (left) {
        wait_for(e, c, EPOLL_CTL_MOD, true);
    }
}

/* What became of the connection by what came. */
static void judge(kh_load_engine *e, kh_load_client *c, kh_light_state state)
{
    bool handshake = c->phase == HANDSHAKE;
    char text[KH_LOAD_DETAIL_LEN];

    switch (state) {
    case KH_LIGHT_HANDSHAKE:
        break;
    case KH_LIGHT_OPEN:
        if (handshake) {
            finish(e, c);
        }
        break;
    case KH_LIGHT_CLOSED:
        if (handshake) {
            kh_load_fail_closed(e, c);
        } else {
            kh_load_succeed(e, c);
        }
        break;
    case KH_LIGHT_ALERT:
        snprintf(text, sizeof(text), "alert: %s", SSL_alert_desc_string_long(kh_light_alert(c->light)));
        kh_load_fail(e, c, KH_LOAD_ALERT, text);
        break;
    case KH_LIGHT_BROKEN:
        kh_load_fail(e, c, handshake ? KH_LOAD_PROTOCOL : KH_LOAD_LOST, kh_light_error(c->light));
        break;
    }
}

static void receive(kh_load_engine *e, kh_load_client *c)
{
    size_t room;
    uint8_t *at = kh_light_room(c->light, &room);
    ssize_t got = recv(c->fd, at, room, 0);

    if (got > 0) {
        judge(e, c, kh_light_received(c->light, (size_t)got));
    } else if (got == 0 && c->phase == CLOSE && !c->waits_out) {
        kh_load_succeed(e, c);
    } else if (got == 0) {
        kh_load_fail_closed(e, c);
    } else if (errno != EAGAIN && errno != EINTR) {
        kh_load_fail_socket(e, c, errno);
    }
}

static void drive(kh_load_engine *e, kh_load_client *c)
{
    bool left;

    if (c->phase != IDLE && c->waits_out && flush(e, c, &left) && !left) {
        wait_for(e, c, EPOLL_CTL_MOD, false);
    }
    if (c->phase != IDLE) {
        receive(e, c);
    }
}

static void drop(kh_load_client *c)
{
    (void)c; /* kh_light_begin() forgets it */
}

const kh_load_way kh_load_way_light = {begin, drive, drop};

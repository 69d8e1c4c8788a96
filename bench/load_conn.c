/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the load engine: its begin, its end and how it counts. Between them is TLS, in one of two ways. It ends when
 * the server has answered our close, so each success is one that the server has seen through too; anything else is counted
 * under its kind.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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

void kh_load_drop(kh_load_engine *e, kh_load_client *c)
{
    e->way->drop(c);
    if (c->fd >= 0) {
        close(c->fd);
    }
    c->fd = -1;
    c->phase = IDLE;
    e->active--;
}

void kh_load_fail(kh_load_engine *e, kh_load_client *c, kh_load_error kind, const char *text)
{
    e->result->failed++;
    e->result->window.failed++;
    e->result->errors[kind]++;
    kh_load_note(e->result, text, 1);
    kh_load_drop(e, c);
}

void kh_load_succeed(kh_load_engine *e, kh_load_client *c)
{
    e->result->done++;
    kh_load_drop(e, c);
}

void kh_load_fail_socket(kh_load_engine *e, kh_load_client *c, int os_error)
{
    kh_load_error kind = os_error == ECONNREFUSED ? KH_LOAD_REFUSED
                       : c->phase != HANDSHAKE ? KH_LOAD_LOST
                       : os_error == ECONNRESET || os_error == EPIPE ? KH_LOAD_RESET : KH_LOAD_CONNECT;

    kh_load_fail(e, c, kind, strerror(os_error));
}

void kh_load_fail_closed(kh_load_engine *e, kh_load_client *c)
{
    bool handshake = c->phase == HANDSHAKE;

    kh_load_fail(e, c, handshake ? KH_LOAD_CLOSED : KH_LOAD_LOST,
                 handshake ? "closed in the handshake" : "closed before the answer");
}

void kh_load_handshake_done(kh_load_engine *e, const kh_load_client *c)
{
    uint64_t now_ns = kh_now_ns();

    kh_hist_add(&e->result->window.latency, now_ns - c->due_ns);
    if (e->measuring) {
        e->result->measured++;
        kh_hist_add(&e->result->latency, now_ns - c->due_ns);
    }
}

/* Non-blocking connect; the handshake's first write waits for it. */
void kh_load_begin(kh_load_engine *e, kh_load_client *c)
{
    e->active++;
    e->result->started++;
    c->begun_ns = kh_now_ns();
    c->due_ns = e->config->interval_ns != 0 ? e->next_ns : c->begun_ns;
    e->next_ns += e->config->interval_ns;
    c->answer_len = 0;
    c->phase = HANDSHAKE;
    c->fd = socket(e->address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || (connect(c->fd, e->address->ai_addr, e->address->ai_addrlen) != 0 && errno != EINPROGRESS)) {
        kh_load_fail_socket(e, c, errno);
        return;
    }
    e->way->begin(e, c);
}

void kh_load_drive(kh_load_engine *e, kh_load_client *c)
{
    e->way->drive(e, c);
}

void kh_load_time_out(kh_load_engine *e, kh_load_client *c)
{
    kh_load_fail(e, c, KH_LOAD_TIMEOUT, c->phase == HANDSHAKE ? "time-out in the handshake" : "time-out after it");
}

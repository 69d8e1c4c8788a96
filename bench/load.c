/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load engine: a fixed number of clients, each of which does one full TLS handshake after another on connections of
 * its own. Edge-triggered epoll.
 *
 * At a rate, connections are due at even distances, and a latency counts from then: when all clients wait for a server
 * that stands still, those that could not even begin are not forgotten.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#define EVENTS_MAX 256
#define SWEEP_MS 100 /* how often time-outs are looked for */

static uint64_t own_cpu_ns(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return ((uint64_t)usage.ru_utime.tv_sec + (uint64_t)usage.ru_stime.tv_sec) * 1000000000u +
           ((uint64_t)usage.ru_utime.tv_usec + (uint64_t)usage.ru_stime.tv_usec) * 1000u;
}

static void open_window(kh_load_engine *e, uint64_t now_ns)
{
    e->measuring = true;
    e->window_start_ns = now_ns;
    e->client_cpu_start_ns = own_cpu_ns();
    if (e->config->pids != NULL && !kh_pids_start(e->config->pids)) {
        e->result->pids_gone++;
    }
}

static void close_window(kh_load_engine *e, uint64_t now_ns)
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
static void cut_window(kh_load_engine *e, uint64_t now_ns)
{
    kh_load_window *window = &e->result->window;

    *e->config->cut = 0;
    window->closed_ns = now_ns;
    e->config->on_window(window);
    memset(window, 0, sizeof(*window));
    window->opened_ns = now_ns;
}

static void check_time(kh_load_engine *e, uint64_t now_ns, uint64_t begun_ns)
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

static void sweep_timeouts(kh_load_engine *e, uint64_t now_ns)
{
    unsigned i;

    for (i = 0; i < e->config->clients; i++) {
        kh_load_client *c = &e->clients[i];

        if (c->phase != IDLE && now_ns - c->begun_ns > e->config->timeout_ns) {
            kh_load_time_out(e, c);
        }
    }
}

static bool may_begin(const kh_load_engine *e, uint64_t now_ns)
{
    return !e->finishing && (e->config->interval_ns == 0 || e->next_ns <= now_ns) &&
           (e->config->max_handshakes == 0 || e->result->started < e->config->max_handshakes);
}

/* A fast failure (refused) is begun anew in the next turn only, so that a dead server makes no endless loop. */
static void begin_idle(kh_load_engine *e, uint64_t now_ns)
{
    unsigned i;

    for (i = 0; i < e->config->clients && may_begin(e, now_ns); i++) {
        if (e->clients[i].phase == IDLE) {
            kh_load_begin(e, &e->clients[i]);
        }
    }
}

/* How long to sleep when nothing happens, in ms. */
static int patience(const kh_load_engine *e, uint64_t now_ns, uint64_t failed_before)
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

static bool loop(kh_load_engine *e)
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
            kh_load_client *c = events[i].data.ptr;

            kh_load_drive(e, c);
            if (c->phase == IDLE && may_begin(e, now_ns) && e->result->failed == failed_before &&
                e->config->max_handshakes == 0) {
                kh_load_begin(e, c);
            }
        }
        now_ns = kh_now_ns();
        if (now_ns - swept_ns >= (uint64_t)SWEEP_MS * 1000000u) {
            sweep_timeouts(e, now_ns);
            swept_ns = now_ns;
        }
    }
}

bool kh_load_run_engine(const kh_load_config *config, kh_load_result *result)
{
    kh_load_engine e = {.config = config, .result = result, .epoll = -1};
    bool ok;

    memset(result, 0, sizeof(*result));
    ok = config->clients > 0 && kh_load_set_up(&e) && loop(&e);
    kh_load_tear_down(&e);
    return ok;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A token's keeper: its life. The main thread serves the sockets, watches the other threads, and never calls the library. */
#include "token.h"
#include "algorithms.h"
#include "keeper.h"
#include "usage.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SESSIONS_MAX 64
#define TICK_MOST_MS 100
#define TICK_LEAST_MS 5
#define JUDGE_MS 1000
#define STOP_MS 3000 /* what is under way at the end gets so long */
#define WAKE_TRIES 50

static void pause_briefly(void)
{
    const struct timespec brief = {.tv_nsec = 200000};

    nanosleep(&brief, NULL);
}

/* ---- Watching */

void kh_token_enter(kh_token *token, kh_token_watch *watch, uint32_t most_ms)
{
    uint32_t usual = token->config->call_timeout_ms;

    atomic_store(&watch->patience_ms, most_ms > usual ? most_ms : usual);
    atomic_fetch_add(&watch->calls, 1);
}

void kh_token_leave(kh_token_watch *watch)
{
    atomic_fetch_add(&watch->calls, 1);
}

/*
 * Ticks are counted, not time: after this process or the machine has stood still, a call gets as much time to come back as the
 * watcher took to look again.
 */
static bool hangs(kh_token_watch *watch, uint32_t tick_ms, uint32_t least_ms)
{
    uint32_t calls = atomic_load(&watch->calls), patience_ms = atomic_load(&watch->patience_ms);

    if ((calls & 1) == 0 || calls != watch->seen) {
        watch->seen = calls;
        watch->waited_ms = 0;
        return false;
    }
    watch->waited_ms += tick_ms;
    return watch->waited_ms > (patience_ms > least_ms ? patience_ms : least_ms);
}

/*
 * A library with one lock for all lets nobody in while it makes a key: as long as no worker has come back since the maker went in,
 * they get as much time as it.
 */
static uint32_t worker_patience(kh_token *token)
{
    uint32_t calls = atomic_load(&token->maker_watch.calls), patience_ms = atomic_load(&token->maker_watch.patience_ms);
    uint32_t came_back = 0;

    for (uint32_t i = 0; i < token->worker_count; i++) {
        came_back += atomic_load(&token->workers[i].watch.calls) / 2;
    }
    if ((calls & 1) == 0 || calls != token->making) {
        token->making = calls;
        token->came_back = came_back;
    }
    return (calls & 1) != 0 && came_back == token->came_back ? patience_ms : 0;
}

static void watch(kh_token *token, uint32_t tick_ms)
{
    uint32_t least_ms = worker_patience(token);
    bool hung = hangs(&token->maker_watch, tick_ms, 0);

    for (uint32_t i = 0; i < token->worker_count; i++) {
        hung = hangs(&token->workers[i].watch, tick_ms, least_ms) || hung;
    }
    if (hung) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR,
                "token %s: a call of its library does not come back (call_timeout_ms); a new process opens it",
                token->config->name);
        kh_token_die(token, KH_TOKEN_HUNG);
    }
}

_Noreturn void kh_token_die(kh_token *token, kh_token_end why)
{
    kh_keeper_ring *ring = NULL;

    pthread_mutex_lock(&token->lock); /* for ever: whoever comes out of the library now stops here */
    ring = token->ring;
    token->closed = true;
    token->stats.running = 0;
    kh_token_publish(token);
    for (uint32_t i = 0; ring != NULL && i < ring->end.map.slots; i++) {
        if (ring->end.taken[i]) {
            kh_ring_end_result(&ring->end, i, KH_E_UNAVAILABLE, NULL, 0, 0);
            kh_ring_end_push(&ring->end, i);
        }
    }
    if (ring != NULL) {
        kh_ring_end_ring_front(&ring->end);
    }
    token->config->end(token->config->ctx, why);
    abort();
}

void kh_token_check_pin(kh_token *token, kh_result result)
{
    if (result == KH_E_PASSPHRASE || result == KH_E_LOCKED) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR,
                "token %s: %s; it is not tried again: correct the PIN, then send keyholdd SIGHUP", token->config->name,
                result == KH_E_LOCKED ? "its PIN is locked, or would be by one more that is wrong" : "its PIN is wrong");
        kh_token_die(token, KH_TOKEN_PIN);
    }
}

kh_result kh_token_login_again(kh_token *token, kh_token_watch *watch, uint32_t logins_seen)
{
    kh_result result = KH_OK;

    pthread_mutex_lock(&token->heal_lock);
    if (atomic_load(&token->logins) == logins_seen) {
        kh_token_enter(token, watch, 0);
        result = kh_p11_login(token->p11);
        kh_token_leave(watch);
        if (result == KH_OK) {
            atomic_fetch_add(&token->logins, 1);
        }
    }
    pthread_mutex_unlock(&token->heal_lock);
    kh_token_check_pin(token, result);
    return result;
}

/* ---- Rings and links */

/* Wakes who sleeps on a door that nobody rings any more. */
static void wake_sleepers(kh_token *token, kh_keeper_ring *ring)
{
    _Atomic uint32_t *door = ring != NULL ? &ring->end.map.shared->door : &token->idle_door;
    bool sleeping = true;

    for (int tries = 0; tries < WAKE_TRIES && sleeping; tries++) {
        pthread_mutex_lock(&token->lock);
        sleeping = ring != NULL && ring->sleeping > 0;
        pthread_mutex_unlock(&token->lock);
        atomic_fetch_add(door, 1);
        kh_futex_wake(door, UINT32_MAX);
        if (sleeping) {
            pause_briefly();
        }
    }
}

static void reap_dead_rings(kh_token *token)
{
    pthread_mutex_lock(&token->lock);
    for (kh_keeper_ring **at = &token->dead_rings; *at != NULL;) {
        kh_keeper_ring *ring = *at;

        if (ring->in_flight == 0 && ring->sleeping == 0) {
            *at = ring->next_dead;
            kh_keeper_ring_close(ring);
        } else {
            at = &ring->next_dead;
        }
    }
    pthread_mutex_unlock(&token->lock);
}

static void take_ring(kh_token *token, int fds[3])
{
    kh_keeper_ring *ring = kh_keeper_ring_open(fds, sizeof(kh_token_op)), *old = NULL;

    if (ring == NULL) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR,
                "token %s: a ring of another build, or no memory for it", token->config->name);
        return;
    }
    pthread_mutex_lock(&token->lock);
    old = token->ring;
    token->ring = ring;
    if (old != NULL) {
        old->dead = true;
        old->next_dead = token->dead_rings;
        token->dead_rings = old;
    }
    kh_token_publish(token);
    pthread_mutex_unlock(&token->lock);
    wake_sleepers(token, old);
}

/* All that is known may have changed while there was no link; without one, nobody says that it has. */
static void take_link(kh_token *token, int fd)
{
    pthread_mutex_lock(&token->lock);
    token->now_ns = kh_now_ns();
    kh_token_link_change(token, fd);
    pthread_mutex_unlock(&token->lock);
}

/* ---- Serving */

static void tick(kh_token *token, uint32_t tick_ms, uint32_t *judged_ms)
{
    watch(token, tick_ms);
    reap_dead_rings(token);
    pthread_mutex_lock(&token->lock);
    token->now_ns = kh_now_ns();
    kh_token_keys_expire(token);
    kh_token_link_flush(token);
    kh_token_keys_ask(token);
    *judged_ms += tick_ms;
    if (*judged_ms >= JUDGE_MS) {
        *judged_ms = 0;
        kh_token_keys_judge(token);
        kh_token_publish(token);
    }
    pthread_mutex_unlock(&token->lock);
}

/* false: it is to stop. */
static bool hear(kh_token *token)
{
    static kh_control control; /* some kilobytes */

    switch (kh_control_receive(token->config->control_fd, &control)) {
    case KH_CONTROL_RING:
        take_ring(token, control.fds);
        return true;
    case KH_CONTROL_LINK:
        take_link(token, control.fds[0]);
        return true;
    case KH_CONTROL_STOP:
        return false;
    default:
        return true;
    }
}

static void serve(kh_token *token)
{
    uint32_t tick_ms = token->config->call_timeout_ms / 8, judged_ms = 0;
    uint64_t next_ns = 0;
    bool stop = false;

    tick_ms = tick_ms > TICK_MOST_MS ? TICK_MOST_MS : tick_ms < TICK_LEAST_MS ? TICK_LEAST_MS : tick_ms;
    while (!stop) {
        struct pollfd fds[2] = {{.fd = token->config->control_fd, .events = POLLIN},
                                {.fd = token->link_fd, .events = POLLIN}};
        uint64_t now_ns = kh_now_ns();

        if (now_ns >= next_ns) {
            tick(token, tick_ms, &judged_ms);
            next_ns = now_ns + (uint64_t)tick_ms * 1000000;
        }
        if (token->change_count == KH_TOKEN_CHANGES) { /* of the main thread's making, and read by it: settled by others */
            fds[1].fd = -1;
        }
        if (poll(fds, 2, (int)((next_ns - now_ns) / 1000000) + 1) < 0 && errno != EINTR) {
            break;
        }
        if (fds[1].revents != 0 && fds[1].fd >= 0 && !kh_token_link_read(token)) {
            take_link(token, -1);
        }
        if (fds[0].revents != 0) {
            stop = !hear(token);
        }
    }
}

/* Lets what is under way come to its end, for a while. */
static void drain(kh_token *token)
{
    uint64_t until_ns = kh_now_ns() + (uint64_t)STOP_MS * 1000000;
    bool busy = true;

    pthread_mutex_lock(&token->lock);
    kh_token_take(token);
    token->closed = true;
    pthread_cond_broadcast(&token->maker_wake);
    kh_token_publish(token);
    pthread_mutex_unlock(&token->lock);
    while (busy && kh_now_ns() < until_ns) {
        pause_briefly();
        pthread_mutex_lock(&token->lock);
        busy = token->in_flight > 0;
        kh_token_wake(token, UINT32_MAX);
        pthread_mutex_unlock(&token->lock);
    }
}

/* ---- Start */

static kh_result start_threads(kh_token *token)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigset_t all, before;
    kh_result result = KH_OK;

    /* Signals are the main thread's, but those by which a library crashes. */
    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        sigdelset(&all, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&token->maker, NULL, kh_token_maker_main, token) != 0) {
        result = KH_E_MEMORY;
    }
    for (uint32_t i = 0; i < token->worker_count && result == KH_OK; i++) {
        token->workers[i].token = token;
        pthread_mutex_lock(&token->lock);
        token->workers_running++;
        pthread_mutex_unlock(&token->lock);
        if (pthread_create(&token->workers[i].thread, NULL, kh_token_worker_main, &token->workers[i]) != 0) {
            result = KH_E_MEMORY;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

static kh_result init(kh_token *token, const kh_token_config *config)
{
    pthread_condattr_t attr;

    token->config = config;
    token->link_fd = -1;
    token->tasks_end = &token->tasks;
    token->kept_end = &token->kept;
    token->worker_count = config->sessions < SESSIONS_MAX ? config->sessions : SESSIONS_MAX;
    token->worker_count = token->worker_count > 0 ? token->worker_count : 1;
    token->workers = calloc(token->worker_count, sizeof(*token->workers));
    if (token->workers == NULL || pthread_mutex_init(&token->lock, NULL) != 0 ||
        pthread_mutex_init(&token->heal_lock, NULL) != 0 || pthread_condattr_init(&attr) != 0) {
        return KH_E_MEMORY;
    }
    if (pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 || pthread_cond_init(&token->maker_wake, &attr) != 0) {
        return KH_E_MEMORY;
    }
    pthread_condattr_destroy(&attr);
    return KH_OK;
}

kh_result kh_token_run(const kh_token_config *config)
{
    kh_token *token = calloc(1, sizeof(*token));
    kh_result result = KH_E_MEMORY;

    kh_secure_openssl();
    kh_process_harden(config->log, config->ctx);
    if (token == NULL || (result = init(token, config)) != KH_OK || (result = kh_algorithms_init()) != KH_OK ||
        (result = kh_dh_groups_init()) != KH_OK || (result = start_threads(token)) != KH_OK) {
        return result; /* the process ends, and with it what was begun */
    }
    serve(token);
    drain(token);
    config->end(config->ctx, KH_TOKEN_STOPPED);
    return KH_E_INTERNAL;
}

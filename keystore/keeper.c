/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's life: open everything, confine, start the threads, serve rings and the admin socket, stop. */
#include "storelink.h"
#include "algorithms.h"
#include "multibuffer.h"
#include "process.h"
#include "usage.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WORKERS_MAX 64
#define CACHE_KEYS_DEFAULT 10000
#define ADMINS_MAX 16 /* connections that have not asked yet */
#define FULL_MS 2 /* until a link is looked at again of which too much waits */
#define TICK_NS UINT64_C(1000000000)
#define TICK_IDLE_NS UINT64_C(60000000000)
#define WAKE_TRIES 50 /* then workers are left to come back from a door by themselves */

typedef struct keeper_main {
    kh_keeper keeper;
    kh_keeper_ring *dead; /* of fronts that died, with operations or sleeping workers left */
    int admin[ADMINS_MAX];
    size_t admins;
    kh_link_ports ports;
    bool has_places; /* the supervisor has told which tokens there are */
    bool has_tokens;
    uint64_t ticked_ns;
} keeper_main;

static void pause_briefly(void)
{
    const struct timespec brief = {.tv_nsec = 200000};

    nanosleep(&brief, NULL);
}

/* ---- Rings --------------------------------------------------------------------------------------------- */

/* Under the lock: what of a dead ring has not begun is dropped. */
static void drop_queued(kh_keeper *keeper, const kh_keeper_ring *ring)
{
    for (int i = 0; i < KH_LANE_COUNT; i++) {
        kh_op_queue kept = {0};
        kh_op *op = NULL;

        while ((op = kh_op_pop(&keeper->lane[i])) != NULL) {
            if (op->ring == ring) {
                kh_keeper_forget(keeper, op);
            } else {
                kh_op_push(&kept, op);
            }
        }
        keeper->lane[i] = kept;
    }
}

/*
 * Wakes who sleeps on a door that nobody rings any more. A front that scribbles may hide one of them for a
 * while; the ring is not closed before the last is back.
 */
static void wake_sleepers(kh_keeper *keeper, kh_keeper_ring *ring)
{
    _Atomic uint32_t *door = ring != NULL ? &ring->end.map.shared->door : &keeper->idle_door;

    for (int tries = 0; tries < WAKE_TRIES; tries++) {
        uint32_t sleeping = 0;

        pthread_mutex_lock(&keeper->lock);
        sleeping = ring != NULL ? ring->sleeping : keeper->sleeping;
        pthread_mutex_unlock(&keeper->lock);
        if (sleeping == 0) {
            return;
        }
        atomic_fetch_add(door, 1);
        kh_futex_wake(door, UINT32_MAX);
        if (ring == NULL) {
            return; /* workers may sleep there again, for the new ring's door is another */
        }
        pause_briefly();
    }
}

static void reap_dead_rings(keeper_main *main_)
{
    kh_keeper_ring **at = &main_->dead;

    while (*at != NULL) {
        kh_keeper_ring *ring = *at;
        bool unused = false;

        pthread_mutex_lock(&main_->keeper.lock);
        unused = ring->in_flight == 0 && ring->sleeping == 0;
        pthread_mutex_unlock(&main_->keeper.lock);
        if (unused) {
            *at = ring->next_dead;
            kh_keeper_ring_close(ring);
        } else {
            at = &ring->next_dead;
        }
    }
}

/* The new ring may be NULL: then there is none. */
static void change_ring(keeper_main *main_, kh_keeper_ring *ring)
{
    kh_keeper *keeper = &main_->keeper;
    kh_keeper_ring *old = NULL;

    pthread_mutex_lock(&keeper->lock);
    old = keeper->ring;
    if (old != NULL) {
        old->dead = true;
        keeper->stats.running = 0;
        kh_keeper_publish(keeper);
        drop_queued(keeper, old);
    }
    keeper->ring = ring;
    keeper->stats.running = ring != NULL;
    kh_keeper_publish(keeper);
    pthread_mutex_unlock(&keeper->lock);
    wake_sleepers(keeper, old);
    if (old != NULL) {
        old->next_dead = main_->dead;
        main_->dead = old;
    }
}

static void take_ring(keeper_main *main_, int fds[3])
{
    const kh_keeper_config *config = main_->keeper.config;
    kh_keeper_ring *ring = kh_keeper_ring_open(fds, sizeof(kh_op));

    if (ring == NULL) {
        kh_logf(config->log, config->ctx, KH_LOG_ERROR,
                "keeper: a ring of another build, or no memory for it");
        return;
    }
    kh_logf(config->log, config->ctx, KH_LOG_INFO, "keeper: serving a ring of %u slots", ring->end.map.slots);
    reap_dead_rings(main_);
    change_ring(main_, ring);
}

/* ---- The admin socket ---------------------------------------------------------------------------------- */

static void admin_remove(keeper_main *main_, size_t i)
{
    main_->admin[i] = main_->admin[--main_->admins];
}

static void admin_serve(keeper_main *main_, size_t i)
{
    kh_keeper *keeper = &main_->keeper;
    int fd = main_->admin[i];
    kh_result result = KH_OK;
    kh_op *op = kh_admin_receive(fd, &result);

    if (result == KH_AGAIN) {
        return;
    }
    admin_remove(main_, i);
    if (op == NULL) {
        kh_admin_answer(fd, result, NULL, 0);
        return;
    }
    pthread_mutex_lock(&keeper->lock);
    keeper->in_flight++;
    pthread_mutex_unlock(&keeper->lock);
    kh_storework_submit(keeper, op);
}

static void admin_accept(keeper_main *main_)
{
    int fd = kh_admin_accept(main_->keeper.config->admin_fd);

    if (fd < 0) {
        return;
    }
    if (main_->admins == ADMINS_MAX) {
        kh_admin_answer(main_->admin[0], KH_E_OVERLOADED, NULL, 0);
        admin_remove(main_, 0);
    }
    main_->admin[main_->admins++] = fd;
}

/* ---- Serving ------------------------------------------------------------------------------------------- */

/* Everything that the supervisor said; false: the end. */
static bool hear_supervisor(keeper_main *main_)
{
    kh_control control;

    for (;;) {
        switch (kh_control_receive(main_->keeper.config->control_fd, &control)) {
        case KH_CONTROL_RING:
            take_ring(main_, control.fds);
            break;
        case KH_CONTROL_PLACES:
            main_->has_places = true;
            main_->has_tokens = control.places.token_count > 0;
            kh_link_ports_places(&main_->keeper, &control);
            break;
        case KH_CONTROL_LINK:
            kh_link_ports_add(&main_->keeper, &main_->ports, &control);
            break;
        case KH_CONTROL_STOP:
            return false;
        default:
            return true;
        }
    }
}

/* The store thread looks around: often while there are tokens, which may come and go. */
static int until_tick_ms(keeper_main *main_)
{
    const uint64_t every_ns = main_->has_tokens ? TICK_NS : TICK_IDLE_NS, now_ns = kh_now_ns();

    if (now_ns - main_->ticked_ns >= every_ns) {
        main_->ticked_ns = now_ns;
        kh_link_ports_tick(&main_->keeper, &main_->ports);
    }
    return (int)((main_->ticked_ns + every_ns - now_ns) / 1000000) + 1;
}

static void serve(keeper_main *main_)
{
    const kh_keeper_config *config = main_->keeper.config;
    struct pollfd fds[2 + ADMINS_MAX + KH_PLACES_TOKENS];
    bool stop = false;

    main_->ticked_ns = kh_now_ns();
    while (!stop) {
        /* Nobody is served past the front before it is known which tokens' keepers have to be told of it. */
        const bool admin = main_->has_places || !config->with_places;
        const size_t admins = admin ? main_->admins : 0, links = main_->ports.count;
        int wait_ms = until_tick_ms(main_);

        fds[0] = (struct pollfd){.fd = config->control_fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = admin ? config->admin_fd : -1, .events = POLLIN};
        for (size_t i = 0; i < admins; i++) {
            fds[2 + i] = (struct pollfd){.fd = main_->admin[i], .events = POLLIN};
        }
        for (size_t i = 0; i < links; i++) {
            bool full = kh_link_port_full(&main_->ports, i);

            fds[2 + admins + i] = (struct pollfd){.fd = full ? -1 : main_->ports.port[i].fd, .events = POLLIN};
            wait_ms = full && wait_ms > FULL_MS ? FULL_MS : wait_ms;
        }
        if (poll(fds, 2 + admins + links, main_->dead != NULL && wait_ms > 100 ? 100 : wait_ms) < 0 && errno != EINTR) {
            break;
        }
        reap_dead_rings(main_);
        /* From the last to the first: a removal moves the last one. */
        for (size_t i = links; i-- > 0;) {
            if (fds[2 + admins + i].revents != 0) {
                kh_link_ports_read(&main_->keeper, &main_->ports, i);
            }
        }
        stop = fds[0].revents != 0 && !hear_supervisor(main_);
        for (size_t i = admins; !stop && i-- > 0;) {
            if (fds[2 + i].revents != 0) {
                admin_serve(main_, i);
            }
        }
        if (fds[1].revents != 0) {
            admin_accept(main_);
        }
    }
}

/* ---- Start and stop ------------------------------------------------------------------------------------ */

static kh_result open_all(keeper_main *main_, const kh_keeper_config *config)
{
    kh_keeper *keeper = &main_->keeper;
    bool kernels_failed = false;
    kh_result result = KH_OK;

    keeper->config = config;
    keeper->stats.kernels = kh_multibuffer_init(config->use_kernels, &kernels_failed);
    keeper->stats.kernels_failed = kernels_failed;
    if (kernels_failed) {
        kh_logf(config->log, config->ctx, KH_LOG_WARN,
                "kernels: their test at start failed, so OpenSSL computes all, slower: this CPU or its memory "
                "may be faulty; report it with the CPU's type, and set kernels = openssl to silence this");
    }
    /* Rises with each change, and from one keeper to the next. */
    keeper->generation = (uint64_t)time(NULL) << 24;
    if (pthread_mutex_init(&keeper->lock, NULL) != 0 || kh_desk_init(&keeper->store_desk) != KH_OK ||
        kh_desk_init(&keeper->generator_desk) != KH_OK) {
        return KH_E_MEMORY;
    }
    if ((result = kh_algorithms_init()) != KH_OK || (result = kh_dh_groups_init()) != KH_OK ||
        (result = kh_cache_new(config->cache_keys > 0 ? config->cache_keys : CACHE_KEYS_DEFAULT,
                               &keeper->cache)) != KH_OK ||
        (result = kh_software_new(&keeper->store_tier)) != KH_OK ||
        (result = kh_links_new(&keeper->links)) != KH_OK) {
        return result;
    }
    return kh_store_open(config->store_path, config->kek_kind, config->kek_secret, config->kek_secret_len,
                         config->log, config->ctx, &keeper->store);
}

static void drop_from_cache(void *keeper_, const kh_touched *touched)
{
    kh_keeper *keeper = keeper_;

    kh_cache_drop(keeper->cache, touched->ref);
    kh_links_touch(keeper, touched);
    keeper->keys_dropped = true;
}

static uint32_t worker_count(const kh_keeper_config *config)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t count = config->workers > 0 ? config->workers : cpus > 0 ? (uint32_t)cpus : 1;

    return count < WORKERS_MAX ? count : WORKERS_MAX;
}

static kh_result start_threads(kh_keeper *keeper, uint32_t workers)
{
    sigset_t all, before;
    kh_result result = KH_E_MEMORY;

    /* Signals are the main thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    keeper->store_desk.running =
        pthread_create(&keeper->store_desk.thread, NULL, kh_storework_main, keeper) == 0;
    keeper->generator_desk.running =
        pthread_create(&keeper->generator_desk.thread, NULL, kh_generator_main, keeper) == 0;
    if (!keeper->store_desk.running || !keeper->generator_desk.running) {
        goto done;
    }
    for (uint32_t i = 0; i < workers; i++) {
        pthread_mutex_lock(&keeper->lock);
        keeper->workers_running++;
        pthread_mutex_unlock(&keeper->lock);
        if (pthread_create(&keeper->workers[i], NULL, kh_worker_main, keeper) != 0) {
            pthread_mutex_lock(&keeper->lock);
            keeper->workers_running--;
            pthread_mutex_unlock(&keeper->lock);
            break;
        }
        keeper->worker_count++;
    }
    result = keeper->worker_count > 0 ? KH_OK : KH_E_MEMORY;
done:
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

static void stop_threads(kh_keeper *keeper)
{
    bool running = true;

    pthread_mutex_lock(&keeper->lock);
    keeper->closed = true;
    pthread_mutex_unlock(&keeper->lock);
    while (running) {
        pthread_mutex_lock(&keeper->lock);
        running = keeper->workers_running > 0;
        kh_keeper_wake(keeper, UINT32_MAX);
        pthread_mutex_unlock(&keeper->lock);
        pause_briefly();
    }
    for (uint32_t i = 0; i < keeper->worker_count; i++) {
        pthread_join(keeper->workers[i], NULL);
    }
    kh_desk_stop(&keeper->generator_desk);
    if (keeper->generator_desk.running) {
        pthread_join(keeper->generator_desk.thread, NULL);
    }
    kh_desk_stop(&keeper->store_desk);
    if (keeper->store_desk.running) {
        pthread_join(keeper->store_desk.thread, NULL);
    }
}

static void close_all(keeper_main *main_)
{
    kh_keeper *keeper = &main_->keeper;

    for (size_t i = 0; i < main_->admins; i++) {
        close(main_->admin[i]);
    }
    if (keeper->ring != NULL) {
        keeper->stats.running = 0;
        kh_keeper_publish(keeper);
        kh_keeper_ring_close(keeper->ring);
    }
    while (main_->dead != NULL) {
        kh_keeper_ring *ring = main_->dead;

        main_->dead = ring->next_dead;
        kh_keeper_ring_close(ring);
    }
    kh_store_close(keeper->store);
    kh_cache_free(keeper->cache);
    kh_software_free(keeper->store_tier);
    kh_links_free(keeper->links);
    kh_link_ports_close(&main_->ports);
    kh_desk_destroy(&keeper->store_desk);
    kh_desk_destroy(&keeper->generator_desk);
    pthread_mutex_destroy(&keeper->lock);
    free(keeper->workers);
    free(main_);
}

static void wipe_kek(const kh_keeper_config *config)
{
    if (config->kek_secret != NULL) {
        OPENSSL_cleanse(config->kek_secret, config->kek_secret_len);
    }
}

kh_result kh_keeper_run(const kh_keeper_config *config)
{
    keeper_main *main_ = NULL;
    kh_keeper *keeper = NULL;
    uint32_t workers = 0;
    uint64_t keys = 0;
    kh_result result = KH_E_MEMORY;

    kh_secure_openssl();
    kh_process_harden(config->log, config->ctx);
    main_ = calloc(1, sizeof(*main_));
    if (main_ == NULL) {
        wipe_kek(config);
        return result;
    }
    keeper = &main_->keeper;
    workers = worker_count(config);
    keeper->workers = calloc(workers, sizeof(*keeper->workers));
    result = keeper->workers != NULL ? open_all(main_, config) : KH_E_MEMORY;
    wipe_kek(config);
    if (result != KH_OK) {
        goto done;
    }
    kh_store_on_change(keeper->store, drop_from_cache, keeper);
    keeper->stats.workers = workers;
    kh_task_show_store(keeper);
    if (config->confine != NULL) {
        config->confine(config->ctx);
    }
    result = kh_store_count(keeper->store, &keys);
    if (result == KH_OK) {
        result = start_threads(keeper, workers);
    }
    if (result == KH_OK) {
        kh_logf(config->log, config->ctx, KH_LOG_NOTICE, "keeper: %llu keys, %u workers, kernels %s",
                (unsigned long long)keys, workers,
                (const char *[]){"openssl", "portable", "avx512-ifma"}[keeper->stats.kernels % 3]);
        if (config->ready != NULL) {
            config->ready(config->ctx);
        }
        serve(main_);
    }
    kh_link_ports_stop(keeper);
    stop_threads(keeper);
done:
    close_all(main_);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The front's end of each keeper: rings that come and go, completions, and keepers that stand still. */
#include "front.h"
#include <stdlib.h>
#include <string.h>

#define COLLECT_MAX 64
#define STILL_TICKS 40 /* ten seconds of sweeps with work in the ring and nothing coming back */
#define TICKS_PER_S 4

kh_backend *kh_backend_find(kh_front *front, const char *token)
{
    kh_backend *backend = front->tokens;

    if (token[0] == '\0') {
        return &front->store;
    }
    while (backend != NULL && strcmp(backend->token, token) != 0) {
        backend = backend->next;
    }
    return backend;
}

/* The same, but one that nobody knew is made: a ring may come before the configuration that names its token. */
static kh_backend *get(kh_front *front, const char *token)
{
    kh_backend *backend = kh_backend_find(front, token);

    if (backend != NULL || (backend = calloc(1, sizeof *backend)) == NULL) {
        return backend;
    }
    backend->front = front;
    backend->sessions = 1;
    strncpy(backend->token, token, KH_PLACE_MAX);
    backend->next = front->tokens;
    front->tokens = backend;
    return backend;
}

static const char *name_of(const kh_backend *backend)
{
    return backend->token[0] != '\0' ? backend->token : "store";
}

/* Those that the configuration no longer has, whose keeper is gone, and that no place refers to. */
static void drop_unused(kh_front *front)
{
    for (kh_backend **at = &front->tokens; *at != NULL;) {
        kh_backend *backend = *at;

        if (!backend->configured && backend->keystore == NULL && !kh_places_use(front, backend)) {
            *at = backend->next;
            free(backend);
        } else {
            at = &backend->next;
        }
    }
}

kh_result kh_backends_apply(kh_front *front)
{
    const kh_config *config = front->config;
    kh_result result = KH_OK;

    front->store.front = front;
    for (kh_backend *backend = front->tokens; backend != NULL; backend = backend->next) {
        backend->configured = backend->in_pool = false;
    }
    for (size_t i = 0; i < config->token_count; i++) {
        kh_backend *backend = get(front, config->tokens[i].name);

        if (backend == NULL) {
            return KH_E_MEMORY;
        }
        backend->configured = true;
        backend->sessions = (uint32_t)config->tokens[i].sessions;
    }
    result = kh_places_apply(front);
    drop_unused(front);
    return result;
}

/* ---- Completions ---- */

void kh_backend_collect(kh_backend *backend)
{
    kh_completion completions[COLLECT_MAX];
    size_t count = 0;

    while (backend->keystore != NULL &&
           (count = kh_keystore_collect(backend->keystore, completions, COLLECT_MAX)) > 0) {
        for (size_t i = 0; i < count; i++) {
            if (backend == &backend->front->store) {
                kh_dispatch_done(backend->front, &completions[i]);
            } else {
                kh_place_done(backend, &completions[i]);
            }
            kh_keystore_release(backend->keystore, &completions[i]);
        }
    }
}

static void on_completions(struct ev_loop *loop, ev_io *io, int events)
{
    kh_backend *backend = io->data;

    (void)loop;
    (void)events;
    backend->front->now_ns = kh_front_clock();
    kh_backend_collect(backend);
    kh_conns_flush(backend->front); /* before anything new is read: what is done does not wait for others */
}

bool kh_backend_submit(kh_backend *backend, const kh_job *job)
{
    const kh_record record = {.cookie = kh_job_cookie(job),
                              .key_ref = job->key_ref,
                              .deadline_ns = job->deadline_ns,
                              .op = job->store_op,
                              .scheme = job->scheme,
                              .flags = job->flags,
                              .arg = job->arg,
                              .data = job->data,
                              .data_len = job->data_len};

    return kh_keystore_submit(backend->keystore, &record) == KH_OK;
}

void kh_backends_flush(kh_front *front)
{
    if (front->store.keystore != NULL) {
        kh_keystore_flush(front->store.keystore);
    }
    for (kh_backend *backend = front->tokens; backend != NULL; backend = backend->next) {
        if (backend->keystore != NULL) {
            kh_keystore_flush(backend->keystore);
        }
    }
}

/* ---- Rings that come and go ---- */

static void go_down(kh_backend *backend)
{
    kh_front *front = backend->front;
    uint32_t lost = 0;

    if (backend->keystore == NULL) {
        return;
    }
    ev_io_stop(front->loop, &backend->io);
    kh_backend_collect(backend); /* what was done before it died */
    if (backend == &front->store) {
        kh_naps_keeper_lost(front);
    }
    kh_keystore_free(backend->keystore);
    backend->keystore = NULL;
    backend->losses++;
    lost = backend == &front->store ? kh_dispatch_lost(front) : kh_place_lost(backend);
    if (!backend->in_pool) { /* of a partition, place.c says it, and what became of its operations */
        kh_log(KH_LOG_WARN, "keeper_lost", KH_LT("keeper", name_of(backend)), KH_LN("operations_failed", lost),
               KH_LN("queued", front->queue.total));
    }
}

void kh_backend_down(kh_front *front, const kh_boot_ring *ring)
{
    kh_backend *backend = kh_backend_find(front, ring != NULL ? ring->token : "");

    if (backend != NULL) {
        go_down(backend);
    }
}

void kh_backend_ring(kh_front *front, const kh_boot_ring *ring, int fds[3])
{
    kh_backend *backend = get(front, ring != NULL ? ring->token : "");
    kh_result result = KH_E_MEMORY;

    if (backend != NULL) {
        go_down(backend);
        result = kh_keystore_attach(fds, &backend->keystore);
    }
    if (result != KH_OK) {
        kh_log(KH_LOG_ERROR, "ring_refused", KH_LT("keeper", backend != NULL ? name_of(backend) : "?"),
               KH_LT("why", kh_result_name(result)));
        return;
    }
    if (backend == &front->store) {
        /* Another keeper: whatever it says of its generation, nothing old is believed. */
        kh_directory_generation(front->directory, UINT64_MAX);
    } else {
        /* A partition proves itself with copies first, unless it is new with all the others. */
        kh_health_begin(&backend->health, front->now_ns, backend->losses == 0);
    }
    ev_io_init(&backend->io, on_completions, kh_keystore_event_fd(backend->keystore), EV_READ);
    backend->io.data = backend;
    ev_set_priority(&backend->io, EV_MAXPRI);
    ev_io_start(front->loop, &backend->io);
    kh_backend_collect(backend); /* asks to be woken */
}

/* ---- Keepers that stand still ---- */

static void watch(kh_backend *backend, uint64_t done, uint32_t in_ring, uint32_t most_ticks)
{
    if (backend->keystore == NULL || in_ring == 0 || done != backend->still_done) {
        backend->still_done = done;
        backend->still_ticks = 0;
    } else if (++backend->still_ticks >= most_ticks) {
        kh_boot_ring which = {{0}};

        memcpy(which.token, backend->token, sizeof which.token);
        kh_log(KH_LOG_ERROR, "keeper_stuck", KH_LT("keeper", name_of(backend)), KH_LN("in_ring", in_ring));
        kh_channel_note(backend->front->channel_fd, KH_MSG_KEEPER_STUCK, &which, sizeof which);
        backend->still_ticks = 0;
    }
}

/* Ticks are counted, so that a front that stood still itself does not blame a keeper. */
void kh_backends_watch(kh_front *front)
{
    const kh_config *config = front->config;
    uint64_t done = 0;
    uint32_t in_ring = 0;

    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        if (lane != KH_LANE_STORE) { /* the store may wait for a disk, and signing goes on */
            done += front->stats.lane_done[lane];
            in_ring += front->in_ring[lane];
        }
    }
    watch(&front->store, done, in_ring, STILL_TICKS);
    for (size_t i = 0; i < config->token_count; i++) { /* a token's keeper has a watch of its own, which comes first */
        kh_backend *backend = kh_backend_find(front, config->tokens[i].name);

        if (backend != NULL) {
            watch(backend, backend->done, backend->health.outstanding,
                  STILL_TICKS + (uint32_t)(config->tokens[i].call_timeout_ms * TICKS_PER_S / 1000));
            kh_health_age(&backend->health);
            kh_place_rest(backend);
        }
    }
}

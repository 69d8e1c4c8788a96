/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the queues and the ring. Each lane group has a window of two batches per worker in the ring: enough
 * that a worker that becomes free finds a full batch, and no more, since what is in the queues can still be
 * cancelled, expire, or give way to another tenant. Store operations have a small window of their own and
 * never crowd out signing.
 */
#include "front.h"
#include <string.h>

#define COLLECT_MAX 64
#define KEEPER_STILL_TICKS 40  /* ten seconds of sweeps with work in the ring and nothing coming back */
#define LOOKUP_MARK UINT32_MAX /* low half of a lookup's cookie: no job has this index */

static uint32_t window_of(const kh_front *front, kh_lane lane)
{
    return lane == KH_LANE_STORE ? KH_STORE_JOBS_MAX : 2 * KH_BATCH_MAX * front->boot.workers;
}

static bool submit_job(kh_front *front, kh_job *job)
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

    if (kh_keystore_submit(front->keystore, &record) != KH_OK) {
        return false;
    }
    job->submitted_ns = front->now_ns;
    job->state = KH_JOB_RING;
    kh_job_list_append(&front->in_ring_jobs, job);
    front->in_ring[job->lane]++;
    kh_histogram_add(&front->stats.queued[job->lane], (front->now_ns - job->arrived_ns) / 1000);
    return true;
}

static void submit_lookups(kh_front *front)
{
    while (front->lookups_in_ring < KH_LOOKUPS_MAX && kh_keystore_free_slots(front->keystore) > 0) {
        uint64_t cookie = ++front->lookup_seq << 32 | LOOKUP_MARK;
        kh_entry *entry = kh_directory_wanted(front->directory, cookie);
        kh_record record = {.cookie = cookie, .op = KH_STORE_LOOKUP};

        if (entry == NULL) {
            return;
        }
        record.flags = entry->is_id ? 1 : 0;
        record.data = entry->key;
        record.data_len = entry->key_len;
        front->lookups_in_ring++;
        front->stats.lookups++;
        if (kh_keystore_submit(front->keystore, &record) != KH_OK) {
            return; /* cannot be: a slot was free; its waiters expire */
        }
    }
}

void kh_dispatch(kh_front *front)
{
    if (front->keystore == NULL) {
        return;
    }
    submit_lookups(front);
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        while (front->in_ring[lane] < window_of(front, (kh_lane)lane) &&
               kh_keystore_free_slots(front->keystore) > 0) {
            kh_job *job = kh_queue_pop(&front->queue, (kh_lane)lane);

            if (job == NULL) {
                break;
            }
            if (!submit_job(front, job)) {
                kh_queue_return(&front->queue, job);
                break;
            }
        }
    }
    kh_keystore_flush(front->keystore);
}

static void lookup_done(kh_front *front, const kh_completion *completion)
{
    kh_entry *entry = kh_directory_asked(front->directory, completion->cookie);
    size_t count = completion->data_len / sizeof(kh_key_info);
    kh_key_info infos[KH_LOOKUP_MAX];
    kh_job_list waiters = {0};
    kh_result result = KH_OK;

    front->lookups_in_ring--;
    if (entry == NULL) {
        return;
    }
    count = count < KH_LOOKUP_MAX ? count : KH_LOOKUP_MAX;
    memcpy(infos, completion->data, count * sizeof *infos);
    result = kh_directory_answer(front->directory, entry, completion->result, infos, count, &waiters);
    for (kh_job *job = waiters.first, *next = NULL; job != NULL; job = next) {
        next = job->next;
        if (result == KH_OK) {
            kh_admit_found(front, job, entry->infos, entry->count);
        } else {
            kh_operation_end(front, job, result, NULL, 0);
        }
    }
    kh_directory_settle(front->directory, entry);
}

/* Holds the reply back, as a slow HSM would: nothing waits but this reply. */
static void delay(kh_front *front, kh_job *job, const kh_completion *completion)
{
    uint32_t room = job->data == job->space ? KH_JOB_INLINE : KH_RECORD_DATA_MAX;

    job->result = completion->data_len <= room ? completion->result : KH_E_INTERNAL;
    if (job->result == KH_OK) {
        memcpy(job->data, completion->data, completion->data_len);
        /* What the request held beyond the result would no longer be wiped: data_len is what is wiped. */
        job->arg = completion->data_len;
        job->data_len = completion->data_len > job->data_len ? completion->data_len : job->data_len;
    }
    job->release_ns = front->now_ns + (uint64_t)front->boot.delay_ms * 1000000;
    job->state = KH_JOB_DELAY;
    kh_deadlines_remove(&front->deadlines, job);
    kh_job_list_append(&front->delayed, job);
}

static void release_delayed(kh_front *front)
{
    for (kh_job *job = front->delayed.first; job != NULL && job->release_ns <= front->now_ns;
         job = front->delayed.first) {
        kh_job_list_remove(&front->delayed, job);
        job->state = KH_JOB_DONE;
        kh_operation_end(front, job, job->result, job->data, job->arg);
    }
}

static void job_done(kh_front *front, const kh_completion *completion)
{
    kh_job *job = kh_jobs_find(front->jobs, completion->cookie);

    if (job == NULL || job->state != KH_JOB_RING) {
        return;
    }
    kh_job_list_remove(&front->in_ring_jobs, job);
    front->in_ring[job->lane]--;
    front->stats.lane_done[job->lane]++;
    job->state = KH_JOB_DONE;
    if (job->lane == KH_LANE_STORE && job->conn != NULL) {
        kh_manage_done(front, job, completion);
    } else if (job->conn != NULL && front->boot.delay_ms > 0) {
        delay(front, job, completion);
    } else {
        kh_operation_end(front, job, completion->result, completion->data, completion->data_len);
    }
}

static void collect(kh_front *front)
{
    kh_completion completions[COLLECT_MAX];
    size_t count = 0;

    while (front->keystore != NULL &&
           (count = kh_keystore_collect(front->keystore, completions, COLLECT_MAX)) > 0) {
        for (size_t i = 0; i < count; i++) {
            if ((uint32_t)completions[i].cookie == LOOKUP_MARK) {
                lookup_done(front, &completions[i]);
            } else {
                job_done(front, &completions[i]);
            }
            kh_keystore_release(front->keystore, &completions[i]);
        }
    }
}

static void on_completions(struct ev_loop *loop, ev_io *io, int events)
{
    kh_front *front = io->data;

    (void)loop;
    (void)events;
    front->now_ns = kh_front_clock();
    collect(front);
    kh_conns_flush(front); /* before anything new is read: what is done does not wait for others */
}

void kh_dispatch_keeper_down(kh_front *front)
{
    uint32_t lost = front->in_ring_jobs.count;

    if (front->keystore == NULL) {
        return;
    }
    ev_io_stop(front->loop, &front->keystore_io);
    collect(front); /* what was done before it died */
    kh_keystore_free(front->keystore);
    front->keystore = NULL;
    lost = front->in_ring_jobs.count;
    while (front->in_ring_jobs.first != NULL) {
        kh_job *job = front->in_ring_jobs.first;

        kh_job_list_remove(&front->in_ring_jobs, job);
        job->state = KH_JOB_DONE;
        kh_operation_end(front, job, KH_E_UNAVAILABLE, NULL, 0);
    }
    memset(front->in_ring, 0, sizeof front->in_ring);
    front->lookups_in_ring = 0;
    front->stats.keeper_losses++;
    kh_directory_again(front->directory);
    kh_log(KH_LOG_WARN, "keeper_lost", KH_LN("operations_failed", lost), KH_LN("queued", front->queue.total));
}

void kh_dispatch_ring(kh_front *front, int fds[3])
{
    kh_result result = KH_OK;

    kh_dispatch_keeper_down(front);
    result = kh_keystore_attach(fds, &front->keystore);
    if (result != KH_OK) {
        kh_log(KH_LOG_ERROR, "ring_refused", KH_LT("why", kh_result_name(result)));
        return;
    }
    /* Another keeper: whatever it says of its generation, nothing old is believed. */
    kh_directory_generation(front->directory, UINT64_MAX);
    ev_io_init(&front->keystore_io, on_completions, kh_keystore_event_fd(front->keystore), EV_READ);
    front->keystore_io.data = front;
    ev_set_priority(&front->keystore_io, EV_MAXPRI);
    ev_io_start(front->loop, &front->keystore_io);
    collect(front); /* asks to be woken */
}

void kh_dispatch_rates(kh_front *front)
{
    double seconds = (double)(front->now_ns - front->stats.rate_ns) / 1e9;

    if (seconds < 0.2) {
        return;
    }
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        double now = (double)(front->stats.lane_done[lane] - front->stats.rate_base[lane]) / seconds;

        front->stats.rate[lane] += 0.3 * (now - front->stats.rate[lane]);
        front->stats.rate_base[lane] = front->stats.lane_done[lane];
    }
    front->stats.rate_ns = front->now_ns;
}

/* Ticks are counted, so that a front that stood still itself does not blame the keeper. */
void kh_dispatch_watch(kh_front *front)
{
    uint64_t done = 0;
    uint32_t in_ring = 0;

    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        if (lane != KH_LANE_STORE) { /* the store may wait for a disk, and signing goes on */
            done += front->stats.lane_done[lane];
            in_ring += front->in_ring[lane];
        }
    }
    if (front->keystore == NULL || in_ring == 0 || done != front->still_done) {
        front->still_done = done;
        front->still_ticks = 0;
    } else if (++front->still_ticks >= KEEPER_STILL_TICKS) {
        kh_log(KH_LOG_ERROR, "keeper_stuck", KH_LN("in_ring", in_ring));
        kh_channel_poke(front->channel_fd, KH_MSG_KEEPER_STUCK);
        front->still_ticks = 0;
    }
}

/* A timer that fires at `when_ns`, started anew only if it would come too late. */
static void arm(kh_front *front, ev_timer *timer, uint64_t when_ns, uint64_t *armed_ns)
{
    double in_s = when_ns > front->now_ns ? (double)(when_ns - front->now_ns) / 1e9 : 0.;

    if (ev_is_active(timer) && *armed_ns <= when_ns) {
        return;
    }
    ev_timer_stop(front->loop, timer);
    ev_now_update(front->loop);
    ev_timer_set(timer, in_s, 0.);
    ev_timer_start(front->loop, timer);
    *armed_ns = when_ns;
}

static void on_timer(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop; /* being awake is all: on_prepare does the work */
    (void)timer;
    (void)events;
}

static void on_prepare(struct ev_loop *loop, ev_prepare *prepare, int events)
{
    kh_front *front = prepare->data;
    kh_job *first = NULL;

    (void)loop;
    (void)events;
    front->now_ns = kh_front_clock();
    front->turn++;
    kh_operation_expire(front);
    release_delayed(front);
    kh_dispatch(front);
    kh_conns_flush(front);
    if (front->queue.total > 0) {
        kh_dispatch(front); /* for requests that the flush let in */
    }
    first = kh_deadlines_first(&front->deadlines);
    if (first != NULL) {
        arm(front, &front->deadline_timer, first->deadline_ns, &front->deadline_armed_ns);
    }
    if (front->delayed.first != NULL) {
        arm(front, &front->delay_timer, front->delayed.first->release_ns, &front->delay_armed_ns);
    }
}

void kh_dispatch_start(kh_front *front)
{
    ev_timer_init(&front->deadline_timer, on_timer, 0., 0.);
    ev_timer_init(&front->delay_timer, on_timer, 0., 0.);
    ev_prepare_init(&front->prepare, on_prepare);
    front->prepare.data = front;
    ev_prepare_start(front->loop, &front->prepare);
    front->stats.rate_ns = front->now_ns;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the queues and the ring of the store's keeper. Each lane group has a window of two batches per worker in the ring: enough
 * that a worker that becomes free finds a full batch, and no more, since what is in the queues can still be
 * cancelled, expire, or give way to another tenant. Store operations have a small window of their own and
 * never crowd out signing. What tokens do is in place.c.
 */
#include "front.h"
#include "turns.h"
#include <string.h>

#define LOOKUP_MARK UINT32_MAX /* low half of a lookup's cookie: no job has this index */

static uint32_t window_of(const kh_front *front, kh_lane lane)
{
    return lane == KH_LANE_STORE ? KH_STORE_JOBS_MAX : 2 * KH_BATCH_MAX * front->boot.workers;
}

static bool submit_job(kh_front *front, kh_job *job)
{
    if (!kh_backend_submit(&front->store, job)) {
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
    while (front->lookups_in_ring < KH_LOOKUPS_MAX && kh_keystore_free_slots(front->store.keystore) > 0) {
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
        if (kh_keystore_submit(front->store.keystore, &record) != KH_OK) {
            return; /* cannot be: a slot was free; its waiters expire */
        }
    }
}

static void dispatch_to_store(kh_front *front)
{
    submit_lookups(front);
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        while (front->in_ring[lane] < window_of(front, (kh_lane)lane) &&
               kh_keystore_free_slots(front->store.keystore) > 0) {
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
}

void kh_dispatch(kh_front *front)
{
    if (front->store.keystore != NULL) {
        dispatch_to_store(front);
    }
    kh_places_dispatch(front);
    kh_backends_flush(front);
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
    kh_lone_done(&front->lone, completion->cookie, front->now_ns);
    job->state = KH_JOB_DONE;
    if (job->lane == KH_LANE_STORE && job->conn != NULL) {
        kh_manage_done(front, job, completion);
    } else {
        kh_dispatch_answer(front, job, completion);
    }
}

void kh_dispatch_answer(kh_front *front, kh_job *job, const kh_completion *completion)
{
    if (job->conn != NULL && front->boot.delay_ms > 0) {
        delay(front, job, completion);
    } else {
        kh_operation_end(front, job, completion->result, completion->data, completion->data_len);
    }
}

void kh_dispatch_done(kh_front *front, const kh_completion *completion)
{
    if ((uint32_t)completion->cookie == LOOKUP_MARK) {
        lookup_done(front, completion);
    } else {
        job_done(front, completion);
    }
}

uint32_t kh_dispatch_lost(kh_front *front)
{
    uint32_t lost = front->in_ring_jobs.count;

    while (front->in_ring_jobs.first != NULL) {
        kh_job *job = front->in_ring_jobs.first;

        kh_job_list_remove(&front->in_ring_jobs, job);
        job->state = KH_JOB_DONE;
        kh_operation_end(front, job, KH_E_UNAVAILABLE, NULL, 0);
    }
    memset(front->in_ring, 0, sizeof front->in_ring);
    front->lookups_in_ring = 0;
    kh_directory_again(front->directory);
    return lost;
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
    uint64_t due_ns = 0;

    (void)loop;
    (void)events;
    front->now_ns = kh_front_clock();
    front->turn++;
    kh_operation_expire(front);
    release_delayed(front);
    due_ns = kh_places_due(front);
    if (due_ns != 0 && due_ns <= front->now_ns) {
        kh_places_check(front);
    }
    kh_naps_turn(front);
    kh_dispatch(front);
    kh_conns_flush(front);
    if (front->queue.total > 0) {
        kh_dispatch(front); /* for requests that the flush let in */
    }
    due_ns = kh_places_due(front);
    if (due_ns != 0) {
        arm(front, &front->places_timer, due_ns, &front->places_armed_ns);
    }
    first = kh_deadlines_first(&front->deadlines);
    if (first != NULL) {
        arm(front, &front->deadline_timer, first->deadline_ns, &front->deadline_armed_ns);
    }
    if (front->delayed.first != NULL) {
        arm(front, &front->delay_timer, front->delayed.first->release_ns, &front->delay_armed_ns);
    }
    if (kh_gather_turn(&front->gather, front->now_ns, front->waiting_identities)) {
        kh_turns_gather(front->gather.on);
    }
    kh_naps_dispatched(front);
}

void kh_dispatch_start(kh_front *front)
{
    ev_timer_init(&front->deadline_timer, on_timer, 0., 0.);
    ev_timer_init(&front->delay_timer, on_timer, 0., 0.);
    ev_timer_init(&front->places_timer, on_timer, 0., 0.);
    ev_prepare_init(&front->prepare, on_prepare);
    front->prepare.data = front;
    ev_prepare_start(front->loop, &front->prepare);
    kh_naps_start(front);
    front->stats.rate_ns = front->now_ns;
}

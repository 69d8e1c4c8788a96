/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens and pools: which member gets an operation, and what becomes of those that are not answered. */
#include "front.h"
#include <stdlib.h>
#include <string.h>

#define CHECK_NS (10 * KH_MS)

static bool in_time(const kh_front *front, const kh_job *job)
{
    return job->conn != NULL && job->deadline_ns > front->now_ns;
}

/* Partitions that are there, and not lost. */
static uint32_t in_use(const kh_place *place)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < place->count; i++) {
        count += (place->active >> i & 1) != 0 && place->members[i]->keystore != NULL && !place->members[i]->health.lost;
    }
    return count;
}

static void log_lost(const kh_place *place, const kh_backend *backend, const char *why, uint32_t moved, uint32_t failed)
{
    kh_log(KH_LOG_WARN, "partition_lost", KH_LT("pool", place->name), KH_LT("token", backend->token),
           KH_LT("why", why), KH_LN("operations_moved", moved), KH_LN("operations_failed", failed),
           KH_LN("partitions_left", in_use(place)));
}

/* ---- Sending ---- */

/* Members that can be given one more record, without those in `but`. */
static uint32_t usable(const kh_place *place, uint32_t but)
{
    uint32_t set = 0;

    for (uint32_t i = 0; i < place->count; i++) {
        if ((place->active & ~but) >> i & 1 && place->members[i]->keystore != NULL &&
            kh_keystore_free_slots(place->members[i]->keystore) > 0) {
            set |= 1u << i;
        }
    }
    return set;
}

static int choose(kh_place *place, uint32_t but)
{
    kh_health *members[KH_MEMBERS_MAX] = {NULL};

    for (uint32_t i = 0; i < place->count; i++) {
        members[i] = &place->members[i]->health;
    }
    return kh_health_choose(members, place->count, usable(place, but), place->turn++);
}

static bool copy_to(kh_front *front, kh_place *place, kh_job *job, uint32_t member)
{
    kh_backend *backend = place->members[member];

    if (!kh_backend_submit(backend, job)) {
        return false;
    }
    kh_health_sent(&backend->health, front->now_ns);
    job->tried |= 1u << member;
    job->asked |= 1u << member;
    return true;
}

/* The job is in no list. */
static bool send_to(kh_front *front, kh_place *place, kh_job *job, uint32_t member)
{
    if (!copy_to(front, place, job, member)) {
        return false;
    }
    job->last = member;
    job->submitted_ns = front->now_ns;
    job->state = KH_JOB_RING;
    kh_job_list_append(&place->in_ring, job);
    return true;
}

/* Partitions that are left out and whose probe is due get a copy: whoever answers first answers. */
static void probe(kh_front *front, kh_place *place, kh_job *job)
{
    for (uint32_t i = 0; i < place->count; i++) {
        kh_backend *backend = place->members[i];

        if (backend->health.out && (usable(place, job->tried) >> i & 1) != 0 &&
            kh_health_probe(&backend->health, job->key_ref, front->now_ns)) {
            (void)copy_to(front, place, job, i);
        }
    }
}

/* To a member that has not had it. False: there is none. */
static bool send_again(kh_front *front, kh_place *place, kh_job *job)
{
    int member = place->is_pool && in_time(front, job) ? choose(place, job->tried) : -1;

    if (member < 0) {
        return false;
    }
    kh_job_list_remove(&place->in_ring, job);
    if (!send_to(front, place, job, (uint32_t)member)) {
        kh_job_list_append(&place->in_ring, job);
        return false;
    }
    place->moved++;
    return true;
}

void kh_places_dispatch(kh_front *front)
{
    for (kh_place *place = front->places; place != NULL; place = place->next) {
        while (place->queue.turn != NULL) {
            int member = choose(place, 0);
            kh_job *job = member >= 0 ? kh_keyqueue_pop(&place->queue) : NULL;

            if (job == NULL) {
                break;
            }
            kh_histogram_add(&place->queued, (front->now_ns - job->arrived_ns) / 1000);
            if (!send_to(front, place, job, (uint32_t)member)) { /* cannot be: a slot was free */
                job->state = KH_JOB_DONE;
                kh_keyqueue_done(job);
                kh_operation_end(front, job, KH_E_OVERLOADED, NULL, 0);
            } else if (place->is_pool) {
                probe(front, place, job);
            }
        }
    }
}

/* ---- Ends ---- */

static void leave_ring(kh_place *place, kh_job *job)
{
    kh_job_list_remove(&place->in_ring, job);
    kh_keyqueue_done(job);
    job->state = KH_JOB_DONE;
    place->done++;
}

static void fail(kh_front *front, kh_place *place, kh_job *job, kh_result why)
{
    leave_ring(place, job);
    kh_operation_end(front, job, why, NULL, 0);
}

/* Nobody serves: what waits could only wait for its deadline. */
static uint32_t fail_waiting(kh_front *front, kh_place *place)
{
    kh_job *job = NULL;
    uint32_t failed = 0;

    while (kh_place_up(place) == 0 && (job = kh_keyqueue_pop(&place->queue)) != NULL) {
        kh_keyqueue_done(job);
        job->state = KH_JOB_DONE;
        kh_operation_end(front, job, KH_E_UNAVAILABLE, NULL, 0);
        failed++;
    }
    return failed;
}

static void moved_or_failed(kh_front *front, kh_place *place, kh_job *job, uint32_t *moved, uint32_t *failed)
{
    if (send_again(front, place, job)) {
        ++*moved;
    } else if (job->asked == 0) {
        *failed += job->conn != NULL;
        fail(front, place, job, KH_E_UNAVAILABLE);
    }
}

/* The member will not answer any more (its ring is gone), or perhaps not. */
static void give_up_on(kh_front *front, kh_place *place, uint32_t member, bool gone, uint32_t *moved, uint32_t *failed)
{
    for (kh_job *job = place->in_ring.first, *next = NULL, *last = place->in_ring.last; job != NULL; job = next) {
        next = job != last ? job->next : NULL;
        if ((job->asked >> member & 1) == 0) {
            continue;
        }
        if (gone) {
            job->asked &= ~(1u << member);
        }
        if (gone ? job->asked == 0 : job->asked == 1u << member) {
            moved_or_failed(front, place, job, moved, failed);
        }
    }
}

uint32_t kh_place_lost(kh_backend *backend)
{
    kh_front *front = backend->front;
    uint32_t all_failed = 0;
    bool news = kh_health_lose(&backend->health, front->now_ns);

    backend->health.outstanding = 0;
    for (kh_place *place = front->places; place != NULL; place = place->next) {
        uint32_t moved = 0, failed = 0;

        for (uint32_t i = 0; i < place->count; i++) {
            if (place->members[i] == backend) {
                give_up_on(front, place, i, true, &moved, &failed);
                failed += fail_waiting(front, place);
                if (place->is_pool && news) {
                    log_lost(place, backend, "its keeper is gone", moved, failed);
                }
            }
        }
        all_failed += failed;
    }
    return all_failed;
}

/* ---- Answers ---- */

static void pools_of(kh_backend *backend, void (*each)(const kh_place *place, const kh_backend *backend))
{
    for (const kh_place *place = backend->front->places; place != NULL; place = place->next) {
        for (uint32_t i = 0; place->is_pool && i < place->count; i++) {
            if (place->members[i] == backend && (place->active >> i & 1) != 0) {
                each(place, backend);
            }
        }
    }
}

static void log_failing(const kh_place *place, const kh_backend *backend)
{
    log_lost(place, backend, "its operations fail", 0, 0);
}

static void log_is_back(const kh_place *place, const kh_backend *backend, const char *why)
{
    kh_log(KH_LOG_NOTICE, "partition_back", KH_LT("pool", place->name), KH_LT("token", backend->token), KH_LT("why", why),
           KH_LN("after_ms", (backend->front->now_ns - backend->health.lost_ns) / KH_MS),
           KH_LN("partitions", in_use(place)));
}

static void log_answers(const kh_place *place, const kh_backend *backend)
{
    log_is_back(place, backend, "it answers");
}

static void log_open(const kh_place *place, const kh_backend *backend)
{
    log_is_back(place, backend, "its token is open, and nothing was asked of it");
}

/* Another did what it failed at. */
static void blame(kh_backend *backend, uint64_t key)
{
    if (kh_health_bad(&backend->health, key, backend->front->now_ns)) {
        pools_of(backend, log_failing);
    }
}

/* What the answer says of the partition. key 0: nobody knows any more of which. */
static void learn(kh_backend *backend, kh_verdict verdict, uint64_t key, uint64_t took_ns)
{
    uint64_t now_ns = backend->front->now_ns;

    backend->done++;
    backend->failed += verdict == KH_VERDICT_FAULT;
    if (verdict != KH_VERDICT_DONE) {
        kh_health_heard(&backend->health, now_ns);
        return;
    }
    kh_histogram_add(&backend->took, took_ns / 1000);
    if (kh_health_good(&backend->health, key, now_ns, took_ns)) {
        pools_of(backend, log_answers);
    }
}

/* Whoever failed at it before is to blame, since it can be done. */
static void learn_of_others(const kh_place *place, const kh_job *job)
{
    for (uint32_t i = 0; job->failed != 0 && i < place->count; i++) {
        if ((job->failed >> i & 1) != 0) {
            blame(place->members[i], job->key_ref);
        }
    }
}

void kh_place_rest(kh_backend *backend)
{
    kh_keeper_stats stats = {0};

    if (!backend->in_pool || !backend->health.lost || backend->keystore == NULL) {
        return;
    }
    kh_keystore_stats(backend->keystore, &stats);
    if (stats.running != 0 && kh_health_rest(&backend->health, backend->front->now_ns)) {
        pools_of(backend, log_open);
    }
}

static uint32_t member_of(const kh_place *place, const kh_backend *backend)
{
    uint32_t i = 0;

    while (i < place->count && place->members[i] != backend) {
        i++;
    }
    return i;
}

void kh_place_done(kh_backend *backend, const kh_completion *completion)
{
    kh_front *front = backend->front;
    kh_job *job = kh_jobs_find(front->jobs, completion->cookie);
    kh_place *place = job != NULL && job->state == KH_JOB_RING ? job->place : NULL;
    uint32_t member = place != NULL ? member_of(place, backend) : KH_MEMBERS_MAX;
    kh_verdict verdict = kh_health_verdict(completion->result, job != NULL && job->op == KH_OP_SIGN);

    if (member == KH_MEMBERS_MAX || (job->asked >> member & 1) == 0) { /* another was faster, or nobody waits */
        learn(backend, verdict, 0, 0);
        if (verdict == KH_VERDICT_FAULT && backend->health.out) { /* of what it was copied from, the answer is there */
            blame(backend, backend->health.probe_key);
        }
        return;
    }
    learn(backend, verdict, job->key_ref, job->last == member ? front->now_ns - job->submitted_ns : 0);
    job->asked &= ~(1u << member);
    job->failed |= verdict == KH_VERDICT_FAULT ? 1u << member : 0;
    if (job->asked != 0 && member != job->last && verdict >= KH_VERDICT_ELSEWHERE) {
        return; /* a copy: the one that was asked last is still at work */
    }
    if (place->is_pool && verdict >= KH_VERDICT_ELSEWHERE && (send_again(front, place, job) || job->asked != 0)) {
        return;
    }
    if (verdict == KH_VERDICT_DONE) {
        learn_of_others(place, job);
    }
    leave_ring(place, job);
    kh_dispatch_answer(front, job, completion);
}

/* ---- What takes too long ---- */

static void check_members(kh_front *front, kh_place *place)
{
    for (uint32_t i = 0; i < place->count; i++) {
        kh_backend *backend = place->members[i];
        uint32_t moved = 0, failed = 0;

        if (backend->keystore == NULL || !kh_health_silent(&backend->health, front->now_ns)) {
            continue;
        }
        kh_backend_collect(backend); /* a front that stood still itself does not blame a partition that has answered */
        if (kh_health_silent(&backend->health, front->now_ns) && kh_health_lose(&backend->health, front->now_ns)) {
            give_up_on(front, place, i, false, &moved, &failed);
            log_lost(place, backend, "it does not answer", moved, failed);
        }
    }
}

/* An operation that takes long beside others that do not: its key may be slow, or a session hangs. */
static void check_jobs(kh_front *front, kh_place *place)
{
    const kh_job *last = place->in_ring.last;
    uint32_t left = place->queue.window; /* that many at a time, so that no storm of copies makes all slow */

    for (kh_job *job = place->in_ring.first, *next = NULL; job != NULL && left > 0; job = next) {
        uint64_t waited_ns = front->now_ns - job->submitted_ns;
        kh_health *health = &place->members[job->last]->health;

        next = job != last ? job->next : NULL;
        if (waited_ns < KH_HEALTH_PATIENCE_NS) {
            return; /* in order of submitted_ns */
        }
        if (job->conn == NULL && health->lost) {
            fail(front, place, job, KH_E_CANCELLED); /* nobody waits, and it may never come back */
        } else if (waited_ns > kh_health_patience(health) && send_again(front, place, job)) {
            kh_health_slow(health, waited_ns);
            left--;
        }
    }
}

void kh_places_check(kh_front *front)
{
    for (kh_place *place = front->places; place != NULL; place = place->next) {
        if (place->is_pool && place->in_ring.count > 0) {
            check_members(front, place);
            check_jobs(front, place);
        }
    }
    front->places_checked_ns = front->now_ns;
}

uint64_t kh_places_due(const kh_front *front)
{
    uint64_t due_ns = 0;

    for (const kh_place *place = front->places; place != NULL; place = place->next) {
        if (place->is_pool && place->in_ring.first != NULL) {
            uint64_t when_ns = place->in_ring.first->submitted_ns + KH_HEALTH_PATIENCE_NS;

            due_ns = due_ns == 0 || when_ns < due_ns ? when_ns : due_ns;
        }
    }
    return due_ns != 0 && due_ns < front->places_checked_ns + CHECK_NS ? front->places_checked_ns + CHECK_NS : due_ns;
}

/* ---- Jobs come in ---- */

uint32_t kh_place_up(const kh_place *place)
{
    uint32_t up = 0;

    for (uint32_t i = 0; i < place->count; i++) {
        up += (place->active >> i & 1) != 0 && place->members[i]->keystore != NULL;
    }
    return up;
}

const char *kh_place_state(const kh_place *place, uint32_t member)
{
    const kh_backend *backend = place->members[member];
    kh_keeper_stats stats = {0};

    if (backend->keystore != NULL) {
        kh_keystore_stats(backend->keystore, &stats);
    }
    return stats.running == 0 ? "down" : place->is_pool && backend->health.lost ? "lost" : "up";
}

uint32_t kh_place_retry_after(const kh_place *place)
{
    uint64_t each_ns = 0, wait_ms = 0;

    if (kh_place_up(place) == 0) {
        return 200;
    }
    for (uint32_t i = 0; i < place->count; i++) {
        const kh_backend *member = place->members[i];

        each_ns = member->health.usual_ns > each_ns ? member->health.usual_ns : each_ns;
    }
    wait_ms = each_ns * (place->queue.waiting + UINT64_C(1)) / (place->queue.window > 0 ? place->queue.window : 1) / KH_MS;
    return wait_ms < 5 ? 5 : wait_ms > 5000 ? 5000 : (uint32_t)wait_ms;
}

kh_place *kh_place_find(const kh_front *front, uint32_t tier, const char *name)
{
    kh_place *only = NULL;

    for (kh_place *place = front->places; place != NULL; place = place->next) {
        if (place->gone || place->is_pool != (tier == KH_TIER_HSM_POOL)) {
            continue;
        }
        if (strcmp(place->name, name) == 0) {
            return place;
        }
        if (name[0] == '\0' && only != NULL) {
            return NULL;
        }
        only = place;
    }
    return name[0] == '\0' ? only : NULL;
}

void kh_place_queue(kh_front *front, kh_place *place, kh_job *job)
{
    bool up = kh_place_up(place) > 0;

    job->place = place;
    if (!up && !place->told) { /* once, until it is up again and then gone again */
        kh_log(KH_LOG_WARN, "place_unavailable", KH_LT(place->is_pool ? "pool" : "token", place->name));
    }
    place->told = !up;
    if (!up) {
        kh_operation_end(front, job, KH_E_UNAVAILABLE, NULL, 0);
    } else if (kh_keyqueue_push(&place->queue, job) != KH_OK) {
        kh_operation_end(front, job, KH_E_MEMORY, NULL, 0);
    }
}

/* ---- The configuration ---- */

static kh_place *get(kh_front *front, const char *name, bool is_pool)
{
    kh_place *place = front->places;

    while (place != NULL && (place->is_pool != is_pool || strcmp(place->name, name) != 0)) {
        place = place->next;
    }
    if (place != NULL || (place = calloc(1, sizeof *place)) == NULL) {
        return place;
    }
    if (kh_keyqueue_init(&place->queue, &front->queue, 1) != KH_OK) {
        free(place);
        return NULL;
    }
    strncpy(place->name, name, KH_PLACE_MAX);
    place->is_pool = is_pool;
    place->next = front->places;
    front->places = place;
    return place;
}

/* A slot that it has already, a new one, or one that a reload took out and whose keeper is gone. */
static bool add_member(kh_place *place, kh_backend *backend)
{
    uint32_t slot = member_of(place, backend);

    if (slot == place->count && place->count == KH_MEMBERS_MAX) {
        for (slot = 0; slot < KH_MEMBERS_MAX; slot++) {
            if ((place->active >> slot & 1) == 0 && place->members[slot]->keystore == NULL) {
                break;
            }
        }
    }
    if (slot == KH_MEMBERS_MAX) {
        return false;
    }
    place->count += slot == place->count;
    place->members[slot] = backend;
    place->active |= 1u << slot;
    place->queue.window += 2 * backend->sessions;
    backend->in_pool = backend->in_pool || place->is_pool;
    return true;
}

static kh_result set_up(kh_front *front, const char *name, bool is_pool, const size_t *tokens, size_t count)
{
    kh_place *place = get(front, name, is_pool);

    if (place == NULL) {
        return KH_E_MEMORY;
    }
    place->gone = false;
    place->active = place->queue.window = 0;
    for (size_t i = 0; i < count; i++) {
        kh_backend *backend = kh_backend_find(front, front->config->tokens[tokens[i]].name);

        if (backend == NULL || !add_member(place, backend)) {
            return KH_E_MEMORY;
        }
    }
    return KH_OK;
}

static void drop_gone(kh_front *front)
{
    for (kh_place **at = &front->places; *at != NULL;) {
        kh_place *place = *at;

        if (place->gone && place->queue.flows == 0 && place->in_ring.count == 0) {
            *at = place->next;
            kh_keyqueue_clear(&place->queue);
            free(place);
        } else {
            at = &place->next;
        }
    }
}

kh_result kh_places_apply(kh_front *front)
{
    const kh_config *config = front->config;
    kh_result result = KH_OK;

    for (kh_place *place = front->places; place != NULL; place = place->next) {
        place->gone = true;
    }
    for (size_t i = 0; result == KH_OK && i < config->token_count; i++) {
        result = set_up(front, config->tokens[i].name, false, &i, 1);
    }
    for (size_t i = 0; result == KH_OK && i < config->pool_count; i++) {
        result = set_up(front, config->pools[i].name, true, config->pools[i].partitions, config->pools[i].partition_count);
    }
    drop_gone(front);
    return result;
}

bool kh_places_use(const kh_front *front, const kh_backend *backend)
{
    for (const kh_place *place = front->places; place != NULL; place = place->next) {
        if (member_of(place, backend) < place->count) {
            return true;
        }
    }
    return false;
}

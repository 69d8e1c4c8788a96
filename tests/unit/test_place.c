/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens and pools in the front, with real rings whose other ends are the test's: who is asked, and what becomes of operations
 * when a keeper dies, is silent, fails, or is slow. The clock is the test's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "front.h"
#include "../../keystore/ring.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOKENS 4 /* a, b and c are the pool's; d is by itself */
#define SESSIONS 2
#define WINDOW (2 * SESSIONS)
#define POOL_WINDOW (3 * WINDOW)
#define SLOTS 64
#define DEADLINE_MS 5000

typedef struct keeper {
    kh_ring_end end;
    bool open;
    kh_ring_copy taken[SLOTS]; /* and not answered */
    size_t count;
    unsigned got;
} keeper;

typedef struct rig {
    kh_front *front;
    kh_config config;
    kh_config_token tokens[TOKENS];
    kh_config_pool pool;
    kh_identity identity;
    kh_conn conn;
    kh_listener listener;
    kh_place *in_pool, *alone;
    keeper keepers[TOKENS];
    uint32_t id;
} rig;

static char *const names[TOKENS] = {"a", "b", "c", "d"};

/* ---- The rig ---- */

static kh_boot_ring ring_of(int token)
{
    kh_boot_ring ring = {{0}};

    strcpy(ring.token, names[token]);
    return ring;
}

static void start_keeper(rig *r, int token)
{
    const kh_boot_ring ring = ring_of(token);
    keeper *k = &r->keepers[token];
    int fds[3], mine[3];

    assert_int_equal(kh_ring_create(SLOTS, fds), KH_OK);
    for (int i = 0; i < 3; i++) {
        mine[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
    }
    assert_int_equal(kh_ring_end_open(mine, &k->end), KH_OK);
    k->open = true;
    k->count = 0;
    kh_backend_ring(r->front, &ring, fds);
}

static void stop_keeper(rig *r, int token)
{
    const kh_boot_ring ring = ring_of(token);

    kh_ring_end_close(&r->keepers[token].end);
    r->keepers[token].open = false;
    kh_backend_down(r->front, &ring);
}

static int setup(void **state)
{
    rig *r = calloc(1, sizeof *r);
    kh_front *front = calloc(1, sizeof *front);

    kh_log_to(open("/dev/null", O_WRONLY | O_CLOEXEC));
    for (int i = 0; i < TOKENS; i++) {
        r->tokens[i] = (kh_config_token){.name = names[i], .sessions = SESSIONS, .call_timeout_ms = 1000};
    }
    r->pool = (kh_config_pool){.name = "pool", .partitions = {0, 1, 2}, .partition_count = 3};
    r->config = (kh_config){.tokens = r->tokens, .token_count = TOKENS, .pools = &r->pool, .pool_count = 1};
    front->config = &r->config;
    front->queue.total_max = 10000;
    front->channel_fd = -1;
    front->loop = ev_loop_new(EVFLAG_NOENV);
    front->now_ns = kh_front_clock();
    assert_int_equal(kh_jobs_new(10000, 1 << 20, &front->jobs), KH_OK);
    assert_int_equal(kh_directory_new(64, &front->directory), KH_OK);
    assert_int_equal(kh_backends_apply(front), KH_OK);
    r->identity.tenant.queue_max = 10000;
    r->identity.tenant.weight = 1;
    r->listener.front = front;
    r->conn = (kh_conn){.front = front, .identity = &r->identity, .listener = &r->listener, .state = KH_CONN_READY, .dirty = true};
    assert_int_equal(kh_server_new(&(kh_server_config){0}, &r->conn.server), KH_OK);
    r->front = front;
    r->in_pool = kh_place_find(front, KH_TIER_HSM_POOL, "pool");
    r->alone = kh_place_find(front, KH_TIER_HSM, "d");
    assert_non_null(r->in_pool);
    assert_non_null(r->alone);
    for (int i = 0; i < TOKENS; i++) {
        start_keeper(r, i);
    }
    *state = r;
    return 0;
}

/* Nothing may be left: no job, no flow, nothing that is counted. */
static int teardown(void **state)
{
    rig *r = *state;
    kh_front *front = r->front;

    for (int i = 0; i < TOKENS; i++) {
        if (r->keepers[i].open) {
            stop_keeper(r, i);
        }
    }
    assert_int_equal(kh_jobs_in_use(front->jobs), 0);
    assert_int_equal(front->queue.total, 0);
    assert_int_equal(front->waiting_jobs, 0);
    assert_null(r->identity.tenant.lines);
    r->config.token_count = r->config.pool_count = 0;
    assert_int_equal(kh_backends_apply(front), KH_OK);
    assert_null(front->places);
    assert_null(front->tokens);
    kh_jobs_free(front->jobs);
    kh_directory_free(front->directory);
    kh_deadlines_clear(&front->deadlines);
    kh_server_free(r->conn.server);
    ev_loop_destroy(front->loop);
    free(front);
    free(r);
    return 0;
}

static void ask(rig *r, kh_place *place, uint64_t key, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const kh_request req = {.op = KH_OP_SIGN, .id = ++r->id, .deadline_ms = DEADLINE_MS};
        kh_job *job = kh_operation_begin(&r->conn, &req, 8);

        assert_non_null(job);
        job->store_op = KH_STORE_SIGN;
        job->key_ref = key;
        kh_place_queue(r->front, place, job);
    }
    kh_dispatch(r->front);
}

/* The keeper takes what its ring has. */
static size_t take(rig *r, int token)
{
    keeper *k = &r->keepers[token];

    while (k->count < SLOTS && kh_ring_end_next(&k->end, &k->taken[k->count])) {
        k->count++;
        k->got++;
    }
    return k->count;
}

/* It answers the first `count` of what it has. */
static void answer(rig *r, int token, kh_result result, size_t count)
{
    keeper *k = &r->keepers[token];
    const kh_boot_ring ring = ring_of(token);

    (void)take(r, token);
    assert_in_range(count, 0, k->count);
    for (size_t i = 0; i < count; i++) {
        kh_ring_end_result(&k->end, k->taken[i].slot, result, (const uint8_t *)"signature", 9, 1);
        kh_ring_end_push(&k->end, k->taken[i].slot);
    }
    memmove(k->taken, k->taken + count, (k->count - count) * sizeof *k->taken);
    k->count -= count;
    kh_backend_collect(kh_backend_find(r->front, ring.token));
    kh_dispatch(r->front);
}

static void answer_all(rig *r, int token)
{
    answer(r, token, KH_OK, take(r, token));
}

static void pass_ms(rig *r, uint64_t ms)
{
    r->front->now_ns += ms * KH_MS;
    if (kh_places_due(r->front) != 0 && kh_places_due(r->front) <= r->front->now_ns) {
        kh_places_check(r->front);
    }
    kh_operation_expire(r->front);
    kh_dispatch(r->front);
}

static uint64_t results(const rig *r, kh_result result)
{
    return r->front->stats.results[KH_OP_SIGN][result];
}

static kh_health *health(rig *r, int token)
{
    return &kh_backend_find(r->front, names[token])->health;
}

/* Some turns in which all keepers answer in 2 ms, so that it is known what they usually take. */
static void warm_up(rig *r)
{
    uint64_t before = results(r, KH_OK);

    for (int turn = 0; turn < 10; turn++) {
        ask(r, r->in_pool, 1, POOL_WINDOW);
        pass_ms(r, 2);
        for (int i = 0; i < 3; i++) {
            answer_all(r, i);
        }
    }
    assert_int_equal(results(r, KH_OK) - before, 10 * POOL_WINDOW);
    r->front->stats.results[KH_OP_SIGN][KH_OK] = 0;
}

/* ---- Tests ---- */

static void test_balance(void **state)
{
    rig *r = *state;

    warm_up(r);
    for (int i = 0; i < 3; i++) {
        assert_in_range(r->keepers[i].got, 10 * WINDOW / 2, 10 * WINDOW * 2);
        assert_int_equal(health(r, i)->outstanding, 0);
    }
    assert_int_equal(r->in_pool->moved, 0);
    assert_int_equal(r->in_pool->queue.flows, 0);
}

/* What is over the window waits in the front, where it can be cancelled; another key's does not wait. */
static void test_window(void **state)
{
    rig *r = *state;

    ask(r, r->alone, 7, 10);
    assert_int_equal(take(r, 3), WINDOW);
    assert_int_equal(r->alone->queue.waiting, 10 - WINDOW);
    ask(r, r->alone, 8, 1);
    assert_int_equal(take(r, 3), WINDOW + 1);
    kh_operation_cancel(&r->conn, 10); /* one that waits, */
    kh_operation_cancel(&r->conn, 1);  /* and one that is with the keeper */
    assert_int_equal(results(r, KH_E_CANCELLED), 2);
    answer(r, 3, KH_OK, 2);
    assert_int_equal(results(r, KH_OK), 1);
    assert_int_equal(take(r, 3), WINDOW + 1);
    answer_all(r, 3);
    answer_all(r, 3);
    assert_int_equal(results(r, KH_OK), 9);
}

static void test_partition_dies(void **state)
{
    rig *r = *state;

    warm_up(r);
    ask(r, r->in_pool, 1, POOL_WINDOW);
    assert_true(take(r, 1) > 0);
    stop_keeper(r, 1);
    assert_int_equal(take(r, 0) + take(r, 2), POOL_WINDOW);
    answer_all(r, 0);
    answer_all(r, 2);
    assert_int_equal(results(r, KH_OK), POOL_WINDOW);
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 0);

    start_keeper(r, 1); /* it proves itself with a copy, and takes part again */
    ask(r, r->in_pool, 1, 3);
    assert_int_equal(take(r, 1), 1);
    assert_int_equal(take(r, 0) + take(r, 2), 3);
    assert_true(health(r, 1)->lost);
    answer_all(r, 1);
    assert_false(health(r, 1)->lost);
    answer_all(r, 0);
    answer_all(r, 2);
    assert_int_equal(results(r, KH_OK), POOL_WINDOW + 3);
    warm_up(r);
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 0);
}

/* It has work and says nothing: what it has goes to others, and what it says later is dropped. */
static void test_partition_is_silent(void **state)
{
    rig *r = *state;
    size_t held = 0, again = 0;

    warm_up(r);
    ask(r, r->in_pool, 1, POOL_WINDOW);
    held = take(r, 2);
    assert_in_range(held, KH_HEALTH_FAILURES, POOL_WINDOW);
    answer_all(r, 0);
    answer_all(r, 1);
    pass_ms(r, 49);
    assert_int_equal(take(r, 0) + take(r, 1), 0);
    pass_ms(r, 2); /* others are asked for the first of it, */
    again = take(r, 0) + take(r, 1);
    assert_in_range(again, 1, held);
    assert_false(health(r, 2)->lost);
    answer_all(r, 0);
    answer_all(r, 1);
    pass_ms(r, KH_HEALTH_STILL_NS / KH_MS - 50); /* and then for all */
    assert_int_equal(again + take(r, 0) + take(r, 1), held);
    assert_true(health(r, 2)->lost);
    answer_all(r, 0);
    answer_all(r, 1);
    assert_int_equal(results(r, KH_OK), POOL_WINDOW);
    ask(r, r->in_pool, 1, 6); /* it gets no operation of its own, */
    assert_int_equal(take(r, 0) + take(r, 1), 6);
    assert_int_equal(take(r, 2), held);
    pass_ms(r, 60);
    answer_all(r, 0);
    answer_all(r, 1);
    assert_int_equal(results(r, KH_OK), POOL_WINDOW + 6);
    answer_all(r, 2); /* and when it answers what nobody waits for any more, it is back */
    assert_int_equal(results(r, KH_OK), POOL_WINDOW + 6);
    assert_false(health(r, 2)->lost);
    assert_int_equal(health(r, 2)->outstanding, 0);
    warm_up(r);
}

/* The front itself stood still: what a partition has answered meanwhile is read before it is blamed. */
static void test_front_stood_still(void **state)
{
    rig *r = *state;
    keeper *k = NULL;

    warm_up(r);
    ask(r, r->in_pool, 1, POOL_WINDOW);
    for (int token = 0; token < 3; token++) {
        k = &r->keepers[token];
        for (size_t i = 0, count = take(r, token); i < count; i++) {
            kh_ring_end_result(&k->end, k->taken[i].slot, KH_OK, (const uint8_t *)"signature", 9, 1);
            kh_ring_end_push(&k->end, k->taken[i].slot);
        }
        k->count = 0;
    }
    pass_ms(r, 1000);
    assert_false(health(r, 0)->lost || health(r, 1)->lost || health(r, 2)->lost);
    assert_int_equal(results(r, KH_OK), POOL_WINDOW);
    assert_int_equal(take(r, 0) + take(r, 1) + take(r, 2), 0);
    warm_up(r);
}

static void test_partition_fails(void **state)
{
    rig *r = *state;
    unsigned before = 0;

    warm_up(r);
    ask(r, r->in_pool, 1, POOL_WINDOW);
    answer(r, 0, KH_E_UNAVAILABLE, take(r, 0));
    assert_false(health(r, 0)->lost); /* perhaps nobody can do it */
    answer_all(r, 1);
    answer_all(r, 2);
    assert_true(health(r, 0)->lost);
    assert_int_equal(results(r, KH_OK), POOL_WINDOW);
    before = r->keepers[0].got;
    for (int i = 0; i < 30; i++) {
        ask(r, r->in_pool, 1, 4);
        pass_ms(r, 5);
        answer_all(r, 1);
        answer_all(r, 2);
    }
    assert_int_equal(results(r, KH_OK), POOL_WINDOW + 120);
    assert_in_range(take(r, 0), 1, 2); /* a copy now and then */
    assert_in_range(r->keepers[0].got - before, 1, 2);
    answer(r, 0, KH_E_UNAVAILABLE, take(r, 0));
    for (int i = 0; i < 100 && health(r, 0)->lost; i++) {
        ask(r, r->in_pool, 1, 4);
        pass_ms(r, 5);
        for (int token = 0; token < 3; token++) {
            answer_all(r, token);
        }
    }
    assert_false(health(r, 0)->lost);
    warm_up(r);
}

/* What is the caller's fault is answered by the first, and says nothing of the partition. */
static void test_final_answers(void **state)
{
    rig *r = *state;

    warm_up(r);
    ask(r, r->in_pool, 1, POOL_WINDOW);
    for (int i = 0; i < 3; i++) {
        answer(r, i, KH_E_USAGE, take(r, i));
        assert_false(health(r, i)->out);
    }
    assert_int_equal(results(r, KH_E_USAGE), POOL_WINDOW);
    assert_int_equal(r->in_pool->moved, 0);
}

/* No partition can: each was asked once, and the last answer is the caller's. */
static void test_all_fail(void **state)
{
    rig *r = *state;

    warm_up(r);
    ask(r, r->in_pool, 1, 1);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3; i++) {
            answer(r, i, KH_E_NOT_FOUND, take(r, i));
        }
    }
    assert_int_equal(results(r, KH_E_NOT_FOUND), 1);
    assert_int_equal(r->in_pool->moved, 2);
}

/* A key that no partition can operate with leaves none out; one that a single partition cannot does not, either. */
static void test_broken_key(void **state)
{
    rig *r = *state;

    warm_up(r);
    for (int i = 0; i < 20; i++) {
        ask(r, r->in_pool, 13, 1);
        for (int round = 0; round < 3; round++) {
            for (int token = 0; token < 3; token++) {
                answer(r, token, KH_E_UNAVAILABLE, take(r, token));
            }
        }
    }
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 20);
    for (int i = 0; i < 200; i++) {
        ask(r, r->in_pool, 13, 3);
        pass_ms(r, 2);
        answer(r, 0, KH_E_UNAVAILABLE, take(r, 0));
        answer_all(r, 1);
        answer_all(r, 2);
        ask(r, r->in_pool, 1, 3);
        for (int token = 0; token < 3; token++) {
            answer_all(r, token);
        }
        for (int token = 0; token < 3; token++) {
            assert_false(health(r, token)->out);
        }
    }
    assert_int_equal(results(r, KH_OK), 200 * 6);
}

/* Nobody asks anything: a partition whose keeper came back is back, and proves itself later. */
static void test_idle(void **state)
{
    rig *r = *state;
    kh_backend *backend = kh_backend_find(r->front, "b");
    kh_keeper_stats stats = {.running = 0};

    warm_up(r);
    stop_keeper(r, 1);
    assert_true(health(r, 1)->lost);
    start_keeper(r, 1);
    r->front->now_ns += 10 * KH_HEALTH_QUIET_NS;
    kh_place_rest(backend);
    assert_true(health(r, 1)->lost); /* it has not opened its token yet */
    assert_string_equal(kh_place_state(r->in_pool, 1), "down");
    stats.running = 1;
    for (size_t i = 0; i < KH_STATS_WORDS; i++) {
        uint64_t word = 0;

        memcpy(&word, (const uint8_t *)&stats + i * sizeof word, sizeof word);
        atomic_store(&r->keepers[1].end.map.shared->stats[i], word);
    }
    assert_string_equal(kh_place_state(r->in_pool, 1), "lost");
    kh_place_rest(backend);
    assert_false(health(r, 1)->lost);
    assert_string_equal(kh_place_state(r->in_pool, 1), "up");
    ask(r, r->in_pool, 1, 3);
    assert_int_equal(take(r, 1), 1);
    assert_int_equal(take(r, 0) + take(r, 2), 3);
    answer_all(r, 0);
    answer_all(r, 2);
    for (int i = 0; i < 2 * KH_HEALTH_FAILURES; i++) { /* the copies fail, after the others have done it */
        answer(r, 1, KH_E_UNAVAILABLE, take(r, 1));
        pass_ms(r, 1100);
        ask(r, r->in_pool, 1, 1);
        answer_all(r, 0);
        answer_all(r, 2);
    }
    assert_true(health(r, 1)->lost);
    answer_all(r, 1);
    assert_false(health(r, 1)->out);
}

static void test_none_is_up(void **state)
{
    rig *r = *state;

    warm_up(r);
    ask(r, r->in_pool, 1, 50);
    for (int i = 0; i < 3; i++) {
        stop_keeper(r, i);
    }
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 50);
    ask(r, r->in_pool, 1, 5);
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 55);
    ask(r, r->alone, 7, 20); /* a token by itself */
    stop_keeper(r, 3);
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 75);
    ask(r, r->alone, 7, 1);
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 76);
    start_keeper(r, 3);
    ask(r, r->alone, 7, 1);
    answer_all(r, 3);
    assert_int_equal(results(r, KH_OK), 1);
    for (int i = 0; i < 3; i++) { /* all are new: one of them has to be the first */
        start_keeper(r, i);
    }
    ask(r, r->in_pool, 1, 3);
    for (int i = 0; i < 3; i++) {
        answer_all(r, i);
    }
    assert_int_equal(results(r, KH_OK), 4);
}

/* One operation hangs in a partition that does others: it is asked for elsewhere, and the partition is not lost. */
static void test_one_hangs(void **state)
{
    rig *r = *state;
    int slow = 0;

    warm_up(r);
    ask(r, r->in_pool, 9, 1);
    while (take(r, slow) == 0) {
        slow++;
    }
    for (int i = 0; i < 8; i++) {
        ask(r, r->in_pool, 1, 12);
        pass_ms(r, 8);
        for (int token = 0; token < 3; token++) {
            keeper *k = &r->keepers[token];

            (void)take(r, token);
            if (token == slow && k->count > 1) { /* the first stays */
                kh_ring_copy first = k->taken[0];

                memmove(k->taken, k->taken + 1, --k->count * sizeof *k->taken);
                answer(r, token, KH_OK, k->count);
                memmove(k->taken + 1, k->taken, k->count * sizeof *k->taken);
                k->taken[0] = first;
                k->count++;
            } else if (token != slow) {
                answer_all(r, token);
            }
        }
    }
    assert_false(health(r, slow)->lost);
    assert_int_equal(results(r, KH_OK), 8 * 12 + 1);
    assert_int_equal(r->in_pool->moved, 1);
    answer_all(r, slow);
    assert_int_equal(results(r, KH_OK), 8 * 12 + 1);
}

/* Past its deadline an operation is not sent again. */
static void test_deadline(void **state)
{
    rig *r = *state;

    warm_up(r);
    ask(r, r->in_pool, 1, 30);
    pass_ms(r, DEADLINE_MS + 1);
    assert_int_equal(results(r, KH_E_DEADLINE), 30);
    for (int i = 0; i < 3; i++) {
        stop_keeper(r, i);
    }
    assert_int_equal(results(r, KH_E_UNAVAILABLE), 0);
    assert_int_equal(r->in_pool->moved, 0);
}

/* A pool loses a partition by configuration and gets another one, with operations under way. */
static void test_reload(void **state)
{
    rig *r = *state;
    kh_backend *gone = kh_backend_find(r->front, "a");

    warm_up(r);
    ask(r, r->in_pool, 1, POOL_WINDOW + 5);
    r->tokens[0] = r->tokens[3]; /* a is no more; d becomes a partition */
    r->pool.partitions[0] = 0;
    r->config.token_count = 3;
    assert_int_equal(kh_backends_apply(r->front), KH_OK);
    assert_ptr_equal(kh_place_find(r->front, KH_TIER_HSM_POOL, "pool"), r->in_pool);
    assert_null(kh_place_find(r->front, KH_TIER_HSM, "a"));
    assert_false(gone->configured);
    assert_int_equal(kh_place_up(r->in_pool), 3);
    for (int i = 0; i < TOKENS; i++) {
        answer_all(r, i);
    }
    for (int i = 0; i < TOKENS; i++) {
        answer_all(r, i);
    }
    assert_int_equal(results(r, KH_OK), POOL_WINDOW + 5);
    ask(r, r->in_pool, 1, POOL_WINDOW);
    assert_int_equal(take(r, 0), 0);
    assert_true(take(r, 3) > 0);
    stop_keeper(r, 0);
    for (int i = 1; i < TOKENS; i++) {
        answer_all(r, i);
    }
    assert_int_equal(results(r, KH_OK), 2 * POOL_WINDOW + 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_balance, setup, teardown),
        cmocka_unit_test_setup_teardown(test_window, setup, teardown),
        cmocka_unit_test_setup_teardown(test_partition_dies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_partition_is_silent, setup, teardown),
        cmocka_unit_test_setup_teardown(test_front_stood_still, setup, teardown),
        cmocka_unit_test_setup_teardown(test_partition_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(test_final_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_fail, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle, setup, teardown),
        cmocka_unit_test_setup_teardown(test_none_is_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_hangs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reload, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

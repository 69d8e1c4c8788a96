/* SPDX-License-Identifier: Apache-2.0 */
/* The fair queues: turns by weight, order within a tenant, bounds, leaving from the middle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "queue.h"
#include <stdlib.h>
#include <string.h>

typedef struct fixture {
    kh_queue queue;
    kh_tenant tenants[3];
    kh_job jobs[600];
    int used;
} fixture;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);

    f->queue.total_max = 500;
    for (int i = 0; i < 3; i++) {
        f->tenants[i].queue_max = 200;
        f->tenants[i].weight = 1;
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static kh_job *push(fixture *f, int tenant, kh_lane lane)
{
    kh_job *job = &f->jobs[f->used++];

    job->tenant = &f->tenants[tenant];
    job->lane = lane;
    job->request_id = (uint32_t)f->used;
    assert_int_equal(kh_queue_admit(&f->queue, job->tenant), KH_OK);
    kh_queue_push(&f->queue, job);
    assert_int_equal(job->state, KH_JOB_QUEUED);
    return job;
}

static int pop_tenant(fixture *f, kh_lane lane)
{
    kh_job *job = kh_queue_pop(&f->queue, lane);

    return job == NULL ? -1 : (int)(job->tenant - f->tenants);
}

static void test_fifo_of_one(void **state)
{
    fixture *f = *state;

    for (int i = 0; i < 20; i++) {
        push(f, 0, KH_LANE_P256);
    }
    for (uint32_t i = 1; i <= 20; i++) {
        assert_int_equal(kh_queue_pop(&f->queue, KH_LANE_P256)->request_id, i);
    }
    assert_null(kh_queue_pop(&f->queue, KH_LANE_P256));
    assert_int_equal(f->queue.total, 0);
    assert_int_equal(f->tenants[0].waiting, 0);
}

/* One floods, another has a little: the little does not wait for the flood. */
static void test_flood(void **state)
{
    fixture *f = *state;
    int turns[3] = {0};

    for (int i = 0; i < 150; i++) {
        push(f, 0, KH_LANE_RSA4096);
    }
    for (int i = 0; i < 5; i++) {
        push(f, 1, KH_LANE_RSA4096);
    }
    for (int i = 0; i < 10; i++) {
        turns[pop_tenant(f, KH_LANE_RSA4096)]++;
    }
    assert_int_equal(turns[1], 5);
    assert_int_equal(turns[0], 5);
}

static void test_weights(void **state)
{
    fixture *f = *state;
    int turns[3] = {0};

    f->tenants[1].weight = 3;
    f->tenants[2].weight = 2;
    for (int tenant = 0; tenant < 3; tenant++) {
        for (int i = 0; i < 100; i++) {
            push(f, tenant, KH_LANE_P384);
        }
    }
    for (int i = 0; i < 120; i++) {
        turns[pop_tenant(f, KH_LANE_P384)]++;
    }
    assert_int_equal(turns[0], 20);
    assert_int_equal(turns[1], 60);
    assert_int_equal(turns[2], 40);
}

static void test_lanes_are_apart(void **state)
{
    fixture *f = *state;

    push(f, 0, KH_LANE_P256);
    push(f, 0, KH_LANE_ED25519);
    assert_int_equal(pop_tenant(f, KH_LANE_RSA2048), -1);
    assert_int_equal(pop_tenant(f, KH_LANE_P256), 0);
    assert_int_equal(pop_tenant(f, KH_LANE_P256), -1);
    assert_int_equal(f->queue.waiting[KH_LANE_ED25519], 1);
    assert_int_equal(pop_tenant(f, KH_LANE_ED25519), 0);
}

static void test_bounds(void **state)
{
    fixture *f = *state;

    for (int i = 0; i < 200; i++) {
        push(f, 0, KH_LANE_P256);
    }
    assert_int_equal(kh_queue_admit(&f->queue, &f->tenants[0]), KH_E_OVERLOADED); /* its own bound */
    for (int i = 0; i < 200; i++) {
        push(f, 1, KH_LANE_P256);
    }
    for (int i = 0; i < 100; i++) {
        push(f, 2, KH_LANE_P256);
    }
    assert_int_equal(kh_queue_admit(&f->queue, &f->tenants[2]), KH_E_OVERLOADED); /* the bound of all */
    assert_non_null(kh_queue_pop(&f->queue, KH_LANE_P256));
    assert_int_equal(kh_queue_admit(&f->queue, &f->tenants[2]), KH_OK);
    assert_int_equal(kh_queue_admit(&f->queue, &f->tenants[2]), KH_E_OVERLOADED);
    kh_queue_forget(&f->queue, &f->tenants[2]); /* answered without having been queued */
    assert_int_equal(f->queue.total, 499);
    kh_queue_return(&f->queue, &f->jobs[0]); /* past the bounds, and back in its flow */
    assert_int_equal(f->queue.total, 500);
}

/* Jobs leave from anywhere (cancel, deadline) in a long random run; nothing is lost, nothing comes twice. */
static void test_random(void **state)
{
    fixture *f = *state;
    uint32_t seed = 7, pushed = 0, popped = 0, removed = 0;
    kh_job *queued[600];
    size_t count = 0;

    while (f->used < 600 || count > 0) {
        seed = seed * 1664525 + 1013904223;
        if (f->used < 600 && seed >> 16 & 1 && f->queue.total < 150) {
            queued[count++] = push(f, (int)(seed >> 8) % 3, (kh_lane)((seed >> 20) % KH_LANE_COUNT));
            pushed++;
        } else if (count > 0 && seed >> 17 & 1) {
            kh_job *job = kh_queue_pop(&f->queue, queued[(seed >> 4) % count]->lane);
            size_t at = 0;

            assert_non_null(job);
            while (queued[at] != job) {
                assert_true(++at < count);
            }
            queued[at] = queued[--count];
            popped++;
        } else if (count > 0) {
            size_t at = (seed >> 4) % count;

            kh_queue_remove(&f->queue, queued[at]);
            queued[at] = queued[--count];
            removed++;
        }
    }
    assert_int_equal(pushed, popped + removed);
    assert_int_equal(f->queue.total, 0);
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        assert_int_equal(f->queue.waiting[lane], 0);
        assert_null(f->queue.turn[lane]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_fifo_of_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flood, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lanes_are_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

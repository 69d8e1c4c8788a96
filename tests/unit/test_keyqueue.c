/* SPDX-License-Identifier: Apache-2.0 */
/* The fair queue of a token: keys and tenants in turn, windows, leaving from the middle, nothing left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "keyqueue.h"
#include <stdlib.h>
#include <string.h>

#define WINDOW 4
#define JOBS 2000

typedef struct fixture {
    kh_queue counted;
    kh_keyqueue queue, other;
    kh_tenant tenants[3];
    kh_job jobs[JOBS];
    int used;
} fixture;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);

    f->counted.total_max = JOBS;
    for (int i = 0; i < 3; i++) {
        f->tenants[i].queue_max = JOBS;
        f->tenants[i].weight = 1;
    }
    assert_int_equal(kh_keyqueue_init(&f->queue, &f->counted, WINDOW), KH_OK);
    assert_int_equal(kh_keyqueue_init(&f->other, &f->counted, WINDOW), KH_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;

    assert_int_equal(f->queue.flows, 0);
    assert_int_equal(f->queue.waiting, 0);
    assert_int_equal(f->counted.total, 0);
    for (int i = 0; i < 3; i++) {
        assert_null(f->tenants[i].lines);
        assert_int_equal(f->tenants[i].waiting, 0);
    }
    kh_keyqueue_clear(&f->queue);
    kh_keyqueue_clear(&f->other);
    free(f);
    return 0;
}

static kh_job *push_to(fixture *f, kh_keyqueue *queue, int tenant, uint64_t key)
{
    kh_job *job = &f->jobs[f->used++];

    job->tenant = &f->tenants[tenant];
    job->key_ref = key;
    job->request_id = (uint32_t)f->used;
    assert_int_equal(kh_queue_admit(&f->counted, job->tenant), KH_OK);
    assert_int_equal(kh_keyqueue_push(queue, job), KH_OK);
    assert_int_equal(job->state, KH_JOB_QUEUED);
    return job;
}

static kh_job *push(fixture *f, int tenant, uint64_t key)
{
    return push_to(f, &f->queue, tenant, key);
}

/* A slow key fills its window and waits; others go on as if it were not there. */
static void test_slow_key(void **state)
{
    fixture *f = *state;
    kh_job *slow[WINDOW], *job = NULL;

    for (int i = 0; i < 50; i++) {
        push(f, 0, 7);
    }
    for (int i = 0; i < WINDOW; i++) {
        slow[i] = kh_keyqueue_pop(&f->queue);
        assert_int_equal(slow[i]->key_ref, 7);
        assert_int_equal(slow[i]->request_id, i + 1);
    }
    assert_null(kh_keyqueue_pop(&f->queue));
    for (int i = 0; i < 20; i++) {
        push(f, 0, 8);
        job = kh_keyqueue_pop(&f->queue);
        assert_int_equal(job->key_ref, 8);
        kh_keyqueue_done(job);
    }
    assert_null(kh_keyqueue_pop(&f->queue));
    kh_keyqueue_done(slow[0]);
    job = kh_keyqueue_pop(&f->queue);
    assert_int_equal(job->request_id, WINDOW + 1);
    assert_null(kh_keyqueue_pop(&f->queue));
    kh_keyqueue_done(job);
    for (int i = 1; i < WINDOW; i++) {
        kh_keyqueue_done(slow[i]);
    }
    while ((job = kh_keyqueue_pop(&f->queue)) != NULL) {
        kh_keyqueue_done(job);
    }
}

/* A tenant with many keys gets no more than one with few. */
static void test_tenants(void **state)
{
    fixture *f = *state;
    int turns[3] = {0};
    kh_job *job = NULL;

    f->tenants[2].weight = 2;
    for (uint64_t key = 1; key <= 60; key++) {
        push(f, 0, key);
        push(f, 1, 1);
        push(f, 2, key % 2 + 1);
    }
    for (int i = 0; i < 40; i++) {
        job = kh_keyqueue_pop(&f->queue);
        turns[job->tenant - f->tenants]++;
        kh_keyqueue_done(job);
    }
    assert_int_equal(turns[0], 10);
    assert_int_equal(turns[1], 10);
    assert_int_equal(turns[2], 20);
    while ((job = kh_keyqueue_pop(&f->queue)) != NULL) {
        kh_keyqueue_done(job);
    }
}

/* Keys of one tenant in turn, each in its order; the same key of another tenant, or at another place, is another flow. */
static void test_order(void **state)
{
    fixture *f = *state;
    static const uint64_t expected[] = {1, 2, 1, 2, 1, 1};
    kh_job *elsewhere = push_to(f, &f->other, 0, 1), *job = NULL;

    for (int i = 0; i < 4; i++) {
        push(f, 0, 1);
    }
    push(f, 0, 2);
    push(f, 0, 2);
    assert_ptr_equal(kh_keyqueue_pop(&f->other), elsewhere);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        job = kh_keyqueue_pop(&f->queue);
        assert_int_equal(job->key_ref, expected[i]);
        kh_keyqueue_done(job);
    }
    assert_int_equal(f->other.flows, 1);
    kh_keyqueue_done(elsewhere);
}

/* Jobs come, go, leave from the middle and come back, in a long random run; no window is ever exceeded. */
static void test_random(void **state)
{
    fixture *f = *state;
    uint32_t seed = 11;
    kh_job *queued[JOBS], *out[JOBS];
    size_t waiting = 0, in_ring = 0, served = 0;

    while (f->used < JOBS || waiting > 0 || in_ring > 0) {
        seed = seed * 1664525 + 1013904223;
        if (f->used < JOBS && (seed >> 16 & 3) < 2) {
            queued[waiting++] = push(f, (int)(seed >> 8) % 3, (seed >> 20) % 40 + 1);
        } else if ((seed >> 18 & 3) == 0 && waiting > 0) {
            size_t at = (seed >> 4) % waiting;

            kh_keyqueue_remove(queued[at]);
            queued[at] = queued[--waiting];
        } else if ((seed >> 18 & 3) == 1 && in_ring > 0) {
            size_t at = (seed >> 4) % in_ring;

            kh_keyqueue_done(out[at]);
            out[at] = out[--in_ring];
            served++;
        } else {
            kh_job *job = kh_keyqueue_pop(&f->queue);
            size_t at = 0, same = 0;

            if (job == NULL) {
                continue;
            }
            while (queued[at] != job) {
                assert_true(++at < waiting);
            }
            queued[at] = queued[--waiting];
            out[in_ring++] = job;
            for (size_t i = 0; i < in_ring; i++) {
                same += out[i]->key_ref == job->key_ref && out[i]->tenant == job->tenant;
            }
            assert_in_range(same, 1, WINDOW);
        }
    }
    assert_in_range(served, 500, JOBS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_slow_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tenants, setup, teardown),
        cmocka_unit_test_setup_teardown(test_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nginx module's policy (ngx_keyhold_balance.c, ngx_keyhold_missing.c): shares, load, backups, slow start, second tries,
 * and the table of missing keys, without nginx and with a clock of the test's own.
 */
#include "ngx_keyhold_balance.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { N = 3, ALL = (1 << N) - 1 };

static ngx_keyhold_share_t agents[N];
static ngx_keyhold_share_t *shares[NGX_KEYHOLD_AGENTS_MAX] = {&agents[0], &agents[1], &agents[2]};

static int start(void **state)
{
    (void)state;
    memset(agents, 0, sizeof(agents));
    for (int i = 0; i < N; i++) {
        agents[i].weight = 1;
    }
    return 0;
}

/* Operations that are done before the next one comes. */
static void count_idle(ngx_keyhold_set_t set, unsigned turns, ngx_msec_t now, unsigned counts[N])
{
    memset(counts, 0, N * sizeof(counts[0]));
    for (unsigned i = 0; i < turns; i++) {
        counts[ngx_keyhold_balance(shares, set, 0, 1, now)]++;
    }
}

static void test_weights_when_idle(void **state)
{
    unsigned counts[N];

    (void)state;
    agents[0].weight = 5;
    agents[1].weight = 3;
    agents[2].weight = 2;
    count_idle(ALL, 1000, 0, counts);
    assert_in_range(counts[0], 499, 501);
    assert_in_range(counts[1], 299, 301);
    assert_in_range(counts[2], 199, 201);
    count_idle(ngx_keyhold_bit(1), 10, 0, counts);
    assert_int_equal(counts[1], 10);
    count_idle(ngx_keyhold_bit(0) | ngx_keyhold_bit(2), 700, 0, counts);
    assert_in_range(counts[0], 490, 510);
    assert_int_equal(counts[1], 0);
}

static void test_least_work(void **state)
{
    (void)state;
    agents[0].work = 10;
    agents[1].work = 10;
    agents[2].work = 2;
    for (int i = 0; i < 7; i++) { /* the one with least is filled up */
        ngx_uint_t chosen = ngx_keyhold_balance(shares, ALL, 0, 1, 0);

        assert_int_equal(chosen, 2);
        agents[chosen].work++;
    }
    /* Relative to the weight: 30 at 4 is less than 10 at 1. */
    agents[0] = (ngx_keyhold_share_t){.weight = 4, .work = 30};
    agents[1] = (ngx_keyhold_share_t){.weight = 1, .work = 10};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(ngx_keyhold_balance(shares, 3, 0, 1, 0), 0);
    }
}

/* An agent that answers nothing gets one more than the others have, and no more. */
static void test_stuck(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++) {
        ngx_uint_t chosen = ngx_keyhold_balance(shares, 3, 0, 1, 0);

        if (chosen == 0) {
            agents[0].work++;
        }
    }
    assert_in_range(agents[0].work, 1, 2);
}

/* After that it is not made up for. */
static void test_no_stampede(void **state)
{
    unsigned counts[N];

    (void)state;
    agents[0].work = 50;
    count_idle(3, 10000, 0, counts);
    assert_int_equal(counts[0], 0);
    agents[0].work = 0;
    count_idle(3, 100, 0, counts);
    assert_in_range(counts[0], 45, 55);
}

static void test_backup(void **state)
{
    unsigned counts[N];

    (void)state;
    agents[2].backup = 1;
    agents[0].work = agents[1].work = 1000;
    count_idle(ALL, 100, 0, counts);
    assert_int_equal(counts[2], 0);
    count_idle(ngx_keyhold_bit(2), 100, 0, counts);
    assert_int_equal(counts[2], 100);
    /* A backup that can rather than a primary that said it can not. */
    agents[0].avoided = agents[1].avoided = 1;
    agents[0].avoid = agents[1].avoid = 500;
    count_idle(ALL, 100, 499, counts);
    assert_int_equal(counts[2], 100);
    count_idle(3, 100, 499, counts);
    assert_in_range(counts[0], 49, 51);
    count_idle(ALL, 100, 500, counts);
    assert_int_equal(counts[2], 0);
}

static void test_tried(void **state)
{
    (void)state;
    agents[1].work = 100;
    assert_int_equal(ngx_keyhold_balance(shares, 3, 1, 1, 0), 1);
    assert_int_equal(ngx_keyhold_balance(shares, 1, 1, 1, 0), 0); /* better than nobody */
    agents[1].backup = 1;
    assert_int_equal(ngx_keyhold_balance(shares, 3, 1, 1, 0), 1);
}

static void test_trial(void **state)
{
    (void)state;
    agents[0].trial = 1;
    agents[0].weight = 1000;
    assert_int_equal(ngx_keyhold_balance(shares, 3, 0, 1, 0), 0);
    agents[0].work = 1;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(ngx_keyhold_balance(shares, 3, 0, 1, 0), 1);
    }
    assert_int_equal(ngx_keyhold_balance(shares, 1, 0, 1, 0), 0);
}

static void test_slow_start(void **state)
{
    const ngx_msec_t began = (ngx_msec_t)-1000; /* the clock may wrap */
    unsigned counts[N];
    unsigned before = 0;

    (void)state;
    ngx_keyhold_share_return(&agents[0], began);
    for (unsigned step = 0; step <= 5; step++) {
        count_idle(3, 1000, began + step * NGX_KEYHOLD_SLOW_START / 5, counts);
        assert_true(counts[0] > before);
        before = counts[0];
        if (step == 0) {
            assert_in_range(counts[0], 30, 70);
        }
    }
    assert_in_range(before, 490, 510);
    assert_int_equal(agents[0].slow, 0);
    /* And under load: its share of what is outstanding is small, too. */
    ngx_keyhold_share_return(&agents[0], 0);
    agents[1].work = 40;
    for (int i = 0; i < 100; i++) {
        agents[ngx_keyhold_balance(shares, 3, 0, 1, 0)].work++;
    }
    assert_in_range(agents[0].work, 1, 20);
}

static void test_budget(void **state)
{
    ngx_keyhold_budget_t budget;
    unsigned taken = 0;

    (void)state;
    ngx_keyhold_budget_init(&budget);
    while (ngx_keyhold_budget_take(&budget)) {
        taken++;
    }
    assert_int_equal(taken, NGX_KEYHOLD_BUDGET_BURST);
    taken = 0;
    for (int i = 0; i < 1000; i++) {
        ngx_keyhold_budget_earn(&budget);
        taken += ngx_keyhold_budget_take(&budget);
    }
    assert_int_equal(taken, 100);
    for (int i = 0; i < 100000; i++) {
        ngx_keyhold_budget_earn(&budget);
    }
    taken = 0;
    while (ngx_keyhold_budget_take(&budget)) {
        taken++;
    }
    assert_int_equal(taken, NGX_KEYHOLD_BUDGET_BURST);
    ngx_keyhold_budget_return(&budget);
    assert_int_equal(ngx_keyhold_budget_take(&budget), 1);
}

static uint64_t name_key(unsigned number)
{
    char name[32];

    return ngx_keyhold_missing_key((u_char *)name, (size_t)snprintf(name, sizeof(name), "site-%u", number));
}

static void test_missing(void **state)
{
    static ngx_keyhold_missing_t missing;
    unsigned known = 0;

    (void)state;
    assert_int_equal(ngx_keyhold_missing_since(&missing, name_key(1), 5), -1);
    ngx_keyhold_missing_add(&missing, name_key(1), 5);
    assert_int_equal(ngx_keyhold_missing_since(&missing, name_key(1), 5), 0);
    assert_int_equal(ngx_keyhold_missing_since(&missing, name_key(2), 5), -1);
    assert_int_equal(ngx_keyhold_missing_since(&missing, name_key(1), 1005), 1000);
    ngx_keyhold_missing_add(&missing, name_key(1), 2000);
    assert_int_equal(ngx_keyhold_missing_since(&missing, name_key(1), 2001), 1);
    assert_int_equal(ngx_keyhold_missing_since(&missing, name_key(1), 2000 + NGX_KEYHOLD_MISSING_MSEC), -1);
    /* Far more than it holds: the newest are known, nothing grows. */
    for (unsigned i = 0; i < 20000; i++) {
        ngx_keyhold_missing_add(&missing, name_key(i), i / 10);
    }
    for (unsigned i = 19000; i < 20000; i++) {
        known += ngx_keyhold_missing_since(&missing, name_key(i), 2000) != -1;
    }
    assert_in_range(known, 900, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_weights_when_idle, start), cmocka_unit_test_setup(test_least_work, start),
        cmocka_unit_test_setup(test_stuck, start),             cmocka_unit_test_setup(test_no_stampede, start),
        cmocka_unit_test_setup(test_backup, start),            cmocka_unit_test_setup(test_tried, start),
        cmocka_unit_test_setup(test_trial, start),             cmocka_unit_test_setup(test_slow_start, start),
        cmocka_unit_test_setup(test_budget, start),            cmocka_unit_test_setup(test_missing, start),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

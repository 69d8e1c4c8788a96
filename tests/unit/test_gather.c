/* SPDX-License-Identifier: Apache-2.0 */
/* When the front lets requests gather: a stream of one caller, and nothing else. */
#include "gather.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
/* cmocka.h needs the three before it. */
#include <cmocka.h>

#define MS 1000000u

/* So many operations a window, `together` at the same time, for so many windows; then whether it is on. */
static bool play(kh_gather *gather, uint64_t *now_ns, unsigned windows, unsigned operations, uint32_t together, uint32_t callers)
{
    for (unsigned i = 0; i < windows; i++) {
        for (unsigned j = 0; j < operations; j++) {
            kh_gather_count(gather, together);
            (void)kh_gather_turn(gather, *now_ns, callers);
        }
        *now_ns += KH_GATHER_WINDOW_NS;
        (void)kh_gather_turn(gather, *now_ns, callers);
    }
    return gather->on;
}

static void test_stream(void **state)
{
    kh_gather gather = {0};
    uint64_t now_ns = 1000 * (uint64_t)MS;

    (void)state;
    (void)kh_gather_turn(&gather, now_ns, 0);
    assert_false(gather.on);
    assert_true(play(&gather, &now_ns, 1, KH_GATHER_STREAM, 2, 1));
    assert_true(play(&gather, &now_ns, 50, KH_GATHER_STREAM, 2, 1));
}

/* Each change is told once: it costs a system call. */
static void test_told_once(void **state)
{
    kh_gather gather = {0};
    uint64_t now_ns = 1000 * (uint64_t)MS;
    unsigned changes = 0;

    (void)state;
    (void)kh_gather_turn(&gather, now_ns, 1);
    for (unsigned i = 0; i < 1000; i++, now_ns += MS) {
        kh_gather_count(&gather, 5);
        changes += kh_gather_turn(&gather, now_ns, 1);
    }
    assert_true(gather.on);
    assert_int_equal(changes, 1);
}

static void test_few(void **state)
{
    kh_gather gather = {0};
    uint64_t now_ns = 1000 * (uint64_t)MS;

    (void)state;
    (void)kh_gather_turn(&gather, now_ns, 0);
    assert_false(play(&gather, &now_ns, 100, KH_GATHER_STREAM - 1, 2, 1));
    for (unsigned i = 0; i < KH_GATHER_STREAM; i++) { /* as many, in a longer time */
        kh_gather_count(&gather, 2);
    }
    now_ns += 2 * KH_GATHER_WINDOW_NS;
    assert_false(kh_gather_turn(&gather, now_ns, 1));
    assert_false(gather.on);
}

/* Any number of operations, each after the end of the one before: nobody would be served with them. */
static void test_one_after_the_other(void **state)
{
    kh_gather gather = {0};
    uint64_t now_ns = 1000 * (uint64_t)MS;

    (void)state;
    assert_false(play(&gather, &now_ns, 50, 600, 1, 1));
}

static void test_pause(void **state)
{
    kh_gather gather = {0};
    uint64_t now_ns = 1000 * (uint64_t)MS;

    (void)state;
    (void)kh_gather_turn(&gather, now_ns, 0);
    assert_true(play(&gather, &now_ns, 2, 100, 9, 1));
    assert_true(play(&gather, &now_ns, KH_GATHER_PAUSE_NS / KH_GATHER_WINDOW_NS - 1, 0, 0, 0));
    assert_false(play(&gather, &now_ns, 2, 0, 0, 0));
}

/* A second caller makes it prompt at once, and for a while; the first one's stream comes back after that. */
static void test_second_caller(void **state)
{
    kh_gather gather = {0};
    uint64_t now_ns = 1000 * (uint64_t)MS;

    (void)state;
    (void)kh_gather_turn(&gather, now_ns, 0);
    assert_true(play(&gather, &now_ns, 5, 100, 9, 1));
    kh_gather_count(&gather, 10);
    assert_true(kh_gather_turn(&gather, now_ns + 1, 2));
    assert_false(gather.on);
    assert_false(play(&gather, &now_ns, KH_GATHER_PROMPT_NS / KH_GATHER_WINDOW_NS, 100, 9, 1));
    assert_true(play(&gather, &now_ns, 1, 100, 9, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_told_once),
        cmocka_unit_test(test_few),
        cmocka_unit_test(test_one_after_the_other),
        cmocka_unit_test(test_pause),
        cmocka_unit_test(test_second_caller),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A thread's CPUs, changed for a while: only within what is allowed, and put back unless somebody else changed them. */
#include "affinity.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
/* cmocka.h needs the three before it. */
#include <cmocka.h>

static cpu_set_t allowed;

static cpu_set_t now_on(void)
{
    cpu_set_t now;

    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    return now;
}

static void assert_only(uint32_t cpu)
{
    cpu_set_t now = now_on();

    assert_int_equal(CPU_COUNT(&now), 1);
    assert_true(CPU_ISSET(cpu, &now));
}

static void assert_as_it_was(void)
{
    cpu_set_t now = now_on();

    assert_true(CPU_EQUAL(&now, &allowed));
}

/* The n-th CPU that is allowed, from 0; the test is skipped where there are not so many. */
static uint32_t cpu_number(int n)
{
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &allowed) && n-- == 0) {
            return cpu;
        }
    }
    skip();
    return 0;
}

static int remember(void **state)
{
    (void)state;
    return sched_getaffinity(0, sizeof allowed, &allowed);
}

static int put_back(void **state)
{
    (void)state;
    return sched_setaffinity(0, sizeof allowed, &allowed);
}

static void test_only_and_back(void **state)
{
    kh_affinity affinity = {0};
    const uint32_t cpu = cpu_number(1);

    (void)state;
    assert_true(kh_affinity_only(&affinity, cpu));
    assert_only(cpu);
    kh_affinity_restore(&affinity);
    assert_as_it_was();
    kh_affinity_restore(&affinity);
    assert_as_it_was();
}

static void test_without_and_back(void **state)
{
    kh_affinity affinity = {0};
    const uint32_t cpu = cpu_number(1);
    cpu_set_t now;

    (void)state;
    assert_true(kh_affinity_without(&affinity, cpu));
    now = now_on();
    assert_false(CPU_ISSET(cpu, &now));
    assert_int_equal(CPU_COUNT(&now), CPU_COUNT(&allowed) - 1);
    kh_affinity_restore(&affinity);
    assert_as_it_was();
}

/* One change after the other begins from what was allowed, not from the one before. */
static void test_changes(void **state)
{
    kh_affinity affinity = {0};
    const uint32_t one = cpu_number(0), two = cpu_number(1);

    (void)state;
    assert_true(kh_affinity_only(&affinity, one));
    assert_true(kh_affinity_only(&affinity, two));
    assert_only(two);
    assert_true(kh_affinity_without(&affinity, one));
    assert_false(kh_affinity_without(&affinity, CPU_SETSIZE));
    assert_as_it_was();
    kh_affinity_restore(&affinity);
    assert_as_it_was();
}

static void test_refused(void **state)
{
    static const uint32_t none[] = {CPU_SETSIZE - 1, CPU_SETSIZE, UINT32_MAX};
    kh_affinity affinity = {0};
    const uint32_t one = cpu_number(0), two = cpu_number(1);
    cpu_set_t single;

    (void)state;
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        assert_false(kh_affinity_only(&affinity, none[i]));
        assert_false(kh_affinity_without(&affinity, none[i]));
        assert_as_it_was();
    }
    CPU_ZERO(&single);
    CPU_SET(one, &single);
    assert_int_equal(sched_setaffinity(0, sizeof single, &single), 0);
    assert_false(kh_affinity_without(&affinity, one)); /* none would be left */
    assert_false(kh_affinity_only(&affinity, two));    /* that the operator did not give */
    assert_only(one);
    assert_int_equal(kh_affinity_next(one), one);
    kh_affinity_restore(&affinity);
    assert_only(one);
}

static void test_next(void **state)
{
    const uint32_t one = cpu_number(0), two = cpu_number(1), last = cpu_number(CPU_COUNT(&allowed) - 1);

    (void)state;
    assert_int_equal(kh_affinity_next(one), two);
    assert_int_equal(kh_affinity_next(last), one);
    assert_int_equal(kh_affinity_next(CPU_SETSIZE - 1), one);
}

/* As by taskset(1) while the change is in force. */
static void test_operator_changes(void **state)
{
    kh_affinity affinity = {0};
    const uint32_t one = cpu_number(0), two = cpu_number(1);
    cpu_set_t wish;

    (void)state;
    assert_true(kh_affinity_only(&affinity, one));
    CPU_ZERO(&wish);
    CPU_SET(two, &wish);
    assert_int_equal(sched_setaffinity(0, sizeof wish, &wish), 0);
    kh_affinity_restore(&affinity);
    assert_only(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_only_and_back, remember, put_back),
        cmocka_unit_test_setup_teardown(test_without_and_back, remember, put_back),
        cmocka_unit_test_setup_teardown(test_changes, remember, put_back),
        cmocka_unit_test_setup_teardown(test_refused, remember, put_back),
        cmocka_unit_test_setup_teardown(test_next, remember, put_back),
        cmocka_unit_test_setup_teardown(test_operator_changes, remember, put_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* bench/stats.c: a figure that is off by a bucket, or a pid that is not measured, would make every bound worthless. */
#include "bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void quantiles_are_close(void **state)
{
    kh_hist *hist = calloc(1, sizeof(*hist));
    uint64_t i;

    (void)state;
    assert_non_null(hist);
    assert_int_equal(kh_hist_quantile(hist, 0.5), 0);
    for (i = 1; i <= 1000000; i++) {
        kh_hist_add(hist, i * 1000);
    }
    assert_true(fabs((double)kh_hist_quantile(hist, 0.5) / 500e6 - 1) < 0.008);
    assert_true(fabs((double)kh_hist_quantile(hist, 0.99) / 990e6 - 1) < 0.008);
    assert_true(fabs((double)kh_hist_quantile(hist, 0.999) / 999e6 - 1) < 0.008);
    assert_int_equal(kh_hist_quantile(hist, 1), 1000000000u);
    free(hist);
}

static void every_value_has_a_bucket(void **state)
{
    kh_hist *hist = calloc(1, sizeof(*hist));
    unsigned bit;

    (void)state;
    assert_non_null(hist);
    for (bit = 0; bit < 64; bit++) {
        uint64_t value = (uint64_t)1 << bit;

        memset(hist, 0, sizeof(*hist));
        kh_hist_add(hist, value);
        assert_true(kh_hist_quantile(hist, 0.5) <= value);
        assert_true((double)kh_hist_quantile(hist, 0.5) > 0.992 * (double)value);
    }
    kh_hist_add(hist, UINT64_MAX);
    kh_hist_add(hist, 0);
    assert_int_equal(hist->count, 3);
    free(hist);
}

static void medians(void **state)
{
    double odd[] = {5, 1, 9};
    double even[] = {4, 1, 2, 9};

    (void)state;
    assert_true(fabs(kh_median(odd, 3) - 5) < 1e-9);
    assert_true(fabs(kh_median(even, 4) - 3) < 1e-9);
    assert_true(fabs(kh_median(odd, 0)) < 1e-9);
}

static void pid_lists(void **state)
{
    kh_pids pids = {0};

    (void)state;
    assert_true(kh_pids_parse(&pids, "12,13 14"));
    assert_int_equal(pids.count, 3);
    assert_int_equal(pids.pid[2], 14);
    assert_true(kh_pids_parse(&pids, " 15 "));
    assert_int_equal(pids.count, 4);
    assert_false(kh_pids_parse(&pids, "12,x"));
    assert_false(kh_pids_parse(&pids, "-1"));
    memset(&pids, 0, sizeof(pids));
    assert_false(kh_pids_parse(&pids, ""));
}

static void cpu_time_is_seen(void **state)
{
    kh_pids pids = {.count = 1, .pid = {getpid()}};
    unsigned gone = 0;
    volatile uint64_t work = 0;

    (void)state;
    assert_true(kh_pids_start(&pids));
    while (kh_pids_used(&pids, &gone) < 3000000) {
        work++;
    }
    assert_int_equal(gone, 0);
    pids.count = 2;
    pids.pid[1] = 4194305; /* above the kernel's PID_MAX_LIMIT */
    assert_false(kh_pids_start(&pids));
    assert_true(kh_pids_used(&pids, &gone) < 3000000000u);
    assert_int_equal(gone, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(quantiles_are_close), cmocka_unit_test(every_value_has_a_bucket),
                                       cmocka_unit_test(medians), cmocka_unit_test(pid_lists),
                                       cmocka_unit_test(cpu_time_is_seen)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

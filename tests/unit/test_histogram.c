/* SPDX-License-Identifier: Apache-2.0 */
/* The histogram: every value in its bucket, quantiles right to an eighth. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "histogram.h"

static void test_empty(void **state)
{
    kh_histogram histogram = {0};

    (void)state;
    assert_int_equal(kh_histogram_quantile(&histogram, 500), 0);
    assert_int_equal(kh_histogram_power(&histogram, 0), 0);
}

/* A single value is its own quantile, up to the width of its bucket. */
static void test_each_magnitude(void **state)
{
    (void)state;
    for (unsigned power = 0; power < KH_HISTOGRAM_POWERS; power++) {
        for (uint64_t offset = 0; offset < 3; offset++) {
            kh_histogram histogram = {0};
            uint64_t us = (UINT64_C(1) << power) + offset * ((UINT64_C(1) << power) / 3), got = 0;

            kh_histogram_add(&histogram, us);
            got = kh_histogram_quantile(&histogram, 500);
            assert_true(got >= us && got <= us + us / 8);
            assert_int_equal(kh_histogram_power(&histogram, power), 1);
            assert_int_equal(histogram.sum_us, us);
        }
    }
}

static void test_quantiles(void **state)
{
    kh_histogram histogram = {0};
    uint64_t sum = 0;

    (void)state;
    for (uint64_t us = 1; us <= 10000; us++) {
        kh_histogram_add(&histogram, us);
    }
    assert_in_range(kh_histogram_quantile(&histogram, 500), 5000, 5625);
    assert_in_range(kh_histogram_quantile(&histogram, 990), 9900, 11137);
    assert_in_range(kh_histogram_quantile(&histogram, 999), 9990, 11238);
    assert_in_range(kh_histogram_quantile(&histogram, 0), 0, 1);
    for (unsigned power = 0; power < KH_HISTOGRAM_POWERS; power++) {
        sum += kh_histogram_power(&histogram, power);
    }
    assert_int_equal(sum, 10000);
}

static void test_extremes(void **state)
{
    kh_histogram histogram = {0};

    (void)state;
    kh_histogram_add(&histogram, 0);
    kh_histogram_add(&histogram, UINT64_MAX);
    assert_int_equal(kh_histogram_power(&histogram, 0), 1);
    assert_int_equal(kh_histogram_power(&histogram, KH_HISTOGRAM_POWERS - 1), 1);
    assert_true(kh_histogram_quantile(&histogram, 1000) >= UINT64_C(1) << (KH_HISTOGRAM_POWERS - 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_empty), cmocka_unit_test(test_each_magnitude),
                                       cmocka_unit_test(test_quantiles), cmocka_unit_test(test_extremes)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The heap of deadlines: the earliest is always first, whatever comes and goes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "deadline.h"
#include <stdlib.h>

#define JOBS 2000

static void test_order(void **state)
{
    kh_deadlines deadlines = {0};
    kh_job *jobs = calloc(JOBS, sizeof *jobs);
    uint64_t last = 0;
    uint32_t seed = 1;

    (void)state;
    assert_non_null(jobs);
    for (int i = 0; i < JOBS; i++) {
        seed = seed * 1664525 + 1013904223;
        jobs[i].deadline_ns = seed % 500; /* many are equal */
        jobs[i].heap_index = UINT32_MAX;
        assert_int_equal(kh_deadlines_add(&deadlines, &jobs[i]), KH_OK);
    }
    for (int i = 0; i < JOBS; i += 3) { /* some leave from anywhere */
        kh_deadlines_remove(&deadlines, &jobs[i]);
        kh_deadlines_remove(&deadlines, &jobs[i]); /* twice does no harm */
        assert_int_equal(jobs[i].heap_index, UINT32_MAX);
    }
    for (uint32_t left = deadlines.count; left > 0; left--) {
        kh_job *first = kh_deadlines_first(&deadlines);

        assert_true(first->deadline_ns >= last);
        last = first->deadline_ns;
        kh_deadlines_remove(&deadlines, first);
        assert_int_equal(deadlines.count, left - 1);
        for (uint32_t i = 0; i < deadlines.count; i += 97) {
            assert_int_equal(deadlines.heap[i]->heap_index, i);
        }
    }
    assert_null(kh_deadlines_first(&deadlines));
    kh_deadlines_clear(&deadlines);
    free(jobs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

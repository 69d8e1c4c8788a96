/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of jobs: bounds, cookies, large buffers, wiping, the table of requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "job.h"
#include <stdlib.h>
#include <string.h>

static void test_bounds(void **state)
{
    kh_jobs *jobs = NULL;
    kh_job *held[100];

    (void)state;
    assert_int_equal(kh_jobs_new(100, 2 * KH_RECORD_DATA_MAX, &jobs), KH_OK);
    for (int i = 0; i < 100; i++) {
        held[i] = kh_job_take(jobs, 10);
        assert_non_null(held[i]);
    }
    assert_null(kh_job_take(jobs, 10));
    assert_int_equal(kh_jobs_in_use(jobs), 100);
    kh_job_release(jobs, held[7]);
    held[7] = kh_job_take(jobs, KH_JOB_INLINE);
    assert_non_null(held[7]);
    assert_ptr_equal(held[7]->data, held[7]->space);
    for (int i = 0; i < 100; i++) {
        kh_job_release(jobs, held[i]);
    }
    assert_int_equal(kh_jobs_in_use(jobs), 0);
    kh_jobs_free(jobs);
}

static void test_large(void **state)
{
    kh_jobs *jobs = NULL;
    kh_job *a = NULL, *b = NULL;

    (void)state;
    assert_int_equal(kh_jobs_new(10, 2 * KH_RECORD_DATA_MAX, &jobs), KH_OK);
    a = kh_job_take(jobs, KH_JOB_INLINE + 1);
    b = kh_job_take(jobs, KH_RECORD_DATA_MAX);
    assert_non_null(a);
    assert_non_null(b);
    memset(b->data, 1, KH_RECORD_DATA_MAX);
    assert_null(kh_job_take(jobs, KH_JOB_INLINE + 1)); /* the bytes are used up, */
    assert_non_null(kh_job_take(jobs, KH_JOB_INLINE)); /* small ones still come */
    assert_null(kh_job_take(jobs, KH_RECORD_DATA_MAX + 1));
    kh_job_release(jobs, a);
    a = kh_job_take(jobs, 5000);
    assert_non_null(a);
    kh_jobs_free(jobs); /* with jobs out: nothing leaks */
}

static void test_cookies(void **state)
{
    kh_jobs *jobs = NULL;
    kh_job *job = NULL;
    uint64_t cookie = 0;

    (void)state;
    assert_int_equal(kh_jobs_new(10, 0, &jobs), KH_OK);
    assert_null(kh_jobs_find(jobs, 0));
    assert_null(kh_jobs_find(jobs, UINT64_MAX));
    job = kh_job_take(jobs, 1);
    cookie = kh_job_cookie(job);
    assert_ptr_equal(kh_jobs_find(jobs, cookie), job);
    memset(job->data, 0x5a, 1);
    kh_job_release(jobs, job);
    assert_int_equal(job->space[0], 0); /* wiped */
    assert_null(kh_jobs_find(jobs, cookie));
    job = kh_job_take(jobs, 1);
    assert_int_not_equal(kh_job_cookie(job), cookie); /* the same job, another time */
    assert_null(kh_jobs_find(jobs, cookie));
    kh_jobs_free(jobs);
}

static void test_requests(void **state)
{
    struct kh_conn *one = (struct kh_conn *)0x1000, *two = (struct kh_conn *)0x2000;
    kh_jobs *jobs = NULL;
    kh_job *held[200];

    (void)state;
    assert_int_equal(kh_jobs_new(200, 0, &jobs), KH_OK);
    for (uint32_t i = 0; i < 200; i++) {
        held[i] = kh_job_take(jobs, 0);
        held[i]->conn = i % 2 == 0 ? one : two;
        held[i]->request_id = i / 2;
        kh_jobs_enter(jobs, held[i]);
    }
    for (uint32_t i = 0; i < 200; i++) {
        assert_ptr_equal(kh_jobs_request(jobs, i % 2 == 0 ? one : two, i / 2), held[i]);
    }
    assert_null(kh_jobs_request(jobs, one, 100));
    for (uint32_t i = 0; i < 200; i += 3) {
        kh_jobs_leave(jobs, held[i]);
        kh_jobs_leave(jobs, held[i]); /* twice does no harm */
    }
    for (uint32_t i = 0; i < 200; i++) {
        kh_job *found = kh_jobs_request(jobs, i % 2 == 0 ? one : two, i / 2);

        assert_ptr_equal(found, i % 3 == 0 ? NULL : held[i]);
    }
    kh_jobs_free(jobs);
}

static void test_list(void **state)
{
    kh_job a = {0}, b = {0}, c = {0};
    kh_job_list list = {0};

    (void)state;
    kh_job_list_append(&list, &a);
    kh_job_list_append(&list, &b);
    kh_job_list_append(&list, &c);
    kh_job_list_remove(&list, &b);
    assert_ptr_equal(list.first, &a);
    assert_ptr_equal(a.next, &c);
    assert_ptr_equal(c.prev, &a);
    kh_job_list_remove(&list, &a);
    kh_job_list_remove(&list, &c);
    assert_null(list.first);
    assert_null(list.last);
    assert_int_equal(list.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bounds), cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_cookies), cmocka_unit_test(test_requests),
                                       cmocka_unit_test(test_list)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

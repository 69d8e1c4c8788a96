/* SPDX-License-Identifier: Apache-2.0 */
/* nginx-module/ngx_keyhold_coro.c without nginx: what it needs of it is below. */
#include "ngx_keyhold.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fenv.h>
#include <sys/resource.h>
#include <sys/wait.h>

ngx_uint_t ngx_pagesize;

static int lines; /* of log */

void ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t err, const char *fmt, ...)
{
    (void)level, (void)log, (void)err, (void)fmt;
    lines++;
}

static ngx_log_t test_log;

static int prepare(void **state)
{
    (void)state;
    ngx_pagesize = (ngx_uint_t)sysconf(_SC_PAGESIZE);
    test_log.log_level = NGX_LOG_DEBUG;
    return 0;
}

static void count_three(void *data)
{
    int *n = data;

    for (int i = 0; i < 3; i++) {
        ++*n;
        assert_ptr_equal(ngx_keyhold_coro_data(), data);
        ngx_keyhold_coro_yield();
    }
}

static void starts_yields_ends(void **state)
{
    ngx_keyhold_coro_t *coro = ngx_keyhold_coro_get(&test_log);
    int n = 0;

    (void)state;
    assert_non_null(coro);
    assert_null(ngx_keyhold_coro_data());
    assert_int_equal(ngx_keyhold_coro_start(coro, count_three, &n), 0);
    assert_null(ngx_keyhold_coro_data());
    assert_int_equal(n, 1);
    assert_int_equal(ngx_keyhold_coro_resume(coro), 0);
    assert_int_equal(ngx_keyhold_coro_resume(coro), 0);
    assert_int_equal(n, 3);
    assert_int_equal(ngx_keyhold_coro_resume(coro), 1);
    ngx_keyhold_coro_release(coro);
    assert_ptr_equal(ngx_keyhold_coro_get(&test_log), coro); /* used again */
    ngx_keyhold_coro_release(coro);
}

/* Values in registers, and the rounding mode, must survive any number of switches by others. */
static void mixes(void *data)
{
    volatile double *result = data;
    double x = *result;
    unsigned long a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;

    for (int i = 0; i < 1000; i++) {
        a += b ^ c, b += c ^ d, c += d ^ e, d += e ^ f, e += f ^ a, f += (unsigned long)i;
        x = x * 1.0000001 + (double)(a & 7);
        if (i % 10 == 0) {
            ngx_keyhold_coro_yield();
        }
    }
    *result = x + (double)(a ^ b ^ c ^ d ^ e ^ f);
}

static void many_do_not_disturb_each_other(void **state)
{
    enum { N = 200 };
    ngx_keyhold_coro_t *coros[N];
    double results[N];
    double expected = 0;
    ngx_uint_t running = N;

    (void)state;
    results[0] = 0;
    coros[0] = ngx_keyhold_coro_get(&test_log);
    for (ngx_uint_t ended = ngx_keyhold_coro_start(coros[0], mixes, &results[0]); !ended;) {
        ended = ngx_keyhold_coro_resume(coros[0]);
    }
    expected = results[0];
    ngx_keyhold_coro_release(coros[0]);
    for (int i = 0; i < N; i++) {
        results[i] = 0;
        coros[i] = ngx_keyhold_coro_get(&test_log);
        assert_non_null(coros[i]);
        assert_int_equal(ngx_keyhold_coro_start(coros[i], mixes, &results[i]), 0);
    }
    while (running > 0) {
        for (int i = 0; i < N; i++) {
            if (coros[i] != NULL && ngx_keyhold_coro_resume(coros[i])) {
                assert_true(results[i] == expected);
                ngx_keyhold_coro_release(coros[i]);
                coros[i] = NULL;
                running--;
            }
        }
    }
}

static void yields(void *data)
{
    (void)data;
    ngx_keyhold_coro_yield();
}

static void nests(void *data)
{
    ngx_keyhold_coro_t *inner = ngx_keyhold_coro_get(&test_log);

    assert_int_equal(ngx_keyhold_coro_start(inner, yields, NULL), 0);
    assert_ptr_equal(ngx_keyhold_coro_data(), data);
    ngx_keyhold_coro_yield();
    assert_int_equal(ngx_keyhold_coro_resume(inner), 1);
    assert_ptr_equal(ngx_keyhold_coro_data(), data);
    ngx_keyhold_coro_release(inner);
}

static void one_inside_another(void **state)
{
    ngx_keyhold_coro_t *coro = ngx_keyhold_coro_get(&test_log);
    int data = 0;

    (void)state;
    assert_int_equal(ngx_keyhold_coro_start(coro, nests, &data), 0);
    assert_null(ngx_keyhold_coro_data());
    assert_int_equal(ngx_keyhold_coro_resume(coro), 1);
    ngx_keyhold_coro_release(coro);
}

static void leaves_from_depth(int depth)
{
    volatile char frame[512];

    frame[0] = (char)depth;
    if (depth > 0) {
        leaves_from_depth(depth - 1);
    } else {
        ngx_keyhold_coro_yield();
        ngx_keyhold_coro_exit();
    }
    frame[1] = frame[0];
}

static void leaves(void *data)
{
    leaves_from_depth(20);
    *(int *)data = 1;
}

static void left_for_good(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        ngx_keyhold_coro_t *coro = ngx_keyhold_coro_get(&test_log);
        int reached = 0;
        int n = 0;

        assert_int_equal(ngx_keyhold_coro_start(coro, leaves, &reached), 0);
        assert_int_equal(ngx_keyhold_coro_resume(coro), 1);
        assert_int_equal(reached, 0);
        ngx_keyhold_coro_release(coro);
        coro = ngx_keyhold_coro_get(&test_log); /* the same stack is as good as new */
        assert_int_equal(ngx_keyhold_coro_start(coro, count_three, &n), 0);
        while (!ngx_keyhold_coro_resume(coro)) {
        }
        assert_int_equal(n, 3);
        ngx_keyhold_coro_release(coro);
    }
}

static volatile int without_end = 1;

static void overflows(void *data)
{
    volatile char frame[4096];

    frame[0] = *(char *)data;
    if (without_end) {
        overflows((void *)(uintptr_t)frame);
    }
    frame[1] = frame[0];
}

/* A stack that overflows meets the guard page, not its neighbour. */
static void guard_page(void **state)
{
    int status = 0;
    pid_t pid = fork();

    (void)state;
    assert_int_not_equal(pid, -1);
    if (pid == 0) {
        struct rlimit none = {0, 0};

        setrlimit(RLIMIT_CORE, &none);
        if (freopen("/dev/null", "w", stderr) == NULL) {
            _exit(0);
        }
        ngx_keyhold_coro_start(ngx_keyhold_coro_get(&test_log), overflows, &status);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

static void more_than_are_kept(void **state)
{
    enum { N = 1500 };
    static ngx_keyhold_coro_t *coros[N];

    (void)state;
    for (int i = 0; i < N; i++) {
        coros[i] = ngx_keyhold_coro_get(&test_log);
        assert_non_null(coros[i]);
    }
    for (int i = 0; i < N; i++) {
        ngx_keyhold_coro_release(coros[i]);
    }
    ngx_keyhold_coro_cleanup();
}

/* No memory for a stack: NULL and one line, and nothing is kept of it. */
static void none_to_be_had(void **state)
{
#if defined(__SANITIZE_ADDRESS__)
    (void)state;
    skip(); /* its own mappings are beyond any limit */
#else
    struct rlimit before;
    ngx_keyhold_coro_t *coro = NULL;

    (void)state;
    ngx_keyhold_coro_cleanup();
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    lines = 0;
    assert_int_equal(setrlimit(RLIMIT_AS, &(struct rlimit){0, before.rlim_max}), 0);
    coro = ngx_keyhold_coro_get(&test_log);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_null(coro);
    assert_int_equal(lines, 1);
    coro = ngx_keyhold_coro_get(&test_log);
    assert_non_null(coro);
    ngx_keyhold_coro_release(coro);
    ngx_keyhold_coro_cleanup();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_yields_ends),  cmocka_unit_test(many_do_not_disturb_each_other),
        cmocka_unit_test(one_inside_another),  cmocka_unit_test(left_for_good),
        cmocka_unit_test(guard_page),          cmocka_unit_test(more_than_are_kept),
        cmocka_unit_test(none_to_be_had),
    };

    return cmocka_run_group_tests(tests, prepare, NULL);
}

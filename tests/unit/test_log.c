/* SPDX-License-Identifier: Apache-2.0 */
/* The log: no peer can forge a line or break JSON, lines are bounded, repeated ones are counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "log.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int pipe_fds[2];

static int setup(void **state)
{
    (void)state;
    return pipe(pipe_fds);
}

/* What was written since the last call. */
static const char *logged(void)
{
    static char text[4 * KH_LOG_LINE_MAX];
    ssize_t len = read(pipe_fds[0], text, sizeof text - 1);

    assert_true(len > 0);
    text[len] = '\0';
    return text;
}

static void test_text(void **state)
{
    const char *line = NULL;

    (void)state;
    kh_log_to(pipe_fds[1]);
    kh_log_init("front", KH_LOG_INFO, false);
    kh_log(KH_LOG_INFO, "nothing");
    line = logged();
    assert_string_equal(line + strlen("2026-01-02T03:04:05.678Z"), " info front nothing\n");
    kh_log(KH_LOG_DEBUG, "below the level");
    kh_log(KH_LOG_WARN, "event", KH_LT("name", "www"), KH_LN("count", -3), KH_LT("text", "two words"),
           KH_LT("empty", ""));
    assert_non_null(strstr(logged(), " warn front event name=www count=-3 text=\"two words\" empty=\"\"\n"));
    kh_log(KH_LOG_WARN, "event", KH_LT("evil", "x\n2026 error forged\x1b[31m\"\\\xff"));
    line = logged();
    assert_non_null(strstr(line, "evil=\"x\\u000a2026 error forged\\u001b[31m\\\"\\\\\\u00ff\"\n"));
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void test_json(void **state)
{
    json_error_t error;
    json_t *json = NULL;

    (void)state;
    kh_log_to(pipe_fds[1]);
    kh_log_init("keeper", KH_LOG_INFO, true);
    for (int i = 1; i < 256; i++) {
        const char text[] = {'a', (char)i, 'b', '\0'};

        kh_log(KH_LOG_ERROR, "event", KH_LT("text", text), KH_LN("n", i));
        json = json_loads(logged(), 0, &error);
        assert_non_null(json);
        assert_string_equal(json_string_value(json_object_get(json, "role")), "keeper");
        assert_int_equal(json_integer_value(json_object_get(json, "n")), i);
        json_decref(json);
    }
}

static void test_long(void **state)
{
    char text[2 * KH_LOG_LINE_MAX];
    json_t *json = NULL;

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    kh_log_to(pipe_fds[1]);
    kh_log_init("front", KH_LOG_INFO, true);
    kh_log(KH_LOG_ERROR, "event", KH_LT("before", "1"), KH_LT("long", text), KH_LT("after", "2"));
    json = json_loads(logged(), 0, NULL); /* a field that does not fit is left out, the line stays whole */
    assert_non_null(json);
    assert_non_null(json_object_get(json, "before"));
    assert_null(json_object_get(json, "long"));
    json_decref(json);
}

static void test_limit(void **state)
{
    kh_log_limit limit = {0};
    uint32_t suppressed = 99;

    (void)state;
    for (int i = 0; i < KH_LOG_BURST; i++) {
        assert_true(kh_log_allowed(&limit, 1000, &suppressed));
        assert_int_equal(suppressed, 0);
    }
    for (int i = 0; i < 7; i++) {
        assert_false(kh_log_allowed(&limit, 1000 + KH_LOG_INTERVAL_MS - 1, &suppressed));
    }
    assert_true(kh_log_allowed(&limit, 1000 + KH_LOG_INTERVAL_MS, &suppressed));
    assert_int_equal(suppressed, 7);
    assert_true(kh_log_allowed(&limit, 1000 + KH_LOG_INTERVAL_MS, &suppressed));
    assert_int_equal(suppressed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_json),
                                       cmocka_unit_test(test_long), cmocka_unit_test(test_limit)};

    return cmocka_run_group_tests(tests, setup, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: what is taken, what is refused, and what is suggested instead. */
#include "ctl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static kh_result nothing(ctl_run *ctl)
{
    (void)ctl;
    return KH_OK;
}

static const ctl_option create_options[] = {
    {"type", "TYPE", ""}, {"new-version", NULL, ""}, {"watch", "[SEC]", ""}, {NULL, NULL, NULL}};
static const ctl_command commands[] = {
    {"key", "create", "NAME", 1, 1, create_options, "", nothing},
    {"key", "list", "[GLOB]", 0, 1, NULL, "", nothing},
    {NULL, "ping", "", 0, 0, NULL, "", nothing},
    {NULL, "status", "", 0, 0, create_options, "", nothing},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};

static ctl_args args;
static ctl_error error;

#define PARSE(...) parse((char *[]){"keyholdctl", __VA_ARGS__, NULL})

static kh_result parse(char **argv)
{
    int argc = 0;

    while (argv[argc] != NULL) {
        argc++;
    }
    memset(&error, 0, sizeof(error));
    return ctl_args_parse(commands, argc, argv, &args, &error);
}

static void assert_refused(kh_result result, const char *text)
{
    assert_int_equal(result, KH_E_INVALID);
    assert_int_equal(error.exit_code, CTL_USAGE);
    if (strstr(error.text, text) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", text, error.text);
    }
}

static void test_commands(void **state)
{
    (void)state;
    assert_int_equal(PARSE("ping"), KH_OK);
    assert_ptr_equal(args.command, &commands[2]);
    assert_int_equal(PARSE("key", "create", "www"), KH_OK);
    assert_ptr_equal(args.command, &commands[0]);
    assert_string_equal(args.operands[0], "www");
    assert_int_equal(PARSE("key", "list"), KH_OK);
    assert_int_equal(args.operand_count, 0);
    assert_refused(PARSE("pong"), "did you mean \"ping\"");
    assert_refused(PARSE("kye", "list"), "did you mean \"key\"");
    assert_refused(PARSE("key", "creat", "x"), "did you mean \"key create\"");
    assert_refused(PARSE("key"), "alone is no command");
    assert_refused(PARSE("xyzzyplugh"), "see keyholdctl help");
    assert_refused(PARSE("key", "create"), "too few operands");
    assert_refused(PARSE("key", "create", "a", "b"), "unexpected \"b\"");
    assert_refused(parse((char *[]){"keyholdctl", NULL}), "no command");
}

static void test_options(void **state)
{
    (void)state;
    assert_int_equal(
        PARSE("--json", "key", "create", "--type", "p256", "www", "--config=/x", "--new-version"), KH_OK);
    assert_string_equal(ctl_args_value(&args, "type"), "p256");
    assert_string_equal(ctl_args_value(&args, "config"), "/x");
    assert_string_equal(ctl_args_value(&args, "json"), "");
    assert_string_equal(ctl_args_value(&args, "new-version"), "");
    assert_null(ctl_args_value(&args, "token"));
    assert_null(ctl_args_value(&args, "no-such"));
    assert_int_equal(PARSE("key", "create", "--type=", "www"), KH_OK);
    assert_string_equal(ctl_args_value(&args, "type"), "");
    assert_int_equal(PARSE("key", "create", "--", "--type"), KH_OK);
    assert_string_equal(args.operands[0], "--type");
    assert_int_equal(PARSE("key", "list", "-"), KH_OK);
    assert_string_equal(args.operands[0], "-");
    assert_int_equal(PARSE("-h"), KH_OK);
    assert_non_null(ctl_args_value(&args, "help"));
    assert_int_equal(PARSE("key", "create", "--help"), KH_OK); /* operands are not missed then */
}

static void test_options_refused(void **state)
{
    (void)state;
    assert_refused(PARSE("key", "create", "x", "--tpye", "p256"), "did you mean --type?");
    assert_refused(PARSE("ping", "--confg", "x"), "did you mean --config?");
    assert_refused(PARSE("ping", "-json"), "did you mean --json?");
    assert_refused(PARSE("ping", "--frobnicate"), "see keyholdctl help ping");
    assert_refused(PARSE("key", "create", "x", "--zzzzzzz"), "see keyholdctl help key create");
    assert_refused(PARSE("ping", "--type", "p256"), "unknown option --type");
    assert_refused(PARSE("--type", "p256", "key", "create", "x"), "unknown option --type");
    assert_refused(PARSE("key", "create", "x", "--type"), "needs a value");
    assert_refused(PARSE("ping", "--json=yes"), "takes no value");
    assert_refused(PARSE("ping", "--config", "a", "--config", "b"), "given twice");
    /* What stands behind the "=" of an unknown option may be a secret. */
    assert_refused(PARSE("ping", "--passphrase=hunter2"), "--passphrase");
    assert_null(strstr(error.text, "hunter2"));
}

static void test_optional_value(void **state)
{
    (void)state;
    assert_int_equal(PARSE("status", "--watch"), KH_OK);
    assert_string_equal(ctl_args_value(&args, "watch"), "");
    assert_int_equal(PARSE("status", "--watch=5"), KH_OK);
    assert_string_equal(ctl_args_value(&args, "watch"), "5");
    assert_refused(PARSE("status", "--watch", "5"), "unexpected \"5\"");
}

static void test_numbers(void **state)
{
    static const char *const bad[] = {"", "0", "-1", "11", "1x", "x", "99999999999999999999", "1.5"};
    long number = 0;

    (void)state;
    assert_int_equal(PARSE("ping"), KH_OK);
    assert_int_equal(ctl_args_number(&args, "timeout", 1, 10, 7, &number, &error), KH_OK);
    assert_int_equal(number, 7);
    assert_int_equal(PARSE("ping", "--timeout", "10"), KH_OK);
    assert_int_equal(ctl_args_number(&args, "timeout", 1, 10, 7, &number, &error), KH_OK);
    assert_int_equal(number, 10);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(PARSE("ping", "--timeout", (char *)bad[i]), KH_OK);
        assert_refused(ctl_args_number(&args, "timeout", 1, 10, 7, &number, &error), "from 1 to 10");
    }
}

static void test_distance(void **state)
{
    char big[100];

    (void)state;
    assert_int_equal(ctl_distance("", ""), 0);
    assert_int_equal(ctl_distance("abc", ""), 3);
    assert_int_equal(ctl_distance("type", "tpye"), 1);
    assert_int_equal(ctl_distance("kitten", "sitting"), 3);
    assert_int_equal(ctl_distance("ab", "ba"), 1);
    memset(big, 'x', sizeof(big));
    big[99] = '\0';
    assert_true(ctl_distance(big, "x") == SIZE_MAX);
    big[63] = '\0';
    assert_int_equal(ctl_distance(big, ""), 63);
}

static void test_error_is_one_line(void **state)
{
    ctl_error e = {0};

    (void)state;
    assert_int_equal(ctl_fail(&e, KH_E_IO, "a%cb%cc", '\n', '\033'), KH_E_IO);
    assert_string_equal(e.text, "a?b?c");
    assert_int_equal(e.exit_code, CTL_FAILED);
    assert_int_equal(ctl_fail_unreachable(&e, KH_E_UNAVAILABLE, "x"), KH_E_UNAVAILABLE);
    assert_int_equal(e.exit_code, CTL_UNREACHABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commands),          cmocka_unit_test(test_options),
        cmocka_unit_test(test_options_refused),   cmocka_unit_test(test_optional_value),
        cmocka_unit_test(test_numbers),           cmocka_unit_test(test_distance),
        cmocka_unit_test(test_error_is_one_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

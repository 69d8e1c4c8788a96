/* SPDX-License-Identifier: Apache-2.0 */
/* Which passphrases keyholdctl refuses to make, and that it bears with the others. */
#include "passphrase.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char *fault(const char *text)
{
    return ctl_passphrase_fault((const uint8_t *)text, strlen(text));
}

static void test_refused(void **state)
{
    static const struct {
        const char *text, *fault;
    } table[] = {
        {"", "shorter"},
        {"horse staple", NULL}, /* 12 bytes */
        {"horsestaple", "shorter"},
        {"aaaaaaaaaaaaaaaa", "again"},
        {"secretsecretsecret", "again"},
        {"secret12secret12se", "again"},
        {"hunter2hunte", "again"},
        {"abababababaabb", "different"},
        {"1122334455121", "different"},
        {"123456789012", "again"},
        {"abcdefghijklmnop", "counts"},
        {"zyxwvutsrqpo", "counts"},
        {"2468246824680", "different"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        const char *found = fault(table[i].text);

        if ((found == NULL) != (table[i].fault == NULL) || (found != NULL && strstr(found, table[i].fault) == NULL)) {
            fail_msg("\"%s\": %s", table[i].text, found != NULL ? found : "taken");
        }
    }
}

static void test_taken(void **state)
{
    static const char *const table[] = {"correct horse battery staple", "Tr0ub4dor&3xyz", "0f3a9c71d2be", "\xc3\xa4\xc3\xb6\xc3\xbc Stra\xc3\x9f" "e 7"};
    uint8_t longest[1023];

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        assert_null(fault(table[i]));
    }
    for (size_t i = 0; i < sizeof(longest); i++) {
        longest[i] = (uint8_t)(i * i % 251 + 1);
    }
    assert_null(ctl_passphrase_fault(longest, sizeof(longest)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refused), cmocka_unit_test(test_taken)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

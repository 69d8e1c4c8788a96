/* SPDX-License-Identifier: Apache-2.0 */
/* Names of callers over TCP: one spelling each, and nothing that is no name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "san.h"
#include <stdlib.h>
#include <string.h>

static void test_spellings(void **state)
{
    static const struct {
        const char *text, *canonical;
    } table[] = {
        {"dns:Edge1.Example", "dns:edge1.example"},
        {"dns:a_b-c.d", "dns:a_b-c.d"},
        {"uri:spiffe://Example/Edge1", "uri:spiffe://Example/Edge1"},
        {"ip:192.0.2.7", "ip:192.0.2.7"},
        {"ip:2001:DB8:0:0:0:0:0:7", "ip:2001:db8::7"},
        {"ip:::ffff:192.0.2.7", "ip:::ffff:192.0.2.7"},
        {"email:Ops@Example.ORG", "email:Ops@example.org"},
        {"email:a@b@c.d", "email:a@b@c.d"},
    };
    char out[KH_SAN_MAX + 1];

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(kh_san_canonical(table[i].text, strlen(table[i].text), out), KH_OK);
        assert_string_equal(out, table[i].canonical);
        assert_int_equal(kh_san_canonical(table[i].canonical, strlen(table[i].canonical), out), KH_OK);
        assert_string_equal(out, table[i].canonical); /* what it writes it also takes */
    }
}

static void test_refused(void **state)
{
    static const char *const table[] = {
        "",          "dns:",        "edge1",         "DNS:edge1",    "dns:*.example", "dns:.a",      "dns:a.",     "dns:a b",
        "dns:a/b",   "uri:x",       "uri::x",        "uri:a:b c",    "uri:a:\x01",    "uri:a:\xc3\xa9", "ip:1.2.3",   "ip:1.2.3.4.5",
        "ip:1.2.3.04 ", "ip:::1%lo", "ip:[::1]",      "ip:localhost", "email:a",       "email:@b.c",  "email:a@",   "email:a b@c.d",
        "email:a@*.d", "rid:1.2.3",  "dirname:CN=x"};
    static char longer[KH_SAN_MAX + 8] = "uri:a:";
    char out[KH_SAN_MAX + 1];

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(kh_san_canonical(table[i], strlen(table[i]), out), KH_E_INVALID);
    }
    assert_int_equal(kh_san_canonical("dns:a\0b", 7, out), KH_E_INVALID); /* a zero hides nothing */
    assert_int_equal(kh_san_canonical("uri:a:b\0c", 9, out), KH_E_INVALID);
    memset(longer + 6, 'x', sizeof longer - 7);
    assert_int_equal(kh_san_canonical(longer, KH_SAN_MAX, out), KH_OK);
    assert_int_equal(kh_san_canonical(longer, KH_SAN_MAX + 1, out), KH_E_INVALID);
    memcpy(longer, "dns:xx", 6);
    assert_int_equal(kh_san_canonical(longer, 4 + 253, out), KH_OK);
    assert_int_equal(kh_san_canonical(longer, 4 + 254, out), KH_E_INVALID);
}

/* Each length of a name, from memory that ends there. */
static void test_truncated(void **state)
{
    static const char *const table[] = {"dns:edge1.example", "uri:spiffe://example/e", "ip:2001:db8::7", "email:ops@example.org"};
    char out[KH_SAN_MAX + 1];

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (size_t len = 0; len <= strlen(table[i]); len++) {
            char *copy = malloc(len + 1);

            assert_non_null(copy);
            memcpy(copy, table[i], len);
            (void)!kh_san_canonical(copy, len, out);
            assert_true(strlen(out) <= strlen(table[i]));
            free(copy);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spellings), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_truncated)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

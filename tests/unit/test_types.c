/* SPDX-License-Identifier: Apache-2.0 */
/* The shared names and numbers, and their parsers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <keyhold/types.h>

#include <string.h>

static void test_results(void **state)
{
    (void)state;
    assert_string_equal(kh_result_name(KH_OK), "ok");
    assert_string_equal(kh_result_name(KH_E_NOT_FOUND), "not_found");
    assert_string_equal(kh_result_name(KH_E_INTERNAL), "internal");
    assert_string_equal(kh_result_name(32), "unknown");
    assert_string_equal(kh_result_name(-1), "unknown");
    assert_string_equal(kh_result_name(INT32_MAX), "unknown");
    assert_non_null(kh_result_text(4711));
    assert_true(kh_result_retryable(KH_E_OVERLOADED));
    assert_false(kh_result_retryable(KH_E_USAGE));
    assert_false(kh_result_retryable(4711));
}

static void test_key_types(void **state)
{
    static const struct {
        const char *text;
        kh_key_type type;
        unsigned bits;
    } good[] = {
        {"rsa2048", KH_KEY_RSA, 2048},    {"RSA-2048", KH_KEY_RSA, 2048}, {"rsa3072", KH_KEY_RSA, 3072},
        {"rsa2050", KH_KEY_RSA, 2050},    {"rsa4096", KH_KEY_RSA, 4096},  {"p256", KH_KEY_P256, 256},
        {"P-256", KH_KEY_P256, 256},      {"p384", KH_KEY_P384, 384},     {"p-521", KH_KEY_P521, 521},
        {"Ed25519", KH_KEY_ED25519, 256},
    };
    static const char *const bad[] = {"",        "rsa",       "rsa1024",  "rsa2049",  "rsa4098",
                                      "rsa8192", "rsa--2048", "rsa02048", "rsa2048 ", "rsa+248",
                                      "p255",    "p",         "ed448",    "ecdsa"};

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        kh_key_type type = KH_KEY_NONE;
        unsigned bits = 0;

        assert_int_equal(kh_key_type_parse(good[i].text, &type, &bits), KH_OK);
        assert_int_equal(type, good[i].type);
        assert_int_equal(bits, good[i].bits);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        kh_key_type type = KH_KEY_P384;
        unsigned bits = 7;

        assert_int_equal(kh_key_type_parse(bad[i], &type, &bits), KH_E_INVALID);
        assert_int_equal(type, KH_KEY_P384);
        assert_int_equal(bits, 7);
    }
    assert_string_equal(kh_key_type_name(KH_KEY_P521), "p521");
    assert_string_equal(kh_key_type_name(0), "unknown");
}

static void test_schemes(void **state)
{
    (void)state;
    assert_string_equal(kh_scheme_name(0x0804), "rsa_pss_rsae_sha256");
    assert_string_equal(kh_scheme_name(0x0203), "unknown");
    assert_int_equal(kh_scheme_key_type(KH_ECDSA_SHA384), KH_KEY_P384);
    assert_int_equal(kh_scheme_key_type(0), KH_KEY_NONE);
    assert_int_equal(kh_scheme_hash_len(KH_RSA_PKCS1_SHA512), 64);
    assert_int_equal(kh_scheme_hash_len(KH_ED25519), 0);
    assert_int_equal(kh_scheme_hash_len(1), 0);
    assert_true(kh_scheme_fits(KH_ECDSA_SHA256, KH_KEY_P521));
    assert_true(kh_scheme_fits(KH_RSA_PSS_RSAE_SHA384, KH_KEY_RSA));
    assert_true(kh_scheme_fits(KH_ED25519, KH_KEY_ED25519));
    assert_false(kh_scheme_fits(KH_ED25519, KH_KEY_P256));
    assert_false(kh_scheme_fits(KH_ECDSA_SHA256, KH_KEY_RSA));
    assert_false(kh_scheme_fits(KH_RSA_PKCS1_SHA256, KH_KEY_P256));
    assert_false(kh_scheme_fits(0, KH_KEY_NONE));
    assert_string_equal(kh_padding_name(KH_PADDING_OAEP_SHA384), "oaep-sha384");
    assert_string_equal(kh_padding_name(0), "unknown");
}

static void test_usages(void **state)
{
    char text[80];
    unsigned usage = 99;

    (void)state;
    assert_int_equal(kh_usage_parse("tls-server,sign", &usage), KH_OK);
    assert_int_equal(usage, KH_USAGE_TLS_SERVER | KH_USAGE_SIGN);
    assert_string_equal(kh_usage_format(usage, text, sizeof(text)), "tls-server,sign");
    assert_string_equal(kh_usage_format(KH_USAGE_ALL, text, sizeof(text)),
                        "tls-server,tls-client,tls-rsa-kx,sign,decrypt,wrap,tls-dhe");
    assert_int_equal(kh_usage_parse(text, &usage), KH_OK);
    assert_int_equal(usage, KH_USAGE_ALL);
    assert_string_equal(kh_usage_format(0, text, sizeof(text)), "");
    for (size_t len = 1; len < sizeof(text); len++) {
        assert_true(strlen(kh_usage_format(KH_USAGE_ALL, text, len)) < len);
    }
    assert_int_equal(kh_usage_parse("", &usage), KH_E_INVALID);
    assert_int_equal(kh_usage_parse("sign,", &usage), KH_E_INVALID);
    assert_int_equal(kh_usage_parse(",sign", &usage), KH_E_INVALID);
    assert_int_equal(kh_usage_parse("sign, decrypt", &usage), KH_E_INVALID);
    assert_int_equal(kh_usage_parse("sig", &usage), KH_E_INVALID);
    assert_int_equal(usage, KH_USAGE_ALL);
}

static kh_result split(const char *text, size_t *name_len, uint32_t *version)
{
    return kh_name_split(text, strlen(text), name_len, version);
}

static void test_names(void **state)
{
    static const char *const bad[] = {
        "",     "-a",   ".a",    "_a", "a b",          "a/b",           "a/",       "a/0",
        "a/01", "a/-1", "a/1/2", "/1", "a/2147483648", "a/99999999999", "\xc3\xa4", "a*"};
    char longest[KH_NAME_MAX + 2];
    size_t name_len = 0;
    uint32_t version = 9;

    (void)state;
    assert_int_equal(split("site.example-1_x", &name_len, &version), KH_OK);
    assert_int_equal(name_len, 16);
    assert_int_equal(version, 0);
    assert_int_equal(split("a/2147483647", &name_len, &version), KH_OK);
    assert_int_equal(name_len, 1);
    assert_int_equal(version, 2147483647);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(split(bad[i], &name_len, &version), KH_E_INVALID);
    }
    memset(longest, 'x', sizeof(longest));
    assert_true(kh_name_valid(longest, KH_NAME_MAX));
    assert_false(kh_name_valid(longest, KH_NAME_MAX + 1));
    assert_false(kh_name_valid("a\0b", 3));
    assert_int_equal(kh_name_split(NULL, 0, &name_len, &version), KH_E_INVALID);
}

static bool glob(const char *pattern, const char *name)
{
    return kh_name_glob(pattern, name, strlen(name));
}

static void test_globs(void **state)
{
    char pattern[2001];
    char name[127];

    (void)state;
    assert_true(glob("*", ""));
    assert_true(glob("*", "anything"));
    assert_true(glob("site-*", "site-"));
    assert_true(glob("*.example", "www.example"));
    assert_true(glob("a?c", "abc"));
    assert_true(glob("a*b*c", "aXbXbXc"));
    assert_true(glob("**a**", "a"));
    assert_false(glob("", "a"));
    assert_false(glob("a?c", "ac"));
    assert_false(glob("a*b", "abc"));
    assert_false(glob("site-*", "sites"));
    assert_true(glob("", ""));
    /* The worst case of a naive matcher. */
    for (size_t i = 0; i < 1000; i++) {
        memcpy(pattern + 2 * i, "*a", 2);
    }
    pattern[2000] = '\0';
    memset(name, 'a', sizeof(name));
    assert_false(kh_name_glob(pattern, name, sizeof(name)));
    pattern[120] = 'b';
    pattern[121] = '\0';
    assert_false(kh_name_glob(pattern, name, sizeof(name)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results), cmocka_unit_test(test_key_types), cmocka_unit_test(test_schemes),
        cmocka_unit_test(test_usages),  cmocka_unit_test(test_names),     cmocka_unit_test(test_globs),
    };

    return cmocka_run_group_tests_name("types", tests, NULL, NULL);
}

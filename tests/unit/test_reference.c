/* SPDX-License-Identifier: Apache-2.0 */
/* Key references: there and back through OpenSSL's PEM reader, and everything that is nearly one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <keyhold/client.h>

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>

/* A key's spki of the longest kind. */
static size_t make_spki(uint8_t *spki)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-521");
    size_t len = 0;

    assert_int_equal(kh_key_id(pkey, NULL, spki, &len, NULL, NULL), KH_OK);
    EVP_PKEY_free(pkey);
    return len;
}

/* The DER in a PEM text, as OpenSSL reads it. */
static uint8_t *read_pem(const char *pem, size_t len, long *der_len)
{
    BIO *bio = BIO_new_mem_buf(pem, (int)len);
    char *label = NULL;
    char *header = NULL;
    uint8_t *der = NULL;

    assert_true(PEM_read_bio(bio, &label, &header, &der, der_len));
    assert_string_equal(label, KH_REFERENCE_LABEL);
    assert_string_equal(header, "");
    OPENSSL_free(label);
    OPENSSL_free(header);
    BIO_free(bio);
    return der;
}

static void test_there_and_back(void **state)
{
    char longest[KH_NAME_MAX + 12];
    const char *names[] = {"site", "a/2147483647", longest, ""}; /* none: the key of that public key */
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len = make_spki(spki);
    char pem[2048];

    (void)state;
    memset(longest, 'n', KH_NAME_MAX);
    memcpy(longest + KH_NAME_MAX, "/2147483647", 12);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        size_t len = 0;
        long der_len = 0;
        uint8_t *der = NULL;
        kh_bytes name;
        kh_bytes found;

        assert_int_equal(kh_reference_encode(names[i], (kh_bytes){spki, spki_len}, pem, sizeof(pem), &len),
                         KH_OK);
        assert_int_equal(len, strlen(pem));
        der = read_pem(pem, len, &der_len);
        assert_int_equal(kh_reference_decode(der, (size_t)der_len, &name, &found), KH_OK);
        assert_int_equal(name.len, strlen(names[i]));
        assert_memory_equal(name.data, names[i], name.len);
        assert_int_equal(found.len, spki_len);
        assert_memory_equal(found.data, spki, spki_len);
        OPENSSL_free(der);
        for (size_t cap = 0; cap <= len; cap++) {
            char *small = malloc(cap > 0 ? cap : 1);
            size_t small_len = 1;

            assert_int_equal(
                kh_reference_encode(names[i], (kh_bytes){spki, spki_len}, small, cap, &small_len),
                KH_E_TOO_LARGE);
            assert_int_equal(small_len, 0);
            free(small);
        }
    }
}

static void test_encode_refuses(void **state)
{
    uint8_t spki[KH_SPKI_MAX + 8];
    size_t spki_len = make_spki(spki);
    char pem[2048];
    size_t len = 0;

    (void)state;
    assert_int_equal(kh_reference_encode("a b", (kh_bytes){spki, spki_len}, pem, sizeof(pem), &len),
                     KH_E_INVALID);
    assert_int_equal(kh_reference_encode("a/0", (kh_bytes){spki, spki_len}, pem, sizeof(pem), &len),
                     KH_E_INVALID);
    assert_int_equal(kh_reference_encode("a", (kh_bytes){spki, spki_len - 1}, pem, sizeof(pem), &len),
                     KH_E_INVALID);
    assert_int_equal(kh_reference_encode("a", (kh_bytes){NULL, 0}, pem, sizeof(pem), &len), KH_E_INVALID);
}

/* Truncated at each length, each byte set to each value: decoded within its bounds, or refused. */
static void test_each_byte(void **state)
{
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len = make_spki(spki);
    char pem[2048];
    size_t len = 0;
    long der_len = 0;
    uint8_t *der = NULL;
    kh_bytes name;
    kh_bytes found;

    (void)state;
    assert_int_equal(kh_reference_encode("site", (kh_bytes){spki, spki_len}, pem, sizeof(pem), &len), KH_OK);
    der = read_pem(pem, len, &der_len);
    for (size_t cut = 0; cut < (size_t)der_len; cut++) {
        uint8_t *copy = malloc(cut > 0 ? cut : 1);

        memcpy(copy, der, cut);
        assert_int_equal(kh_reference_decode(copy, cut, &name, &found), KH_E_MALFORMED);
        assert_null(name.data);
        free(copy);
    }
    for (size_t at = 0; at < (size_t)der_len; at++) {
        uint8_t kept = der[at];

        for (unsigned value = 0; value < 256; value++) {
            der[at] = (uint8_t)value;
            if (kh_reference_decode(der, (size_t)der_len, &name, &found) == KH_OK) {
                assert_true(name.data > der && name.data + name.len <= found.data);
                assert_ptr_equal(found.data + found.len, der + der_len);
            }
        }
        der[at] = kept;
    }
    der[6] ^= 1; /* another marker: another version of references */
    assert_int_equal(kh_reference_decode(der, (size_t)der_len, &name, &found), KH_E_UNSUPPORTED);
    OPENSSL_free(der);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_encode_refuses),
        cmocka_unit_test(test_each_byte),
    };

    return cmocka_run_group_tests_name("reference", tests, NULL, NULL);
}

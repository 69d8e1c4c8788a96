/* SPDX-License-Identifier: Apache-2.0 */
/* The id of a key: the same for every way in which OpenSSL can hold the key. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <keyhold/client.h>

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <string.h>

static const struct {
    const char *algorithm;
    const char *curve;
    unsigned rsa_bits;
    kh_key_type type;
    unsigned bits;
} kinds[] = {
    {"RSA", NULL, 2048, KH_KEY_RSA, 2048}, {"RSA", NULL, 4096, KH_KEY_RSA, 4096},
    {"EC", "P-256", 0, KH_KEY_P256, 256},  {"EC", "P-384", 0, KH_KEY_P384, 384},
    {"EC", "P-521", 0, KH_KEY_P521, 521},  {"ED25519", NULL, 0, KH_KEY_ED25519, 256},
};

static EVP_PKEY *make_key(size_t kind)
{
    EVP_PKEY *pkey = NULL;

    if (kinds[kind].rsa_bits > 0) {
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)kinds[kind].rsa_bits);
    } else if (kinds[kind].curve != NULL) {
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", kinds[kind].curve);
    } else {
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, kinds[kind].algorithm);
    }
    assert_non_null(pkey);
    return pkey;
}

/* OpenSSL's own encoding is canonical for keys that it made itself: the two must agree. */
static void test_agrees_with_openssl(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        EVP_PKEY *pkey = make_key(i);
        uint8_t *der = NULL;
        int der_len = i2d_PUBKEY(pkey, &der);
        uint8_t id[KH_KEY_ID_LEN];
        uint8_t expected[SHA256_DIGEST_LENGTH];
        uint8_t spki[KH_SPKI_MAX];
        size_t spki_len = 0;
        kh_key_type type = KH_KEY_NONE;
        unsigned bits = 0;

        assert_true(der_len > 0);
        assert_int_equal(kh_key_id(pkey, id, spki, &spki_len, &type, &bits), KH_OK);
        assert_int_equal(spki_len, der_len);
        assert_memory_equal(spki, der, spki_len);
        SHA256(der, (size_t)der_len, expected);
        assert_memory_equal(id, expected, sizeof(id));
        assert_int_equal(type, kinds[i].type);
        assert_int_equal(bits, kinds[i].bits);
        assert_int_equal(kh_key_id(pkey, NULL, NULL, NULL, NULL, NULL), KH_OK);
        assert_int_equal(ERR_peek_error(), 0);
        OPENSSL_free(der);
        EVP_PKEY_free(pkey);
    }
}

/* A compressed point and explicit curve parameters are ways of writing the same key. */
static void test_other_encodings_have_the_same_id(void **state)
{
    (void)state;
    for (size_t i = 2; i < 5; i++) {
        EVP_PKEY *pkey = make_key(i);
        uint8_t id[KH_KEY_ID_LEN];
        uint8_t again[KH_KEY_ID_LEN];

        assert_int_equal(kh_key_id(pkey, id, NULL, NULL, NULL, NULL), KH_OK);
        for (int how = 0; how < 2; how++) {
            uint8_t *der = NULL;
            const uint8_t *at = NULL;
            int der_len = 0;
            EVP_PKEY *other = NULL;

            if (how == 0) {
                assert_true(EVP_PKEY_set_utf8_string_param(pkey, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT,
                                                           OSSL_PKEY_EC_POINT_CONVERSION_FORMAT_COMPRESSED));
            } else {
                assert_true(EVP_PKEY_set_utf8_string_param(pkey, OSSL_PKEY_PARAM_EC_ENCODING,
                                                           OSSL_PKEY_EC_ENCODING_EXPLICIT));
            }
            der_len = i2d_PUBKEY(pkey, &der);
            assert_true(der_len > 0);
            at = der;
            other = d2i_PUBKEY(NULL, &at, der_len);
            assert_non_null(other);
            assert_int_equal(kh_key_id(other, again, NULL, NULL, NULL, NULL), KH_OK);
            assert_memory_equal(id, again, sizeof(id));
            OPENSSL_free(der);
            EVP_PKEY_free(other);
        }
        EVP_PKEY_free(pkey);
    }
}

static void test_unknown_types_are_refused(void **state)
{
    static const char *const names[] = {"X25519", "ED448", "X448"};
    EVP_PKEY *pkey = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, names[i]);
        assert_int_equal(kh_key_id(pkey, NULL, NULL, NULL, NULL, NULL), KH_E_UNSUPPORTED);
        EVP_PKEY_free(pkey);
    }
    pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "secp256k1");
    assert_int_equal(kh_key_id(pkey, NULL, NULL, NULL, NULL, NULL), KH_E_UNSUPPORTED);
    EVP_PKEY_free(pkey);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_with_openssl),
        cmocka_unit_test(test_other_encodings_have_the_same_id),
        cmocka_unit_test(test_unknown_types_are_refused),
    };

    return cmocka_run_group_tests_name("key id", tests, NULL, NULL);
}

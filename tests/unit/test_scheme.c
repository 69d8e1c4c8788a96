/* SPDX-License-Identifier: Apache-2.0 */
/* protocol/provider/scheme.c: names to schemes, and the AlgorithmIdentifiers beside those that OpenSSL writes. */
#include "scheme.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <string.h>

static void digest_names(void **state)
{
    (void)state;
    assert_int_equal(kh_prov_digest_len("SHA256"), 32);
    assert_int_equal(kh_prov_digest_len("sha256"), 32);
    assert_int_equal(kh_prov_digest_len("SHA2-384"), 48);
    assert_int_equal(kh_prov_digest_len("sha-512"), 64);
    assert_int_equal(kh_prov_digest_len("SHA1"), 0);
    assert_int_equal(kh_prov_digest_len("MD5-SHA1"), 0);
    assert_int_equal(kh_prov_digest_len("SHA2-512/256"), 0);
    assert_int_equal(kh_prov_digest_len(""), 0);
    assert_int_equal(kh_prov_digest_len(NULL), 0);
    assert_string_equal(kh_prov_digest_name(48), "SHA384");
    assert_null(kh_prov_digest_name(20));
    assert_null(kh_prov_digest_name(0));
}

static void every_scheme_is_reached(void **state)
{
    (void)state;
#define KH_X(constant, number, name, key_type, hash_len)                                                    \
    assert_int_equal(kh_prov_scheme(key_type, hash_len, strstr(name, "pss") != NULL), constant);
    KH_SCHEMES(KH_X)
#undef KH_X
    /* the hash alone decides for an EC key, whatever its curve */
    assert_int_equal(kh_prov_scheme(KH_KEY_P521, 32, false), KH_ECDSA_SHA256);
    assert_int_equal(kh_prov_scheme(KH_KEY_P384, 64, false), KH_ECDSA_SHA512);
    assert_int_equal(kh_prov_scheme(KH_KEY_ED25519, 32, false), KH_ED25519);
    assert_int_equal(kh_prov_scheme(KH_KEY_P256, 32, true), KH_SCHEME_NONE);
    assert_int_equal(kh_prov_scheme(KH_KEY_RSA, 20, false), KH_SCHEME_NONE);
    assert_int_equal(kh_prov_scheme(KH_KEY_RSA, 0, false), KH_SCHEME_NONE);
    assert_int_equal(kh_prov_scheme(KH_KEY_NONE, 32, false), KH_SCHEME_NONE);
}

static EVP_PKEY *make_key(kh_key_type type)
{
    switch (type) {
    case KH_KEY_RSA:
        return EVP_RSA_gen(2048);
    case KH_KEY_ED25519:
        return EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    default:
        return EVP_EC_gen("P-256");
    }
}

/* What OpenSSL's own signature says of its algorithm. */
static size_t openssl_algorithm_id(EVP_PKEY *pkey, kh_scheme scheme, uint8_t *der, size_t cap)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *pctx = NULL;
    const size_t hash_len = kh_scheme_hash_len((int)scheme);
    OSSL_PARAM params[2] = {OSSL_PARAM_octet_string("algorithm-id", der, cap), OSSL_PARAM_END};

    assert_int_equal(EVP_DigestSignInit_ex(ctx, &pctx, kh_prov_digest_name(hash_len), NULL, NULL, pkey, NULL), 1);
    if (strstr(kh_scheme_name((int)scheme), "pss") != NULL) {
        assert_true(EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0);
        assert_true(EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) > 0);
    }
    assert_true(EVP_PKEY_CTX_get_params(pctx, params) > 0);
    EVP_MD_CTX_free(ctx);
    return params[0].return_size;
}

static void algorithm_ids_are_openssls(void **state)
{
    static const kh_scheme schemes[] = {
#define KH_X(constant, number, name, key_type, hash_len) constant,
        KH_SCHEMES(KH_X)
#undef KH_X
    };
    uint8_t ours[72];
    uint8_t theirs[128];
    size_t len = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        EVP_PKEY *pkey = make_key(kh_scheme_key_type((int)schemes[i]) == KH_KEY_RSA       ? KH_KEY_RSA
                                  : kh_scheme_key_type((int)schemes[i]) == KH_KEY_ED25519 ? KH_KEY_ED25519
                                                                                          : KH_KEY_P256);

        assert_non_null(pkey);
        len = openssl_algorithm_id(pkey, schemes[i], theirs, sizeof(theirs));
        assert_int_equal(kh_prov_algorithm_id(schemes[i], ours, sizeof(ours)), len);
        assert_memory_equal(ours, theirs, len);
        for (size_t cap = 0; cap < len; cap++) {
            assert_int_equal(kh_prov_algorithm_id(schemes[i], ours, cap), 0);
        }
        EVP_PKEY_free(pkey);
    }
    assert_int_equal(kh_prov_algorithm_id(KH_SCHEME_NONE, ours, sizeof(ours)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digest_names),
        cmocka_unit_test(every_scheme_is_reached),
        cmocka_unit_test(algorithm_ids_are_openssls),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

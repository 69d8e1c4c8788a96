/* SPDX-License-Identifier: Apache-2.0 */
/* Private keys as bytes: what is parsed, what is judged weak, and that the encoding is canonical. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "material.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

static const char *const numbers[] = {OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
                                      OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
                                      OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
                                      OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1};
enum { N, E, D, P, Q, DP, DQ, QI, COUNT };

static EVP_PKEY *generate_rsa(unsigned bits, unsigned primes, unsigned long e)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    BIGNUM *exponent = BN_new();
    EVP_PKEY *pkey = NULL;

    BN_set_word(exponent, e);
    assert_int_equal(EVP_PKEY_keygen_init(ctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, (int)bits), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_keygen_primes(ctx, (int)primes), 1);
    assert_int_equal(EVP_PKEY_CTX_set1_rsa_keygen_pubexp(ctx, exponent), 1);
    assert_int_equal(EVP_PKEY_generate(ctx, &pkey), 1);
    BN_free(exponent);
    EVP_PKEY_CTX_free(ctx);
    return pkey;
}

static EVP_PKEY *from_numbers(BIGNUM *const *values)
{
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    EVP_PKEY *pkey = NULL;

    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(OSSL_PARAM_BLD_push_BN(build, numbers[i], values[i]), 1);
    }
    params = OSSL_PARAM_BLD_to_param(build);
    assert_int_equal(EVP_PKEY_fromdata_init(ctx), 1);
    assert_int_equal(EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_KEYPAIR, params), 1);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(build);
    EVP_PKEY_CTX_free(ctx);
    return pkey;
}

static void judge(EVP_PKEY *pkey, kh_result expected)
{
    assert_int_equal(kh_material_judge(pkey), expected);
    EVP_PKEY_free(pkey);
}

static void test_judge(void **state)
{
    EVP_PKEY *good = generate_rsa(2048, 2, 65537);
    BIGNUM *values[COUNT] = {NULL}, *changed[COUNT], *other = BN_new();
    EVP_PKEY *second = generate_rsa(2048, 2, 65537);

    (void)state;
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(EVP_PKEY_get_bn_param(good, numbers[i], &values[i]), 1);
    }
    /* Each part alone replaced by one that does not belong. */
    for (int i = 0; i < COUNT; i++) {
        memcpy(changed, values, sizeof(changed));
        assert_int_equal(EVP_PKEY_get_bn_param(second, numbers[i], &other), 1);
        if (i == E) {
            BN_set_word(other, 65539);
        }
        changed[i] = other;
        judge(from_numbers(changed), KH_E_WEAK);
    }
    memcpy(changed, values, sizeof(changed)); /* p = q */
    changed[Q] = values[P];
    judge(from_numbers(changed), KH_E_WEAK);
    changed[Q] = values[Q];
    for (unsigned long e = 0; e < 70000; e += e < 20 ? 1 : 16384) { /* small and even exponents */
        BN_set_word(other, e);
        changed[E] = other;
        judge(from_numbers(changed), KH_E_WEAK);
    }
    BN_lshift(other, BN_value_one(), 64);
    BN_add_word(other, 1);
    changed[E] = other;
    judge(from_numbers(changed), KH_E_WEAK);
    judge(good, KH_OK);
    judge(second, KH_OK);
    judge(generate_rsa(1024, 2, 65537), KH_E_WEAK);
    judge(generate_rsa(2046, 2, 65537), KH_E_WEAK);
    judge(generate_rsa(2048, 2, 3), KH_E_WEAK);
    judge(generate_rsa(2048, 3, 65537), KH_OK); /* multi-prime */
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256"), KH_OK);
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-521"), KH_OK);
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), KH_OK);
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "ED448"), KH_E_UNSUPPORTED);
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "X25519"), KH_E_UNSUPPORTED);
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "EC", "secp256k1"), KH_E_UNSUPPORTED);
    judge(EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-224"), KH_E_UNSUPPORTED);
    /* Above 4096 bits: judged by its size, before anything slow is done. */
    BN_rand(values[N], 4104, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD);
    judge(from_numbers(values), KH_E_UNSUPPORTED);
    for (int i = 0; i < COUNT; i++) {
        BN_free(values[i]);
    }
    BN_free(other);
}

static void test_encode(void **state)
{
    static const kh_key_type types[] = {KH_KEY_RSA, KH_KEY_P256, KH_KEY_P384, KH_KEY_P521, KH_KEY_ED25519};
    kh_material made, again;

    (void)state;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        EVP_PKEY *pkey = NULL;
        uint8_t hash[32], longer[KH_IMPORT_PKCS8_MAX + 1];
        uint32_t bits = types[i] == KH_KEY_RSA ? 2048 : 0;

        assert_true(kh_material_possible(types[i], &bits));
        assert_int_equal(kh_material_generate(types[i], bits, &made), KH_OK);
        assert_int_equal(made.type, types[i]);
        assert_int_equal(made.bits, bits);
        SHA256(made.spki, made.spki_len, hash);
        assert_memory_equal(hash, made.id, 32);
        assert_int_equal(kh_pkcs8_parse(made.pkcs8, made.pkcs8_len, &pkey), KH_OK);
        assert_int_equal(kh_material_encode(pkey, &again), KH_OK);
        assert_memory_equal(&made, &again, sizeof(made));
        EVP_PKEY_free(pkey);
        /* To the last byte. */
        memcpy(longer, made.pkcs8, made.pkcs8_len);
        longer[made.pkcs8_len] = 0;
        assert_int_equal(kh_pkcs8_parse(longer, made.pkcs8_len + 1, &pkey), KH_E_MALFORMED);
        for (size_t len = 0; len < made.pkcs8_len; len++) {
            uint8_t *exact = malloc(len > 0 ? len : 1);

            memcpy(exact, made.pkcs8, len);
            assert_int_equal(kh_pkcs8_parse(exact, len, &pkey), KH_E_MALFORMED);
            free(exact);
        }
        /* No flipped byte crashes the parser or passes as this key. */
        for (size_t at = 0; at < made.pkcs8_len; at++) {
            made.pkcs8[at] ^= 0x10;
            if (kh_pkcs8_parse(made.pkcs8, made.pkcs8_len, &pkey) == KH_OK) {
                EVP_PKEY_free(pkey);
            }
            made.pkcs8[at] ^= 0x10;
        }
    }
    kh_material_wipe(&made);
    assert_int_equal(made.type, 0);
}

static void test_possible(void **state)
{
    static const struct {
        uint32_t type, bits;
        bool may;
    } cases[] = {{KH_KEY_RSA, 2048, true},
                 {KH_KEY_RSA, 2047, false},
                 {KH_KEY_RSA, 2046, false},
                 {KH_KEY_RSA, 4096, true},
                 {KH_KEY_RSA, 4098, false},
                 {KH_KEY_RSA, 2050, true},
                 {KH_KEY_RSA, 0, false},
                 {KH_KEY_P256, 0, true},
                 {KH_KEY_P256, 256, true},
                 {KH_KEY_P256, 384, false},
                 {KH_KEY_P521, 521, true},
                 {KH_KEY_ED25519, 256, true},
                 {0, 0, false},
                 {6, 0, false},
                 {0xffffffff, 0, false}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t bits = cases[i].bits;

        assert_int_equal(kh_material_possible(cases[i].type, &bits), cases[i].may);
    }
}

/* What was encoded is parsed by its type to the same key, and not by another. */
static void test_parse_as(void **state)
{
    static const struct {
        kh_key_type type, other;
        unsigned bits;
    } keys[] = {{KH_KEY_RSA, KH_KEY_P256, 2048},
                {KH_KEY_P256, KH_KEY_ED25519, 256},
                {KH_KEY_P384, KH_KEY_RSA, 384},
                {KH_KEY_P521, KH_KEY_RSA, 521},
                {KH_KEY_ED25519, KH_KEY_P256, 256}};
    kh_material material;
    EVP_PKEY *known = NULL, *found = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        assert_int_equal(kh_material_generate(keys[i].type, keys[i].bits, &material), KH_OK);
        assert_int_equal(kh_pkcs8_parse(material.pkcs8, material.pkcs8_len, &found), KH_OK);
        assert_int_equal(kh_pkcs8_parse_as(keys[i].type, material.pkcs8, material.pkcs8_len, &known), KH_OK);
        assert_int_equal(EVP_PKEY_eq(known, found), 1);
        EVP_PKEY_free(known);
        EVP_PKEY_free(found);
        assert_int_not_equal(kh_pkcs8_parse_as(keys[i].other, material.pkcs8, material.pkcs8_len, &known),
                             KH_OK);
        assert_null(known);
        material.pkcs8[material.pkcs8_len] = 0;
        assert_int_equal(kh_pkcs8_parse_as(keys[i].type, material.pkcs8, material.pkcs8_len + 1, &known),
                         KH_E_MALFORMED);
        assert_null(known);
    }
    assert_int_equal(kh_pkcs8_parse_as(KH_KEY_NONE, material.pkcs8, material.pkcs8_len, &known),
                     KH_E_UNSUPPORTED);
    kh_material_wipe(&material);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_judge), cmocka_unit_test(test_encode),
                                       cmocka_unit_test(test_possible), cmocka_unit_test(test_parse_as)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

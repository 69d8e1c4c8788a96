/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of the kernels share: a repeatable random generator, batches, the number of rounds.
 * Included by each.
 */
#ifndef KH_TEST_KERNELS_COMMON_H
#define KH_TEST_KERNELS_COMMON_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>

#include "kernels.h"

/* Fewer rounds where each costs many times as much: under sanitizers, and unoptimised. */
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
#define QUICK true
#else
#define QUICK false
#endif

/*
 * Operations to do: KH_TEST_ROUNDS when it is set, else what the test asks for, and a twentieth where QUICK. In
 * ./check full, which sets KH_CHECK, a million where it asks for 20,000 (RSA), and ten times as many of the others.
 */
static inline size_t rounds(size_t usual)
{
    const char *text = getenv("KH_TEST_ROUNDS");

    if (text != NULL && atol(text) > 0)
        return (size_t)atol(text);
    text = getenv("KH_CHECK");
    if (!QUICK && text != NULL && strcmp(text, "full") == 0)
        return usual >= 20000 ? usual * 50 : usual * 10;
    return QUICK ? usual / 20 : usual;
}

/* xorshift64*: repeatable choices of fills, lanes and operands. */
static uint64_t random_state = 0x9e3779b97f4a7c15;

static inline uint64_t random_next(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1d;
}

static inline void random_fill(uint8_t *out, size_t len)
{
    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)(random_next() >> 32);
}

/* The backends to test: portable always, IFMA where the CPU has it. */
static inline size_t backends(kh_kernel_backend list[2])
{
    list[0] = KH_BACKEND_PORTABLE;
    list[1] = KH_BACKEND_IFMA;
    return kh_kernels_available() ? 2 : 1;
}

static inline size_t from_hex(uint8_t *out, const char *hex)
{
    size_t len = strlen(hex) / 2;

    for (size_t i = 0; i < len; i++) {
        unsigned byte = 0;

        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
    return len;
}

/* A private key of a named curve from its scalar; the point is computed. */
static inline EVP_PKEY *ec_key(const char *curve, const BIGNUM *d)
{
    int nid = strcmp(curve, "P-256") == 0 ? NID_X9_62_prime256v1 : NID_secp384r1;
    EC_GROUP *group = EC_GROUP_new_by_curve_name(nid);
    EC_POINT *point = EC_POINT_new(group);
    uint8_t pub[128];
    size_t pub_len = 0;
    OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    EVP_PKEY *pkey = NULL;

    assert_int_equal(EC_POINT_mul(group, point, d, NULL, NULL, NULL), 1);
    pub_len = EC_POINT_point2oct(group, point, POINT_CONVERSION_UNCOMPRESSED, pub, sizeof(pub), NULL);
    assert_int_equal(OSSL_PARAM_BLD_push_utf8_string(bld, OSSL_PKEY_PARAM_GROUP_NAME, curve, 0), 1);
    assert_int_equal(OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_PRIV_KEY, d), 1);
    assert_int_equal(OSSL_PARAM_BLD_push_octet_string(bld, OSSL_PKEY_PARAM_PUB_KEY, pub, pub_len), 1);
    params = OSSL_PARAM_BLD_to_param(bld);
    assert_int_equal(EVP_PKEY_fromdata_init(ctx), 1);
    assert_int_equal(EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_KEYPAIR, params), 1);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(bld);
    EVP_PKEY_CTX_free(ctx);
    EC_POINT_free(point);
    EC_GROUP_free(group);
    return pkey;
}

/* An RSA key from its primes and e; e must be invertible. */
static inline EVP_PKEY *rsa_key(const BIGNUM *p, const BIGNUM *q, unsigned long e_word)
{
    static const char *const names[] = {OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
                                        OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
                                        OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
                                        OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1};
    BN_CTX *ctx = BN_CTX_new();
    BIGNUM *v[8], *pm = BN_new(), *qm = BN_new(), *phi = BN_new();
    OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    EVP_PKEY_CTX *pctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    EVP_PKEY *pkey = NULL;

    for (int i = 0; i < 8; i++)
        v[i] = BN_new();
    BN_mul(v[0], p, q, ctx);
    BN_set_word(v[1], e_word);
    BN_copy(v[3], p);
    BN_copy(v[4], q);
    BN_sub(pm, p, BN_value_one());
    BN_sub(qm, q, BN_value_one());
    BN_mul(phi, pm, qm, ctx);
    assert_non_null(BN_mod_inverse(v[2], v[1], phi, ctx));
    assert_non_null(BN_mod_inverse(v[5], v[1], pm, ctx));
    assert_non_null(BN_mod_inverse(v[6], v[1], qm, ctx));
    assert_non_null(BN_mod_inverse(v[7], q, p, ctx));
    for (int i = 0; i < 8; i++)
        assert_int_equal(OSSL_PARAM_BLD_push_BN(bld, names[i], v[i]), 1);
    params = OSSL_PARAM_BLD_to_param(bld);
    assert_int_equal(EVP_PKEY_fromdata_init(pctx), 1);
    assert_int_equal(EVP_PKEY_fromdata(pctx, &pkey, EVP_PKEY_KEYPAIR, params), 1);
    for (int i = 0; i < 8; i++)
        BN_free(v[i]);
    BN_free(pm);
    BN_free(qm);
    BN_free(phi);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(bld);
    EVP_PKEY_CTX_free(pctx);
    BN_CTX_free(ctx);
    return pkey;
}

/* A random prime of exactly so many bits with p - 1 prime to e. */
static inline BIGNUM *prime(int bits, unsigned long e)
{
    BIGNUM *p = BN_new();

    do {
        assert_int_equal(BN_generate_prime_ex(p, bits, 0, NULL, NULL, NULL), 1);
    } while (BN_mod_word(p, e) == 1);
    return p;
}

#endif

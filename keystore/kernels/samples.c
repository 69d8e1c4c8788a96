/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys that are no secrets, for the test and the measurement at start. RSA's are made of primes of the form
 * 2^b - c, since to find random ones would take longer than both may: speed does not depend on the key.
 * ECDSA's are those of RFC 6979, A.2.5 and A.2.6, Ed25519's that of RFC 8032, 7.1, test 3.
 */
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>

#include "private.h"

/* An RSA key of p = 2^bits - c[0], q = 2^bits - c[1], e = 65537. */
static EVP_PKEY *rsa_key(unsigned bits, const unsigned c[2])
{
    static const char *const names[] = {OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
                                        OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
                                        OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
                                        OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1};
    enum { N, E, D, P, Q, DP, DQ, QINV, PM, QM, COUNT };
    BIGNUM *v[COUNT] = {NULL};
    BN_CTX *ctx = BN_CTX_new();
    OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    EVP_PKEY_CTX *pctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    EVP_PKEY *pkey = NULL;
    bool ok = ctx != NULL && bld != NULL && pctx != NULL;

    for (int i = 0; i < COUNT; i++)
        ok = (v[i] = BN_new()) != NULL && ok;
    ok = ok && BN_set_bit(v[P], (int)bits) && BN_sub_word(v[P], c[0]) && BN_set_bit(v[Q], (int)bits) &&
         BN_sub_word(v[Q], c[1]) && BN_set_word(v[E], 65537) && BN_mul(v[N], v[P], v[Q], ctx) &&
         BN_sub(v[PM], v[P], BN_value_one()) && BN_sub(v[QM], v[Q], BN_value_one()) &&
         BN_mod_inverse(v[DP], v[E], v[PM], ctx) != NULL && BN_mod_inverse(v[DQ], v[E], v[QM], ctx) != NULL &&
         BN_mod_inverse(v[QINV], v[Q], v[P], ctx) != NULL && BN_mul(v[PM], v[PM], v[QM], ctx) &&
         BN_mod_inverse(v[D], v[E], v[PM], ctx) != NULL;
    for (int i = N; i <= QINV; i++)
        ok = ok && OSSL_PARAM_BLD_push_BN(bld, names[i], v[i]);
    ok = ok && (params = OSSL_PARAM_BLD_to_param(bld)) != NULL && EVP_PKEY_fromdata_init(pctx) == 1 &&
         EVP_PKEY_fromdata(pctx, &pkey, EVP_PKEY_KEYPAIR, params) == 1;
    for (int i = 0; i < COUNT; i++)
        BN_free(v[i]);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(bld);
    EVP_PKEY_CTX_free(pctx);
    BN_CTX_free(ctx);
    return pkey;
}

/* A key of a curve from its scalar; the kernels and OpenSSL's signing need no point. */
static EVP_PKEY *ec_key(const char *group, const char *scalar)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    BIGNUM *d = NULL;
    EVP_PKEY *pkey = NULL;

    if (ctx != NULL && bld != NULL && BN_hex2bn(&d, scalar) != 0 &&
        OSSL_PARAM_BLD_push_utf8_string(bld, OSSL_PKEY_PARAM_GROUP_NAME, group, 0) == 1 &&
        OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_PRIV_KEY, d) == 1 &&
        (params = OSSL_PARAM_BLD_to_param(bld)) != NULL && EVP_PKEY_fromdata_init(ctx) == 1)
        (void)EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_KEYPAIR, params);
    BN_free(d);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(bld);
    EVP_PKEY_CTX_free(ctx);
    return pkey;
}

EVP_PKEY *kh_sample_key(kh_kernel_kind kind)
{
    static const uint8_t ed_seed[32] = {0xc5, 0xaa, 0x8d, 0xf4, 0x3f, 0x9f, 0x83, 0x7b, 0xed, 0xb7, 0x44,
                                        0x2f, 0x31, 0xdc, 0xb7, 0xb1, 0x66, 0xd3, 0x85, 0x35, 0x07, 0x6f,
                                        0x09, 0x4b, 0x85, 0xce, 0x3a, 0x2e, 0x0b, 0x44, 0x58, 0xf7};

    switch (kind) {
    case KH_KERNEL_RSA2048:
        return rsa_key(1024, (const unsigned[2]){105, 179});
    case KH_KERNEL_RSA3072:
        return rsa_key(1536, (const unsigned[2]){3453, 4977});
    case KH_KERNEL_RSA4096:
        return rsa_key(2048, (const unsigned[2]){1557, 2543});
    case KH_KERNEL_P256:
        return ec_key("P-256", "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
    case KH_KERNEL_P384:
        return ec_key("P-384", "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8"
                               "96D5724E4C70A825F872C9EA60D2EDF5");
    case KH_KERNEL_ED25519:
        return EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, ed_seed, sizeof(ed_seed));
    case KH_KERNEL_KIND_COUNT:
        break;
    }
    return NULL;
}

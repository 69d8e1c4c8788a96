/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which way for which fill: a table per kind, built in, or measured at start.
 *
 * Measured are one OpenSSL operation, a batch of one and a batch of eight, each the best of a few. RSA does
 * up to four operations in the time of one and five to eight in that of eight; elsewhere a lane adds its
 * share of hashing and encoding. The RSA keys of the measurement are made of primes of the form 2^b - c,
 * since to find random ones would take longer than the measurement may: speed does not depend on the key.
 */
#include <string.h>
#include <time.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/param_build.h>

#include "private.h"

/*
 * The least fill at which the kernel was faster on an Intel core of 2023 (Sapphire Rapids) against OpenSSL
 * 3.0.
 */
static const uint8_t built_in[KH_KERNEL_KIND_COUNT] = {
    [KH_KERNEL_RSA2048] = 2, [KH_KERNEL_RSA3072] = 1, [KH_KERNEL_RSA4096] = 1,
    [KH_KERNEL_P256] = 1,    [KH_KERNEL_P384] = 1,    [KH_KERNEL_ED25519] = 1,
};

/* Bit f - 1: the kernel is faster for a fill of f. */
static uint8_t kernel_fills[KH_KERNEL_KIND_COUNT];

void kh_ways_reset(void)
{
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++)
        kernel_fills[kind] = (uint8_t)(0xff << (built_in[kind] - 1));
}

kh_kernel_way kh_kernels_choose(kh_kernel_kind kind, size_t fill)
{
    if (kh_kernels_selected() == KH_BACKEND_OPENSSL || (unsigned)kind >= KH_KERNEL_KIND_COUNT || fill < 1 ||
        fill > KH_KERNEL_LANES)
        return KH_WAY_OPENSSL;
    return kernel_fills[kind] >> (fill - 1) & 1 ? KH_WAY_KERNEL : KH_WAY_OPENSSL;
}

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

static EVP_PKEY *make_key(kh_kernel_kind kind)
{
    static const struct {
        unsigned bits, c[2];
    } rsa[] = {{1024, {105, 179}}, {1536, {3453, 4977}}, {2048, {1557, 2543}}};

    switch (kind) {
    case KH_KERNEL_P256:
        return EVP_EC_gen("P-256");
    case KH_KERNEL_P384:
        return EVP_EC_gen("P-384");
    case KH_KERNEL_ED25519:
        return EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    default:
        return rsa_key(rsa[kind - KH_KERNEL_RSA2048].bits, rsa[kind - KH_KERNEL_RSA2048].c);
    }
}

static uint64_t now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

typedef struct sample {
    uint64_t single, one, eight; /* best time of each in nanoseconds */
} sample;

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/*
 * Takes samples until the deadline or enough; true when there is a second one at least: the first runs
 * cold.
 */
static bool measure_kind(kh_kernel_scratch *scratch, kh_kernel_kind kind, kh_kernel_op *ops,
                         uint64_t deadline, sample *best)
{
    unsigned rounds = 0;

    for (; rounds < 6; rounds++) {
        uint64_t t0 = now_ns(), t1, t2, t3;

        if (rounds > 0 && t0 + best->single + best->one + best->eight > deadline)
            break;
        kh_kernel_single(&ops[0]);
        t1 = now_ns();
        if (kh_kernel_batch(scratch, kind, ops, 1) != KH_OK)
            return false;
        t2 = now_ns();
        if (kh_kernel_batch(scratch, kind, ops, KH_KERNEL_LANES) != KH_OK)
            return false;
        t3 = now_ns();
        if (ops[0].result != KH_OK)
            return false;
        best->single = less(best->single, t1 - t0);
        best->one = less(best->one, t2 - t1);
        best->eight = less(best->eight, t3 - t2);
    }
    return rounds >= 2 || kind == KH_KERNEL_RSA4096 || kind == KH_KERNEL_RSA3072; /* long enough to be warm */
}

static uint8_t fills(kh_kernel_kind kind, const sample *s)
{
    bool rsa = kind <= KH_KERNEL_RSA4096;
    uint8_t mask = 0;

    for (unsigned fill = 1; fill <= KH_KERNEL_LANES; fill++) {
        uint64_t kernel = rsa ? (fill <= 4 ? s->one : s->eight)
                              : s->one + (s->eight > s->one ? (s->eight - s->one) * (fill - 1) / 7 : 0);

        if (kernel < s->single * fill)
            mask |= (uint8_t)(1U << (fill - 1));
    }
    return mask;
}

kh_result kh_kernels_measure(unsigned budget_ms)
{
    /*
     * Parts of the budget in percent, by the length of an operation; the small kinds come last and leave
     * some over.
     */
    static const uint8_t share[KH_KERNEL_KIND_COUNT] = {15, 25, 45, 5, 5, 5};
    static const uint8_t message[64] = {1};
    static uint8_t out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    uint8_t found[KH_KERNEL_KIND_COUNT];
    uint64_t deadline = now_ns();
    kh_kernel_scratch *scratch = NULL;
    kh_result rc = KH_OK;

    if (kh_kernels_selected() == KH_BACKEND_OPENSSL)
        return KH_OK;
    rc = kh_kernel_scratch_new(&scratch);
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT && rc == KH_OK; kind++) {
        EVP_PKEY *pkey = make_key(kind);
        kh_kernel_key *key = NULL;
        sample best = {UINT64_MAX / 16, UINT64_MAX / 16, UINT64_MAX / 16};
        kh_kernel_op ops[KH_KERNEL_LANES];

        found[kind] = kernel_fills[kind];
        deadline += (uint64_t)budget_ms * 10000 * share[kind];
        rc = pkey == NULL ? KH_E_CRYPTO : kh_kernel_key_new(pkey, &key);
        for (unsigned i = 0; i < KH_KERNEL_LANES; i++)
            ops[i] = (kh_kernel_op){.key = key,
                                    .scheme = kind <= KH_KERNEL_RSA4096   ? KH_RSA_PKCS1_SHA256
                                              : kind == KH_KERNEL_ED25519 ? KH_ED25519
                                                                          : KH_ECDSA_SHA256,
                                    .in = message,
                                    .in_len = 32,
                                    .out = out[i],
                                    .out_size = KH_SIGNATURE_MAX};
        if (rc == KH_OK && measure_kind(scratch, kind, ops, deadline, &best))
            found[kind] = fills(kind, &best);
        kh_kernel_key_free(key);
        EVP_PKEY_free(pkey);
    }
    if (rc == KH_OK)
        memcpy(kernel_fills, found, sizeof(found));
    kh_kernel_scratch_free(scratch);
    return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which way for which fill: a table per kind, built in, or measured at start.
 *
 * Measured are one OpenSSL operation, a batch of one and a batch of eight, each the best of a few. RSA does
 * up to four operations in the time of one and five to eight in that of eight; elsewhere a lane adds its
 * share of hashing and encoding.
 */
#include <string.h>
#include <time.h>

#include "private.h"

/* The least fill at which the kernel was faster, on a Sapphire Rapids core of 2023 against OpenSSL 3.0. */
static const uint8_t built_in[KH_KERNEL_KIND_COUNT] = {
    [KH_KERNEL_RSA2048] = 2, [KH_KERNEL_RSA3072] = 1, [KH_KERNEL_RSA4096] = 1,
    [KH_KERNEL_P256] = 2,    [KH_KERNEL_P384] = 1,    [KH_KERNEL_ED25519] = 1,
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

/* Takes samples until the deadline or enough; true when there are two at least: the first runs cold. */
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
    /* Parts of the budget in percent, by the length of an operation; the next kind has what one leaves. */
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
        EVP_PKEY *pkey = kh_sample_key(kind);
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

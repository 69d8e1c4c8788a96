/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K5, second half: does the time of a batch depend on the secrets? One fixed key against a pool of random
 * keys, in random order; Welch's t over the times, as in "dudect" (Reparaz, Balasch and Verbauwhede, 2017).
 * Times above a quantile are left out (interrupts), for a few quantiles; the worst t counts. |t| must stay
 * below 4.5. For ./check full: it wants a quiet machine.
 *
 * usage: test_kernels_timing [batches per kind]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>

#include "kernels.h"

#define POOL 32
#define RSA_POOL 8

typedef struct sample {
    double ns;
    int fixed;
} sample;

static double now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_time(const void *a, const void *b)
{
    double x = ((const sample *)a)->ns, y = ((const sample *)b)->ns;

    return (x > y) - (x < y);
}

static double welch(const sample *s, size_t n)
{
    double mean[2] = {0}, square[2] = {0}, count[2] = {0};

    for (size_t i = 0; i < n; i++) {
        double d = s[i].ns - mean[s[i].fixed];

        count[s[i].fixed] += 1;
        mean[s[i].fixed] += d / count[s[i].fixed];
        square[s[i].fixed] += d * (s[i].ns - mean[s[i].fixed]);
    }
    if (count[0] < 2 || count[1] < 2)
        return 0;
    return (mean[0] - mean[1]) /
           sqrt(square[0] / (count[0] - 1) / count[0] + square[1] / (count[1] - 1) / count[1] + 1e-9);
}

static EVP_PKEY *new_key(kh_kernel_kind kind)
{
    return kind == KH_KERNEL_RSA2048 ? EVP_RSA_gen(2048)
           : kind == KH_KERNEL_P256  ? EVP_EC_gen("P-256")
           : kind == KH_KERNEL_P384  ? EVP_EC_gen("P-384")
                                     : EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
}

static double test_kind(kh_kernel_scratch *scratch, kh_kernel_kind kind, size_t batches)
{
    static uint8_t digest[32], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    size_t pool = kind == KH_KERNEL_RSA2048 ? RSA_POOL : POOL;
    kh_kernel_key *keys[POOL + 1];
    sample *s = calloc(batches, sizeof(*s));
    double worst = 0;

    for (size_t i = 0; i <= pool; i++) {
        EVP_PKEY *pkey = new_key(kind);

        if (s == NULL || pkey == NULL || kh_kernel_key_new(pkey, &keys[i]) != KH_OK)
            exit(2);
        EVP_PKEY_free(pkey);
    }
    for (size_t b = 0; b < batches; b++) {
        kh_kernel_op ops[KH_KERNEL_LANES];
        double start = 0;

        s[b].fixed = rand() & 1;
        for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
            size_t random_key = 1 + (size_t)rand() % pool; /* drawn for both classes alike */

            ops[i] = (kh_kernel_op){.key = keys[s[b].fixed ? 0 : random_key],
                                    .scheme = kind == KH_KERNEL_RSA2048   ? KH_RSA_PKCS1_SHA256
                                              : kind == KH_KERNEL_ED25519 ? KH_ED25519
                                                                          : KH_ECDSA_SHA256,
                                    .in = digest,
                                    .in_len = 32,
                                    .out = out[i],
                                    .out_size = KH_SIGNATURE_MAX};
            /* Both classes find their key's memory in the cache: reads all keys of the pool. */
            for (size_t k = 0; k <= pool; k++)
                for (size_t byte = 0; byte < 4096; byte += 64)
                    (void)*(volatile const uint8_t *)((const uint8_t *)keys[k] + byte % 512);
        }
        start = now_ns();
        if (kh_kernel_batch(scratch, kind, ops, KH_KERNEL_LANES) != KH_OK)
            exit(2);
        s[b].ns = now_ns() - start;
    }
    qsort(s, batches, sizeof(*s), by_time);
    for (double q = 0.5; q < 1; q += 0.15) {
        double t = welch(s, (size_t)((double)batches * q));

        worst = fabs(t) > fabs(worst) ? t : worst;
    }
    for (size_t i = 0; i <= pool; i++)
        kh_kernel_key_free(keys[i]);
    free(s);
    return worst;
}

int main(int argc, char **argv)
{
    static const kh_kernel_kind kinds[] = {KH_KERNEL_RSA2048, KH_KERNEL_P256, KH_KERNEL_P384,
                                           KH_KERNEL_ED25519};
    size_t batches = argc > 1 && atol(argv[1]) > 0 ? (size_t)atol(argv[1]) : 20000;
    kh_kernel_scratch *scratch = NULL;
    int bad = 0;

    if (!kh_kernels_available()) {
        puts("K5 timing: skipped, no AVX-512 IFMA");
        return 0;
    }
    if (kh_kernels_init() != KH_OK || kh_kernel_scratch_new(&scratch) != KH_OK)
        return 2;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        double t = test_kind(scratch, kinds[i], kinds[i] == KH_KERNEL_RSA2048 ? batches / 4 : batches);

        printf("K5 timing %s: t = %.2f\n", kh_kernel_kind_name(kinds[i]), t);
        fflush(stdout);
        bad |= fabs(t) >= 4.5;
    }
    kh_kernel_scratch_free(scratch);
    return bad;
}

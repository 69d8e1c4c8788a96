/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K5, second half: does the time of a batch depend on the secrets? Two classes of batches in random order,
 * fixed against random, and Welch's t over their times, as in "dudect" (Reparaz, Balasch and Verbauwhede,
 * 2017):
 *
 *  - keys, for each kind: one key in all lanes against random ones;
 *  - input, for RSA: the block 1 in all lanes against random blocks, under one key.
 *
 * Both classes compute on the same memory, which is filled from the same addresses: only values differ. Times
 * above a quantile of all are cropped (interrupts), for several quantiles; the worst t counts. |t| must stay
 * below 4.5. A leak's t grows with the root of the number of batches, noise does not: it is printed after a
 * quarter, a half and all of them. For ./check full: it wants a quiet machine.
 *
 * usage: test_kernels_timing [SECONDS [NAME]]: time for each test, default 15; only tests of that name
 */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>

#include "private.h"

#define POOL 16
#define SAMPLES_MAX 1000000
#define LIMIT 4.5

typedef struct sample {
    double ns;
    bool fixed;
} sample;

/* What the lanes of a batch differ in: a prepared key and a block. */
typedef struct secret {
    kh_kernel_key key;
    uint8_t block[KH_SIGNATURE_MAX];
} secret;

/* The two classes, and what is computed on: a copy of one of them. */
typedef struct batch {
    secret fixed[KH_KERNEL_LANES], random[KH_KERNEL_LANES], used[KH_KERNEL_LANES];
    uint8_t out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_op ops[KH_KERNEL_LANES];
} batch;

static double now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static uint64_t random_next(void)
{
    static uint64_t pool[512];
    static size_t left;

    if (left == 0) {
        if (RAND_bytes((unsigned char *)pool, sizeof(pool)) != 1)
            exit(2);
        left = sizeof(pool) / sizeof(pool[0]);
    }
    return pool[--left];
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

/* The worst t of the first n samples over all crops; leaves their order. */
static double worst_t(const sample *samples, size_t n)
{
    static const double crops[] = {1, 0.99, 0.95, 0.9, 0.75, 0.5};
    static sample sorted[SAMPLES_MAX];
    double worst = 0;

    memcpy(sorted, samples, n * sizeof(sorted[0]));
    qsort(sorted, n, sizeof(sorted[0]), by_time);
    for (size_t i = 0; i < sizeof(crops) / sizeof(crops[0]); i++) {
        double t = welch(sorted, (size_t)((double)n * crops[i]));

        worst = fabs(t) > fabs(worst) ? t : worst;
    }
    return worst;
}

static EVP_PKEY *new_key(kh_kernel_kind kind)
{
    switch (kind) {
    case KH_KERNEL_P256:
        return EVP_EC_gen("P-256");
    case KH_KERNEL_P384:
        return EVP_EC_gen("P-384");
    case KH_KERNEL_ED25519:
        return EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    default:
        return EVP_RSA_gen(2048U + 1024U * (unsigned)(kind - KH_KERNEL_RSA2048));
    }
}

/* One of the two classes to where the batch computes, without a branch on which; both are read. */
static void choose(batch *b, bool fixed)
{
    uint64_t mask = 0 - (uint64_t)fixed, *to = (uint64_t *)b->used;
    const uint64_t *from[2] = {(const uint64_t *)b->random, (const uint64_t *)b->fixed};

    _Static_assert(sizeof(secret) % sizeof(uint64_t) == 0, "whole words");
    for (size_t i = 0; i < sizeof(b->used) / sizeof(uint64_t); i++)
        to[i] = (from[0][i] & ~mask) | (from[1][i] & mask);
}

static void set_operations(batch *b, kh_kernel_kind kind, bool raw)
{
    static const uint8_t digest[32];

    for (unsigned i = 0; i < KH_KERNEL_LANES; i++)
        b->ops[i] = (kh_kernel_op){.key = &b->used[i].key,
                                   .scheme = raw                         ? KH_SCHEME_NONE
                                             : kind <= KH_KERNEL_RSA4096 ? KH_RSA_PKCS1_SHA256
                                             : kind == KH_KERNEL_ED25519 ? KH_ED25519
                                                                         : KH_ECDSA_SHA256,
                                   .in = raw ? b->used[i].block : digest,
                                   .in_len = raw ? b->fixed[0].key.u.rsa.bytes : sizeof(digest),
                                   .out = b->out[i],
                                   .out_size = KH_SIGNATURE_MAX};
}

/* The next random class: other keys, or with `raw` other blocks below the modulus. */
static void draw(batch *b, kh_kernel_key *const *keys, bool raw)
{
    for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
        if (!raw) {
            b->random[i].key = *keys[1 + random_next() % (POOL - 1)];
            continue;
        }
        for (size_t at = 8; at < b->fixed[0].key.u.rsa.bytes; at += 8) {
            uint64_t word = random_next();

            memcpy(b->random[i].block + at, &word, sizeof(word));
        }
    }
}

static size_t measure(kh_kernel_scratch *scratch, kh_kernel_kind kind, bool raw, double seconds, sample *s)
{
    static batch b;
    kh_kernel_key *keys[POOL];
    double end = 0;
    size_t n = 0;

    memset(&b, 0, sizeof(b));
    for (size_t i = 0; i < POOL; i++) {
        EVP_PKEY *pkey = new_key(kind);

        if (pkey == NULL || kh_kernel_key_new(pkey, &keys[i]) != KH_OK)
            exit(2);
        EVP_PKEY_free(pkey);
    }
    for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
        b.fixed[i].key = b.random[i].key = *keys[0];
        if (raw)
            b.fixed[i].block[keys[0]->u.rsa.bytes - 1] = 1;
    }
    set_operations(&b, kind, raw);
    for (end = now_ns() + seconds * 1e9; n < SAMPLES_MAX && now_ns() < end; n++) {
        double start = 0;

        draw(&b, keys, raw);
        s[n].fixed = random_next() & 1;
        choose(&b, s[n].fixed);
        start = now_ns();
        if (kh_kernel_batch(scratch, kind, b.ops, KH_KERNEL_LANES) != KH_OK)
            exit(2);
        s[n].ns = now_ns() - start;
    }
    for (size_t i = 0; i < POOL; i++)
        kh_kernel_key_free(keys[i]);
    return n;
}

static int test(kh_kernel_scratch *scratch, kh_kernel_kind kind, bool raw, double seconds)
{
    static sample samples[SAMPLES_MAX];
    size_t n = measure(scratch, kind, raw, seconds, samples);
    double t = worst_t(samples, n);

    printf("K5 timing %s %s: t = %.2f (%zu batches; a quarter: %.2f, a half: %.2f)\n",
           kh_kernel_kind_name(kind), raw ? "input" : "keys", t, n, worst_t(samples, n / 4),
           worst_t(samples, n / 2));
    fflush(stdout);
    return fabs(t) >= LIMIT;
}

/* To one core, so that no move between cores is measured. */
static void stay(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();

    CPU_ZERO(&set);
    CPU_SET(cpu < 0 ? 0 : cpu, &set);
    (void)sched_setaffinity(0, sizeof(set), &set);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 && atof(argv[1]) > 0 ? atof(argv[1]) : 15;
    kh_kernel_scratch *scratch = NULL;
    int bad = 0;

    if (!kh_kernels_available()) {
        puts("K5 timing: skipped, no AVX-512 IFMA");
        return 0;
    }
    stay();
    if (kh_kernels_init() != KH_OK || kh_kernel_scratch_new(&scratch) != KH_OK)
        return 2;
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++) {
        if (argc > 2 && strcmp(argv[2], kh_kernel_kind_name(kind)) != 0)
            continue;
        bad |= test(scratch, kind, false, seconds);
        if (kind <= KH_KERNEL_RSA4096)
            bad |= test(scratch, kind, true, seconds);
    }
    kh_kernel_scratch_free(scratch);
    return bad;
}

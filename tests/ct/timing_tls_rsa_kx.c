/* SPDX-License-Identifier: Apache-2.0 */
/*
 * M9: 100,000 probes of tls-rsa-kx at the keystore's API, good and bad ones in random order, timed one by
 * one. Welch's t between the times of good and bad ones must stay below 4.5, and the same for each kind of
 * fault alone is shown. Usage: timing_tls_rsa_kx [PROBES]
 */
#include "../unit/keeper_rig.h"

#include <math.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KINDS 5 /* 0: good; bad padding, bad version, a zero inside, no zero before the secret */
#define VARIANTS 400
#define LEN 256
#define LIMIT 4.5

static uint8_t probe[KINDS][VARIANTS][LEN];

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void make_probe(EVP_PKEY *key, unsigned kind, uint8_t out[LEN])
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    uint8_t block[LEN];
    size_t len = LEN;

    RAND_bytes(block, LEN);
    for (size_t i = 2; i < LEN - 49; i++) {
        block[i] |= 1;
    }
    block[0] = 0;
    block[1] = kind == 1 ? 1 : 2;
    block[LEN - 49] = kind == 4 ? 9 : 0;
    block[LEN - 48] = 3;
    block[LEN - 47] = kind == 2 ? 2 : 3;
    if (kind == 3) {
        block[2 + block[3] % 150] = 0;
    }
    if (EVP_PKEY_encrypt_init(ctx) != 1 || EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_NO_PADDING) != 1 ||
        EVP_PKEY_encrypt(ctx, out, &len, block, LEN) != 1) {
        abort();
    }
    EVP_PKEY_CTX_free(ctx);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Welch's t of the times of good probes against those of the kinds that `pick` has, without the slowest tenth
 * of all. */
static double welch(const double *time, const uint8_t *kind, size_t n, unsigned pick, double limit)
{
    double sum[2] = {0}, square[2] = {0}, count[2] = {0}, mean[2], variance[2];

    for (size_t i = 0; i < n; i++) {
        int side = kind[i] == 0 ? 0 : (pick >> kind[i] & 1) ? 1 : -1;

        if (side >= 0 && time[i] < limit) {
            sum[side] += time[i];
            count[side]++;
        }
    }
    mean[0] = sum[0] / count[0];
    mean[1] = sum[1] / count[1];
    for (size_t i = 0; i < n; i++) {
        int side = kind[i] == 0 ? 0 : (pick >> kind[i] & 1) ? 1 : -1;

        if (side >= 0 && time[i] < limit) {
            square[side] += (time[i] - mean[side]) * (time[i] - mean[side]);
        }
    }
    for (int side = 0; side < 2; side++) {
        variance[side] = square[side] / (count[side] - 1) / count[side];
    }
    return (mean[0] - mean[1]) / sqrt(variance[0] + variance[1]);
}

int main(int argc, char **argv)
{
    const size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
    double *time = malloc(n * sizeof(*time)), *sorted = malloc(n * sizeof(*sorted)), t = 0;
    uint8_t *kind = malloc(n), *dice = malloc(3 * n);
    keeper_rig rig;
    kh_key_info info;
    EVP_PKEY *key = NULL;

    kh_secure_openssl();
    rig_init(&rig, NULL);
    rig.workers = 1;
    if (rig_start(&rig) != KH_OK ||
        rig_create(&rig, "kx", KH_KEY_RSA, 2048, KH_USAGE_TLS_RSA_KX, 0, &info) != KH_OK ||
        RAND_bytes(dice, (int)(3 * n)) != 1) {
        return 1;
    }
    key = rig_public(&info);
    for (unsigned k = 0; k < KINDS; k++) {
        for (unsigned v = 0; v < VARIANTS; v++) {
            make_probe(key, k, probe[k][v]);
        }
    }
    for (size_t i = 0; i < n; i++) {
        kh_record record = {.op = KH_STORE_TLS_RSA_KX, .key_ref = info.ref, .arg = 0x0303, .data_len = LEN};
        uint64_t began = 0;

        kind[i] = dice[3 * i] & 1 ? 0 : 1 + (dice[3 * i] >> 1) % (KINDS - 1);
        record.data = probe[kind[i]][(dice[3 * i + 1] | dice[3 * i + 2] << 8) % VARIANTS];
        began = now_ns();
        if (rig_call(&rig, &record)->result != KH_OK) {
            return 1;
        }
        time[i] = (double)(now_ns() - began);
    }
    memcpy(sorted, time, n * sizeof(*time));
    qsort(sorted, n, sizeof(*sorted), by_value);
    t = welch(time, kind, n, 0x1e, sorted[n * 9 / 10]);
    printf("M9: tls-rsa-kx: %zu probes, median %.1f us, t = %.2f (limit %.1f); padding %.2f, version %.2f, "
           "zero %.2f, length %.2f\n",
           n, sorted[n / 2] / 1000, t, LIMIT, welch(time, kind, n, 2, sorted[n * 9 / 10]),
           welch(time, kind, n, 4, sorted[n * 9 / 10]), welch(time, kind, n, 8, sorted[n * 9 / 10]),
           welch(time, kind, n, 16, sorted[n * 9 / 10]));
    EVP_PKEY_free(key);
    rig_stop(&rig);
    rig_clean(&rig);
    return fabs(t) < LIMIT ? 0 : 1;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kh-test-keeper STORE KEKFILE [SECONDS]: starts a keeper on a store and measures it over a ring. M15: time
 * to start, first use of keys spread over the store, resident memory. Then, for each key type, operations per
 * second and latency of one at a time, beside the same by bare OpenSSL in this process.
 */
#include "../unit/keeper_rig.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static unsigned long resident_kb(pid_t pid)
{
    char path[64], line[256];
    unsigned long kb = 0;
    FILE *file = NULL;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        sscanf(line, "VmRSS: %lu", &kb);
    }
    if (file != NULL) {
        fclose(file);
    }
    return kb;
}

static void first_use(keeper_rig *rig)
{
    uint64_t worst = 0, sum = 0;
    unsigned n = 0;

    for (unsigned long i = 0; i < 100000; i += 97) {
        char name[32];
        kh_key_info info;
        uint64_t began = 0, took = 0;

        snprintf(name, sizeof(name), "fill-%06lu", i);
        began = now_ns();
        if (rig_lookup(rig, name, &info) != KH_OK ||
            rig_sign(rig, &info, info.type == KH_KEY_P256 ? KH_ECDSA_SHA256 : KH_ED25519, 0, "x", 1) !=
                KH_OK) {
            break;
        }
        took = now_ns() - began;
        worst = took > worst ? took : worst;
        sum += took;
        n++;
    }
    if (n > 0) {
        printf("M15: first lookup and signature of %u keys: mean %.0f us, worst %.0f us\n", n,
               (double)sum / n / 1000, (double)worst / 1000);
    }
}

static const struct {
    const char *name, *openssl, *group;
    kh_key_type type;
    unsigned bits;
    uint32_t scheme;
} kinds[] = {{"rsa2048", "RSA", NULL, KH_KEY_RSA, 2048, KH_RSA_PSS_RSAE_SHA256},
             {"rsa4096", "RSA", NULL, KH_KEY_RSA, 4096, KH_RSA_PSS_RSAE_SHA256},
             {"p256", "EC", "P-256", KH_KEY_P256, 0, KH_ECDSA_SHA256},
             {"p384", "EC", "P-384", KH_KEY_P384, 0, KH_ECDSA_SHA384},
             {"ed25519", "ED25519", NULL, KH_KEY_ED25519, 0, KH_ED25519}};

static double bare(size_t k, double seconds)
{
    uint8_t signature[512], message[146] = {0};
    EVP_PKEY *pkey = kinds[k].type == KH_KEY_RSA ? EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)kinds[k].bits)
                     : kinds[k].group != NULL    ? EVP_PKEY_Q_keygen(NULL, NULL, "EC", kinds[k].group)
                                                 : EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    uint64_t began = now_ns();
    unsigned long n = 0;

    while ((double)(now_ns() - began) < seconds * 1e9) {
        EVP_MD_CTX *ctx = EVP_MD_CTX_new();
        size_t len = sizeof(signature);

        EVP_DigestSignInit_ex(ctx, NULL, kinds[k].type == KH_KEY_ED25519 ? NULL : "SHA256", NULL, NULL, pkey,
                              NULL);
        EVP_DigestSign(ctx, signature, &len, message, sizeof(message));
        EVP_MD_CTX_free(ctx);
        n++;
    }
    EVP_PKEY_free(pkey);
    return (double)n * 1e9 / (double)(now_ns() - began);
}

static double closed_loop(keeper_rig *rig, const kh_record *record, unsigned in_flight, double seconds)
{
    uint64_t began = now_ns();
    unsigned long done = 0;
    uint64_t cookie = 0;

    for (unsigned i = 0; i < in_flight && kh_keystore_submit(rig->keystore, record) == KH_OK; i++) {
    }
    kh_keystore_flush(rig->keystore);
    while ((double)(now_ns() - began) < seconds * 1e9) {
        rig_wait(rig, &cookie);
        done++;
        if (kh_keystore_submit(rig->keystore, record) != KH_OK) {
            abort();
        }
        kh_keystore_flush(rig->keystore);
    }
    seconds = (double)(now_ns() - began) / 1e9;
    for (unsigned i = 0; i < in_flight; i++) {
        rig_wait(rig, &cookie);
    }
    return (double)done / seconds;
}

static void measure(keeper_rig *rig, size_t k, double seconds)
{
    static uint64_t took[20000];
    uint8_t message[146];
    kh_record record = {.op = KH_STORE_SIGN, .scheme = kinds[k].scheme, .data = message};
    kh_key_info info;
    size_t n = 0;
    uint64_t began = 0;
    char name[32];

    snprintf(name, sizeof(name), "bench-%s", kinds[k].name);
    if (rig_create(rig, name, kinds[k].type, kinds[k].bits, KH_USAGE_TLS_SERVER, 0, &info) != KH_OK &&
        rig_lookup(rig, name, &info) != KH_OK) {
        return;
    }
    record.key_ref = info.ref;
    record.data_len = (uint32_t)rig_tls13_message(message, "server", 32);
    began = now_ns();
    for (n = 0; n < 20000 && (double)(now_ns() - began) < seconds * 1e9; n++) {
        uint64_t start = now_ns();

        if (rig_call(rig, &record)->result != KH_OK) {
            abort();
        }
        took[n] = now_ns() - start;
    }
    qsort(took, n, sizeof(took[0]), by_value);
    double alone = bare(k, seconds), loaded = closed_loop(rig, &record, 32, seconds);
    printf("%-8s bare %8.0f/s (%6.1f us)   ring, one at a time: p50 %6.1f us p99 %6.1f us   ring, 32 in "
           "flight: %8.0f/s\n",
           kinds[k].name, alone, 1e6 / alone, (double)took[n / 2] / 1000, (double)took[n * 99 / 100] / 1000,
           loaded);
}

int main(int argc, char **argv)
{
    double seconds = argc > 3 ? strtod(argv[3], NULL) : 1;
    keeper_rig rig;
    uint64_t began = 0;

    if (argc < 3) {
        fprintf(stderr, "usage: kh-test-keeper STORE KEKFILE [SECONDS]\n");
        return 2;
    }
    kh_secure_openssl();
    rig_init(&rig, NULL);
    snprintf(rig.store, sizeof(rig.store), "%s", argv[1]);
    if (kh_kek_file_load(argv[2], rig.kek) != KH_OK) {
        return 1;
    }
    began = now_ns();
    if (rig_start(&rig) != KH_OK) {
        return 1;
    }
    printf("M15: ready after %.0f ms, %lu KB resident\n", (double)(now_ns() - began) / 1e6,
           resident_kb(rig.pid));
    first_use(&rig);
    printf("M15: %lu KB resident after it\n", resident_kb(rig.pid));
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        measure(&rig, k, seconds);
    }
    rig_stop(&rig);
    rig_clean(&rig);
    return 0;
}

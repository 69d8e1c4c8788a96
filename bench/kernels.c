/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench kernels [--json] [--seconds N]`: claim K2. Each kernel against OpenSSL's EVP on the same
 * core: the two take turns of a few milliseconds, so that whatever slows the machine meets both, and the
 * ratio is the median over the pairs. OpenSSL's side is what a TLS library calls (EVP_DigestSign over the
 * message, context kept); ours is kh_kernel_batch() with padding, nonce, encoding, blinding and check, and
 * the hash of the message besides.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>

#include "bench.h"
#include "kernels.h"

#define MESSAGE_LEN 130 /* TLS 1.3, server CertificateVerify with SHA-256 */
#define PAIRS_MAX 4096
#define SLICE_NS 4000000.0

typedef struct kind_bench {
    EVP_PKEY *pkey;
    kh_kernel_key *key;
    kh_kernel_kind kind;
    kh_scheme scheme;
    uint8_t message[KH_KERNEL_LANES][MESSAGE_LEN], digest[KH_KERNEL_LANES][64],
        out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_op ops[KH_KERNEL_LANES];
} kind_bench;

typedef struct row {
    double kernel_rate, openssl_rate, ratio;
    unsigned long checked; /* signatures that OpenSSL verified */
} row;

/* CPU time of this thread: what other processes take of the core belongs to neither side. */
static double cpu_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static const EVP_MD *hash_of(kh_kernel_kind kind)
{
    return kind == KH_KERNEL_ED25519 ? NULL : kind == KH_KERNEL_P384 ? EVP_sha384() : EVP_sha256();
}

static bool is_rsa(kh_kernel_kind kind)
{
    return kind <= KH_KERNEL_RSA4096;
}

static bool openssl_init(EVP_MD_CTX *ctx, const kind_bench *b, bool verify)
{
    EVP_PKEY_CTX *pctx = NULL;
    int ok = verify ? EVP_DigestVerifyInit(ctx, &pctx, hash_of(b->kind), NULL, b->pkey)
                    : EVP_DigestSignInit(ctx, &pctx, hash_of(b->kind), NULL, b->pkey);

    if (ok == 1 && is_rsa(b->kind))
        ok = EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) == 1 &&
             EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) == 1;
    return ok == 1;
}

/* One operation by OpenSSL, context new as for each TLS handshake. */
static bool openssl_once(kind_bench *b)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    uint8_t out[KH_SIGNATURE_MAX];
    size_t len = sizeof(out);
    bool ok = ctx != NULL && openssl_init(ctx, b, false) &&
              EVP_DigestSign(ctx, out, &len, b->message[0], MESSAGE_LEN) == 1;

    EVP_MD_CTX_free(ctx);
    return ok;
}

/* One batch, with the hashing of the messages. */
static bool kernel_once(kind_bench *b, kh_kernel_scratch *scratch, size_t fill)
{
    for (size_t i = 0; i < fill; i++) {
        if (b->kind == KH_KERNEL_P384)
            SHA384(b->message[i], MESSAGE_LEN, b->digest[i]);
        else if (b->kind != KH_KERNEL_ED25519)
            SHA256(b->message[i], MESSAGE_LEN, b->digest[i]);
    }
    if (kh_kernel_batch(scratch, b->kind, b->ops, fill) != KH_OK)
        return false;
    for (size_t i = 0; i < fill; i++)
        if (b->ops[i].result != KH_OK)
            return false;
    return true;
}

static unsigned long verify(kind_bench *b, size_t fill)
{
    unsigned long good = 0;

    for (size_t i = 0; i < fill; i++) {
        EVP_MD_CTX *ctx = EVP_MD_CTX_new();

        if (ctx != NULL && openssl_init(ctx, b, true) &&
            EVP_DigestVerify(ctx, b->ops[i].out, b->ops[i].out_len, b->message[i], MESSAGE_LEN) == 1)
            good++;
        EVP_MD_CTX_free(ctx);
    }
    return good;
}

static bool prepare(kind_bench *b, kh_kernel_kind kind)
{
    static const kh_scheme schemes[] = {KH_RSA_PSS_RSAE_SHA256, KH_RSA_PSS_RSAE_SHA256,
                                        KH_RSA_PSS_RSAE_SHA256, KH_ECDSA_SHA256,
                                        KH_ECDSA_SHA384,        KH_ED25519};
    static const unsigned bits[] = {2048, 3072, 4096};

    memset(b, 0, sizeof(*b));
    b->kind = kind;
    b->scheme = schemes[kind];
    if (is_rsa(kind))
        b->pkey = EVP_RSA_gen(bits[kind]);
    else if (kind == KH_KERNEL_ED25519)
        b->pkey = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    else
        b->pkey = EVP_EC_gen(kind == KH_KERNEL_P256 ? "P-256" : "P-384");
    if (b->pkey == NULL || kh_kernel_key_new(b->pkey, &b->key) != KH_OK)
        return false;
    for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
        memset(b->message[i], 'a' + (int)i, MESSAGE_LEN);
        b->ops[i] = (kh_kernel_op){
            .key = b->key, .scheme = b->scheme, .out = b->out[i], .out_size = KH_SIGNATURE_MAX};
        b->ops[i].in = kind == KH_KERNEL_ED25519 ? b->message[i] : b->digest[i];
        b->ops[i].in_len = kind == KH_KERNEL_ED25519 ? MESSAGE_LEN : kind == KH_KERNEL_P384 ? 48 : 32;
    }
    return true;
}

/* Alternates slices of both ways for `seconds`; rates and ratio are medians over the pairs. */
static bool measure(kind_bench *b, kh_kernel_scratch *scratch, size_t fill, double seconds, row *r)
{
    static double ratio[PAIRS_MAX], kernel[PAIRS_MAX], openssl[PAIRS_MAX];
    uint64_t end = kh_now_ns() + (uint64_t)(seconds * 1e9);
    size_t pairs = 0;

    memset(r, 0, sizeof(*r));
    while (pairs < PAIRS_MAX && (pairs < 3 || kh_now_ns() < end)) {
        double t0 = cpu_ns(), t1 = t0, t2 = t0;
        unsigned long batches = 0, singles = 0;

        for (; t1 - t0 < SLICE_NS; t1 = cpu_ns(), batches++)
            if (!kernel_once(b, scratch, fill))
                return false;
        for (t2 = t1; t2 - t1 < SLICE_NS; t2 = cpu_ns(), singles++)
            if (!openssl_once(b))
                return false;
        kernel[pairs] = (double)(batches * fill) * 1e9 / (t1 - t0);
        openssl[pairs] = (double)singles * 1e9 / (t2 - t1);
        ratio[pairs] = kernel[pairs] / openssl[pairs];
        pairs++;
        if (pairs % 16 == 1)
            r->checked += verify(b, fill);
    }
    r->ratio = kh_median(ratio, pairs);
    r->kernel_rate = kh_median(kernel, pairs);
    r->openssl_rate = kh_median(openssl, pairs);
    return true;
}

static void print_row(bool json, bool first, const char *name, size_t fill, const row *r)
{
    if (json)
        printf("%s  {\"kernel\": \"%s\", \"fill\": %zu, \"checked\": %lu, \"ops_per_s\": %.0f, "
               "\"openssl_ops_per_s\": %.0f, \"ratio\": %.3f}",
               first ? "" : ",\n", name, fill, r->checked, r->kernel_rate, r->openssl_rate, r->ratio);
    else
        printf("%-8s fill %zu  %9.0f ops/s  OpenSSL %9.0f ops/s  ratio %6.2f  (%lu checked)\n", name, fill,
               r->kernel_rate, r->openssl_rate, r->ratio, r->checked);
    fflush(stdout);
}

static int usage(FILE *out)
{
    fputs("usage: keyhold-bench kernels [--json] [--seconds N]\n"
          "  --seconds N  time for each kernel and fill (default 1)\n",
          out);
    return out == stdout ? KH_EXIT_OK : KH_EXIT_USAGE;
}

int kh_bench_kernels(int argc, char **argv)
{
    static const size_t fill[] = {1, 2, 4, 8};
    static kind_bench bench;
    kh_kernel_scratch *scratch = NULL;
    double seconds = 1;
    bool json = false, ok = true;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc && atof(argv[i + 1]) > 0)
            seconds = atof(argv[++i]);
        else
            return usage(strcmp(argv[i], "--help") == 0 ? stdout : stderr);
    }
    if (!kh_kernels_available()) {
        fputs("keyhold-bench: this CPU has no AVX-512 IFMA: everything goes through OpenSSL\n", stderr);
        if (json)
            puts("[]");
        return KH_EXIT_OK;
    }
    ok = kh_kernels_init() == KH_OK && kh_kernel_scratch_new(&scratch) == KH_OK;
    if (json)
        puts("[");
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT && ok; kind++) {
        ok = prepare(&bench, kind);
        for (size_t f = 0; f < sizeof(fill) / sizeof(fill[0]) && ok; f++) {
            row r;

            ok = measure(&bench, scratch, fill[f], seconds, &r) && r.checked > 0;
            if (ok)
                print_row(json, kind == 0 && f == 0, kh_kernel_kind_name(kind), fill[f], &r);
        }
        kh_kernel_key_free(bench.key);
        EVP_PKEY_free(bench.pkey);
    }
    if (json)
        puts("\n]");
    kh_kernel_scratch_free(scratch);
    if (!ok || kh_kernels_faults() > 0)
        fputs("keyhold-bench: an operation failed or a check refused a lane\n", stderr);
    return ok && kh_kernels_faults() == 0 ? KH_EXIT_OK : KH_EXIT_FAILED;
}

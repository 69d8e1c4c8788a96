/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench op`: what one operation costs its caller at low load. One signature at a time through the agent's socket by
 * the client library, and the bare OpenSSL operation with the same key in this process, taking turns in one run.
 */
#include "bench.h"

#include <getopt.h>
#include <keyhold/client.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HASH_MAX 48
#define PROLOGUE_LEN (64 + 33 + 1)
#define TIMEOUT_MS 5000

typedef struct bench_op {
    EVP_PKEY *key;
    uint8_t id[KH_KEY_ID_LEN];
    kh_scheme scheme;
    const EVP_MD *digest; /* NULL: Ed25519 */
    bool pss;
    kh_client *client;
    uint8_t message[PROLOGUE_LEN + HASH_MAX]; /* what a TLS 1.3 server signs */
    size_t message_len;
} bench_op;

/* The scheme that a TLS 1.3 server uses with each type of key. */
static const struct {
    kh_key_type type;
    kh_scheme scheme;
    const EVP_MD *(*digest)(void);
    bool pss;
} schemes[] = {{KH_KEY_RSA, KH_RSA_PSS_RSAE_SHA256, EVP_sha256, true},
               {KH_KEY_P256, KH_ECDSA_SHA256, EVP_sha256, false},
               {KH_KEY_P384, KH_ECDSA_SHA384, EVP_sha384, false},
               {KH_KEY_P521, KH_ECDSA_SHA512, EVP_sha512, false},
               {KH_KEY_ED25519, KH_ED25519, NULL, false}};

static bool choose_scheme(bench_op *op)
{
    kh_key_type type = KH_KEY_NONE;
    unsigned bits = 0;
    size_t i;

    if (kh_key_id(op->key, op->id, NULL, NULL, &type, &bits) != KH_OK) {
        return false;
    }
    for (i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (schemes[i].type == type) {
            op->scheme = schemes[i].scheme;
            op->digest = schemes[i].digest != NULL ? schemes[i].digest() : NULL;
            op->pss = schemes[i].pss;
            return true;
        }
    }
    return false;
}

/* RFC 8446, section 4.4.3, with a transcript hash of fresh random bytes. */
static bool next_message(bench_op *op)
{
    size_t hash_len = HASH_MAX;

    memset(op->message, ' ', 64);
    memcpy(op->message + 64, "TLS 1.3, server CertificateVerify", 34); /* with its zero byte */
    op->message_len = PROLOGUE_LEN + hash_len;
    return RAND_bytes(op->message + PROLOGUE_LEN, (int)hash_len) == 1;
}

static bool set_padding(const bench_op *op, EVP_PKEY_CTX *ctx)
{
    return !op->pss || (EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING) == 1 &&
                        EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, RSA_PSS_SALTLEN_DIGEST) == 1);
}

static bool sign_local(bench_op *op)
{
    uint8_t signature[KH_SIGNATURE_MAX];
    size_t len = sizeof(signature);
    EVP_PKEY_CTX *pctx = NULL; /* belongs to ctx */
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx != NULL && EVP_DigestSignInit(ctx, &pctx, op->digest, NULL, op->key) == 1 && set_padding(op, pctx) &&
              EVP_DigestSign(ctx, signature, &len, op->message, op->message_len) == 1;

    EVP_MD_CTX_free(ctx);
    return ok;
}

static bool verify(bench_op *op, kh_bytes signature)
{
    EVP_PKEY_CTX *pctx = NULL; /* belongs to ctx */
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx != NULL && EVP_DigestVerifyInit(ctx, &pctx, op->digest, NULL, op->key) == 1 &&
              set_padding(op, pctx) &&
              EVP_DigestVerify(ctx, signature.data, signature.len, op->message, op->message_len) == 1;

    EVP_MD_CTX_free(ctx);
    return ok;
}

static bool sign_remote(bench_op *op, bool check)
{
    kh_request request = {.op = KH_OP_SIGN,
                          .deadline_ms = TIMEOUT_MS,
                          .key_is_id = true,
                          .key = {op->id, sizeof(op->id)},
                          .scheme = op->scheme,
                          .data = {op->message, op->message_len}};
    kh_reply reply;
    kh_result result = kh_client_call(op->client, &request, &reply);

    if (result != KH_OK || reply.status != KH_OK) {
        fprintf(stderr, "keyhold-bench op: %s\n", kh_result_text(result != KH_OK ? result : reply.status));
        return false;
    }
    return !check || verify(op, reply.data);
}

static bool set_up(bench_op *op, const kh_op_config *config)
{
    kh_credential credential;
    kh_result result = KH_OK;
    char detail[256] = "";
    FILE *file = fopen(config->key_file, "r");

    memset(&credential, 0, sizeof(credential));
    op->key = file != NULL ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    if (file != NULL) {
        fclose(file);
    }
    if (op->key == NULL || !choose_scheme(op)) {
        fprintf(stderr, "keyhold-bench op: %s: not a private key that Keyhold knows\n", config->key_file);
        return false;
    }
    if (config->token != NULL) {
        result = kh_credential_load(config->token, &credential);
    }
    if (result == KH_OK) {
        result = kh_client_open(config->address, config->token != NULL ? &credential : NULL, "keyhold-bench", TIMEOUT_MS,
                                &op->client, detail, sizeof(detail));
    }
    kh_credential_wipe(&credential);
    if (result != KH_OK) {
        fprintf(stderr, "keyhold-bench op: %s: %s %s\n", config->address, kh_result_text(result), detail);
    }
    return result == KH_OK;
}

static bool half_round(bench_op *op, const kh_op_config *config, bool remote, kh_hist *hist, uint64_t *failed)
{
    uint64_t begun_ns;
    unsigned i;
    bool ok;

    for (i = 0; i < config->per_round; i++) {
        if (!next_message(op)) {
            return false;
        }
        begun_ns = kh_now_ns();
        ok = remote ? sign_remote(op, false) : sign_local(op);
        if (ok) {
            kh_hist_add(hist, kh_now_ns() - begun_ns);
        } else if (!remote || ++*failed > 10) {
            return false;
        }
    }
    return true;
}

bool kh_op_run(const kh_op_config *config, kh_op_result *result)
{
    bench_op op = {0};
    unsigned round;
    bool ok = false;

    memset(result, 0, sizeof(*result));
    /* The first one loads the key in the agent and shows that the agent's key is ours. */
    if (!set_up(&op, config) || !next_message(&op) || !sign_remote(&op, true)) {
        goto done;
    }
    snprintf(result->scheme, sizeof(result->scheme), "%s", kh_scheme_name(op.scheme));
    ok = true;
    for (round = 0; ok && round < config->rounds; round++) {
        ok = half_round(&op, config, true, &result->remote, &result->failed) &&
             half_round(&op, config, false, &result->local, &result->failed);
    }
done:
    kh_client_close(op.client);
    EVP_PKEY_free(op.key);
    return ok;
}

static const char *const usage =
    "usage: keyhold-bench op --socket PATH --key FILE [--token FILE] [--rounds N] [--per-round N] [--json]\n"
    "Signs with the key of FILE (PEM), one at a time, in turns: through the agent, which must have the same key, and with\n"
    "OpenSSL in this process.\n"
    "  --socket PATH    the agent's Unix socket       --token FILE   who we are; without it, our uid\n"
    "  --rounds N       turns (20)                    --per-round N  operations in each half of a turn (100)\n";

static void print_report(const kh_op_result *result, bool as_json)
{
    const double quantiles[] = {0.5, 0.99};
    const char *const names[] = {"p50", "p99"};
    json_t *json = json_pack("{s:s, s:I, s:I}", "scheme", result->scheme, "operations",
                             (json_int_t)result->remote.count, "failed", (json_int_t)result->failed);
    size_t i;

    if (!as_json) {
        printf("%s, %llu operations each, %llu failed\n", result->scheme, (unsigned long long)result->remote.count,
               (unsigned long long)result->failed);
    }
    for (i = 0; i < 2; i++) {
        double remote = (double)kh_hist_quantile(&result->remote, quantiles[i]) / 1e3;
        double local = (double)kh_hist_quantile(&result->local, quantiles[i]) / 1e3;

        json_object_set_new(json, names[i],
                            json_pack("{s:f, s:f, s:f}", "agent_us", remote, "openssl_us", local, "more_us",
                                      remote - local));
        if (!as_json) {
            printf("  %s  agent %8.1f µs   OpenSSL %8.1f µs   more %+8.1f µs\n", names[i], remote, local, remote - local);
        }
    }
    if (as_json) {
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
        putchar('\n');
    }
    json_decref(json);
}

int kh_bench_op(int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'}, {"key", required_argument, NULL, 'k'},
        {"token", required_argument, NULL, 't'},  {"rounds", required_argument, NULL, 'r'},
        {"per-round", required_argument, NULL, 'n'}, {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    static kh_op_result result; /* large: two histograms */
    kh_op_config config = {.rounds = 20, .per_round = 100};
    char address[512] = "";
    bool as_json = false;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            snprintf(address, sizeof(address), "unix:%s", optarg);
            config.address = address;
            break;
        case 'k':
            config.key_file = optarg;
            break;
        case 't':
            config.token = optarg;
            break;
        case 'r':
            config.rounds = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'n':
            config.per_round = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'j':
            as_json = true;
            break;
        case 'h':
            fputs(usage, stdout);
            return KH_EXIT_OK;
        default:
            return KH_EXIT_USAGE;
        }
    }
    if (config.address == NULL || config.key_file == NULL || config.rounds == 0 || config.per_round == 0) {
        fputs(usage, stderr);
        return KH_EXIT_USAGE;
    }
    if (!kh_op_run(&config, &result)) {
        return KH_EXIT_USAGE;
    }
    print_report(&result, as_json);
    return result.failed == 0 ? KH_EXIT_OK : KH_EXIT_FAILED;
}

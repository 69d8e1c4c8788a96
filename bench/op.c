/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench op`: what one operation costs its caller at low load. One signature at a time through the agent's socket by
 * the client library, and the bare OpenSSL operation with the same key in this process, taking turns in one run.
 */
#include "bench.h"
#include "op_flight.h"
#include "op_key.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MS 5000

typedef struct bench_op {
    kh_op_key key;
    kh_client *client;
} bench_op;

static bool sign_remote(bench_op *op, bool check)
{
    kh_request request = kh_op_key_request(&op->key, TIMEOUT_MS);
    kh_reply reply;
    kh_result result = kh_client_call(op->client, &request, &reply);

    if (result != KH_OK || reply.status != KH_OK) {
        fprintf(stderr, "keyhold-bench op: %s\n", kh_result_text(result != KH_OK ? result : reply.status));
        return false;
    }
    return !check || kh_op_key_verify(&op->key, reply.data);
}

static bool set_up(bench_op *op, const kh_op_config *config)
{
    kh_credential credential;
    kh_result result = KH_OK;
    char detail[256] = "";

    memset(&credential, 0, sizeof(credential));
    if (!kh_op_key_load(config->key_file, &op->key)) {
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
        if (!kh_op_key_next(&op->key)) {
            return false;
        }
        begun_ns = kh_now_ns();
        ok = remote ? sign_remote(op, false) : kh_op_key_sign(&op->key);
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
    if (!set_up(&op, config) || !kh_op_key_next(&op.key) || !sign_remote(&op, true)) {
        goto done;
    }
    snprintf(result->scheme, sizeof(result->scheme), "%s", kh_scheme_name(op.key.scheme));
    ok = true;
    for (round = 0; ok && round < config->rounds; round++) {
        ok = half_round(&op, config, true, &result->remote, &result->failed) &&
             half_round(&op, config, false, &result->local, &result->failed);
    }
done:
    kh_client_close(op.client);
    kh_op_key_free(&op.key);
    return ok;
}

static const char *const usage =
    "usage: keyhold-bench op --socket PATH --key FILE [--token FILE] [--rounds N] [--per-round N] [--json]\n"
    "Signs with the key of FILE (PEM), one at a time, in turns: through the agent, which must have the same key, and with\n"
    "OpenSSL in this process.\n"
    "  --socket PATH    the agent's Unix socket       --token FILE   who we are; without it, our uid\n"
    "  --rounds N       turns (20)                    --per-round N  operations in each half of a turn (100)\n"
    "\n"
    "       keyhold-bench op … --agent tcp:HOST:PORT --agent-ca FILE --agent-cert FILE --agent-key FILE\n"
    "                             [--agent-name NAME] [--in-flight N]\n"
    "Over TCP with TLS and over the Unix socket, in turns, with N operations in flight (64) on one connection.\n";

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
        {"agent", required_argument, NULL, 'a'},  {"agent-ca", required_argument, NULL, 'A'},
        {"agent-cert", required_argument, NULL, 'C'}, {"agent-key", required_argument, NULL, 'K'},
        {"agent-name", required_argument, NULL, 'N'}, {"in-flight", required_argument, NULL, 'f'},
        {"per-round", required_argument, NULL, 'n'}, {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    static kh_op_result result; /* large: two histograms */
    static kh_flight_result flight;
    kh_op_config config = {.rounds = 20, .per_round = 100};
    kh_flight_config tcp = {.in_flight = 64};
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
        case 'a':
            tcp.tcp_address = optarg;
            break;
        case 'A':
            tcp.tls.ca_file = optarg;
            break;
        case 'C':
            tcp.tls.certificate_file = optarg;
            break;
        case 'K':
            tcp.tls.key_file = optarg;
            break;
        case 'N':
            tcp.tls.server_name = optarg;
            break;
        case 'f':
            tcp.in_flight = (unsigned)strtoul(optarg, NULL, 10);
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
    if (tcp.tcp_address != NULL) {
        tcp.unix_address = config.address;
        tcp.token = config.token;
        tcp.key_file = config.key_file;
        tcp.rounds = config.rounds;
        tcp.per_round = config.per_round;
        if (!kh_flight_run(&tcp, &flight)) {
            return KH_EXIT_USAGE;
        }
        kh_flight_print(&flight, as_json);
        return flight.failed == 0 ? KH_EXIT_OK : KH_EXIT_FAILED;
    }
    if (!kh_op_run(&config, &result)) {
        return KH_EXIT_USAGE;
    }
    print_report(&result, as_json);
    return result.failed == 0 ? KH_EXIT_OK : KH_EXIT_FAILED;
}

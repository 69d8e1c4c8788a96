/* SPDX-License-Identifier: Apache-2.0 */
/* `keyhold-bench load`: the load engine's command line and its report, for people and as JSON. */
#include "bench.h"

#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const usage =
    "usage: keyhold-bench load --connect HOST:PORT [options]\n"
    "Does full TLS handshakes (never a resumed one), each on a connection of its own, as fast as the clients allow.\n"
    "  --clients N        connections at the same time (50)\n"
    "  --threads N        threads that share the clients (1)\n"
    "  --rate N           begin at most N connections a second, evenly; latencies count from when each was due\n"
    "  --seconds N        how long to measure (5); 0: until SIGINT or SIGTERM\n"
    "  --count N          stop after that many connections instead\n"
    "  --warmup N         seconds before the measurement (0.5)\n"
    "  --timeout N        seconds from connect to the end of a connection (10)\n"
    "  --sni NAME         server name to ask for\n"
    "  --tls 1.2|1.3      only this version\n"
    "  --ciphers LIST     TLS 1.2 ciphers       --ciphersuites LIST  TLS 1.3 suites\n"
    "  --groups LIST      key exchange groups   --sigalgs LIST       signature algorithms (all as OpenSSL names them)\n"
    "  --alpn LIST        protocols to offer, as h2,http/1.1\n"
    "  --cafile FILE      verify the certificate chain, and the name if --sni is given\n"
    "  --pin FILE         the server must present exactly this certificate\n"
    "  --request PATH     GET this after each handshake; the answer must have status 200\n"
    "  --expect TEXT      and contain this text\n"
    "  --light            a client that costs less than the server: TLS 1.3 with X25519 and AES-128-GCM only, one key pair for all\n"
    "                     connections; it verifies the server's Finished, but neither certificate nor signature. To load, not to test\n"
    "  --pid PID[,PID…]   measure the CPU time of these processes, per handshake; may be repeated\n"
    "  --json             report as JSON\n"
    "SIGUSR1: with one thread, a line of JSON at once about the time since the one before, or since the begin.\n"
    "Any connection that is refused, reset, lost or times out is counted. Exit status: 0 none, 1 some, 2 could not run.\n";

static volatile int stop, cut;

static void on_signal(int signal_number)
{
    if (signal_number == SIGUSR1) {
        cut = 1;
    } else {
        stop = 1;
    }
}

double kh_load_rate(const kh_load_result *result)
{
    return result->window_ns == 0 ? 0 : (double)result->measured * 1e9 / (double)result->window_ns;
}

double kh_load_cpu_us(const kh_load_result *result)
{
    return result->measured == 0 ? 0 : (double)result->server_cpu_ns / 1e3 / (double)result->measured;
}

static const char *const error_names[] = {
#define KH_X(constant, name, text) name,
    KH_LOAD_ERRORS(KH_X)
#undef KH_X
};

static const char *const error_texts[] = {
#define KH_X(constant, name, text) text,
    KH_LOAD_ERRORS(KH_X)
#undef KH_X
};

/* Milliseconds with three digits after the point, so that JSON stays readable. */
static json_t *json_ms(uint64_t ns)
{
    return json_real(round((double)ns / 1e3) / 1e3);
}

static json_t *json_errors(const kh_load_result *result)
{
    json_t *errors = json_object();
    size_t i;

    for (i = 0; i < KH_LOAD_ERROR_COUNT; i++) {
        json_object_set_new(errors, error_names[i], json_integer((json_int_t)result->errors[i]));
    }
    return errors;
}

static json_t *json_details(const kh_load_result *result)
{
    json_t *details = json_object();
    size_t i;

    for (i = 0; i < KH_LOAD_DETAILS && result->details[i].count > 0; i++) {
        json_object_set_new(details, result->details[i].text, json_integer((json_int_t)result->details[i].count));
    }
    return details;
}

static json_t *json_latency(const kh_hist *latency)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "p50", json_ms(kh_hist_quantile(latency, 0.5)), "p99",
                     json_ms(kh_hist_quantile(latency, 0.99)), "p999", json_ms(kh_hist_quantile(latency, 0.999)),
                     "max", json_ms(latency->max_ns));
}

static void print_window(const kh_load_window *window)
{
    json_t *json = json_pack("{s:{s:f, s:I, s:I, s:o}}", "window", "seconds",
                             (double)(window->closed_ns - window->opened_ns) / 1e9, "measured",
                             (json_int_t)window->latency.count, "failed", (json_int_t)window->failed, "latency_ms",
                             json_latency(&window->latency));

    json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    putchar('\n');
    fflush(stdout);
    json_decref(json);
}

json_t *kh_load_json(const kh_load_result *result)
{
    double per_handshake = result->measured > 0 ? (double)result->measured * 1e3 : 1;
    json_t *json = json_pack(
        "{s:I, s:I, s:I, s:o, s:o, s:I, s:f, s:f}", "started", (json_int_t)result->started, "done",
        (json_int_t)result->done, "failed", (json_int_t)result->failed, "errors", json_errors(result), "messages",
        json_details(result), "measured", (json_int_t)result->measured, "seconds", (double)result->window_ns / 1e9,
        "handshakes_per_second", round(kh_load_rate(result) * 10) / 10);

    json_object_set_new(json, "latency_ms", json_latency(&result->latency));
    json_object_set_new(json, "server_cpu_us", json_real(round(kh_load_cpu_us(result) * 10) / 10));
    json_object_set_new(json, "client_cpu_us",
                        json_real(round((double)result->client_cpu_ns / per_handshake * 10) / 10));
    json_object_set_new(json, "server_processes_gone", json_integer(result->pids_gone));
    json_object_set_new(json, "first",
                        json_pack("{s:s, s:s, s:s, s:s, s:s}", "protocol", result->protocol, "cipher", result->cipher,
                                  "group", result->group, "signature", result->signature, "alpn", result->alpn));
    return json;
}

static void print_report(const kh_load_config *config, const kh_load_result *result)
{
    size_t i;

    printf("%s:%s  %s %s, group %s, signature %s, %u clients\n", config->host, config->port,
           result->protocol[0] != '\0' ? result->protocol : "no handshake", result->cipher, result->group,
           result->signature, config->clients);
    printf("  handshakes      %llu in %.2f s: %.1f per second\n", (unsigned long long)result->measured,
           (double)result->window_ns / 1e9, kh_load_rate(result));
    printf("  latency         p50 %.2f ms, p99 %.2f ms, p999 %.2f ms, max %.2f ms\n",
           (double)kh_hist_quantile(&result->latency, 0.5) / 1e6, (double)kh_hist_quantile(&result->latency, 0.99) / 1e6,
           (double)kh_hist_quantile(&result->latency, 0.999) / 1e6, (double)result->latency.max_ns / 1e6);
    if (config->pids != NULL) {
        printf("  server CPU      %.1f µs per handshake", kh_load_cpu_us(result));
        printf(result->pids_gone > 0 ? " (without %u processes that are gone)\n" : "\n", result->pids_gone);
    }
    printf("  client CPU      %.1f µs per handshake\n",
           result->measured > 0 ? (double)result->client_cpu_ns / 1e3 / (double)result->measured : 0.0);
    printf("  whole run       %llu connections: %llu done, %llu failed\n", (unsigned long long)result->started,
           (unsigned long long)result->done, (unsigned long long)result->failed);
    for (i = 0; i < KH_LOAD_ERROR_COUNT; i++) {
        if (result->errors[i] > 0) {
            printf("    %-10s %8llu  %s\n", error_names[i], (unsigned long long)result->errors[i], error_texts[i]);
        }
    }
    for (i = 0; i < KH_LOAD_DETAILS && result->details[i].count > 0; i++) {
        printf("    %8llu × %s\n", (unsigned long long)result->details[i].count, result->details[i].text);
    }
}

/* Splits HOST:PORT, [V6]:PORT too, in place. */
static bool split_address(char *text, kh_load_config *config)
{
    char *colon = strrchr(text, ':');

    if (colon == NULL || colon == text || colon[1] == '\0') {
        return false;
    }
    *colon = '\0';
    config->port = colon + 1;
    if (text[0] == '[' && colon[-1] == ']') {
        colon[-1] = '\0';
        text++;
    }
    config->host = text;
    return true;
}

static bool parse_seconds(const char *text, uint64_t *ns)
{
    char *end;
    double seconds = strtod(text, &end);

    if (end == text || *end != '\0' || !(seconds >= 0 && seconds <= 1e6)) {
        return false;
    }
    *ns = (uint64_t)(seconds * 1e9);
    return true;
}

static bool parse_count(const char *text, uint64_t max, uint64_t *count)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);

    if (end == text || *end != '\0' || text[0] == '-' || value == 0 || value > max) {
        return false;
    }
    *count = value;
    return true;
}

enum { OPT_HELP = 1000, OPT_CONNECT, OPT_CLIENTS, OPT_THREADS, OPT_RATE, OPT_SECONDS, OPT_COUNT, OPT_WARMUP, OPT_TIMEOUT, OPT_PID,
       OPT_JSON, OPT_LIGHT, OPT_TEXT };

static const struct option options[] = {
    {"help", no_argument, NULL, OPT_HELP},           {"connect", required_argument, NULL, OPT_CONNECT},
    {"rate", required_argument, NULL, OPT_RATE},     {"threads", required_argument, NULL, OPT_THREADS},
    {"clients", required_argument, NULL, OPT_CLIENTS}, {"seconds", required_argument, NULL, OPT_SECONDS},
    {"count", required_argument, NULL, OPT_COUNT},   {"warmup", required_argument, NULL, OPT_WARMUP},
    {"timeout", required_argument, NULL, OPT_TIMEOUT}, {"pid", required_argument, NULL, OPT_PID},
    {"json", no_argument, NULL, OPT_JSON},           {"sni", required_argument, NULL, OPT_TEXT},
    {"tls", required_argument, NULL, OPT_TEXT},      {"ciphers", required_argument, NULL, OPT_TEXT},
    {"ciphersuites", required_argument, NULL, OPT_TEXT}, {"groups", required_argument, NULL, OPT_TEXT},
    {"sigalgs", required_argument, NULL, OPT_TEXT},  {"alpn", required_argument, NULL, OPT_TEXT},
    {"cafile", required_argument, NULL, OPT_TEXT},   {"pin", required_argument, NULL, OPT_TEXT},
    {"request", required_argument, NULL, OPT_TEXT},  {"expect", required_argument, NULL, OPT_TEXT},
    {"light", no_argument, NULL, OPT_LIGHT},         {NULL, 0, NULL, 0}};

/* Where the value of an option that is plain text goes. */
static const char **text_slot(kh_load_config *config, const char *name)
{
    const struct {
        const char *name;
        const char **slot;
    } slots[] = {{"sni", &config->sni},           {"tls", &config->tls},         {"ciphers", &config->ciphers},
                 {"ciphersuites", &config->ciphersuites}, {"groups", &config->groups}, {"sigalgs", &config->sigalgs},
                 {"alpn", &config->alpn},         {"cafile", &config->cafile},   {"pin", &config->pin},
                 {"request", &config->request},   {"expect", &config->expect}};
    size_t i;

    for (i = 0; i < sizeof(slots) / sizeof(slots[0]); i++) {
        if (strcmp(slots[i].name, name) == 0) {
            return slots[i].slot;
        }
    }
    return NULL;
}

static bool parse_option(int option, int index, kh_load_config *config, kh_pids *pids, bool *json)
{
    uint64_t clients = config->clients;
    uint64_t threads = 1;
    uint64_t rate = 1;
    bool ok = true;

    switch (option) {
    case OPT_CONNECT:
        return split_address(optarg, config);
    case OPT_CLIENTS:
        ok = parse_count(optarg, 10000, &clients);
        config->clients = (unsigned)clients;
        return ok;
    case OPT_THREADS:
        ok = parse_count(optarg, 256, &threads);
        config->threads = (unsigned)threads;
        return ok;
    case OPT_RATE:
        ok = parse_count(optarg, 1000000u, &rate);
        config->interval_ns = 1000000000u / rate;
        return ok;
    case OPT_SECONDS:
        return parse_seconds(optarg, &config->duration_ns);
    case OPT_COUNT:
        config->duration_ns = 0;
        return parse_count(optarg, 1000000000u, &config->max_handshakes);
    case OPT_WARMUP:
        return parse_seconds(optarg, &config->warmup_ns);
    case OPT_TIMEOUT:
        return parse_seconds(optarg, &config->timeout_ns);
    case OPT_PID:
        config->pids = pids;
        return kh_pids_parse(pids, optarg);
    case OPT_JSON:
        *json = true;
        return true;
    case OPT_LIGHT:
        config->light = true;
        return true;
    case OPT_TEXT:
        *text_slot(config, options[index].name) = optarg;
        return true;
    default:
        return false;
    }
}

/* The light client has no choices: the first option that asks it for one, or NULL. */
static const char *not_light(const kh_load_config *config)
{
    const struct {
        const char *name, *value;
    } choices[] = {{"tls 1.2", config->tls != NULL && strcmp(config->tls, "1.3") != 0 ? config->tls : NULL},
                   {"ciphers", config->ciphers}, {"ciphersuites", config->ciphersuites}, {"groups", config->groups},
                   {"sigalgs", config->sigalgs}, {"alpn", config->alpn}, {"cafile", config->cafile}, {"pin", config->pin},
                   {"request", config->request}, {"expect", config->expect}};
    size_t i;

    for (i = 0; config->light && i < sizeof(choices) / sizeof(choices[0]); i++) {
        if (choices[i].value != NULL) {
            return choices[i].name;
        }
    }
    return NULL;
}

int kh_bench_load(int argc, char **argv)
{
    static kh_load_result result; /* large: the histogram */
    kh_load_config config = {.clients = 50, .warmup_ns = 500000000u, .duration_ns = 5000000000u,
                             .timeout_ns = 10000000000u, .stop = &stop, .cut = &cut, .on_window = print_window};
    kh_pids pids = {0};
    bool json = false;
    json_t *report = NULL;
    int option;
    int index = 0;

    while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
        if (option == OPT_HELP) {
            fputs(usage, stdout);
            return KH_EXIT_OK;
        }
        if (option == '?' || !parse_option(option, index, &config, &pids, &json)) {
            if (option != '?') {
                fprintf(stderr, "keyhold-bench load: bad value for --%s\n", options[index].name);
            }
            return KH_EXIT_USAGE;
        }
    }
    if (config.host == NULL || optind != argc) {
        fputs(usage, stderr);
        return KH_EXIT_USAGE;
    }
    if (not_light(&config) != NULL) {
        fprintf(stderr, "keyhold-bench load: --light cannot do --%s\n", not_light(&config));
        return KH_EXIT_USAGE;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGUSR1, on_signal);
    signal(SIGPIPE, SIG_IGN);
    if (config.max_handshakes != 0) {
        config.warmup_ns = 0;
    }
    if (!kh_load_run(&config, &result)) {
        return KH_EXIT_USAGE;
    }
    if (json) {
        report = kh_load_json(&result);
        json_dumpf(report, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
        putchar('\n');
        json_decref(report);
    } else {
        print_report(&config, &result);
    }
    return result.failed == 0 && result.done > 0 ? KH_EXIT_OK : KH_EXIT_FAILED;
}

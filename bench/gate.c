/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench gate`: the product's figures against their bounds. Each row is a claim with an id; its figure is the median
 * of several alternations, each of which measures both sides one after the other, so that a machine's moods hit both.
 */
#include "gate.h"

#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* New claims are new rows. Rows with the same delay stand together: each change starts the demo anew. */
static const gate_row rows[] = {
    {"M1", "rsa2048: handshakes/s, each operation delayed by 20 ms, over local keys", "×", GATE_AT_LEAST, 0.9,
     gate_rate_ratio, "rsa2048", 20, NULL},
    {"M1", "p256: handshakes/s, each operation delayed by 20 ms, over local keys", "×", GATE_AT_LEAST, 0.9,
     gate_rate_ratio, "p256", 20, NULL},
    {"M2", "rsa2048: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_REPORT, 0, gate_cpu_ratio, "rsa2048",
     0, NULL},
    {"M2", "rsa4096: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_REPORT, 0, gate_cpu_ratio, "rsa4096",
     0, NULL},
    {"M2", "p256: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_AT_MOST, 1.3, gate_cpu_ratio, "p256", 0, NULL},
    {"M2", "p384: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_REPORT, 0, gate_cpu_ratio, "p384", 0, NULL},
    {"M3", "p256: one operation through the socket, p50, more than bare OpenSSL", "µs", GATE_AT_MOST, 80, gate_op_p50,
     "p256", 0, NULL},
    {"M3", "rsa2048: one operation through the socket, p50, more than bare OpenSSL", "µs", GATE_AT_MOST, 80,
     gate_op_p50, "rsa2048", 0, NULL},
    {"M3", "p256: one operation through the socket, p99, more than bare OpenSSL", "µs", GATE_REPORT, 0, gate_op_p99,
     "p256", 0, NULL},
    {"M3", "rsa2048: one operation through the socket, p99, more than bare OpenSSL", "µs", GATE_REPORT, 0, gate_op_p99,
     "rsa2048", 0, NULL},
    {"F8", "p256: p99 of one operation beside another tenant's flood, more than alone", "ms", GATE_AT_MOST, 2, gate_flood_p99,
     "p256", 0, NULL},
    {"F9", "p256: operations/s over TCP with mutual TLS, 64 in flight, over Unix socket", "×", GATE_AT_LEAST, 0.7,
     gate_tcp_ratio, "p256", 0, NULL},
    {"K1", "rsa2048: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_AT_MOST, 1.0, gate_cpu_ratio,
     "rsa2048", 0, NULL},
    {"K1", "rsa4096: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_AT_MOST, 0.5, gate_cpu_ratio,
     "rsa4096", 0, NULL},
    {"K1", "p384: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_AT_MOST, 0.5, gate_cpu_ratio, "p384", 0, NULL},
    {"K1", "p256: server CPU per TLS 1.3 handshake, over local keys", "×", GATE_AT_MOST, 1.15, gate_cpu_ratio, "p256",
     0, NULL},
    {"T2", "p256: handshakes/s, a token of 5 ms and 8 sessions, over libp11's engine", "×", GATE_AT_LEAST, 5, gate_rate_ratio,
     "p256", 0, "--tier hsm --token-delay-ms 5 --beside engine"},
    {"T2", "rsa2048: handshakes/s, a token of 5 ms and 8 sessions, over libp11's engine", "×", GATE_AT_LEAST, 4, gate_rate_ratio,
     "rsa2048", 0, "--tier hsm --token-delay-ms 5 --beside engine"},
    {"T2", "p256: handshakes/s, SoftHSM as it is, over libp11's engine", "×", GATE_AT_LEAST, 1.15, gate_rate_ratio, "p256", 0,
     "--tier hsm --beside engine"},
    {"T2", "rsa2048: handshakes/s, SoftHSM as it is, over libp11's engine", "×", GATE_AT_LEAST, 1.15, gate_rate_ratio, "rsa2048", 0,
     "--tier hsm --beside engine"},
    {"T5", "p256: signatures/s, a token of 5 ms and 8 sessions, over 8 bare threads", "×", GATE_AT_LEAST, 0.95, gate_token_ratio,
     "p256", 0, "--tier hsm --token-delay-ms 5"},
    {"T8", "p256: p99 of a signature beside a key that takes 500 ms in the same token, more than alone", "ms", GATE_AT_MOST, 2,
     gate_token_slow_key, "p256", 0, "--tier hsm --token-delay-ms 5"},
    {"T4", "p256: handshakes/s from 2 s after one partition of three is lost, over before", "×", GATE_AT_LEAST, 0.9,
     gate_pool_ratio, "p256", 0, "--tier hsm-pool"},
    {"M15", "100,000 keys: from the agent's start to the first signature", "ms", GATE_AT_MOST, 1000, gate_store_start, NULL, 0, NULL},
    {"M15", "100,000 keys: worst of 20 first uses of a key", "ms", GATE_AT_MOST, 5, gate_store_first_use, NULL, 0, NULL},
    {"M15", "100,000 keys: resident memory of all processes", "MB", GATE_REPORT, 0, gate_store_memory, NULL, 0, NULL},
    {"T7", "10,000 keys over three tiers: from the agent's start to the first signature", "ms", GATE_AT_MOST, 1000,
     gate_tiers_start, NULL, 0, NULL},
    {"T7", "10,000 keys over three tiers: memory of the front for each key that it knows", "B", GATE_AT_MOST, 1024,
     gate_tiers_memory, NULL, 0, NULL},
    {"K2", "rsa2048: a full batch of the kernel, over OpenSSL", "×", GATE_AT_LEAST, 1.9, gate_kernel_ratio, NULL, 0, "rsa2048"},
    {"K2", "rsa3072: a full batch of the kernel, over OpenSSL", "×", GATE_AT_LEAST, 3.4, gate_kernel_ratio, NULL, 0, "rsa3072"},
    {"K2", "rsa4096: a full batch of the kernel, over OpenSSL", "×", GATE_AT_LEAST, 3.9, gate_kernel_ratio, NULL, 0, "rsa4096"},
    {"K2", "p256: a full batch of the kernel, over OpenSSL", "×", GATE_AT_LEAST, 3.0, gate_kernel_ratio, NULL, 0, "p256"},
    {"K2", "p384: a full batch of the kernel, over OpenSSL", "×", GATE_AT_LEAST, 38, gate_kernel_ratio, NULL, 0, "p384"},
    {"K2", "ed25519: a full batch of the kernel, over OpenSSL", "×", GATE_AT_LEAST, 11, gate_kernel_ratio, NULL, 0, "ed25519"},
    {"K2", "rsa2048: 4 operations, over a full batch", "×", GATE_AT_LEAST, 0.9, gate_kernel_half, NULL, 0, "rsa2048"},
    {"K2", "rsa3072: 4 operations, over a full batch", "×", GATE_AT_LEAST, 0.9, gate_kernel_half, NULL, 0, "rsa3072"},
    {"K2", "rsa4096: 4 operations, over a full batch", "×", GATE_AT_LEAST, 0.9, gate_kernel_half, NULL, 0, "rsa4096"},
};

#define ROW_COUNT (sizeof(rows) / sizeof(rows[0]))

static const char *const usage =
    "usage: keyhold-bench gate [--only ID[,ID…]] [--alternations N] [--seconds N] [--build-dir DIR] [--demo FILE] [--json]\n"
    "Measures the product's figures and asserts their bounds. Each is the median of five alternations.\n"
    "  --only IDS          only these claims\n"
    "  --alternations N    (5)\n"
    "  --seconds N         how long each load run measures (4)\n"
    "  --build-dir DIR     where Keyhold was built (the build of this program)\n"
    "  --demo FILE         the demo script (the one of this source tree)\n"
    "  --list              list the claims and stop\n"
    "Exit status: 0 all bounds hold, 1 one does not, 2 something could not be measured.\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static bool named(const char *list, const char *id)
{
    size_t len = strlen(id);

    while (*list != '\0') {
        size_t word = strcspn(list, ",");

        if (word == len && strncmp(list, id, len) == 0) {
            return true;
        }
        list += word + (list[word] == ',');
    }
    return false;
}

static bool wanted(const gate_row *row, const char *only)
{
    return only == NULL || named(only, row->id);
}

static bool holds(const gate_row *row, double value)
{
    return row->kind == GATE_REPORT || (row->kind == GATE_AT_MOST ? value <= row->bound : value >= row->bound);
}

/* The row's figure for the report; NULL: could not be measured. */
static json_t *measure_row(gate *g, const gate_row *row, unsigned alternations)
{
    double values[GATE_ALTERNATIONS_MAX];
    json_t *all = json_array();
    double median;
    unsigned i;

    for (i = 0; i < alternations; i++) {
        fprintf(stderr, "gate: %s %s (%u of %u)\n", row->id, row->what, i + 1, alternations);
        if (interrupted || (row->key != NULL && !gate_demo_ready(g, row->delay_ms, row->with)) ||
            !row->measure(g, row, i, &values[i])) {
            json_decref(all);
            return NULL;
        }
        json_array_append_new(all, json_real(values[i]));
    }
    median = kh_median(values, alternations);
    return json_pack("{s:s, s:s, s:f, s:s, s:s, s:f, s:b, s:o}", "id", row->id, "what", row->what, "value", median,
                     "unit", row->unit, "bound_kind",
                     row->kind == GATE_REPORT ? "report" : row->kind == GATE_AT_MOST ? "at most" : "at least", "bound",
                     row->bound, "ok", holds(row, median), "alternations", all);
}

static void print_table(const json_t *report)
{
    const json_t *list = json_object_get(report, "rows");
    size_t i;

    printf("\n%-4s %-76s %10s    %-14s\n", "id", "claim", "median", "bound");
    for (i = 0; i < json_array_size(list); i++) {
        const json_t *row = json_array_get(list, i);
        const char *kind = json_string_value(json_object_get(row, "bound_kind"));
        const char *unit = json_string_value(json_object_get(row, "unit"));
        bool report_only = strcmp(kind, "report") == 0;
        char bound[40] = "reported";

        if (!report_only) {
            snprintf(bound, sizeof(bound), "%s %g %s", strcmp(kind, "at most") == 0 ? "≤" : "≥",
                     json_real_value(json_object_get(row, "bound")), unit);
        }
        printf("%-4s %-76s %10.2f %-3s %-16s %s\n", json_string_value(json_object_get(row, "id")),
               json_string_value(json_object_get(row, "what")), json_real_value(json_object_get(row, "value")), unit,
               bound, report_only ? "" : json_is_true(json_object_get(row, "ok")) ? "ok" : "FAILED");
    }
}

static int run_rows(gate *g, const char *only, unsigned alternations, bool as_json)
{
    json_t *list = json_array();
    json_t *report = json_pack("{s:o}", "rows", list);
    json_t *one;
    unsigned bad = 0;
    unsigned missing = 0;
    size_t i;
    const char *verdict;

    for (i = 0; i < ROW_COUNT; i++) {
        if (!wanted(&rows[i], only)) {
            continue;
        }
        one = measure_row(g, &rows[i], alternations);
        if (one == NULL) {
            fprintf(stderr, "gate: %s could not be measured: %s\n", rows[i].id, rows[i].what);
            missing++;
            continue;
        }
        bad += json_is_true(json_object_get(one, "ok")) ? 0 : 1;
        json_array_append_new(list, one);
    }
    verdict = missing > 0 ? "not measured" : bad > 0 ? "failed" : "passed";
    json_object_set_new(report, "not_measured", json_integer(missing));
    json_object_set_new(report, "failed", json_integer(bad));
    json_object_set_new(report, "verdict", json_string(verdict));
    if (as_json) {
        json_dumpf(report, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        putchar('\n');
    } else {
        print_table(report);
        printf("\nVERDICT: %s: %zu figures measured, %u outside their bounds, %u not measured\n", verdict,
               json_array_size(list), bad, missing);
    }
    json_decref(report);
    return missing > 0 ? KH_EXIT_USAGE : bad > 0 ? KH_EXIT_FAILED : KH_EXIT_OK;
}

/* BUILD/bench/keyhold-bench lies in BUILD. */
static void default_paths(gate *g)
{
    ssize_t len = readlink("/proc/self/exe", g->build_dir, sizeof(g->build_dir) - 1);
    int i;

    g->build_dir[len > 0 ? len : 0] = '\0';
    for (i = 0; i < 2; i++) {
        char *slash = strrchr(g->build_dir, '/');

        if (slash != NULL) {
            *slash = '\0';
        }
    }
    snprintf(g->demo, sizeof(g->demo), "%s/demo", KH_SOURCE_DIR);
}

/* The agent's and nginx's processes have users of their own and must get through; and a socket's path must fit. */
static bool public_dir(const char *path)
{
    char above[PATH_MAX];
    struct stat status;

    if (realpath(path, above) == NULL || strlen(above) > 45) {
        return false;
    }
    while (above[1] != '\0') {
        if (stat(above, &status) != 0 || (status.st_mode & S_IXOTH) == 0) {
            return false;
        }
        *strrchr(above, '/') = '\0';
        if (above[0] == '\0') {
            break;
        }
    }
    return true;
}

static bool make_dir(gate *g)
{
    const char *base = getenv("TMPDIR");

    snprintf(g->dir, sizeof(g->dir), "%s/keyhold-gate.XXXXXX", base != NULL && public_dir(base) ? base : "/tmp");
    if (mkdtemp(g->dir) == NULL || chmod(g->dir, 0711) != 0) {
        perror(g->dir);
        return false;
    }
    snprintf(g->demo_dir, sizeof(g->demo_dir), "%s/demo", g->dir);
    return true;
}

static void list_rows(void)
{
    size_t i;

    for (i = 0; i < ROW_COUNT; i++) {
        printf("%-4s %s\n", rows[i].id, rows[i].what);
    }
}

int kh_bench_gate(int argc, char **argv)
{
    static const struct option options[] = {
        {"only", required_argument, NULL, 'o'},      {"alternations", required_argument, NULL, 'a'},
        {"seconds", required_argument, NULL, 's'},   {"build-dir", required_argument, NULL, 'b'},
        {"demo", required_argument, NULL, 'd'},      {"json", no_argument, NULL, 'j'},
        {"list", no_argument, NULL, 'l'},            {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    static gate g;
    const char *rm[] = {"/bin/rm", "-rf", g.dir, NULL};
    const char *only = NULL;
    unsigned long alternations = 5;
    double seconds = 4;
    bool as_json = false;
    int option;
    int status;

    default_paths(&g);
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'o': only = optarg; break;
        case 'a': alternations = strtoul(optarg, NULL, 10); break;
        case 's': seconds = strtod(optarg, NULL); break;
        case 'b': snprintf(g.build_dir, sizeof(g.build_dir), "%s", optarg); break;
        case 'd': snprintf(g.demo, sizeof(g.demo), "%s", optarg); break;
        case 'j': as_json = true; break;
        case 'l': list_rows(); return KH_EXIT_OK;
        case 'h': fputs(usage, stdout); return KH_EXIT_OK;
        default: return KH_EXIT_USAGE;
        }
    }
    if (alternations < 1 || alternations > GATE_ALTERNATIONS_MAX || !(seconds > 0 && seconds < 3600) ||
        optind != argc) {
        fputs(usage, stderr);
        return KH_EXIT_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    g.load_ns = (uint64_t)(seconds * 1e9);
    g.demo_delay_ms = -1;
    if (!make_dir(&g)) {
        return KH_EXIT_USAGE;
    }
    status = run_rows(&g, only, (unsigned)alternations, as_json);
    gate_store_end(&g);
    gate_tiers_end(&g);
    json_decref(g.kernels);
    gate_demo_end(&g);
    gate_run(rm, NULL);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's measurements on the demo: handshake rates, CPU time, single operations. */
#include "gate.h"

#include <stdio.h>
#include <string.h>

#define RATE_CLIENTS 200
#define CPU_CLIENTS 200
#define POOL_CLIENTS 100
#define FULL_THREADS 2
#define PARTITION "three" /* of the demo's pool */
#define OP_ROUNDS 8
#define OP_PER_ROUND 250
#define FLIGHT_ROUNDS 6
#define FLIGHT_PER_ROUND 8000
#define FLIGHT_DEPTH 64

static bool add_pids(gate *g, kh_pids *pids, const char *name)
{
    const char *text = gate_env(g, "", name);

    return text != NULL && kh_pids_parse(pids, text);
}

/*
 * Rates are the servers' if a light client asks; CPU time counts on a machine that is full, which libssl's client makes it.
 *
 * One load run against the port of a key, "PORT_" or "PORT_local_"; every failed handshake spoils it.
 */
static bool run_load_after(gate *g, const gate_row *row, const char *prefix, unsigned clients, kh_pids *pids, uint64_t warmup_ns)
{
    char sni[64];
    kh_load_config config = {.host = "127.0.0.1",
                             .port = gate_env(g, prefix, row->key),
                             .sni = sni,
                             .tls = "1.3",
                             .clients = clients,
                             .light = pids == NULL,
                             .threads = pids == NULL ? 1 : FULL_THREADS,
                             .warmup_ns = warmup_ns,
                             .duration_ns = g->load_ns,
                             .timeout_ns = 20000000000u,
                             .pids = pids};

    snprintf(sni, sizeof(sni), "%s.keyhold.test", row->key);
    if (config.port == NULL || !kh_load_run(&config, &g->load)) {
        fprintf(stderr, "gate: %s %s: no load run\n", row->id, row->key);
        return false;
    }
    if (g->load.failed > 0 || g->load.measured == 0 || g->load.pids_gone > 0) {
        fprintf(stderr, "gate: %s %s%s: %llu of %llu handshakes failed (%s), %u processes gone\n", row->id, prefix,
                row->key, (unsigned long long)g->load.failed, (unsigned long long)g->load.started,
                g->load.details[0].text, g->load.pids_gone);
        return false;
    }
    return true;
}

static bool run_load(gate *g, const gate_row *row, const char *prefix, unsigned clients, kh_pids *pids)
{
    return run_load_after(g, row, prefix, clients, pids, 700000000u);
}

bool gate_rate_ratio(gate *g, const gate_row *row, size_t alternation, double *value)
{
    double agent;

    (void)alternation;
    if (!run_load(g, row, "PORT_", RATE_CLIENTS, NULL)) {
        return false;
    }
    agent = kh_load_rate(&g->load);
    if (!run_load(g, row, "PORT_local_", RATE_CLIENTS, NULL)) {
        return false;
    }
    *value = agent / kh_load_rate(&g->load);
    fprintf(stderr, "  %.0f against %.0f handshakes per second\n", agent, kh_load_rate(&g->load));
    return true;
}

bool gate_cpu_ratio(gate *g, const gate_row *row, size_t alternation, double *value)
{
    kh_pids agent_side = {0};
    kh_pids local_side = {0};
    double agent;

    (void)alternation;
    if (!add_pids(g, &agent_side, "NGINX_WORKER_PIDS") || !add_pids(g, &agent_side, "AGENT_PIDS") ||
        !add_pids(g, &local_side, "LOCAL_WORKER_PIDS") || !run_load(g, row, "PORT_", CPU_CLIENTS, &agent_side)) {
        return false;
    }
    agent = kh_load_cpu_us(&g->load);
    if (!run_load(g, row, "PORT_local_", CPU_CLIENTS, &local_side)) {
        return false;
    }
    *value = agent / kh_load_cpu_us(&g->load);
    fprintf(stderr, "  %.0f against %.0f µs of CPU time per handshake\n", agent, kh_load_cpu_us(&g->load));
    return true;
}

static bool op_more_us(gate *g, const gate_row *row, double quantile, double *value)
{
    char address[PATH_MAX];
    char key_file[PATH_MAX];
    const char *socket_path = gate_env(g, "", "AGENT_SOCKET");
    const char *keys = gate_env(g, "", "LOCAL_KEY_DIR");
    kh_op_config config = {.address = address,
                           .token = gate_env(g, "", "AGENT_TOKEN"),
                           .key_file = key_file,
                           .rounds = OP_ROUNDS,
                           .per_round = OP_PER_ROUND};
    double remote;
    double local;

    if (socket_path == NULL || keys == NULL) {
        return false;
    }
    snprintf(address, sizeof(address), "unix:%s", socket_path);
    snprintf(key_file, sizeof(key_file), "%s/%s.key", keys, row->key);
    if (!kh_op_run(&config, &g->op) || g->op.failed > 0) {
        return false;
    }
    remote = (double)kh_hist_quantile(&g->op.remote, quantile) / 1e3;
    local = (double)kh_hist_quantile(&g->op.local, quantile) / 1e3;
    *value = remote - local;
    fprintf(stderr, "  %.0f against %.0f µs\n", remote, local);
    return true;
}

bool gate_op_p50(gate *g, const gate_row *row, size_t alternation, double *value)
{
    (void)alternation;
    return op_more_us(g, row, 0.5, value);
}

bool gate_op_p99(gate *g, const gate_row *row, size_t alternation, double *value)
{
    (void)alternation;
    return op_more_us(g, row, 0.99, value);
}

bool gate_tcp_ratio(gate *g, const gate_row *row, size_t alternation, double *value)
{
    char address[PATH_MAX];
    char key_file[PATH_MAX];
    const char *socket_path = gate_env(g, "", "AGENT_SOCKET");
    const char *keys = gate_env(g, "", "LOCAL_KEY_DIR");
    kh_flight_config config = {.unix_address = address,
                               .tcp_address = gate_env(g, "", "AGENT_TCP"),
                               .token = gate_env(g, "", "AGENT_TOKEN"),
                               .tls = {.ca_file = gate_env(g, "", "AGENT_TCP_CA"),
                                       .certificate_file = gate_env(g, "", "AGENT_TCP_CERT"),
                                       .key_file = gate_env(g, "", "AGENT_TCP_KEY")},
                               .key_file = key_file,
                               .rounds = FLIGHT_ROUNDS,
                               .per_round = FLIGHT_PER_ROUND,
                               .in_flight = FLIGHT_DEPTH};

    (void)alternation;
    if (socket_path == NULL || keys == NULL || config.tcp_address == NULL) {
        return false;
    }
    snprintf(address, sizeof(address), "unix:%s", socket_path);
    snprintf(key_file, sizeof(key_file), "%s/%s.key", keys, row->key);
    if (!kh_flight_run(&config, &g->flight) || g->flight.failed > 0) {
        return false;
    }
    *value = kh_flight_ratio(&g->flight);
    fprintf(stderr, "  p50 %.0f against %.0f µs\n", (double)kh_hist_quantile(&g->flight.tcp_hist, 0.5) / 1e3,
            (double)kh_hist_quantile(&g->flight.unix_hist, 0.5) / 1e3);
    return true;
}

/* The last partition's token is renamed away, or back. */
static bool move_partition(gate *g, bool away)
{
    char here[PATH_MAX + 64];
    char there[PATH_MAX + 64];

    snprintf(here, sizeof(here), "%s/hsm/%s/tokens", g->demo_dir, PARTITION);
    snprintf(there, sizeof(there), "%s/hsm/%s/away", g->demo_dir, PARTITION);
    return away ? rename(here, there) == 0 : rename(there, here) == 0;
}

bool gate_pool_ratio(gate *g, const gate_row *row, size_t alternation, double *value)
{
    double before;
    bool ok;

    (void)alternation;
    if (!run_load(g, row, "PORT_", POOL_CLIENTS, NULL)) {
        return false;
    }
    before = kh_load_rate(&g->load);
    if (!move_partition(g, true)) {
        return false;
    }
    ok = run_load_after(g, row, "PORT_", POOL_CLIENTS, NULL, 2000000000u);
    if (!move_partition(g, false) || !ok) {
        return false;
    }
    *value = kh_load_rate(&g->load) / before;
    fprintf(stderr, "  %.0f after the loss against %.0f handshakes per second\n", kh_load_rate(&g->load), before);
    return true;
}

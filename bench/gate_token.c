/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's measurements on the demo's token: what the tier adds (T5), and a slow key beside a fast one (T8). */
#include "bare.h"
#include "gate.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SESSIONS 8 /* of the demo's token */
#define IN_FLIGHT 64
#define SLOW_IN_FLIGHT 32
#define SLOW_MS 500
#define WARMUP_NS 500000000u
#define TOKEN "hsm"

/* Two keys: one alone may not take all sessions of a token. */
static const char *const keys[] = {"gate-one", "gate-two"};
static const char *const slow_key[] = {"gate-slow"};

static bool have_key(gate *g, const char *name)
{
    char program[PATH_MAX + 32];
    const char *show[] = {program, "--config", gate_env(g, "", "AGENT_CONF"), "key", "show", name, NULL};
    const char *create[] = {program, "--config", gate_env(g, "", "AGENT_CONF"), "key", "create", name, "--type", "p256", "--tier",
                            "hsm", NULL};

    snprintf(program, sizeof(program), "%s/agent/ctl/keyholdctl", g->build_dir);
    return gate_run(show, NULL) == 0 || gate_run(create, NULL) == 0;
}

static bool have_keys(gate *g)
{
    bool there = have_key(g, keys[0]) && have_key(g, keys[1]) && have_key(g, slow_key[0]);

    if (!there) {
        fprintf(stderr, "gate: cannot make keys in the demo's token\n");
    }
    return there;
}

static void read_line(const char *path, char *line, size_t size)
{
    FILE *file = fopen(path, "r");

    line[0] = '\0';
    if (file != NULL) {
        (void)!fgets(line, (int)size, file);
        fclose(file);
    }
    line[strcspn(line, "\n")] = '\0';
}

/* The same token, the same two keys, and as many threads as it has sessions. */
static bool bare_rate(gate *g, double *per_second)
{
    char module[PATH_MAX + 64], pin_file[PATH_MAX + 64], pin[64], conf[PATH_MAX + 64], orders[PATH_MAX + 64];
    const char *env[] = {conf, orders, NULL};
    const kh_bare_config config = {.module = module,
                                   .token = TOKEN,
                                   .pin = pin,
                                   .keys = keys,
                                   .key_count = 2,
                                   .threads = SESSIONS,
                                   .warmup_ns = WARMUP_NS,
                                   .duration_ns = g->load_ns,
                                   .env = env};

    snprintf(module, sizeof(module), "%s/tests/libkeyhold-misbehave.so", g->build_dir);
    snprintf(pin_file, sizeof(pin_file), "%s/hsm/" TOKEN "/pin", g->demo_dir);
    snprintf(conf, sizeof(conf), "SOFTHSM2_CONF=%s/hsm/" TOKEN "/softhsm2.conf", g->demo_dir);
    snprintf(orders, sizeof(orders), "KH_SHIM_CONTROL=%s/hsm/orders", g->demo_dir);
    read_line(pin_file, pin, sizeof(pin));
    return kh_bare_run(&config, per_second);
}

static bool mix(gate *g, const char *const *names, size_t count, unsigned in_flight, kh_mix_result *result)
{
    char address[PATH_MAX + 8];
    const kh_mix_config config = {.address = address,
                                  .keys = names,
                                  .key_count = count,
                                  .in_flight = in_flight,
                                  .warmup_ns = WARMUP_NS,
                                  .duration_ns = g->load_ns};

    snprintf(address, sizeof(address), "unix:%s", gate_env(g, "", "AGENT_SOCKET"));
    return kh_mix_run(&config, result) && result->failed == 0;
}

bool gate_token_ratio(gate *g, const gate_row *row, size_t alternation, double *value)
{
    double bare = 0;
    bool bare_first = alternation % 2 == 0;

    (void)row;
    if (!have_keys(g) || (bare_first && !bare_rate(g, &bare)) || !mix(g, keys, 2, IN_FLIGHT, &g->mix) ||
        (!bare_first && !bare_rate(g, &bare)) || bare <= 0) {
        return false;
    }
    *value = kh_mix_rate(&g->mix) / bare;
    fprintf(stderr, "  %.0f signatures per second through the agent, %.0f by %d threads\n", kh_mix_rate(&g->mix), bare, SESSIONS);
    return true;
}

/* What the token's module is told: each signature takes 5 ms, and with the slow key much longer. */
static bool order(gate *g, bool slow)
{
    char path[PATH_MAX + 64], next[PATH_MAX + 80];
    FILE *file;

    snprintf(path, sizeof(path), "%s/hsm/orders", g->demo_dir);
    snprintf(next, sizeof(next), "%s.next", path);
    file = fopen(next, "w");
    if (file == NULL) {
        return false;
    }
    fprintf(file, "C_Sign delay 5\n");
    if (slow) {
        fprintf(file, "C_Sign delay %d label=%s\n", SLOW_MS, slow_key[0]);
    }
    return fclose(file) == 0 && rename(next, path) == 0;
}

/* Else there would be nothing to measure. */
static bool is_slow(gate *g)
{
    char address[PATH_MAX + 8];
    const kh_mix_config config = {.address = address, .keys = slow_key, .key_count = 1, .in_flight = 1, .duration_ns = 1};
    uint64_t begun_ns = kh_now_ns();

    snprintf(address, sizeof(address), "unix:%s", gate_env(g, "", "AGENT_SOCKET"));
    if (!kh_mix_run(&config, &g->mix) || kh_now_ns() - begun_ns < SLOW_MS * 1000000ull) {
        fprintf(stderr, "gate: the slow key is not slow\n");
        return false;
    }
    return true;
}

static pid_t start_slow(gate *g)
{
    pid_t pid = fork();

    if (pid == 0) {
        g->load_ns = 3600000000000u; /* until it is killed */
        _exit(mix(g, slow_key, 1, SLOW_IN_FLIGHT, &g->mix) ? 0 : 1);
    }
    return pid;
}

bool gate_token_slow_key(gate *g, const gate_row *row, size_t alternation, double *value)
{
    const struct timespec pause = {1, 0};
    double alone = 0, beside = 0;
    pid_t pid = -1;
    bool ok;

    (void)row;
    (void)alternation;
    if (!have_keys(g) || !order(g, true) || !is_slow(g) || !mix(g, keys, 1, 1, &g->mix)) {
        return false;
    }
    alone = (double)kh_hist_quantile(&g->mix.hist, 0.99) / 1e6;
    pid = start_slow(g);
    if (pid <= 0) {
        return false;
    }
    nanosleep(&pause, NULL);
    ok = waitpid(pid, NULL, WNOHANG) == 0 && mix(g, keys, 1, 1, &g->mix);
    beside = (double)kh_hist_quantile(&g->mix.hist, 0.99) / 1e6;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    ok = order(g, false) && ok;
    nanosleep(&pause, NULL); /* until what the slow key still has is done */
    *value = beside - alone;
    fprintf(stderr, "  p99 %.2f ms alone, %.2f ms beside the slow key\n", alone, beside);
    return ok;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's measurement of claim F8: one tenant signs, another floods (flood.c) or does not. */
#include "gate.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OP_ROUNDS 8
#define OP_PER_ROUND 250
#define TRIES 100
#define KEY "flood-p256"

static void pause_ms(long ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&pause, NULL);
}

static int ctl(const gate *g, const char *token, const char *const *words)
{
    char program[PATH_MAX + 32];
    const char *argv[16] = {program, "--config", gate_env(g, "", "AGENT_CONF")};
    size_t n = 3;

    snprintf(program, sizeof(program), "%s/agent/ctl/keyholdctl", g->build_dir);
    if (token != NULL) {
        argv[n++] = "--token";
        argv[n++] = token;
    }
    for (; *words != NULL && n < 15; words++) {
        argv[n++] = *words;
    }
    return gate_run(argv, NULL);
}

/* The demo's agent gets a second tenant, once. */
static bool have_tenant(gate *g, const char *token)
{
    const char *create[] = {"token", "create", "flood", "--out", token, NULL};
    const char *key[] = {"key", "create", KEY, "--type", "p256", NULL}, *ping[] = {"ping", NULL};
    const char *pids = gate_env(g, "", "AGENT_PIDS"), *path = gate_env(g, "", "AGENT_CONF");
    FILE *conf = NULL;
    bool there = access(token, F_OK) == 0;
    int tries = 0;

    if (there) {
        return true;
    }
    if (pids == NULL || path == NULL || ctl(g, NULL, create) != 0 || ctl(g, NULL, key) != 0) {
        return false;
    }
    conf = fopen(path, "a");
    if (conf == NULL) {
        return false;
    }
    fprintf(conf, "\nidentity \"flood\" {\n    token = \"%s\"\n    allow { keys = {\"flood-*\"}  operations = "
                  "{\"sign\", \"public-key\"} }\n}\n", token);
    fclose(conf);
    kill((pid_t)strtol(pids, NULL, 10), SIGHUP); /* the supervisor is the first of them */
    while (!there && tries++ < TRIES) {
        pause_ms(50);
        there = ctl(g, token, ping) == 0;
    }
    return there;
}

static pid_t start_flood(const char *socket_path, const char *token)
{
    const char *argv[] = {"keyhold-bench", "flood", "--socket", socket_path, "--token", token, "--key", KEY, NULL};
    pid_t pid = fork();

    if (pid == 0) {
        dup2(2, 1);
        setpriority(PRIO_PROCESS, 0, 19); /* what it makes the agent do is measured, not what a full machine does */
        execv("/proc/self/exe", (char *const *)argv);
        _exit(127);
    }
    return pid;
}

static bool op_p99_ms(gate *g, const kh_op_config *config, double *ms)
{
    if (!kh_op_run(config, &g->op) || g->op.failed > 0) {
        return false;
    }
    *ms = (double)kh_hist_quantile(&g->op.remote, 0.99) / 1e6;
    return true;
}

bool gate_flood_p99(gate *g, const gate_row *row, size_t alternation, double *value)
{
    char address[PATH_MAX], key_file[PATH_MAX], token[PATH_MAX + 32];
    const char *socket_path = gate_env(g, "", "AGENT_SOCKET"), *keys = gate_env(g, "", "LOCAL_KEY_DIR");
    kh_op_config config = {.address = address,
                           .token = gate_env(g, "", "AGENT_TOKEN"),
                           .key_file = key_file,
                           .rounds = OP_ROUNDS,
                           .per_round = OP_PER_ROUND};
    double alone = 0, beside = 0;
    pid_t pid;
    int status = -1;
    bool ok;

    (void)alternation;
    snprintf(token, sizeof(token), "%s/agent/flood.token", g->demo_dir); /* where a running agent may read */
    if (socket_path == NULL || keys == NULL || !have_tenant(g, token)) {
        return false;
    }
    snprintf(address, sizeof(address), "unix:%s", socket_path);
    snprintf(key_file, sizeof(key_file), "%s/%s.key", keys, row->key);
    ok = op_p99_ms(g, &config, &alone);
    pid = ok ? start_flood(socket_path, token) : -1;
    if (pid <= 0) {
        return false;
    }
    pause_ms(500);
    ok = op_p99_ms(g, &config, &beside);
    kill(pid, SIGTERM);
    ok = waitpid(pid, &status, 0) == pid && status == 0 && ok;
    *value = beside - alone;
    fprintf(stderr, "  p99 %.2f ms alone, %.2f ms beside the flood\n", alone, beside);
    pause_ms(500); /* until the agent has forgotten it */
    return ok;
}

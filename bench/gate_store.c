/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's measurements on an agent of its own with 100,000 keys (M15): start, first use, memory. */
#include "gate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <keyhold/client.h>
#include <openssl/rand.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEYS 100000u
#define FIRST_USES 20u
#define START_LIMIT_NS 60000000000u
#define STOP_LIMIT_NS 20000000000u

typedef struct store {
    char dir[PATH_MAX], config[PATH_MAX + 16], address[PATH_MAX + 32], log[PATH_MAX + 16];
    char agent[PATH_MAX + 32], ctl[PATH_MAX + 32];
    pid_t pid; /* the supervisor; 0: not running */
    kh_client *client;
    unsigned next_key; /* not used since the agent's start */
    bool reopened;     /* since the keys were made */
} store;

static void pause_ns(long ns)
{
    struct timespec time = {0, ns};

    nanosleep(&time, NULL);
}

static bool stop_agent(store *s)
{
    uint64_t begun_ns = kh_now_ns();
    pid_t ended = 0;

    kh_client_close(s->client);
    s->client = NULL;
    if (s->pid == 0) {
        return true;
    }
    kill(s->pid, SIGTERM);
    while ((ended = waitpid(s->pid, NULL, WNOHANG)) == 0 && kh_now_ns() - begun_ns < STOP_LIMIT_NS) {
        pause_ns(1000000);
    }
    if (ended == 0) {
        fprintf(stderr, "gate: keyholdd does not stop\n");
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
    }
    s->pid = 0;
    return ended > 0;
}

static bool answers(store *s)
{
    kh_request ping = {.op = KH_OP_PING, .deadline_ms = 5000};
    kh_reply reply;

    if (s->client == NULL &&
        kh_client_open(s->address, NULL, "keyhold-bench", 5000, &s->client, NULL, 0) != KH_OK) {
        s->client = NULL;
        return false;
    }
    return kh_client_call(s->client, &ping, &reply) == KH_OK && reply.status == KH_OK;
}

/* Signs what a TLS 1.3 server signs; how long it took, and how it went. */
static kh_result first_use(store *s, unsigned key, double *ms)
{
    char name[32];
    uint8_t message[98 + 32];
    uint64_t begun_ns;
    kh_reply reply;
    kh_result result;
    kh_request sign = {.op = KH_OP_SIGN, .deadline_ms = 5000, .scheme = KH_ECDSA_SHA256,
                       .data = {message, sizeof(message)}};

    memset(message, ' ', 64);
    memcpy(message + 64, "TLS 1.3, server CertificateVerify", 34); /* with its zero byte */
    if (RAND_bytes(message + 98, 32) != 1) {
        return KH_E_CRYPTO;
    }
    snprintf(name, sizeof(name), "bench-%06u", key);
    sign.key = (kh_bytes){(const uint8_t *)name, strlen(name)};
    begun_ns = kh_now_ns();
    result = kh_client_call(s->client, &sign, &reply);
    *ms = (double)(kh_now_ns() - begun_ns) / 1e6;
    return result != KH_OK ? result : reply.status;
}

/* From fork to the first answer, or to the first signature. */
static bool start_agent(store *s, bool until_signed, double *ms)
{
    uint64_t begun_ns = kh_now_ns();
    double ignored = 0;
    int log;

    s->pid = fork();
    if (s->pid == 0) {
        log = open(s->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(log, 1);
        dup2(log, 2);
        execl(s->agent, "keyholdd", "--config", s->config, "--foreground", (char *)NULL);
        _exit(127);
    }
    while (!answers(s) || (until_signed && first_use(s, KEYS - 1, &ignored) != KH_OK)) {
        kh_client_close(s->client);
        s->client = NULL;
        if (waitpid(s->pid, NULL, WNOHANG) != 0 || kh_now_ns() - begun_ns > START_LIMIT_NS) {
            fprintf(stderr, "gate: keyholdd does not start, see %s\n", s->log);
            kill(s->pid, SIGKILL);
            s->pid = 0;
            return false;
        }
        pause_ns(500000);
    }
    *ms = (double)(kh_now_ns() - begun_ns) / 1e6;
    s->next_key = 0;
    return true;
}

static bool create_keys(store *s)
{
    char name[32];
    kh_request create = {.op = KH_OP_CREATE, .deadline_ms = 20000, .key_type = KH_KEY_P256, .bits = 256,
                         .usage = KH_USAGE_TLS_SERVER};
    kh_reply reply;
    kh_result result;
    unsigned i;

    for (i = 0; i < KEYS; i++) {
        snprintf(name, sizeof(name), "bench-%06u", i);
        create.name = (kh_bytes){(const uint8_t *)name, strlen(name)};
        result = kh_client_call(s->client, &create, &reply);
        if (result != KH_OK || reply.status != KH_OK) {
            fprintf(stderr, "gate: cannot create %s: %s\n", name,
                    kh_result_text(result != KH_OK ? result : reply.status));
            return false;
        }
        if (i % 10000 == 9999) {
            fprintf(stderr, "gate: %u keys made\n", i + 1);
        }
    }
    return true;
}


/* The store with its keys and a running agent, made when the first row asks. */
static store *store_ready(gate *g)
{
    store *s = g->store;
    double ms;
    const char *init[] = {NULL, "init", "--dir", NULL, NULL};

    if (s != NULL) {
        return s->pid != 0 ? s : NULL;
    }
    g->store = s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return NULL;
    }
    snprintf(s->agent, sizeof(s->agent), "%s/agent/keyholdd", g->build_dir);
    snprintf(s->ctl, sizeof(s->ctl), "%s/agent/ctl/keyholdctl", g->build_dir);
    snprintf(s->dir, sizeof(s->dir), "%.4000s/many", g->dir);
    snprintf(s->config, sizeof(s->config), "%s/keyhold.conf", s->dir);
    snprintf(s->log, sizeof(s->log), "%s.log", s->dir);
    snprintf(s->address, sizeof(s->address), "unix:%s/agent.sock", s->dir);
    init[0] = s->ctl;
    init[3] = s->dir;
    if (gate_run(init, s->log) != 0 || !start_agent(s, false, &ms) || !create_keys(s)) {
        fprintf(stderr, "gate: no store with %u keys; the log:\n", KEYS);
        gate_show(s->log);
        stop_agent(s);
        return NULL;
    }
    return s;
}

void gate_store_end(gate *g)
{
    store *s = g->store;

    if (s != NULL) {
        stop_agent(s);
        free(s);
        g->store = NULL;
    }
}

bool gate_store_start(gate *g, const gate_row *row, size_t alternation, double *value)
{
    store *s = store_ready(g);

    (void)row;
    (void)alternation;
    if (s == NULL || !stop_agent(s) || !start_agent(s, true, value)) {
        return false;
    }
    s->reopened = true;
    return true;
}

bool gate_store_first_use(gate *g, const gate_row *row, size_t alternation, double *value)
{
    store *s = store_ready(g);
    double ms = 0;
    unsigned i;

    (void)row;
    (void)alternation;
    *value = 0;
    if (s == NULL || (!s->reopened && (!stop_agent(s) || !start_agent(s, false, &ms)))) {
        return false;
    }
    s->reopened = true;
    for (i = 0; i < FIRST_USES; i++) {
        /* A stride without a common factor: keys from all over the store, none of them twice. */
        kh_result result = first_use(s, s->next_key, &ms);

        if (result != KH_OK) {
            fprintf(stderr, "gate: bench-%06u: %s\n", s->next_key, kh_result_text(result));
            return false;
        }
        s->next_key = (s->next_key + 61813u) % KEYS;
        *value = ms > *value ? ms : *value;
    }
    return true;
}

/* The parent of a process, from /proc/PID/stat: what follows the name, which may have parentheses in it. */
static pid_t parent_of(const char *pid)
{
    char path[300];
    char text[512];
    char *end;
    int parent = 0;
    size_t len = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%s/stat", pid);
    file = fopen(path, "r");
    if (file != NULL) {
        len = fread(text, 1, sizeof(text) - 1, file);
        fclose(file);
    }
    text[len] = '\0';
    end = strrchr(text, ')');
    return end != NULL && sscanf(end + 1, " %*c %d", &parent) == 1 ? (pid_t)parent : 0;
}

static double resident_mb(const char *pid)
{
    char path[300];
    unsigned long pages = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%s/statm", pid);
    file = fopen(path, "r");
    if (file == NULL || fscanf(file, "%*u %lu", &pages) != 1) {
        pages = 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

bool gate_store_memory(gate *g, const gate_row *row, size_t alternation, double *value)
{
    store *s = store_ready(g);
    DIR *dir = s != NULL ? opendir("/proc") : NULL;
    struct dirent *entry;

    (void)row;
    (void)alternation;
    *value = 0;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
            (atoi(entry->d_name) == s->pid || parent_of(entry->d_name) == s->pid)) {
            *value += resident_mb(entry->d_name);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return *value > 0;
}

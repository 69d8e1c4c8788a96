/* SPDX-License-Identifier: Apache-2.0 */
/* An agent of the gate's own: made, started, asked, measured, stopped. */
#include "gate_agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_LIMIT_NS 60000000000u
#define STOP_LIMIT_NS 20000000000u

static void pause_ns(long ns)
{
    struct timespec time = {0, ns};

    nanosleep(&time, NULL);
}

bool gate_agent_init(gate *g, gate_agent *s, const char *name)
{
    const char *init[] = {s->ctl, "init", "--dir", s->dir, NULL};

    snprintf(s->agent, sizeof(s->agent), "%s/agent/keyholdd", g->build_dir);
    snprintf(s->ctl, sizeof(s->ctl), "%s/agent/ctl/keyholdctl", g->build_dir);
    snprintf(s->dir, sizeof(s->dir), "%.4000s/%s", g->dir, name);
    snprintf(s->config, sizeof(s->config), "%s/keyhold.conf", s->dir);
    snprintf(s->log, sizeof(s->log), "%s.log", s->dir);
    snprintf(s->address, sizeof(s->address), "unix:%s/agent.sock", s->dir);
    return gate_run(init, s->log) == 0;
}

bool gate_agent_stop(gate_agent *s)
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

static bool answers(gate_agent *s)
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

kh_result gate_agent_sign(gate_agent *s, const char *key, double *ms)
{
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
    sign.key = (kh_bytes){(const uint8_t *)key, strlen(key)};
    begun_ns = kh_now_ns();
    result = kh_client_call(s->client, &sign, &reply);
    *ms = (double)(kh_now_ns() - begun_ns) / 1e6;
    return result != KH_OK ? result : reply.status;
}

bool gate_agent_start(gate_agent *s, const char *until_signed, double *ms)
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
    while (!answers(s) || (until_signed != NULL && gate_agent_sign(s, until_signed, &ignored) != KH_OK)) {
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
    return true;
}

bool gate_agent_call(gate_agent *s, const kh_request *request, kh_reply *reply, const char *what)
{
    kh_result result = kh_client_call(s->client, request, reply);

    if (result == KH_OK) {
        result = reply->status;
    }
    if (result != KH_OK) {
        fprintf(stderr, "gate: %s: %s\n", what, kh_result_text(result));
    }
    return result == KH_OK;
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

static double resident(const char *pid)
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
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static bool has_role(const char *pid, const char *role)
{
    char path[300], words[64] = "";
    FILE *file = NULL;

    snprintf(path, sizeof(path), "/proc/%s/cmdline", pid);
    file = role != NULL ? fopen(path, "r") : NULL;
    if (file != NULL) {
        words[fread(words, 1, sizeof(words) - 1, file)] = '\0';
        fclose(file);
    }
    return role == NULL || strncmp(words, role, strlen(role)) == 0;
}

double gate_agent_memory(const gate_agent *s, const char *role)
{
    DIR *dir = opendir("/proc");
    struct dirent *entry;
    double sum = 0;

    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
            (atoi(entry->d_name) == s->pid || parent_of(entry->d_name) == s->pid) && has_role(entry->d_name, role)) {
            sum += resident(entry->d_name);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return sum;
}

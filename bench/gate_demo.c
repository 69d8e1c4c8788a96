/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's own demo: started with the delay that a row needs, and what its env file says. */
#include "gate.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int gate_run(const char *const *argv, const char *output)
{
    int status = -1;
    int fd;
    pid_t pid = fork();

    if (pid == 0) {
        fd = open("/dev/null", O_RDONLY);
        dup2(fd, 0);
        fd = open(output != NULL ? output : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(fd, 1);
        dup2(fd, 2);
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) {
        return -1;
    }
    return WEXITSTATUS(status);
}

/* NAME=value and NAME="value value", one a line, as the demo writes them. */
static json_t *read_env(const char *path)
{
    char line[4096];
    char *equals;
    size_t len;
    json_t *env = json_object();
    FILE *file = fopen(path, "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        equals = strchr(line, '=');
        if (line[0] == '#' || equals == NULL) {
            continue;
        }
        *equals++ = '\0';
        len = strlen(equals);
        if (len >= 2 && equals[0] == '"' && equals[len - 1] == '"') {
            equals[len - 1] = '\0';
            equals++;
        }
        json_object_set_new(env, line, json_string(equals));
    }
    if (file != NULL) {
        fclose(file);
    }
    return env;
}

const char *gate_env(const gate *g, const char *prefix, const char *name)
{
    char full[128];

    snprintf(full, sizeof(full), "%s%s", prefix, name);
    return json_string_value(json_object_get(g->env, full));
}

void gate_show(const char *path)
{
    char line[1024];
    FILE *file = fopen(path, "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        fprintf(stderr, "  | %s", line);
    }
    if (file != NULL) {
        fclose(file);
    }
}

void gate_demo_end(gate *g)
{
    const char *argv[] = {g->demo, "--stop", "--dir", g->demo_dir, NULL};

    if (g->demo_delay_ms >= 0) {
        gate_run(argv, NULL);
        g->demo_delay_ms = -1;
    }
    json_decref(g->env);
    g->env = NULL;
}

/* Adds the words of a text to an argument list that has room for them. */
static void add_words(const char **argv, size_t at, size_t most, char *words)
{
    char *save = NULL;
    char *word = words != NULL ? strtok_r(words, " ", &save) : NULL;

    for (; word != NULL && at < most; word = strtok_r(NULL, " ", &save)) {
        argv[at++] = word;
    }
    argv[at] = NULL;
}

static bool same_text(const char *one, const char *other)
{
    return one == other || (one != NULL && other != NULL && strcmp(one, other) == 0);
}

#define ARGUMENTS_MAX 24

bool gate_demo_ready(gate *g, int delay_ms, const char *options)
{
    char words[256];
    char delay[16];
    char log[PATH_MAX + 16];
    char env[PATH_MAX + 16];
    const char *argv[ARGUMENTS_MAX + 1] = {g->demo,       "--keep",     "--dir",        g->demo_dir,
                                           "--build-dir", g->build_dir, "--delay-ms", delay};

    if (g->demo_delay_ms == delay_ms && same_text(g->demo_options, options)) {
        return true;
    }
    gate_demo_end(g);
    snprintf(words, sizeof(words), "%s", options != NULL ? options : "");
    add_words(argv, 8, ARGUMENTS_MAX, words);
    snprintf(delay, sizeof(delay), "%d", delay_ms);
    snprintf(log, sizeof(log), "%s/demo.log", g->dir);
    snprintf(env, sizeof(env), "%s/env", g->demo_dir);
    unlink(log);
    fprintf(stderr, "gate: starting the demo with --delay-ms %d %s\n", delay_ms, options != NULL ? options : "");
    g->demo_options = options;
    g->demo_delay_ms = delay_ms; /* from here on there may be something to stop */
    if (gate_run(argv, log) != 0) {
        fprintf(stderr, "gate: the demo failed:\n");
        gate_show(log);
        gate_demo_end(g);
        return false;
    }
    g->env = read_env(env);
    return true;
}

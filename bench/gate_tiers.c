/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's measurements on an agent of its own with 10,000 keys over three tiers (T7): start, and the front's memory. */
#include "gate_agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEYS 10000u
#define NAME_LEN 32
#define PARTITIONS 3
#define SOFTHSM "/usr/lib/softhsm/libsofthsm2.so"
#define PIN "583920"

/* SoftHSM looks through all files of a token for each key that it makes: most keys are in the software tier. */
#define IN_TOKEN 300
#define IN_POOL 300

static const char *const tokens[] = {"alone", "one", "two", "three"};

typedef struct tiers {
    gate_agent agent;
} tiers;

static void name_of(unsigned key, char name[NAME_LEN])
{
    snprintf(name, NAME_LEN, "tiers-%05u", key);
}

/* The keeper's user owns its tokens: what keyhold.conf has as keeper_user. */
static bool give_to_keeper(const tiers *t, const char *path)
{
    char line[512], user[128] = "";
    const char *chown[] = {"/bin/chown", "-R", user, path, NULL};
    FILE *file = fopen(t->agent.config, "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        (void)sscanf(line, " keeper_user = \"%127[^\"]\"", user);
    }
    if (file != NULL) {
        fclose(file);
    }
    return user[0] == '\0' || geteuid() != 0 || gate_run(chown, NULL) == 0;
}

static bool add_token(tiers *t, const char *name)
{
    char home[PATH_MAX + 64], path[PATH_MAX + 128], conf[PATH_MAX + 128], env[PATH_MAX + 160];
    const char *init[] = {"/usr/bin/env", env, "softhsm2-util", "--init-token", "--free", "--label", name, "--pin", PIN, "--so-pin",
                          PIN, NULL};
    FILE *file;

    snprintf(home, sizeof(home), "%s/hsm-%s", t->agent.dir, name);
    snprintf(path, sizeof(path), "%s/tokens", home);
    snprintf(conf, sizeof(conf), "%s/softhsm2.conf", home);
    snprintf(env, sizeof(env), "SOFTHSM2_CONF=%s", conf);
    if (mkdir(home, 0755) != 0 || mkdir(path, 0700) != 0 || (file = fopen(conf, "w")) == NULL) {
        return false;
    }
    fprintf(file, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", path);
    fclose(file);
    if (gate_run(init, t->agent.log) != 0 || !give_to_keeper(t, path)) {
        return false;
    }
    snprintf(path, sizeof(path), "%s/pin", home);
    file = fopen(path, "w");
    if (file == NULL || chmod(path, 0600) != 0) {
        return false;
    }
    fprintf(file, PIN "\n");
    fclose(file);
    file = fopen(t->agent.config, "a");
    if (file == NULL) {
        return false;
    }
    fprintf(file, "\ntoken \"%s\" {\n    module = \"" SOFTHSM "\"\n    label = \"%s\"\n    pin_file = \"%s\"\n    env = {\"%s\"}\n}\n",
            name, name, path, env);
    return fclose(file) == 0;
}

static bool add_tokens(tiers *t)
{
    FILE *file;
    size_t i;

    for (i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        if (!add_token(t, tokens[i])) {
            return false;
        }
    }
    file = fopen(t->agent.config, "a");
    if (file == NULL) {
        return false;
    }
    fprintf(file, "\npool \"pool\" {\n    partitions = {\"one\", \"two\", \"three\"}\n}\n");
    return fclose(file) == 0;
}

static bool create_in(tiers *t, const char *name, const char *tier, const char *place)
{
    const char *create[] = {t->agent.ctl, "--config", t->agent.config, "key", "create", name, "--type", "p256", "--tier", tier,
                            "--place", place, NULL};

    return gate_run(create, t->agent.log) == 0;
}

static bool create_keys(tiers *t)
{
    char name[NAME_LEN];
    kh_request create = {.op = KH_OP_CREATE, .deadline_ms = 20000, .key_type = KH_KEY_P256, .bits = 256,
                         .usage = KH_USAGE_TLS_SERVER};
    kh_reply reply;
    unsigned key;
    bool ok = true;

    for (key = 0; ok && key < KEYS; key++) {
        name_of(key, name);
        create.name = (kh_bytes){(const uint8_t *)name, strlen(name)};
        ok = key < IN_TOKEN             ? create_in(t, name, "hsm", "alone")
             : key < IN_TOKEN + IN_POOL ? create_in(t, name, "hsm-pool", "pool")
                                        : gate_agent_call(&t->agent, &create, &reply, name);
    }
    return ok;
}

static bool start(tiers *t, double *ms)
{
    char first[NAME_LEN];

    name_of(0, first);
    return gate_agent_start(&t->agent, first, ms);
}

static tiers *ready(gate *g)
{
    tiers *t = g->tiers;
    double ms;
    const char *pool[] = {NULL, "--config", NULL, "pool", "init", "pool", NULL};

    if (t != NULL) {
        return t->agent.pid != 0 ? t : NULL;
    }
    g->tiers = t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return NULL;
    }
    pool[0] = t->agent.ctl;
    pool[2] = t->agent.config;
    if (!gate_agent_init(g, &t->agent, "tiers") || !add_tokens(t) || !gate_agent_start(&t->agent, NULL, &ms) ||
        gate_run(pool, t->agent.log) != 0 || !create_keys(t)) {
        fprintf(stderr, "gate: no agent with %u keys over three tiers; the log:\n", KEYS);
        gate_show(t->agent.log);
        gate_agent_stop(&t->agent);
        return NULL;
    }
    return t;
}

void gate_tiers_end(gate *g)
{
    tiers *t = g->tiers;

    if (t != NULL) {
        gate_agent_stop(&t->agent);
        free(t);
        g->tiers = NULL;
    }
}

bool gate_tiers_start(gate *g, const gate_row *row, size_t alternation, double *value)
{
    tiers *t = ready(g);

    (void)row;
    (void)alternation;
    return t != NULL && gate_agent_stop(&t->agent) && start(t, value);
}

/* A key that is known was asked for; then it lies there. */
bool gate_tiers_memory(gate *g, const gate_row *row, size_t alternation, double *value)
{
    tiers *t = ready(g);
    char name[NAME_LEN];
    kh_request ask = {.op = KH_OP_PUBLIC_KEY, .deadline_ms = 5000};
    kh_reply reply;
    double before = 0, ms;
    unsigned key;

    (void)row;
    (void)alternation;
    if (t == NULL || !gate_agent_stop(&t->agent) || !start(t, &ms)) {
        return false;
    }
    before = gate_agent_memory(&t->agent, "keyholdd: front");
    for (key = 0; key < KEYS; key++) {
        name_of(key, name);
        ask.key = (kh_bytes){(const uint8_t *)name, strlen(name)};
        if (!gate_agent_call(&t->agent, &ask, &reply, name)) {
            return false;
        }
    }
    *value = (gate_agent_memory(&t->agent, "keyholdd: front") - before) / KEYS;
    return before > 0;
}

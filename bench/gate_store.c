/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's measurements on an agent of its own with 100,000 keys (M15): start, first use, memory. */
#include "gate_agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEYS 100000u
#define FIRST_USES 20u
#define NAME_LEN 32

typedef struct store {
    gate_agent agent;
    unsigned next_key; /* not used since the agent's start */
    bool reopened;     /* since the keys were made */
} store;

static void name_of(unsigned key, char name[NAME_LEN])
{
    snprintf(name, NAME_LEN, "bench-%06u", key);
}

static bool create_keys(store *s)
{
    char name[NAME_LEN];
    kh_request create = {.op = KH_OP_CREATE, .deadline_ms = 20000, .key_type = KH_KEY_P256, .bits = 256,
                         .usage = KH_USAGE_TLS_SERVER};
    kh_reply reply;
    unsigned i;

    for (i = 0; i < KEYS; i++) {
        name_of(i, name);
        create.name = (kh_bytes){(const uint8_t *)name, strlen(name)};
        if (!gate_agent_call(&s->agent, &create, &reply, name)) {
            return false;
        }
        if (i % 10000 == 9999) {
            fprintf(stderr, "gate: %u keys made\n", i + 1);
        }
    }
    return true;
}

static bool start_agent(store *s, bool until_signed, double *ms)
{
    char last[NAME_LEN];

    name_of(KEYS - 1, last);
    s->next_key = 0;
    return gate_agent_start(&s->agent, until_signed ? last : NULL, ms);
}

/* The store with its keys and a running agent, made when the first row asks. */
static store *store_ready(gate *g)
{
    store *s = g->store;
    double ms;

    if (s != NULL) {
        return s->agent.pid != 0 ? s : NULL;
    }
    g->store = s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return NULL;
    }
    if (!gate_agent_init(g, &s->agent, "many") || !start_agent(s, false, &ms) || !create_keys(s)) {
        fprintf(stderr, "gate: no store with %u keys; the log:\n", KEYS);
        gate_show(s->agent.log);
        gate_agent_stop(&s->agent);
        return NULL;
    }
    return s;
}

void gate_store_end(gate *g)
{
    store *s = g->store;

    if (s != NULL) {
        gate_agent_stop(&s->agent);
        free(s);
        g->store = NULL;
    }
}

bool gate_store_start(gate *g, const gate_row *row, size_t alternation, double *value)
{
    store *s = store_ready(g);

    (void)row;
    (void)alternation;
    if (s == NULL || !gate_agent_stop(&s->agent) || !start_agent(s, true, value)) {
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
    if (s == NULL || (!s->reopened && (!gate_agent_stop(&s->agent) || !start_agent(s, false, &ms)))) {
        return false;
    }
    s->reopened = true;
    for (i = 0; i < FIRST_USES; i++) {
        char name[NAME_LEN];
        kh_result result;

        name_of(s->next_key, name);
        result = gate_agent_sign(&s->agent, name, &ms);

        if (result != KH_OK) {
            fprintf(stderr, "gate: %s: %s\n", name, kh_result_text(result));
            return false;
        }
        s->next_key = (s->next_key + 61813u) % KEYS; /* a stride without a common factor: none of them twice */
        *value = ms > *value ? ms : *value;
    }
    return true;
}

bool gate_store_memory(gate *g, const gate_row *row, size_t alternation, double *value)
{
    store *s = store_ready(g);

    (void)row;
    (void)alternation;
    *value = s != NULL ? gate_agent_memory(&s->agent, NULL) / 1e6 : 0;
    return *value > 0;
}

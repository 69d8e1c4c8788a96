/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load's clients, shared out to threads: each is an engine of its own with its part of the clients, the rate and the
 * count. A server is loaded with as many connections as there are clients only if the one who loads it is not what all
 * of them wait for.
 */
#include "load.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct part {
    pthread_t thread;
    bool started, ok;
    kh_load_config config;
    kh_load_result result;
} part;

static void *run_part(void *arg)
{
    part *p = arg;

    p->ok = kh_load_run_engine(&p->config, &p->result);
    return NULL;
}

/* The first parts have one more if it does not come out even. */
static uint64_t share(uint64_t all, unsigned parts, unsigned which)
{
    return all / parts + (which < all % parts ? 1 : 0);
}

static kh_load_config config_of(const kh_load_config *whole, unsigned parts, unsigned which)
{
    kh_load_config config = *whole;

    config.clients = (unsigned)share(whole->clients, parts, which);
    config.max_handshakes = share(whole->max_handshakes, parts, which);
    config.interval_ns = whole->interval_ns * parts;
    if (which > 0) {
        config.pids = NULL; /* the first one's window is everybody's */
    }
    config.cut = NULL;
    return config;
}

static void add(kh_load_result *sum, const kh_load_result *one)
{
    size_t i;

    sum->started += one->started;
    sum->done += one->done;
    sum->failed += one->failed;
    sum->measured += one->measured;
    sum->pids_gone += one->pids_gone;
    kh_hist_merge(&sum->latency, &one->latency);
    for (i = 0; i < KH_LOAD_ERROR_COUNT; i++) {
        sum->errors[i] += one->errors[i];
    }
    for (i = 0; i < KH_LOAD_DETAILS && one->details[i].count > 0; i++) {
        kh_load_note(sum, one->details[i].text, one->details[i].count);
    }
}

/* *result has the first part's window, CPU times and description already. */
static bool run_parts(part *parts, unsigned count, kh_load_result *result)
{
    bool ok = true;
    unsigned i;

    for (i = 1; i < count; i++) {
        parts[i].started = pthread_create(&parts[i].thread, NULL, run_part, &parts[i]) == 0;
        if (!parts[i].started) {
            fprintf(stderr, "keyhold-bench: no more threads than %u\n", i);
            ok = false;
        }
    }
    run_part(&parts[0]);
    *result = parts[0].result;
    for (i = 0; i < count; i++) {
        if (i > 0 && parts[i].started) {
            pthread_join(parts[i].thread, NULL);
            add(result, &parts[i].result);
        }
        ok = ok && parts[i].ok;
    }
    return ok;
}

/* A thread without a client, or with a count of 0 (which has no end), would make no sense. */
static unsigned threads_of(const kh_load_config *config)
{
    unsigned count = config->threads < config->clients ? config->threads : config->clients;

    return config->max_handshakes != 0 && config->max_handshakes < count ? (unsigned)config->max_handshakes : count;
}

bool kh_load_run(const kh_load_config *config, kh_load_result *result)
{
    unsigned count = threads_of(config);
    part *parts;
    bool ok;
    unsigned i;

    if (count <= 1) {
        return kh_load_run_engine(config, result);
    }
    parts = calloc(count, sizeof(*parts));
    if (parts == NULL) {
        return false;
    }
    for (i = 0; i < count; i++) {
        parts[i].config = config_of(config, count, i);
    }
    ok = run_parts(parts, count, result);
    free(parts);
    return ok;
}

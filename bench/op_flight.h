/* SPDX-License-Identifier: Apache-2.0 */
/* Operations in flight over TCP, beside the Unix socket: `keyhold-bench op --agent`, and the gate. */
#ifndef KH_OP_FLIGHT_H
#define KH_OP_FLIGHT_H

#include "bench.h"
#include <keyhold/client.h>

typedef struct kh_flight_config {
    const char *unix_address, *tcp_address; /* of the same agent */
    const char *token;                      /* for the Unix socket; NULL: known by uid */
    kh_client_tls tls;                      /* for TCP */
    const char *key_file;                   /* a private key that the agent has; PEM */
    unsigned rounds, per_round;             /* alternations, and operations in each half of one */
    unsigned in_flight;
} kh_flight_config;

typedef struct kh_flight_result {
    kh_hist unix_hist, tcp_hist; /* from submit to reply */
    uint64_t unix_ns, tcp_ns;    /* that the halves took */
    uint64_t failed;
    unsigned in_flight;
} kh_flight_result;

/* False: could not run (a message is on standard error). */
bool kh_flight_run(const kh_flight_config *config, kh_flight_result *result);
/* Operations per second over TCP, over those over the Unix socket. */
double kh_flight_ratio(const kh_flight_result *result);
void kh_flight_print(const kh_flight_result *result, bool as_json);


/* P-256 signatures with several keys in turn, by name, over the Unix socket, as the operator. */
typedef struct kh_mix_config {
    const char *address;
    const char *const *keys;
    size_t key_count;
    unsigned in_flight;
    uint64_t warmup_ns, duration_ns;
} kh_mix_config;

typedef struct kh_mix_result {
    kh_hist hist; /* from submit to reply, after the warm-up */
    uint64_t ns;  /* that those took together */
    uint64_t failed;
} kh_mix_result;

/* False: could not run (a message is on standard error). */
bool kh_mix_run(const kh_mix_config *config, kh_mix_result *result);
double kh_mix_rate(const kh_mix_result *result); /* operations per second */

#endif

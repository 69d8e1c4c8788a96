/* SPDX-License-Identifier: Apache-2.0 */
/* Private to `keyhold-bench gate`: its rows, its demo, its measurements. */
#ifndef KH_GATE_H
#define KH_GATE_H

#include "op_flight.h"

#include <limits.h>

#define GATE_ALTERNATIONS_MAX 51

typedef struct gate {
    char build_dir[PATH_MAX]; /* where keyholdd, keyholdctl and the module were built */
    char demo[PATH_MAX];      /* the demo script */
    char dir[PATH_MAX];       /* our own directory, removed at the end */
    char demo_dir[PATH_MAX + 8];
    int demo_delay_ms;        /* of the demo that runs; -1: none */
    const char *demo_options; /* its others; NULL: none */
    json_t *env;              /* what DIR/env of the demo says: name to text */
    uint64_t load_ns;         /* how long one load run measures */
    void *store;              /* gate_store.c's, NULL until its rows run */
    void *tiers;              /* gate_tiers.c's, the same */
    json_t *kernels;          /* gate_kernels.c's: one report for each alternation */
    kh_load_result load;      /* scratch: it is large */
    kh_op_result op;
    kh_flight_result flight;
    kh_mix_result mix;
} gate;

typedef struct gate_row gate_row;

/* One alternation, counted from 0: its figure in *value. False: could not be measured (a message is on standard error). */
typedef bool (*gate_measure)(gate *g, const gate_row *row, size_t alternation, double *value);

typedef enum gate_bound { GATE_REPORT, GATE_AT_MOST, GATE_AT_LEAST } gate_bound;

struct gate_row {
    const char *id;   /* of the claim; several rows may share it */
    const char *what;
    const char *unit;
    gate_bound kind;
    double bound;
    gate_measure measure;
    const char *key;  /* of the demo; NULL: the row needs no demo */
    int delay_ms;     /* of the demo's agent */
    const char *with; /* of `keyhold-bench kernels`: which; of the demo: more options, with blanks between them. NULL: none */
};

/* Handshakes per second through the agent, over those with local keys (1 worker, 200 clients). */
bool gate_rate_ratio(gate *g, const gate_row *row, size_t alternation, double *value);
/* CPU time of nginx and agent per full TLS 1.3 handshake, over that of nginx with local keys. */
bool gate_cpu_ratio(gate *g, const gate_row *row, size_t alternation, double *value);
/* p50 and p99 of one operation through the socket, less that of the bare operation, in µs. */
bool gate_op_p50(gate *g, const gate_row *row, size_t alternation, double *value);
bool gate_op_p99(gate *g, const gate_row *row, size_t alternation, double *value);
/* Operations per second over TCP with mutual TLS at 64 in flight, over those over the Unix socket. */
bool gate_tcp_ratio(gate *g, const gate_row *row, size_t alternation, double *value);
/* A store with 100,000 keys: ms from start to the first signature; worst of 20 first uses in ms; resident memory in MB. */
bool gate_store_start(gate *g, const gate_row *row, size_t alternation, double *value);
bool gate_store_first_use(gate *g, const gate_row *row, size_t alternation, double *value);
bool gate_store_memory(gate *g, const gate_row *row, size_t alternation, double *value);
void gate_store_end(gate *g);
/* By how much another tenant's flood moves the p99 of operations, in ms. */
bool gate_flood_p99(gate *g, const gate_row *row, size_t alternation, double *value);
/* A full batch of a kernel, over OpenSSL; half a batch over a full one, in operations per second. */
bool gate_kernel_ratio(gate *g, const gate_row *row, size_t alternation, double *value);
bool gate_kernel_half(gate *g, const gate_row *row, size_t alternation, double *value);

/* Signatures per second with keys in a token, over those of as many bare threads as it has sessions. */
bool gate_token_ratio(gate *g, const gate_row *row, size_t alternation, double *value);
/* By how much a slow key in the same token moves the p99 of a fast one, in ms. */
bool gate_token_slow_key(gate *g, const gate_row *row, size_t alternation, double *value);
/* 10,000 keys over three tiers: ms from start to the first signature; bytes of the front's memory for each key that it has seen. */
bool gate_tiers_start(gate *g, const gate_row *row, size_t alternation, double *value);
bool gate_tiers_memory(gate *g, const gate_row *row, size_t alternation, double *value);
void gate_tiers_end(gate *g);

/* Handshakes per second from two seconds after a partition of a pool loses its token, over those before. */
bool gate_pool_ratio(gate *g, const gate_row *row, size_t alternation, double *value);

/* Has the demo running with that delay and these further options (compared as they are written). */
bool gate_demo_ready(gate *g, int delay_ms, const char *options);
void gate_demo_end(gate *g);
/* What DIR/env says under prefix + name; NULL: nothing. */
const char *gate_env(const gate *g, const char *prefix, const char *name);
/* Runs a program (argv[0] is its path) and waits; its output is added to the file, or goes nowhere. The exit status, or -1. */
int gate_run(const char *const *argv, const char *output);
/* A log, indented, to standard error. */
void gate_show(const char *path);

#endif

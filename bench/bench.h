/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of keyhold-bench share: the histogram, CPU clocks of other processes, the load engine, the subcommands.
 * One thread, but for the load; nothing here is part of the product.
 */
#ifndef KH_BENCH_H
#define KH_BENCH_H

#include <jansson.h>
#include <openssl/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Subcommands: argv[0] is the subcommand's name; the result is the exit status. */
int kh_bench_load(int argc, char **argv);
int kh_bench_op(int argc, char **argv);
int kh_bench_gate(int argc, char **argv);
int kh_bench_flood(int argc, char **argv);
int kh_bench_scan(int argc, char **argv);
int kh_bench_kernels(int argc, char **argv); /* kernels.c, where the build has it */

#define KH_EXIT_OK 0
#define KH_EXIT_FAILED 1 /* measured, and a bound or a handshake failed */
#define KH_EXIT_USAGE 2  /* could not be measured */

/* ---- Time -------------------------------------------------------------------------------------------------------- */

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t kh_now_ns(void);

/*
 * Log-linear histogram of nanoseconds: 128 steps per power of two, so a value is off by less than 0.8 %. Fixed size,
 * owned by whoever declares it; all zero is empty.
 */
#define KH_HIST_STEPS 128
#define KH_HIST_BUCKETS (58 * KH_HIST_STEPS)
typedef struct kh_hist {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[KH_HIST_BUCKETS];
} kh_hist;

void kh_hist_add(kh_hist *hist, uint64_t ns);
void kh_hist_merge(kh_hist *into, const kh_hist *from);
/* The value that `share` (0 to 1) of all values do not exceed; 0 when empty. */
uint64_t kh_hist_quantile(const kh_hist *hist, double share);
/* Median; sorts `values` in place. 0 when count is 0. */
double kh_median(double *values, size_t count);

/* ---- CPU time of servers ------------------------------------------------------------------------------------------- */

#define KH_PIDS_MAX 64
typedef struct kh_pids {
    size_t count;
    pid_t pid[KH_PIDS_MAX];
    uint64_t start_ns[KH_PIDS_MAX]; /* CPU time at kh_pids_start */
} kh_pids;

/* Adds the pids of "12,13 14". False: not such a list, or too many. */
bool kh_pids_parse(kh_pids *pids, const char *text);
/* Notes the CPU time so far. False: one of them does not exist. */
bool kh_pids_start(kh_pids *pids);
/* CPU time in ns that all of them used since; processes that are gone by now are counted in *gone and not in the sum. */
uint64_t kh_pids_used(const kh_pids *pids, unsigned *gone);

/* ---- Load: full handshakes, closed-loop or at a rate (load.c) -------------------------------------------------------- */

/* Ways in which a handshake can fail. X(constant, name in JSON, text for people). */
#define KH_LOAD_ERRORS(X)                                                                                   \
    X(KH_LOAD_REFUSED, "refused", "connection refused")                                                     \
    X(KH_LOAD_CONNECT, "connect", "could not connect")                                                      \
    X(KH_LOAD_RESET, "reset", "connection reset in the handshake")                                          \
    X(KH_LOAD_CLOSED, "closed", "connection closed in the handshake")                                       \
    X(KH_LOAD_ALERT, "alert", "the server sent an alert")                                                   \
    X(KH_LOAD_VERIFY, "verify", "the certificate or its signature is wrong")                                \
    X(KH_LOAD_PROTOCOL, "protocol", "the server broke the protocol")                                        \
    X(KH_LOAD_TIMEOUT, "timeout", "no progress within the time-out")                                        \
    X(KH_LOAD_LOST, "lost", "connection lost after the handshake")                                          \
    X(KH_LOAD_ANSWER, "answer", "the answer to the request is wrong")

typedef enum kh_load_error {
#define KH_X(constant, name, text) constant,
    KH_LOAD_ERRORS(KH_X)
#undef KH_X
    KH_LOAD_ERROR_COUNT
} kh_load_error;

#define KH_LOAD_DETAILS 8
#define KH_LOAD_DETAIL_LEN 120

/* What happened since the window before this one, or since the begin. */
typedef struct kh_load_window {
    uint64_t opened_ns, closed_ns;
    uint64_t failed; /* connections */
    kh_hist latency; /* of the handshakes that were finished */
} kh_load_window;

typedef struct kh_load_config {
    const char *host, *port; /* numeric or a name; required */
    bool light;              /* the light client (light.h): host, port and sni are all that it knows of what is below */
    const char *sni;         /* NULL: none */
    const char *tls;         /* "1.2", "1.3" or NULL for both */
    const char *ciphers;     /* TLS 1.2 list and */
    const char *ciphersuites; /* TLS 1.3 list, as OpenSSL has them; NULL: the defaults */
    const char *groups, *sigalgs; /* as OpenSSL has them; NULL: the defaults */
    const char *alpn;        /* "h2,http/1.1"; NULL: none */
    const char *cafile;      /* verify the chain, and the name if there is an sni; NULL: not */
    const char *pin;         /* PEM file: the server's certificate must be this one; NULL: any */
    const char *request;     /* path of a GET after each handshake; NULL: only the handshake */
    const char *expect;      /* text that the answer must contain; NULL: any answer with status 200 */
    unsigned clients;        /* connections at the same time */
    unsigned threads;        /* that share them, at most as many as clients; 0: one */
    uint64_t interval_ns;    /* between the begins of two connections; 0: as fast as the clients allow */
    uint64_t warmup_ns;      /* not counted in rates, latencies and CPU time; errors always count */
    uint64_t duration_ns;    /* 0: until stopped or until max_handshakes */
    uint64_t max_handshakes; /* 0: no limit */
    uint64_t timeout_ns;     /* for a connection from connect to its end */
    kh_pids *pids;           /* whose CPU time to measure; may be NULL */
    volatile const int *stop; /* non-zero: finish what is under way and return; may be NULL */
    volatile int *cut;        /* non-zero: close the window, and set it to 0; may be NULL; only with one thread */
    void (*on_window)(const kh_load_window *window); /* with cut: a window was closed */
} kh_load_config;

/* Every connection that was begun has ended when the engine returns: started = done + failed. */
typedef struct kh_load_result {
    uint64_t started, done, failed; /* over the whole run */
    uint64_t errors[KH_LOAD_ERROR_COUNT];
    struct {
        uint64_t count;
        char text[KH_LOAD_DETAIL_LEN];
    } details[KH_LOAD_DETAILS]; /* the first different messages, with their counts */
    uint64_t measured;       /* handshakes done within the window */
    uint64_t window_ns;
    uint64_t server_cpu_ns, client_cpu_ns; /* within the window */
    unsigned pids_gone;
    kh_hist latency; /* connect (with interval_ns: when that was due) to the end of the handshake, of those in the window */
    kh_load_window window; /* the one that is open: no part of the report */
    char protocol[16], cipher[64], group[32], signature[32], alpn[32]; /* of the first handshake */
} kh_load_result;

/* False: could not begin (a message is on standard error). *result is overwritten. */
bool kh_load_run(const kh_load_config *config, kh_load_result *result);
double kh_load_rate(const kh_load_result *result);        /* handshakes per second */
double kh_load_cpu_us(const kh_load_result *result);      /* server CPU time per handshake, µs */
json_t *kh_load_json(const kh_load_result *result);       /* new reference */

/* ---- One operation at a time (op.c) ----------------------------------------------------------------------------------- */

typedef struct kh_op_config {
    const char *address;  /* "unix:/path" */
    const char *token;    /* file; NULL: by the uid */
    const char *key_file; /* the same private key, local, for the bare operation; PEM */
    unsigned rounds, per_round; /* alternations, and operations in each half of one */
} kh_op_config;

typedef struct kh_op_result {
    kh_hist remote, local;
    uint64_t failed; /* operations that the agent refused or answered wrongly */
    char scheme[40];
} kh_op_result;

/* False: could not begin (a message is on standard error). */
bool kh_op_run(const kh_op_config *config, kh_op_result *result);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the load engine share: load_setup.c makes an engine ready, load_conn.c drives one connection, load.c all
 * of them, load_threads.c shares the clients out to several engines.
 */
#ifndef KH_BENCH_LOAD_H
#define KH_BENCH_LOAD_H

#include "bench.h"

#include <netdb.h>
#include <openssl/ssl.h>

#define KH_LOAD_ANSWER_MAX 4096 /* what is kept of an answer */

typedef enum kh_load_phase { IDLE, HANDSHAKE, ASK, ANSWER, CLOSE } kh_load_phase;

typedef struct kh_load_client {
    kh_load_phase phase;
    int fd;
    SSL *ssl;
    uint64_t begun_ns;
    uint64_t due_ns; /* the same, or earlier at a rate */
    size_t answer_len;
    char *answer; /* KH_LOAD_ANSWER_MAX bytes, only when requests are made */
} kh_load_client;

typedef struct kh_load_engine {
    const kh_load_config *config;
    kh_load_result *result;
    OSSL_LIB_CTX *lib; /* of its own: threads would wait for each other at OpenSSL's locks */
    SSL_CTX *ctx;
    X509 *pin;
    struct addrinfo *address;
    char *request;
    size_t request_len;
    kh_load_client *clients;
    unsigned active; /* clients that are not IDLE */
    int epoll;
    bool measuring;  /* within the window */
    bool finishing;  /* begin no more */
    uint64_t next_ns; /* at a rate: when the next connection is due */
    uint64_t window_start_ns;
    uint64_t client_cpu_start_ns;
} kh_load_engine;

/* load_conn.c. Counts a message; at most KH_LOAD_DETAILS different ones. */
void kh_load_note(kh_load_result *result, const char *text, uint64_t count);

/* load_setup.c. False: the reason is on standard error; kh_load_tear_down is due in either case. */
bool kh_load_set_up(kh_load_engine *e);
void kh_load_tear_down(kh_load_engine *e);

/* load.c. One engine, in the caller's thread; as kh_load_run. */
bool kh_load_run_engine(const kh_load_config *config, kh_load_result *result);

/* load_conn.c. A client that is IDLE begins (and may fail at once, which is counted). */
void kh_load_begin(kh_load_engine *e, kh_load_client *c);
/* All that can be done without waiting for the socket. */
void kh_load_drive(kh_load_engine *e, kh_load_client *c);
/* Ends a connection that took too long. */
void kh_load_time_out(kh_load_engine *e, kh_load_client *c);
/* Ends a connection without counting it. */
void kh_load_drop(kh_load_engine *e, kh_load_client *c);

#endif

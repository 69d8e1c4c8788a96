/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the load engine share: load_setup.c makes an engine ready, load_conn.c begins and ends one connection and
 * counts it, load_ssl.c and load_light.c are the two ways to speak TLS on it, load.c drives all connections, load_threads.c
 * shares the clients out to several engines.
 */
#ifndef KH_BENCH_LOAD_H
#define KH_BENCH_LOAD_H

#include "bench.h"
#include "light.h"

#include <netdb.h>
#include <openssl/ssl.h>

#define KH_LOAD_ANSWER_MAX 4096 /* what is kept of an answer */

typedef enum kh_load_phase { IDLE, HANDSHAKE, ASK, ANSWER, CLOSE } kh_load_phase;

typedef struct kh_load_client {
    kh_load_phase phase;
    int fd;
    SSL *ssl;             /* libssl's way: of this connection */
    kh_light_conn *light; /* the light way: for one connection after another */
    bool waits_out;       /* and this one waits until the socket takes more */
    uint64_t begun_ns;
    uint64_t due_ns; /* the same, or earlier at a rate */
    size_t answer_len;
    char *answer; /* KH_LOAD_ANSWER_MAX bytes, only when requests are made */
} kh_load_client;

typedef struct kh_load_engine kh_load_engine;

/* A way to speak TLS on a socket that is connecting. drive: all that can be done without waiting. Failures are counted by the way. */
typedef struct kh_load_way {
    void (*begin)(kh_load_engine *e, kh_load_client *c);
    void (*drive)(kh_load_engine *e, kh_load_client *c);
    void (*drop)(kh_load_client *c);
} kh_load_way;

extern const kh_load_way kh_load_way_ssl, kh_load_way_light;

struct kh_load_engine {
    const kh_load_config *config;
    const kh_load_way *way;
    kh_load_result *result;
    OSSL_LIB_CTX *lib; /* of its own: threads would wait for each other at OpenSSL's locks */
    SSL_CTX *ctx;      /* libssl's way */
    X509 *pin;
    kh_light *light;   /* the light way */
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
};

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
/* For the ways. Both end the connection: it failed (text: the message that is counted), or was closed as it should be. */
void kh_load_fail(kh_load_engine *e, kh_load_client *c, kh_load_error kind, const char *text);
void kh_load_succeed(kh_load_engine *e, kh_load_client *c);
/* The same with errno of the socket. */
void kh_load_fail_socket(kh_load_engine *e, kh_load_client *c, int os_error);
/* The socket ended before it should. */
void kh_load_fail_closed(kh_load_engine *e, kh_load_client *c);
/* The handshake is done: its latency counts. */
void kh_load_handshake_done(kh_load_engine *e, const kh_load_client *c);
/* Ends a connection that took too long. */
void kh_load_time_out(kh_load_engine *e, kh_load_client *c);
/* Ends a connection without counting it. */
void kh_load_drop(kh_load_engine *e, kh_load_client *c);

#endif

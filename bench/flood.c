/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench flood`: a caller as it should not be, to see what others notice of it (claim F8). In one loop, without a
 * pause: connections that are opened and say nothing, or say hello a byte at a time, and are opened again; frames of the
 * largest size; callers that never read; and a hundred connections that use up their credit, 100,000 requests at a time.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <keyhold/client.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HUGE_LEN 65006 /* bytes of payload; the agent takes 65536 by default */
#define TRIES_PER_STEP 64 /* requests that one connection submits before the next has its turn */
#define DEADLINE_MS 2000

typedef enum flood_kind { FLOOD_SILENT, FLOOD_SLOW, FLOOD_HUGE, FLOOD_UNREAD, FLOOD_REQUESTS, FLOOD_KINDS } flood_kind;

static const struct {
    const char *name;
    unsigned connections;
} kinds[FLOOD_KINDS] = {{"silent", 300}, {"slow", 100}, {"huge", 8}, {"unread", 100}, {"requests", 100}};

typedef struct flood_conn {
    flood_kind kind;
    int fd; /* -1: closed */
    kh_session *session;
    unsigned steps; /* or how much of a huge frame was sent */
} flood_conn;

typedef struct flood {
    struct sockaddr_un address;
    kh_credential credential;
    const char *key;
    uint8_t message[130];        /* what a TLS 1.3 server signs */
    uint8_t huge[4 + HUGE_LEN]; /* a frame of an operation that does not exist */
    uint64_t opened, lost, submitted, answered, ok;
} flood;

static volatile sig_atomic_t stopped;

static void on_signal(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static bool prove(void *ctx, const char *label, const uint8_t *nonce_client, const uint8_t *nonce_agent, uint8_t *proof)
{
    return kh_credential_prove(ctx, label, nonce_client, nonce_agent, proof);
}

static void close_conn(flood_conn *conn)
{
    if (conn->fd >= 0) {
        close(conn->fd);
    }
    kh_session_free(conn->session);
    conn->session = NULL;
    conn->fd = -1;
    conn->steps = 0;
}

static bool open_conn(flood *f, flood_conn *conn)
{
    kh_session_config config = {
        .client_name = "flood", .identity = f->credential.identity, .prove = prove, .prove_ctx = &f->credential};

    conn->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (conn->fd < 0 || connect(conn->fd, (const struct sockaddr *)&f->address, sizeof(f->address)) != 0) {
        close_conn(conn); /* the backlog is full: just what it wanted */
        return false;
    }
    f->opened++;
    if (conn->kind >= FLOOD_HUGE &&
        (getrandom(config.nonce, sizeof(config.nonce), 0) != sizeof(config.nonce) ||
         kh_session_new(&config, &conn->session) != KH_OK)) {
        close_conn(conn);
        return false;
    }
    return true;
}

static void submit(flood *f, flood_conn *conn, uint64_t now_ms)
{
    kh_request request = {.op = conn->kind == FLOOD_UNREAD ? KH_OP_PUBLIC_KEY : KH_OP_SIGN,
                          .deadline_ms = DEADLINE_MS,
                          .key = {(const uint8_t *)f->key, strlen(f->key)},
                          .scheme = KH_ECDSA_SHA256,
                          .data = {f->message, sizeof(f->message)}};
    uint32_t id = 0;

    for (unsigned i = 0; i < TRIES_PER_STEP && kh_session_output(conn->session).len < 262144; i++) {
        if (kh_session_submit(conn->session, &request, now_ms, NULL, &id) != KH_OK) {
            return;
        }
        f->submitted++;
    }
}

static void receive(flood *f, flood_conn *conn)
{
    size_t cap = 0;
    uint8_t *room = kh_session_read_buffer(conn->session, &cap);
    ssize_t got = room != NULL ? recv(conn->fd, room, cap, MSG_DONTWAIT) : 0;
    kh_result result = KH_OK;
    kh_reply reply;
    void *user = NULL;

    if (got > 0) {
        kh_session_fed(conn->session, (size_t)got);
    } else if (got == 0 || errno != EAGAIN) {
        kh_session_abort(conn->session, KH_E_CLOSED);
    }
    while ((result = kh_session_next(conn->session, &reply, &user)) == KH_OK) {
        f->answered++;
        f->ok += reply.status == KH_OK;
    }
    while (kh_session_expire(conn->session, kh_now_ns() / 1000000 - DEADLINE_MS, &user)) {
    }
}

/* Frames past the session, whose refusals nobody looks at. False: the connection is gone. */
static bool step_huge(flood *f, flood_conn *conn)
{
    uint8_t refusals[4096];
    ssize_t got = recv(conn->fd, refusals, sizeof(refusals), MSG_DONTWAIT);
    ssize_t sent = send(conn->fd, f->huge + conn->steps, sizeof(f->huge) - conn->steps, MSG_NOSIGNAL | MSG_DONTWAIT);

    f->answered += got > 0;
    conn->steps += sent > 0 ? (unsigned)sent : 0;
    if (conn->steps == sizeof(f->huge)) {
        conn->steps = 0;
        f->submitted++;
    }
    return got != 0 && (sent > 0 || errno == EAGAIN);
}

/* One that says who it is. False: the connection is gone. */
static bool step_known(flood *f, flood_conn *conn)
{
    kh_bytes out;
    ssize_t sent;

    if (conn->kind == FLOOD_HUGE && kh_session_get_state(conn->session) == KH_SESSION_READY) {
        return step_huge(f, conn);
    }
    if (conn->kind != FLOOD_UNREAD || kh_session_get_state(conn->session) == KH_SESSION_OPENING) {
        receive(f, conn);
    }
    if (kh_session_get_state(conn->session) == KH_SESSION_READY) {
        submit(f, conn, kh_now_ns() / 1000000);
    }
    out = kh_session_output(conn->session);
    sent = out.len > 0 ? send(conn->fd, out.data, out.len, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    if (sent > 0) {
        kh_session_sent(conn->session, (size_t)sent);
    }
    return kh_session_get_state(conn->session) != KH_SESSION_LOST && (sent >= 0 || errno == EAGAIN);
}

static void step(flood *f, flood_conn *conn)
{
    static const uint8_t hello[] = {0, 0, 1, 0, 0x97, 0};
    bool goes_on = true;

    if (conn->fd < 0 && !open_conn(f, conn)) {
        return;
    }
    if (conn->kind == FLOOD_SILENT) {
        goes_on = conn->steps++ < 3;
    } else if (conn->kind == FLOOD_SLOW) {
        goes_on = conn->steps < sizeof(hello) && send(conn->fd, &hello[conn->steps], 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
        conn->steps++;
    } else {
        goes_on = step_known(f, conn);
    }
    if (!goes_on) {
        f->lost += conn->kind >= FLOOD_HUGE;
        close_conn(conn);
    }
}

static bool run(flood *f, const char *only, double seconds)
{
    uint64_t end_ns = kh_now_ns() + (uint64_t)(seconds * 1e9);
    flood_conn *conns = NULL;
    size_t count = 0;

    for (int kind = 0; kind < FLOOD_KINDS; kind++) {
        unsigned n = only == NULL || strcmp(only, kinds[kind].name) == 0 ? kinds[kind].connections : 0;
        flood_conn *grown = realloc(conns, (count + n + 1) * sizeof(*conns));

        if (grown == NULL) {
            free(conns);
            return false;
        }
        conns = grown;
        for (unsigned i = 0; i < n; i++) {
            conns[count++] = (flood_conn){.kind = (flood_kind)kind, .fd = -1};
        }
    }
    while (!stopped && count > 0 && (seconds <= 0 || kh_now_ns() < end_ns)) {
        for (size_t i = 0; i < count; i++) {
            step(f, &conns[i]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        close_conn(&conns[i]);
    }
    free(conns);
    return count > 0;
}

static const char *const usage =
    "usage: keyhold-bench flood --socket PATH --token FILE --key NAME [--only WAY] [--seconds N]\n"
    "Does to an agent what no caller should, without a pause, until it is stopped. Runs with less priority (nice 10), so\n"
    "that what others notice is the agent's doing and not the scheduler's.\n"
    "  --socket PATH   the agent's Unix socket        --token FILE   who we are\n"
    "  --key NAME      a P-256 key to sign with       --seconds N    how long (0: until stopped)\n"
    "  --only WAY      only silent, slow, huge, unread or requests\n";

int kh_bench_flood(int argc, char **argv)
{
    static const struct option options[] = {{"socket", required_argument, NULL, 's'}, {"token", required_argument, NULL, 't'},
                                            {"key", required_argument, NULL, 'k'},    {"only", required_argument, NULL, 'o'},
                                            {"seconds", required_argument, NULL, 'n'}, {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    static flood f = {.address.sun_family = AF_UNIX};
    const char *path = "", *token = NULL, *only = NULL;
    double seconds = 0;
    int option;
    bool ok;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's': path = optarg; break;
        case 't': token = optarg; break;
        case 'k': f.key = optarg; break;
        case 'o': only = optarg; break;
        case 'n': seconds = strtod(optarg, NULL); break;
        case 'h': fputs(usage, stdout); return KH_EXIT_OK;
        default: return KH_EXIT_USAGE;
        }
    }
    if (path[0] == '\0' || strlen(path) >= sizeof(f.address.sun_path) || token == NULL || f.key == NULL || optind != argc) {
        fputs(usage, stderr);
        return KH_EXIT_USAGE;
    }
    if (kh_credential_load(token, &f.credential) != KH_OK) {
        fprintf(stderr, "keyhold-bench flood: %s: no token\n", token);
        return KH_EXIT_USAGE;
    }
    memcpy(f.address.sun_path, path, strlen(path));
    memcpy(f.huge, (uint8_t[]){0, 0, 0xfd, 0xee, 0x93, 100, 1, 0xc5, 0xfd, 0xe8}, 10); /* [100, 1, bytes] */
    memset(f.message, ' ', 64);
    memcpy(f.message + 64, "TLS 1.3, server CertificateVerify", 34);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (nice(10) == -1) {
        perror("keyhold-bench flood: nice");
    }
    ok = run(&f, only, seconds);
    kh_credential_wipe(&f.credential);
    if (!ok) {
        fputs(usage, stderr);
        return KH_EXIT_USAGE;
    }
    printf("%llu connections opened, %llu known ones lost, %llu requests, %llu answered, %llu of them ok\n",
           (unsigned long long)f.opened, (unsigned long long)f.lost, (unsigned long long)f.submitted,
           (unsigned long long)f.answered, (unsigned long long)f.ok);
    return KH_EXIT_OK;
}

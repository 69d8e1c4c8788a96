/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kh-test-agent: a small agent for the tests of the callers' side. It speaks the real protocol (kh_server), holds keys
 * from PEM files in its own memory, and misbehaves as told. Not an agent for anything but tests: it checks no usage,
 * and lets in whoever comes.
 *
 *   kh-test-agent --socket PATH --key FILE … [--delay-ms N] [--fail NAME] [--fail-first N] [--silent]
 *                 [--close-after N] [--credit N]
 *
 *   --key         PEM private key; its name is the file's name without directory and suffix
 *   --delay-ms    each private-key operation is answered so much later, without blocking others
 *   --fail        answer every private-key operation with this status (its wire name)
 *   --fail-first  with --fail: only the first N of them
 *   --silent      never answer private-key operations
 *   --close-after close a connection when it has answered N private-key operations
 *   --credit      outstanding requests per connection
 *
 * Prints "ready" when it listens. SIGTERM ends it; SIGUSR1 prints "operations N, most outstanding N".
 */
#include "test_agent_keys.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CONNS_MAX = 64 };

/* A reply that waits for its time. Delays are all alike, so a list in order of arrival is in order of time. */
typedef struct late_reply {
    struct late_reply *next;
    uint64_t due_ms;
    unsigned conn;
    uint64_t conn_serial;
    kh_op op;
    uint32_t id;
    kh_result status;
    size_t len;
    uint8_t data[KH_SIGNATURE_MAX];
} late_reply;

typedef struct test_conn {
    int fd; /* -1: free */
    uint64_t serial;
    kh_server *server;
    unsigned long answered;
    bool closing;
} test_conn;

static struct {
    const char *socket;
    unsigned delay_ms;
    kh_result fail;
    unsigned long fail_first;
    unsigned long close_after;
    uint32_t credit;
    bool silent;
} options;

static test_conn conns[CONNS_MAX];
static uint64_t serials;
static late_reply *late_head;
static late_reply **late_tail = &late_head;
static unsigned long operations, outstanding, most_outstanding;
static volatile sig_atomic_t stopping, reporting;

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void die(const char *what)
{
    fprintf(stderr, "kh-test-agent: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_signal(int number)
{
    if (number == SIGUSR1) {
        reporting = 1;
    } else {
        stopping = 1;
    }
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static void reply_public_key(test_conn *conn, const kh_request *req)
{
    const test_key *key = test_keys_find(req);
    kh_reply reply = {.op = req->op, .id = req->id, .status = KH_E_NOT_FOUND};

    if (key != NULL) {
        reply.status = KH_OK;
        reply.entry = (kh_key_entry){
            .name = {(const uint8_t *)key->name, strlen(key->name)},
            .version = 1,
            .key_type = key->type,
            .bits = key->bits,
            .usage = KH_USAGE_TLS_SERVER,
            .state = KH_STATE_ENABLED,
            .id = {key->id, KH_KEY_ID_LEN},
            .spki = {key->spki, key->spki_len},
            .tier = KH_TIER_SOFTWARE,
        };
    }
    conn->closing |= kh_server_reply(conn->server, &reply) != KH_OK;
}

static kh_result private_result(const kh_request *req, late_reply *late)
{
    const test_key *key = test_keys_find(req);

    if (options.fail != KH_OK && (options.fail_first == 0 || operations <= options.fail_first)) {
        return options.fail;
    }
    if (key == NULL) {
        return KH_E_NOT_FOUND;
    }
    return req->op == KH_OP_SIGN ? test_key_sign(key, req, late->data, &late->len)
                                 : test_key_decrypt(key, req, late->data, &late->len);
}

static void private_operation(test_conn *conn, const kh_request *req)
{
    late_reply *late = calloc(1, sizeof(*late));

    if (late == NULL) {
        die("memory");
    }
    operations++;
    if (options.silent) {
        free(late);
        return;
    }
    late->due_ms = now_ms() + options.delay_ms;
    late->conn = (unsigned)(conn - conns);
    late->conn_serial = conn->serial;
    late->op = req->op;
    late->id = req->id;
    late->status = private_result(req, late);
    *late_tail = late;
    late_tail = &late->next;
    outstanding++;
    if (outstanding > most_outstanding) {
        most_outstanding = outstanding;
    }
}

static void send_due(uint64_t now)
{
    while (late_head != NULL && late_head->due_ms <= now) {
        late_reply *late = late_head;
        test_conn *conn = &conns[late->conn];

        late_head = late->next;
        if (late_head == NULL) {
            late_tail = &late_head;
        }
        outstanding--;
        if (conn->fd != -1 && conn->serial == late->conn_serial) {
            kh_reply reply = {.op = late->op, .id = late->id, .status = late->status};

            if (late->status == KH_OK) {
                reply.data = (kh_bytes){late->data, late->len};
            }
            /* KH_E_ORDER: it was cancelled meanwhile */
            if (kh_server_reply(conn->server, &reply) == KH_E_MEMORY) {
                conn->closing = true;
            }
            conn->answered++;
            conn->closing |= options.close_after != 0 && conn->answered >= options.close_after;
        }
        free(late);
    }
}

static void handle(test_conn *conn, const kh_request *req)
{
    static uint8_t nonce[KH_NONCE_LEN];
    kh_reply reply = {.op = req->op, .id = req->id};

    switch (req->op) {
    case KH_OP_HELLO:
        reply.version = KH_PROTOCOL_VERSION;
        reply.nonce = (kh_bytes){nonce, sizeof(nonce)};
        break;
    case KH_OP_AUTH:
        reply.identity = (kh_bytes){(const uint8_t *)"test", 4};
        break;
    case KH_OP_PING:
        break;
    case KH_OP_CANCEL:
        return;
    case KH_OP_PUBLIC_KEY:
    case KH_OP_DESCRIBE:
        reply_public_key(conn, req);
        return;
    case KH_OP_SIGN:
    case KH_OP_TLS_RSA_DECRYPT:
    case KH_OP_DECRYPT:
        private_operation(conn, req);
        return;
    default:
        reply.status = KH_E_UNSUPPORTED;
        break;
    }
    conn->closing |= kh_server_reply(conn->server, &reply) != KH_OK;
}

/* ---- connections ------------------------------------------------------------------------------------------------ */

static void conn_close(test_conn *conn)
{
    close(conn->fd);
    kh_server_free(conn->server);
    *conn = (test_conn){.fd = -1};
}

static void conn_read(test_conn *conn)
{
    size_t cap = 0;
    uint8_t *buf = kh_server_read_buffer(conn->server, &cap);
    ssize_t n = buf != NULL ? read(conn->fd, buf, cap) : -1;
    kh_request req;
    kh_result rc = KH_OK;

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        conn_close(conn);
        return;
    }
    if (n < 0) {
        return;
    }
    kh_server_fed(conn->server, (size_t)n);
    do {
        rc = kh_server_next(conn->server, &req);
        if (rc == KH_OK) {
            handle(conn, &req);
        }
    } while (rc == KH_OK || rc == KH_E_UNSUPPORTED || rc == KH_E_TOO_LARGE);
    conn->closing |= rc != KH_AGAIN;
}

static void conn_write(test_conn *conn)
{
    kh_bytes out = kh_server_output(conn->server);
    ssize_t n = 0;

    while (out.len > 0) {
        n = send(conn->fd, out.data, out.len, MSG_NOSIGNAL);
        if (n <= 0) {
            break;
        }
        kh_server_sent(conn->server, (size_t)n);
        out = kh_server_output(conn->server);
    }
    if ((n < 0 && errno != EAGAIN && errno != EINTR) || conn->closing) {
        conn_close(conn);
    }
}

static void conn_accept(int listener)
{
    kh_server_config config = {.credit = options.credit};
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    for (size_t i = 0; fd != -1 && i < CONNS_MAX; i++) {
        if (conns[i].fd == -1) {
            conns[i] = (test_conn){.fd = fd, .serial = ++serials};
            if (kh_server_new(&config, &conns[i].server) != KH_OK) {
                die("kh_server_new");
            }
            return;
        }
    }
    if (fd != -1) {
        close(fd);
    }
}

static void turn(int listener)
{
    struct pollfd fds[CONNS_MAX + 1];
    unsigned index[CONNS_MAX + 1];
    nfds_t n = 0;
    int timeout = -1;
    uint64_t now = now_ms();

    fds[n++] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (unsigned i = 0; i < CONNS_MAX; i++) {
        if (conns[i].fd != -1) {
            index[n] = i;
            fds[n++] = (struct pollfd){
                .fd = conns[i].fd,
                .events = (short)((kh_server_wants_read(conns[i].server) ? POLLIN : 0) |
                                  (kh_server_output(conns[i].server).len > 0 ? POLLOUT : 0)),
            };
        }
    }
    if (late_head != NULL) {
        timeout = late_head->due_ms > now ? (int)(late_head->due_ms - now) : 0;
    }
    if (poll(fds, n, timeout) < 0 && errno != EINTR) {
        die("poll");
    }
    for (nfds_t i = 1; i < n; i++) {
        if ((fds[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
            conn_read(&conns[index[i]]);
        }
    }
    send_due(now_ms());
    for (unsigned i = 0; i < CONNS_MAX; i++) {
        if (conns[i].fd != -1) {
            conn_write(&conns[i]);
        }
    }
    if ((fds[0].revents & POLLIN) != 0) {
        conn_accept(listener);
    }
}

static kh_result result_of(const char *name)
{
    for (int i = 0; i < 64; i++) {
        if (strcmp(kh_result_name(i), name) == 0) {
            return (kh_result)i;
        }
    }
    errno = EINVAL;
    die(name);
    return KH_OK;
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";

        if (strcmp(argv[i], "--silent") == 0) {
            options.silent = true;
            continue;
        }
        i++;
        if (strcmp(argv[i - 1], "--socket") == 0) {
            options.socket = value;
        } else if (strcmp(argv[i - 1], "--key") == 0) {
            if (!test_keys_load(value)) {
                die(value);
            }
        } else if (strcmp(argv[i - 1], "--delay-ms") == 0) {
            options.delay_ms = (unsigned)atoi(value);
        } else if (strcmp(argv[i - 1], "--fail") == 0) {
            options.fail = result_of(value);
        } else if (strcmp(argv[i - 1], "--fail-first") == 0) {
            options.fail_first = strtoul(value, NULL, 10);
        } else if (strcmp(argv[i - 1], "--close-after") == 0) {
            options.close_after = strtoul(value, NULL, 10);
        } else if (strcmp(argv[i - 1], "--credit") == 0) {
            options.credit = (uint32_t)atoi(value);
        } else {
            errno = EINVAL;
            die(argv[i - 1]);
        }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct sigaction action = {.sa_handler = on_signal};
    int listener = -1;

    parse(argc, argv);
    if (options.socket == NULL || strlen(options.socket) >= sizeof(addr.sun_path)) {
        errno = EINVAL;
        die("--socket");
    }
    for (size_t i = 0; i < CONNS_MAX; i++) {
        conns[i].fd = -1;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    strcpy(addr.sun_path, options.socket);
    unlink(addr.sun_path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener == -1 || bind(listener, (struct sockaddr *)&addr, sizeof(addr)) == -1 ||
        chmod(addr.sun_path, 0666) == -1 || listen(listener, 128) == -1) {
        die(options.socket);
    }
    printf("ready\n");
    fflush(stdout);
    while (!stopping) {
        turn(listener);
        if (reporting) {
            reporting = 0;
            printf("operations %lu, most outstanding %lu\n", operations, most_outstanding);
            fflush(stdout);
        }
    }
    unlink(addr.sun_path);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The blocking client against a small agent in a thread, over a real Unix socket. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <keyhold/client.h>

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* What the small agent does with a request; it is chosen by the name of the key. */
#define KEY_ANSWER "answer"
#define KEY_REFUSE "refuse"
#define KEY_SILENT "silent"           /* no reply, until the cancel comes: then the reply that is due */
#define KEY_HANG_UP "hang-up"         /* closes instead of replying */
#define KEY_GARBAGE "garbage"         /* a reply that is none */
#define KEY_CLOSE_AFTER "close-after" /* replies, then closes */

typedef struct small_agent {
    pthread_t thread;
    char directory[64];
    char path[96];
    char address[112];
    int listener;
    int stop[2]; /* a pipe: closed when the agent is to end */
    kh_credential token;
    bool mute;    /* accepts and says nothing */
    bool garbage; /* the next bytes to send are no frame */
    int accepted;
    int ended; /* connections that the agent has closed */
    int cancels;
} small_agent;

static bool key_is(const kh_request *req, const char *name)
{
    return req->key.len == strlen(name) && memcmp(req->key.data, name, req->key.len) == 0;
}

static void answer(kh_server *server, const kh_request *req)
{
    kh_reply reply = {.op = req->op, .id = req->id};

    if (req->op == KH_OP_SIGN) {
        reply.data = req->data;
    }
    if (key_is(req, KEY_REFUSE)) {
        reply.status = KH_E_NOT_FOUND;
    }
    if (kh_server_reply(server, &reply) != KH_OK) {
        abort();
    }
}

/* Hello and auth as an agent does them. */
static void handshake(small_agent *agent, kh_server *server, const kh_request *req)
{
    static const uint8_t nonce[KH_NONCE_LEN] = "a nonce that is not random at al";
    static uint8_t client_nonce[KH_NONCE_LEN];
    static bool by_token;
    uint8_t proof[KH_PROOF_LEN] = {0};
    kh_reply reply = {.op = req->op};

    if (req->op == KH_OP_HELLO) {
        memcpy(client_nonce, req->nonce.data, KH_NONCE_LEN);
        by_token = req->identity.len > 0;
        kh_credential_prove(&agent->token, "keyhold-1 agent", client_nonce, nonce, proof);
        reply.nonce = (kh_bytes){nonce, sizeof(nonce)};
        reply.proof = (kh_bytes){proof, sizeof(proof)};
    } else {
        kh_credential_prove(&agent->token, "keyhold-1 client", client_nonce, nonce, proof);
        reply.identity = (kh_bytes){(const uint8_t *)(by_token ? "edge-1" : "by-uid"), 6};
        if (by_token &&
            (req->proof.len != KH_PROOF_LEN || CRYPTO_memcmp(proof, req->proof.data, KH_PROOF_LEN) != 0)) {
            reply.status = KH_E_UNAUTHENTICATED;
            reply.detail = (kh_bytes){(const uint8_t *)"wrong proof", 11};
        }
    }
    if (kh_server_reply(server, &reply) != KH_OK) {
        abort();
    }
}

/* Takes what came. False: close the connection when the output is written. */
static bool serve(small_agent *agent, kh_server *server)
{
    kh_request req;
    kh_result result = KH_OK;

    while ((result = kh_server_next(server, &req)) == KH_OK) {
        if (req.op == KH_OP_HELLO || req.op == KH_OP_AUTH) {
            handshake(agent, server, &req);
        } else if (req.op == KH_OP_CANCEL) {
            kh_reply late = {.op = KH_OP_SIGN, .id = req.id, .status = KH_E_CANCELLED};

            __atomic_add_fetch(&agent->cancels, 1, __ATOMIC_SEQ_CST);
            if (kh_server_reply(server, &late) != KH_OK) {
                abort();
            }
        } else if (key_is(&req, KEY_HANG_UP)) {
            return false;
        } else if (key_is(&req, KEY_CLOSE_AFTER)) {
            answer(server, &req);
            return false;
        } else if (key_is(&req, KEY_GARBAGE)) {
            agent->garbage = true;
        } else if (!key_is(&req, KEY_SILENT)) {
            answer(server, &req);
        }
    }
    return result == KH_AGAIN;
}

static void send_all(int fd, kh_bytes bytes)
{
    while (bytes.len > 0) {
        ssize_t n = send(fd, bytes.data, bytes.len, MSG_NOSIGNAL);

        if (n <= 0) {
            return;
        }
        bytes = (kh_bytes){bytes.data + n, bytes.len - (size_t)n};
    }
}

/* One connection, until its end or the agent's. False: the agent's. */
static bool converse(small_agent *agent, int fd)
{
    kh_server *server = NULL;
    bool goes_on = true;
    bool stopped = false;

    if (kh_server_new(NULL, &server) != KH_OK) {
        abort();
    }
    while (goes_on && !stopped) {
        struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = agent->stop[0], .events = POLLIN}};
        size_t cap = 0;
        uint8_t *room = kh_server_read_buffer(server, &cap);
        ssize_t n = 0;

        poll(fds, 2, -1);
        stopped = fds[1].revents != 0;
        if (stopped || fds[0].revents == 0) {
            continue;
        }
        n = room != NULL ? recv(fd, room, cap, 0) : -1;
        if (n <= 0) {
            break;
        }
        kh_server_fed(server, (size_t)n);
        if (agent->mute) {
            continue;
        }
        goes_on = serve(agent, server);
        if (agent->garbage) {
            send_all(fd, (kh_bytes){(const uint8_t *)"\0\0\0\1\xc0", 5});
            agent->garbage = false;
        }
        send_all(fd, kh_server_output(server));
        kh_server_sent(server, kh_server_output(server).len);
    }
    kh_server_free(server);
    close(fd);
    return !stopped;
}

static void *run(void *argument)
{
    small_agent *agent = argument;
    bool goes_on = true;

    while (goes_on) {
        struct pollfd fds[] = {{.fd = agent->listener, .events = POLLIN},
                               {.fd = agent->stop[0], .events = POLLIN}};

        poll(fds, 2, -1);
        if (fds[1].revents != 0) {
            break;
        }
        if (fds[0].revents != 0) {
            int fd = accept(agent->listener, NULL, NULL);

            agent->accepted++;
            goes_on = fd < 0 || converse(agent, fd);
            __atomic_add_fetch(&agent->ended, 1, __ATOMIC_SEQ_CST);
        }
    }
    return NULL;
}

static void start(small_agent *agent)
{
    static const char line[] =
        "keyhold-token-1 edge-1 404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    assert_int_equal(kh_credential_parse(line, sizeof(line) - 1, &agent->token), KH_OK);
    strcpy(agent->directory, "/tmp/keyhold-test-XXXXXX");
    assert_non_null(mkdtemp(agent->directory));
    snprintf(agent->path, sizeof(agent->path), "%s/socket", agent->directory);
    snprintf(agent->address, sizeof(agent->address), "unix:%s", agent->path);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", agent->path);
    agent->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(agent->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(agent->listener, 8), 0);
    assert_int_equal(pipe(agent->stop), 0);
    assert_int_equal(pthread_create(&agent->thread, NULL, run, agent), 0);
}

static void stop(small_agent *agent)
{
    close(agent->stop[1]);
    pthread_join(agent->thread, NULL);
    close(agent->stop[0]);
    close(agent->listener);
    unlink(agent->path);
    rmdir(agent->directory);
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static kh_request sign(const char *key, uint32_t deadline_ms)
{
    return (kh_request){.op = KH_OP_SIGN,
                        .deadline_ms = deadline_ms,
                        .key = {(const uint8_t *)key, strlen(key)},
                        .scheme = KH_ECDSA_SHA256,
                        .data = {(const uint8_t *)"message", 7}};
}

static void test_calls(void **state)
{
    small_agent agent = {0};
    kh_client *client = NULL;
    kh_reply reply;
    kh_request req = sign(KEY_ANSWER, 5000);
    char detail[100] = "x";

    (void)state;
    start(&agent);
    assert_int_equal(
        kh_client_open(agent.address, &agent.token, "test", 5000, &client, detail, sizeof(detail)), KH_OK);
    assert_string_equal(kh_client_identity(client), "edge-1");
    assert_string_equal(detail, "");
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
        assert_int_equal(reply.status, KH_OK);
        assert_int_equal(reply.data.len, 7);
        assert_memory_equal(reply.data.data, "message", 7);
    }
    req = sign(KEY_REFUSE, 5000);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    assert_int_equal(reply.status, KH_E_NOT_FOUND);
    req.deadline_ms = 0;
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_INVALID);
    req.deadline_ms = KH_DEADLINE_MAX_MS + 1;
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_INVALID);
    kh_client_close(client);

    assert_int_equal(kh_client_open(agent.address, NULL, NULL, 5000, &client, NULL, 0), KH_OK);
    assert_string_equal(kh_client_identity(client), "by-uid");
    kh_client_close(client);
    kh_client_close(NULL);
    stop(&agent);
    assert_int_equal(agent.accepted, 2);
}

static void test_large_requests(void **state)
{
    static uint8_t message[KH_MESSAGE_MAX];
    small_agent agent = {0};
    kh_client *client = NULL;
    kh_reply reply;
    kh_request req = sign(KEY_REFUSE, 5000);

    (void)state;
    req.data = (kh_bytes){message, sizeof(message)};
    start(&agent);
    assert_int_equal(kh_client_open(agent.address, &agent.token, "test", 5000, &client, NULL, 0), KH_OK);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    }
    req.data.len++;
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_TOO_LARGE);
    kh_client_close(client);
    stop(&agent);
}

/* A deadline is exact, the connection survives it, and the late reply is not taken for another. */
static void test_deadline(void **state)
{
    small_agent agent = {0};
    kh_client *client = NULL;
    kh_reply reply;
    kh_request req = sign(KEY_SILENT, 120);
    uint64_t before = 0;
    uint64_t took = 0;

    (void)state;
    start(&agent);
    assert_int_equal(kh_client_open(agent.address, &agent.token, "test", 5000, &client, NULL, 0), KH_OK);
    before = now_ms();
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_DEADLINE);
    took = now_ms() - before;
    assert_in_range(took, 120, 1000); /* the upper end only for a machine that is busy */
    req = sign(KEY_ANSWER, 5000);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    assert_int_equal(reply.status, KH_OK);
    kh_client_close(client);
    stop(&agent);
    assert_int_equal(agent.accepted, 1);
    assert_int_equal(agent.cancels, 1);
}

/* The agent has closed that many connections: what a client finds dead must be so before it looks. */
static void wait_for_ends(small_agent *agent, int count)
{
    uint64_t limit_ms = now_ms() + 20000;

    while (__atomic_load_n(&agent->ended, __ATOMIC_SEQ_CST) < count && now_ms() < limit_ms) {
        sched_yield();
    }
    assert_true(now_ms() < limit_ms);
}

static void test_connection_that_ends(void **state)
{
    small_agent agent = {0};
    kh_client *client = NULL;
    kh_reply reply;
    kh_request req = sign(KEY_HANG_UP, 5000);

    (void)state;
    start(&agent);
    assert_int_equal(kh_client_open(agent.address, &agent.token, "test", 5000, &client, NULL, 0), KH_OK);
    /* Sent and unanswered: not repeated by the client. */
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_CLOSED);
    /* Found dead before anything was sent: opened anew. */
    req = sign(KEY_ANSWER, 5000);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    req = sign(KEY_CLOSE_AFTER, 5000);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    assert_memory_equal(reply.data.data, "message", 7); /* the reply outlives the connection */
    wait_for_ends(&agent, 2);
    req = sign(KEY_GARBAGE, 5000);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_MALFORMED);
    req = sign(KEY_ANSWER, 5000);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    stop(&agent);
    req = sign(KEY_ANSWER, 300);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_UNAVAILABLE);
    assert_int_equal(kh_client_call(client, &req, &reply), KH_E_UNAVAILABLE);
    assert_string_equal(kh_client_identity(client), "edge-1");
    kh_client_close(client);
    assert_int_equal(agent.accepted, 4);
}

static void test_open_fails_with_words(void **state)
{
    small_agent agent = {.mute = true};
    kh_client *client = NULL;
    kh_credential wrong;
    char detail[200] = "";
    char path[300];
    uint64_t before = 0;

    (void)state;
    start(&agent);
    before = now_ms();
    assert_int_equal(
        kh_client_open(agent.address, &agent.token, "test", 100, &client, detail, sizeof(detail)),
        KH_E_DEADLINE);
    assert_in_range(now_ms() - before, 100, 1000);
    assert_null(client);
    assert_non_null(strstr(detail, "no answer"));
    stop(&agent);

    assert_int_equal(kh_client_open(agent.address, NULL, "test", 100, &client, detail, sizeof(detail)),
                     KH_E_UNAVAILABLE);
    assert_non_null(strstr(detail, agent.path));
    assert_int_equal(kh_client_open("tcp:x", NULL, "test", 100, &client, detail, sizeof(detail)),
                     KH_E_INVALID);
    assert_int_equal(kh_client_open("unix:", NULL, "test", 100, &client, detail, sizeof(detail)),
                     KH_E_INVALID);
    memset(path, 'x', sizeof(path));
    memcpy(path, "unix:", 5);
    path[sizeof(path) - 1] = '\0';
    assert_int_equal(kh_client_open(path, NULL, "test", 100, &client, detail, 8), KH_E_INVALID);
    assert_int_equal(strlen(detail), 7);

    memset(&agent, 0, sizeof(agent));
    start(&agent);
    wrong = agent.token;
    wrong.secret[0] ^= 1;
    assert_int_equal(kh_client_open(agent.address, &wrong, "test", 5000, &client, detail, sizeof(detail)),
                     KH_E_UNAUTHENTICATED);
    assert_non_null(strstr(detail, "does not know this token"));
    stop(&agent);
}

/* A backlog that is full is waited for, not longer than allowed. */
static void test_full_backlog(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char directory[] = "/tmp/keyhold-test-XXXXXX";
    char where[120];
    kh_client *client = NULL;
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fillers[8];
    uint64_t before = 0;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", directory);
    snprintf(where, sizeof(where), "unix:%s", address.sun_path);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 0), 0);
    for (size_t i = 0; i < 8; i++) {
        fillers[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connect(fillers[i], (struct sockaddr *)&address, sizeof(address)) != 0) {
            assert_int_equal(errno, EAGAIN);
        }
    }
    before = now_ms();
    assert_int_equal(kh_client_open(where, NULL, "test", 100, &client, NULL, 0), KH_E_DEADLINE);
    assert_in_range(now_ms() - before, 100, 1000);
    for (size_t i = 0; i < 8; i++) {
        close(fillers[i]);
    }
    close(listener);
    unlink(address.sun_path);
    rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_large_requests),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_connection_that_ends),
        cmocka_unit_test(test_open_fails_with_words),
        cmocka_unit_test(test_full_backlog),
    };

    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}

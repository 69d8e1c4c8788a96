/* SPDX-License-Identifier: Apache-2.0 */
/* The blocking client over TCP, against a small agent in a thread: TLS, names, resumption, deadlines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "../../protocol/tls/files.h"
#include "../../protocol/tls/stream.h"
#include "tls.h"
#include "tls_rig.h"
#include <keyhold/client.h>
#include <netinet/in.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* One connection at a time; each ends after as many requests as the test says. */
typedef struct small_agent {
    pthread_t thread;
    kh_tls_server *tls;
    int listener, stop[2];
    char address[32];
    unsigned requests; /* that a connection gets answered */
    bool mute;         /* takes connections and says nothing */
    unsigned accepted, resumed, ended;
} small_agent;

static tls_rig rig;
static tls_rig_party agent_party, edge;
static small_agent agent;

static bool wait_for(int fd, short events)
{
    struct pollfd fds[2] = {{.fd = fd, .events = events}, {.fd = agent.stop[0], .events = POLLIN}};

    return poll(fds, 2, 20000) > 0 && fds[1].revents == 0;
}

static void answer(kh_server *server, const kh_request *req)
{
    static const uint8_t nonce[KH_NONCE_LEN] = "a nonce that is not random at al";
    uint8_t proof[KH_PROOF_LEN] = {0};
    kh_reply reply = {.op = req->op, .id = req->id};

    if (req->op == KH_OP_HELLO) {
        reply.status = req->identity.len == 0 ? KH_OK : KH_E_UNAUTHENTICATED;
        reply.nonce = (kh_bytes){nonce, sizeof nonce};
        reply.proof = (kh_bytes){proof, sizeof proof};
    } else if (req->op == KH_OP_AUTH) {
        reply.identity = (kh_bytes){(const uint8_t *)"edge", 4};
    } else {
        reply.data = req->data;
    }
    if (kh_server_reply(server, &reply) != KH_OK) {
        abort();
    }
}

static void serve(int fd)
{
    kh_server_config config = {0};
    kh_server *server = NULL;
    kh_tls_stream stream;
    kh_request req;
    unsigned left = agent.requests;
    bool counted = false;
    char waste[512];

    if (kh_server_new(&config, &server) != KH_OK ||
        kh_tls_stream_start(&stream, kh_tls_server_accept(agent.tls), fd) != KH_OK) {
        abort();
    }
    while (left > 0) {
        size_t cap = 0, moved = 0;
        uint8_t *room = kh_server_read_buffer(server, &cap);
        kh_result result = kh_tls_stream_read(&stream, room, cap, &moved);
        kh_bytes out;

        if (result == KH_AGAIN && !wait_for(fd, POLLIN)) {
            break;
        }
        if (result != KH_OK && result != KH_AGAIN) {
            break;
        }
        if (stream.finished && !counted) {
            counted = true;
            agent.resumed += SSL_session_reused(stream.ssl) == 1;
        }
        kh_server_fed(server, moved);
        while (kh_server_next(server, &req) == KH_OK) {
            answer(server, &req);
            left -= req.op != KH_OP_HELLO && req.op != KH_OP_AUTH && left > 0;
        }
        for (out = kh_server_output(server); out.len > 0; out = kh_server_output(server)) {
            if (kh_tls_stream_write(&stream, out.data, out.len, &moved) != KH_OK) {
                break;
            }
            kh_server_sent(server, moved);
        }
    }
    kh_tls_stream_end(&stream, true);
    kh_server_free(server);
    shutdown(fd, SHUT_WR); /* what was said last is not to be lost by a reset */
    __atomic_add_fetch(&agent.ended, 1, __ATOMIC_SEQ_CST);
    while (wait_for(fd, POLLIN) && recv(fd, waste, sizeof waste, 0) > 0) {
    }
}

static void *run_agent(void *unused)
{
    while (wait_for(agent.listener, POLLIN)) {
        int fd = accept4(agent.listener, NULL, NULL, SOCK_CLOEXEC);

        __atomic_add_fetch(&agent.accepted, 1, __ATOMIC_SEQ_CST);
        if (agent.mute) {
            (void)wait_for(agent.stop[0], POLLIN);
        } else {
            serve(fd);
        }
        close(fd);
    }
    return unused;
}

static void start_agent(unsigned requests, bool mute)
{
    kh_tls_file certificate = {0}, ca = {0};
    struct sockaddr_in bound = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof bound;
    uint8_t *key = NULL;
    kh_tls_parts parts;
    int key_len = i2d_PrivateKey(agent_party.key, &key);

    agent = (small_agent){.requests = requests, .mute = mute};
    assert_int_equal(kh_tls_file_read(agent_party.certificate_file, false, &certificate), KH_OK);
    assert_int_equal(kh_tls_file_read(rig.ca.certificate_file, false, &ca), KH_OK);
    parts = (kh_tls_parts){kh_tls_file_bytes(&certificate), {key, (size_t)key_len}, kh_tls_file_bytes(&ca), {NULL, 0}};
    assert_int_equal(kh_tls_server_new(&parts, &agent.tls, NULL), KH_OK);
    kh_tls_file_free(&certificate);
    kh_tls_file_free(&ca);
    OPENSSL_free(key);
    agent.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(agent.listener, (struct sockaddr *)&bound, len), 0);
    assert_int_equal(listen(agent.listener, 5), 0);
    assert_int_equal(getsockname(agent.listener, (struct sockaddr *)&bound, &len), 0);
    snprintf(agent.address, sizeof agent.address, "tcp:127.0.0.1:%u", ntohs(bound.sin_port));
    assert_int_equal(pipe(agent.stop), 0);
    assert_int_equal(pthread_create(&agent.thread, NULL, run_agent, NULL), 0);
}

static void stop_agent(void)
{
    close(agent.stop[1]);
    assert_int_equal(pthread_join(agent.thread, NULL), 0);
    close(agent.stop[0]);
    close(agent.listener);
    kh_tls_server_free(agent.tls);
}

static int setup(void **state)
{
    (void)state;
    tls_rig_make(&rig);
    tls_rig_issue(&rig, &rig.ca, "agent", "IP:127.0.0.1,DNS:agent.example", -60, 3600, &agent_party);
    tls_rig_issue(&rig, &rig.ca, "edge", "DNS:edge.example", -60, 3600, &edge);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tls_rig_free(&agent_party);
    tls_rig_free(&edge);
    tls_rig_end(&rig);
    return 0;
}

static kh_client_tls files(void)
{
    return (kh_client_tls){.ca_file = rig.ca.certificate_file,
                           .certificate_file = edge.certificate_file,
                           .key_file = edge.key_file};
}

static void call(kh_client *client)
{
    static const uint8_t data[KH_SIGNATURE_MAX] = "what is signed";
    kh_request req = {.op = KH_OP_SIGN,
                      .deadline_ms = 10000,
                      .key = {(const uint8_t *)"www", 3},
                      .scheme = KH_ECDSA_SHA256,
                      .data = {data, sizeof data}};
    kh_reply reply;

    assert_int_equal(kh_client_call(client, &req, &reply), KH_OK);
    assert_int_equal(reply.status, KH_OK);
    assert_int_equal(reply.data.len, sizeof data);
    assert_memory_equal(reply.data.data, data, sizeof data);
}

/* Ten calls, the agent closing after each three: the client comes back by itself, resuming its session. */
static void test_calls(void **state)
{
    kh_client_tls tls = files();
    kh_client *client = NULL;
    char detail[256] = "";

    (void)state;
    start_agent(3, false);
    assert_int_equal(kh_client_open_tls(agent.address, &tls, "test", 10000, &client, detail, sizeof detail), KH_OK);
    assert_string_equal(kh_client_identity(client), "edge");
    for (unsigned i = 1; i <= 10; i++) {
        call(client);
        while (i % 3 == 0 && __atomic_load_n(&agent.ended, __ATOMIC_SEQ_CST) < i / 3) {
            poll(NULL, 0, 1); /* what is sent on a connection that is just closed may not be repeated */
        }
    }
    kh_client_close(client);
    stop_agent();
    assert_int_equal(agent.accepted, 4);
    assert_int_equal(agent.resumed, 3);
}

/* A renewed certificate is shown at the next connection, and not the one that the session is of. */
static void test_renewed(void **state)
{
    kh_client_tls tls = files();
    kh_client *client = NULL;

    (void)state;
    start_agent(1, false);
    assert_int_equal(kh_client_open_tls(agent.address, &tls, "test", 10000, &client, NULL, 0), KH_OK);
    for (unsigned i = 1; i <= 4; i++) {
        call(client);
        while (__atomic_load_n(&agent.ended, __ATOMIC_SEQ_CST) < i) {
            poll(NULL, 0, 1);
        }
        if (i == 2) { /* in the same files */
            tls_rig_free(&edge);
            tls_rig_issue(&rig, &rig.ca, "edge", "DNS:edge.example", -60, 7200, &edge);
        }
    }
    kh_client_close(client);
    stop_agent();
    assert_int_equal(agent.accepted, 4);
    assert_int_equal(agent.resumed, 2); /* the second and the fourth */
}

static void expect(const char *address, const kh_client_tls *tls, uint32_t timeout_ms, kh_result result, const char *words)
{
    kh_client *client = (kh_client *)1;
    char detail[256] = "";

    assert_int_equal(kh_client_open_tls(address, tls, "test", timeout_ms, &client, detail, sizeof detail), result);
    assert_null(client);
    if (strstr(detail, words) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", detail, words);
    }
}

static void test_refused(void **state)
{
    kh_client_tls tls = files();
    tls_rig_party other_ca, stranger;
    kh_client *client = NULL;

    (void)state;
    tls_rig_authority(&rig, "other", &other_ca);
    tls_rig_issue(&rig, &other_ca, "stranger", "DNS:edge.example", -60, 3600, &stranger);
    start_agent(3, false);
    tls.server_name = "other.example";
    expect(agent.address, &tls, 10000, KH_E_UNAUTHENTICATED, "hostname mismatch");
    tls.server_name = "127.0.0.2";
    expect(agent.address, &tls, 10000, KH_E_UNAUTHENTICATED, "IP address mismatch");
    tls.server_name = "";
    expect(agent.address, &tls, 10000, KH_E_INVALID, "not a name");
    tls.server_name = NULL;
    tls.ca_file = other_ca.certificate_file;
    expect(agent.address, &tls, 10000, KH_E_UNAUTHENTICATED, "is not accepted: unable to get local issuer");
    tls = files();
    tls.certificate_file = stranger.certificate_file;
    tls.key_file = stranger.key_file;
    expect(agent.address, &tls, 10000, KH_E_UNAUTHENTICATED, "the peer refuses: unknown CA");
    tls = files();
    tls.server_name = "agent.example";
    assert_int_equal(kh_client_open_tls(agent.address, &tls, "test", 10000, &client, NULL, 0), KH_OK);
    call(client);
    kh_client_close(client);
    stop_agent();
    tls_rig_free(&stranger);
    tls_rig_free(&other_ca);
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* An agent that takes the connection and says nothing; one that is not there; an address that leads nowhere. */
static void test_deadlines(void **state)
{
    kh_client_tls tls = files();
    uint64_t begun = now_ms();
    char gone[32];

    (void)state;
    start_agent(0, true);
    expect(agent.address, &tls, 200, KH_E_DEADLINE, "no answer in time");
    assert_true(now_ms() - begun >= 200 && now_ms() - begun < 5000);
    memcpy(gone, agent.address, sizeof gone);
    stop_agent();
    expect(gone, &tls, 5000, KH_E_UNAVAILABLE, "refused");
}

static void test_addresses(void **state)
{
    static const char *const bad[] = {"tcp:", "tcp:host", "tcp:host:", "tcp::7443", "tcp:host:0", "tcp:host:65536", "tcp:host:7x",
                                      "tcp:1::2:7443", "unix:/x", "host:7443", "tcp:[]:7443"};
    kh_client_tls tls = files();
    kh_client *client = NULL;
    char detail[256] = "";

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        expect(bad[i], &tls, 1000, KH_E_INVALID, "not an address of the form tcp:HOST:PORT");
    }
    assert_int_equal(kh_client_open("tcp:127.0.0.1:1", NULL, "test", 1000, &client, detail, sizeof detail), KH_E_INVALID);
    tls.certificate_file = "/nonexistent/edge.crt";
    expect("tcp:127.0.0.1:1", &tls, 1000, KH_E_IO, "/nonexistent/edge.crt: No such file");
    tls = files();
    expect("tcp:[::1]:1", &tls, 5000, KH_E_UNAVAILABLE, "[::1]:1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_calls), cmocka_unit_test(test_renewed), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_deadlines), cmocka_unit_test(test_addresses)};

    return cmocka_run_group_tests(tests, setup, teardown);
}

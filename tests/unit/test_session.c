/* SPDX-License-Identifier: Apache-2.0 */
/* The caller's end of a connection (M10): handshake, matching, deadlines, credit, loss; and both ends back to
 * back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "protocol_vectors.h"
#include "wire_pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kh_request sign_request(uint32_t deadline_ms)
{
    return (kh_request){.op = KH_OP_SIGN,
                        .deadline_ms = deadline_ms,
                        .key = {(const uint8_t *)"site", 4},
                        .scheme = KH_ECDSA_SHA256,
                        .data = {(const uint8_t *)"abc", 3}};
}

static uint32_t submit(kh_session *session, uint64_t now_ms, uint32_t deadline_ms, void *user)
{
    kh_request req = sign_request(deadline_ms);
    uint32_t id = 0;

    assert_int_equal(kh_session_submit(session, &req, now_ms, user, &id), KH_OK);
    return id;
}

static void feed_reply(kh_session *session, const kh_reply *reply)
{
    uint8_t frame[4096];
    size_t len = 0;

    assert_int_equal(kh_reply_encode(reply, frame, sizeof(frame), &len), KH_OK);
    assert_int_equal(kh_feed_session(session, frame, len, SIZE_MAX), len);
}

static void feed_vector(kh_session *session, const char *name)
{
    uint8_t frame[KH_VECTOR_MAX];
    size_t len = kh_vector_read(name, frame);

    assert_int_equal(kh_feed_session(session, frame, len, SIZE_MAX), len);
}

static void feed_signature(kh_session *session, uint32_t id)
{
    kh_reply reply = {.op = KH_OP_SIGN, .id = id, .data = {kh_vector_counting, 64}};

    feed_reply(session, &reply);
}

static void drop_output(kh_session *session)
{
    kh_session_sent(session, kh_session_output(session).len);
}

static kh_result next(kh_session *session)
{
    kh_reply reply;
    void *user = NULL;

    return kh_session_next(session, &reply, &user);
}

/* A session that was led through the handshake with a hello reply of that credit. */
static kh_session *ready_session(uint32_t credit, uint32_t max_inflight)
{
    kh_session *session = kh_new_session("edge-1", max_inflight);
    kh_reply hello = kh_vector_find("reply-hello")->reply;

    hello.credit = credit;
    feed_reply(session, &hello);
    assert_int_equal(next(session), KH_AGAIN);
    feed_vector(session, "reply-auth");
    assert_int_equal(next(session), KH_AGAIN);
    assert_int_equal(kh_session_get_state(session), KH_SESSION_READY);
    drop_output(session);
    return session;
}

/* What the output holds is exactly this vector. */
static void assert_output_is(kh_session *session, const char *name)
{
    uint8_t frame[KH_VECTOR_MAX];
    size_t len = kh_vector_read(name, frame);
    kh_bytes output = kh_session_output(session);

    assert_int_equal(output.len, len);
    assert_memory_equal(output.data, frame, len);
    kh_session_sent(session, len);
}

static void test_handshake_is_the_golden_one(void **state)
{
    kh_session *session = kh_new_session("edge-1", 0);

    (void)state;
    assert_output_is(session, "request-hello");
    assert_int_equal(next(session), KH_AGAIN);
    feed_vector(session, "reply-hello");
    assert_int_equal(next(session), KH_AGAIN);
    assert_output_is(session, "request-auth");
    assert_string_equal(kh_session_identity(session), "");
    feed_vector(session, "reply-auth");
    assert_int_equal(kh_session_get_state(session), KH_SESSION_OPENING);
    assert_int_equal(next(session), KH_AGAIN);
    assert_int_equal(kh_session_get_state(session), KH_SESSION_READY);
    assert_string_equal(kh_session_identity(session), "edge-1");
    kh_session_free(session);

    session = kh_new_session("", 0);
    assert_output_is(session, "request-hello-uid");
    feed_vector(session, "reply-hello-uid");
    assert_int_equal(next(session), KH_AGAIN);
    assert_output_is(session, "request-auth-uid");
    kh_session_free(session);
}

static void assert_lost(kh_session *session, kh_result why)
{
    const char *detail = NULL;
    size_t cap = 0;
    kh_request req = sign_request(5);
    uint32_t id = 0;

    assert_int_equal(next(session), why);
    assert_int_equal(kh_session_get_state(session), KH_SESSION_LOST);
    assert_int_equal(kh_session_why(session, &detail), why);
    assert_non_null(detail);
    assert_int_equal(kh_session_output(session).len, 0);
    assert_null(kh_session_read_buffer(session, &cap));
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_CLOSED);
    assert_int_equal(next(session), why);
    kh_session_free(session);
}

static void test_handshake_that_fails(void **state)
{
    kh_session *session = kh_new_session("edge-1", 0);
    kh_reply hello = kh_vector_find("reply-hello")->reply;
    uint8_t proof[KH_PROOF_LEN];
    const char *detail = NULL;

    (void)state;
    feed_vector(session, "reply-hello-refused");
    assert_int_equal(next(session), KH_E_VERSION);
    kh_session_why(session, &detail);
    assert_string_equal(detail, "this agent speaks version 1");
    assert_lost(session, KH_E_VERSION);

    for (size_t i = 0; i < KH_PROOF_LEN; i++) { /* each bit of the agent's proof counts */
        session = kh_new_session("edge-1", 0);
        memcpy(proof, kh_vector_proof_agent, KH_PROOF_LEN);
        proof[i] ^= (uint8_t)(1 << (i % 8));
        hello.proof = (kh_bytes){proof, KH_PROOF_LEN};
        feed_reply(session, &hello);
        assert_lost(session, KH_E_UNAUTHENTICATED);
    }
    session = kh_new_session("edge-1", 0); /* an agent that does not prove anything */
    feed_vector(session, "reply-hello-uid");
    assert_lost(session, KH_E_UNAUTHENTICATED);

    session = kh_new_session("edge-1", 0);
    hello = kh_vector_find("reply-hello")->reply;
    hello.version = 2;
    feed_reply(session, &hello);
    assert_lost(session, KH_E_VERSION);

    session = kh_new_session("edge-1", 0);
    feed_vector(session, "reply-hello");
    assert_int_equal(next(session), KH_AGAIN);
    feed_vector(session, "reply-auth-refused");
    assert_lost(session, KH_E_UNAUTHENTICATED);
}

static void test_handshake_order(void **state)
{
    static const char *const first[] = {"reply-auth", "reply-ping", "reply-sign"};
    kh_session *session = NULL;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        session = kh_new_session("edge-1", 0);
        submit(session, 0, 5, NULL);
        feed_vector(session, first[i]);
        assert_lost(session, KH_E_MALFORMED);
    }
    session = kh_new_session("edge-1", 0);
    feed_vector(session, "reply-hello");
    feed_vector(session, "reply-hello");
    assert_lost(session, KH_E_MALFORMED);

    session = ready_session(10, 0);
    feed_vector(session, "reply-auth");
    assert_lost(session, KH_E_MALFORMED);
}

static void test_new_checks_its_configuration(void **state)
{
    char long_name[KH_NAME_MAX + 2];
    kh_session_config config = {.identity = "edge-1"};
    kh_session *session = NULL;

    (void)state;
    assert_int_equal(kh_session_new(&config, &session), KH_E_INVALID); /* an identity without a proof */
    memset(long_name, 'x', sizeof(long_name) - 1);
    long_name[sizeof(long_name) - 1] = '\0';
    config = (kh_session_config){.client_name = long_name};
    assert_int_equal(kh_session_new(&config, &session), KH_E_INVALID);
    config = (kh_session_config){.identity = long_name, .prove = kh_fake_prove};
    assert_int_equal(kh_session_new(&config, &session), KH_E_INVALID);
    assert_null(session);
    config = (kh_session_config){0};
    assert_int_equal(kh_session_new(&config, &session), KH_OK);
    kh_session_free(session);
    kh_session_free(NULL);
}

/* Every reply to a request, with the handshake before it, cut in two at each byte. */
static void test_replies_split_at_each_byte(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        const kh_reply *golden = &vectors[i].reply;
        uint8_t frame[KH_VECTOR_MAX];
        size_t len = 0;

        if (vectors[i].is_request || golden->op == KH_OP_HELLO || golden->op == KH_OP_AUTH) {
            continue;
        }
        for (size_t cut = 1, end = KH_VECTOR_MAX; cut < end; cut++) {
            kh_session *session = ready_session(64, 0);
            kh_request req = sign_request(1000);
            kh_reply expected = *golden;
            kh_reply reply;
            void *user = NULL;
            uint32_t id = 0;

            req.op = golden->op;
            req.name = req.key;
            req.arg = 1;
            assert_int_equal(kh_session_submit(session, &req, 0, &req, &id), KH_OK);
            expected.id = id;
            assert_int_equal(kh_reply_encode(&expected, frame, sizeof(frame), &len), KH_OK);
            end = len;
            kh_feed_session(session, frame, cut, SIZE_MAX);
            assert_int_equal(kh_session_next(session, &reply, &user), KH_AGAIN);
            kh_feed_session(session, frame + cut, len - cut, SIZE_MAX);
            assert_int_equal(kh_session_next(session, &reply, &user), KH_OK);
            assert_ptr_equal(user, &req);
            kh_assert_same_reply(&reply, &expected);
            assert_int_equal(kh_session_outstanding(session), 0);
            kh_session_free(session);
        }
    }
}

static void test_each_byte_flipped(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t frame[KH_VECTOR_MAX];
        size_t len = vectors[i].is_request ? 0 : kh_vector_read(vectors[i].name, frame);
        bool is_hello = vectors[i].reply.op == KH_OP_HELLO;

        for (size_t at = 0; at < len; at++) {
            kh_session *session = is_hello ? kh_new_session("edge-1", 0) : ready_session(64, 0);
            kh_result result = KH_OK;

            if (!is_hello) {
                submit(session, 0, 1000, NULL);
            }
            frame[at] ^= 0x01;
            kh_feed_session(session, frame, len, SIZE_MAX);
            do {
                result = next(session);
            } while (result == KH_OK);
            frame[at] ^= 0x01;
            assert_true(result == KH_AGAIN || kh_session_get_state(session) == KH_SESSION_LOST);
            kh_session_free(session);
        }
    }
}

static void test_unexpected_replies_are_fatal(void **state)
{
    kh_session *session = ready_session(64, 0);
    kh_reply wrong = {.op = KH_OP_PING};
    uint32_t id = submit(session, 0, 5, NULL);

    (void)state;
    wrong.id = id;
    feed_reply(session, &wrong); /* of another operation */
    assert_lost(session, KH_E_MALFORMED);

    session = ready_session(64, 0);
    id = submit(session, 0, 5, NULL);
    feed_signature(session, id);
    feed_signature(session, id); /* twice */
    assert_int_equal(next(session), KH_OK);
    assert_lost(session, KH_E_MALFORMED);

    session = ready_session(64, 0);
    feed_signature(session, 12345678);
    assert_lost(session, KH_E_MALFORMED);
}

static void test_replies_out_of_order(void **state)
{
    kh_session *session = ready_session(1024, 0);
    static int users[500];
    static uint32_t ids[500];
    kh_reply reply;
    void *user = NULL;

    (void)state;
    for (size_t i = 0; i < 500; i++) {
        ids[i] = submit(session, i, 1000, &users[i]);
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(ids[i], ids[j]);
        }
    }
    for (size_t i = 0; i < 500; i++) {
        size_t at = i * 273 % 500; /* 273 and 500 have no common factor */

        feed_signature(session, ids[at]);
        assert_int_equal(kh_session_next(session, &reply, &user), KH_OK);
        assert_ptr_equal(user, &users[at]);
    }
    assert_int_equal(kh_session_outstanding(session), 0);
    assert_int_equal(kh_session_next_deadline(session), UINT64_MAX);
    kh_session_free(session);
}

static void test_deadlines_in_any_order(void **state)
{
    static uint64_t deadlines[1000];
    kh_session *session = ready_session(1024, 0);
    uint64_t last = 0;
    void *user = NULL;
    unsigned expired = 0;

    (void)state;
    for (size_t i = 0; i < 1000; i++) {
        uint32_t deadline_ms = (uint32_t)(i * 7919 % 1000) + 1;
        uint32_t id = 0;

        deadlines[i] = 100 + deadline_ms;
        id = submit(session, 100, deadline_ms, &deadlines[i]);
        if (i % 3 == 0) { /* some are cancelled or answered from the middle of the heap */
            kh_session_cancel(session, id);
        } else if (i % 3 == 1) {
            feed_signature(session, id);
            assert_int_equal(next(session), KH_OK);
        }
    }
    assert_int_equal(kh_session_outstanding(session), 333);
    while (kh_session_next_deadline(session) != UINT64_MAX) {
        uint64_t now = kh_session_next_deadline(session);

        assert_true(now >= last);
        assert_false(kh_session_expire(session, now - 1, &user));
        assert_true(kh_session_expire(session, now, &user));
        assert_int_equal(*(uint64_t *)user, now);
        last = now;
        expired++;
    }
    assert_int_equal(expired, 333);
    kh_session_free(session);
}

static void test_cancelled_replies_are_swallowed(void **state)
{
    kh_session *session = ready_session(2, 0);
    kh_request req = sign_request(5);
    int first = 0;
    int second = 0;
    uint32_t a = submit(session, 0, 10, &first);
    uint32_t b = submit(session, 0, 20, &second);
    kh_bytes output;
    kh_request cancel;
    kh_reply reply;
    void *user = NULL;
    uint32_t id = 0;

    (void)state;
    drop_output(session);
    kh_session_cancel(session, a);
    kh_session_cancel(session, a); /* once is enough */
    kh_session_cancel(session, 999);
    output = kh_session_output(session);
    assert_int_equal(kh_request_decode(output.data + 4, output.len - 4, &cancel), KH_OK);
    assert_int_equal(cancel.op, KH_OP_CANCEL);
    assert_int_equal(cancel.id, a);
    assert_int_equal(kh_session_outstanding(session), 1);
    /* Until its reply comes it counts against the agent's credit. */
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_OVERLOADED);
    feed_signature(session, a);
    feed_signature(session, b);
    assert_int_equal(kh_session_next(session, &reply, &user), KH_OK);
    assert_ptr_equal(user, &second);
    assert_int_equal(next(session), KH_AGAIN);
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_OK);
    kh_session_free(session);
}

static void test_inflight_limits(void **state)
{
    kh_session *session = ready_session(100, 3);
    kh_request req = sign_request(5);
    uint32_t id = 0;

    (void)state;
    for (int i = 0; i < 3; i++) {
        id = submit(session, 0, 5, NULL);
    }
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_OVERLOADED);
    kh_session_free(session);

    session = ready_session(5, 0);
    for (int i = 0; i < 5; i++) {
        submit(session, 0, 5, NULL);
    }
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_OVERLOADED);
    kh_session_free(session);

    session = kh_new_session("edge-1", 0);
    for (int i = 0; i < 1024; i++) {
        submit(session, 0, 5, NULL);
    }
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_OVERLOADED);
    kh_session_free(session);
}

static void test_submit_refuses(void **state)
{
    static const uint8_t data[KH_MESSAGE_MAX + 1];
    kh_session *session = ready_session(10, 0);
    kh_request req = sign_request(0);
    uint32_t id = 0;

    (void)state;
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_INVALID);
    req = sign_request(KH_DEADLINE_MAX_MS + 1);
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_TOO_LARGE);
    req = sign_request(5);
    req.data = (kh_bytes){data, sizeof(data)};
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_TOO_LARGE);
    for (int op = KH_OP_HELLO; op <= KH_OP_CANCEL; op++) {
        req = sign_request(5);
        req.op = (kh_op)op;
        if (op != KH_OP_PING) {
            assert_int_equal(kh_session_submit(session, &req, 0, NULL, &id), KH_E_INVALID);
        }
    }
    assert_int_equal(kh_session_outstanding(session), 0);
    assert_int_equal(kh_session_output(session).len, 0);
    kh_session_free(session);
}

/* Requests that were submitted early go out when the handshake is done, as far as the agent's credit allows.
 */
static void test_early_requests_respect_the_credit(void **state)
{
    static int users[40];
    kh_session *session = kh_new_session("edge-1", 0);
    kh_server *server = kh_new_server(3);
    kh_request req;
    kh_reply reply;
    void *user = NULL;
    uint32_t ids[40];
    unsigned seen = 0;

    (void)state;
    for (int i = 0; i < 40; i++) {
        ids[i] = submit(session, 0, 1000, &users[i]);
    }
    kh_session_cancel(session, ids[1]); /* never sent, so never cancelled at the agent either */
    kh_session_cancel(session, ids[30]);
    assert_output_is(session, "request-hello");
    kh_session_free(session);

    session = kh_new_session("edge-1", 0);
    for (int i = 0; i < 40; i++) {
        ids[i] = submit(session, 0, 1000, &users[i]);
    }
    kh_session_cancel(session, ids[1]);
    kh_session_cancel(session, ids[30]);
    kh_pair_handshake(session, server);
    while (kh_session_outstanding(session) > 0) {
        kh_pair_to_server(session, server, SIZE_MAX);
        assert_true(kh_server_outstanding(server) <= 3);
        while (kh_server_next(server, &req) == KH_OK) {
            assert_int_equal(req.op, KH_OP_SIGN);
            assert_int_not_equal(req.id, ids[1]);
            assert_int_not_equal(req.id, ids[30]);
            reply = (kh_reply){.op = req.op, .id = req.id, .data = {kh_vector_counting, 8}};
            assert_int_equal(kh_server_reply(server, &reply), KH_OK);
        }
        kh_pair_to_session(server, session, SIZE_MAX);
        while (kh_session_next(session, &reply, &user) == KH_OK) {
            assert_in_range((uintptr_t)user, (uintptr_t)users, (uintptr_t)(users + 39));
            seen++;
        }
    }
    assert_int_equal(seen, 38);
    kh_session_free(session);
    kh_server_free(server);
}

static void test_loss_and_drain(void **state)
{
    static int users[10];
    kh_session *session = ready_session(64, 0);
    kh_reply goodbye = {
        .op = KH_OP_HELLO, .status = KH_E_UNAVAILABLE, .detail = {(const uint8_t *)"going\x1b[2J down", 14}};
    const char *detail = NULL;
    void *user = NULL;
    unsigned drained = 0;

    (void)state;
    for (int i = 0; i < 10; i++) {
        uint32_t id = submit(session, 0, 10, &users[i]);

        if (i == 4) {
            kh_session_cancel(session, id);
        }
    }
    assert_false(kh_session_drain(session, &user));
    feed_reply(session, &goodbye);
    assert_int_equal(next(session), KH_E_UNAVAILABLE);
    assert_int_equal(kh_session_why(session, &detail), KH_E_UNAVAILABLE);
    assert_string_equal(detail, "going?[2J down"); /* nothing that a terminal obeys */
    kh_session_abort(session, KH_E_IO);
    assert_int_equal(kh_session_why(session, NULL), KH_E_UNAVAILABLE); /* the first reason stays */
    while (kh_session_drain(session, &user)) {
        assert_ptr_not_equal(user, &users[4]);
        drained++;
    }
    assert_int_equal(drained, 9);
    assert_int_equal(kh_session_outstanding(session), 0);
    kh_session_free(session);

    session = kh_new_session("edge-1", 0);
    submit(session, 0, 10, &users[0]);
    kh_session_abort(session, KH_E_CLOSED);
    assert_true(kh_session_drain(session, &user));
    assert_false(kh_session_drain(session, &user));
    assert_lost(session, KH_E_CLOSED);
}

/* A decrypted secret does not stay in the input after its views have ended. */
static void test_secrets_are_wiped(void **state)
{
    static const uint8_t secret[48] = "a premaster secret that must not stay in memory";
    kh_session *session = ready_session(64, 0);
    kh_request req = {
        .op = KH_OP_TLS_RSA_DECRYPT, .deadline_ms = 5, .key = {secret, 1}, .arg = 1, .data = {secret, 9}};
    kh_reply reply = {.op = KH_OP_TLS_RSA_DECRYPT, .data = {secret, sizeof(secret)}};
    kh_reply got;
    void *user = NULL;

    (void)state;
    assert_int_equal(kh_session_submit(session, &req, 0, NULL, &reply.id), KH_OK);
    feed_reply(session, &reply);
    assert_int_equal(kh_session_next(session, &got, &user), KH_OK);
    assert_memory_equal(got.data.data, secret, sizeof(secret));
    reply = got;
    assert_int_equal(kh_session_next(session, &got, &user), KH_AGAIN);
    for (size_t i = 0; i < sizeof(secret); i++) {
        assert_int_equal(reply.data.data[i], 0);
    }
    kh_session_free(session);
}

/* Both ends with every piece size, many requests, replies in turn and out of turn, and cancels in between. */
static void test_back_to_back(void **state)
{
    static const size_t pieces[] = {1, 2, 3, 7, 64, 1000, SIZE_MAX};

    (void)state;
    for (size_t p = 0; p < sizeof(pieces) / sizeof(pieces[0]); p++) {
        kh_session *session = kh_new_session("edge-1", 0);
        kh_server *server = kh_new_server(16);
        unsigned answered = 0;
        unsigned cancelled = 0;
        unsigned made = 0;

        while (answered + cancelled < 300) {
            kh_request req = sign_request(1000);
            kh_reply reply;
            void *user = NULL;
            uint32_t id = 0;

            if (made < 300 && kh_session_submit(session, &req, 0, NULL, &id) == KH_OK) {
                made++;
                if (made % 5 == 0) {
                    kh_session_cancel(session, id);
                    cancelled++;
                }
            }
            kh_pair_to_server(session, server, pieces[p]);
            while (kh_server_next(server, &req) == KH_OK) {
                reply = (kh_reply){.op = req.op, .id = req.id, .data = {kh_vector_counting, 72}};
                if (req.op == KH_OP_HELLO || req.op == KH_OP_AUTH) {
                    kh_answer_handshake(server, &req);
                } else if (req.op != KH_OP_CANCEL) {
                    assert_int_equal(kh_server_reply(server, &reply), KH_OK);
                }
            }
            kh_pair_to_session(server, session, pieces[p]);
            while (kh_session_next(session, &reply, &user) == KH_OK) {
                assert_int_equal(reply.data.len, 72);
                answered++;
            }
            assert_int_not_equal(kh_session_get_state(session), KH_SESSION_LOST);
        }
        assert_int_equal(answered, 240);
        kh_session_free(session);
        kh_server_free(server);
    }
}

/* The example of SPEC.md, byte by byte, played by both ends. */
static void test_example_of_the_specification(void **state)
{
    static char text[262144];
    kh_session *session = kh_new_session("edge-1", 0);
    kh_server *server = kh_new_server(0);
    FILE *file = fopen(KH_SOURCE_DIR "/protocol/SPEC.md", "r");
    const char *at = NULL;
    const char *end = NULL;
    unsigned frames = 0;

    (void)state;
    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    at = strstr(text, "```exchange\n");
    assert_non_null(at);
    at += strlen("```exchange\n");
    end = strstr(at, "```");
    while (at < end) {
        bool from_client = *at == 'C';
        const char *stop = at + 2;
        uint8_t expected[KH_VECTOR_MAX];
        size_t len = 0;
        kh_bytes output;
        kh_request req;
        kh_reply reply;
        void *user = NULL;

        assert_true((*at == 'C' || *at == 'A') && at[1] == '>');
        while (stop < end && strncmp(stop, "\nC>", 3) != 0 && strncmp(stop, "\nA>", 3) != 0) {
            stop++;
        }
        len = kh_hex_parse(at + 2, stop, expected, sizeof(expected));
        at = stop < end ? stop + 1 : end;
        if (from_client &&
            frames == 4) { /* hello and auth are over: request 0 and 1 were used up by nobody */
            kh_request sign = sign_request(1000);
            uint32_t id = 0;

            assert_int_equal(kh_session_submit(session, &sign, 0, &frames, &id), KH_OK);
            assert_int_equal(id, 0);
        }
        output = from_client ? kh_session_output(session) : kh_server_output(server);
        assert_int_equal(output.len, len);
        assert_memory_equal(output.data, expected, len);
        if (from_client) {
            kh_pair_to_server(session, server, SIZE_MAX);
            assert_int_equal(kh_server_next(server, &req), KH_OK);
            if (frames < 4) {
                kh_answer_handshake(server, &req);
            } else {
                reply = kh_vector_find("reply-sign")->reply;
                reply.id = req.id;
                assert_int_equal(kh_server_reply(server, &reply), KH_OK);
            }
        } else {
            kh_pair_to_session(server, session, SIZE_MAX);
            assert_int_equal(kh_session_next(session, &reply, &user), frames < 4 ? KH_AGAIN : KH_OK);
        }
        frames++;
    }
    assert_int_equal(frames, 6);
    kh_session_free(session);
    kh_server_free(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_handshake_is_the_golden_one),
        cmocka_unit_test(test_handshake_that_fails),
        cmocka_unit_test(test_handshake_order),
        cmocka_unit_test(test_new_checks_its_configuration),
        cmocka_unit_test(test_replies_split_at_each_byte),
        cmocka_unit_test(test_each_byte_flipped),
        cmocka_unit_test(test_unexpected_replies_are_fatal),
        cmocka_unit_test(test_replies_out_of_order),
        cmocka_unit_test(test_deadlines_in_any_order),
        cmocka_unit_test(test_cancelled_replies_are_swallowed),
        cmocka_unit_test(test_inflight_limits),
        cmocka_unit_test(test_submit_refuses),
        cmocka_unit_test(test_early_requests_respect_the_credit),
        cmocka_unit_test(test_loss_and_drain),
        cmocka_unit_test(test_secrets_are_wiped),
        cmocka_unit_test(test_back_to_back),
        cmocka_unit_test(test_example_of_the_specification),
    };

    return cmocka_run_group_tests_name("M10 session", tests, NULL, NULL);
}

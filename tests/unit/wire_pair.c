/* SPDX-License-Identifier: Apache-2.0 */
/* The two sessions of a connection back to back (wire_pair.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "protocol_vectors.h"
#include "wire_pair.h"

#include <string.h>

size_t kh_feed_server(kh_server *server, const uint8_t *bytes, size_t len, size_t piece)
{
    size_t fed = 0;

    while (fed < len && fed < piece) {
        size_t cap = 0;
        uint8_t *room = kh_server_read_buffer(server, &cap);
        size_t part = len - fed < piece - fed ? len - fed : piece - fed;

        if (room == NULL) {
            break;
        }
        assert_true(cap > 0);
        part = part < cap ? part : cap;
        memcpy(room, bytes + fed, part);
        kh_server_fed(server, part);
        fed += part;
    }
    return fed;
}

size_t kh_feed_session(kh_session *session, const uint8_t *bytes, size_t len, size_t piece)
{
    size_t fed = 0;

    while (fed < len && fed < piece) {
        size_t cap = 0;
        uint8_t *room = kh_session_read_buffer(session, &cap);
        size_t part = len - fed < piece - fed ? len - fed : piece - fed;

        if (room == NULL) {
            break;
        }
        assert_true(cap > 0);
        part = part < cap ? part : cap;
        memcpy(room, bytes + fed, part);
        kh_session_fed(session, part);
        fed += part;
    }
    return fed;
}

size_t kh_pair_to_server(kh_session *session, kh_server *server, size_t most)
{
    kh_bytes output = kh_session_output(session);
    size_t moved = kh_feed_server(server, output.data, output.len, most);

    kh_session_sent(session, moved);
    return moved;
}

size_t kh_pair_to_session(kh_server *server, kh_session *session, size_t most)
{
    kh_bytes output = kh_server_output(server);
    size_t moved = kh_feed_session(session, output.data, output.len, most);

    kh_server_sent(server, moved);
    return moved;
}

bool kh_fake_prove(void *ctx, const char *label, const uint8_t *nonce_client, const uint8_t *nonce_agent,
                   uint8_t *proof)
{
    bool is_agent = strcmp(label, "keyhold-1 agent") == 0;

    (void)ctx;
    assert_true(is_agent || strcmp(label, "keyhold-1 client") == 0);
    assert_memory_equal(nonce_client, KH_VECTOR_NONCE_CLIENT, KH_NONCE_LEN);
    memcpy(proof, is_agent ? kh_vector_proof_agent : kh_vector_proof_client, KH_PROOF_LEN);
    proof[0] ^= memcmp(nonce_agent, KH_VECTOR_NONCE_AGENT, KH_NONCE_LEN) != 0;
    return true;
}

kh_session *kh_new_session(const char *identity, uint32_t max_inflight)
{
    kh_session_config config = {
        .client_name = "example", .identity = identity, .prove = kh_fake_prove, .max_inflight = max_inflight};
    kh_session *session = NULL;

    memcpy(config.nonce, KH_VECTOR_NONCE_CLIENT, KH_NONCE_LEN);
    assert_int_equal(kh_session_new(&config, &session), KH_OK);
    return session;
}

kh_server *kh_new_server(uint32_t credit)
{
    kh_server_config config = {.credit = credit};
    kh_server *server = NULL;

    assert_int_equal(kh_server_new(&config, &server), KH_OK);
    return server;
}

void kh_answer_handshake(kh_server *server, const kh_request *req)
{
    kh_reply reply = {.op = req->op};

    if (req->op == KH_OP_HELLO) {
        reply.nonce = (kh_bytes){KH_VECTOR_NONCE_AGENT, KH_NONCE_LEN};
        if (req->identity.len > 0) {
            reply.proof = (kh_bytes){kh_vector_proof_agent, KH_PROOF_LEN};
        }
    } else {
        reply.identity = (kh_bytes){(const uint8_t *)"edge-1", 6};
    }
    assert_int_equal(kh_server_reply(server, &reply), KH_OK);
}

void kh_pair_handshake(kh_session *session, kh_server *server)
{
    kh_request req;
    kh_reply reply;
    void *user = NULL;

    for (int i = 0; i < 2; i++) {
        kh_pair_to_server(session, server, SIZE_MAX);
        assert_int_equal(kh_server_next(server, &req), KH_OK);
        assert_int_equal(req.op, i == 0 ? KH_OP_HELLO : KH_OP_AUTH);
        kh_answer_handshake(server, &req);
        kh_pair_to_session(server, session, SIZE_MAX);
        assert_int_equal(kh_session_next(session, &reply, &user), KH_AGAIN);
    }
    assert_int_equal(kh_session_get_state(session), KH_SESSION_READY);
    assert_true(kh_server_ready(server));
}

kh_server *kh_ready_server(uint32_t credit)
{
    static const char *const names[] = {"request-hello", "request-auth"};
    kh_server *server = kh_new_server(credit);
    uint8_t frame[KH_VECTOR_MAX];
    kh_request req;

    for (int i = 0; i < 2; i++) {
        size_t len = kh_vector_read(names[i], frame);

        assert_int_equal(kh_feed_server(server, frame, len, SIZE_MAX), len);
        assert_int_equal(kh_server_next(server, &req), KH_OK);
        kh_answer_handshake(server, &req);
    }
    kh_server_sent(server, kh_server_output(server).len);
    return server;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The sessions when memory runs out: allocation 1, 2, … n fails until a whole conversation succeeds. And:
 * once it is warm, a conversation allocates nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "protocol_vectors.h"
#include "wire_pair.h"

#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *data, size_t size);

static unsigned long calls;
static unsigned long fail_at; /* 0: never */

static bool fails(void)
{
    return ++calls == fail_at;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

/* Secrets are never moved by realloc; nothing else needs it either. */
void *__wrap_realloc(void *data, size_t size)
{
    (void)data;
    fail_msg("realloc of %zu bytes", size);
    return NULL;
}

/* Moves bytes without the asserting helpers, which expect memory. False: an end is out of memory. */
static bool pump(kh_session *session, kh_server *server)
{
    kh_bytes output = kh_session_output(session);

    while (output.len > 0 && kh_server_wants_read(server)) {
        size_t cap = 0;
        uint8_t *room = kh_server_read_buffer(server, &cap);

        if (room == NULL) {
            return false;
        }
        cap = cap < output.len ? cap : output.len;
        memcpy(room, output.data, cap);
        kh_server_fed(server, cap);
        kh_session_sent(session, cap);
        output = kh_session_output(session);
    }
    return true;
}

static bool pump_back(kh_server *server, kh_session *session)
{
    kh_bytes output = kh_server_output(server);
    size_t cap = 0;
    uint8_t *room = kh_session_read_buffer(session, &cap);

    if (room == NULL) {
        return false;
    }
    cap = cap < output.len ? cap : output.len;
    if (cap > 0) {
        memcpy(room, output.data, cap);
        kh_session_fed(session, cap);
        kh_server_sent(server, cap);
    }
    return true;
}

/* The server answers everything that came. */
static kh_result serve(kh_server *server)
{
    for (;;) {
        kh_request req;
        kh_reply reply;
        kh_result result = kh_server_next(server, &req);

        if (result != KH_OK) {
            return result == KH_AGAIN ? KH_OK : result;
        }
        reply = (kh_reply){.op = req.op, .id = req.id};
        if (req.op == KH_OP_HELLO) {
            reply.nonce = (kh_bytes){KH_VECTOR_NONCE_AGENT, KH_NONCE_LEN};
            reply.proof = (kh_bytes){kh_vector_proof_agent, KH_PROOF_LEN};
        } else if (req.op == KH_OP_SIGN) {
            reply.data = (kh_bytes){kh_vector_counting, 256};
        }
        result = kh_server_reply(server, &reply);
        if (result != KH_OK) {
            return result;
        }
    }
}

#define REQUESTS 100

/* One round: early and late requests, large enough that every buffer and table grows. */
static kh_result converse(kh_session *session, kh_server *server, const kh_request *sign)
{
    unsigned submitted = 0;
    unsigned answered = 0;

    for (unsigned turn = 0; turn < 4000 && answered < REQUESTS; turn++) {
        kh_reply reply;
        kh_result result = KH_OK;
        void *user = NULL;
        uint32_t id = 0;

        for (unsigned i = 0; i < REQUESTS && submitted < REQUESTS && result == KH_OK; i++) {
            result = kh_session_submit(session, sign, 0, NULL, &id);
            submitted += result == KH_OK;
        }
        if (result == KH_E_MEMORY) {
            return result;
        }
        if (!pump(session, server)) {
            return KH_E_MEMORY;
        }
        result = serve(server);
        if (result != KH_OK) {
            return result;
        }
        if (!pump_back(server, session)) {
            return KH_E_MEMORY;
        }
        while ((result = kh_session_next(session, &reply, &user)) == KH_OK) {
            answered++;
        }
        if (result != KH_AGAIN) {
            return result;
        }
    }
    return answered == REQUESTS ? KH_OK : KH_E_INTERNAL;
}

static kh_result whole_life(bool warm)
{
    static uint8_t message[2000];
    kh_session_config session_config = {
        .client_name = "example", .identity = "edge-1", .prove = kh_fake_prove};
    kh_server_config server_config = {.credit = 64};
    kh_request sign = {
        .op = KH_OP_SIGN, .deadline_ms = 5, .key = {message, 4}, .data = {message, sizeof(message)}};
    kh_session *session = NULL;
    kh_server *server = NULL;
    kh_result result = KH_OK;

    memcpy(session_config.nonce, KH_VECTOR_NONCE_CLIENT, KH_NONCE_LEN);
    result = kh_session_new(&session_config, &session);
    if (result == KH_OK) {
        result = kh_server_new(&server_config, &server);
    }
    if (result == KH_OK) {
        result = converse(session, server, &sign);
    }
    if (warm) {
        unsigned long before = 0;

        assert_int_equal(result, KH_OK);
        assert_int_equal(converse(session, server, &sign), KH_OK);
        before = calls;
        for (int i = 0; i < 20; i++) {
            assert_int_equal(converse(session, server, &sign), KH_OK);
        }
        assert_int_equal(calls, before);
    }
    kh_session_free(session);
    kh_server_free(server);
    return result;
}

static void test_every_allocation_fails_once(void **state)
{
    kh_result result = KH_E_MEMORY;
    unsigned long n = 0;

    (void)state;
    while (result != KH_OK) {
        calls = 0;
        fail_at = ++n;
        result = whole_life(false);
        /* KH_E_CLOSED: asked again after it was lost. Whatever fails says so; nothing leaks or crashes. */
        assert_true(result == KH_OK || result == KH_E_MEMORY || result == KH_E_CLOSED);
        assert_true(n < 200);
    }
    assert_true(n > 8);
    fail_at = 0;
}

static void test_steady_state_allocates_nothing(void **state)
{
    (void)state;
    fail_at = 0;
    assert_int_equal(whole_life(true), KH_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_fails_once),
        cmocka_unit_test(test_steady_state_allocates_nothing),
    };

    return cmocka_run_group_tests_name("M10 memory", tests, NULL, NULL);
}

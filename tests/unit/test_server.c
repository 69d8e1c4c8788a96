/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's end of a connection (M10): order, credit, ids, what it buffers, and every way to split a frame.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "protocol_vectors.h"
#include "wire_pair.h"

#include <stdlib.h>
#include <string.h>

/* Bytes in use, by wrapped allocation: what the linker leads here is what the session allocates. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void __real_free(void *data);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void __wrap_free(void *data);

#define ALLOCATION_HEADER 16
static size_t in_use;
static size_t peak;
static unsigned long allocations;

static void *counted(void *data, size_t size)
{
    if (data == NULL) {
        return NULL;
    }
    memcpy(data, &size, sizeof(size));
    in_use += size;
    peak = in_use > peak ? in_use : peak;
    allocations++;
    return (char *)data + ALLOCATION_HEADER;
}

void *__wrap_malloc(size_t size)
{
    return counted(__real_malloc(size + ALLOCATION_HEADER), size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return counted(__real_calloc(1, count * size + ALLOCATION_HEADER), count * size);
}

void __wrap_free(void *data)
{
    if (data != NULL) {
        size_t size = 0;

        data = (char *)data - ALLOCATION_HEADER;
        memcpy(&size, data, sizeof(size));
        in_use -= size;
        __real_free(data);
    }
}

/* Encodes and feeds; the server takes all of it. */
static void feed(kh_server *server, const kh_request *req)
{
    uint8_t frame[KH_FRAME_MIN_CAP];
    size_t len = 0;

    assert_int_equal(kh_request_encode(req, frame, sizeof(frame), &len), KH_OK);
    assert_int_equal(kh_feed_server(server, frame, len, SIZE_MAX), len);
}

static void feed_ping(kh_server *server, uint32_t id)
{
    kh_request ping = {.op = KH_OP_PING, .id = id, .deadline_ms = 1000};

    feed(server, &ping);
}

static kh_result answer_ping(kh_server *server, uint32_t id)
{
    kh_reply pong = {.op = KH_OP_PING, .id = id};

    return kh_server_reply(server, &pong);
}

static void drop_output(kh_server *server)
{
    kh_server_sent(server, kh_server_output(server).len);
}

/* The only frame in the output, decoded; its views hold until the next call. */
static kh_reply only_reply(const kh_server *server)
{
    kh_bytes output = kh_server_output(server);
    kh_reply reply = {0};

    assert_true(output.len > KH_FRAME_PREFIX);
    assert_int_equal(output.data[2] << 8 | output.data[3], output.len - KH_FRAME_PREFIX);
    assert_int_equal(kh_reply_decode(output.data + 4, output.len - 4, &reply), KH_OK);
    return reply;
}

/* The connection ended for this reason, said so to the peer, and stays ended. */
static void assert_dead(kh_server *server, kh_result why)
{
    kh_request req;
    kh_reply goodbye = only_reply(server);
    size_t cap = 1;

    assert_int_equal(goodbye.op, KH_OP_HELLO);
    assert_int_equal(goodbye.status, why);
    assert_true(goodbye.detail.len > 0);
    assert_int_equal(kh_server_next(server, &req), why);
    assert_false(kh_server_wants_read(server));
    assert_null(kh_server_read_buffer(server, &cap));
    assert_int_equal(cap, 0);
    assert_int_equal(answer_ping(server, 1), KH_E_CLOSED);
    kh_server_free(server);
}

static void test_configuration(void **state)
{
    kh_server *server = NULL;
    kh_server_config small = {.max_frame = KH_FRAME_MIN_CAP - 1};
    kh_server_config large = {.max_frame = 17 * 1024 * 1024};
    kh_server_config generous = {.credit = 65537};

    (void)state;
    assert_int_equal(kh_server_new(&small, &server), KH_E_INVALID);
    assert_int_equal(kh_server_new(&large, &server), KH_E_INVALID);
    assert_int_equal(kh_server_new(&generous, &server), KH_E_INVALID);
    assert_null(server);
    assert_int_equal(kh_server_new(NULL, &server), KH_OK);
    kh_server_free(server);
    kh_server_free(NULL);
}

/* The handshake and each request, cut in two at each byte and fed byte by byte: the same requests come out.
 */
static void test_split_at_each_byte(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t frame[KH_VECTOR_MAX];
        size_t len = 0;

        if (!vectors[i].is_request || vectors[i].req.op <= KH_OP_CANCEL) {
            continue;
        }
        len = kh_vector_read(vectors[i].name, frame);
        for (size_t cut = 1; cut <= len; cut++) {
            kh_server *server = kh_ready_server(0);
            kh_request req;

            assert_int_equal(kh_feed_server(server, frame, cut, SIZE_MAX), cut);
            if (cut < len) {
                assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
                assert_int_equal(kh_feed_server(server, frame + cut, len - cut, SIZE_MAX), len - cut);
            }
            assert_int_equal(kh_server_next(server, &req), KH_OK);
            kh_assert_same_request(&req, &vectors[i].req);
            assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
            assert_int_equal(kh_server_outstanding(server), 1);
            kh_server_free(server);
        }
    }
}

static void test_handshake_split_at_each_byte(void **state)
{
    uint8_t hello[KH_VECTOR_MAX];
    size_t len = kh_vector_read("request-hello", hello);

    (void)state;
    for (size_t cut = 1; cut < len; cut++) {
        kh_server *server = kh_new_server(0);
        kh_request req;

        kh_feed_server(server, hello, cut, SIZE_MAX);
        assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
        kh_feed_server(server, hello + cut, len - cut, SIZE_MAX);
        assert_int_equal(kh_server_next(server, &req), KH_OK);
        kh_assert_same_request(&req, &kh_vector_find("request-hello")->req);
        assert_int_equal(kh_server_next(server, &req), KH_AGAIN); /* it waits for the caller's answer */
        kh_answer_handshake(server, &req);
        assert_false(kh_server_ready(server));
        kh_server_free(server);
    }
}

/* Each byte of each request flipped: a request, an answered refusal, more to come, or a named end. */
static void test_each_byte_flipped(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t frame[KH_VECTOR_MAX];
        size_t len = vectors[i].is_request ? kh_vector_read(vectors[i].name, frame) : 0;

        for (size_t at = 0; at < len; at++) {
            for (unsigned bit = 0; bit < 8; bit++) {
                kh_server *server = kh_ready_server(0);
                kh_request req;
                kh_result result = KH_OK;

                frame[at] ^= (uint8_t)(1 << bit);
                kh_feed_server(server, frame, len, SIZE_MAX);
                for (unsigned frames = 0; frames < len; frames++) {
                    result = kh_server_next(server, &req);
                    if (result != KH_OK && result != KH_E_UNSUPPORTED && result != KH_E_TOO_LARGE) {
                        break;
                    }
                }
                assert_true(result == KH_AGAIN || result == KH_E_MALFORMED || result == KH_E_ORDER ||
                            result == KH_E_INVALID);
                frame[at] ^= (uint8_t)(1 << bit);
                kh_server_free(server);
            }
        }
    }
}

static void test_order(void **state)
{
    kh_request auth = {.op = KH_OP_AUTH};
    uint8_t hello[KH_VECTOR_MAX];
    size_t len = kh_vector_read("request-hello", hello);
    kh_request req;
    kh_server *server = kh_new_server(0);

    (void)state;
    feed_ping(server, 1);
    assert_int_equal(kh_server_next(server, &req), KH_E_ORDER);
    assert_dead(server, KH_E_ORDER);

    server = kh_new_server(0);
    feed(server, &auth);
    assert_int_equal(kh_server_next(server, &req), KH_E_ORDER);
    assert_dead(server, KH_E_ORDER);

    for (int second = 0; second < 2; second++) { /* a request, or a second hello, instead of auth */
        server = kh_new_server(0);
        kh_feed_server(server, hello, len, SIZE_MAX);
        assert_int_equal(kh_server_next(server, &req), KH_OK);
        kh_answer_handshake(server, &req);
        drop_output(server);
        if (second == 0) {
            feed_ping(server, 1);
        } else {
            kh_feed_server(server, hello, len, SIZE_MAX);
        }
        assert_int_equal(kh_server_next(server, &req), KH_E_ORDER);
        assert_dead(server, KH_E_ORDER);
    }

    server = kh_ready_server(0);
    feed(server, &auth);
    assert_int_equal(kh_server_next(server, &req), KH_E_ORDER);
    assert_dead(server, KH_E_ORDER);
}

static void test_caller_breaks_order(void **state)
{
    kh_server *server = kh_new_server(0);
    kh_reply auth = {.op = KH_OP_AUTH};
    kh_reply hello = {.op = KH_OP_HELLO};
    kh_reply wrong = {.op = KH_OP_SIGN, .id = 1};
    kh_request req;

    (void)state;
    assert_int_equal(kh_server_reply(server, &hello), KH_E_ORDER);
    assert_int_equal(kh_server_reply(server, &auth), KH_E_ORDER);
    assert_int_equal(answer_ping(server, 1), KH_E_ORDER);
    kh_server_free(server);

    server = kh_ready_server(0);
    feed_ping(server, 1);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_int_equal(kh_server_reply(server, &wrong), KH_E_ORDER); /* another operation */
    assert_int_equal(answer_ping(server, 2), KH_E_ORDER);
    assert_int_equal(answer_ping(server, 1), KH_OK);
    assert_int_equal(answer_ping(server, 1), KH_E_ORDER); /* twice */
    kh_server_free(server);
}

static void test_hello_is_checked(void **state)
{
    static const uint8_t nonce[KH_NONCE_LEN];
    kh_request hello = {.op = KH_OP_HELLO, .version_min = 2, .version_max = 3, .max_frame = KH_FRAME_MAX};
    kh_server *server = kh_new_server(0);
    kh_request req;

    (void)state;
    hello.nonce = (kh_bytes){nonce, sizeof(nonce)};
    feed(server, &hello);
    assert_int_equal(kh_server_next(server, &req), KH_E_VERSION);
    assert_dead(server, KH_E_VERSION);

    hello.version_min = 1;
    hello.max_frame = KH_FRAME_MIN_CAP - 1;
    server = kh_new_server(0);
    feed(server, &hello);
    assert_int_equal(kh_server_next(server, &req), KH_E_INVALID);
    assert_dead(server, KH_E_INVALID);

    hello.max_frame = KH_FRAME_MIN_CAP; /* versions 1 to 3 contain ours */
    server = kh_new_server(7);
    feed(server, &hello);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    kh_answer_handshake(server, &req);
    assert_int_equal(only_reply(server).credit, 7);
    assert_int_equal(only_reply(server).version, 1);
    assert_int_equal(only_reply(server).max_frame, KH_FRAME_MAX);
    kh_server_free(server);
}

static void test_refused_auth_ends_it(void **state)
{
    kh_server *server = kh_new_server(0);
    kh_reply refusal = {.op = KH_OP_AUTH, .status = KH_E_UNAUTHENTICATED};
    uint8_t frame[KH_VECTOR_MAX];
    kh_request req;

    (void)state;
    kh_feed_server(server, frame, kh_vector_read("request-hello", frame), SIZE_MAX);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    kh_answer_handshake(server, &req);
    kh_feed_server(server, frame, kh_vector_read("request-auth", frame), SIZE_MAX);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_memory_equal(req.proof.data, kh_vector_proof_client, KH_PROOF_LEN);
    drop_output(server);
    assert_int_equal(kh_server_reply(server, &refusal), KH_OK);
    assert_int_equal(only_reply(server).status, KH_E_UNAUTHENTICATED);
    assert_int_equal(kh_server_next(server, &req), KH_E_UNAUTHENTICATED);
    assert_false(kh_server_wants_read(server));
    kh_server_free(server);
}

static void test_frame_caps(void **state)
{
    kh_request req;
    kh_server *server = kh_new_server(0);

    (void)state;
    kh_feed_server(server, (const uint8_t *)"\x00\x00\x04\x01", 4, SIZE_MAX); /* 1025 before the handshake */
    assert_int_equal(kh_server_next(server, &req), KH_E_MALFORMED);
    assert_dead(server, KH_E_MALFORMED);

    server = kh_ready_server(0);
    kh_feed_server(server, (const uint8_t *)"\x00\x01\x00\x00", 4, SIZE_MAX);
    assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
    kh_server_free(server);

    for (int i = 0; i < 3; i++) {
        static const char *const prefixes[] = {"\x00\x01\x00\x01", "\xff\xff\xff\xff", "\x00\x00\x00\x00"};

        server = kh_ready_server(0);
        kh_feed_server(server, (const uint8_t *)prefixes[i], 4, SIZE_MAX);
        assert_int_equal(kh_server_next(server, &req), KH_E_MALFORMED);
        assert_dead(server, KH_E_MALFORMED);
    }
}

/* A frame of 64 KiB that is announced and never comes costs the first buffer; what comes costs at most its
 * double. */
static void test_memory_follows_what_came(void **state)
{
    static const uint8_t zeros[KH_FRAME_MAX];
    kh_server *server = kh_ready_server(0);
    kh_request req;
    size_t came = 4;
    size_t cap = 0;

    (void)state;
    peak = in_use;
    kh_feed_server(server, (const uint8_t *)"\x00\x01\x00\x00", 4, SIZE_MAX);
    assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
    assert_non_null(kh_server_read_buffer(server, &cap));
    assert_true(peak <= in_use + 16);
    while (came < KH_FRAME_MAX) {
        size_t before = in_use;
        size_t part = KH_FRAME_MAX + 4 - came < 1000 ? KH_FRAME_MAX + 4 - came : 1000;

        peak = in_use;
        assert_int_equal(kh_feed_server(server, zeros, part, SIZE_MAX), part);
        came += part;
        assert_true(in_use <= before + came + 4096);
        assert_true(in_use < 4 * came + 32 * 1024);
        if (came < KH_FRAME_MAX + 4) {
            assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
        }
    }
    assert_int_equal(kh_server_next(server, &req), KH_E_MALFORMED);
    kh_server_free(server);
    assert_int_equal(in_use, 0);
}

static void test_credit(void **state)
{
    kh_server *server = kh_ready_server(3);
    kh_request req;

    (void)state;
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t id = 0; id < 3; id++) {
            feed_ping(server, id);
            assert_int_equal(kh_server_next(server, &req), KH_OK);
        }
        assert_int_equal(kh_server_outstanding(server), 3);
        for (uint32_t id = 3; id > 0; id--) {
            assert_int_equal(answer_ping(server, id - 1), KH_OK);
        }
        drop_output(server);
    }
    for (uint32_t id = 0; id < 4; id++) {
        feed_ping(server, id);
        assert_int_equal(kh_server_next(server, &req), id < 3 ? KH_OK : KH_E_OVERLOADED);
    }
    assert_dead(server, KH_E_OVERLOADED);
}

static void test_duplicate_id(void **state)
{
    kh_server *server = kh_ready_server(0);
    kh_request req;

    (void)state;
    feed_ping(server, 77);
    feed_ping(server, 77);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_int_equal(kh_server_next(server, &req), KH_E_INVALID);
    assert_dead(server, KH_E_INVALID);
}

/* A million pings with ids of all kinds, a thousand outstanding: steady memory, no allocation once it is
 * warm. */
static void test_million_pings(void **state)
{
    static const uint32_t strides[] = {1, 1u << 16, 0x9e3779b1u, 1u << 20};
    kh_server *server = kh_ready_server(1024);
    kh_request req;
    unsigned long warm = 0;

    (void)state;
    for (uint32_t i = 0; i < 1000000; i++) {
        uint32_t stride = strides[(i >> 10) % 4];
        uint32_t id = i * stride;

        feed_ping(server, id);
        assert_int_equal(kh_server_next(server, &req), KH_OK);
        assert_int_equal(req.id, id);
        if ((i & 1023) == 1023) {
            for (uint32_t back = 0; back < 1024; back++) {
                assert_int_equal(answer_ping(server, (i - back) * stride), KH_OK);
            }
            assert_int_equal(kh_server_outstanding(server), 0);
            drop_output(server);
        }
        if (i == 2048) {
            warm = allocations;
        }
    }
    assert_int_equal(allocations, warm);
    kh_server_free(server);
}

/* A peer that asks and never reads: the server stops reading, and what it holds is bounded. */
static void test_peer_that_never_reads(void **state)
{
    kh_server *server = kh_ready_server(1024);
    kh_request req;
    uint32_t id = 0;

    (void)state;
    peak = in_use;
    while (kh_server_wants_read(server)) {
        feed_ping(server, ++id);
        assert_int_equal(kh_server_next(server, &req), KH_OK);
        assert_int_equal(answer_ping(server, id), KH_OK);
        assert_true(id < 100000);
    }
    assert_true(kh_server_output(server).len < 300 * 1024);
    assert_true(peak < 1024 * 1024);
    drop_output(server);
    assert_true(kh_server_wants_read(server));
    kh_server_free(server);
}

/* Huge replies: a pipeline of `status` is taken up only as far as the replies fit below the mark. */
static void test_huge_replies_stay_below_the_mark(void **state)
{
    static uint8_t document[KH_FRAME_MAX - 64];
    kh_server *server = kh_ready_server(1024);
    kh_request ask = {.op = KH_OP_STATUS, .deadline_ms = 1000};
    kh_reply reply = {.op = KH_OP_STATUS, .data = {document, sizeof(document)}};
    kh_request req;
    uint32_t answered = 0;
    size_t most = 0;

    (void)state;
    memset(document, ' ', sizeof(document));
    for (ask.id = 0; ask.id < 200; ask.id++) {
        feed(server, &ask);
    }
    while (answered < 200) {
        while (kh_server_next(server, &req) == KH_OK) {
            assert_int_equal(req.id, answered);
            reply.id = req.id;
            assert_int_equal(kh_server_reply(server, &reply), KH_OK);
            answered++;
        }
        most = kh_server_output(server).len > most ? kh_server_output(server).len : most;
        if (answered < 200) {
            assert_false(kh_server_wants_read(server));
        }
        kh_server_sent(server, 70000);
    }
    assert_true(most <= 256 * 1024);
    drop_output(server);
    assert_true(kh_server_wants_read(server));

    /* Outstanding but not answered counts too. */
    for (ask.id = 0; ask.id < 10; ask.id++) {
        feed(server, &ask);
    }
    for (answered = 0; kh_server_next(server, &req) == KH_OK; answered++) {
    }
    assert_int_equal(answered, 4);
    kh_server_free(server);
}

static void test_reply_that_cannot_be_sent(void **state)
{
    static uint8_t document[KH_FRAME_MAX + 1];
    static uint8_t words[300];
    kh_server *server = kh_ready_server(0);
    kh_request ask = {.op = KH_OP_STATUS, .id = 5, .deadline_ms = 1000};
    kh_reply reply = {.op = KH_OP_STATUS, .id = 5, .data = {document, sizeof(document)}};
    kh_request req;

    (void)state;
    memset(document, ' ', sizeof(document));
    feed(server, &ask);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_int_equal(kh_server_reply(server, &reply), KH_OK);
    assert_int_equal(only_reply(server).status, KH_E_TOO_LARGE);
    assert_int_equal(only_reply(server).id, 5);
    assert_int_equal(kh_server_outstanding(server), 0);
    drop_output(server);

    /* A detail is cut, and not in the middle of a character. */
    memset(words, 'x', sizeof(words));
    memcpy(words + 254, "\xc3\xa4", 2);
    feed(server, &ask);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    reply =
        (kh_reply){.op = KH_OP_STATUS, .id = 5, .status = KH_E_INTERNAL, .detail = {words, sizeof(words)}};
    assert_int_equal(kh_server_reply(server, &reply), KH_OK);
    assert_int_equal(only_reply(server).detail.len, 254);
    drop_output(server);

    /* What the caller filled in wrongly is its bug, and still a reply. */
    feed(server, &ask);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    reply = (kh_reply){.op = KH_OP_STATUS, .id = 5, .status = KH_AGAIN};
    assert_int_equal(kh_server_reply(server, &reply), KH_OK);
    assert_int_equal(only_reply(server).status, KH_E_INTERNAL);
    kh_server_free(server);
}

static void test_refused_requests_are_answered(void **state)
{
    kh_server *server = kh_ready_server(0);
    kh_request req;

    (void)state;
    kh_feed_server(server, (const uint8_t *)"\0\0\0\x04\x93\x63\x07\x05", 8, SIZE_MAX);
    feed_ping(server, 8);
    assert_int_equal(kh_server_next(server, &req), KH_E_UNSUPPORTED);
    assert_int_equal(only_reply(server).op, 0x63);
    assert_int_equal(only_reply(server).id, 7);
    assert_int_equal(only_reply(server).status, KH_E_UNSUPPORTED);
    drop_output(server);
    assert_int_equal(kh_server_next(server, &req), KH_OK); /* others are not concerned */
    assert_int_equal(req.id, 8);
    kh_feed_server(server, (const uint8_t *)"\0\0\0\x06\x93\x02\x09\xcd\xff\xff", 10, SIZE_MAX);
    assert_int_equal(kh_server_next(server, &req), KH_E_TOO_LARGE);
    assert_int_equal(only_reply(server).id, 9);
    drop_output(server);
    assert_int_equal(kh_server_outstanding(server), 1);
    /* The same id as an outstanding one is not answered but ends it: the reply would be ambiguous. */
    kh_feed_server(server, (const uint8_t *)"\0\0\0\x04\x93\x63\x08\x05", 8, SIZE_MAX);
    assert_int_equal(kh_server_next(server, &req), KH_E_INVALID);
    assert_dead(server, KH_E_INVALID);
}

static void test_cancel(void **state)
{
    kh_server *server = kh_ready_server(0);
    kh_request cancel = {.op = KH_OP_CANCEL, .id = 5};
    kh_request req;

    (void)state;
    for (int i = 0; i < 300; i++) {
        feed(server, &cancel); /* for nothing: passed over without recursion */
    }
    assert_int_equal(kh_server_next(server, &req), KH_AGAIN);
    feed_ping(server, 5);
    feed(server, &cancel);
    feed(server, &cancel);
    feed_ping(server, 6);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_int_equal(req.op, KH_OP_CANCEL);
    assert_int_equal(req.id, 5);
    assert_int_equal(kh_server_next(server, &req), KH_OK); /* the second one was passed over */
    assert_int_equal(req.op, KH_OP_PING);
    assert_int_equal(kh_server_outstanding(server), 2); /* a cancelled request is still to be answered */
    assert_int_equal(answer_ping(server, 5), KH_OK);
    kh_server_free(server);
}

/* A decrypted secret does not stay in the buffer after it was written. */
static void test_secrets_are_wiped(void **state)
{
    static const uint8_t secret[48] = "a premaster secret that must not stay in memory";
    kh_server *server = kh_ready_server(0);
    kh_request ask = {
        .op = KH_OP_TLS_RSA_DECRYPT, .id = 1, .deadline_ms = 9, .key = {secret, 1}, .data = {secret, 1}};
    kh_reply reply = {.op = KH_OP_TLS_RSA_DECRYPT, .id = 1, .data = {secret, sizeof(secret)}};
    kh_request req;
    kh_bytes output;

    (void)state;
    feed(server, &ask);
    assert_int_equal(kh_server_next(server, &req), KH_OK);
    assert_int_equal(kh_server_reply(server, &reply), KH_OK);
    output = kh_server_output(server);
    assert_non_null(memmem(output.data, output.len, secret, sizeof(secret)));
    kh_server_sent(server, output.len);
    assert_null(memmem(output.data, output.len, secret, sizeof(secret)));
    kh_server_free(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_split_at_each_byte),
        cmocka_unit_test(test_handshake_split_at_each_byte),
        cmocka_unit_test(test_each_byte_flipped),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_caller_breaks_order),
        cmocka_unit_test(test_hello_is_checked),
        cmocka_unit_test(test_refused_auth_ends_it),
        cmocka_unit_test(test_frame_caps),
        cmocka_unit_test(test_memory_follows_what_came),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_duplicate_id),
        cmocka_unit_test(test_million_pings),
        cmocka_unit_test(test_peer_that_never_reads),
        cmocka_unit_test(test_huge_replies_stay_below_the_mark),
        cmocka_unit_test(test_reply_that_cannot_be_sent),
        cmocka_unit_test(test_refused_requests_are_answered),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_secrets_are_wiped),
    };

    return cmocka_run_group_tests_name("M10 server", tests, NULL, NULL);
}

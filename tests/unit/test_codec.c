/* SPDX-License-Identifier: Apache-2.0 */
/* The codec: golden vectors and everything that is nearly one (M10: no frame can hurt). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "protocol_vectors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Allocation is forbidden to the codec: the linker leads these here. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
static unsigned long allocations;

void *__wrap_malloc(size_t size)
{
    allocations++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    allocations++;
    return __real_calloc(count, size);
}

/* Decodes a copy of exactly `len` bytes as request or reply, so that a sanitizer sees the first byte read
 * past it. */
static kh_result decode_exact(bool is_request, const uint8_t *payload, size_t len)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);
    unsigned long before = allocations;
    kh_result result = KH_OK;
    kh_request req;
    kh_reply reply;
    kh_key_entry entry;

    assert_non_null(copy);
    before = allocations;
    if (len > 0) {
        memcpy(copy, payload, len);
    }
    if (is_request) {
        result = kh_request_decode(copy, len, &req);
    } else {
        result = kh_reply_decode(copy, len, &reply);
        for (uint32_t i = 0; result == KH_OK && i < reply.entry_count; i++) {
            assert_int_equal(kh_reply_entry(&reply, i, &entry), KH_OK);
        }
    }
    assert_int_equal(allocations, before);
    free(copy);
    return result;
}

/* What was accepted encodes to the same bytes again: every message has one encoding. */
static void assert_canonical(bool is_request, const uint8_t *payload, size_t len)
{
    static kh_key_entry entries[KH_LIST_MAX];
    uint8_t again[KH_VECTOR_MAX];
    size_t again_len = 0;
    kh_request req;
    kh_reply reply;

    if (is_request) {
        assert_int_equal(kh_request_decode(payload, len, &req), KH_OK);
        assert_int_equal(kh_request_encode(&req, again, sizeof(again), &again_len), KH_OK);
    } else {
        assert_int_equal(kh_reply_decode(payload, len, &reply), KH_OK);
        for (uint32_t i = 0; i < reply.entry_count; i++) {
            assert_int_equal(kh_reply_entry(&reply, i, &entries[i]), KH_OK);
        }
        reply.entries = entries;
        assert_int_equal(kh_reply_encode(&reply, again, sizeof(again), &again_len), KH_OK);
    }
    assert_int_equal(again_len, len + KH_FRAME_PREFIX);
    assert_memory_equal(again + KH_FRAME_PREFIX, payload, len);
}

static void test_vectors_encode_and_decode(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    assert_true(count > 60);
    for (size_t i = 0; i < count; i++) {
        uint8_t golden[KH_VECTOR_MAX];
        uint8_t encoded[KH_VECTOR_MAX];
        size_t golden_len = kh_vector_read(vectors[i].name, golden);
        size_t len = 0;
        kh_request req;
        kh_reply reply;

        assert_int_equal(kh_vector_encode(&vectors[i], encoded, sizeof(encoded), &len), KH_OK);
        assert_int_equal(len, golden_len);
        assert_memory_equal(encoded, golden, len);
        if (vectors[i].is_request) {
            assert_int_equal(kh_request_decode(golden + 4, len - 4, &req), KH_OK);
            kh_assert_same_request(&req, &vectors[i].req);
        } else {
            assert_int_equal(kh_reply_decode(golden + 4, len - 4, &reply), KH_OK);
            kh_assert_same_reply(&reply, &vectors[i].reply);
        }
    }
}

static void test_encode_into_every_smaller_buffer(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t golden[KH_VECTOR_MAX];
        size_t golden_len = kh_vector_read(vectors[i].name, golden);

        for (size_t cap = 0; cap < golden_len; cap++) {
            uint8_t *buf = malloc(cap > 0 ? cap : 1);
            size_t len = 1;

            assert_int_equal(kh_vector_encode(&vectors[i], buf, cap, &len), KH_E_TOO_LARGE);
            assert_int_equal(len, 0);
            free(buf);
        }
    }
}

static void test_truncated_at_each_length(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t golden[KH_VECTOR_MAX + 1];
        size_t len = kh_vector_read(vectors[i].name, golden) - KH_FRAME_PREFIX;

        for (size_t cut = 0; cut < len; cut++) {
            assert_int_equal(decode_exact(vectors[i].is_request, golden + 4, cut), KH_E_MALFORMED);
        }
        golden[4 + len] = 0;
        assert_int_equal(decode_exact(vectors[i].is_request, golden + 4, len + 1), KH_E_MALFORMED);
    }
}

/* Each byte set to each other value: refused by name, or a message of its own with one encoding. */
static void test_each_byte_changed(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t golden[KH_VECTOR_MAX];
        bool is_request = vectors[i].is_request;
        size_t len = kh_vector_read(vectors[i].name, golden) - KH_FRAME_PREFIX;

        for (size_t at = 0; at < len; at++) {
            uint8_t kept = golden[4 + at];

            for (unsigned value = 0; value < 256; value++) {
                kh_result result = KH_OK;

                golden[4 + at] = (uint8_t)value;
                result = decode_exact(is_request, golden + 4, len);
                if (result == KH_OK) {
                    assert_canonical(is_request, golden + 4, len);
                } else {
                    assert_true(result == KH_E_MALFORMED || result == KH_E_UNSUPPORTED ||
                                result == KH_E_TOO_LARGE);
                }
            }
            golden[4 + at] = kept;
        }
    }
}

static void assert_refused(const void *payload, size_t len)
{
    assert_int_equal(decode_exact(true, payload, len), KH_E_MALFORMED);
    assert_int_equal(decode_exact(false, payload, len), KH_E_MALFORMED);
}

#define REFUSED(bytes) assert_refused(bytes, sizeof(bytes) - 1)

static void test_announced_numbers_cost_nothing(void **state)
{
    (void)state;
    REFUSED("\xdd\xff\xff\xff\xff");             /* array of 2^32-1 */
    REFUSED("\xdc\xff\xff");                     /* array of 65535 */
    REFUSED("\xdf\xff\xff\xff\xff");             /* map */
    REFUSED("\xdb\xff\xff\xff\xff");             /* str */
    REFUSED("\xc6\xff\xff\xff\xff");             /* bin */
    REFUSED("\xc9\xff\xff\xff\xff\x01");         /* ext: length plus type byte wraps to zero */
    REFUSED("\x93\x04\x01\xdd\xff\xff\xff\xff"); /* the same as elements */
    REFUSED("\x93\x04\x01\xdf\xff\xff\xff\xff");
    REFUSED("\x93\x04\x01\xdb\xff\xff\xff\xff");
    REFUSED("\x93\x04\x01\xc6\xff\xff\xff\xff");
    REFUSED("\x93\x04\x01\xc9\xff\xff\xff\xff\x01");
    REFUSED("\x93\x08\x01\xc9\xff\xff\xff\xff\x01\x00\x00\x00");
    REFUSED("\x85\x08\x01\x00\xdd\xff\xff\xff\xff\xc2"); /* a list of so many entries */
    REFUSED("\x95\x08\x01\x00\xdd\xff\xff\xff\xff\xc2");
    REFUSED("\x95\x08\x01\x00\xdc\xff\xff\xc2");
}

static void test_nesting_is_bounded(void **state)
{
    uint8_t bomb[4096];

    (void)state;
    memset(bomb, 0x91, sizeof(bomb));
    for (size_t len = 1; len < sizeof(bomb); len += len < 16 ? 1 : 97) {
        assert_refused(bomb, len);
    }
    bomb[sizeof(bomb) - 1] = 0x90;
    assert_refused(bomb, sizeof(bomb));
    /* Four deep is well-formed, so an unknown operation with it can be answered; five deep is not. */
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x94\x63\x01\x05\x91\x91\x91\x01", 8),
                     KH_E_UNSUPPORTED);
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x94\x63\x01\x05\x91\x91\x91\x91\x01", 9),
                     KH_E_MALFORMED);
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x94\x63\x01\x05\x91\x91\x91\x90", 8),
                     KH_E_MALFORMED);
}

static void test_types_are_exact(void **state)
{
    (void)state;
    REFUSED("");
    REFUSED("\xc0");                 /* nil */
    REFUSED("\x01");                 /* a number alone */
    REFUSED("\xa1x");                /* a string alone */
    REFUSED("\x90");                 /* an empty array */
    REFUSED("\xc1");                 /* never used */
    REFUSED("\x93\x02\x01\xff");     /* negative */
    REFUSED("\x93\x02\x01\xd0\x05"); /* signed */
    REFUSED("\x93\x02\x01\xd1\x00\x05");
    REFUSED("\x93\x02\x01\xd2\x00\x00\x00\x05");
    REFUSED("\x93\x02\x01\xd3\x00\x00\x00\x00\x00\x00\x00\x05");
    REFUSED("\x93\x02\x01\xca\x40\xa0\x00\x00"); /* float */
    REFUSED("\x93\x02\x01\xcb\x40\x14\x00\x00\x00\x00\x00\x00");
    REFUSED("\x93\x02\x01\xc0");
    REFUSED("\x93\x02\x01\xc3");
    REFUSED("\x93\x02\x01\x81\x01\x01"); /* map */
    REFUSED("\x93\x02\x01\xd4\x00\x00"); /* ext */
    REFUSED("\x93\x02\x01\xa1\x35");
    REFUSED("\x93\xc4\x01\x02\x01\x05");
    REFUSED("\x93\x02\xcf\x00\x00\x00\x01\x00\x00\x00\x00\x05"); /* an id beyond 32 bits */
    REFUSED("\x93\xcf\x00\x00\x00\x01\x00\x00\x00\x02\x01\x05"); /* an operation beyond 32 bits */
    REFUSED("\x93\x02\x01\x01\x00");                             /* trailing byte */
}

static void test_only_the_shortest_encoding(void **state)
{
    (void)state;
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x93\x02\x01\x05", 4), KH_OK);
    REFUSED("\xdc\x00\x03\x02\x01\x05");         /* array 16 */
    REFUSED("\xdd\x00\x00\x00\x03\x02\x01\x05"); /* array 32 */
    REFUSED("\x93\xcc\x02\x01\x05");             /* uint 8 */
    REFUSED("\x93\x02\xcd\x00\x01\x05");         /* uint 16 */
    REFUSED("\x93\x02\x01\xce\x00\x00\x00\x05"); /* uint 32 */
    REFUSED("\x93\x02\x01\xcf\x00\x00\x00\x00\x00\x00\x00\x05");
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x94\x07\x01\x05\xa1x", 6), KH_OK);
    REFUSED("\x94\x07\x01\x05\xd9\x01x"); /* str 8 */
    REFUSED("\x94\x07\x01\x05\xda\x00\x01x");
    REFUSED("\x94\x07\x01\x05\xdb\x00\x00\x00\x01x");
    REFUSED("\x92\x01\xc5\x00\x00"); /* bin 16 */
    REFUSED("\x92\x01\xc6\x00\x00\x00\x00");
}

static void test_arity_is_exact(void **state)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        uint8_t golden[KH_VECTOR_MAX + 1];
        size_t len = kh_vector_read(vectors[i].name, golden) - KH_FRAME_PREFIX;

        golden[4]++; /* one more element, and it is there */
        golden[4 + len] = 0;
        assert_int_equal(decode_exact(vectors[i].is_request, golden + 4, len + 1), KH_E_MALFORMED);
    }
}

static void test_unknown_operation_is_named(void **state)
{
    static const uint8_t unknown[] = "\x94\xcd\x01\x00\x2a\x05\xa3xyz";
    kh_request req;
    kh_reply reply;

    (void)state;
    assert_int_equal(kh_request_decode(unknown, sizeof(unknown) - 1, &req), KH_E_UNSUPPORTED);
    assert_int_equal(req.op, 256);
    assert_int_equal(req.id, 42);
    assert_string_equal(kh_op_name(req.op), "unknown");
    /* Without id and deadline it cannot be answered. */
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x92\x63\x01", 3), KH_E_MALFORMED);
    assert_int_equal(decode_exact(true, (const uint8_t *)"\x93\x63\xa1x\x01", 5), KH_E_MALFORMED);
    /* An error reply to it is a reply like any other; a success is not known. */
    assert_int_equal(kh_reply_decode((const uint8_t *)"\x95\x63\x01\x03\x00\xa0", 6, &reply), KH_OK);
    assert_int_equal(reply.status, KH_E_UNSUPPORTED);
    assert_int_equal(kh_reply_decode((const uint8_t *)"\x93\x63\x01\x00", 4, &reply), KH_E_UNSUPPORTED);
    assert_int_equal(reply.id, 1);
}

static uint8_t big[KH_FRAME_MAX];

/* Encodes, without the encoder's limits, [4, 9, 5, key, 0x403, 0, data]. */
static size_t put_sign(uint8_t *out, size_t key_len, size_t data_len)
{
    size_t len = 0;

    memcpy(out, "\x97\x04\x09\x05\xd9", 5);
    out[5] = (uint8_t)key_len;
    memset(out + 6, 'k', key_len);
    len = 6 + key_len;
    memcpy(out + len, "\xcd\x04\x03\x00\xc5", 5);
    out[len + 5] = (uint8_t)(data_len >> 8);
    out[len + 6] = (uint8_t)data_len;
    memset(out + len + 7, 0, data_len);
    return len + 7 + data_len;
}

static void test_limits_are_named(void **state)
{
    kh_request req;

    (void)state;
    assert_int_equal(kh_request_decode(big, put_sign(big, 138, KH_MESSAGE_MAX), &req), KH_OK);
    assert_int_equal(kh_request_decode(big, put_sign(big, 139, 300), &req), KH_E_TOO_LARGE);
    assert_int_equal(req.op, KH_OP_SIGN);
    assert_int_equal(req.id, 9);
    assert_int_equal(kh_request_decode(big, put_sign(big, 100, KH_MESSAGE_MAX + 1), &req), KH_E_TOO_LARGE);
    assert_int_equal(req.id, 9);
    /* deadline 60000, 60001, 0 */
    assert_int_equal(kh_request_decode((const uint8_t *)"\x93\x02\x01\xcd\xea\x60", 6, &req), KH_OK);
    assert_int_equal(kh_request_decode((const uint8_t *)"\x93\x02\x01\xcd\xea\x61", 6, &req), KH_E_TOO_LARGE);
    assert_int_equal(kh_request_decode((const uint8_t *)"\x93\x02\x01\x00", 4, &req), KH_E_MALFORMED);
    /* list: most 64, 65, 0; an empty key; an id of 31 bytes */
    assert_int_equal(kh_request_decode((const uint8_t *)"\x96\x08\x01\x05\xa1*\xa0\x40", 8, &req), KH_OK);
    assert_int_equal(kh_request_decode((const uint8_t *)"\x96\x08\x01\x05\xa1*\xa0\x41", 8, &req),
                     KH_E_TOO_LARGE);
    assert_int_equal(kh_request_decode((const uint8_t *)"\x96\x08\x01\x05\xa1*\xa0\x00", 8, &req),
                     KH_E_MALFORMED);
    assert_int_equal(kh_request_decode((const uint8_t *)"\x94\x07\x01\x05\xa0", 5, &req), KH_E_MALFORMED);
    assert_int_equal(kh_request_decode((const uint8_t *)"\x94\x07\x01\x05\xc4\x01x", 7, &req),
                     KH_E_MALFORMED);
    /* Too large and malformed at once is malformed. */
    assert_int_equal(kh_request_decode((const uint8_t *)"\x94\x07\x01\xcd\xff\xff\xa0", 7, &req),
                     KH_E_MALFORMED);
}

static void test_encoder_checks_fields(void **state)
{
    static const uint8_t bytes[KH_MESSAGE_MAX + 1];
    uint8_t buf[KH_FRAME_MAX];
    size_t len = 1;
    kh_request sign = {.op = KH_OP_SIGN, .id = 1, .deadline_ms = 5, .key = {bytes, 1}, .data = {bytes, 1}};
    kh_request req = sign;
    kh_reply reply = {.op = KH_OP_SIGN, .data = {bytes, KH_SIGNATURE_MAX}};

    (void)state;
    req.deadline_ms = 0;
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_E_INVALID);
    assert_int_equal(len, 0);
    req.deadline_ms = KH_DEADLINE_MAX_MS + 1;
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_E_TOO_LARGE);
    req = sign;
    req.data.len = KH_MESSAGE_MAX + 1;
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_E_TOO_LARGE);
    req = sign;
    req.key.len = 0;
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_E_INVALID);
    req.key_is_id = true;
    req.key.len = 31;
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_E_INVALID);
    req.op = (kh_op)99;
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_E_INVALID);
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_OK);
    reply.data.len++;
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_E_TOO_LARGE);
    reply.status = KH_AGAIN;
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_E_INVALID);
    reply.status = KH_E_INTERNAL;
    reply.op = KH_OP_CANCEL;
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_E_INVALID);
    reply.op = KH_OP_SIGN;
    reply.detail = (kh_bytes){bytes, 256};
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_E_TOO_LARGE);
}

/* The largest messages fit into the smallest cap that a configuration may set. */
static void test_largest_messages_fit(void **state)
{
    static uint8_t bytes[KH_MESSAGE_MAX];
    static kh_key_entry entries[KH_LIST_MAX];
    uint8_t buf[KH_FRAME_MIN_CAP];
    size_t len = 0;
    kh_request req = {
        .op = KH_OP_DECRYPT,
        .id = UINT32_MAX,
        .deadline_ms = KH_DEADLINE_MAX_MS,
        .key = {bytes, KH_NAME_MAX + 11},
        .arg = UINT32_MAX,
        .label = {bytes, 1024},
        .data = {bytes, KH_MESSAGE_MAX},
    };
    kh_reply reply = {.op = KH_OP_LIST, .id = UINT32_MAX, .entries = entries, .entry_count = KH_LIST_MAX};

    (void)state;
    memset(bytes, 'n', sizeof(bytes));
    for (size_t i = 0; i < KH_LIST_MAX; i++) {
        entries[i] = (kh_key_entry){.name = {bytes, KH_NAME_MAX},
                                    .version = UINT32_MAX,
                                    .key_type = UINT32_MAX,
                                    .bits = UINT32_MAX,
                                    .usage = UINT32_MAX,
                                    .state = UINT32_MAX,
                                    .created = UINT64_MAX,
                                    .id = {bytes, KH_KEY_ID_LEN}};
    }
    assert_int_equal(kh_request_encode(&req, buf, sizeof(buf), &len), KH_OK);
    assert_int_equal(kh_request_decode(buf + 4, len - 4, &req), KH_OK);
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_OK);
    assert_int_equal(decode_exact(false, buf + 4, len - 4), KH_OK);
    assert_int_equal(kh_reply_decode(buf + 4, len - 4, &reply), KH_OK);
    assert_int_equal(reply.entry_count, KH_LIST_MAX);
    assert_int_equal(kh_reply_entry(&reply, KH_LIST_MAX, &entries[0]), KH_E_INVALID);
    reply = (kh_reply){.op = KH_OP_LIST, .entries = entries, .entry_count = KH_LIST_MAX + 1};
    assert_int_equal(kh_reply_encode(&reply, buf, sizeof(buf), &len), KH_E_TOO_LARGE);
}

static void test_operation_names(void **state)
{
    (void)state;
    assert_string_equal(kh_op_name(KH_OP_TLS_RSA_DECRYPT), "tls-rsa-decrypt");
    assert_string_equal(kh_op_name(12), "unknown");
    assert_string_equal(kh_op_name(-1), "unknown");
    assert_int_equal(kh_op_parse("set-state"), KH_OP_SET_STATE);
    assert_int_equal(kh_op_parse("hello"), KH_OP_HELLO);
    assert_int_equal(kh_op_parse("nothing"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors_encode_and_decode),
        cmocka_unit_test(test_encode_into_every_smaller_buffer),
        cmocka_unit_test(test_truncated_at_each_length),
        cmocka_unit_test(test_each_byte_changed),
        cmocka_unit_test(test_announced_numbers_cost_nothing),
        cmocka_unit_test(test_nesting_is_bounded),
        cmocka_unit_test(test_types_are_exact),
        cmocka_unit_test(test_only_the_shortest_encoding),
        cmocka_unit_test(test_arity_is_exact),
        cmocka_unit_test(test_unknown_operation_is_named),
        cmocka_unit_test(test_limits_are_named),
        cmocka_unit_test(test_encoder_checks_fields),
        cmocka_unit_test(test_largest_messages_fit),
        cmocka_unit_test(test_operation_names),
    };

    return cmocka_run_group_tests_name("M10 codec", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The golden vectors (protocol_vectors.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "protocol_vectors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const uint8_t kh_vector_counting[512] = {
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
    0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f,
    0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
    0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f,
    0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x5b, 0x5c, 0x5d, 0x5e, 0x5f,
    0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f,
    0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x7b, 0x7c, 0x7d, 0x7e, 0x7f,
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f,
    0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f,
    0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
    0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf,
    0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf,
    0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf,
    0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee, 0xef,
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
    0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f,
    0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
    0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f,
    0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x5b, 0x5c, 0x5d, 0x5e, 0x5f,
    0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f,
    0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x7b, 0x7c, 0x7d, 0x7e, 0x7f,
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f,
    0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f,
    0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
    0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf,
    0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf,
    0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf,
    0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee, 0xef,
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
};

const uint8_t kh_vector_proof_client[KH_PROOF_LEN] = {
    0xfb, 0x1d, 0x4a, 0x6d, 0x4c, 0x21, 0xef, 0x94, 0x0d, 0xa7, 0xea, 0xe1, 0xbc, 0xbf, 0x29, 0x7c,
    0x35, 0x4d, 0x31, 0x66, 0x4c, 0x6b, 0xc6, 0xdf, 0x84, 0xde, 0x2e, 0x36, 0xac, 0xfd, 0x84, 0xdc,
};

const uint8_t kh_vector_proof_agent[KH_PROOF_LEN] = {
    0xfc, 0xc2, 0x4c, 0x4f, 0xe9, 0x29, 0x51, 0xf5, 0x70, 0x8b, 0x52, 0x5d, 0x04, 0x69, 0x8b, 0x09,
    0xf2, 0x6f, 0x0f, 0xf8, 0x0c, 0x6a, 0x0b, 0x2a, 0xb3, 0xdf, 0xfd, 0x13, 0x25, 0xc3, 0x18, 0x78,
};

/* An Ed25519 key whose public bytes are 10 11 … 2f, and its id. */
static const uint8_t spki[] = {
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00, 0x10, 0x11, 0x12, 0x13,
    0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23,
    0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f,
};
static const uint8_t spki_id[] = {
    0x41, 0x26, 0x61, 0xde, 0x41, 0x0c, 0x25, 0xb9, 0x4f, 0xac, 0x0c, 0x07, 0x6f, 0x87, 0x87, 0xcb,
    0xc6, 0xba, 0x0f, 0x58, 0x7b, 0xe6, 0x4e, 0xc7, 0xa6, 0xbc, 0x88, 0x8e, 0x43, 0x22, 0x1c, 0xcf,
};

#define TEXT(text) {(const uint8_t *)(text), sizeof(text) - 1}
#define RUN(first, count) {&kh_vector_counting[first], count}
#define PROOF(whose) {kh_vector_proof_##whose, KH_PROOF_LEN}
#define NONE {NULL, 0}
#define ENTRY(key_name, key_version, key_state, key_id, key_spki)                                           \
    {.name = TEXT(key_name), .version = key_version, .key_type = KH_KEY_ED25519, .bits = 256,               \
     .usage = KH_USAGE_TLS_SERVER | KH_USAGE_SIGN, .state = key_state, .created = 1700000000,               \
     .id = key_id, .spki = key_spki}
#define PLACED(in_tier, in_place, from, until)                                                              \
    {.name = TEXT("site"), .version = 7, .key_type = KH_KEY_ED25519, .bits = 256,                           \
     .usage = KH_USAGE_TLS_SERVER | KH_USAGE_SIGN, .state = KH_STATE_ENABLED, .created = 1700000000,        \
     .id = SPKI_ID, .spki = SPKI, .tier = in_tier, .place = in_place, .not_before = from, .expires = until}
#define SPKI {spki, sizeof(spki)}
#define SPKI_ID {spki_id, sizeof(spki_id)}

static const kh_key_entry list_entries[] = {
    ENTRY("site-c", 1, KH_STATE_ENABLED, SPKI_ID, NONE),
    ENTRY("site-d", 2147483647, KH_STATE_DELETED, RUN(0xa0, 32), NONE),
};

#define Q(file, operation, ...) {.name = file, .is_request = true, .req = {.op = operation, __VA_ARGS__}}
#define P(file, operation, ...) {.name = file, .reply = {.op = operation, __VA_ARGS__}}
#define HELLO .version_min = 1, .version_max = 1, .max_frame = 65536, .client_name = TEXT("example"), .nonce = RUN(0, 32)

static const kh_vector messages[] = {
    Q("request-hello", KH_OP_HELLO, HELLO, .identity = TEXT("edge-1")),
    Q("request-hello-uid", KH_OP_HELLO, HELLO),
    Q("request-auth", KH_OP_AUTH, .proof = PROOF(client)),
    Q("request-auth-uid", KH_OP_AUTH, .proof = NONE),
    Q("request-ping", KH_OP_PING, .id = 1, .deadline_ms = 1000),
    Q("request-cancel", KH_OP_CANCEL, .id = 65541),
    Q("request-sign", KH_OP_SIGN, .id = 2, .deadline_ms = 1000, .key = TEXT("site"), .scheme = KH_ECDSA_SHA256,
      .data = TEXT("abc")),
    Q("request-sign-by-id", KH_OP_SIGN, .id = 200, .deadline_ms = 60000, .key_is_id = true, .key = RUN(0xa0, 32),
      .scheme = KH_RSA_PSS_RSAE_SHA256, .data = RUN(0, 300)),
    Q("request-sign-prehashed", KH_OP_SIGN, .id = 70000, .deadline_ms = 5000, .key = TEXT("site.example-1/7"),
      .scheme = KH_ECDSA_SHA384, .flags = KH_SIGN_PREHASHED, .data = RUN(0x80, 48)),
    Q("request-tls-rsa-decrypt", KH_OP_TLS_RSA_DECRYPT, .id = 3, .deadline_ms = 1000, .key = TEXT("site"),
      .arg = 0x0303, .data = RUN(1, 256)),
    Q("request-decrypt", KH_OP_DECRYPT, .id = 4, .deadline_ms = 1000, .key = TEXT("mail"),
      .arg = KH_PADDING_OAEP_SHA256, .label = TEXT("L"), .data = RUN(1, 256)),
    Q("request-public-key", KH_OP_PUBLIC_KEY, .id = 5, .deadline_ms = 1000, .key_is_id = true, .key = RUN(0xa0, 32)),
    Q("request-list", KH_OP_LIST, .id = 6, .deadline_ms = 1000, .name = TEXT("site-*"), .after = TEXT("site-b/3"),
      .arg = 64),
    Q("request-status", KH_OP_STATUS, .id = 7, .deadline_ms = 1000),
    Q("request-import-key", KH_OP_IMPORT_KEY, .id = 8, .deadline_ms = 1000),
    Q("request-create", KH_OP_CREATE, .id = 9, .deadline_ms = 30000, .name = TEXT("site"), .key_type = KH_KEY_RSA,
      .bits = 3072, .usage = KH_USAGE_TLS_SERVER, .flags = KH_CREATE_NEW_VERSION),
    Q("request-import", KH_OP_IMPORT, .id = 10, .deadline_ms = 30000, .name = TEXT("site"),
      .usage = KH_USAGE_TLS_SERVER, .flags = KH_IMPORT_ALLOW_DUPLICATE, .data = RUN(0xc0, 64)),
    Q("request-set-state", KH_OP_SET_STATE, .id = 11, .deadline_ms = 1000, .key = TEXT("site/7"),
      .arg = KH_STATE_DISABLED),
    Q("request-describe", KH_OP_DESCRIBE, .id = 12, .deadline_ms = 1000, .key = TEXT("site/7")),
    Q("request-create-placed", KH_OP_CREATE_PLACED, .id = 13, .deadline_ms = 30000, .name = TEXT("site"),
      .key_type = KH_KEY_P256, .bits = 256, .usage = KH_USAGE_TLS_SERVER, .tier = KH_TIER_HSM, .place = TEXT("hsm-a"),
      .not_before = 1700000000, .expires = 1900000000),
    Q("request-import-placed", KH_OP_IMPORT_PLACED, .id = 14, .deadline_ms = 30000, .name = TEXT("site"),
      .usage = KH_USAGE_TLS_SERVER, .tier = KH_TIER_HSM_POOL, .expires = UINT64_C(1) << 33, .data = RUN(0xc0, 64)),
    P("reply-describe", KH_OP_DESCRIBE, .id = 12, .entry = PLACED(KH_TIER_SOFTWARE, NONE, 0, 0)),
    P("reply-create-placed", KH_OP_CREATE_PLACED, .id = 13,
      .entry = PLACED(KH_TIER_HSM, TEXT("hsm-a"), 1700000000, 1900000000)),
    P("reply-import-placed", KH_OP_IMPORT_PLACED, .id = 14,
      .entry = PLACED(KH_TIER_HSM_POOL, TEXT("pool-1"), 0, UINT64_C(1) << 33)),
    P("reply-hello", KH_OP_HELLO, .version = 1, .max_frame = 65536, .credit = 1024, .nonce = RUN(0x20, 32),
      .proof = PROOF(agent)),
    P("reply-hello-uid", KH_OP_HELLO, .version = 1, .max_frame = 65536, .credit = 1024, .nonce = RUN(0x20, 32)),
    P("reply-hello-refused", KH_OP_HELLO, .status = KH_E_VERSION, .detail = TEXT("this agent speaks version 1")),
    P("reply-auth", KH_OP_AUTH, .identity = TEXT("edge-1")),
    P("reply-auth-refused", KH_OP_AUTH, .status = KH_E_UNAUTHENTICATED, .detail = TEXT("wrong proof")),
    P("reply-ping", KH_OP_PING, .id = 1),
    P("reply-sign", KH_OP_SIGN, .id = 2, .data = TEXT("\x30\x06\x02\x01\x01\x02\x01\x02")),
    P("reply-tls-rsa-decrypt", KH_OP_TLS_RSA_DECRYPT, .id = 3, .data = RUN(3, 48)),
    P("reply-decrypt", KH_OP_DECRYPT, .id = 4, .data = TEXT("plain")),
    P("reply-public-key", KH_OP_PUBLIC_KEY, .id = 5, .entry = ENTRY("site", 7, KH_STATE_ENABLED, SPKI_ID, SPKI)),
    P("reply-create", KH_OP_CREATE, .id = 9, .entry = ENTRY("site", 7, KH_STATE_ENABLED, SPKI_ID, SPKI)),
    P("reply-import", KH_OP_IMPORT, .id = 10, .entry = ENTRY("site", 7, KH_STATE_ENABLED, SPKI_ID, SPKI)),
    P("reply-set-state", KH_OP_SET_STATE, .id = 11, .entry = ENTRY("site", 7, KH_STATE_DISABLED, SPKI_ID, SPKI)),
    P("reply-list", KH_OP_LIST, .id = 6, .entries = list_entries, .entry_count = 2, .more = true),
    P("reply-list-empty", KH_OP_LIST, .id = 6, .entries = NULL),
    P("reply-status", KH_OP_STATUS, .id = 7, .data = TEXT("{\"version\":\"0.1.0\"}")),
    P("reply-import-key", KH_OP_IMPORT_KEY, .id = 8, .data = RUN(0x60, 32)),
};

#define MESSAGES (sizeof(messages) / sizeof(messages[0]))

/* One error reply for each result that can be one. */
static size_t add_errors(kh_vector *vectors)
{
    size_t count = 0;

    for (int status = KH_E_MALFORMED; strcmp(kh_result_name(status), "unknown") != 0; status++) {
        kh_vector *vector = &vectors[count++];
        const char *text = kh_result_text(status);

        snprintf(vector->name, sizeof(vector->name), "reply-error-%s", kh_result_name(status));
        for (char *c = vector->name; *c != '\0'; c++) {
            *c = *c == '_' ? '-' : *c;
        }
        vector->reply.op = KH_OP_SIGN;
        vector->reply.id = 2;
        vector->reply.status = (kh_result)status;
        vector->reply.detail = (kh_bytes){(const uint8_t *)text, strlen(text)};
        if (status == KH_E_OVERLOADED || status == KH_E_THROTTLED || status == KH_E_UNAVAILABLE) {
            vector->reply.retry_after_ms = 250;
        }
    }
    return count;
}

const kh_vector *kh_vectors(size_t *count)
{
    static kh_vector vectors[MESSAGES + 64];
    static size_t filled;

    if (filled == 0) {
        memcpy(vectors, messages, sizeof(messages));
        filled = MESSAGES + add_errors(vectors + MESSAGES);
    }
    *count = filled;
    return vectors;
}

const kh_vector *kh_vector_find(const char *name)
{
    size_t count = 0;
    const kh_vector *vectors = kh_vectors(&count);

    for (size_t i = 0; i < count; i++) {
        if (strcmp(vectors[i].name, name) == 0) {
            return &vectors[i];
        }
    }
    fail_msg("no vector %s", name);
    return NULL;
}

static int hex_digit(char c)
{
    const char *digits = "0123456789abcdef";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;

    return at != NULL ? (int)(at - digits) : -1;
}

size_t kh_hex_parse(const char *text, const char *end, uint8_t *out, size_t cap)
{
    size_t len = 0;

    while (text < end) {
        if (*text == '#') {
            while (text < end && *text != '\n') {
                text++;
            }
        } else if (*text == ' ' || *text == '\n') {
            text++;
        } else {
            assert_true(end - text >= 2 && hex_digit(text[0]) >= 0 && hex_digit(text[1]) >= 0);
            assert_true(len < cap);
            out[len++] = (uint8_t)(hex_digit(text[0]) * 16 + hex_digit(text[1]));
            text += 2;
        }
    }
    return len;
}

size_t kh_vector_read(const char *name, uint8_t *frame)
{
    static char text[32768];
    char path[512];
    FILE *file = NULL;
    size_t len = 0;

    snprintf(path, sizeof(path), "%s/protocol/vectors/%s.txt", KH_SOURCE_DIR, name);
    file = fopen(path, "r");
    if (file == NULL) {
        fail_msg("%s cannot be read", path);
    }
    len = fread(text, 1, sizeof(text), file);
    fclose(file);
    return kh_hex_parse(text, text + len, frame, KH_VECTOR_MAX);
}

kh_result kh_vector_encode(const kh_vector *vector, uint8_t *buf, size_t cap, size_t *len)
{
    return vector->is_request ? kh_request_encode(&vector->req, buf, cap, len)
                              : kh_reply_encode(&vector->reply, buf, cap, len);
}

static void assert_same_bytes(kh_bytes a, kh_bytes b)
{
    assert_int_equal(a.len, b.len);
    if (a.len > 0) {
        assert_memory_equal(a.data, b.data, a.len);
    }
}

void kh_assert_same_request(const kh_request *a, const kh_request *b)
{
    assert_int_equal(a->op, b->op);
    assert_int_equal(a->id, b->id);
    assert_int_equal(a->deadline_ms, b->deadline_ms);
    assert_int_equal(a->key_is_id, b->key_is_id);
    assert_int_equal(a->scheme, b->scheme);
    assert_int_equal(a->flags, b->flags);
    assert_int_equal(a->arg, b->arg);
    assert_int_equal(a->key_type, b->key_type);
    assert_int_equal(a->bits, b->bits);
    assert_int_equal(a->usage, b->usage);
    assert_int_equal(a->tier, b->tier);
    assert_same_bytes(a->place, b->place);
    assert_int_equal(a->not_before, b->not_before);
    assert_int_equal(a->expires, b->expires);
    assert_int_equal(a->version_min, b->version_min);
    assert_int_equal(a->version_max, b->version_max);
    assert_int_equal(a->max_frame, b->max_frame);
    assert_same_bytes(a->key, b->key);
    assert_same_bytes(a->name, b->name);
    assert_same_bytes(a->after, b->after);
    assert_same_bytes(a->label, b->label);
    assert_same_bytes(a->data, b->data);
    assert_same_bytes(a->client_name, b->client_name);
    assert_same_bytes(a->identity, b->identity);
    assert_same_bytes(a->nonce, b->nonce);
    assert_same_bytes(a->proof, b->proof);
}

static void assert_same_entry(const kh_key_entry *a, const kh_key_entry *b)
{
    assert_same_bytes(a->name, b->name);
    assert_int_equal(a->version, b->version);
    assert_int_equal(a->key_type, b->key_type);
    assert_int_equal(a->bits, b->bits);
    assert_int_equal(a->usage, b->usage);
    assert_int_equal(a->state, b->state);
    assert_int_equal(a->created, b->created);
    assert_same_bytes(a->id, b->id);
    assert_same_bytes(a->spki, b->spki);
    assert_int_equal(a->tier, b->tier);
    assert_same_bytes(a->place, b->place);
    assert_int_equal(a->not_before, b->not_before);
    assert_int_equal(a->expires, b->expires);
}

/* Entry `index` of a reply that was built or decoded. */
static kh_key_entry entry_of(const kh_reply *reply, uint32_t index)
{
    kh_key_entry entry = {0};

    if (reply->entries != NULL) {
        return reply->entries[index];
    }
    assert_int_equal(kh_reply_entry(reply, index, &entry), KH_OK);
    return entry;
}

void kh_assert_same_reply(const kh_reply *a, const kh_reply *b)
{
    assert_int_equal(a->op, b->op);
    assert_int_equal(a->id, b->id);
    assert_int_equal(a->status, b->status);
    assert_int_equal(a->retry_after_ms, b->retry_after_ms);
    assert_same_bytes(a->detail, b->detail);
    assert_same_bytes(a->data, b->data);
    assert_same_entry(&a->entry, &b->entry);
    assert_int_equal(a->more, b->more);
    assert_int_equal(a->version, b->version);
    assert_int_equal(a->max_frame, b->max_frame);
    assert_int_equal(a->credit, b->credit);
    assert_same_bytes(a->nonce, b->nonce);
    assert_same_bytes(a->proof, b->proof);
    assert_same_bytes(a->identity, b->identity);
    assert_int_equal(a->entry_count, b->entry_count);
    for (uint32_t i = 0; i < a->entry_count; i++) {
        kh_key_entry entry_a = entry_of(a, i);
        kh_key_entry entry_b = entry_of(b, i);

        assert_same_entry(&entry_a, &entry_b);
    }
}

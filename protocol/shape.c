/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of shape.h, and the names of the operations. */
#include "shape.h"

#include <string.h>

#define KH_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Requests. */
#define KH_Q(kind, member, min, max)                                                                         \
    {                                                                                                        \
        KH_FIELD_##kind, offsetof(kh_request, member), min, max                                              \
    }
#define KH_Q_ID KH_Q(U32, id, 0, UINT32_MAX), KH_Q(U32, deadline_ms, 1, KH_DEADLINE_MAX_MS)
#define KH_Q_KEY KH_Q(KEY, key, 1, KH_KEY_TEXT_MAX)

static const kh_field kh_request_hello[] = {
    KH_Q(U32, version_min, 1, UINT32_MAX), KH_Q(U32, version_max, 1, UINT32_MAX),
    KH_Q(U32, max_frame, 0, UINT32_MAX),   KH_Q(STR, client_name, 0, KH_CLIENT_NAME_MAX),
    KH_Q(STR, identity, 0, KH_NAME_MAX),   KH_Q(BIN, nonce, KH_NONCE_LEN, KH_NONCE_LEN),
};
static const kh_field kh_request_auth[] = {KH_Q(PROOF, proof, 0, KH_PROOF_LEN)};
static const kh_field kh_request_plain[] = {KH_Q_ID}; /* ping, status, import-key */
static const kh_field kh_request_cancel[] = {KH_Q(U32, id, 0, UINT32_MAX)};
static const kh_field kh_request_sign[] = {
    KH_Q_ID,
    KH_Q_KEY,
    KH_Q(U32, scheme, 0, UINT32_MAX),
    KH_Q(U32, flags, 0, UINT32_MAX),
    KH_Q(BIN, data, 0, KH_MESSAGE_MAX),
};
static const kh_field kh_request_tls_rsa_decrypt[] = {
    KH_Q_ID,
    KH_Q_KEY,
    KH_Q(U32, arg, 0, UINT32_MAX),
    KH_Q(BIN, data, 0, KH_MESSAGE_MAX),
};
static const kh_field kh_request_decrypt[] = {
    KH_Q_ID,
    KH_Q_KEY,
    KH_Q(U32, arg, 0, UINT32_MAX),
    KH_Q(BIN, label, 0, KH_LABEL_MAX),
    KH_Q(BIN, data, 0, KH_MESSAGE_MAX),
};
static const kh_field kh_request_public_key[] = {KH_Q_ID, KH_Q_KEY};
static const kh_field kh_request_list[] = {
    KH_Q_ID,
    KH_Q(STR, name, 1, KH_NAME_MAX),
    KH_Q(STR, after, 0, KH_KEY_TEXT_MAX),
    KH_Q(U32, arg, 1, KH_LIST_MAX),
};
static const kh_field kh_request_create[] = {
    KH_Q_ID,
    KH_Q(STR, name, 1, KH_NAME_MAX),
    KH_Q(U32, key_type, 0, UINT32_MAX),
    KH_Q(U32, bits, 0, UINT32_MAX),
    KH_Q(U32, usage, 0, UINT32_MAX),
    KH_Q(U32, flags, 0, UINT32_MAX),
};
static const kh_field kh_request_import[] = {
    KH_Q_ID,
    KH_Q(STR, name, 1, KH_NAME_MAX),
    KH_Q(U32, usage, 0, UINT32_MAX),
    KH_Q(U32, flags, 0, UINT32_MAX),
    KH_Q(BIN, data, 0, KH_MESSAGE_MAX),
};
#define KH_Q_PLACE                                                                                           \
    KH_Q(U32, tier, 0, UINT32_MAX), KH_Q(STR, place, 0, KH_PLACE_MAX), KH_Q(U64, not_before, 0, 0),          \
        KH_Q(U64, expires, 0, 0)
static const kh_field kh_request_create_placed[] = {
    KH_Q_ID,
    KH_Q(STR, name, 1, KH_NAME_MAX),
    KH_Q(U32, key_type, 0, UINT32_MAX),
    KH_Q(U32, bits, 0, UINT32_MAX),
    KH_Q(U32, usage, 0, UINT32_MAX),
    KH_Q(U32, flags, 0, UINT32_MAX),
    KH_Q_PLACE,
};
static const kh_field kh_request_import_placed[] = {
    KH_Q_ID,
    KH_Q(STR, name, 1, KH_NAME_MAX),
    KH_Q(U32, usage, 0, UINT32_MAX),
    KH_Q(U32, flags, 0, UINT32_MAX),
    KH_Q_PLACE,
    KH_Q(BIN, data, 0, KH_MESSAGE_MAX),
};
static const kh_field kh_request_set_state[] = {KH_Q_ID, KH_Q_KEY, KH_Q(U32, arg, 0, UINT32_MAX)};

/* Replies. */
#define KH_P(kind, member, min, max)                                                                         \
    {                                                                                                        \
        KH_FIELD_##kind, offsetof(kh_reply, member), min, max                                                \
    }

static const kh_field kh_reply_hello[] = {
    KH_P(U32, version, 1, UINT32_MAX),   KH_P(U32, max_frame, KH_FRAME_MIN_CAP, UINT32_MAX),
    KH_P(U32, credit, 1, UINT32_MAX),    KH_P(BIN, nonce, KH_NONCE_LEN, KH_NONCE_LEN),
    KH_P(PROOF, proof, 0, KH_PROOF_LEN),
};
static const kh_field kh_reply_auth[] = {KH_P(STR, identity, 0, KH_NAME_MAX)};
static const kh_field kh_reply_data[] = {KH_P(BIN, data, 0, KH_SIGNATURE_MAX)};
static const kh_field kh_reply_with_entry[] = {KH_P(ENTRY, entry, 0, 0)};
static const kh_field kh_reply_with_placed[] = {KH_P(PLACED, entry, 0, 0)};
static const kh_field kh_reply_list[] = {KH_P(ENTRIES, entries, 0, KH_LIST_MAX), KH_P(BOOL, more, 0, 1)};
static const kh_field kh_reply_status[] = {KH_P(STR, data, 0, UINT32_MAX)}; /* the frame's cap is its limit */
static const kh_field kh_reply_import_key[] = {KH_P(BIN, data, 32, 32)};
static const kh_field kh_reply_error[] = {
    KH_P(U32, retry_after_ms, 0, UINT32_MAX),
    KH_P(STR, detail, 0, KH_DETAIL_MAX),
};
static const kh_field kh_reply_refused[] = {KH_P(STR, detail, 0, KH_DETAIL_MAX)};

/* Entries. */
#define KH_E(kind, member, min, max)                                                                         \
    {                                                                                                        \
        KH_FIELD_##kind, offsetof(kh_key_entry, member), min, max                                            \
    }

#define KH_PLACED_MORE 4 /* fields of a placed entry that an entry lacks */

static const kh_field kh_entry_fields[] = {
    KH_E(STR, name, 1, KH_NAME_MAX),
    KH_E(U32, version, 0, UINT32_MAX),
    KH_E(U32, key_type, 0, UINT32_MAX),
    KH_E(U32, bits, 0, UINT32_MAX),
    KH_E(U32, usage, 0, UINT32_MAX),
    KH_E(U32, state, 0, UINT32_MAX),
    KH_E(U64, created, 0, 0), /* any */
    KH_E(BIN, id, KH_KEY_ID_LEN, KH_KEY_ID_LEN),
    KH_E(BIN, spki, 0, KH_SPKI_MAX),
    KH_E(U32, tier, 0, UINT32_MAX),
    KH_E(STR, place, 0, KH_PLACE_MAX),
    KH_E(U64, not_before, 0, 0),
    KH_E(U64, expires, 0, 0),
};

#define KH_SHAPE(fields)                                                                                     \
    {                                                                                                        \
        fields, KH_COUNT(fields)                                                                             \
    }

typedef struct kh_op_row {
    kh_shape request;
    kh_shape reply;
    bool known;
    bool has_reply;
} kh_op_row;

static const kh_op_row kh_op_rows[] = {
    [KH_OP_HELLO] = {KH_SHAPE(kh_request_hello), KH_SHAPE(kh_reply_hello), true, true},
    [KH_OP_AUTH] = {KH_SHAPE(kh_request_auth), KH_SHAPE(kh_reply_auth), true, true},
    [KH_OP_PING] = {KH_SHAPE(kh_request_plain), {NULL, 0}, true, true},
    [KH_OP_CANCEL] = {KH_SHAPE(kh_request_cancel), {NULL, 0}, true, false},
    [KH_OP_SIGN] = {KH_SHAPE(kh_request_sign), KH_SHAPE(kh_reply_data), true, true},
    [KH_OP_TLS_RSA_DECRYPT] = {KH_SHAPE(kh_request_tls_rsa_decrypt), KH_SHAPE(kh_reply_data), true, true},
    [KH_OP_DECRYPT] = {KH_SHAPE(kh_request_decrypt), KH_SHAPE(kh_reply_data), true, true},
    [KH_OP_PUBLIC_KEY] = {KH_SHAPE(kh_request_public_key), KH_SHAPE(kh_reply_with_entry), true, true},
    [KH_OP_LIST] = {KH_SHAPE(kh_request_list), KH_SHAPE(kh_reply_list), true, true},
    [KH_OP_STATUS] = {KH_SHAPE(kh_request_plain), KH_SHAPE(kh_reply_status), true, true},
    [KH_OP_IMPORT_KEY] = {KH_SHAPE(kh_request_plain), KH_SHAPE(kh_reply_import_key), true, true},
    [KH_OP_CREATE] = {KH_SHAPE(kh_request_create), KH_SHAPE(kh_reply_with_entry), true, true},
    [KH_OP_IMPORT] = {KH_SHAPE(kh_request_import), KH_SHAPE(kh_reply_with_entry), true, true},
    [KH_OP_SET_STATE] = {KH_SHAPE(kh_request_set_state), KH_SHAPE(kh_reply_with_entry), true, true},
    [KH_OP_DESCRIBE] = {KH_SHAPE(kh_request_public_key), KH_SHAPE(kh_reply_with_placed), true, true},
    [KH_OP_CREATE_PLACED] = {KH_SHAPE(kh_request_create_placed), KH_SHAPE(kh_reply_with_placed), true, true},
    [KH_OP_IMPORT_PLACED] = {KH_SHAPE(kh_request_import_placed), KH_SHAPE(kh_reply_with_placed), true, true},
};

static const kh_op_row *kh_op_find(uint32_t op)
{
    return op < KH_COUNT(kh_op_rows) && kh_op_rows[op].known ? &kh_op_rows[op] : NULL;
}

const kh_shape *kh_shape_request(uint32_t op)
{
    const kh_op_row *row = kh_op_find(op);

    return row != NULL ? &row->request : NULL;
}

const kh_shape *kh_shape_reply(uint32_t op)
{
    const kh_op_row *row = kh_op_find(op);

    return row != NULL && row->has_reply ? &row->reply : NULL;
}

const kh_shape *kh_shape_error(uint32_t op)
{
    static const kh_shape error = KH_SHAPE(kh_reply_error);
    static const kh_shape refused = KH_SHAPE(kh_reply_refused);

    return kh_op_is_handshake(op) ? &refused : &error;
}

const kh_shape *kh_shape_entry(void)
{
    static const kh_shape entry = {kh_entry_fields, KH_COUNT(kh_entry_fields) - KH_PLACED_MORE};

    return &entry;
}

const kh_shape *kh_shape_placed(void)
{
    static const kh_shape placed = KH_SHAPE(kh_entry_fields);

    return &placed;
}

bool kh_op_is_handshake(uint32_t op)
{
    return op == KH_OP_HELLO || op == KH_OP_AUTH;
}

static const struct {
    int op;
    const char *name;
} kh_op_names[] = {
#define KH_X(constant, number, name, manage) {number, name},
    KH_OPS(KH_X)
#undef KH_X
};

const char *kh_op_name(int op)
{
    for (size_t i = 0; i < KH_COUNT(kh_op_names); i++) {
        if (kh_op_names[i].op == op) {
            return kh_op_names[i].name;
        }
    }
    return "unknown";
}

int kh_op_parse(const char *name)
{
    for (size_t i = 0; i < KH_COUNT(kh_op_names); i++) {
        if (strcmp(kh_op_names[i].name, name) == 0) {
            return kh_op_names[i].op;
        }
    }
    return -1;
}

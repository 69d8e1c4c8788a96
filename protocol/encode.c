/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding: one frame from one message, by the tables of shape.h, into a buffer of fixed size. */
#include "shape.h"

#include <msgpack/pack.h>
#include <string.h>

/* Where the encoded bytes go. */
typedef struct kh_sink {
    uint8_t *data;
    size_t cap;
    size_t len;
} kh_sink;

/* msgpack-c's write callback: 0, or -1 when the buffer is full. */
static int kh_sink_write(void *ctx, const char *bytes, size_t len)
{
    kh_sink *sink = ctx;

    if (len > sink->cap - sink->len) {
        return -1;
    }
    if (len > 0) {
        memcpy(sink->data + sink->len, bytes, len);
    }
    sink->len += len;
    return 0;
}

static kh_result kh_packed(int status)
{
    return status == 0 ? KH_OK : KH_E_TOO_LARGE;
}

static kh_result kh_pack_str(msgpack_packer *packer, kh_bytes text)
{
    if (msgpack_pack_str(packer, text.len) != 0) {
        return KH_E_TOO_LARGE;
    }
    return kh_packed(msgpack_pack_str_body(packer, text.data, text.len));
}

static kh_result kh_pack_bin(msgpack_packer *packer, kh_bytes bytes)
{
    if (msgpack_pack_bin(packer, bytes.len) != 0) {
        return KH_E_TOO_LARGE;
    }
    return kh_packed(msgpack_pack_bin_body(packer, bytes.data, bytes.len));
}

/* The limits of a field, as the decoder checks them. */
static kh_result kh_limits(const kh_field *field, uint64_t value)
{
    if (value < field->min) {
        return KH_E_INVALID;
    }
    return value > field->max ? KH_E_TOO_LARGE : KH_OK;
}

static kh_result kh_pack_shape(msgpack_packer *packer, const kh_shape *shape, const void *object);

static kh_result kh_pack_entry(msgpack_packer *packer, const kh_shape *shape, const kh_key_entry *entry)
{
    if (msgpack_pack_array(packer, shape->count) != 0) {
        return KH_E_TOO_LARGE;
    }
    return kh_pack_shape(packer, shape, entry);
}

static kh_result kh_pack_entries(msgpack_packer *packer, const kh_reply *reply)
{
    kh_result result = KH_OK;

    if (reply->entry_count > KH_LIST_MAX || msgpack_pack_array(packer, reply->entry_count) != 0) {
        return KH_E_TOO_LARGE;
    }
    for (uint32_t i = 0; i < reply->entry_count && result == KH_OK; i++) {
        result = kh_pack_entry(packer, kh_shape_entry(), &reply->entries[i]);
    }
    return result;
}

static kh_result kh_pack_key(msgpack_packer *packer, const kh_field *field, const kh_request *req)
{
    kh_result result = KH_OK;

    if (req->key_is_id) {
        return req->key.len == KH_KEY_ID_LEN ? kh_pack_bin(packer, req->key) : KH_E_INVALID;
    }
    result = kh_limits(field, req->key.len);
    return result == KH_OK ? kh_pack_str(packer, req->key) : result;
}

static kh_result kh_pack_bytes(msgpack_packer *packer, const kh_field *field, kh_bytes bytes)
{
    kh_result result = KH_OK;

    if (field->kind == KH_FIELD_PROOF) {
        return bytes.len == 0 || bytes.len == KH_PROOF_LEN ? kh_pack_bin(packer, bytes) : KH_E_INVALID;
    }
    if (field->min == field->max) {
        return bytes.len == field->max ? kh_pack_bin(packer, bytes) : KH_E_INVALID;
    }
    result = kh_limits(field, bytes.len);
    if (result != KH_OK) {
        return result;
    }
    return field->kind == KH_FIELD_STR ? kh_pack_str(packer, bytes) : kh_pack_bin(packer, bytes);
}

static kh_result kh_pack_u32(msgpack_packer *packer, const kh_field *field, uint32_t value)
{
    kh_result result = kh_limits(field, value);

    return result == KH_OK ? kh_packed(msgpack_pack_uint32(packer, value)) : result;
}

static kh_result kh_pack_field(msgpack_packer *packer, const kh_field *field, const void *object)
{
    const void *member = (const uint8_t *)object + field->offset;

    switch (field->kind) {
    case KH_FIELD_U32:
        return kh_pack_u32(packer, field, *(const uint32_t *)member);
    case KH_FIELD_U64:
        return kh_packed(msgpack_pack_uint64(packer, *(const uint64_t *)member));
    case KH_FIELD_BOOL:
        return kh_packed(*(const bool *)member ? msgpack_pack_true(packer) : msgpack_pack_false(packer));
    case KH_FIELD_STR:
    case KH_FIELD_BIN:
    case KH_FIELD_PROOF:
        return kh_pack_bytes(packer, field, *(const kh_bytes *)member);
    case KH_FIELD_KEY:
        return kh_pack_key(packer, field, object);
    case KH_FIELD_ENTRY:
        return kh_pack_entry(packer, kh_shape_entry(), member);
    case KH_FIELD_PLACED:
        return kh_pack_entry(packer, kh_shape_placed(), member);
    case KH_FIELD_ENTRIES:
        return kh_pack_entries(packer, object);
    }
    return KH_E_INTERNAL;
}

static kh_result kh_pack_shape(msgpack_packer *packer, const kh_shape *shape, const void *object)
{
    kh_result result = KH_OK;

    for (uint32_t i = 0; i < shape->count && result == KH_OK; i++) {
        result = kh_pack_field(packer, &shape->fields[i], object);
    }
    return result;
}

/* Packs the leading numbers (operation, id, status) and then the fields. */
static kh_result kh_pack_message(kh_sink *sink, const uint32_t *head, size_t head_count,
                                 const kh_shape *shape, const void *object)
{
    msgpack_packer packer;
    int status = 0;

    msgpack_packer_init(&packer, sink, kh_sink_write);
    status = msgpack_pack_array(&packer, head_count + shape->count);
    for (size_t i = 0; i < head_count && status == 0; i++) {
        status = msgpack_pack_uint32(&packer, head[i]);
    }
    return status == 0 ? kh_pack_shape(&packer, shape, object) : KH_E_TOO_LARGE;
}

/* The frame around kh_pack_message. */
static kh_result kh_encode(const uint32_t *head, size_t head_count, const kh_shape *shape, const void *object,
                           uint8_t *buf, size_t cap, size_t *len)
{
    kh_result result = KH_OK;
    kh_sink sink = {0};
    uint32_t length = 0;

    *len = 0;
    if (cap < KH_FRAME_PREFIX) {
        return KH_E_TOO_LARGE;
    }
    sink = (kh_sink){buf + KH_FRAME_PREFIX, cap - KH_FRAME_PREFIX, 0};
    result = kh_pack_message(&sink, head, head_count, shape, object);
    if (result != KH_OK) {
        return result;
    }
    length = (uint32_t)sink.len;
    buf[0] = (uint8_t)(length >> 24);
    buf[1] = (uint8_t)(length >> 16);
    buf[2] = (uint8_t)(length >> 8);
    buf[3] = (uint8_t)length;
    *len = KH_FRAME_PREFIX + sink.len;
    return KH_OK;
}

kh_result kh_request_encode(const kh_request *req, uint8_t *buf, size_t cap, size_t *len)
{
    const uint32_t op = (uint32_t)req->op;
    const kh_shape *shape = kh_shape_request(op);

    *len = 0;
    if (shape == NULL) {
        return KH_E_INVALID;
    }
    return kh_encode(&op, 1, shape, req, buf, cap, len);
}

kh_result kh_reply_encode(const kh_reply *reply, uint8_t *buf, size_t cap, size_t *len)
{
    const uint32_t op = (uint32_t)reply->op;
    const uint32_t status = (uint32_t)reply->status;
    const kh_shape *shape = reply->status == KH_OK ? kh_shape_reply(op) : kh_shape_error(op);
    uint32_t head[3] = {op};
    size_t head_count = 1;

    *len = 0;
    /* An unknown operation can be refused, but cancel has no reply at all; "again" is not a result of
     * anything. */
    if (shape == NULL || op == KH_OP_CANCEL || reply->status == KH_AGAIN) {
        return KH_E_INVALID;
    }
    if (!kh_op_is_handshake(op)) {
        head[head_count++] = reply->id;
    }
    head[head_count++] = status;
    return kh_encode(head, head_count, shape, reply, buf, cap, len);
}

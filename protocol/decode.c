/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding: one message from one payload, by the tables of shape.h. Strict, and without allocation. */
#include "scan.h"
#include "shape.h"

#include <string.h>

/*
 * A field that is out of its limits. What has one length only is malformed with another; otherwise too little
 * is malformed and too much is too large, which the peer's request alone pays for.
 */
static kh_result kh_limits(const kh_field *field, uint64_t value)
{
    if (value < field->min) {
        return KH_E_MALFORMED;
    }
    if (value > field->max) {
        return field->min == field->max ? KH_E_MALFORMED : KH_E_TOO_LARGE;
    }
    return KH_OK;
}

static kh_result kh_take_number(const kh_item *item, const kh_field *field, void *member)
{
    kh_result result = KH_OK;

    if (item->kind != KH_ITEM_UINT) {
        return KH_E_MALFORMED;
    }
    if (field->kind == KH_FIELD_U64) {
        *(uint64_t *)member = item->number;
        return KH_OK;
    }
    if (item->number > UINT32_MAX) {
        return KH_E_MALFORMED;
    }
    result = kh_limits(field, item->number);
    *(uint32_t *)member = (uint32_t)item->number;
    return result;
}

static kh_result kh_take_bytes(const kh_item *item, const kh_field *field, kh_bytes *member)
{
    kh_item_kind wanted = field->kind == KH_FIELD_STR ? KH_ITEM_STR : KH_ITEM_BIN;

    if (item->kind != wanted) {
        return KH_E_MALFORMED;
    }
    *member = item->bytes;
    if (field->kind == KH_FIELD_PROOF) {
        return item->bytes.len == 0 || item->bytes.len == KH_PROOF_LEN ? KH_OK : KH_E_MALFORMED;
    }
    return kh_limits(field, item->bytes.len);
}

static kh_result kh_take_key(const kh_item *item, const kh_field *field, kh_request *req)
{
    req->key = item->bytes;
    if (item->kind == KH_ITEM_BIN) {
        req->key_is_id = true;
        return item->bytes.len == KH_KEY_ID_LEN ? KH_OK : KH_E_MALFORMED;
    }
    return item->kind == KH_ITEM_STR ? kh_limits(field, item->bytes.len) : KH_E_MALFORMED;
}

static kh_result kh_take_scalar(const kh_item *item, const kh_field *field, void *object)
{
    void *member = (uint8_t *)object + field->offset;

    switch (field->kind) {
    case KH_FIELD_U32:
    case KH_FIELD_U64:
        return kh_take_number(item, field, member);
    case KH_FIELD_BOOL:
        *(bool *)member = item->number != 0;
        return item->kind == KH_ITEM_BOOL ? KH_OK : KH_E_MALFORMED;
    case KH_FIELD_STR:
    case KH_FIELD_BIN:
    case KH_FIELD_PROOF:
        return kh_take_bytes(item, field, member);
    case KH_FIELD_KEY:
        return kh_take_key(item, field, object);
    case KH_FIELD_ENTRY:
    case KH_FIELD_PLACED:
    case KH_FIELD_ENTRIES:
        break;
    }
    return KH_E_INTERNAL;
}

/* An entry of a reply that is over a limit has no request to pay for it: it is malformed. */
static kh_result kh_take_entry(const kh_items *items, const kh_shape *shape, kh_key_entry *entry)
{
    *entry = (kh_key_entry){0};
    if (items->count != shape->count) {
        return KH_E_MALFORMED;
    }
    for (uint32_t i = 0; i < shape->count; i++) {
        if (kh_take_scalar(&items->item[i], &shape->fields[i], entry) != KH_OK) {
            return KH_E_MALFORMED;
        }
    }
    return KH_OK;
}

/* The elements of an array item follow its header; a scan needs the header, so it is read one element at a
 * time. */
static kh_result kh_take_entries(const kh_item *item, kh_reply *reply)
{
    kh_bytes rest = item->bytes;
    kh_items items;
    kh_key_entry entry;

    if (item->kind != KH_ITEM_ARRAY) {
        return KH_E_MALFORMED;
    }
    if (item->number > KH_LIST_MAX) {
        return KH_E_TOO_LARGE;
    }
    for (uint64_t i = 0; i < item->number; i++) {
        if (kh_scan(rest.data, rest.len, &items) != KH_OK || kh_take_entry(&items, kh_shape_entry(), &entry) != KH_OK) {
            return KH_E_MALFORMED;
        }
        rest = (kh_bytes){rest.data + items.used, rest.len - items.used};
    }
    reply->entries_raw = item->bytes;
    reply->entry_count = (uint32_t)item->number;
    return KH_OK;
}

/* Takes the fields of `shape` from the items from `first` on. Malformed prevails over too large. */
static kh_result kh_take_shape(const kh_items *items, uint32_t first, const kh_shape *shape, void *object)
{
    kh_result result = KH_OK;

    if (items->count != first + shape->count) {
        return KH_E_MALFORMED;
    }
    for (uint32_t i = 0; i < shape->count; i++) {
        kh_result taken = kh_take_scalar(&items->item[first + i], &shape->fields[i], object);

        if (taken == KH_E_TOO_LARGE) {
            result = taken;
        } else if (taken != KH_OK) {
            return taken;
        }
    }
    return result;
}

/* Takes a leading number (operation, id, status). */
static kh_result kh_take_head(const kh_items *items, uint32_t index, uint32_t *value)
{
    if (index >= items->count || items->item[index].kind != KH_ITEM_UINT ||
        items->item[index].number > UINT32_MAX) {
        return KH_E_MALFORMED;
    }
    *value = (uint32_t)items->item[index].number;
    return KH_OK;
}

static kh_result kh_scan_whole(const uint8_t *payload, size_t len, kh_items *items)
{
    kh_result result = kh_scan(payload, len, items);

    return result == KH_OK && items->used != len ? KH_E_MALFORMED : result;
}

/* A request for an operation that this version does not know: [op, id, deadline_ms, anything…]. */
static kh_result kh_unknown_request(const kh_items *items, kh_request *req)
{
    if (kh_take_head(items, 1, &req->id) != KH_OK || kh_take_head(items, 2, &req->deadline_ms) != KH_OK) {
        return KH_E_MALFORMED;
    }
    return KH_E_UNSUPPORTED;
}

kh_result kh_request_decode(const uint8_t *payload, size_t len, kh_request *req)
{
    kh_items items;
    const kh_shape *shape = NULL;
    uint32_t op = 0;

    *req = (kh_request){0};
    if (kh_scan_whole(payload, len, &items) != KH_OK || kh_take_head(&items, 0, &op) != KH_OK) {
        return KH_E_MALFORMED;
    }
    req->op = (kh_op)op;
    shape = kh_shape_request(op);
    return shape == NULL ? kh_unknown_request(&items, req) : kh_take_shape(&items, 1, shape, req);
}

/* The two shapes that hold entries are decoded here; the others by their table. */
static kh_result kh_take_reply(const kh_items *items, uint32_t first, const kh_shape *shape, kh_reply *reply)
{
    const kh_item *item = &items->item[first];
    kh_result result = KH_OK;
    kh_items entry;

    if (shape->count > 0 && (shape->fields[0].kind == KH_FIELD_ENTRY || shape->fields[0].kind == KH_FIELD_PLACED)) {
        const kh_shape *of = shape->fields[0].kind == KH_FIELD_PLACED ? kh_shape_placed() : kh_shape_entry();

        if (items->count != first + 1 || item->kind != KH_ITEM_ARRAY || item->number != of->count) {
            return KH_E_MALFORMED;
        }
        /* From the header, which is one byte for so few elements. */
        result = kh_scan(item->bytes.data - 1, item->bytes.len + 1, &entry);
        return result == KH_OK ? kh_take_entry(&entry, of, &reply->entry) : result;
    }
    if (shape->count > 0 && shape->fields[0].kind == KH_FIELD_ENTRIES) {
        if (items->count != first + 2 || items->item[first + 1].kind != KH_ITEM_BOOL) {
            return KH_E_MALFORMED;
        }
        reply->more = items->item[first + 1].number != 0;
        return kh_take_entries(item, reply);
    }
    return kh_take_shape(items, first, shape, reply);
}

kh_result kh_reply_decode(const uint8_t *payload, size_t len, kh_reply *reply)
{
    kh_items items;
    const kh_shape *shape = NULL;
    uint32_t op = 0;
    uint32_t status = 0;
    uint32_t first = 1;

    *reply = (kh_reply){0};
    if (kh_scan_whole(payload, len, &items) != KH_OK || kh_take_head(&items, 0, &op) != KH_OK) {
        return KH_E_MALFORMED;
    }
    reply->op = (kh_op)op;
    if (!kh_op_is_handshake(op) && kh_take_head(&items, first++, &reply->id) != KH_OK) {
        return KH_E_MALFORMED;
    }
    if (kh_take_head(&items, first++, &status) != KH_OK || status == KH_AGAIN || op == KH_OP_CANCEL) {
        return KH_E_MALFORMED;
    }
    reply->status = (kh_result)status;
    shape = status == KH_OK ? kh_shape_reply(op) : kh_shape_error(op);
    return shape == NULL ? KH_E_UNSUPPORTED : kh_take_reply(&items, first, shape, reply);
}

kh_result kh_reply_entry(const kh_reply *reply, uint32_t index, kh_key_entry *entry)
{
    kh_bytes rest = reply->entries_raw;
    kh_items items;

    if (index >= reply->entry_count) {
        return KH_E_INVALID;
    }
    for (uint32_t i = 0; i <= index; i++) {
        if (kh_scan(rest.data, rest.len, &items) != KH_OK) {
            return KH_E_INVALID;
        }
        rest = (kh_bytes){rest.data + items.used, rest.len - items.used};
    }
    return kh_take_entry(&items, kh_shape_entry(), entry) == KH_OK ? KH_OK : KH_E_INVALID;
}

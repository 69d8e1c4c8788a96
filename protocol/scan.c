/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scanner over msgpack-c's parser template. msgpack-c's own unpacker builds objects and allocates them
 * from the announced count; the template only calls back, and its stack of containers has a fixed size, which
 * bounds the nesting.
 *
 * The shortest encoding is enforced by a sum: each value's shortest length is added up, and since any other
 * encoding is longer, the sum equals the bytes consumed only if every value was encoded shortest. For the
 * same reason the sum is also the position of each element, which the template does not tell for arrays.
 */
#include "scan.h"

#include <msgpack/sysdep.h>
#include <msgpack/unpack.h>

#define MSGPACK_EMBED_STACK_SIZE KH_NEST_MAX
#include <msgpack/unpack_define.h>

typedef struct kh_scanner {
    const uint8_t *data;
    size_t len;
    size_t position; /* sum of the shortest encodings so far */
    uint32_t depth;  /* open arrays */
    uint64_t left[KH_NEST_MAX];
    kh_items *items;
} kh_scanner;

#define msgpack_unpack_struct(name) struct kh_msgpack##name
#define msgpack_unpack_func(ret, name) static inline ret kh_msgpack##name
#define msgpack_unpack_callback(name) kh_on##name
#define msgpack_unpack_object int /* the template's values are not used: callbacks come in order */
#define msgpack_unpack_user kh_scanner

/* An element is complete: close the arrays that it completes. */
static void kh_scanner_completed(kh_scanner *scanner)
{
    while (scanner->depth > 0 && --scanner->left[scanner->depth - 1] == 0) {
        scanner->depth--;
        if (scanner->depth == 1 && scanner->items->count - scanner->left[0] < KH_ITEMS_MAX) {
            kh_item *item = &scanner->items->item[scanner->items->count - scanner->left[0]];

            item->bytes.len = (size_t)(scanner->data + scanner->position - item->bytes.data);
        }
    }
}

/* Records an element if it is a direct one. */
static int kh_scanner_record(kh_scanner *scanner, kh_item_kind kind, uint64_t number, kh_bytes bytes)
{
    if (scanner->depth == 0) {
        return MSGPACK_UNPACK_PARSE_ERROR; /* the root has to be an array */
    }
    if (scanner->depth == 1) {
        size_t index = (size_t)(scanner->items->count - scanner->left[0]);

        if (index < KH_ITEMS_MAX) {
            scanner->items->item[index] = (kh_item){kind, number, bytes};
        }
    }
    return 0;
}

static int kh_scanner_scalar(kh_scanner *scanner, kh_item_kind kind, uint64_t number, kh_bytes bytes,
                             size_t size)
{
    if (kh_scanner_record(scanner, kind, number, bytes) != 0) {
        return MSGPACK_UNPACK_PARSE_ERROR;
    }
    scanner->position += size;
    kh_scanner_completed(scanner);
    return 0;
}

static int kh_scanner_uint(kh_scanner *scanner, uint64_t value)
{
    size_t size = value < 0x80          ? 1
                  : value <= UINT8_MAX  ? 2
                  : value <= UINT16_MAX ? 3
                  : value <= UINT32_MAX ? 5
                                        : 9;

    return kh_scanner_scalar(scanner, KH_ITEM_UINT, value, (kh_bytes){0}, size);
}

static inline int kh_on_root(kh_scanner *scanner)
{
    (void)scanner;
    return 0;
}

static inline int kh_on_uint8(kh_scanner *scanner, uint8_t value, int *object)
{
    *object = 0;
    return kh_scanner_uint(scanner, value);
}

static inline int kh_on_uint16(kh_scanner *scanner, uint16_t value, int *object)
{
    *object = 0;
    return kh_scanner_uint(scanner, value);
}

static inline int kh_on_uint32(kh_scanner *scanner, uint32_t value, int *object)
{
    *object = 0;
    return kh_scanner_uint(scanner, value);
}

static inline int kh_on_uint64(kh_scanner *scanner, uint64_t value, int *object)
{
    *object = 0;
    return kh_scanner_uint(scanner, value);
}

/* What the protocol does not use. */
static inline int kh_on_unused(int *object)
{
    *object = 0;
    return MSGPACK_UNPACK_PARSE_ERROR;
}

#define KH_UNUSED_NUMBER(name, type)                                                                         \
    static inline int kh_on##name(kh_scanner *scanner, type value, int *object)                              \
    {                                                                                                        \
        (void)scanner;                                                                                       \
        (void)value;                                                                                         \
        return kh_on_unused(object);                                                                         \
    }
KH_UNUSED_NUMBER(_int8, int8_t)
KH_UNUSED_NUMBER(_int16, int16_t)
KH_UNUSED_NUMBER(_int32, int32_t)
KH_UNUSED_NUMBER(_int64, int64_t)
KH_UNUSED_NUMBER(_float, float)
KH_UNUSED_NUMBER(_double, double)
KH_UNUSED_NUMBER(_map, size_t)

static inline int kh_on_nil(kh_scanner *scanner, int *object)
{
    (void)scanner;
    return kh_on_unused(object);
}

static inline int kh_on_map_item(kh_scanner *scanner, int *map, int key, int value)
{
    (void)scanner;
    (void)key;
    (void)value;
    return kh_on_unused(map);
}

static inline int kh_on_ext(kh_scanner *scanner, const char *base, const char *at, unsigned len, int *object)
{
    (void)scanner;
    (void)base;
    (void)at;
    (void)len;
    return kh_on_unused(object);
}

static inline int kh_on_true(kh_scanner *scanner, int *object)
{
    *object = 0;
    return kh_scanner_scalar(scanner, KH_ITEM_BOOL, 1, (kh_bytes){0}, 1);
}

static inline int kh_on_false(kh_scanner *scanner, int *object)
{
    *object = 0;
    return kh_scanner_scalar(scanner, KH_ITEM_BOOL, 0, (kh_bytes){0}, 1);
}

static kh_bytes kh_scanner_view(const char *at, unsigned len)
{
    return len == 0 ? (kh_bytes){0} : (kh_bytes){(const uint8_t *)at, len};
}

static inline int kh_on_str(kh_scanner *scanner, const char *base, const char *at, unsigned len, int *object)
{
    size_t header = len < 32 ? 1 : len <= UINT8_MAX ? 2 : len <= UINT16_MAX ? 3 : 5;

    (void)base;
    *object = 0;
    return kh_scanner_scalar(scanner, KH_ITEM_STR, 0, kh_scanner_view(at, len), header + len);
}

static inline int kh_on_bin(kh_scanner *scanner, const char *base, const char *at, unsigned len, int *object)
{
    size_t header = len <= UINT8_MAX ? 2 : len <= UINT16_MAX ? 3 : 5;

    (void)base;
    *object = 0;
    return kh_scanner_scalar(scanner, KH_ITEM_BIN, 0, kh_scanner_view(at, len), header + len);
}

static inline int kh_on_array(kh_scanner *scanner, size_t count, int *object)
{
    size_t header = count < 16 ? 1 : count <= UINT16_MAX ? 3 : 5;
    kh_bytes elements;

    *object = 0;
    /* Each element takes a byte at least. The template has bounded the depth already; the check keeps it
     * local. */
    if (count > scanner->len || scanner->position > scanner->len - header || scanner->depth >= KH_NEST_MAX) {
        return MSGPACK_UNPACK_PARSE_ERROR;
    }
    scanner->position += header;
    elements = (kh_bytes){scanner->data + scanner->position, 0};
    if (scanner->depth == 0) {
        scanner->items->count = (uint32_t)count;
    } else if (kh_scanner_record(scanner, KH_ITEM_ARRAY, count, elements) != 0) {
        return MSGPACK_UNPACK_PARSE_ERROR;
    }
    if (count == 0) {
        kh_scanner_completed(scanner);
    } else {
        scanner->left[scanner->depth++] = count;
    }
    return 0;
}

static inline int kh_on_array_item(kh_scanner *scanner, int *array, int value)
{
    (void)scanner;
    (void)array;
    (void)value;
    return 0;
}

#include <msgpack/unpack_template.h>

kh_result kh_scan(const uint8_t *data, size_t len, kh_items *items)
{
    struct kh_msgpack_context context;
    size_t used = 0;

    items->count = 0;
    items->used = 0;
    if (len == 0 || len > UINT32_MAX) {
        return KH_E_MALFORMED;
    }
    context.user = (kh_scanner){.data = data, .len = len, .items = items};
    kh_msgpack_init(&context);
    if (kh_msgpack_execute(&context, (const char *)data, len, &used) != 1 || context.user.position != used) {
        return KH_E_MALFORMED;
    }
    items->used = used;
    return KH_OK;
}

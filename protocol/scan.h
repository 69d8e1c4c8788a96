/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The msgpack scanner: one array in, its direct elements out, without allocation. It accepts the subset that
 * the protocol uses (unsigned integers, booleans, strings, byte strings, arrays) in its shortest encoding
 * only, so that every message has exactly one encoding.
 */
#ifndef KH_SCAN_H
#define KH_SCAN_H

#include <keyhold/protocol.h>

typedef enum kh_item_kind {
    KH_ITEM_UINT,
    KH_ITEM_BOOL,
    KH_ITEM_STR,
    KH_ITEM_BIN,
    KH_ITEM_ARRAY
} kh_item_kind;

/* A direct element of the scanned array. */
typedef struct kh_item {
    kh_item_kind kind;
    uint64_t number; /* UINT: the value; BOOL: 0 or 1; ARRAY: the number of its elements */
    kh_bytes bytes;  /* STR, BIN: the contents; ARRAY: its elements, encoded, without the array's header */
} kh_item;

#define KH_ITEMS_MAX 16 /* more than the fields of any message */

typedef struct kh_items {
    uint32_t count; /* elements of the array; only the first KH_ITEMS_MAX are in `item` */
    size_t used;    /* bytes of the array */
    kh_item item[KH_ITEMS_MAX];
} kh_items;

/*
 * Scans the one array at the beginning of data; bytes after it are left (items->used tells). Views point into
 * data. KH_E_MALFORMED: not such an array, cut short, nested deeper than KH_NEST_MAX, or not in the shortest
 * encoding. Time is linear in the bytes used; a count that cannot fit into len is refused before anything
 * follows it.
 */
KH_MUST_USE kh_result kh_scan(const uint8_t *data, size_t len, kh_items *items);

#endif

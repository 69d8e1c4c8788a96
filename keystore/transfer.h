/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Export files: keys on their way between stores that have the same KEK. All numbers are big-endian.
 *
 * - header: "keyhold-export", format (2 bytes: 2); kind of the KEK and its parameters (20, as in the store);
 *   time (8); the store's id (16); the file key, sealed under the transfer key of the KEK (60); SHA-256 of
 * all this
 * - entries: length of what follows (4); created (8), version, type, bits, usage, state, policy (4 each);
 *   length of the name (2), name, id (32), length of the public key (2), public key; tier (4), length of the
 *   place (1), place, not before, expires, deleted (8 each); the private key, or the locator of a key in a
 *   token, sealed under the file key
 * - end: 0 (4); number of entries (8); a seal of nothing (28)
 *
 * Entries are in the order of names and versions. What a seal of an entry protects beside the key is its
 * number in the file and all of the entry before it; of the end, the number of entries and the SHA-256 of all
 * before. So no entry can be changed, left out, doubled, moved, or brought in from another file, and a file
 * that was cut has no end. Names and public keys can be read by anybody; nothing else is of use without the
 * KEK.
 *
 * Format 1 has nothing between public key and private key; it is read, and written no more.
 *
 * A reader allocates nothing from what it reads: an entry is at most KH_TRANSFER_ENTRY_MAX bytes, and longer
 * ones are refused.
 */
#ifndef KEYHOLD_KEYSTORE_TRANSFER_H
#define KEYHOLD_KEYSTORE_TRANSFER_H

#include "kek.h"
#include "row.h"
#include "seal.h"

#define KH_TRANSFER_FORMAT 2
#define KH_TRANSFER_PREFIX_LEN 16 /* name and format: what the file is */
#define KH_TRANSFER_SEALED_AT 60  /* before it: prefix, KEK, time, store */
#define KH_TRANSFER_HEADER_LEN (KH_TRANSFER_SEALED_AT + KH_SEAL_KEY_LEN + KH_SEAL_OVERHEAD + 32)
#define KH_TRANSFER_PUBLIC_MAX                                                                               \
    (8 + 6 * 4 + 2 + KH_NAME_MAX + KH_KEY_ID_LEN + 2 + KH_SPKI_MAX + 4 + 1 + KH_PLACE_MAX + 3 * 8)
#define KH_TRANSFER_ENTRY_MAX (KH_TRANSFER_PUBLIC_MAX + KH_IMPORT_PKCS8_MAX + KH_SEAL_OVERHEAD)
#define KH_TRANSFER_END_LEN (4 + 8 + KH_SEAL_OVERHEAD)

typedef struct kh_transfer_header {
    uint8_t kek[1 + KH_KEK_PARAMS_LEN]; /* kind and parameters */
    uint64_t created;
    uint8_t store_id[KH_STORE_ID_LEN];
    unsigned format; /* of one that was read */
} kh_transfer_header;

/* KH_E_MALFORMED: no export file. KH_E_VERSION: of a newer Keyhold. KH_E_DAMAGED: its sum does not fit. */
KH_MUST_USE kh_result kh_transfer_header_parse(const uint8_t bytes[KH_TRANSFER_HEADER_LEN],
                                               kh_transfer_header *header);
/* All before the sealed file key; and the sum, when all else is there. */
void kh_transfer_header_encode(const kh_transfer_header *header, uint8_t bytes[KH_TRANSFER_SEALED_AT]);
void kh_transfer_header_sum(uint8_t bytes[KH_TRANSFER_HEADER_LEN]);
/* An entry up to its sealed part; public_len: what lies before that. KH_E_DAMAGED. Nothing is verified. */
KH_MUST_USE kh_result kh_transfer_entry_parse(unsigned format, const uint8_t *entry, size_t len, kh_row *row,
                                              size_t *public_len);
size_t kh_transfer_entry_encode(const kh_row *row, uint8_t entry[KH_TRANSFER_PUBLIC_MAX]);

/* ---- transfer_file.c: reading and writing, each from the beginning to the end ---- */

typedef struct kh_transfer kh_transfer;

/* Reads or writes all len bytes at that place; false: it cannot, or they are not there. errno says why. */
typedef bool (*kh_transfer_read_fn)(void *ctx, uint64_t at, uint8_t *data, size_t len);
typedef bool (*kh_transfer_write_fn)(void *ctx, uint64_t at, const uint8_t *data, size_t len);

/* KH_E_IO: it cannot be written. */
KH_MUST_USE kh_result kh_transfer_new_writer(kh_transfer_write_fn write, void *ctx,
                                             const kh_transfer_header *header,
                                             const uint8_t transfer_key[KH_SEAL_KEY_LEN],
                                             kh_transfer **transfer);
KH_MUST_USE kh_result kh_transfer_put(kh_transfer *transfer, const kh_row *row);
KH_MUST_USE kh_result kh_transfer_put_end(kh_transfer *transfer);

/* len: of the whole. As kh_transfer_header_parse; KH_E_PASSPHRASE: sealed under another KEK. */
KH_MUST_USE kh_result kh_transfer_new_reader(kh_transfer_read_fn read, void *ctx, uint64_t len,
                                             const uint8_t transfer_key[KH_SEAL_KEY_LEN],
                                             kh_transfer **transfer);
/*
 * The next entry, verified: its row has no number (ref 0). KH_E_NOT_FOUND: that was the last, and all of the
 * file was as it was written. KH_E_DAMAGED: it was changed or cut. Names and versions rise from entry to
 * entry.
 */
KH_MUST_USE kh_result kh_transfer_next(kh_transfer *transfer, kh_row *row);

/* Entries read or written. */
uint64_t kh_transfer_count(const kh_transfer *transfer);
void kh_transfer_free(kh_transfer *transfer); /* NULL is fine */

#endif

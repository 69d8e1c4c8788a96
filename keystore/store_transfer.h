/* SPDX-License-Identifier: Apache-2.0 */
/* Export and import of a store's keys (transfer.h) in slices, between which other things can be done with the
 * store. */
#ifndef KEYHOLD_KEYSTORE_STORE_TRANSFER_H
#define KEYHOLD_KEYSTORE_STORE_TRANSFER_H

#include "store.h"
#include "transfer.h"

#define KH_TRANSFER_WHY_MAX 384

typedef struct kh_store_transfer kh_store_transfer;

/*
 * globs: of names, each with its terminating zero; len 0: all keys. They are borrowed. A key that changes
 * meanwhile goes as it was before or after.
 */
KH_MUST_USE kh_result kh_store_export_new(kh_store *store, const char *globs, size_t len,
                                          kh_transfer_write_fn write, void *ctx,
                                          kh_store_transfer **transfer);
/*
 * transfer_key: of the KEK under which the file was made, or NULL: the store's own.
 * In two passes: the first reads and verifies all of the file and looks for what speaks against any of its
 * keys; only then the second stores, each slice in a transaction of its own, so that a key that is there is
 * there for good. A key version that is there already, the same, is left as it is. Refused by name: another
 * key or usage under that name and version, and, unless allow_purged, a key that was purged here.
 */
KH_MUST_USE kh_result kh_store_import_new(kh_store *store, kh_transfer_read_fn read, void *ctx, uint64_t len,
                                          const uint8_t *transfer_key, bool allow_purged,
                                          kh_store_transfer **transfer);
/* At most `most` keys. KH_AGAIN: not done yet. */
KH_MUST_USE kh_result kh_store_transfer_step(kh_store_transfer *transfer, unsigned most);
/* So far. */
void kh_store_transfer_report(const kh_store_transfer *transfer, kh_store_report *report);
/* After a failure: which key, and what to do; else empty. */
const char *kh_store_transfer_why(const kh_store_transfer *transfer);
void kh_store_transfer_free(kh_store_transfer *transfer); /* NULL is fine */

#endif

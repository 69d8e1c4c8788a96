/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A copy of an open store, made in slices while it is in use: SQLite's online backup. What is changed through
 * the store's own handle between the slices is changed in the copy too, so that the finished copy is the
 * store as it was when the last slice was done.
 */
#ifndef KEYHOLD_KEYSTORE_STORE_COPY_H
#define KEYHOLD_KEYSTORE_STORE_COPY_H

#include "store.h"

typedef struct kh_store_copy kh_store_copy;

/*
 * Into an empty file: a path (vfs NULL), or "fd:N" with vfs KH_FDVFS, a descriptor that stays the caller's.
 * Nothing is synced. KH_E_IO (logged): it cannot be written.
 */
KH_MUST_USE kh_result kh_store_copy_new(kh_store *store, const char *to, const char *vfs,
                                        kh_store_copy **copy);
/* KH_AGAIN: not done yet. KH_OK: it is complete in the file. KH_E_IO: it cannot be written. */
KH_MUST_USE kh_result kh_store_copy_step(kh_store_copy *copy, unsigned pages);
/* NULL is fine. By the store's thread, before the store is closed. */
void kh_store_copy_free(kh_store_copy *copy);

/* ---- fdvfs.c: SQLite on a descriptor that is open already ---- */

#define KH_FDVFS "keyhold-fd"
/* Registers it; any number of times. */
KH_MUST_USE kh_result kh_fdvfs_register(void);

#endif

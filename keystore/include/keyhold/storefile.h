/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Store files and export files by themselves: stores that no agent has open (stopped ones, backups), and what a tool has to
 * know of a file before it hands it to a keeper. For keyholdctl. Nothing here changes a file that is there.
 */
#ifndef KEYHOLD_STOREFILE_H
#define KEYHOLD_STOREFILE_H

#include <keyhold/keystore.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kh_file_kind { KH_FILE_OTHER = 0, KH_FILE_EMPTY, KH_FILE_STORE, KH_FILE_EXPORT } kh_file_kind;

/* What a file says that it is, by its first bytes. KH_FILE_OTHER also when it cannot be read. */
kh_file_kind kh_file_kind_of(int fd);
/* Who has the file open as a store: a process id, -1: somebody of unknown id, 0: nobody. */
pid_t kh_storefile_holder(const char *path);
/*
 * Takes the store as an agent would, so that none starts with it; until the descriptor is closed. *fd -1: there is no such
 * file. KH_E_LOCKED: an agent has it. KH_E_STORAGE.
 */
KH_MUST_USE kh_result kh_storefile_lock(const char *path, int *fd);

/* One finding: a line without newline, with what to do. */
typedef void (*kh_finding_fn)(void *ctx, const char *text);
/*
 * SQLite's integrity check; needs no KEK. KH_E_DAMAGED: there were findings. KH_E_LOCKED, KH_E_STORAGE, KH_E_MEMORY: it could
 * not be done.
 */
KH_MUST_USE kh_result kh_storefile_integrity(const char *path, kh_finding_fn finding, void *ctx);

typedef struct kh_storefile_checking {
    kh_kek_kind kind;
    const uint8_t *kek_secret; /* borrowed */
    size_t kek_secret_len;
    kh_finding_fn finding;
    kh_log_fn log; /* why it cannot be opened; may be NULL */
    void *ctx;     /* of both */
} kh_storefile_checking;

/*
 * All that can be checked: SQLite's integrity, every row's seal and key, the indices, the import key. *keys: good ones.
 * As above; KH_E_NOT_FOUND, KH_E_PASSPHRASE, KH_E_VERSION: as kh_keeper_run.
 */
KH_MUST_USE kh_result kh_storefile_check(const char *path, const kh_storefile_checking *checking, uint64_t *keys);
/* A copy into an empty file, with what an agent that crashed left in the log beside it. Not synced. KH_E_IO: cannot be
 * written. */
KH_MUST_USE kh_result kh_storefile_copy(const char *from, const char *to);

/* What the KEK of an export file is. KH_E_MALFORMED, KH_E_VERSION, KH_E_DAMAGED, KH_E_IO. */
KH_MUST_USE kh_result kh_export_kek_kind(int fd, kh_kek_kind *kind);
/* The data of KH_STORE_IMPORT_ALL for an export that was made under another KEK than the store's. Wipe it. */
#define KH_EXPORT_KEY_LEN 32
KH_MUST_USE kh_result kh_export_key(int fd, kh_kek_kind kind, const uint8_t *secret, size_t secret_len,
                                    uint8_t key[KH_EXPORT_KEY_LEN]);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by store.c (opening), store_row.c (one row), and store_keys.c, store_change.c and store_check.c
 * (what is done with rows). */
#ifndef KEYHOLD_KEYSTORE_STORE_SQL_H
#define KEYHOLD_KEYSTORE_STORE_SQL_H

#include "seal.h"
#include "store.h"

#include <sqlite3.h>

/* X(constant, statement): prepared once, when the store is opened. Keys are found by an index first and then
 * read by ref, so that every value that counts comes from the sealed row and none from an index. */
#define KH_STATEMENTS(X)                                                                                     \
    X(ST_BEGIN, "BEGIN IMMEDIATE")                                                                           \
    X(ST_COMMIT, "COMMIT")                                                                                   \
    X(ST_ROLLBACK, "ROLLBACK")                                                                               \
    X(ST_GET, "SELECT name, version, type, bits, usage, state, policy, created, id, spki, sealed"            \
              " FROM keys WHERE ref = ?1")                                                                   \
    X(ST_BY_NAME, "SELECT ref FROM keys WHERE name = ?1 ORDER BY version DESC")                              \
    X(ST_BY_VERSION, "SELECT ref FROM keys WHERE name = ?1 AND version = ?2")                                \
    X(ST_BY_ID, "SELECT ref FROM keys WHERE id = ?1")                                                        \
    X(ST_AFTER, "SELECT ref, name, version FROM keys INDEXED BY keys_name WHERE (name, version) > (?1, ?2)"  \
                " ORDER BY name, version LIMIT 1")                                                           \
    X(ST_NEXT_REF, "SELECT seq + 1 FROM sqlite_sequence WHERE name = 'keys'")                                \
    X(ST_INSERT,                                                                                             \
      "INSERT INTO keys (ref, name, version, type, bits, usage, state, policy, created, id, spki, sealed)"   \
      " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")                                         \
    X(ST_RESEAL, "UPDATE keys SET state = ?2, policy = ?3, sealed = ?4 WHERE ref = ?1")                      \
    X(ST_DELETE, "DELETE FROM keys WHERE ref = ?1")                                                          \
    X(ST_COUNT, "SELECT count(*) FROM keys INDEXED BY keys_name")                                            \
    X(ST_COUNT_ROWS, "SELECT count(*), max(ref) FROM"                                                        \
                     " (SELECT ref FROM keys NOT INDEXED WHERE ref > ?1 ORDER BY ref LIMIT ?2)")             \
    X(ST_PURGED, "INSERT OR IGNORE INTO purged SELECT id FROM keys WHERE ref = ?1")                          \
    X(ST_IS_PURGED, "SELECT count(*) FROM purged WHERE id = ?1")                                             \
    X(ST_NAME_OF, "SELECT name, version FROM keys INDEXED BY keys_name WHERE ref = ?1 ORDER BY name")

typedef enum kh_statement {
#define KH_X(constant, text) constant,
    KH_STATEMENTS(KH_X)
#undef KH_X
        ST_COUNT_OF_STATEMENTS
} kh_statement;

struct kh_store {
    sqlite3 *db;
    sqlite3_stmt *statement[ST_COUNT_OF_STATEMENTS];
    kh_sealer *sealer;
    kh_store_changed_fn changed;
    void *changed_ctx;
    kh_log_fn log;
    void *log_ctx;
    bool bulk;        /* inside kh_store_begin */
    uint64_t changes; /* insertions and purges since it was opened */
    uint8_t import_private[32];
    uint8_t import_public[32];
};

/* One row, verified. Holds a secret while pkcs8_len > 0. */
typedef struct kh_row {
    kh_key_info info;
    uint32_t policy;
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX];
    size_t pkcs8_len;
} kh_row;

#define STATE_ENABLED 1u
#define STATE_DISABLED 2u
#define STATE_DELETED 3u
#define KH_POLICY_WAS_DISABLED 0x1u /* state before it was deleted */
#define KH_POLICY_BY_ROOT 0x2u      /* root disabled it: only root enables it */

/* What an SQLite error means; logs it with the given context. */
kh_result kh_store_error(kh_store *store, int code, const char *doing);
/* Steps a statement that returns no rows and resets it. */
KH_MUST_USE kh_result kh_store_run(kh_store *store, kh_statement which, const char *doing);
KH_MUST_USE kh_result kh_store_tx_begin(kh_store *store);
/* Commits when result is KH_OK, else rolls back; returns what came of it all. */
KH_MUST_USE kh_result kh_store_tx_end(kh_store *store, kh_result result);

/* The rows of a name, newest version first; the caller frees *refs. KH_E_NOT_FOUND: none. */
KH_MUST_USE kh_result kh_store_refs_of_name(kh_store *store, const char *name, size_t name_len,
                                            uint64_t **refs, size_t *count);
/* The entry that follows, into the same. KH_E_NOT_FOUND: none. KH_E_DAMAGED: it does not lead on. */
KH_MUST_USE kh_result kh_index_next(kh_store *store, kh_index_place *place);
/* Reads and verifies a row. expect: the name under which an index led here, or NULL. KH_E_NOT_FOUND,
 * KH_E_DAMAGED (logged). */
KH_MUST_USE kh_result kh_row_read(kh_store *store, uint64_t ref, const char *expect, size_t expect_len,
                                  kh_row *row);
KH_MUST_USE kh_result kh_row_insert(kh_store *store, const kh_row *row);
/* Writes state and policy, under a new seal. */
KH_MUST_USE kh_result kh_row_reseal(kh_store *store, const kh_row *row);

#endif

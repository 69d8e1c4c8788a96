/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by store.c (opening), store_schema.c (versions), store_meta.c (the keys of keys), store_row.c (one
 * row), and store_keys.c, store_change.c, store_check.c, store_copy.c and store_transfer.c (what is done with
 * rows), store_names.c (what is said of a name) and store_intent.c (objects in tokens that are being made or destroyed).
 */
#ifndef KEYHOLD_KEYSTORE_STORE_SQL_H
#define KEYHOLD_KEYSTORE_STORE_SQL_H

#include "kek.h"
#include "row.h"
#include "seal.h"
#include "store.h"

#include <sqlite3.h>

/* X(constant, statement): prepared once, when the store is opened. Keys are found by an index first and then
 * read by ref, so that every value that counts comes from the sealed row and none from an index. */
#define KH_STATEMENTS(X)                                                                                     \
    X(ST_BEGIN, "BEGIN IMMEDIATE")                                                                           \
    X(ST_COMMIT, "COMMIT")                                                                                   \
    X(ST_ROLLBACK, "ROLLBACK")                                                                               \
    X(ST_GET, "SELECT name, version, type, bits, usage, state, policy, created, id, spki, sealed,"           \
              " tier, place, not_before, expires, deleted FROM keys WHERE ref = ?1")                         \
    X(ST_BY_NAME, "SELECT ref FROM keys WHERE name = ?1 ORDER BY version DESC")                              \
    X(ST_BY_VERSION, "SELECT ref FROM keys WHERE name = ?1 AND version = ?2")                                \
    X(ST_BY_ID, "SELECT ref FROM keys WHERE id = ?1")                                                        \
    X(ST_AFTER, "SELECT ref, name, version FROM keys INDEXED BY keys_name WHERE (name, version) > (?1, ?2)"  \
                " ORDER BY name, version LIMIT 1")                                                           \
    X(ST_NEXT_REF, "SELECT seq + 1 FROM sqlite_sequence WHERE name = 'keys'")                                \
    X(ST_INSERT,                                                                                             \
      "INSERT INTO keys (ref, name, version, type, bits, usage, state, policy, created, id, spki, sealed,"   \
      " tier, place, not_before, expires, deleted)"                                                          \
      " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)")                \
    X(ST_RESEAL, "UPDATE keys SET state = ?2, policy = ?3, sealed = ?4, tier = ?5, place = ?6,"              \
                 " not_before = ?7, expires = ?8, deleted = ?9 WHERE ref = ?1")                              \
    X(ST_INTEND, "INSERT OR REPLACE INTO intents (token, object, destroy) VALUES (?1, ?2, ?3)")              \
    X(ST_INTENT_DONE, "DELETE FROM intents WHERE token = ?1 AND object = ?2")                                \
    X(ST_ORDERS, "SELECT token, count(*) FROM intents WHERE destroy <> 0 GROUP BY token ORDER BY token")     \
    X(ST_INTENT_FULFILLED, "DELETE FROM intents WHERE object = ?1")                                          \
    X(ST_NEXT_INTENT, "SELECT object, destroy FROM intents WHERE token = ?1 AND object > ?2"                 \
                      " ORDER BY object LIMIT 1")                                                            \
    X(ST_NAMED, "SELECT rotate_days, retain_days, tags, sealed FROM names WHERE name = ?1")                  \
    X(ST_NAME, "INSERT OR REPLACE INTO names (name, rotate_days, retain_days, tags, sealed)"                 \
               " VALUES (?1, ?2, ?3, ?4, ?5)")                                                               \
    X(ST_UNNAME, "DELETE FROM names WHERE name = ?1")                                                        \
    X(ST_NEXT_NAME, "SELECT name FROM names WHERE name > ?1 ORDER BY name LIMIT 1")                          \
    X(ST_DELETE, "DELETE FROM keys WHERE ref = ?1")                                                          \
    X(ST_AT_PLACE, "SELECT ref FROM keys WHERE place = ?1 AND place <> '' AND ref > ?2 ORDER BY ref LIMIT 1") \
    X(ST_COUNT, "SELECT count(*) FROM keys INDEXED BY keys_name")                                            \
    X(ST_NEXT_ROW,                                                                                           \
      "SELECT ref, name, version, id FROM keys NOT INDEXED WHERE ref > ?1 ORDER BY ref LIMIT 1")             \
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
    char *path;       /* for messages */
    bool read_only;   /* offline: nothing is written */
    bool by_next;     /* opened by the next KEK, and the one before still opens it, too */
    bool bulk;        /* inside kh_store_begin */
    uint64_t changes; /* insertions and purges since it was opened */
    uint8_t import_private[32];
    uint8_t import_public[32];
    uint8_t id[KH_STORE_ID_LEN];
    uint8_t kek_params[KH_KEK_RECIPE_LEN]; /* kind, and how the KEK comes from its secret */
    uint8_t transfer_key[KH_SEAL_KEY_LEN];     /* of the KEK: seals the keys of export files */
};

/* ---- store.c ---- */

/* An object without a file yet; closed by kh_store_close, also after a failure. */
KH_MUST_USE kh_result kh_store_new(const char *path, kh_log_fn log, void *ctx, kh_store **store);
/* version: of the file. */
KH_MUST_USE kh_result kh_store_prepare(kh_store *store, unsigned version);
/* What an SQLite error means; logs it with the given context. */
kh_result kh_store_error(kh_store *store, int code, const char *doing);
/* Runs SQL that returns nothing of interest. */
KH_MUST_USE kh_result kh_store_execute(kh_store *store, const char *sql, const char *doing);
/* Steps a statement that returns no rows and resets it. */
KH_MUST_USE kh_result kh_store_run(kh_store *store, kh_statement which, const char *doing);
KH_MUST_USE kh_result kh_store_tx_begin(kh_store *store);
/* Commits when result is KH_OK, else rolls back; returns what came of it all. */
KH_MUST_USE kh_result kh_store_tx_end(kh_store *store, kh_result result);

/* ---- store_meta.c: the table meta ---- */

/* Adds or replaces. len: at most KH_META_MAX. */
#define KH_META_MAX 128
KH_MUST_USE kh_result kh_meta_write(kh_store *store, const char *key, const uint8_t *value, size_t len);
/* KH_E_DAMAGED (logged): it is not there, or not as it was written. */
KH_MUST_USE kh_result kh_meta_read(kh_store *store, const char *key, uint8_t *value, size_t len);
/* Makes, and opens, the store's keys under the KEK. */
KH_MUST_USE kh_result kh_meta_make_keys(kh_store *store, kh_kek_kind kind, const uint8_t *secret,
                                        size_t secret_len);
KH_MUST_USE kh_result kh_meta_open_keys(kh_store *store, kh_kek_kind kind, const uint8_t *secret,
                                        size_t secret_len);
/* Opened by the next KEK: from now on only that opens the store. */
KH_MUST_USE kh_result kh_meta_settle(kh_store *store);
/* Whether the import key in the file is still the one that was opened. */
KH_MUST_USE kh_result kh_meta_check_import_key(kh_store *store);

/* ---- store_schema.c: versions ---- */

/* All of an empty store, in the transaction that the caller has begun. */
KH_MUST_USE kh_result kh_schema_make(kh_store *store);
/* The version of an open file. KH_E_VERSION (logged): not a store, or of a newer Keyhold. */
KH_MUST_USE kh_result kh_schema_check(kh_store *store, unsigned *version);
/* From that version to this program's, each step in a transaction of its own, after a copy of the file. */
KH_MUST_USE kh_result kh_schema_migrate(kh_store *store, unsigned version);

/* ---- rows ---- */

/* The number that the next row gets. */
KH_MUST_USE kh_result kh_store_next_ref(kh_store *store, uint64_t *ref);
/* KH_E_FORBIDDEN: a key of that id was purged. */
KH_MUST_USE kh_result kh_store_never_purged(kh_store *store, const uint8_t id[KH_KEY_ID_LEN]);
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
/* Writes what of a row can change: state, policy, tier, place, validity, deletion, and what is sealed, under a new seal. */
KH_MUST_USE kh_result kh_row_reseal(kh_store *store, const kh_row *row);
/* In a transaction: the row's object is there with its row, or is to be destroyed now that the row goes. */
KH_MUST_USE kh_result kh_intents_fulfilled(kh_store *store, const kh_row *row);
KH_MUST_USE kh_result kh_intents_destroy(kh_store *store, const kh_row *row, const kh_keeper_places *places);
/* Nothing is said of the name any more. */
KH_MUST_USE kh_result kh_names_forget(kh_store *store, const char *name);
/* Until when a key that was deleted then must stay. */
KH_MUST_USE kh_result kh_names_retained(kh_store *store, const char *name, uint64_t deleted, uint64_t *until);
/* Tells whoever has to know that these versions changed. */
void kh_store_tell(kh_store *store, const kh_touched *touched, size_t n);
/* Before it changes. */
void kh_store_touch(kh_touched *touched, const kh_row *row);

#endif

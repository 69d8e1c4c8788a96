/* SPDX-License-Identifier: Apache-2.0 */
/* The store's file: making it, opening it, its keys of keys. */
#include "kek.h"
#include "process.h"
#include "store_sql.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCHEMA_VERSION 1
#define APPLICATION_ID 0x4b484c44 /* "KHLD" */
#define SEALED_KEY_LEN (KH_SEAL_KEY_LEN + KH_SEAL_OVERHEAD)

static const char *const statements[] = {
#define KH_X(constant, text) [constant] = text,
    KH_STATEMENTS(KH_X)
#undef KH_X
};

/* Ids of keys that root purged. A store that was made before there was this table gets it when it is opened.
 */
#define PURGED_TABLE "CREATE TABLE IF NOT EXISTS purged (id BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;"

static const char schema[] =
    "PRAGMA application_id = 0x4b484c44;"
    "PRAGMA user_version = 1;"
    "CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE keys ("
    " ref INTEGER PRIMARY KEY AUTOINCREMENT," /* AUTOINCREMENT: a number is never used again */
    " name TEXT NOT NULL, version INTEGER NOT NULL, type INTEGER NOT NULL, bits INTEGER NOT NULL,"
    " usage INTEGER NOT NULL, state INTEGER NOT NULL, policy INTEGER NOT NULL, created INTEGER NOT NULL,"
    " id BLOB NOT NULL, spki BLOB NOT NULL, sealed BLOB NOT NULL);"
    "CREATE UNIQUE INDEX keys_name ON keys (name, version);"
    "CREATE INDEX keys_id ON keys (id);"
    "CREATE TABLE opened (times INTEGER NOT NULL);"
    "INSERT INTO opened VALUES (0);" PURGED_TABLE;

/*
 * EXCLUSIVE with WAL: one agent per store, no shared-memory file, and the lock is held until the file is
 * closed. FULL: a commit is on the disk when it returns.
 */
static const char pragmas[] = "PRAGMA locking_mode = EXCLUSIVE;"
                              "PRAGMA journal_mode = WAL;"
                              "PRAGMA synchronous = FULL;"
                              "PRAGMA temp_store = MEMORY;"
                              "PRAGMA wal_autocheckpoint = 256;" /* changes are rare; the log stays small */
                              "PRAGMA secure_delete = ON;"
                              "PRAGMA trusted_schema = OFF;"
                              "PRAGMA cell_size_check = ON;"
                              "PRAGMA cache_size = -8192;";

kh_result kh_store_error(kh_store *store, int code, const char *doing)
{
    kh_result result = KH_E_STORAGE;

    switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_DONE:
    case SQLITE_ROW:
        return KH_OK;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        result = KH_E_LOCKED;
        break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        result = KH_E_DAMAGED;
        break;
    case SQLITE_NOMEM:
        result = KH_E_MEMORY;
        break;
    default:
        break;
    }
    kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: %s: %s (SQLite %d)", doing,
            sqlite3_errmsg(store->db), code);
    return result;
}

/* ---- The keys of keys, in the table meta --------------------------------------------------------------- */

/* A checksum without a secret, only so that damage is not mistaken for a wrong passphrase. */
static void meta_sum(const char *key, const uint8_t *value, size_t len, uint8_t sum[32])
{
    uint8_t text[256];
    size_t key_len = strlen(key);

    memcpy(text, key, key_len);
    memcpy(text + key_len, value, len);
    SHA256(text, key_len + len, sum);
}

#define META_VALUE_MAX 128

static kh_result meta_write(kh_store *store, const char *key, const uint8_t *value, size_t len)
{
    sqlite3_stmt *statement = NULL;
    uint8_t sum[32];
    int code = sqlite3_prepare_v2(store->db, "INSERT INTO meta (key, value, sum) VALUES (?1, ?2, ?3)", -1,
                                  &statement, NULL);

    meta_sum(key, value, len, sum);
    if (code == SQLITE_OK) {
        sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
        sqlite3_bind_blob(statement, 2, value, (int)len, SQLITE_STATIC);
        sqlite3_bind_blob(statement, 3, sum, sizeof(sum), SQLITE_STATIC);
        code = sqlite3_step(statement);
    }
    sqlite3_finalize(statement);
    return kh_store_error(store, code, "writing meta");
}

static kh_result meta_read(kh_store *store, const char *key, uint8_t *value, size_t len)
{
    sqlite3_stmt *statement = NULL;
    uint8_t sum[32];
    int code =
        sqlite3_prepare_v2(store->db, "SELECT value, sum FROM meta WHERE key = ?1", -1, &statement, NULL);
    kh_result result = KH_E_DAMAGED;

    if (code != SQLITE_OK) {
        result = kh_store_error(store, code, "reading meta");
        goto done;
    }
    sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
    code = sqlite3_step(statement);
    if (code == SQLITE_ROW && (size_t)sqlite3_column_bytes(statement, 0) == len &&
        sqlite3_column_bytes(statement, 1) == 32) {
        memcpy(value, sqlite3_column_blob(statement, 0), len);
        meta_sum(key, value, len, sum);
        result = memcmp(sum, sqlite3_column_blob(statement, 1), sizeof(sum)) == 0 ? KH_OK : KH_E_DAMAGED;
    } else if (code != SQLITE_ROW && code != SQLITE_DONE) {
        result = kh_store_error(store, code, "reading meta");
        goto done;
    }
    if (result != KH_OK) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: its %s is damaged", key);
    }
done:
    sqlite3_finalize(statement);
    return result;
}

/* Associated data of the sealed store key: the kind and the parameters that lead to the KEK. */
static size_t kek_aad(uint8_t aad[64], const uint8_t kind_and_params[1 + KH_KEK_PARAMS_LEN])
{
    static const char label[] = "keyhold store key 1";

    memcpy(aad, label, sizeof(label));
    memcpy(aad + sizeof(label), kind_and_params, 1 + KH_KEK_PARAMS_LEN);
    return sizeof(label) + 1 + KH_KEK_PARAMS_LEN;
}

static const uint8_t import_aad[] = "keyhold import key 1";

static kh_result import_key_from(const uint8_t private_key[32], uint8_t public_key[32])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_private_key_ex(NULL, "X25519", NULL, private_key, 32);
    size_t len = 32;
    kh_result result =
        pkey != NULL && EVP_PKEY_get_raw_public_key(pkey, public_key, &len) == 1 ? KH_OK : KH_E_CRYPTO;

    EVP_PKEY_free(pkey);
    return result;
}

static kh_result write_keys(kh_store *store, kh_kek_kind kind, const uint8_t *secret, size_t secret_len)
{
    uint8_t kek[KH_KEK_LEN], store_key[KH_SEAL_KEY_LEN], aad[64], sealed[SEALED_KEY_LEN],
        params[1 + KH_KEK_PARAMS_LEN];
    kh_sealer *kek_sealer = NULL;
    kh_result result = KH_OK;

    params[0] = (uint8_t)kind;
    result = kh_kek_params_new(kind, params + 1);
    if (result != KH_OK || (result = kh_kek_derive(kind, secret, secret_len, params + 1, kek)) != KH_OK) {
        goto done;
    }
    if (RAND_priv_bytes(store_key, sizeof(store_key)) != 1 ||
        RAND_priv_bytes(store->import_private, sizeof(store->import_private)) != 1) {
        result = KH_E_CRYPTO;
        goto done;
    }
    if ((result = import_key_from(store->import_private, store->import_public)) != KH_OK ||
        (result = kh_sealer_new(kek, &kek_sealer)) != KH_OK ||
        (result = kh_sealer_new(store_key, &store->sealer)) != KH_OK ||
        (result = meta_write(store, "kek", params, sizeof(params))) != KH_OK ||
        (result = kh_seal(kek_sealer, aad, kek_aad(aad, params), store_key, sizeof(store_key), sealed)) !=
            KH_OK ||
        (result = meta_write(store, "store key", sealed, sizeof(sealed))) != KH_OK ||
        (result = kh_seal(store->sealer, import_aad, sizeof(import_aad), store->import_private, 32,
                          sealed)) != KH_OK ||
        (result = meta_write(store, "import key", sealed, sizeof(sealed))) != KH_OK) {
        goto done;
    }
done:
    kh_sealer_free(kek_sealer);
    OPENSSL_cleanse(kek, sizeof(kek));
    OPENSSL_cleanse(store_key, sizeof(store_key));
    return result;
}

static kh_result read_keys(kh_store *store, kh_kek_kind kind, const uint8_t *secret, size_t secret_len)
{
    uint8_t kek[KH_KEK_LEN], store_key[KH_SEAL_KEY_LEN], aad[64], sealed[SEALED_KEY_LEN],
        params[1 + KH_KEK_PARAMS_LEN];
    kh_sealer *kek_sealer = NULL;
    kh_result result = KH_OK;

    if ((result = meta_read(store, "kek", params, sizeof(params))) != KH_OK ||
        (result = meta_read(store, "store key", sealed, sizeof(sealed))) != KH_OK) {
        goto done;
    }
    if (params[0] != (uint8_t)kind) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: its key is sealed under a %s, not a %s",
                params[0] == KH_KEK_PASSPHRASE ? "passphrase" : "key file",
                kind == KH_KEK_PASSPHRASE ? "passphrase" : "key file");
        result = KH_E_PASSPHRASE;
        goto done;
    }
    if ((result = kh_kek_derive(kind, secret, secret_len, params + 1, kek)) != KH_OK ||
        (result = kh_sealer_new(kek, &kek_sealer)) != KH_OK) {
        goto done;
    }
    if (kh_unseal(kek_sealer, aad, kek_aad(aad, params), sealed, sizeof(sealed), store_key) != KH_OK) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: this %s does not open it: put the right one back",
                kind == KH_KEK_PASSPHRASE ? "passphrase" : "key-encryption key (kek_file)");
        result = KH_E_PASSPHRASE;
        goto done;
    }
    if ((result = kh_sealer_new(store_key, &store->sealer)) != KH_OK ||
        (result = meta_read(store, "import key", sealed, sizeof(sealed))) != KH_OK ||
        (result = kh_unseal(store->sealer, import_aad, sizeof(import_aad), sealed, sizeof(sealed),
                            store->import_private)) != KH_OK) {
        goto done;
    }
    result = import_key_from(store->import_private, store->import_public);
done:
    kh_sealer_free(kek_sealer);
    OPENSSL_cleanse(kek, sizeof(kek));
    OPENSSL_cleanse(store_key, sizeof(store_key));
    return result;
}

/* ---- Making and opening -------------------------------------------------------------------------------- */

static kh_result execute(kh_store *store, const char *sql, const char *doing)
{
    return kh_store_error(store, sqlite3_exec(store->db, sql, NULL, NULL, NULL), doing);
}

static kh_result open_database(kh_store *store, const char *path)
{
    int persist = 1;
    uint8_t seeded = 0;
    int code = sqlite3_open_v2(path, &store->db,
                               SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);

    if (code != SQLITE_OK) {
        return kh_store_error(store, code, path);
    }
    /* A confined keeper may not unlink; an empty write-ahead log beside the store does no harm. */
    sqlite3_file_control(store->db, "main", SQLITE_FCNTL_PERSIST_WAL, &persist);
    sqlite3_limit(store->db, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_randomness(sizeof(seeded), &seeded); /* opens its source now, before the process is confined */
    return execute(store, pragmas, "opening");
}

static kh_result pragma_number(kh_store *store, const char *sql, int64_t *number)
{
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);

    *number = -1;
    if (code == SQLITE_OK && (code = sqlite3_step(statement)) == SQLITE_ROW) {
        *number = sqlite3_column_int64(statement, 0);
    }
    sqlite3_finalize(statement);
    return kh_store_error(store, code, sql);
}

static kh_result check_schema(kh_store *store)
{
    int64_t application = 0, version = 0;
    kh_result result = pragma_number(store, "PRAGMA application_id", &application);

    if (result == KH_OK) {
        result = pragma_number(store, "PRAGMA user_version", &version);
    }
    if (result == KH_OK && (application != APPLICATION_ID || version != SCHEMA_VERSION)) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: %s",
                application != APPLICATION_ID ? "the file is not a Keyhold store"
                                              : "its format is of another version");
        result = KH_E_VERSION;
    }
    return result;
}

static kh_result prepare_statements(kh_store *store)
{
    for (int i = 0; i < ST_COUNT_OF_STATEMENTS; i++) {
        int code = sqlite3_prepare_v3(store->db, statements[i], -1, SQLITE_PREPARE_PERSISTENT,
                                      &store->statement[i], NULL);

        if (code != SQLITE_OK) {
            return kh_store_error(store, code, "preparing");
        }
    }
    return KH_OK;
}

void kh_store_close(kh_store *store)
{
    if (store == NULL) {
        return;
    }
    for (int i = 0; i < ST_COUNT_OF_STATEMENTS; i++) {
        sqlite3_finalize(store->statement[i]);
    }
    if (store->db != NULL && store->sealer != NULL) {
        sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    }
    sqlite3_close_v2(store->db);
    kh_sealer_free(store->sealer);
    OPENSSL_cleanse(store, sizeof(*store));
    free(store);
}

kh_result kh_store_init(const char *path, kh_kek_kind kind, const uint8_t *kek_secret, size_t kek_secret_len,
                        uint8_t import_public[32])
{
    kh_store *store = NULL;
    kh_result result = KH_E_MEMORY;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return errno == EEXIST ? KH_E_EXISTS : KH_E_STORAGE;
    }
    close(fd);
    store = calloc(1, sizeof(*store));
    if (store == NULL) {
        goto done;
    }
    if ((result = open_database(store, path)) != KH_OK ||
        (result = execute(store, "BEGIN EXCLUSIVE", "making")) != KH_OK ||
        (result = execute(store, schema, "making")) != KH_OK ||
        (result = write_keys(store, kind, kek_secret, kek_secret_len)) != KH_OK ||
        (result = execute(store, "COMMIT", "making")) != KH_OK) {
        goto done;
    }
    memcpy(import_public, store->import_public, 32);
done:
    kh_store_close(store);
    if (result != KH_OK) {
        unlink(path);
    }
    return result;
}

kh_result kh_store_open(const char *path, kh_kek_kind kind, const uint8_t *kek_secret, size_t kek_secret_len,
                        kh_log_fn log, void *ctx, kh_store **out)
{
    kh_store *store = NULL;
    kh_result result = KH_E_NOT_FOUND;

    *out = NULL;
    if (access(path, F_OK) != 0) {
        return result;
    }
    store = calloc(1, sizeof(*store));
    if (store == NULL) {
        return KH_E_MEMORY;
    }
    store->log = log;
    store->log_ctx = ctx;
    if ((result = open_database(store, path)) != KH_OK || (result = check_schema(store)) != KH_OK ||
        (result = execute(store, PURGED_TABLE, "opening")) != KH_OK ||
        (result = prepare_statements(store)) != KH_OK ||
        (result = read_keys(store, kind, kek_secret, kek_secret_len)) != KH_OK) {
        goto done;
    }
    /*
     * A first write now, so that whatever SQLite does with the first one (it syncs the directory of a new
     * log) is done before the process is confined. A full disk must not keep the agent from signing with the
     * keys that it has.
     */
    result = execute(store, "UPDATE opened SET times = times + 1", "first write");
    if (result == KH_E_STORAGE) {
        kh_logf(log, ctx, KH_LOG_WARN, "store: cannot be written now; keys can be used, not changed");
        result = KH_OK;
    }
done:
    if (result == KH_OK) {
        *out = store;
        store = NULL;
    }
    kh_store_close(store);
    return result;
}

void kh_store_on_change(kh_store *store, kh_store_changed_fn changed, void *ctx)
{
    store->changed = changed;
    store->changed_ctx = ctx;
}

const uint8_t *kh_store_import_private(const kh_store *store)
{
    return store->import_private;
}

const uint8_t *kh_store_import_public(const kh_store *store)
{
    return store->import_public;
}

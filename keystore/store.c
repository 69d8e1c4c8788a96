/* SPDX-License-Identifier: Apache-2.0 */
/* The store's file: making it, opening it, closing it. */
#include "process.h"
#include "store_copy.h"
#include "store_sql.h"

#include <errno.h>
#include <fcntl.h>
#include <keyhold/storefile.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const statements[] = {
#define KH_X(constant, text) [constant] = text,
    KH_STATEMENTS(KH_X)
#undef KH_X
};

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

kh_result kh_store_execute(kh_store *store, const char *sql, const char *doing)
{
    return kh_store_error(store, sqlite3_exec(store->db, sql, NULL, NULL, NULL), doing);
}

/* ---- Making and opening -------------------------------------------------------------------------------- */

static void log_holder(kh_store *store)
{
    pid_t holder = kh_storefile_holder(store->path);
    char who[48] = "another process";

    if (holder > 0) {
        snprintf(who, sizeof(who), "process %ld", (long)holder);
    }
    kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
            "store: %s is open in another agent (%s): stop that one, or give this one a store of its own",
            store->path, who);
}

kh_result kh_store_new(const char *path, kh_log_fn log, void *ctx, kh_store **out)
{
    kh_store *store = calloc(1, sizeof(*store));

    *out = store;
    if (store == NULL || (store->path = strdup(path)) == NULL) {
        return KH_E_MEMORY;
    }
    store->log = log;
    store->log_ctx = ctx;
    return KH_OK;
}

static kh_result open_database(kh_store *store)
{
    int persist = 1;
    uint8_t seeded = 0;
    int code = sqlite3_open_v2(store->path, &store->db,
                               SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);

    if (code != SQLITE_OK) {
        return kh_store_error(store, code, store->path);
    }
    /* A confined keeper may not unlink; an empty write-ahead log beside the store does no harm. */
    sqlite3_file_control(store->db, "main", SQLITE_FCNTL_PERSIST_WAL, &persist);
    sqlite3_limit(store->db, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_randomness(sizeof(seeded), &seeded); /* opens its source now, before the process is confined */
    code = sqlite3_exec(store->db, pragmas, NULL, NULL, NULL);
    if ((code & 0xff) == SQLITE_BUSY) {
        /* Without a lock of ours on the file, to look who has it gives none up. */
        sqlite3_close_v2(store->db);
        store->db = NULL;
        log_holder(store);
        return KH_E_LOCKED;
    }
    return kh_store_error(store, code, "opening");
}

/* ST_GET of a file that is only read and has a version before 3. */
static const char get_before_3[] = "SELECT name, version, type, bits, usage, state, policy, created, id, spki,"
                                   " sealed, 1, '', 0, 0, 0 FROM keys WHERE ref = ?1";

kh_result kh_store_prepare(kh_store *store, unsigned version)
{
    for (int i = 0; i < ST_COUNT_OF_STATEMENTS; i++) {
        const char *text = i == ST_GET && store->read_only && version < 3 ? get_before_3 : statements[i];
        int code =
            sqlite3_prepare_v3(store->db, text, -1, SQLITE_PREPARE_PERSISTENT, &store->statement[i], NULL);

        /* A store that is only read may be of a version that lacks a table. */
        if (code != SQLITE_OK && !(store->read_only && (code & 0xff) == SQLITE_ERROR)) {
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
    if (store->db != NULL && store->sealer != NULL && !store->read_only) {
        sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    }
    sqlite3_close_v2(store->db);
    kh_sealer_free(store->sealer);
    free(store->path);
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
    if ((result = kh_store_new(path, NULL, NULL, &store)) != KH_OK ||
        (result = open_database(store)) != KH_OK ||
        (result = kh_store_execute(store, "BEGIN EXCLUSIVE", "making")) != KH_OK ||
        (result = kh_schema_make(store)) != KH_OK ||
        (result = kh_meta_make_keys(store, kind, kek_secret, kek_secret_len)) != KH_OK ||
        (result = kh_store_execute(store, "COMMIT", "making")) != KH_OK) {
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

/* Who restored files as root, or whose disk is not mounted, is to read that, not "no such key". */
static kh_result find_store(const char *path, kh_log_fn log, void *ctx)
{
    bool there = access(path, F_OK) == 0;

    if (there && access(path, R_OK) == 0) {
        return KH_OK;
    }
    if (!there && (errno == ENOENT || errno == ENOTDIR)) {
        kh_logf(log, ctx, KH_LOG_ERROR,
                "store: there is no %s: is its disk mounted, the path right? keyholdctl init makes a new store, keyholdctl "
                "store restore brings a backup back",
                path);
        return KH_E_NOT_FOUND;
    }
    kh_logf(log, ctx, KH_LOG_ERROR,
            "store: %s cannot be read (%s): it, the files beside it and their directory belong to the keeper's user (chown)",
            path, strerror(errno));
    return KH_E_STORAGE;
}

kh_result kh_store_open(const char *path, kh_kek_kind kind, const uint8_t *kek_secret, size_t kek_secret_len,
                        kh_log_fn log, void *ctx, kh_store **out)
{
    kh_store *store = NULL;
    unsigned version = 0;
    kh_result result = find_store(path, log, ctx);

    *out = NULL;
    if (result != KH_OK) {
        return result;
    }
    /* The KEK comes before the migration: who does not have it changes nothing. */
    if ((result = kh_store_new(path, log, ctx, &store)) != KH_OK ||
        (result = open_database(store)) != KH_OK || (result = kh_schema_check(store, &version)) != KH_OK ||
        (result = kh_meta_open_keys(store, kind, kek_secret, kek_secret_len)) != KH_OK ||
        (result = kh_schema_migrate(store, version)) != KH_OK ||
        (result = kh_store_prepare(store, version)) != KH_OK ||
        (result = kh_meta_read(store, "store id", store->id, sizeof(store->id))) != KH_OK ||
        (result = kh_fdvfs_register()) != KH_OK) {
        goto done;
    }
    /*
     * A first write now, so that whatever SQLite does with the first one (it syncs the directory of a new
     * log) is done before the process is confined. A full disk must not keep the agent from signing with the
     * keys that it has.
     */
    result = kh_store_execute(store, "UPDATE opened SET times = times + 1", "first write");
    if (result == KH_OK) {
        result = kh_meta_settle(store);
    }
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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The schema and its versions. A store is made as of version 1 and led through all migrations, so that a new
 * one and a migrated one are the same. Migrations go forward only: an older Keyhold refuses what a newer one
 * has migrated, and the copy that is made before is the way back.
 */
#include "process.h"
#include "store_copy.h"
#include "store_sql.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <unistd.h>

#define APPLICATION_ID 0x4b484c44 /* "KHLD" */
#define COPY_PAGES 1024

static const char schema_1[] =
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
    "INSERT INTO opened VALUES (0);";

/* ---- The migrations: the n-th leads from version n to n + 1 ---------------------------------------------
 */

/* Ids of keys that root purged (some stores of version 1 have the table), and what names a store. */
static kh_result to_2(kh_store *store)
{
    uint8_t id[KH_STORE_ID_LEN];
    kh_result result = kh_store_execute(
        store, "CREATE TABLE IF NOT EXISTS purged (id BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID", "migrating");

    if (result == KH_OK && RAND_bytes(id, sizeof(id)) != 1) {
        result = KH_E_CRYPTO;
    }
    return result == KH_OK ? kh_meta_write(store, "store id", id, sizeof(id)) : result;
}

/*
 * Keys in tokens: where a key lives, from when to when it is valid, when it was deleted; objects in tokens that are being
 * made or destroyed; and what is said of a name: its tags, and how its versions follow each other. The seals of the rows
 * that are there stay as they are (store_row.c).
 */
static kh_result to_3(kh_store *store)
{
    return kh_store_execute(
        store,
        "ALTER TABLE keys ADD COLUMN tier INTEGER NOT NULL DEFAULT 1;"
        "ALTER TABLE keys ADD COLUMN place TEXT NOT NULL DEFAULT '';"
        "ALTER TABLE keys ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE keys ADD COLUMN expires INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE keys ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;"
        "CREATE INDEX keys_place ON keys (place) WHERE place <> '';" /* few, or none */
        "CREATE TABLE intents (token TEXT NOT NULL, object BLOB NOT NULL, destroy INTEGER NOT NULL,"
        " PRIMARY KEY (token, object)) WITHOUT ROWID;"
        "CREATE TABLE names (name TEXT PRIMARY KEY NOT NULL, rotate_days INTEGER NOT NULL,"
        " retain_days INTEGER NOT NULL, tags TEXT NOT NULL, sealed BLOB NOT NULL) WITHOUT ROWID;",
        "migrating");
}

static kh_result (*const migrations[])(kh_store *store) = {to_2, to_3};

#define VERSION_NOW (1 + sizeof(migrations) / sizeof(migrations[0]))

/* One step, in the transaction that the caller has begun. */
static kh_result step(kh_store *store, unsigned version)
{
    char sql[64];
    kh_result result = migrations[version - 1](store);

    snprintf(sql, sizeof(sql), "PRAGMA user_version = %u", version + 1);
    return result == KH_OK ? kh_store_execute(store, sql, "migrating") : result;
}

kh_result kh_schema_make(kh_store *store)
{
    kh_result result = kh_store_execute(store, schema_1, "making");

    for (unsigned version = 1; result == KH_OK && version < VERSION_NOW; version++) {
        result = step(store, version);
    }
    return result;
}

/* ---- What is there ------------------------------------------------------------------------------------- */

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

kh_result kh_schema_check(kh_store *store, unsigned *version)
{
    int64_t application = 0, found = 0;
    kh_result result = pragma_number(store, "PRAGMA application_id", &application);

    if (result == KH_OK) {
        result = pragma_number(store, "PRAGMA user_version", &found);
    }
    if (result != KH_OK) {
        return result;
    }
    *version = (unsigned)found;
    if (application != APPLICATION_ID || found < 1) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: %s is not a Keyhold store", store->path);
        return KH_E_VERSION;
    }
    if (found > (int64_t)VERSION_NOW) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
                "store: %s is of a newer Keyhold: its schema has version %lld, this program knows 1 to %u. "
                "Install the "
                "newer Keyhold, or restore the copy or backup from before (%s.v%u.bak)",
                store->path, (long long)found, (unsigned)VERSION_NOW, store->path, (unsigned)VERSION_NOW);
        return KH_E_VERSION;
    }
    return KH_OK;
}

/* ---- Migrating ----------------------------------------------------------------------------------------- */

static bool sync_path(const char *path, int flags)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    bool synced = fd >= 0 && fsync(fd) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return synced;
}

static bool sync_directory_of(const char *path)
{
    char copy[PATH_MAX];

    return (size_t)snprintf(copy, sizeof(copy), "%s", path) < sizeof(copy) &&
           sync_path(dirname(copy), O_DIRECTORY);
}

/* An empty file of our own; one that a migration left that was interrupted is taken again. */
static bool make_empty(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

/* Through SQLite: to open and close the file by itself would give up the lock on it. */
static kh_result copy_all(kh_store *store, const char *path)
{
    kh_store_copy *copy = NULL;
    kh_result result = kh_store_copy_new(store, path, NULL, &copy);

    if (result == KH_OK) {
        do {
            result = kh_store_copy_step(copy, COPY_PAGES);
        } while (result == KH_AGAIN);
    }
    kh_store_copy_free(copy);
    return result;
}

static kh_result keep_copy(kh_store *store, unsigned version)
{
    char path[PATH_MAX], partial[PATH_MAX];
    kh_result result = KH_OK;

    if ((size_t)snprintf(path, sizeof(path), "%s.v%u.bak", store->path, version) >= sizeof(path) ||
        (size_t)snprintf(partial, sizeof(partial), "%s.partial", path) >= sizeof(partial)) {
        return KH_E_TOO_LARGE;
    }
    result = make_empty(partial) ? copy_all(store, partial) : KH_E_IO;
    if (result == KH_OK &&
        (!sync_path(partial, 0) || rename(partial, path) != 0 || !sync_directory_of(path))) {
        result = KH_E_IO;
    }
    if (result != KH_OK) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
                "store: cannot keep a copy of it before it is migrated, %s (%s): make room for another of "
                "its size",
                path, strerror(errno));
        unlink(partial);
        return KH_E_STORAGE;
    }
    kh_logf(store->log, store->log_ctx, KH_LOG_NOTICE,
            "store: %s has version %u; kept a copy of it, %s, which an older Keyhold can open", store->path,
            version, path);
    return KH_OK;
}

static kh_result migrate_by_one(kh_store *store, unsigned version)
{
    kh_result result = kh_store_execute(store, "BEGIN EXCLUSIVE", "migrating");

    if (result != KH_OK) {
        return result;
    }
    kh_logf(store->log, store->log_ctx, KH_LOG_INFO, "store: migrating from version %u to %u", version,
            version + 1);
    result = step(store, version);
    if (result == KH_OK) {
        kh_logf(store->log, store->log_ctx, KH_LOG_INFO, "store: committing version %u", version + 1);
        result = kh_store_execute(store, "COMMIT", "migrating");
    }
    if (result != KH_OK) {
        kh_result undone = kh_store_execute(store, "ROLLBACK", "migrating");

        (void)undone;
        return result;
    }
    kh_logf(store->log, store->log_ctx, KH_LOG_NOTICE, "store: has version %u now", version + 1);
    return KH_OK;
}

kh_result kh_schema_migrate(kh_store *store, unsigned version)
{
    kh_result result = version < VERSION_NOW ? keep_copy(store, version) : KH_OK;

    for (; result == KH_OK && version < VERSION_NOW; version++) {
        result = migrate_by_one(store, version);
    }
    return result;
}

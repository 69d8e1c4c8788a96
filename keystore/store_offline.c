/* SPDX-License-Identifier: Apache-2.0 */
/* Stores that no agent has open: who has them, opening to read only, and checking. See keyhold/storefile.h.
 */
#include "store_copy.h"
#include "store_sql.h"
#include "transfer.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <keyhold/storefile.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FINDINGS_MAX 100
#define COPY_PAGES 1024
/* Where SQLite locks a database file (its file format, "the lock-byte page"). */
#define LOCK_BYTES 0x40000000
#define LOCK_LEN 512

/* ---- Whose it is --------------------------------------------------------------------------------------- */

pid_t kh_storefile_holder(const char *path)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BYTES, .l_len = LOCK_LEN};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    pid_t holder = 0;

    if (fd >= 0 && fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) {
        holder = lock.l_pid > 0 ? lock.l_pid : -1;
    }
    if (fd >= 0) {
        close(fd);
    }
    return holder;
}

kh_result kh_storefile_lock(const char *path, int *fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BYTES, .l_len = LOCK_LEN};
    kh_result result = KH_E_STORAGE;

    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd < 0) {
        return errno == ENOENT ? KH_OK : result;
    }
    if (fcntl(*fd, F_SETLK, &lock) == 0) {
        return KH_OK;
    }
    result = errno == EAGAIN || errno == EACCES ? KH_E_LOCKED : result;
    close(*fd);
    *fd = -1;
    return result;
}

kh_file_kind kh_file_kind_of(int fd)
{
    static const uint8_t application[4] = {'K', 'H', 'L', 'D'};
    uint8_t bytes[100];
    ssize_t n = pread(fd, bytes, sizeof(bytes), 0);

    if (n == 0) {
        return KH_FILE_EMPTY;
    }
    if (n == (ssize_t)sizeof(bytes) && memcmp(bytes, "SQLite format 3", 16) == 0 &&
        memcmp(bytes + 68, application, sizeof(application)) == 0) {
        return KH_FILE_STORE;
    }
    return n == (ssize_t)sizeof(bytes) && memcmp(bytes, "keyhold-export", 14) == 0 ? KH_FILE_EXPORT
                                                                                   : KH_FILE_OTHER;
}

/* ---- Opening ------------------------------------------------------------------------------------------- */

/* A file name as SQLite wants it in a URI. */
static char *file_uri(const char *path, const char *query)
{
    static const char digits[] = "0123456789abcdef";
    char *uri = malloc(sizeof("file:") + 3 * strlen(path) + strlen(query)), *at = uri;

    if (uri == NULL) {
        return NULL;
    }
    at += sprintf(at, "file:");
    for (; *path != '\0'; path++) {
        if (isalnum((unsigned char)*path) || strchr("/._-", *path) != NULL) {
            *at++ = *path;
        } else {
            *at++ = '%';
            *at++ = digits[(unsigned char)*path >> 4];
            *at++ = digits[*path & 15];
        }
    }
    (void)strcpy(at, query);
    return uri;
}

/* Whether an agent that ended without closing it left changes in the log beside the file. */
static bool has_log(const char *path)
{
    char log[4096];
    struct stat st;

    return (size_t)snprintf(log, sizeof(log), "%s-wal", path) < sizeof(log) && stat(log, &st) == 0 &&
           st.st_size > 0;
}

/*
 * With a log the file has to be opened as one that is written, for only then SQLite reads the log; without,
 * as one that never changes, which leaves no trace beside it.
 */
static int open_to_read(const char *path, sqlite3 **db)
{
    bool log = has_log(path);
    char *uri = file_uri(path, log ? "?mode=rw" : "?immutable=1");
    int code = SQLITE_NOMEM, persist = 1;

    if (uri == NULL) {
        return code;
    }
    code = sqlite3_open_v2(uri, db,
                           SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE |
                               (log ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY),
                           NULL);
    free(uri);
    if (code != SQLITE_OK) {
        return code;
    }
    sqlite3_file_control(*db, "main", SQLITE_FCNTL_PERSIST_WAL, &persist);
    sqlite3_db_config(*db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    return sqlite3_exec(
        *db,
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY;"
        "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA user_version;",
        NULL, NULL, NULL);
}

kh_result kh_store_open_to_read(const char *path, kh_kek_kind kind, const uint8_t *kek_secret,
                                size_t kek_secret_len, kh_log_fn log, void *ctx, kh_store **out)
{
    kh_store *store = NULL;
    unsigned version = 0;
    kh_result result = KH_E_NOT_FOUND;

    *out = NULL;
    if (access(path, F_OK) != 0) {
        return result;
    }
    if (kh_storefile_holder(path) != 0) {
        return KH_E_LOCKED;
    }
    if ((result = kh_store_new(path, log, ctx, &store)) != KH_OK) {
        goto done;
    }
    store->read_only = true;
    if ((result = kh_store_error(store, open_to_read(path, &store->db), "opening")) != KH_OK ||
        (result = kh_schema_check(store, &version)) != KH_OK ||
        (result = kh_meta_open_keys(store, kind, kek_secret, kek_secret_len)) != KH_OK ||
        (result = kh_store_prepare(store, version)) != KH_OK) {
        goto done;
    }
    if (version >= 2) {
        result = kh_meta_read(store, "store id", store->id, sizeof(store->id));
    }
done:
    if (result == KH_OK) {
        *out = store;
        store = NULL;
    }
    kh_store_close(store);
    return result;
}

/* ---- SQLite's own check -------------------------------------------------------------------------------- */

static kh_result each_finding(sqlite3 *db, kh_finding_fn finding, void *ctx, unsigned *findings)
{
    sqlite3_stmt *statement = NULL;
    char sql[64];
    int code = SQLITE_OK;

    snprintf(sql, sizeof(sql), "PRAGMA integrity_check(%d)", FINDINGS_MAX);
    code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
    while (code == SQLITE_OK && (code = sqlite3_step(statement)) == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);

        code = SQLITE_OK;
        if (text != NULL && strcmp(text, "ok") != 0) {
            finding(ctx, text);
            ++*findings;
        }
    }
    sqlite3_finalize(statement);
    if (code == SQLITE_DONE) {
        return KH_OK;
    }
    if ((code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB) {
        finding(ctx, sqlite3_errstr(code));
        ++*findings;
        return KH_OK;
    }
    return (code & 0xff) == SQLITE_NOMEM ? KH_E_MEMORY : KH_E_STORAGE;
}

kh_result kh_storefile_integrity(const char *path, kh_finding_fn finding, void *ctx)
{
    sqlite3 *db = NULL;
    unsigned findings = 0;
    int code = open_to_read(path, &db);
    kh_result result = KH_OK;

    if ((code & 0xff) == SQLITE_BUSY) {
        result = KH_E_LOCKED;
    } else if ((code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB) {
        finding(ctx, sqlite3_errstr(code));
        findings++;
    } else if (code != SQLITE_OK) {
        result = KH_E_STORAGE;
    } else {
        result = each_finding(db, finding, ctx, &findings);
    }
    sqlite3_close_v2(db);
    return result == KH_OK && findings > 0 ? KH_E_DAMAGED : result;
}

/* ---- All of it ----------------------------------------------------------------------------------------- */

/* Each line of a report but the last, which has the sum. */
static void tell_lines(char *text, size_t len, kh_finding_fn finding, void *ctx)
{
    char *end = NULL;

    for (char *line = text;
         line < text + len && (end = memchr(line, '\n', (size_t)(text + len - line))) != NULL;
         line = end + 1) {
        *end = '\0';
        if (strncmp(line, "ok ", 3) != 0) {
            finding(ctx, line);
        }
    }
}

/* Along the whole store; what is found is told slice by slice. */
static kh_result check_keys(kh_store *store, kh_finding_fn finding, void *ctx, uint64_t *keys)
{
    kh_store_checking state = {0};
    char text[16 * 1024];
    size_t len = 0;
    kh_result result = KH_AGAIN;

    while (result == KH_AGAIN) {
        len = 0;
        result = kh_store_check(store, &state, 1, text, sizeof(text), &len);
        tell_lines(text, len, finding, ctx);
    }
    *keys = state.good;
    return result == KH_OK && state.findings > 0 ? KH_E_DAMAGED : result;
}

kh_result kh_storefile_check(const char *path, const kh_storefile_checking *checking, uint64_t *keys)
{
    kh_store *store = NULL;
    kh_result structure = KH_OK, result = KH_OK;

    *keys = 0;
    result = kh_store_open_to_read(path, checking->kind, checking->kek_secret, checking->kek_secret_len,
                                   checking->log, checking->ctx, &store);
    if (result == KH_OK) {
        store->log = NULL; /* from now on the findings say it */
        result = check_keys(store, checking->finding, checking->ctx, keys);
    }
    kh_store_close(store);
    if (result == KH_OK || result == KH_E_DAMAGED) {
        structure = kh_storefile_integrity(path, checking->finding, checking->ctx);
        result = result == KH_OK ? structure : result;
    }
    return result;
}

kh_result kh_storefile_copy(const char *from, const char *to)
{
    kh_store *store = NULL;
    kh_store_copy *copy = NULL;
    kh_result result = kh_store_new(from, NULL, NULL, &store);

    if (result == KH_OK) {
        store->read_only = true;
        result = kh_store_error(store, open_to_read(from, &store->db), "opening");
    }
    if (result == KH_OK) {
        result = kh_store_copy_new(store, to, NULL, &copy);
    }
    if (result == KH_OK) {
        do {
            result = kh_store_copy_step(copy, COPY_PAGES);
        } while (result == KH_AGAIN);
    }
    kh_store_copy_free(copy);
    kh_store_close(store);
    return result;
}

/* ---- Export files -------------------------------------------------------------------------------------- */

static kh_result read_header(int fd, kh_transfer_header *header)
{
    uint8_t bytes[KH_TRANSFER_HEADER_LEN];
    ssize_t n = pread(fd, bytes, sizeof(bytes), 0);

    if (n != (ssize_t)sizeof(bytes)) {
        return n < 0                                              ? KH_E_IO
               : n >= 14 && kh_file_kind_of(fd) == KH_FILE_EXPORT ? KH_E_DAMAGED
                                                                  : KH_E_MALFORMED;
    }
    return kh_transfer_header_parse(bytes, header);
}

kh_result kh_export_kek_kind(int fd, kh_kek_kind *kind)
{
    kh_transfer_header header;
    kh_result result = read_header(fd, &header);

    if (result == KH_OK) {
        *kind = header.kek[0] == KH_KEK_PASSPHRASE ? KH_KEK_PASSPHRASE : KH_KEK_FILE;
    }
    return result;
}

kh_result kh_export_key(int fd, kh_kek_kind kind, const uint8_t *secret, size_t secret_len,
                        uint8_t key[KH_EXPORT_KEY_LEN])
{
    kh_transfer_header header;
    uint8_t kek[KH_KEK_LEN];
    kh_result result = read_header(fd, &header);

    if (result == KH_OK && header.kek[0] != (uint8_t)kind) {
        result = KH_E_PASSPHRASE;
    }
    if (result == KH_OK) {
        result = kh_kek_derive(kind, secret, secret_len, header.kek + 1, kek);
    }
    if (result == KH_OK) {
        result = kh_kek_transfer_key(kek, key);
    }
    OPENSSL_cleanse(kek, sizeof(kek));
    return result;
}

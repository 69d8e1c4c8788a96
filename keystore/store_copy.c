/* SPDX-License-Identifier: Apache-2.0 */
/* A copy of an open store, in slices. See store_copy.h. */
#include "store_copy.h"
#include "process.h"
#include "store_sql.h"

#include <stdlib.h>

struct kh_store_copy {
    kh_store *store;
    sqlite3 *to;
    sqlite3_backup *backup;
};

/* No journal: a copy that is not finished is thrown away. A small cache: what does not fit is written. */
static const char pragmas[] =
    "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -2048;"
    "PRAGMA temp_store = MEMORY;";

/* Only the copy is written to, so what cannot be written is the copy. */
static kh_result copy_error(kh_store_copy *copy, int code)
{
    const char *why = sqlite3_errstr(code);

    switch (code & 0xff) {
    case SQLITE_NOMEM:
        return KH_E_MEMORY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return kh_store_error(copy->store, code, "copying");
    default:
        kh_logf(copy->store->log, copy->store->log_ctx, KH_LOG_ERROR,
                "store: its copy cannot be written: %s (SQLite %d)", why, code);
        return KH_E_IO;
    }
}

kh_result kh_store_copy_new(kh_store *store, const char *to, const char *vfs, kh_store_copy **out)
{
    kh_store_copy *copy = calloc(1, sizeof(*copy));
    int code = SQLITE_NOMEM;
    kh_result result = KH_E_MEMORY;

    *out = NULL;
    if (copy == NULL) {
        return result;
    }
    copy->store = store;
    code = sqlite3_open_v2(to, &copy->to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
                           vfs);
    if (code == SQLITE_OK) {
        code = sqlite3_exec(copy->to, pragmas, NULL, NULL, NULL);
    }
    if (code == SQLITE_OK) {
        copy->backup = sqlite3_backup_init(copy->to, "main", store->db, "main");
        code = copy->backup != NULL ? SQLITE_OK : sqlite3_extended_errcode(copy->to);
    }
    if (code != SQLITE_OK) {
        result = copy_error(copy, code);
        kh_store_copy_free(copy);
        return result;
    }
    *out = copy;
    return KH_OK;
}

kh_result kh_store_copy_step(kh_store_copy *copy, unsigned pages)
{
    int code = sqlite3_backup_step(copy->backup, (int)pages);

    if (code == SQLITE_OK) {
        return KH_AGAIN;
    }
    if (code == SQLITE_DONE) {
        code = sqlite3_backup_finish(copy->backup);
        copy->backup = NULL;
    }
    return code == SQLITE_OK ? KH_OK : copy_error(copy, code);
}

void kh_store_copy_free(kh_store_copy *copy)
{
    if (copy != NULL) {
        (void)sqlite3_backup_finish(copy->backup);
        sqlite3_close_v2(copy->to);
        free(copy);
    }
}

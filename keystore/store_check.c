/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store from end to end: the way along the index of names, and the check of each row, in slices. The
 * index is not sealed, so it is followed only forwards: a damaged one that leads back would never end.
 */
#include "store_sql.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define ROWS_PER_COUNT 64 /* rows counted in the time in which one is read and verified, roughly */

/* Whether an entry of the index comes after the place, as a name and a version that can be. */
static bool leads_on(sqlite3_stmt *st, const kh_index_place *place)
{
    const void *name = sqlite3_column_blob(st, 1);
    size_t len = (size_t)sqlite3_column_bytes(st, 1);
    int64_t version = sqlite3_column_int64(st, 2);
    int order = 0;

    if (sqlite3_column_type(st, 1) != SQLITE_TEXT || sqlite3_column_type(st, 2) != SQLITE_INTEGER ||
        name == NULL || len == 0 || len > KH_NAME_MAX) {
        return false;
    }
    order = memcmp(name, place->name, len < place->name_len ? len : place->name_len);
    if (order == 0 && len == place->name_len) {
        return version > place->version;
    }
    return order > 0 || (order == 0 && len > place->name_len);
}

kh_result kh_index_next(kh_store *store, kh_index_place *place)
{
    sqlite3_stmt *st = store->statement[ST_AFTER];
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    sqlite3_bind_text(st, 1, place->name, (int)place->name_len, SQLITE_STATIC);
    sqlite3_bind_int64(st, 2, place->version);
    code = sqlite3_step(st);
    result = kh_store_error(store, code, "following the index");
    if (result == KH_OK && code != SQLITE_ROW) {
        result = KH_E_NOT_FOUND;
    } else if (result == KH_OK && !leads_on(st, place)) {
        result = KH_E_DAMAGED;
    }
    if (result == KH_OK) {
        place->ref = (uint64_t)sqlite3_column_int64(st, 0);
        place->name_len = (size_t)sqlite3_column_bytes(st, 1);
        memcpy(place->name, sqlite3_column_blob(st, 1), place->name_len);
        place->version = sqlite3_column_int64(st, 2);
    }
    sqlite3_reset(st);
    return result;
}

/* ---- Check --------------------------------------------------------------------------------------------- */

/* Appends, but leaves room for the last line: what does not fit is in the log and in its count. */
static void append(char *text, size_t cap, size_t *len, const char *line, size_t line_len, size_t room)
{
    if (*len + line_len + room <= cap) {
        memcpy(text + *len, line, line_len);
        *len += line_len;
    }
}

/* Counts rows without the index. Done when none is left. */
static kh_result count_rows(kh_store *store, kh_store_checking *checking, unsigned most)
{
    sqlite3_stmt *st = store->statement[ST_COUNT_ROWS];
    uint64_t rows = 0, last = 0;
    kh_result result = KH_OK;

    sqlite3_bind_int64(st, 1, (int64_t)checking->counted_to);
    sqlite3_bind_int64(st, 2, (int64_t)most * ROWS_PER_COUNT);
    result = kh_store_error(store, sqlite3_step(st), "counting");
    if (result == KH_OK) {
        rows = (uint64_t)sqlite3_column_int64(st, 0);
        last = (uint64_t)sqlite3_column_int64(st, 1);
    }
    sqlite3_reset(st);
    checking->counted = rows == 0 || last <= checking->counted_to;
    checking->rows += checking->counted ? 0 : rows;
    checking->counted_to = last;
    return result;
}

/* One row along the index. KH_E_NOT_FOUND: that was all. */
static kh_result check_next(kh_store *store, kh_store_checking *checking, char *text, size_t cap, size_t *len)
{
    char line[KH_NAME_MAX + 64];
    kh_row row;
    int n = 0;
    kh_result result = kh_index_next(store, &checking->at);

    if (result != KH_OK) {
        return result;
    }
    checking->seen++;
    if (kh_row_read(store, checking->at.ref, checking->at.name, checking->at.name_len, &row) == KH_OK &&
        row.info.version == checking->at.version) {
        checking->good++;
    } else {
        n = snprintf(line, sizeof(line), "%.*s/%lld damaged\n", (int)checking->at.name_len, checking->at.name,
                     (long long)checking->at.version);
        append(text, cap, len, line, n > 0 ? (size_t)n : 0, 128);
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return KH_OK;
}

/* The last line. Rows that came or went meanwhile are no damage. */
static void conclude(kh_store *store, const kh_store_checking *checking, bool lost, char *text, size_t cap,
                     size_t *len)
{
    bool index_good = !lost && (checking->seen == checking->rows || checking->changes != store->changes);
    char line[128];
    int n = snprintf(line, sizeof(line), "%s%llu keys%s\n",
                     index_good && checking->good == checking->seen ? "ok " : "damaged: good are ",
                     (unsigned long long)checking->good,
                     lost         ? "; the index is damaged"
                     : index_good ? ""
                                  : "; the index has another number of keys");

    append(text, cap, len, line, n > 0 ? (size_t)n : 0, 0);
}

kh_result kh_store_check(kh_store *store, kh_store_checking *checking, unsigned most, char *text, size_t cap,
                         size_t *len)
{
    kh_result result = KH_OK;

    if (checking->counted_to == 0 && !checking->counted) {
        checking->changes = store->changes;
    }
    if (!checking->counted) {
        result = count_rows(store, checking, most);
        return result == KH_OK ? KH_AGAIN : result;
    }
    for (unsigned i = 0; result == KH_OK && i < most; i++) {
        result = check_next(store, checking, text, cap, len);
    }
    if (result == KH_OK) {
        return KH_AGAIN;
    }
    if (result == KH_E_NOT_FOUND || result == KH_E_DAMAGED) {
        conclude(store, checking, result == KH_E_DAMAGED, text, cap, len);
        result = KH_OK;
    }
    return result;
}

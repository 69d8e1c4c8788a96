/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store from end to end: the way along the index of names, and the check of each row and each key, in
 * slices. The index is not sealed, so it is followed only forwards: a damaged one that leads back would never
 * end.
 */
#include "store_sql.h"

#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ROWS_PER_COUNT                                                                                       \
    8 /* rows sought in the indices in the time in which one is opened and compared, roughly */

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

#define RESTORE "restore the store from a backup"
#define LAST_LINE 128 /* room that is kept for it: findings that do not fit are in its count */

typedef struct report {
    kh_store_checking *checking;
    char *text;
    size_t cap, *len;
} report;

static void append(const report *to, const char *line, size_t len, size_t room)
{
    if (*to->len + len + room <= to->cap) {
        memcpy(to->text + *to->len, line, len);
        *to->len += len;
    }
}

static void say(const report *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(const report *to, const char *format, ...)
{
    char line[KH_NAME_MAX + 256];
    va_list args;
    int n = 0;

    va_start(args, format);
    n = vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    to->checking->findings++;
    if (n > 0 && (size_t)n < sizeof(line)) {
        append(to, line, (size_t)n, LAST_LINE);
    }
}

static int64_t number_of(kh_store *store, const char *sql)
{
    sqlite3_stmt *st = NULL;
    int64_t number = -1;

    if (sqlite3_prepare_v2(store->db, sql, -1, &st, NULL) == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW) {
        number = sqlite3_column_int64(st, 0);
    }
    sqlite3_finalize(st);
    return number;
}

/* What is beside the keys. */
static void check_rest(kh_store *store, const report *to)
{
    if (kh_meta_check_import_key(store) != KH_OK) {
        say(to, "the import key is damaged: keys can be used, none can be imported; " RESTORE "\n");
    }
    if (number_of(store, "SELECT count(*) FROM purged WHERE typeof(id) <> 'blob' OR length(id) <> 32") > 0) {
        say(to, "the table of purged keys has entries that are no key ids: a key that was purged could come "
                "back; " RESTORE "\n");
    }
    if (number_of(store,
                  "SELECT max(ref) > (SELECT seq FROM sqlite_sequence WHERE name = 'keys') FROM keys") > 0) {
        say(to, "the numbering of rows is behind the rows: no key can be added; " RESTORE "\n");
    }
}

/* Whether an index leads from what the row says to the row. */
static bool leads_here(kh_store *store, kh_statement which, uint64_t ref)
{
    sqlite3_stmt *st = store->statement[which];
    bool found = false;

    while (!found && sqlite3_step(st) == SQLITE_ROW) {
        found = (uint64_t)sqlite3_column_int64(st, 0) == ref;
    }
    sqlite3_reset(st);
    return found;
}

/* One row, found without an index: is it in both of them? KH_E_NOT_FOUND: that was all. */
static kh_result seek_next(kh_store *store, const report *to)
{
    sqlite3_stmt *row = store->statement[ST_NEXT_ROW], *by_name = store->statement[ST_BY_VERSION],
                 *by_id = store->statement[ST_BY_ID];
    kh_store_checking *checking = to->checking;
    kh_result result = KH_OK;
    uint64_t ref = 0;
    int code = SQLITE_OK;

    sqlite3_bind_int64(row, 1, (int64_t)checking->counted_to);
    code = sqlite3_step(row);
    result = kh_store_error(store, code, "reading the table of keys");
    if (result == KH_OK && code != SQLITE_ROW) {
        result = KH_E_NOT_FOUND;
    }
    ref = result == KH_OK ? (uint64_t)sqlite3_column_int64(row, 0) : 0;
    if (result == KH_OK && ref <= checking->counted_to) {
        result = KH_E_DAMAGED; /* leads back */
    }
    if (result != KH_OK) {
        goto done;
    }
    checking->rows++;
    checking->counted_to = ref;
    sqlite3_bind_value(by_name, 1, sqlite3_column_value(row, 1));
    sqlite3_bind_value(by_name, 2, sqlite3_column_value(row, 2));
    sqlite3_bind_value(by_id, 1, sqlite3_column_value(row, 3));
    if (!leads_here(store, ST_BY_VERSION, ref)) {
        say(to, "%.*s/%lld is not found by its name (row %llu): the index of names is damaged; " RESTORE "\n",
            KH_NAME_MAX, (const char *)sqlite3_column_text(row, 1), (long long)sqlite3_column_int64(row, 2),
            (unsigned long long)ref);
    }
    if (!leads_here(store, ST_BY_ID, ref)) {
        say(to, "%.*s/%lld is not found by its id (row %llu): the index of ids is damaged; " RESTORE "\n",
            KH_NAME_MAX, (const char *)sqlite3_column_text(row, 1), (long long)sqlite3_column_int64(row, 2),
            (unsigned long long)ref);
    }
done:
    sqlite3_reset(row);
    sqlite3_clear_bindings(by_name);
    sqlite3_clear_bindings(by_id);
    return result;
}

static kh_result seek_rows(kh_store *store, const report *to, unsigned most)
{
    kh_result result = KH_OK;

    for (unsigned i = 0; result == KH_OK && i < most; i++) {
        result = seek_next(store, to);
    }
    if (result == KH_E_DAMAGED) {
        say(to, "the table of keys is damaged after row %llu; " RESTORE "\n",
            (unsigned long long)to->checking->counted_to);
    }
    if (result == KH_E_NOT_FOUND || result == KH_E_DAMAGED) {
        to->checking->counted = true;
        return KH_OK;
    }
    return result;
}

/* One key along the index of names. KH_E_NOT_FOUND: that was all. */
static kh_result check_next(kh_store *store, const report *to)
{
    kh_store_checking *checking = to->checking;
    const char *wrong = NULL;
    kh_row row;
    kh_result result = kh_index_next(store, &checking->at);

    if (result != KH_OK) {
        return result;
    }
    checking->seen++;
    if (kh_row_read(store, checking->at.ref, checking->at.name, checking->at.name_len, &row) != KH_OK) {
        wrong = "its row is not as it was sealed";
    } else if (row.info.version != checking->at.version) {
        wrong = "the index has it under another version";
    } else if (kh_row_sound(&row) != KH_OK) {
        wrong = "its private key does not belong to its public key";
    } else {
        checking->good++;
    }
    if (wrong != NULL) {
        say(to, "%.*s/%lld damaged: %s; purge it and import it again, or " RESTORE "\n",
            (int)checking->at.name_len, checking->at.name, (long long)checking->at.version, wrong);
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return KH_OK;
}

/* Rows that came or went meanwhile are no damage. */
static void compare_numbers(kh_store *store, const report *to)
{
    const kh_store_checking *checking = to->checking;
    int64_t ids = number_of(store, "SELECT count(*) FROM keys INDEXED BY keys_id");

    if (checking->changes != store->changes) {
        return;
    }
    if (checking->seen != checking->rows) {
        say(to, "the index of names has %llu keys, the table %llu; " RESTORE "\n",
            (unsigned long long)checking->seen, (unsigned long long)checking->rows);
    }
    if (ids != (int64_t)checking->rows) {
        say(to, "the index of ids has %lld keys, the table %llu; " RESTORE "\n", (long long)ids,
            (unsigned long long)checking->rows);
    }
}

static void conclude(const report *to)
{
    const kh_store_checking *checking = to->checking;
    char line[LAST_LINE];
    int n = checking->findings == 0
                ? snprintf(line, sizeof(line), "ok %llu keys\n", (unsigned long long)checking->good)
                : snprintf(line, sizeof(line), "damaged: good are %llu keys; %llu findings\n",
                           (unsigned long long)checking->good, (unsigned long long)checking->findings);

    append(to, line, n > 0 ? (size_t)n : 0, 0);
}

kh_result kh_store_check(kh_store *store, kh_store_checking *checking, unsigned most, char *text, size_t cap,
                         size_t *len)
{
    const report to = {.checking = checking, .text = text, .cap = cap, .len = len};
    kh_result result = KH_OK;

    if (!checking->began) {
        checking->began = true;
        checking->changes = store->changes;
        check_rest(store, &to);
    }
    if (!checking->counted) {
        result = seek_rows(store, &to, most * ROWS_PER_COUNT);
        return result == KH_OK ? KH_AGAIN : result;
    }
    for (unsigned i = 0; result == KH_OK && i < most; i++) {
        result = check_next(store, &to);
    }
    if (result == KH_OK) {
        return KH_AGAIN;
    }
    if (result != KH_E_NOT_FOUND && result != KH_E_DAMAGED) {
        return result;
    }
    if (result == KH_E_DAMAGED) {
        say(&to, "the index of names is damaged after %.*s/%lld; " RESTORE "\n", (int)checking->at.name_len,
            checking->at.name, (long long)checking->at.version);
    } else {
        compare_numbers(store, &to);
    }
    conclude(&to);
    return KH_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* One row of the store: reading with verification, writing with a seal. */
#include "process.h"
#include "store_sql.h"

#include <openssl/crypto.h>
#include <string.h>

#define SEALED_MAX (KH_IMPORT_PKCS8_MAX + KH_SEAL_OVERHEAD)
#define AAD_MAX                                                                                              \
    (16 + 8 * 2 + 4 * 6 + 2 + KH_NAME_MAX + KH_KEY_ID_LEN + 2 + KH_SPKI_MAX + 4 + 1 + KH_PLACE_MAX + 3 * 8)

/*
 * The canonical encoding of all that a seal protects beside the key; big-endian, lengths before what varies. What the
 * store's version 3 added is in it only where a row has any of it, so that older rows keep their seals; the label at the
 * beginning says which it is.
 */
static size_t encode_aad(const kh_row *row, uint8_t aad[AAD_MAX])
{
    const kh_key_info *info = &row->info;
    const bool plain = !kh_row_in_token(row) && info->place[0] == '\0' && info->not_before == 0 &&
                       info->expires == 0 && row->deleted == 0;
    size_t name_len = strlen(info->name), place_len = strlen(info->place);
    uint8_t *at = kh_put_bytes(aad, plain ? "keyhold key 1\0\0" : "keyhold key 2\0\0", 16);

    at = kh_put_number(at, info->ref, 8);
    at = kh_put_number(at, info->created, 8);
    at = kh_put_number(at, info->version, 4);
    at = kh_put_number(at, info->type, 4);
    at = kh_put_number(at, info->bits, 4);
    at = kh_put_number(at, info->usage, 4);
    at = kh_put_number(at, info->state, 4);
    at = kh_put_number(at, row->policy, 4);
    at = kh_put_number(at, name_len, 2);
    at = kh_put_bytes(at, info->name, name_len);
    at = kh_put_bytes(at, info->id, KH_KEY_ID_LEN);
    at = kh_put_number(at, info->spki_len, 2);
    at = kh_put_bytes(at, info->spki, info->spki_len);
    if (!plain) {
        at = kh_put_number(at, info->tier, 4);
        at = kh_put_number(at, place_len, 1);
        at = kh_put_bytes(at, info->place, place_len);
        at = kh_put_number(at, info->not_before, 8);
        at = kh_put_number(at, info->expires, 8);
        at = kh_put_number(at, row->deleted, 8);
    }
    return (size_t)(at - aad);
}

/* A number exactly as it was written: one that was cut to fit would hide a flipped bit. */
static bool column_u32(sqlite3_stmt *statement, int column, uint32_t *value)
{
    int64_t number = sqlite3_column_int64(statement, column);

    *value = (uint32_t)number;
    return sqlite3_column_type(statement, column) == SQLITE_INTEGER && number >= 0 && number <= UINT32_MAX;
}

static bool column_bytes(sqlite3_stmt *statement, int column, int type, const void **bytes, size_t *len)
{
    *bytes = sqlite3_column_blob(statement, column);
    *len = (size_t)sqlite3_column_bytes(statement, column);
    return sqlite3_column_type(statement, column) == type && *bytes != NULL;
}

static bool column_time(sqlite3_stmt *statement, int column, uint64_t *value)
{
    int64_t number = sqlite3_column_int64(statement, column);

    *value = (uint64_t)number;
    return sqlite3_column_type(statement, column) == SQLITE_INTEGER && number >= 0;
}

/* What version 3 added. An empty text has no bytes to point to. */
static bool take_columns_3(sqlite3_stmt *st, kh_row *row)
{
    kh_key_info *info = &row->info;
    const void *place = NULL;
    size_t len = 0;

    if (!column_u32(st, 11, &info->tier) || sqlite3_column_type(st, 12) != SQLITE_TEXT ||
        (!column_bytes(st, 12, SQLITE_TEXT, &place, &len) && len > 0) || len > KH_PLACE_MAX ||
        !column_time(st, 13, &info->not_before) || !column_time(st, 14, &info->expires) ||
        !column_time(st, 15, &row->deleted)) {
        return false;
    }
    if (len > 0) {
        memcpy(info->place, place, len);
    }
    return kh_info_possible(info);
}

/* The columns of ST_GET into a row; the sealed bytes are left where SQLite has them. */
static bool take_columns(sqlite3_stmt *st, kh_row *row, const uint8_t **sealed, size_t *sealed_len)
{
    kh_key_info *info = &row->info;
    const void *name = NULL, *id = NULL, *spki = NULL, *seal = NULL;
    size_t name_len = 0, id_len = 0, spki_len = 0;

    if (!column_bytes(st, 0, SQLITE_TEXT, &name, &name_len) || !kh_name_valid(name, name_len) ||
        !column_u32(st, 1, &info->version) || !column_u32(st, 2, &info->type) ||
        !column_u32(st, 3, &info->bits) || !column_u32(st, 4, &info->usage) ||
        !column_u32(st, 5, &info->state) || !column_u32(st, 6, &row->policy) ||
        !column_time(st, 7, &info->created) || !take_columns_3(st, row) ||
        !column_bytes(st, 8, SQLITE_BLOB, &id, &id_len) || id_len != KH_KEY_ID_LEN ||
        !column_bytes(st, 9, SQLITE_BLOB, &spki, &spki_len) || spki_len > KH_SPKI_MAX ||
        !column_bytes(st, 10, SQLITE_BLOB, &seal, sealed_len) || *sealed_len > SEALED_MAX ||
        *sealed_len <= KH_SEAL_OVERHEAD) {
        return false;
    }
    memcpy(info->name, name, name_len);
    memcpy(info->id, id, id_len);
    memcpy(info->spki, spki, spki_len);
    info->spki_len = (uint32_t)spki_len;
    *sealed = seal;
    return true;
}

/* A damaged row's own name may be what is damaged; the index has another copy. */
static void log_damage(kh_store *store, uint64_t ref, const char *expect, size_t expect_len)
{
    sqlite3_stmt *st = store->statement[ST_NAME_OF];
    char name[KH_NAME_MAX + 16] = "";

    if (expect != NULL) {
        sqlite3_snprintf(sizeof(name), name, "%.*s", (int)expect_len, expect);
    } else {
        sqlite3_bind_int64(st, 1, (int64_t)ref);
        if (sqlite3_step(st) == SQLITE_ROW && sqlite3_column_bytes(st, 0) <= KH_NAME_MAX) {
            sqlite3_snprintf(sizeof(name), name, "%s/%d", (const char *)sqlite3_column_text(st, 0),
                             sqlite3_column_int(st, 1));
        }
        sqlite3_reset(st);
    }
    kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: key %s (row %llu) is damaged and not used",
            name[0] != '\0' ? name : "of unknown name", (unsigned long long)ref);
}

kh_result kh_row_read(kh_store *store, uint64_t ref, const char *expect, size_t expect_len, kh_row *row)
{
    sqlite3_stmt *st = store->statement[ST_GET];
    const uint8_t *sealed = NULL;
    size_t sealed_len = 0;
    uint8_t aad[AAD_MAX];
    kh_result result = KH_E_DAMAGED;
    int code = SQLITE_OK;

    memset(row, 0, sizeof(*row));
    row->info.ref = ref;
    sqlite3_bind_int64(st, 1, (int64_t)ref);
    code = sqlite3_step(st);
    if (code == SQLITE_DONE && expect == NULL) {
        result = KH_E_NOT_FOUND;
        goto done;
    }
    if (code != SQLITE_ROW && code != SQLITE_DONE) {
        result = kh_store_error(store, code, "reading a key");
        goto done;
    }
    if (code == SQLITE_ROW && take_columns(st, row, &sealed, &sealed_len) &&
        (expect == NULL ||
         (strlen(row->info.name) == expect_len && memcmp(row->info.name, expect, expect_len) == 0))) {
        result = kh_unseal(store->sealer, aad, encode_aad(row, aad), sealed, sealed_len, row->pkcs8);
        row->pkcs8_len = sealed_len - KH_SEAL_OVERHEAD;
    }
done:
    sqlite3_reset(st);
    if (result != KH_OK) {
        OPENSSL_cleanse(row, sizeof(*row));
    }
    if (result == KH_E_DAMAGED) {
        log_damage(store, ref, expect, expect_len);
    }
    return result;
}

static kh_result seal_row(kh_store *store, const kh_row *row, uint8_t sealed[SEALED_MAX])
{
    uint8_t aad[AAD_MAX];

    return kh_seal(store->sealer, aad, encode_aad(row, aad), row->pkcs8, row->pkcs8_len, sealed);
}

kh_result kh_row_insert(kh_store *store, const kh_row *row)
{
    sqlite3_stmt *st = store->statement[ST_INSERT];
    const kh_key_info *info = &row->info;
    uint8_t sealed[SEALED_MAX];
    kh_result result = seal_row(store, row, sealed);

    if (result != KH_OK) {
        return result;
    }
    sqlite3_bind_int64(st, 1, (int64_t)info->ref);
    sqlite3_bind_text(st, 2, info->name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 3, info->version);
    sqlite3_bind_int64(st, 4, info->type);
    sqlite3_bind_int64(st, 5, info->bits);
    sqlite3_bind_int64(st, 6, info->usage);
    sqlite3_bind_int64(st, 7, info->state);
    sqlite3_bind_int64(st, 8, row->policy);
    sqlite3_bind_int64(st, 9, (int64_t)info->created);
    sqlite3_bind_blob(st, 10, info->id, KH_KEY_ID_LEN, SQLITE_STATIC);
    sqlite3_bind_blob(st, 11, info->spki, (int)info->spki_len, SQLITE_STATIC);
    sqlite3_bind_blob(st, 12, sealed, (int)(row->pkcs8_len + KH_SEAL_OVERHEAD), SQLITE_STATIC);
    sqlite3_bind_int64(st, 13, info->tier);
    sqlite3_bind_text(st, 14, info->place, -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 15, (int64_t)info->not_before);
    sqlite3_bind_int64(st, 16, (int64_t)info->expires);
    sqlite3_bind_int64(st, 17, (int64_t)row->deleted);
    return kh_store_run(store, ST_INSERT, "writing a key");
}

kh_result kh_row_reseal(kh_store *store, const kh_row *row)
{
    sqlite3_stmt *st = store->statement[ST_RESEAL];
    uint8_t sealed[SEALED_MAX];
    kh_result result = seal_row(store, row, sealed);

    if (result != KH_OK) {
        return result;
    }
    sqlite3_bind_int64(st, 1, (int64_t)row->info.ref);
    sqlite3_bind_int64(st, 2, row->info.state);
    sqlite3_bind_int64(st, 3, row->policy);
    sqlite3_bind_blob(st, 4, sealed, (int)(row->pkcs8_len + KH_SEAL_OVERHEAD), SQLITE_STATIC);
    sqlite3_bind_int64(st, 5, row->info.tier);
    sqlite3_bind_text(st, 6, row->info.place, -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 7, (int64_t)row->info.not_before);
    sqlite3_bind_int64(st, 8, (int64_t)row->info.expires);
    sqlite3_bind_int64(st, 9, (int64_t)row->deleted);
    return kh_store_run(store, ST_RESEAL, "changing a key");
}

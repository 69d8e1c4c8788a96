/* SPDX-License-Identifier: Apache-2.0 */
/* What is done with the store's keys: insert, find, list. Changes are in store_change.c. */
#include "process.h"
#include "store_sql.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define VERSIONS_MAX 4096 /* of one name, or of one id */

kh_result kh_store_run(kh_store *store, kh_statement which, const char *doing)
{
    int code = sqlite3_step(store->statement[which]);
    kh_result result = kh_store_error(store, code, doing);

    sqlite3_reset(store->statement[which]);
    sqlite3_clear_bindings(store->statement[which]);
    return result;
}

kh_result kh_store_tx_begin(kh_store *store)
{
    return store->bulk ? KH_OK : kh_store_run(store, ST_BEGIN, "beginning");
}

kh_result kh_store_tx_end(kh_store *store, kh_result result)
{
    if (store->bulk) {
        return result;
    }
    if (result == KH_OK) {
        result = kh_store_run(store, ST_COMMIT, "committing");
    }
    if (result != KH_OK && !sqlite3_get_autocommit(store->db)) {
        kh_result undone = kh_store_run(store, ST_ROLLBACK, "rolling back");
        (void)undone;
    }
    return result;
}

kh_result kh_store_begin(kh_store *store)
{
    kh_result result = kh_store_tx_begin(store);

    store->bulk = result == KH_OK;
    return result;
}

kh_result kh_store_commit(kh_store *store)
{
    store->bulk = false;
    return kh_store_tx_end(store, KH_OK);
}

kh_result kh_store_count(kh_store *store, uint64_t *count)
{
    sqlite3_stmt *st = store->statement[ST_COUNT];
    int code = sqlite3_step(st);
    kh_result result = kh_store_error(store, code, "counting");

    *count = code == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(st, 0) : 0;
    sqlite3_reset(st);
    return result;
}

/* The numbers of all rows that an index gives for the bound statement. Caller frees. */
static kh_result collect_refs(kh_store *store, kh_statement which, uint64_t **refs, size_t *count)
{
    sqlite3_stmt *st = store->statement[which];
    size_t cap = 0, n = 0;
    int code = SQLITE_ROW;
    kh_result result = KH_OK;

    *refs = NULL;
    *count = 0;
    while (n < VERSIONS_MAX && (code = sqlite3_step(st)) == SQLITE_ROW) {
        if (n == cap) {
            uint64_t *more = realloc(*refs, (cap + 16) * sizeof(**refs));

            if (more == NULL) {
                code = SQLITE_NOMEM;
                break;
            }
            *refs = more;
            cap += 16;
        }
        (*refs)[n++] = (uint64_t)sqlite3_column_int64(st, 0);
    }
    result = kh_store_error(store, code, "searching");
    sqlite3_reset(st);
    if (result == KH_OK && n == 0) {
        result = KH_E_NOT_FOUND;
    }
    if (result != KH_OK) {
        free(*refs);
        *refs = NULL;
    } else {
        *count = n;
    }
    return result;
}

kh_result kh_store_refs_of_name(kh_store *store, const char *name, size_t name_len, uint64_t **refs,
                                size_t *count)
{
    sqlite3_bind_text(store->statement[ST_BY_NAME], 1, name, (int)name_len, SQLITE_STATIC);
    return collect_refs(store, ST_BY_NAME, refs, count);
}

static kh_result refs_of_id(kh_store *store, const uint8_t id[KH_KEY_ID_LEN], uint64_t **refs, size_t *count)
{
    sqlite3_bind_blob(store->statement[ST_BY_ID], 1, id, KH_KEY_ID_LEN, SQLITE_STATIC);
    return collect_refs(store, ST_BY_ID, refs, count);
}

/* ---- Insert -------------------------------------------------------------------------------------------- */

static bool info_named(const kh_key_info *info)
{
    const char *end = memchr(info->name, '\0', sizeof(info->name));

    return end != NULL && kh_name_valid(info->name, (size_t)(end - info->name)) &&
           memchr(info->place, '\0', sizeof(info->place)) != NULL;
}

/* A version that does not say where it lives lives where the one before does; a first one in memory. */
static void inherit_place(kh_key_info *info, const kh_key_info *before)
{
    if (info->tier == 0) {
        info->tier = before != NULL ? before->tier : KH_TIER_SOFTWARE;
    }
    if (before != NULL && info->tier == before->tier && info->place[0] == '\0') {
        memcpy(info->place, before->place, sizeof(info->place));
    }
}

/* What name and version an insertion gets, and the usage and the place that it inherits. */
static kh_result place_version(kh_store *store, kh_store_asker asker, kh_key_info *info)
{
    uint64_t *refs = NULL;
    size_t count = 0;
    kh_row *row = NULL;
    kh_result result = kh_store_refs_of_name(store, info->name, strlen(info->name), &refs, &count);
    bool extends = (info->flags & KH_KEY_NEW_VERSION) != 0;

    info->version = 1;
    if (result == KH_E_NOT_FOUND) {
        inherit_place(info, NULL);
        result = extends ? KH_E_NOT_FOUND : KH_OK;
        goto done;
    }
    if (result != KH_OK || !extends) {
        result = result != KH_OK ? result : KH_E_EXISTS;
        goto done;
    }
    row = malloc(sizeof(*row));
    if (row == NULL) {
        result = KH_E_MEMORY;
        goto done;
    }
    result = kh_row_read(store, refs[0], info->name, strlen(info->name), row);
    if (result != KH_OK) {
        goto done;
    }
    if (row->info.state == STATE_DELETED || count >= VERSIONS_MAX) {
        result = row->info.state == STATE_DELETED ? KH_E_DISABLED : KH_E_TOO_LARGE;
        goto done;
    }
    if (info->usage != 0 && info->usage != row->info.usage) {
        result = KH_E_INVALID;
        goto done;
    }
    info->usage = row->info.usage;
    info->version = row->info.version + 1;
    inherit_place(info, &row->info);
    /* What follows goes by the newest version: the front does not say where. */
    if (asker != KH_ASKER_ROOT &&
        (info->tier != row->info.tier || strcmp(info->place, row->info.place) != 0)) {
        result = KH_E_FORBIDDEN;
    }
done:
    if (row != NULL) {
        OPENSSL_cleanse(row, sizeof(*row));
    }
    free(row);
    free(refs);
    return result;
}

static kh_result check_request(kh_store *store, kh_store_asker asker, kh_key_info *info, uint32_t type)
{
    kh_result result = KH_OK;

    if (!info_named(info) || (info->flags & ~(KH_KEY_ALLOW_DUPLICATE | KH_KEY_NEW_VERSION)) != 0) {
        return KH_E_INVALID;
    }
    result = place_version(store, asker, info);
    if (result == KH_OK && !kh_usage_possible(info->usage, type)) {
        result = KH_E_INVALID;
    }
    return result;
}

kh_result kh_store_may_insert(kh_store *store, kh_store_asker asker, kh_key_info *info)
{
    return check_request(store, asker, info, info->type);
}

kh_result kh_store_next_ref(kh_store *store, uint64_t *ref)
{
    sqlite3_stmt *st = store->statement[ST_NEXT_REF];
    int code = sqlite3_step(st);
    kh_result result = kh_store_error(store, code, "numbering");

    *ref = code == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(st, 0) : 1;
    sqlite3_reset(st);
    return result;
}

kh_result kh_store_never_purged(kh_store *store, const uint8_t id[KH_KEY_ID_LEN])
{
    sqlite3_stmt *st = store->statement[ST_IS_PURGED];
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    sqlite3_bind_blob(st, 1, id, KH_KEY_ID_LEN, SQLITE_STATIC);
    code = sqlite3_step(st);
    result = kh_store_error(store, code, "looking for a purged key");
    if (result == KH_OK && sqlite3_column_int64(st, 0) != 0) {
        result = KH_E_FORBIDDEN;
    }
    sqlite3_reset(st);
    return result;
}

/* Whether the front may bring a key once more that these rows have. */
static kh_result may_double(kh_store *store, const uint64_t *refs, size_t count)
{
    kh_row row;
    kh_result result = KH_OK;

    for (size_t i = 0; result == KH_OK && i < count; i++) {
        result = kh_row_read(store, refs[i], NULL, 0, &row);
        if (result == KH_OK && (row.info.state == STATE_DELETED || (row.policy & KH_POLICY_BY_ROOT) != 0)) {
            result = KH_E_FORBIDDEN;
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return result;
}

/* Whether a key that is perhaps there already, or was, may come. */
static kh_result check_id(kh_store *store, kh_store_asker asker, const kh_key_info *info)
{
    uint64_t *refs = NULL;
    size_t count = 0;
    kh_result result = asker == KH_ASKER_ROOT ? KH_OK : kh_store_never_purged(store, info->id);

    if (result != KH_OK) {
        return result;
    }
    result = refs_of_id(store, info->id, &refs, &count);
    if (result == KH_OK && (info->flags & KH_KEY_ALLOW_DUPLICATE) == 0) {
        result = KH_E_DUPLICATE;
    } else if (result == KH_OK && asker != KH_ASKER_ROOT) {
        result = may_double(store, refs, count);
    }
    free(refs);
    return result == KH_E_NOT_FOUND ? KH_OK : result;
}

static kh_result insert_row(kh_store *store, kh_store_asker asker, kh_row *row)
{
    kh_result result = check_request(store, asker, &row->info, row->info.type);

    if (result == KH_OK && (!kh_info_possible(&row->info) || (kh_row_in_token(row) && kh_row_sound(row) != KH_OK))) {
        result = KH_E_INVALID;
    }
    if (result == KH_OK) {
        result = check_id(store, asker, &row->info);
    }
    if (result == KH_OK) {
        result = kh_store_next_ref(store, &row->info.ref);
    }
    if (result == KH_OK) {
        result = kh_row_insert(store, row);
    }
    return result;
}

kh_result kh_store_insert(kh_store *store, kh_store_asker asker, kh_key_info *info,
                          const kh_material *material)
{
    kh_row *row = calloc(1, sizeof(*row));
    kh_result result = KH_E_MEMORY;

    if (row == NULL) {
        goto done;
    }
    memcpy(row->info.name, info->name, sizeof(row->info.name));
    row->info.usage = info->usage;
    row->info.flags = info->flags;
    row->info.tier = info->tier;
    memcpy(row->info.place, info->place, sizeof(row->info.place));
    row->info.not_before = info->not_before;
    row->info.expires = info->expires;
    row->policy = material->adopted ? KH_POLICY_ADOPTED : 0;
    row->info.type = (uint32_t)material->type;
    row->info.bits = material->bits;
    row->info.state = STATE_ENABLED;
    row->info.created = (uint64_t)time(NULL);
    row->info.spki_len = (uint32_t)material->spki_len;
    memcpy(row->info.id, material->id, sizeof(row->info.id));
    memcpy(row->info.spki, material->spki, material->spki_len);
    memcpy(row->pkcs8, material->pkcs8, material->pkcs8_len);
    row->pkcs8_len = material->pkcs8_len;
    result = kh_store_tx_begin(store);
    if (result != KH_OK) {
        goto done;
    }
    result = insert_row(store, asker, row);
    if (result == KH_OK && kh_row_in_token(row)) {
        result = kh_intents_fulfilled(store, row);
    }
    result = kh_store_tx_end(store, result);
    if (result == KH_OK) {
        store->changes++;
        row->info.flags = 0;
        *info = row->info;
    }
done:
    if (row != NULL) {
        OPENSSL_cleanse(row, sizeof(*row));
    }
    free(row);
    return result;
}

/* ---- Find and list ------------------------------------------------------------------------------------- */

kh_result kh_store_get(kh_store *store, uint64_t ref, kh_key_info *info, uint8_t *pkcs8, size_t *pkcs8_len)
{
    kh_row row;
    kh_result result = KH_E_NOT_FOUND;

    if (ref == 0 || ref > INT64_MAX) {
        return result;
    }
    result = kh_row_read(store, ref, NULL, 0, &row);
    if (result == KH_OK) {
        *info = row.info;
        if (pkcs8 != NULL) {
            memcpy(pkcs8, row.pkcs8, row.pkcs8_len);
            *pkcs8_len = row.pkcs8_len;
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return result;
}

static int by_state_and_version(const void *left, const void *right)
{
    const kh_key_info *a = left, *b = right;

    if (a->state != b->state) {
        return a->state < b->state ? -1 : 1;
    }
    return a->version != b->version ? (a->version > b->version ? -1 : 1) : strcmp(a->name, b->name);
}

/* Keeps the best `max` of what it is given, in order. */
static void keep_best(kh_key_info *infos, size_t max, size_t *count, const kh_key_info *info)
{
    size_t at = *count;

    while (at > 0 && by_state_and_version(info, &infos[at - 1]) < 0) {
        at--;
    }
    if (at >= max) {
        return;
    }
    if (*count == max) {
        *count = max - 1;
    }
    memmove(&infos[at + 1], &infos[at], (*count - at) * sizeof(*infos));
    infos[at] = *info;
    ++*count;
}

static kh_result read_all(kh_store *store, const uint64_t *refs, size_t n, const char *expect,
                          size_t expect_len, uint32_t version, kh_key_info *infos, size_t max, size_t *count)
{
    kh_row row;
    kh_result result = KH_E_NOT_FOUND;

    for (size_t i = 0; i < n; i++) {
        kh_result read = kh_row_read(store, refs[i], expect, expect_len, &row);

        if (read == KH_OK && (version == 0 || row.info.version == version)) {
            keep_best(infos, max, count, &row.info);
        } else if (read != KH_OK) {
            result = read;
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return *count > 0 ? KH_OK : result;
}

kh_result kh_store_find_name(kh_store *store, const char *name, size_t name_len, uint32_t version,
                             kh_key_info *infos, size_t max, size_t *count)
{
    sqlite3_stmt *st = store->statement[ST_BY_VERSION];
    uint64_t *refs = NULL;
    size_t n = 0;
    kh_result result = KH_OK;

    *count = 0;
    if (version == 0) {
        result = kh_store_refs_of_name(store, name, name_len, &refs, &n);
    } else {
        sqlite3_bind_text(st, 1, name, (int)name_len, SQLITE_STATIC);
        sqlite3_bind_int64(st, 2, version);
        result = collect_refs(store, ST_BY_VERSION, &refs, &n);
    }
    if (result == KH_OK) {
        result = read_all(store, refs, n, name, name_len, version, infos, max, count);
    }
    free(refs);
    return result;
}

kh_result kh_store_find_id(kh_store *store, const uint8_t id[KH_KEY_ID_LEN], kh_key_info *infos, size_t max,
                           size_t *count)
{
    uint64_t *refs = NULL;
    size_t n = 0;
    kh_result result = refs_of_id(store, id, &refs, &n);

    *count = 0;
    if (result == KH_OK) {
        result = read_all(store, refs, n, NULL, 0, 0, infos, max, count);
    }
    free(refs);
    return result;
}

kh_result kh_store_next_at(kh_store *store, const char *place, uint64_t *ref)
{
    sqlite3_stmt *st = store->statement[ST_AT_PLACE];
    uint64_t next = 0;
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    sqlite3_bind_text(st, 1, place, -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 2, (int64_t)*ref);
    code = sqlite3_step(st);
    result = kh_store_error(store, code, "looking for keys of a place");
    next = code == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(st, 0) : 0;
    if (result == KH_OK && next <= *ref) {
        result = code == SQLITE_ROW ? KH_E_DAMAGED : KH_E_NOT_FOUND;
    }
    *ref = result == KH_OK ? next : *ref;
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return result;
}

kh_result kh_store_list(kh_store *store, const char *name, size_t name_len, uint32_t version,
                        kh_key_info *infos, size_t max, size_t *count)
{
    kh_index_place at = {.version = version};
    kh_row row;
    kh_result result = KH_OK;

    at.name_len = name_len < sizeof(at.name) ? name_len : sizeof(at.name) - 1;
    memcpy(at.name, name, at.name_len);
    *count = 0;
    while (*count < max && (result = kh_index_next(store, &at)) == KH_OK) {
        /* The caller goes on from the row's version: if the index says another, that leads back here. */
        if (kh_row_read(store, at.ref, at.name, at.name_len, &row) == KH_OK &&
            row.info.version == at.version) {
            infos[(*count)++] = row.info;
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return result == KH_E_NOT_FOUND || *count > 0 ? KH_OK : result;
}

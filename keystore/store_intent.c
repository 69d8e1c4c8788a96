/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects in tokens that are being made or destroyed. An intent is on the disk before the token is asked; it goes in one
 * transaction with the row of the key that was made, or when the object is gone. What a crash leaves is an intent, and
 * whoever finds one destroys the object: a key without a row is nobody's.
 */
#include "locator.h"
#include "process.h"
#include "store_sql.h"

#include <string.h>

kh_result kh_store_intend(kh_store *store, const char *token, const uint8_t *object, bool destroy)
{
    sqlite3_stmt *st = store->statement[ST_INTEND];

    sqlite3_bind_text(st, 1, token, -1, SQLITE_STATIC);
    sqlite3_bind_blob(st, 2, object, KH_P11_ID_LEN, SQLITE_STATIC);
    sqlite3_bind_int(st, 3, destroy);
    return kh_store_run(store, ST_INTEND, "writing what is intended");
}

kh_result kh_store_intent_done(kh_store *store, const char *token, const uint8_t *object)
{
    sqlite3_stmt *st = store->statement[ST_INTENT_DONE];

    sqlite3_bind_text(st, 1, token, -1, SQLITE_STATIC);
    sqlite3_bind_blob(st, 2, object, KH_P11_ID_LEN, SQLITE_STATIC);
    return kh_store_run(store, ST_INTENT_DONE, "writing what is done");
}

kh_result kh_store_intent_next(kh_store *store, const char *token, uint8_t *object, bool *destroy)
{
    sqlite3_stmt *st = store->statement[ST_NEXT_INTENT];
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    sqlite3_bind_text(st, 1, token, -1, SQLITE_STATIC);
    sqlite3_bind_blob(st, 2, object, KH_P11_ID_LEN, SQLITE_STATIC);
    code = sqlite3_step(st);
    result = kh_store_error(store, code, "reading what is intended");
    if (result == KH_OK && code != SQLITE_ROW) {
        result = KH_E_NOT_FOUND;
    } else if (result == KH_OK && sqlite3_column_bytes(st, 0) != KH_P11_ID_LEN) {
        result = KH_E_DAMAGED;
    }
    if (result == KH_OK) {
        memcpy(object, sqlite3_column_blob(st, 0), KH_P11_ID_LEN);
        *destroy = sqlite3_column_int(st, 1) != 0;
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return result;
}

kh_result kh_store_orders(kh_store *store, kh_order *out, size_t max, size_t *count, uint64_t *all)
{
    sqlite3_stmt *st = store->statement[ST_ORDERS];
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    *count = 0;
    *all = 0;
    while ((code = sqlite3_step(st)) == SQLITE_ROW) {
        const char *token = (const char *)sqlite3_column_text(st, 0);
        const uint64_t objects = (uint64_t)sqlite3_column_int64(st, 1);

        *all += objects;
        if (*count < max && token != NULL) {
            out[*count] = (kh_order){.objects = objects};
            strncpy(out[*count].token, token, KH_PLACE_MAX);
            ++*count;
        }
    }
    result = kh_store_error(store, code, "reading what is to be destroyed");
    sqlite3_reset(st);
    return result;
}

/* The object of a row that has one that was made here. */
static bool own_object(const kh_row *row, kh_p11_locator *locator)
{
    const uint8_t *blob = NULL;
    size_t blob_len = 0;

    return kh_row_in_token(row) && (row->policy & KH_POLICY_ADOPTED) == 0 &&
           kh_locator_parse(row->pkcs8, row->pkcs8_len, locator, &blob, &blob_len) == KH_OK &&
           locator->id_len == KH_P11_ID_LEN;
}

kh_result kh_intents_fulfilled(kh_store *store, const kh_row *row)
{
    sqlite3_stmt *st = store->statement[ST_INTENT_FULFILLED];
    const uint8_t *blob = NULL;
    kh_p11_locator locator;
    size_t blob_len = 0;

    if (!kh_row_in_token(row) || kh_locator_parse(row->pkcs8, row->pkcs8_len, &locator, &blob, &blob_len) != KH_OK ||
        locator.id_len != KH_P11_ID_LEN) {
        return KH_OK;
    }
    sqlite3_bind_blob(st, 1, locator.id, KH_P11_ID_LEN, SQLITE_STATIC);
    return kh_store_run(store, ST_INTENT_FULFILLED, "writing what is done");
}

static const kh_keeper_pool *pool_named(const kh_keeper_places *places, const char *name)
{
    for (uint32_t i = 0; places != NULL && i < places->pool_count && i < KH_PLACES_POOLS; i++) {
        if (strcmp(places->pools[i].name, name) == 0) {
            return &places->pools[i];
        }
    }
    return NULL;
}

kh_result kh_intents_destroy(kh_store *store, const kh_row *row, const kh_keeper_places *places)
{
    const kh_keeper_pool *pool = NULL;
    kh_p11_locator locator;
    kh_result result = KH_OK;

    if (!own_object(row, &locator)) {
        return result;
    }
    if (row->info.tier == KH_TIER_HSM) {
        return kh_store_intend(store, row->info.place, locator.id, true);
    }
    pool = pool_named(places, row->info.place);
    if (pool == NULL) { /* nobody would ever destroy what its partitions have */
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
                "store: %s cannot be purged: its pool %s is not in the configuration; put it back for that", row->info.name,
                row->info.place);
        return KH_E_UNAVAILABLE;
    }
    for (uint32_t i = 0; result == KH_OK && i < pool->partition_count; i++) {
        result = kh_store_intend(store, places->tokens[pool->partitions[i]], locator.id, true);
    }
    return result;
}

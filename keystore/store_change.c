/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of the store's keys: state, deletion, recovery, purge. */
#include "store_sql.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What is asked for. */
typedef struct state_change {
    kh_result (*apply)(const struct state_change *asked, kh_row *row); /* KH_AGAIN: not meant, leave it */
    kh_store_asker asker;
    uint32_t version; /* 0: any */
    uint32_t state;
} state_change;

static kh_result change_state(const state_change *asked, kh_row *row)
{
    bool by_root = asked->asker == KH_ASKER_ROOT;

    if (asked->version != 0 && row->info.version != asked->version) {
        return KH_AGAIN;
    }
    if (row->info.state == STATE_DELETED) {
        return KH_E_FORBIDDEN;
    }
    switch (asked->state) {
    case STATE_ENABLED:
        if ((row->policy & KH_POLICY_BY_ROOT) != 0 && !by_root) {
            return KH_E_FORBIDDEN;
        }
        row->policy &= ~KH_POLICY_BY_ROOT;
        break;
    case STATE_DISABLED:
        row->policy |= by_root ? KH_POLICY_BY_ROOT : 0;
        break;
    default:
        row->policy = row->info.state == STATE_DISABLED ? row->policy | KH_POLICY_WAS_DISABLED
                                                        : row->policy & ~KH_POLICY_WAS_DISABLED;
        row->deleted = (uint64_t)time(NULL);
        break;
    }
    row->info.state = asked->state;
    return KH_OK;
}

static kh_result change_back(const state_change *asked, kh_row *row)
{
    (void)asked;
    if (row->info.state != STATE_DELETED) {
        return KH_E_ORDER;
    }
    row->info.state = (row->policy & KH_POLICY_WAS_DISABLED) != 0 ? STATE_DISABLED : STATE_ENABLED;
    row->policy &= ~KH_POLICY_WAS_DISABLED;
    row->deleted = 0;
    return KH_OK;
}

/*
 * Changes each row that is meant. KH_OK if at least one was; else what spoke against it. A
 * damaged row is left: nobody can use it, and it must not keep the other versions from being disabled.
 */
static kh_result change_rows(kh_store *store, const char *name, const state_change *asked,
                             kh_touched *touched, size_t n)
{
    kh_row row;
    kh_result result = KH_E_NOT_FOUND;
    size_t changed = 0;

    for (size_t i = 0; i < n; i++) {
        kh_result one = kh_row_read(store, touched[i].ref, name, strlen(name), &row);

        if (one == KH_OK) {
            kh_store_touch(&touched[i], &row);
            one = asked->apply(asked, &row);
        }
        if (one == KH_OK) {
            one = kh_row_reseal(store, &row);
            if (one != KH_OK) {
                changed = 0;
                result = one;
                break;
            }
            changed++;
        } else if (one != KH_AGAIN) {
            result = one;
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return changed > 0 ? KH_OK : result;
}

void kh_store_touch(kh_touched *touched, const kh_row *row)
{
    touched->tier = row->info.tier;
    memcpy(touched->place, row->info.place, sizeof(touched->place));
}

void kh_store_tell(kh_store *store, const kh_touched *touched, size_t n)
{
    for (size_t i = 0; store->changed != NULL && i < n; i++) {
        store->changed(store->changed_ctx, &touched[i]);
    }
}

/* The rows of a name, which are going to be touched; the caller frees. */
static kh_result find_touched(kh_store *store, const char *name, kh_touched **touched, size_t *n)
{
    uint64_t *refs = NULL;
    kh_result result = kh_store_refs_of_name(store, name, strlen(name), &refs, n);

    *touched = NULL;
    if (result == KH_OK && (*touched = calloc(*n, sizeof(**touched))) == NULL) {
        result = KH_E_MEMORY;
    }
    for (size_t i = 0; result == KH_OK && i < *n; i++) {
        (*touched)[i].ref = refs[i];
    }
    free(refs);
    return result;
}

static kh_result change_name(kh_store *store, const char *name, const state_change *asked)
{
    kh_touched *touched = NULL;
    size_t n = 0;
    kh_result result = find_touched(store, name, &touched, &n);

    if (result == KH_OK) {
        result = kh_store_tx_begin(store);
    }
    if (result == KH_OK) {
        result = kh_store_tx_end(store, change_rows(store, name, asked, touched, n));
    }
    if (result == KH_OK) {
        kh_store_tell(store, touched, n);
    }
    free(touched);
    return result;
}

kh_result kh_store_newest(kh_store *store, const char *name, bool also_deleted, kh_key_info *newest)
{
    uint64_t *refs = NULL;
    size_t n = 0;
    kh_row row;
    kh_result result = kh_store_refs_of_name(store, name, strlen(name), &refs, &n);

    for (size_t i = 0; i < n; i++) {
        result = kh_row_read(store, refs[i], name, strlen(name), &row);
        if (result == KH_OK && (also_deleted || row.info.state != STATE_DELETED)) {
            *newest = row.info;
            break;
        }
        result = result == KH_OK ? KH_E_FORBIDDEN : result;
    }
    OPENSSL_cleanse(&row, sizeof(row));
    free(refs);
    return result;
}

kh_result kh_store_set_state(kh_store *store, kh_store_asker asker, const char *name, uint32_t version,
                             uint32_t state, kh_key_info *newest)
{
    state_change asked = {.apply = change_state, .asker = asker, .version = version, .state = state};
    kh_result result = KH_OK;

    if (state < STATE_ENABLED || state > STATE_DELETED) {
        return KH_E_INVALID;
    }
    if (state == STATE_ENABLED && version == 0) {
        /* Not all: an older one that was disabled by itself stays so until it is named. */
        result = kh_store_newest(store, name, false, newest);
        asked.version = newest->version;
    }
    if (result == KH_OK) {
        result = change_name(store, name, &asked);
    }
    return result == KH_OK ? kh_store_newest(store, name, true, newest) : result;
}

kh_result kh_store_recover(kh_store *store, const char *name)
{
    const state_change asked = {.apply = change_back, .asker = KH_ASKER_ROOT};

    return change_name(store, name, &asked);
}

/* What a purge goes by. */
typedef struct purging {
    const char *name;
    const kh_keeper_places *places;
    uint64_t now;
} purging;

static kh_result may_purge(kh_store *store, const purging *asked, const kh_row *row)
{
    uint64_t until = 0;
    kh_result result = KH_OK;

    if (row->info.state != STATE_DELETED) {
        return KH_E_ORDER;
    }
    result = kh_names_retained(store, asked->name, row->deleted, &until);
    return result == KH_OK && asked->now < until ? KH_E_FORBIDDEN : result;
}

static kh_result delete_rows(kh_store *store, const purging *asked, kh_touched *touched, size_t n)
{
    kh_row row;
    kh_result result = KH_OK;

    for (size_t i = 0; result == KH_OK && i < n; i++) {
        const uint64_t ref = touched[i].ref;

        result = kh_row_read(store, ref, asked->name, strlen(asked->name), &row);
        if (result == KH_OK && (result = may_purge(store, asked, &row)) == KH_OK) {
            kh_store_touch(&touched[i], &row);
            result = kh_intents_destroy(store, &row, asked->places);
        } else if (result == KH_E_DAMAGED) {
            result = KH_OK; /* it can be purged, and whatever a token has of it is not known */
        }
        if (result == KH_OK) {
            sqlite3_bind_int64(store->statement[ST_PURGED], 1, (int64_t)ref);
            result = kh_store_run(store, ST_PURGED, "noting what is purged");
        }
        if (result == KH_OK) {
            sqlite3_bind_int64(store->statement[ST_DELETE], 1, (int64_t)ref);
            result = kh_store_run(store, ST_DELETE, "purging");
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return result == KH_OK ? kh_names_forget(store, asked->name) : result;
}

kh_result kh_store_purge(kh_store *store, const char *name, const kh_keeper_places *places, uint64_t now)
{
    const purging asked = {.name = name, .places = places, .now = now};
    kh_touched *touched = NULL;
    size_t n = 0;
    kh_result result = find_touched(store, name, &touched, &n);

    if (result == KH_OK) {
        result = kh_store_tx_begin(store);
    }
    if (result == KH_OK) {
        result = kh_store_tx_end(store, delete_rows(store, &asked, touched, n));
    }
    if (result == KH_OK) {
        store->changes++;
        kh_store_tell(store, touched, n);
    }
    free(touched);
    return result;
}

kh_result kh_store_move(kh_store *store, uint64_t ref, const kh_key_info *to, const kh_material *material,
                        kh_key_info *info)
{
    kh_touched touched = {.ref = ref};
    kh_row row;
    kh_result result = kh_row_read(store, ref, NULL, 0, &row);

    kh_store_touch(&touched, &row);
    if (result == KH_OK && (kh_row_in_token(&row) || row.info.state == STATE_DELETED)) {
        result = KH_E_ORDER;
    }
    if (result != KH_OK) {
        goto done;
    }
    row.info.tier = to->tier;
    memcpy(row.info.place, to->place, sizeof(row.info.place));
    OPENSSL_cleanse(row.pkcs8, row.pkcs8_len);
    memcpy(row.pkcs8, material->pkcs8, material->pkcs8_len);
    row.pkcs8_len = material->pkcs8_len;
    result = kh_info_possible(&row.info) ? kh_row_sound(&row) : KH_E_INVALID;
    if (result == KH_OK) {
        result = kh_store_tx_begin(store);
    }
    if (result != KH_OK) {
        goto done;
    }
    result = kh_row_reseal(store, &row);
    if (result == KH_OK) {
        result = kh_intents_fulfilled(store, &row);
    }
    result = kh_store_tx_end(store, result);
    if (result == KH_OK) {
        *info = row.info;
        kh_store_tell(store, &touched, 1);
    }
done:
    OPENSSL_cleanse(&row, sizeof(row));
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys that are made in tokens, or brought or moved into them. The order that survives an end at any point:
 * what is intended is on the disk; the object is made; the key's row, and with it the end of the intent; the acknowledgement.
 *
 * A pool's key is made in one partition and leaves it wrapped under the pool key; then it is placed in all partitions that are
 * there, the first included. It is acknowledged when as many as the pool's quorum have it.
 */
#include "storelink.h"
#include "process.h"
#include "row.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#define FRONT_MAKINGS_MAX 8 /* keys that a front has made in tokens at a time */

typedef struct kh_making {
    struct kh_making *next;
    kh_op *op;      /* NULL: answered */
    uint64_t moves; /* the row of the key that moves; 0: a new one */
    kh_key_info info;
    kh_p11_locator locator;
    kh_material made; /* the public key, and what the row will have sealed */
    uint8_t blob[KH_P11_BLOB_MAX];
    size_t blob_len;
    bool imports;
    uint32_t tried;                  /* partitions that were asked to make it, as a set of their places in the pool */
    unsigned left, placed, quorum;   /* of PLACE: questions, partitions that have it, and how many must */
    uint64_t ref;                    /* its row, when it is there */
    uint8_t *pkcs8;                  /* what is brought in; wiped */
    size_t pkcs8_len;
} kh_making;

bool kh_make_under_way(const kh_keeper *keeper, const uint8_t *object)
{
    for (const kh_making *making = keeper->links->makings; making != NULL; making = making->next) {
        if (memcmp(making->locator.id, object, KH_P11_ID_LEN) == 0) {
            return true;
        }
    }
    return false;
}

static void wipe_pkcs8(kh_making *making)
{
    if (making->pkcs8 != NULL) {
        OPENSSL_cleanse(making->pkcs8, making->pkcs8_len);
        free(making->pkcs8);
    }
    making->pkcs8 = NULL;
}

static void free_making(kh_keeper *keeper, kh_making *making)
{
    kh_making **at = &keeper->links->makings;

    while (*at != NULL && *at != making) {
        at = &(*at)->next;
    }
    if (*at != NULL) {
        *at = making->next;
    }
    wipe_pkcs8(making);
    free(making);
}

static kh_making *new_making(kh_keeper *keeper, kh_op *op, const kh_key_info *info)
{
    kh_making *making = calloc(1, sizeof(*making));

    if (making == NULL || RAND_bytes(making->locator.id, KH_P11_ID_LEN) != 1) {
        free(making);
        return NULL;
    }
    making->locator.id_len = KH_P11_ID_LEN;
    memcpy(making->locator.label, info->name, sizeof(making->locator.label));
    making->op = op;
    making->info = *info;
    making->next = keeper->links->makings;
    keeper->links->makings = making;
    return making;
}

static const kh_keeper_pool *pool_of(kh_keeper *keeper, const kh_making *making)
{
    return making->info.tier == KH_TIER_HSM_POOL ? kh_links_pool(keeper, making->info.place) : NULL;
}

/* ---- Asking -------------------------------------------------------------------------------------------- */

static void on_made(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer);

static kh_result ask(kh_keeper *keeper, kh_making *making, kh_store_token *token, uint32_t op, kh_link_answered_fn answered)
{
    const size_t blob_len = op == KH_LINK_PLACE ? making->blob_len : 0;
    const size_t pkcs8_len = op == KH_LINK_IMPORT ? making->pkcs8_len : 0;
    const kh_link_message message = {.op = op, .data_len = (uint32_t)(sizeof(kh_link_key) + blob_len + pkcs8_len)};
    kh_link_key *key = calloc(1, message.data_len);
    kh_result result = KH_E_MEMORY;

    if (key == NULL) {
        return result;
    }
    key->info = making->info;
    key->locator = making->locator;
    if (making->info.tier == KH_TIER_HSM_POOL) {
        memcpy(key->pool, making->info.place, sizeof(key->pool));
    }
    key->blob_len = (uint32_t)blob_len;
    key->pkcs8_len = (uint32_t)pkcs8_len;
    if (blob_len > 0) {
        memcpy(key->tail, making->blob, blob_len);
    }
    if (pkcs8_len > 0) {
        memcpy(key->tail + blob_len, making->pkcs8, pkcs8_len);
    }
    result = kh_link_ask(keeper, token, &message, key, answered, making);
    OPENSSL_cleanse(key, message.data_len);
    free(key);
    return result;
}

/* The next partition that is there and was not tried. KH_E_UNAVAILABLE: none. */
static kh_result ask_partition(kh_keeper *keeper, kh_making *making, const kh_keeper_pool *pool)
{
    kh_result result = KH_E_UNAVAILABLE;

    for (uint32_t i = 0; result == KH_E_UNAVAILABLE && i < pool->partition_count; i++) {
        if ((making->tried & 1u << i) == 0) {
            making->tried |= 1u << i;
            result = ask(keeper, making, keeper->links->tokens[pool->partitions[i]],
                         making->imports ? KH_LINK_IMPORT : KH_LINK_GENERATE, on_made);
        }
    }
    return result;
}

/* Partitions that are there. */
static unsigned there(kh_keeper *keeper, const kh_keeper_pool *pool)
{
    unsigned count = 0;

    for (uint32_t i = 0; i < pool->partition_count; i++) {
        count += keeper->links->tokens[pool->partitions[i]]->open;
    }
    return count;
}

/* What a token answers for its own reasons is not what the asker did wrong. */
static kh_result seen_from_outside(kh_result result)
{
    switch (result) {
    case KH_E_NOT_FOUND:
    case KH_E_PASSPHRASE:
    case KH_E_LOCKED:
        return KH_E_UNAVAILABLE;
    default:
        return result;
    }
}

/* Begins. KH_AGAIN: it is under way; else it is gone. */
static kh_result begin(kh_keeper *keeper, kh_making *making)
{
    const kh_keeper_pool *pool = pool_of(keeper, making);
    kh_store_token *token = pool == NULL ? kh_links_token(keeper, making->info.place) : NULL;
    kh_result result = KH_E_UNAVAILABLE;

    if (pool != NULL) {
        making->quorum = pool->quorum;
        result = there(keeper, pool) >= pool->quorum ? ask_partition(keeper, making, pool) : result;
    } else if (token != NULL && token->open) {
        result = kh_store_intend(keeper->store, token->name, making->locator.id, false);
        if (result == KH_OK) {
            result = ask(keeper, making, token, making->imports ? KH_LINK_IMPORT : KH_LINK_GENERATE, on_made);
        }
        if (result != KH_OK) {
            kh_result undone = kh_store_intent_done(keeper->store, token->name, making->locator.id);
            (void)undone; /* it was never made */
        }
    }
    if (result == KH_OK) {
        return KH_AGAIN;
    }
    free_making(keeper, making);
    return result;
}

/* ---- The end ------------------------------------------------------------------------------------------- */

/* Whatever was made of it is nobody's, and is destroyed: its intents are there. */
static void fail(kh_keeper *keeper, kh_making *making, kh_result result)
{
    const kh_keeper_pool *pool = pool_of(keeper, making);
    kh_store_token *token = pool == NULL ? kh_links_token(keeper, making->info.place) : NULL;

    if (making->op != NULL) {
        kh_storework_finish(keeper, making->op, seen_from_outside(result), 0);
    }
    free_making(keeper, making);
    for (uint32_t i = 0; pool != NULL && i < pool->partition_count; i++) {
        kh_links_clean(keeper, keeper->links->tokens[pool->partitions[i]]);
    }
    if (token != NULL) {
        kh_links_clean(keeper, token);
    }
}

/* The row. On KH_OK the operation is answered; the making stays. */
static kh_result commit(kh_keeper *keeper, kh_making *making)
{
    kh_op *op = making->op;
    kh_key_info info = making->info;
    kh_result result = kh_locator_encode(&making->locator, making->blob, making->blob_len, making->made.pkcs8,
                                         &making->made.pkcs8_len);

    if (result == KH_OK && making->moves != 0) {
        result = kh_store_move(keeper->store, making->moves, &making->info, &making->made, &info);
    } else if (result == KH_OK) {
        result = kh_store_insert(keeper->store, kh_storework_asker(op), &info, &making->made);
    }
    if (result != KH_OK) {
        return result;
    }
    making->ref = info.ref;
    making->op = NULL;
    kh_storework_changed(keeper);
    kh_storework_finish(keeper, op, kh_storework_give_infos(op, &info, 1), 0);
    return result;
}

/* ---- Into the partitions of a pool --------------------------------------------------------------------- */

/* It may have been purged while this partition was still at it. */
static void late(kh_keeper *keeper, const kh_making *making, kh_store_token *token)
{
    kh_key_info info;

    if (kh_store_get(keeper->store, making->ref, &info, NULL, NULL) == KH_E_NOT_FOUND &&
        kh_store_intend(keeper->store, token->name, making->locator.id, true) == KH_OK) {
        kh_links_clean(keeper, token);
    }
}

static void on_placed(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    kh_making *making = ctx;
    kh_result result = KH_E_UNAVAILABLE;

    making->left--;
    making->placed += answer->result == KH_OK;
    if (answer->result != KH_OK) {
        token->repair_again = token->open;
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_WARN,
                "keeper: %s could not be placed in partition %s (%s); it is repaired later", making->info.name, token->name,
                kh_result_name(answer->result));
    } else if (making->op == NULL) {
        late(keeper, making, token);
    }
    if (making->op != NULL && making->placed >= making->quorum && answer->result == KH_OK) {
        result = commit(keeper, making);
        if (result != KH_OK) {
            making->quorum = UINT32_MAX; /* nothing helps it any more */
            kh_storework_finish(keeper, making->op, result, 0);
            making->op = NULL;
        }
    }
    if (making->left > 0) {
        return;
    }
    if (making->ref == 0) {
        fail(keeper, making, result);
    } else {
        free_making(keeper, making);
    }
}

static kh_result intend_all(kh_keeper *keeper, const kh_making *making, const kh_keeper_pool *pool)
{
    kh_result result = kh_store_begin(keeper->store), ended = KH_OK;

    if (result != KH_OK) {
        return result;
    }
    for (uint32_t i = 0; result == KH_OK && i < pool->partition_count; i++) {
        kh_store_token *token = keeper->links->tokens[pool->partitions[i]];

        if (token->open) {
            result = kh_store_intend(keeper->store, token->name, making->locator.id, false);
        }
    }
    ended = kh_store_commit(keeper->store);
    return result == KH_OK ? ended : result;
}

static void place_all(kh_keeper *keeper, kh_making *making, const kh_keeper_pool *pool)
{
    kh_result result = there(keeper, pool) >= making->quorum ? intend_all(keeper, making, pool) : KH_E_UNAVAILABLE;

    making->left = 1; /* this call */
    for (uint32_t i = 0; result == KH_OK && i < pool->partition_count; i++) {
        kh_store_token *token = keeper->links->tokens[pool->partitions[i]];

        if (token->open && ask(keeper, making, token, KH_LINK_PLACE, on_placed) == KH_OK) {
            making->left++;
        }
    }
    if (--making->left == 0) {
        fail(keeper, making, result != KH_OK ? result : KH_E_UNAVAILABLE);
    }
}

/* ---- Made ---------------------------------------------------------------------------------------------- */

/* The public key that the token tells, and of a pool the blob. */
static kh_result take_made(kh_making *making, const kh_link_answer *answer)
{
    kh_link_key key;
    kh_result result = KH_E_INTERNAL;

    if (answer->len < sizeof(key)) {
        return result;
    }
    memcpy(&key, answer->data, sizeof(key));
    if (key.blob_len != answer->len - sizeof(key) || key.blob_len > sizeof(making->blob) ||
        (key.blob_len > 0) != (making->info.tier == KH_TIER_HSM_POOL) || key.info.spki_len > KH_SPKI_MAX) {
        return result;
    }
    result = kh_material_public(key.info.spki, key.info.spki_len, &making->made);
    if (result != KH_OK || (uint32_t)making->made.type != making->info.type || making->made.bits != making->info.bits ||
        (making->imports && memcmp(making->made.id, making->info.id, KH_KEY_ID_LEN) != 0)) {
        return KH_E_INTERNAL;
    }
    memcpy(making->blob, answer->data + sizeof(key), key.blob_len);
    making->blob_len = key.blob_len;
    making->info.spki_len = (uint32_t)making->made.spki_len;
    memcpy(making->info.spki, making->made.spki, making->made.spki_len);
    memcpy(making->info.id, making->made.id, KH_KEY_ID_LEN);
    return KH_OK;
}

static void on_made(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    kh_making *making = ctx;
    const kh_keeper_pool *pool = pool_of(keeper, making);
    kh_result result = answer->result;

    if (result != KH_OK && pool != NULL && kh_result_retryable(result) && ask_partition(keeper, making, pool) == KH_OK) {
        return;
    }
    if (result == KH_OK && (result = take_made(making, answer)) == KH_E_INTERNAL) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR,
                "keeper: token %s made another key than %s should be: it is not used", token->name, making->info.name);
    } else if (result != KH_OK) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_WARN, "keeper: token %s did not make %s: %s", token->name,
                making->info.name, kh_result_name(result));
    }
    wipe_pkcs8(making);
    if (result == KH_OK && making->info.tier == KH_TIER_HSM_POOL) {
        if (pool != NULL) {
            place_all(keeper, making, pool);
            return;
        }
        result = KH_E_UNAVAILABLE; /* the configuration has it no more */
    }
    if (result == KH_OK) {
        result = commit(keeper, making);
    }
    if (result == KH_OK) {
        free_making(keeper, making);
    } else {
        fail(keeper, making, result);
    }
}

/* ---- What is asked for ---------------------------------------------------------------------------------- */

static kh_result bring(kh_making *making, const uint8_t *pkcs8, size_t len)
{
    making->pkcs8 = malloc(len);
    if (making->pkcs8 == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(making->pkcs8, pkcs8, len);
    making->pkcs8_len = len;
    making->imports = true;
    return KH_OK;
}

/* Root is not kept waiting behind what a front has made. */
static bool too_many(kh_keeper *keeper, const kh_op *op)
{
    unsigned count = 0;

    for (const kh_making *making = keeper->links->makings; making != NULL; making = making->next) {
        count += making->op != NULL && making->op->ring != NULL;
    }
    return op->ring != NULL && count >= FRONT_MAKINGS_MAX;
}

kh_result kh_make_insert(kh_keeper *keeper, kh_op *op, const kh_key_info *asked)
{
    kh_key_info info = *asked;
    kh_making *making = NULL;
    kh_result result = too_many(keeper, op) ? KH_E_OVERLOADED : kh_links_resolve(keeper, &info);

    if (result != KH_OK) {
        return result;
    }
    making = new_making(keeper, op, &info);
    if (making == NULL) {
        return KH_E_MEMORY;
    }
    if (op->material != NULL) {
        making->info.type = (uint32_t)op->material->type;
        making->info.bits = op->material->bits;
        making->info.spki_len = (uint32_t)op->material->spki_len;
        memcpy(making->info.spki, op->material->spki, op->material->spki_len);
        memcpy(making->info.id, op->material->id, KH_KEY_ID_LEN);
        result = bring(making, op->material->pkcs8, op->material->pkcs8_len);
    }
    if (result != KH_OK) {
        free_making(keeper, making);
        return result;
    }
    return begin(keeper, making);
}

kh_result kh_make_move(kh_keeper *keeper, kh_op *op)
{
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX];
    size_t count = 0, pkcs8_len = 0;
    kh_key_info asked, info;
    kh_making *making = NULL;
    kh_result result = KH_OK;

    memcpy(&asked, op->record.data, sizeof(asked));
    if (asked.tier != KH_TIER_HSM && asked.tier != KH_TIER_HSM_POOL) {
        return KH_E_UNSUPPORTED; /* nothing comes out of a token */
    }
    result = kh_links_resolve(keeper, &asked);
    if (result == KH_OK) {
        result = kh_store_find_name(keeper->store, asked.name, strlen(asked.name), asked.version, &info, 1, &count);
    }
    if (result == KH_OK && (info.tier != KH_TIER_SOFTWARE || info.state == STATE_DELETED)) {
        result = KH_E_ORDER;
    }
    if (result == KH_OK) {
        result = kh_store_get(keeper->store, info.ref, &info, pkcs8, &pkcs8_len);
    }
    if (result != KH_OK) {
        return result;
    }
    info.tier = asked.tier;
    memcpy(info.place, asked.place, sizeof(info.place));
    making = new_making(keeper, op, &info);
    result = making != NULL ? bring(making, pkcs8, pkcs8_len) : KH_E_MEMORY;
    OPENSSL_cleanse(pkcs8, sizeof(pkcs8));
    if (result != KH_OK) {
        if (making != NULL) {
            free_making(keeper, making);
        }
        return result;
    }
    making->moves = info.ref;
    return begin(keeper, making);
}

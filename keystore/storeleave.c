/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token leaves a pool: its keeper forgets the pool's keys, and then destroys what the token has of them, one after the other.
 * From the beginning on it is told of none of them, so that nothing is found there again or placed anew; that ends when the
 * configuration has the token in the pool no more, or by a repair of the pool.
 */
#include "process.h"
#include "storelink.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define TELL_NS UINT64_C(1000000000) /* between two signs of life for whoever waits */

typedef struct leaving {
    kh_op *op;
    uint64_t ref; /* of the key before the next one */
    kh_left left;
} leaving;

static void next(kh_keeper *keeper, leaving *walk, kh_store_token *token);

static void end(kh_keeper *keeper, leaving *walk, kh_store_token *token, kh_result result)
{
    if (result == KH_OK) {
        memcpy(walk->op->out, &walk->left, sizeof(walk->left));
        walk->op->out_len = sizeof(walk->left);
        kh_logf(keeper->config->log, keeper->config->ctx, walk->left.kept > 0 ? KH_LOG_WARN : KH_LOG_NOTICE,
                "keeper: token %s has left pool %s: of its keys %llu are not in it any more, and %llu could not be destroyed",
                token->name, token->left_pool, (unsigned long long)walk->left.gone, (unsigned long long)walk->left.kept);
    }
    token->leaving = false;
    kh_storework_finish(keeper, walk->op, result, 0);
    free(walk);
}

static void on_destroyed(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    leaving *walk = ctx;
    const uint64_t now_ns = kh_now_ns();

    if (!token->open) {
        end(keeper, walk, token, KH_E_UNAVAILABLE);
        return;
    }
    walk->left.gone += answer->result == KH_OK;
    walk->left.kept += answer->result != KH_OK;
    if (now_ns - walk->op->told_ns >= TELL_NS) {
        walk->op->told_ns = now_ns;
        (void)kh_admin_part(walk->op->admin_fd, NULL, 0);
    }
    next(keeper, walk, token);
}

/* Where the object of that key is. false: it has none that was made here. */
static bool locate(kh_keeper *keeper, uint64_t ref, kh_p11_locator *locator)
{
    uint8_t sealed[KH_IMPORT_PKCS8_MAX];
    const uint8_t *blob = NULL;
    size_t sealed_len = 0, blob_len = 0;
    kh_key_info info;
    bool found = kh_store_get(keeper->store, ref, &info, sealed, &sealed_len) == KH_OK && info.tier == KH_TIER_HSM_POOL &&
                 kh_locator_parse(sealed, sealed_len, locator, &blob, &blob_len) == KH_OK &&
                 locator->id_len == KH_P11_ID_LEN;

    OPENSSL_cleanse(sealed, sizeof(sealed));
    return found;
}

static void next(kh_keeper *keeper, leaving *walk, kh_store_token *token)
{
    const kh_link_message message = {.op = KH_LINK_DESTROY, .data_len = sizeof(kh_link_key)};
    kh_p11_locator locator;
    kh_link_key key;
    kh_result result = KH_OK;

    do {
        result = kh_store_next_at(keeper->store, token->left_pool, &walk->ref);
    } while (result == KH_OK && !locate(keeper, walk->ref, &locator));
    if (result == KH_OK) {
        memset(&key, 0, sizeof(key));
        memcpy(key.locator.id, locator.id, KH_P11_ID_LEN);
        key.locator.id_len = KH_P11_ID_LEN;
        result = kh_link_ask(keeper, token, &message, &key, on_destroyed, walk);
        if (result == KH_OK) {
            return;
        }
    } else if (result == KH_E_NOT_FOUND) {
        result = KH_OK; /* that was the last one */
    }
    end(keeper, walk, token, result);
}

static void on_forgotten(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    if (answer->result == KH_OK) {
        next(keeper, ctx, token);
    } else {
        end(keeper, ctx, token, KH_E_UNAVAILABLE);
    }
}

kh_result kh_links_leave(kh_keeper *keeper, kh_op *op)
{
    const kh_link_message message = {.op = KH_LINK_CHANGED, .ref = 0};
    kh_store_token *token = NULL;
    leaving *walk = NULL;
    kh_pool_leave asked;
    kh_result result = KH_OK;

    if (op->record.data_len != sizeof(asked)) {
        return KH_E_INVALID;
    }
    memcpy(&asked, op->record.data, sizeof(asked));
    if (asked.pool[KH_PLACE_MAX] != '\0' || asked.token[KH_PLACE_MAX] != '\0' || asked.pool[0] == '\0') {
        return KH_E_INVALID;
    }
    token = kh_links_token(keeper, asked.token);
    if (token == NULL || !token->open) {
        return token == NULL ? KH_E_NOT_FOUND : KH_E_UNAVAILABLE;
    }
    if (token->leaving) {
        return KH_E_OVERLOADED;
    }
    walk = calloc(1, sizeof(*walk));
    if (walk == NULL) {
        return KH_E_MEMORY;
    }
    walk->op = op;
    memcpy(token->left_pool, asked.pool, sizeof(token->left_pool));
    token->leaving = true;
    result = kh_link_ask(keeper, token, &message, NULL, on_forgotten, walk);
    if (result == KH_OK) {
        return KH_AGAIN;
    }
    token->leaving = false;
    free(walk);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Keys that somebody else made in a token: found, looked at, and noted as ours to use, but not to destroy. See storelink.h. */
#include "storelink.h"
#include "row.h"

#include <stdlib.h>
#include <string.h>

typedef struct adopting {
    kh_op *op;
    kh_key_info info;
    kh_p11_locator locator;
} adopting;

static kh_result adopt(kh_keeper *keeper, adopting *adopted, const kh_link_answer *answer)
{
    kh_material found;
    kh_link_key key;
    kh_result result = answer->result;

    if (result == KH_OK && answer->len != sizeof(key)) {
        result = KH_E_INTERNAL;
    }
    if (result != KH_OK) {
        return result;
    }
    memcpy(&key, answer->data, sizeof(key));
    result = key.info.spki_len <= KH_SPKI_MAX ? kh_material_public(key.info.spki, key.info.spki_len, &found) : KH_E_UNSUPPORTED;
    if (result != KH_OK) {
        return KH_E_UNSUPPORTED; /* of a type that Keyhold does not know */
    }
    if (found.type == KH_KEY_RSA && found.bits < 2048) {
        return KH_E_WEAK;
    }
    found.adopted = true;
    result = kh_locator_encode(&adopted->locator, NULL, 0, found.pkcs8, &found.pkcs8_len);
    return result == KH_OK ? kh_store_insert(keeper->store, KH_ASKER_ROOT, &adopted->info, &found) : result;
}

static void on_found(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    adopting *adopted = ctx;
    kh_result result = adopt(keeper, adopted, answer);

    (void)token;
    if (result == KH_OK) {
        kh_keeper_changed(keeper);
        result = kh_storework_give_infos(adopted->op, &adopted->info, 1);
    }
    kh_storework_finish(keeper, adopted->op, result, 0);
    free(adopted);
}

static kh_result begin_adopt(kh_keeper *keeper, adopting *adopted, const kh_key_adoption *asked)
{
    const kh_link_message message = {.op = KH_LINK_FIND, .data_len = sizeof(kh_link_key)};
    kh_link_key key;
    kh_result result = KH_E_INVALID;

    if (asked->id_len > sizeof(adopted->locator.id) || memchr(asked->label, '\0', sizeof(asked->label)) == NULL ||
        asked->id_len + strlen(asked->label) == 0) {
        return result;
    }
    memcpy(adopted->locator.id, asked->id, asked->id_len);
    adopted->locator.id_len = (uint8_t)asked->id_len;
    memcpy(adopted->locator.label, asked->label, sizeof(adopted->locator.label));
    adopted->info.type = KH_KEY_NONE;
    adopted->info.tier = adopted->info.tier == 0 ? KH_TIER_HSM : adopted->info.tier;
    if (adopted->info.tier != KH_TIER_HSM || !kh_info_asked(&adopted->info)) {
        return result; /* a pool has only keys that were made under its pool key */
    }
    result = kh_links_resolve(keeper, &adopted->info);
    if (result == KH_OK) {
        result = kh_store_may_insert(keeper->store, KH_ASKER_ROOT, &adopted->info);
    }
    if (result != KH_OK) {
        return result;
    }
    memset(&key, 0, sizeof(key));
    key.info = adopted->info;
    key.locator = adopted->locator;
    return kh_link_ask(keeper, kh_links_token(keeper, adopted->info.place), &message, &key, on_found, adopted);
}

kh_result kh_links_adopt(kh_keeper *keeper, kh_op *op)
{
    kh_key_adoption asked;
    adopting *adopted = calloc(1, sizeof(*adopted));
    kh_result result = KH_E_MEMORY;

    if (adopted == NULL) {
        return result;
    }
    memcpy(&asked, op->record.data, sizeof(asked));
    adopted->op = op;
    adopted->info = asked.info;
    result = begin_adopt(keeper, adopted, &asked);
    if (result == KH_OK) {
        return KH_AGAIN;
    }
    free(adopted);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Signatures for root with keys of tokens: certificates and requests for them. See storelink.h. */
#include "storelink.h"
#include "usage.h"

#include <stdlib.h>
#include <string.h>

typedef struct signing {
    kh_op *op;
    kh_key_info info;
    uint32_t tried; /* partitions, as a set of their places in the pool */
} signing;

static kh_result ask_signature(kh_keeper *keeper, signing *wanted);

static void on_signed(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    signing *wanted = ctx;
    kh_op *op = wanted->op;
    kh_result result = answer->result;

    (void)token;
    if (result == KH_OK && (answer->len == 0 || answer->len > sizeof(op->out))) {
        result = KH_E_INTERNAL;
    }
    if (result != KH_OK && wanted->info.tier == KH_TIER_HSM_POOL && ask_signature(keeper, wanted) == KH_OK) {
        return; /* another partition may do better */
    }
    if (result == KH_OK) {
        memcpy(op->out, answer->data, answer->len);
        op->out_len = answer->len;
    }
    kh_storework_finish(keeper, op, result, 0);
    free(wanted);
}

/* KH_E_UNAVAILABLE: nobody is left to be asked. */
static kh_result ask_signature(kh_keeper *keeper, signing *wanted)
{
    const kh_key_info *info = &wanted->info;
    const kh_record *record = &wanted->op->record;
    const kh_keeper_pool *pool = info->tier == KH_TIER_HSM_POOL ? kh_links_pool(keeper, info->place) : NULL;
    const kh_link_message message = {
        .op = KH_LINK_SIGN, .ref = info->ref, .scheme = record->scheme, .data_len = record->data_len};
    kh_result result = KH_E_UNAVAILABLE;

    if (info->tier == KH_TIER_HSM) {
        return kh_link_ask(keeper, kh_links_token(keeper, info->place), &message, record->data, on_signed, wanted);
    }
    for (uint32_t i = 0; pool != NULL && result == KH_E_UNAVAILABLE && i < pool->partition_count; i++) {
        if ((wanted->tried & 1u << i) == 0) {
            wanted->tried |= 1u << i;
            result = kh_link_ask(keeper, keeper->links->tokens[pool->partitions[i]], &message, record->data, on_signed,
                                 wanted);
        }
    }
    return result;
}

kh_result kh_links_sign(kh_keeper *keeper, kh_op *op, const kh_key_info *info)
{
    signing *wanted = NULL;
    kh_result result = KH_OK;

    if (op->record.op != KH_STORE_CERTIFY) {
        return KH_E_UNSUPPORTED; /* with a key of a token, root certifies and nothing else */
    }
    if (!kh_scheme_fits((int)op->record.scheme, (int)info->type)) {
        return KH_E_SCHEME;
    }
    if (op->record.data_len > KH_LINK_DATA_MAX) {
        return KH_E_TOO_LARGE;
    }
    wanted = calloc(1, sizeof(*wanted));
    if (wanted == NULL) {
        return KH_E_MEMORY;
    }
    wanted->op = op;
    wanted->info = *info;
    result = ask_signature(keeper, wanted);
    if (result == KH_OK) {
        return KH_AGAIN;
    }
    free(wanted);
    return result;
}

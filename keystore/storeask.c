/* SPDX-License-Identifier: Apache-2.0 */
/* Questions over the links, both ways: what the store asks tokens' keepers, and what these ask of keys. See storelink.h. */
#include "storelink.h"
#include "process.h"
#include "row.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_NS UINT64_C(150000000000) /* longer than anything that a token is asked for may take */

/* ---- Questions ----------------------------------------------------------------------------------------- */

kh_result kh_link_ask(kh_keeper *keeper, kh_store_token *token, const kh_link_message *message, const void *data,
                      kh_link_answered_fn answered, void *ctx)
{
    kh_links *links = keeper->links;
    kh_link_message question = *message;
    kh_link_question *asked = NULL;

    /* `changed` concerns what is known there, logged in or not. */
    if (token == NULL || token->fd < 0 || links->stopping || (!token->open && message->op != KH_LINK_CHANGED)) {
        return KH_E_UNAVAILABLE;
    }
    asked = calloc(1, sizeof(*asked));
    if (asked == NULL) {
        return KH_E_MEMORY;
    }
    question.answer = 0;
    question.number = asked->number = ++links->last_number;
    asked->op = message->op;
    asked->asked_ns = kh_now_ns();
    asked->token = token;
    asked->answered = answered;
    asked->ctx = ctx;
    if (kh_link_send(token->fd, &question, data) != KH_OK) {
        free(asked);
        return KH_E_UNAVAILABLE;
    }
    asked->next = links->questions;
    links->questions = asked;
    return KH_OK;
}

/* Calls who asked. */
static void answer_question(kh_keeper *keeper, kh_link_question *asked, const kh_link_answer *answer)
{
    asked->answered(keeper, asked->ctx, asked->token, answer);
    free(asked);
}

/* One of that token with a number from..to; op 0: any. */
static kh_link_question *take_question(kh_links *links, const kh_store_token *token, uint32_t op, uint64_t from, uint64_t to)
{
    for (kh_link_question **at = &links->questions; *at != NULL; at = &(*at)->next) {
        kh_link_question *asked = *at;

        if (asked->token == token && (op == 0 || asked->op == op) && asked->number >= from && asked->number <= to) {
            *at = asked->next;
            return asked;
        }
    }
    return NULL;
}

void kh_links_fail_questions(kh_keeper *keeper, kh_store_token *token)
{
    const kh_link_answer nothing = {.result = KH_E_UNAVAILABLE};
    const uint64_t last = keeper->links->last_number;
    kh_link_question *asked = NULL;

    while ((asked = take_question(keeper->links, token, 0, 1, last)) != NULL) {
        answer_question(keeper, asked, &nothing);
    }
}

void kh_links_answered(kh_keeper *keeper, kh_store_token *token, const kh_link_message *message, const uint8_t *data)
{
    const kh_link_answer answer = {(kh_result)message->result, data, message->data_len};
    kh_link_question *asked = take_question(keeper->links, token, message->op, message->number, message->number);

    if (asked != NULL) {
        answer_question(keeper, asked, &answer);
    }
}

/* ---- Links that are stuck ------------------------------------------------------------------------------- */

void kh_links_judge(kh_keeper *keeper)
{
    const uint64_t now_ns = kh_now_ns();
    kh_store_token *stuck = NULL;

    for (const kh_link_question *asked = keeper->links->questions; asked != NULL; asked = asked->next) {
        stuck = now_ns - asked->asked_ns >= ANSWER_NS ? asked->token : stuck;
    }
    if (stuck != NULL) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR,
                "keeper: the keeper of token %s does not answer; its link is ended", stuck->name);
        kh_links_close(keeper, stuck);
    }
}

/* ---- What a token's keeper asks ------------------------------------------------------------------------ */

/* Whether that token is where the key lives; *pool: the pool's name, or empty. */
static bool lives_there(kh_keeper *keeper, const kh_store_token *token, const kh_key_info *info, char *pool)
{
    const kh_keeper_pool *of = info->tier == KH_TIER_HSM_POOL ? kh_links_pool(keeper, info->place) : NULL;

    if (of == NULL) {
        return info->tier == KH_TIER_HSM && strcmp(info->place, token->name) == 0;
    }
    memcpy(pool, of->name, sizeof(of->name));
    for (uint32_t i = 0; i < of->partition_count && strcmp(of->name, token->left_pool) != 0; i++) {
        if (keeper->links->tokens[of->partitions[i]] == token) {
            return true;
        }
    }
    return false;
}

kh_result kh_links_describe(kh_keeper *keeper, const kh_store_token *token, uint64_t ref, bool any_state,
                            kh_link_key **out, size_t *len)
{
    uint8_t sealed[KH_IMPORT_PKCS8_MAX];
    const uint8_t *blob = NULL;
    size_t sealed_len = 0, blob_len = 0;
    kh_link_key *key = calloc(1, sizeof(*key) + KH_P11_BLOB_MAX);
    kh_result result = key != NULL ? kh_store_get(keeper->store, ref, &key->info, sealed, &sealed_len) : KH_E_MEMORY;

    if (result == KH_OK && !any_state && key->info.state != STATE_ENABLED) {
        result = key->info.state == STATE_DISABLED ? KH_E_DISABLED : KH_E_NOT_FOUND;
    }
    if (result == KH_OK && !lives_there(keeper, token, &key->info, key->pool)) {
        result = KH_E_NOT_FOUND;
    }
    if (result == KH_OK) {
        result = kh_locator_parse(sealed, sealed_len, &key->locator, &blob, &blob_len);
    }
    if (result == KH_OK) {
        if (blob_len > 0) {
            memcpy(key->tail, blob, blob_len);
        }
        key->blob_len = (uint32_t)blob_len;
        *len = sizeof(*key) + blob_len;
        *out = key;
        key = NULL;
    }
    free(key);
    OPENSSL_cleanse(sealed, sizeof(sealed));
    return result;
}

void kh_links_tell_key(kh_keeper *keeper, kh_store_token *token, const kh_link_message *question)
{
    kh_link_message answer = {
        .op = KH_LINK_KEY, .answer = 1, .number = question->number, .ref = question->ref, .result = KH_OK};
    kh_link_key *key = NULL;
    size_t len = 0;
    kh_result result = kh_links_describe(keeper, token, question->ref, false, &key, &len);

    if (result == KH_E_NOT_FOUND && token->left_pool[0] != '\0') {
        result = KH_E_UNAVAILABLE; /* until the configuration says so, too, another partition is to be asked, and this one left out */
    }
    answer.result = (uint32_t)result;
    answer.data_len = (uint32_t)len;
    result = kh_link_send(token->fd, &answer, key); /* whoever is not answered asks again */
    (void)result;
    free(key);
}

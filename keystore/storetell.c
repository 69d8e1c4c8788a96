/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes that tokens' keepers have to know, and objects that have to be gone, before whoever made the change gets the answer. See
 * storelink.h.
 */
#include "storelink.h"
#include "process.h"

#include <stdlib.h>
#include <string.h>

void kh_links_touch(kh_keeper *keeper, const kh_touched *touched)
{
    kh_links *links = keeper->links;

    if (touched->tier == KH_TIER_SOFTWARE) {
        return;
    }
    for (size_t i = 0; i < links->touched_count; i++) {
        kh_touched *before = &links->touched[i];

        if (before->tier == touched->tier && strcmp(before->place, touched->place) == 0) {
            before->ref = before->ref == touched->ref ? before->ref : 0; /* several: all */
            return;
        }
    }
    if (links->touched_count == sizeof(links->touched) / sizeof(links->touched[0])) {
        links->touched_count = 1; /* everybody */
        links->touched[0] = (kh_touched){0};
        return;
    }
    links->touched[links->touched_count++] = *touched;
}

static bool concerns(kh_keeper *keeper, const kh_touched *touched, uint32_t token)
{
    const kh_keeper_pool *pool = touched->tier == KH_TIER_HSM_POOL ? kh_links_pool(keeper, touched->place) : NULL;

    return touched->tier == 0 ||
           (touched->tier == KH_TIER_HSM && strcmp(keeper->links->places.tokens[token], touched->place) == 0) ||
           (pool != NULL && kh_pool_has(pool, token));
}

static void wait_done(kh_keeper *keeper, kh_link_wait *wait)
{
    if (--wait->left == 0) {
        kh_storework_finish(keeper, wait->op, wait->result, 0);
        free(wait);
    }
}

/* It was told, or it is gone: then it knows nothing. */
static void on_changed(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    (void)token;
    (void)answer;
    wait_done(keeper, ctx);
}

/* Asks each token that is concerned. One that cannot be told loses its link, and with it all that it knows. */
static void tell_all(kh_keeper *keeper, kh_link_wait *wait)
{
    kh_links *links = keeper->links;

    for (size_t i = 0; i < links->touched_count; i++) {
        for (uint32_t t = 0; t < links->places.token_count; t++) {
            const kh_link_message message = {.op = KH_LINK_CHANGED, .ref = links->touched[i].ref};

            kh_store_token *token = links->tokens[t];

            if (token->fd < 0 || !concerns(keeper, &links->touched[i], t)) {
                continue;
            }
            if (kh_link_ask(keeper, token, &message, NULL, on_changed, wait) == KH_OK) {
                wait->left++;
            } else {
                kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR,
                        "keeper: the keeper of token %s does not read what changed; its link is ended", token->name);
                kh_links_close(keeper, token);
            }
        }
    }
}

/* Each token that has something to destroy is waited for, too. */
static void clean_all(kh_keeper *keeper, kh_link_wait *wait)
{
    kh_links *links = keeper->links;

    for (size_t i = 0; i < links->touched_count; i++) {
        for (uint32_t t = 0; t < links->places.token_count; t++) {
            kh_store_token *token = links->tokens[t];
            kh_clean_wait *more = NULL;

            if (!concerns(keeper, &links->touched[i], t) || !token->open) {
                continue;
            }
            more = calloc(1, sizeof(*more));
            if (more != NULL) {
                more->token = token;
                more->wait = wait;
                more->next = links->clean_waits;
                links->clean_waits = more;
                wait->left++;
            }
            kh_links_clean(keeper, token);
        }
    }
}

void kh_links_cleaned(kh_keeper *keeper, const kh_store_token *token)
{
    kh_clean_wait **at = &keeper->links->clean_waits;

    while (*at != NULL) {
        kh_clean_wait *done = *at;

        if (done->token == token) {
            *at = done->next;
            wait_done(keeper, done->wait);
            free(done);
        } else {
            at = &done->next;
        }
    }
}

kh_result kh_links_settle(kh_keeper *keeper, kh_op *op, kh_result result, bool clean)
{
    kh_link_wait *wait = NULL;

    if (keeper->links->touched_count == 0) {
        return result;
    }
    wait = calloc(1, sizeof(*wait));
    if (wait == NULL) {
        return KH_E_MEMORY; /* it is done, and the tokens' keepers are told again when somebody asks again */
    }
    wait->op = op;
    wait->result = result;
    wait->left = 1; /* this call */
    tell_all(keeper, wait);
    if (clean) {
        clean_all(keeper, wait);
    }
    keeper->links->touched_count = 0;
    wait_done(keeper, wait);
    return KH_AGAIN;
}

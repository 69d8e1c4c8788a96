/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store's side of the links: who is there, links that come and go, and operations that wait for a token. See storelink.h.
 * What goes over them: storeask.c, storetell.c.
 */
#include "storelink.h"
#include "process.h"
#include "row.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define AWAIT_NS UINT64_C(5000000000) /* how long an operation waits for a token that is not there yet */

/* ---- Who is there -------------------------------------------------------------------------------------- */

kh_result kh_links_new(kh_links **links)
{
    *links = calloc(1, sizeof(**links));
    if (*links == NULL) {
        return KH_E_MEMORY;
    }
    /* An answer to a keeper that was here before is none to this one. */
    return RAND_bytes((uint8_t *)&(*links)->last_number, sizeof((*links)->last_number) - 1) == 1 ? KH_OK : KH_E_CRYPTO;
}

static void free_token(kh_store_token *token)
{
    if (token != NULL && token->fd >= 0) {
        close(token->fd);
    }
    free(token);
}

void kh_links_free(kh_links *links)
{
    for (size_t i = 0; links != NULL && i < KH_PLACES_TOKENS; i++) {
        free_token(links->tokens[i]);
    }
    if (links != NULL) {
        kh_rotate_soon(links);
    }
    free(links);
}

kh_store_token *kh_links_token(kh_keeper *keeper, const char *name)
{
    kh_links *links = keeper->links;

    for (uint32_t i = 0; i < links->places.token_count; i++) {
        if (strcmp(links->places.tokens[i], name) == 0) {
            return links->tokens[i];
        }
    }
    return NULL;
}

const kh_keeper_pool *kh_links_pool(const kh_keeper *keeper, const char *name)
{
    const kh_keeper_places *places = &keeper->links->places;

    for (uint32_t i = 0; i < places->pool_count; i++) {
        if (strcmp(places->pools[i].name, name) == 0) {
            return &places->pools[i];
        }
    }
    return NULL;
}

bool kh_pool_has(const kh_keeper_pool *pool, uint32_t token)
{
    for (uint32_t i = 0; i < pool->partition_count; i++) {
        if (pool->partitions[i] == token) {
            return true;
        }
    }
    return false;
}

/* The only token that is no pool's. */
static kh_result only_token(const kh_keeper_places *places, char *place)
{
    const char *found = NULL;

    for (uint32_t t = 0; t < places->token_count; t++) {
        bool pooled = false;

        for (uint32_t p = 0; p < places->pool_count; p++) {
            pooled = pooled || kh_pool_has(&places->pools[p], t);
        }
        if (!pooled && found != NULL) {
            return KH_E_INVALID;
        }
        found = pooled ? found : places->tokens[t];
    }
    if (found == NULL) {
        return KH_E_NOT_FOUND;
    }
    memcpy(place, found, KH_PLACE_MAX + 1);
    return KH_OK;
}

kh_result kh_links_resolve(const kh_keeper *keeper, kh_key_info *info)
{
    const kh_keeper_places *places = &keeper->links->places;
    bool pool = info->tier == KH_TIER_HSM_POOL;

    if (info->place[0] != '\0') {
        bool found = pool ? kh_links_pool(keeper, info->place) != NULL
                          : kh_links_token((kh_keeper *)(uintptr_t)keeper, info->place) != NULL;

        return found ? KH_OK : KH_E_NOT_FOUND;
    }
    if (!pool) {
        return only_token(places, info->place);
    }
    if (places->pool_count != 1) {
        return places->pool_count == 0 ? KH_E_NOT_FOUND : KH_E_INVALID;
    }
    memcpy(info->place, places->pools[0].name, sizeof(info->place));
    return KH_OK;
}

/* ---- Links that come and go ----------------------------------------------------------------------------- */

void kh_links_close(kh_keeper *keeper, kh_store_token *token)
{
    if (token->fd >= 0) {
        (void)shutdown(token->fd, SHUT_RDWR); /* the main thread has a duplicate */
        close(token->fd);
    }
    token->fd = -1;
    token->open = false;
    token->life = 0;
    kh_links_fail_questions(keeper, token);
    kh_links_forget(keeper, token);
}

static void hello(kh_keeper *keeper, kh_store_token *token, const uint8_t *data, size_t len)
{
    if (len < sizeof(token->name) || memcmp(data, token->name, strlen(token->name) + 1) != 0) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR,
                "keeper: the keeper of token %s says that it is another's; it is not used", token->name);
        return;
    }
    if (token->open) {
        return; /* once for a link */
    }
    token->open = true;
    kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_INFO, "keeper: token %s is there", token->name);
    kh_links_clean(keeper, token);
    kh_links_repair(keeper, token);
    kh_links_retry(keeper, true);
    kh_rotate_soon(keeper->links); /* what failed for the want of it need not wait */
}

/* ---- Operations that wait for a token ------------------------------------------------------------------- */

static bool waited_enough(const kh_op *op, uint64_t now_ns)
{
    return now_ns - op->arrived_ns >= AWAIT_NS || kh_op_expired(op, now_ns);
}

bool kh_links_await(kh_keeper *keeper, kh_op *op)
{
    kh_links *links = keeper->links;
    bool expected = false;

    for (uint32_t i = 0; i < links->places.token_count; i++) {
        expected = expected || !links->tokens[i]->open;
    }
    if (links->stopping || !expected || waited_enough(op, kh_now_ns())) {
        return false;
    }
    kh_op_push(&links->waiting, op);
    return true;
}

void kh_links_retry(kh_keeper *keeper, bool any)
{
    const uint64_t now_ns = kh_now_ns();
    kh_op_queue waiting = keeper->links->waiting;
    kh_op *op = NULL;

    keeper->links->waiting = (kh_op_queue){0};
    while ((op = kh_op_pop(&waiting)) != NULL) {
        if (any) {
            kh_storework_submit(keeper, op);
        } else if (keeper->links->stopping || waited_enough(op, now_ns)) {
            kh_storework_finish(keeper, op, KH_E_UNAVAILABLE, 0);
        } else {
            kh_op_push(&keeper->links->waiting, op);
        }
    }
}

/* ---- Events -------------------------------------------------------------------------------------------- */

static kh_store_token *token_of_life(kh_links *links, uint64_t life)
{
    for (uint32_t i = 0; i < links->places.token_count; i++) {
        if (links->tokens[i]->life == life) {
            return links->tokens[i];
        }
    }
    return NULL;
}

static void on_message(kh_keeper *keeper, kh_store_token *token, const kh_link_message *message, const uint8_t *data)
{
    if (message->answer != 0) {
        kh_links_answered(keeper, token, message, data);
        return;
    }
    if (message->op == KH_LINK_KEY) {
        kh_links_tell_key(keeper, token, message);
    } else if (message->op == KH_LINK_HELLO) {
        hello(keeper, token, data, message->data_len);
    }
}

static void on_link(kh_keeper *keeper, const kh_control *control, uint64_t life)
{
    kh_store_token *token = kh_links_token(keeper, control->token);

    if (token == NULL || keeper->links->stopping) {
        (void)shutdown(control->fds[0], SHUT_RDWR);
        close(control->fds[0]); /* of a configuration that is gone already */
        return;
    }
    kh_links_close(keeper, token);
    token->fd = control->fds[0];
    token->life = life;
}

static bool legal(const kh_keeper_places *places)
{
    bool fits = places->token_count <= KH_PLACES_TOKENS && places->pool_count <= KH_PLACES_POOLS;

    for (uint32_t i = 0; fits && i < places->token_count; i++) {
        fits = places->tokens[i][KH_PLACE_MAX] == '\0';
    }
    for (uint32_t i = 0; fits && i < places->pool_count; i++) {
        const kh_keeper_pool *pool = &places->pools[i];

        fits = pool->name[KH_PLACE_MAX] == '\0' && pool->partition_count <= KH_PLACES_TOKENS && pool->quorum >= 1 &&
               pool->quorum <= pool->partition_count;
        for (uint32_t p = 0; fits && p < pool->partition_count; p++) {
            fits = pool->partitions[p] < places->token_count;
        }
    }
    return fits;
}

/* Tokens that stay keep their links. */
static void on_places(kh_keeper *keeper, const kh_keeper_places *places)
{
    kh_links *links = keeper->links;
    kh_store_token *now[KH_PLACES_TOKENS] = {NULL}, *gone[KH_PLACES_TOKENS];
    bool complete = legal(places);

    for (uint32_t i = 0; complete && i < places->token_count; i++) {
        now[i] = calloc(1, sizeof(*now[i]));
        complete = now[i] != NULL;
    }
    if (!complete) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR, "keeper: tokens and pools cannot be taken over");
        for (uint32_t i = 0; i < KH_PLACES_TOKENS; i++) {
            free(now[i]);
        }
        return;
    }
    for (uint32_t i = 0; i < places->token_count; i++) {
        kh_store_token *before = kh_links_token(keeper, places->tokens[i]);

        memcpy(now[i]->name, places->tokens[i], sizeof(now[i]->name));
        now[i]->fd = -1;
        for (uint32_t j = 0; before != NULL && j < KH_PLACES_TOKENS; j++) {
            if (links->tokens[j] == before) {
                links->tokens[j] = NULL;
                free(now[i]);
                now[i] = before;
                before = NULL;
            }
        }
    }
    /* Whoever is told that a token is gone sees the new ones. */
    memcpy(gone, links->tokens, sizeof(gone));
    memcpy(links->tokens, now, sizeof(now));
    links->places = *places;
    for (uint32_t j = 0; j < KH_PLACES_TOKENS; j++) {
        if (gone[j] != NULL) {
            kh_links_close(keeper, gone[j]);
            free_token(gone[j]);
        }
    }
    for (uint32_t i = 0; i < places->token_count; i++) {
        const kh_keeper_pool *left = kh_links_pool(keeper, links->tokens[i]->left_pool);

        if (left == NULL || !kh_pool_has(left, i)) {
            links->tokens[i]->left_pool[0] = '\0'; /* as the configuration has it */
        }
        kh_links_repair(keeper, links->tokens[i]); /* it may be in a pool that it was not in */
    }
}

void kh_links_event(kh_keeper *keeper, kh_link_event_kind kind, const kh_control *control, uint64_t life,
                    const kh_link_message *message, const uint8_t *data)
{
    kh_store_token *token = life != 0 ? token_of_life(keeper->links, life) : NULL;

    switch (kind) {
    case KH_LINK_EVENT_MESSAGE:
        if (token != NULL) {
            on_message(keeper, token, message, data);
        }
        break;
    case KH_LINK_EVENT_NEW:
        on_link(keeper, control, life);
        break;
    case KH_LINK_EVENT_GONE:
        if (token != NULL) {
            kh_links_close(keeper, token);
        }
        break;
    case KH_LINK_EVENT_PLACES:
        on_places(keeper, &control->places);
        break;
    case KH_LINK_EVENT_TICK:
        kh_links_tick(keeper);
        break;
    case KH_LINK_EVENT_STOP:
        keeper->links->stopping = true;
        for (uint32_t i = 0; i < keeper->links->places.token_count; i++) {
            kh_links_close(keeper, keeper->links->tokens[i]);
        }
        kh_links_retry(keeper, false);
        break;
    }
}

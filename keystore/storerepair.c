/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is put right in tokens: objects that are nobody's are destroyed, and keys of a pool are placed into a partition that lacks
 * them. Each token has one such question at a time, so that whoever makes a key is not kept waiting.
 */
#include "storelink.h"
#include "process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * Keys of a pool that are looked for in a partition in a second. Slow on purpose: to find one costs some tokens 30 ms, a key that
 * is missing is placed at its first use anyway, and mostly none is.
 */
#define REPAIRS_PER_TICK 32
#define CLEAN_FAILURES 12 /* passes that failed, until the pause grows no more: about an hour */
#define REPAIR_FAILURES 8 /* passes that failed, until the pause grows no more: about four minutes */

/* ---- Objects that are to be destroyed ------------------------------------------------------------------ */

static void clean_next(kh_keeper *keeper, kh_store_token *token);

static void on_destroyed(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    (void)ctx;
    if (answer->result == KH_OK) {
        kh_result result = kh_store_intent_done(keeper->store, token->name, token->destroying);

        (void)result; /* logged; it is destroyed once more, then */
    } else {
        token->clean_failed++;
        token->clean_result = answer->result;
    }
    clean_next(keeper, token);
}

/* What is left is tried again later, and each time later. */
static void clean_end(kh_keeper *keeper, kh_store_token *token)
{
    token->cleaning = false;
    if (token->clean_failed == 0) {
        token->clean_failures = 0;
    } else if (token->open) {
        token->clean_again = true;
        token->clean_failures += token->clean_failures < CLEAN_FAILURES;
        token->clean_pause = 1u << token->clean_failures;
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_WARN,
                "keeper: %u objects in token %s that are to be destroyed are still there (%s); tried again in %u s",
                token->clean_failed, token->name, kh_result_name(token->clean_result), token->clean_pause);
    }
    kh_links_cleaned(keeper, token);
}

/* The next object that is intended for destruction, or that nobody is making any more. */
static bool find_next(kh_keeper *keeper, kh_store_token *token)
{
    bool destroy = false;

    while (kh_store_intent_next(keeper->store, token->name, token->cleaned_to, &destroy) == KH_OK) {
        if (destroy || !kh_make_under_way(keeper, token->cleaned_to)) {
            return true;
        }
    }
    return false;
}

static void clean_next(kh_keeper *keeper, kh_store_token *token)
{
    const kh_link_message message = {.op = KH_LINK_DESTROY, .data_len = sizeof(kh_link_key)};
    kh_link_key key;
    bool asked = false;

    if (token->open && find_next(keeper, token)) {
        memset(&key, 0, sizeof(key));
        memcpy(token->destroying, token->cleaned_to, KH_P11_ID_LEN);
        memcpy(key.locator.id, token->destroying, KH_P11_ID_LEN);
        key.locator.id_len = KH_P11_ID_LEN;
        asked = kh_link_ask(keeper, token, &message, &key, on_destroyed, NULL) == KH_OK;
    }
    if (!asked) {
        clean_end(keeper, token);
    }
}

void kh_links_clean(kh_keeper *keeper, kh_store_token *token)
{
    if (token->cleaning) {
        /* It goes through all of them again, since what came may lie behind it. */
        memset(token->cleaned_to, 0, sizeof(token->cleaned_to));
        return;
    }
    token->cleaning = true;
    token->clean_again = false;
    token->clean_failed = 0;
    memset(token->cleaned_to, 0, sizeof(token->cleaned_to));
    clean_next(keeper, token);
}

/* ---- Keys of pools -------------------------------------------------------------------------------------- */

static void repair_next(kh_keeper *keeper, kh_store_token *token);

/* What a token's keeper says is another process's: it fits, and can be shown. */
static void take_reason(const kh_link_answer *answer, char *why, size_t size)
{
    size_t len = answer->len < size ? answer->len : size - 1;

    if (len == 0) {
        (void)snprintf(why, size, "%s", kh_result_text(answer->result));
        return;
    }
    for (size_t i = 0; i < len; i++) {
        why[i] = answer->data[i] >= ' ' && answer->data[i] <= '~' ? (char)answer->data[i] : '?';
    }
    why[len] = '\0';
}

static void count_reason(kh_store_token *token, const kh_link_answer *answer)
{
    char why[sizeof(token->repair_reasons[0].why)];
    size_t i = 0;

    take_reason(answer, why, sizeof(why));
    while (i < KH_REPAIR_REASONS - 1 && token->repair_reasons[i].keys > 0 && strcmp(token->repair_reasons[i].why, why) != 0) {
        i++;
    }
    (void)snprintf(token->repair_reasons[i].why, sizeof(why), "%s", i == KH_REPAIR_REASONS - 1 ? "other reasons" : why);
    token->repair_reasons[i].keys++;
}

static void on_placed(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer)
{
    (void)ctx;
    token->repaired += answer->result == KH_OK;
    if (answer->result != KH_OK) {
        token->repair_failed++;
        count_reason(token, answer);
    }
    repair_next(keeper, token);
}

static bool is_partition(const kh_keeper_places *places, uint32_t pool, const char *token)
{
    for (uint32_t i = 0; i < places->pools[pool].partition_count; i++) {
        if (strcmp(places->tokens[places->pools[pool].partitions[i]], token) == 0) {
            return true;
        }
    }
    return false;
}

/* The next key that belongs there, of the pools that the token is in. */
static bool next_key(kh_keeper *keeper, kh_store_token *token, kh_link_key **key, size_t *len)
{
    const kh_keeper_places *places = &keeper->links->places;

    for (; token->repair_pool < places->pool_count; token->repair_pool++, token->repaired_to = 0) {
        const char *pool = places->pools[token->repair_pool].name;

        while (is_partition(places, token->repair_pool, token->name) && strcmp(pool, token->left_pool) != 0 &&
               kh_store_next_at(keeper->store, pool, &token->repaired_to) == KH_OK) {
            if (kh_links_describe(keeper, token, token->repaired_to, true, key, len) == KH_OK) {
                return true;
            }
        }
    }
    return false;
}

/* A line, or one for each reason. */
static void say_repaired(kh_keeper *keeper, const kh_store_token *token)
{
    const unsigned long long all = token->repaired + token->repair_failed;

    if (token->repair_failed == 0 && all > 0) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_NOTICE, "keeper: partition %s has all %llu keys of its pool",
                token->name, all);
    }
    for (size_t i = 0; i < KH_REPAIR_REASONS && token->repair_reasons[i].keys > 0; i++) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_WARN,
                "keeper: partition %s lacks %llu of %llu keys of its pool, which cannot be placed: %s; tried again in %u s",
                token->name, (unsigned long long)token->repair_reasons[i].keys, all, token->repair_reasons[i].why,
                token->repair_pause);
    }
}

static void repair_end(kh_keeper *keeper, kh_store_token *token)
{
    token->repairing = false;
    token->repair_again = token->repair_again || token->repair_failed > 0;
    token->repair_failures = token->repair_failed > 0 ? token->repair_failures + (token->repair_failures < REPAIR_FAILURES) : 0;
    token->repair_pause = token->repair_failures > 0 ? 1u << token->repair_failures : 0;
    if (token->open) {
        say_repaired(keeper, token);
    }
}

static void repair_next(kh_keeper *keeper, kh_store_token *token)
{
    kh_link_message message = {.op = KH_LINK_PLACE};
    kh_link_key *key = NULL;
    size_t len = 0;
    bool asked = false;

    if (token->repair_left == 0 && token->open) {
        return; /* goes on with the next tick */
    }
    if (token->open && next_key(keeper, token, &key, &len)) {
        message.ref = token->repaired_to;
        message.data_len = (uint32_t)len;
        token->repair_left--;
        asked = kh_link_ask(keeper, token, &message, key, on_placed, NULL) == KH_OK;
    }
    free(key);
    if (!asked) {
        repair_end(keeper, token);
    }
}

void kh_links_repair(kh_keeper *keeper, kh_store_token *token)
{
    if (!token->open || token->repairing) {
        token->repair_again = token->open;
        return;
    }
    token->repairing = true;
    token->repair_again = false;
    token->repair_pool = 0;
    token->repaired_to = token->repaired = token->repair_failed = 0;
    memset(token->repair_reasons, 0, sizeof(token->repair_reasons));
    token->repair_left = REPAIRS_PER_TICK;
    repair_next(keeper, token);
}

/* ---- Both ----------------------------------------------------------------------------------------------- */

void kh_links_forget(kh_keeper *keeper, kh_store_token *token)
{
    token->cleaning = token->clean_again = false;
    token->repairing = token->repair_again = false;
    kh_links_cleaned(keeper, token);
}

/* For status and metrics. */
static void show_orders(kh_keeper *keeper)
{
    size_t count = 0;
    uint64_t all = 0;

    if (kh_store_orders(keeper->store, NULL, 0, &count, &all) == KH_OK && all != keeper->stats.orders) {
        pthread_mutex_lock(&keeper->lock);
        keeper->stats.orders = all;
        kh_keeper_publish(keeper);
        pthread_mutex_unlock(&keeper->lock);
    }
}

void kh_links_tick(kh_keeper *keeper)
{
    kh_links *links = keeper->links;

    for (uint32_t i = 0; i < links->places.token_count; i++) {
        kh_store_token *token = links->tokens[i];
        bool paused = token->repairing && token->repair_left == 0;

        token->repair_left = REPAIRS_PER_TICK;
        if (paused) {
            repair_next(keeper, token);
        } else if (token->repair_again && !token->repairing && token->repair_pause == 0) {
            kh_links_repair(keeper, token);
        }
        token->repair_pause -= token->repair_pause > 0;
        token->clean_pause -= token->clean_pause > 0;
        if (token->clean_again && !token->cleaning && token->clean_pause == 0) {
            kh_links_clean(keeper, token);
        }
    }
    show_orders(keeper);
    kh_links_judge(keeper);
    kh_links_retry(keeper, false);
    kh_rotate_due(keeper, (uint64_t)time(NULL));
}

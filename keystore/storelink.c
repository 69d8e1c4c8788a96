/* SPDX-License-Identifier: Apache-2.0 */
/* The store's side of the links: who is there, questions and answers, and what tokens' keepers ask. See storelink.h. */
#include "storelink.h"
#include "process.h"
#include "row.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_NS UINT64_C(150000000000) /* longer than anything that a token is asked for may take */
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

static bool in_pool(const kh_keeper_pool *pool, uint32_t token)
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
            pooled = pooled || in_pool(&places->pools[p], t);
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

/* Nobody answers them any more. Whoever is called may ask others anew. */
static void fail_questions(kh_keeper *keeper, kh_store_token *token)
{
    const kh_link_answer nothing = {.result = KH_E_UNAVAILABLE};
    const uint64_t last = keeper->links->last_number;
    kh_link_question *asked = NULL;

    while ((asked = take_question(keeper->links, token, 0, 1, last)) != NULL) {
        answer_question(keeper, asked, &nothing);
    }
}

static void close_link(kh_keeper *keeper, kh_store_token *token)
{
    if (token->fd >= 0) {
        (void)shutdown(token->fd, SHUT_RDWR); /* the main thread has a duplicate */
        close(token->fd);
    }
    token->fd = -1;
    token->open = false;
    token->life = 0;
    fail_questions(keeper, token);
    kh_links_forget(keeper, token);
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

static void tell_key(kh_keeper *keeper, kh_store_token *token, const kh_link_message *question)
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
    kh_link_question *asked = NULL;
    const kh_link_answer answer = {(kh_result)message->result, data, message->data_len};

    if (message->answer != 0) {
        asked = take_question(keeper->links, token, message->op, message->number, message->number);
        if (asked != NULL) {
            answer_question(keeper, asked, &answer);
        }
        return;
    }
    if (message->op == KH_LINK_KEY) {
        tell_key(keeper, token, message);
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
    close_link(keeper, token);
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
            close_link(keeper, gone[j]);
            free_token(gone[j]);
        }
    }
    for (uint32_t i = 0; i < places->token_count; i++) {
        const kh_keeper_pool *left = kh_links_pool(keeper, links->tokens[i]->left_pool);

        if (left == NULL || !in_pool(left, i)) {
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
            close_link(keeper, token);
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
            close_link(keeper, keeper->links->tokens[i]);
        }
        kh_links_retry(keeper, false);
        break;
    }
}

/* ---- Changes that have to be known before they are acknowledged ---------------------------------------- */

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
           (pool != NULL && in_pool(pool, token));
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
                close_link(keeper, token);
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
        close_link(keeper, stuck);
    }
}

/* ---- Signatures for root ------------------------------------------------------------------------------- */

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

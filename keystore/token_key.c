/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token's keeper: the keys that it knows, their queues, and whose turn it is.
 *
 * How many operations of a key may be under way: one until it has been found in the token; while it is the only key in use, as
 * many as there are sessions; beside others one less, so that a newcomer finds a session that is free or about to be; and all
 * keys that are much slower than the fastest have half of the sessions between them.
 */
#include "token.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 8192 /* a power of two */
#define KEYS_MAX 20000
#define ALONE_NS UINT64_C(10000000000) /* after that without a second key one has all sessions */
#define SLOW_NS UINT64_C(20000000)     /* no key is slow below that */
#define SLOW_TIMES 8
#define ASK_AGAIN_NS UINT64_C(500000000)

static kh_token_key **bucket_of(kh_token *token, uint64_t ref)
{
    return &token->bucket[(ref * UINT64_C(0x9e3779b97f4a7c15)) >> 40 & (BUCKETS - 1)];
}

static void key_free(kh_token_key *key)
{
    free(key->blob);
    OPENSSL_cleanse(key->kx_secret, sizeof(key->kx_secret));
    free(key);
}

static bool idle(const kh_token_key *key)
{
    return key->known && key->in_flight == 0 && key->waiting == 0 && !key->in_ready;
}

/* The first key from the hand on that nobody waits for makes room. */
static void evict(kh_token *token)
{
    for (uint32_t i = 0; i < BUCKETS; i++) {
        kh_token_key **at = &token->bucket[token->hand++ & (BUCKETS - 1)];

        for (; *at != NULL; at = &(*at)->hash_next) {
            kh_token_key *key = *at;

            if (idle(key)) {
                *at = key->hash_next;
                token->key_count--;
                token->stats.keys_evicted++;
                key_free(key);
                return;
            }
        }
    }
}

static kh_token_key *find_or_add(kh_token *token, uint64_t ref)
{
    kh_token_key **bucket = NULL, *key = NULL;

    if (token->bucket == NULL) {
        token->bucket = calloc(BUCKETS, sizeof(*token->bucket));
        if (token->bucket == NULL) {
            return NULL;
        }
    }
    bucket = bucket_of(token, ref);
    for (key = *bucket; key != NULL && key->ref != ref; key = key->hash_next) {
    }
    if (key != NULL) {
        return key;
    }
    if (token->key_count >= KEYS_MAX) {
        evict(token);
    }
    key = calloc(1, sizeof(*key));
    if (key != NULL) {
        key->ref = ref;
        key->hash_next = *bucket;
        *bucket = key;
        token->key_count++;
        key->next = token->asked;
        token->asked = key;
    }
    return key;
}

static void take_out(kh_token *token, kh_token_key *key)
{
    kh_token_key **at = bucket_of(token, key->ref);

    while (*at != key) {
        at = &(*at)->hash_next;
    }
    *at = key->hash_next;
    key->hash_next = NULL;
    token->key_count--;
}

/* It is asked anew: an answer that is under way may be older than what is known. */
static void unask(kh_token *token, kh_token_key *key)
{
    token->questions -= key->question != 0;
    key->question = 0;
}

static void unlist_asked(kh_token *token, kh_token_key *key)
{
    kh_token_key **at = &token->asked;

    while (*at != key) {
        at = &(*at)->next;
    }
    *at = key->next;
    key->next = NULL;
    unask(token, key);
}

/* ---- Whose turn it is */

static bool is_slow(const kh_token *token, const kh_token_key *key)
{
    return key->usual_ns > SLOW_NS && token->usual_ns > 0 && key->usual_ns > SLOW_TIMES * token->usual_ns;
}

static uint32_t limit_of(const kh_token *token, const kh_token_key *key)
{
    uint32_t all = token->worker_count;

    if (!key->found || all <= 1) {
        return 1;
    }
    return token->now_ns - token->mixed_ns > ALONE_NS ? all : all - 1;
}

static void make_ready(kh_token *token, kh_token_key *key)
{
    if (key->known && !key->in_ready && key->waiting > 0 && key->in_flight < limit_of(token, key)) {
        key->in_ready = true;
        key->next = NULL;
        *(token->ready_last != NULL ? &token->ready_last->next : &token->ready_first) = key;
        token->ready_last = key;
    }
}

static kh_token_key *pop_ready(kh_token *token)
{
    kh_token_key *key = token->ready_first;

    if (key != NULL) {
        token->ready_first = key->next;
        token->ready_last = key->next != NULL ? token->ready_last : NULL;
        key->next = NULL;
        key->in_ready = false;
    }
    return key;
}

static void unlist_ready(kh_token *token, kh_token_key *key)
{
    kh_token_key *before = NULL, *at = token->ready_first;

    if (!key->in_ready) {
        return;
    }
    while (at != key) {
        before = at;
        at = at->next;
    }
    *(before != NULL ? &before->next : &token->ready_first) = key->next;
    token->ready_last = key->next != NULL ? token->ready_last : before;
    key->next = NULL;
    key->in_ready = false;
}

static kh_token_op *pop_op(kh_token_key *key)
{
    kh_token_op *op = key->first;

    key->first = op->next;
    key->last = op->next != NULL ? key->last : NULL;
    key->waiting--;
    op->next = NULL;
    return op;
}

static void push_op(kh_token_key *key, kh_token_op *op)
{
    op->next = NULL;
    *(key->last != NULL ? &key->last->next : &key->first) = op;
    key->last = op;
    key->waiting++;
}

kh_token_op *kh_token_key_next(kh_token *token, kh_token_key **out)
{
    kh_token_key *key = NULL, *first_passed = NULL;

    while ((key = pop_ready(token)) != NULL) {
        bool slow = is_slow(token, key);
        kh_token_op *op = NULL;

        if (key->waiting == 0 || key->in_flight >= limit_of(token, key)) {
            continue;
        }
        if (slow && token->worker_count > 1 && token->slow_in_flight >= token->worker_count / 2) {
            bool again = key == first_passed;

            first_passed = first_passed != NULL ? first_passed : key;
            make_ready(token, key); /* behind the others; a slow one that ends makes room for it */
            if (again) {
                return NULL;
            }
            continue;
        }
        op = pop_op(key);
        op->is_slow = slow;
        token->slow_in_flight += slow;
        key->in_flight++;
        key->used_ns = token->now_ns;
        make_ready(token, key);
        *out = key;
        return op;
    }
    return NULL;
}

/* ---- Operations */

void kh_token_key_queue(kh_token *token, kh_token_op *op)
{
    kh_token_key *key = NULL;

    if (!token->serving) {
        kh_token_answer(token, op, KH_E_UNAVAILABLE);
        return;
    }
    if (op->record.key_ref != token->last_ref) {
        token->mixed_ns = token->last_ref != 0 ? token->now_ns : token->mixed_ns;
        token->last_ref = op->record.key_ref;
    }
    key = find_or_add(token, op->record.key_ref);
    if (key == NULL) {
        kh_token_answer(token, op, KH_E_MEMORY);
        return;
    }
    push_op(key, op);
    if (key->known) {
        make_ready(token, key);
    } else if (key->question == 0) {
        kh_token_keys_ask(token);
    }
}

static void answer_all(kh_token *token, kh_token_key *key, kh_result result)
{
    while (key->waiting > 0) {
        kh_token_answer(token, pop_op(key), result);
    }
}

void kh_token_key_done(kh_token *token, kh_token_key *key, kh_token_op *op, kh_result result, uint64_t took_ns)
{
    key->in_flight--;
    token->slow_in_flight -= op->is_slow;
    if (took_ns > 0) {
        key->usual_ns = key->usual_ns == 0 ? took_ns : key->usual_ns - key->usual_ns / 8 + took_ns / 8;
        token->usual_ns = token->usual_ns == 0 || key->usual_ns < token->usual_ns ? key->usual_ns : token->usual_ns;
    }
    kh_token_answer(token, op, result);
    if (key->left_at == 0) {
        make_ready(token, key);
        return;
    }
    if (key->in_flight == 0) {
        kh_token_key **at = &token->left;

        while (*at != key) {
            at = &(*at)->hash_next;
        }
        *at = key->hash_next;
        key_free(key);
        kh_token_link_settle(token);
    }
}

/* ---- What the store's keeper says */

/* KH_E_MALFORMED: it is not what it should be. */
static kh_result take_answer(kh_token_key *key, const uint8_t *data, size_t len)
{
    kh_link_key said;

    if (len < sizeof(said)) {
        return KH_E_MALFORMED;
    }
    memcpy(&said, data, sizeof(said));
    said.info.name[KH_NAME_MAX] = said.info.place[KH_PLACE_MAX] = said.pool[KH_PLACE_MAX] = '\0';
    said.locator.label[KH_NAME_MAX] = '\0';
    if (said.info.ref != key->ref || said.info.spki_len > sizeof(said.info.spki) || said.pkcs8_len != 0 ||
        said.locator.id_len > sizeof(said.locator.id) || said.blob_len > KH_P11_BLOB_MAX ||
        said.blob_len != len - sizeof(said) || (said.info.type == KH_KEY_RSA && said.info.bits > 8 * KH_SIGNATURE_MAX)) {
        return KH_E_MALFORMED;
    }
    if (said.blob_len > 0) {
        key->blob = malloc(said.blob_len);
        if (key->blob == NULL) {
            return KH_E_MEMORY;
        }
        memcpy(key->blob, data + sizeof(said), said.blob_len);
        key->blob_len = said.blob_len;
    }
    key->info = said.info;
    key->locator = said.locator;
    memcpy(key->pool, said.pool, sizeof(key->pool));
    return KH_OK;
}

void kh_token_key_told(kh_token *token, uint64_t number, kh_result result, const uint8_t *data, size_t len)
{
    kh_token_key *key = token->asked;

    while (key != NULL && key->question != number) {
        key = key->next;
    }
    if (key == NULL || number == 0) {
        return; /* it was given up meanwhile */
    }
    if (result == KH_OK) {
        result = take_answer(key, data, len);
    }
    unlist_asked(token, key);
    if (result != KH_OK) {
        take_out(token, key);
        answer_all(token, key, result == KH_E_MALFORMED ? KH_E_INTERNAL : result);
        key_free(key);
        return;
    }
    key->known = true;
    token->stats.keys_loaded++;
    make_ready(token, key);
    kh_token_wake(token, 1);
    kh_token_keys_ask(token);
}

/* Takes a key away from those that come; its waiting operations go to the end of a list. */
static void forget(kh_token *token, kh_token_key *key, kh_token_op ***end)
{
    if (!key->known) { /* the question is asked again, since its answer may be older than the change */
        unask(token, key);
        return;
    }
    unlist_ready(token, key);
    take_out(token, key);
    while (key->waiting > 0) {
        **end = pop_op(key);
        *end = &(**end)->next;
    }
    if (key->in_flight > 0) {
        key->left_at = token->change_clock;
        key->hash_next = token->left;
        token->left = key;
    } else {
        key_free(key);
    }
}

void kh_token_keys_forget(kh_token *token, uint64_t ref)
{
    kh_token_op *waiting = NULL, **end = &waiting;
    uint32_t first = 0, last = BUCKETS;

    token->change_clock++;
    if (token->bucket == NULL) {
        return;
    }
    if (ref != 0) {
        first = (uint32_t)(bucket_of(token, ref) - token->bucket);
        last = first + 1;
    }
    for (uint32_t i = first; i < last; i++) {
        for (kh_token_key *key = token->bucket[i], *next = NULL; key != NULL; key = next) {
            next = key->hash_next;
            if (ref == 0 || key->ref == ref) {
                forget(token, key, &end);
            }
        }
    }
    /* They are asked about again. */
    for (kh_token_op *op = waiting, *next = NULL; op != NULL; op = next) {
        next = op->next;
        kh_token_key_queue(token, op);
    }
    kh_token_keys_ask(token);
}

/*
 * A question that is not answered for a while is sent again with the same number: either the question or the answer met a full
 * socket. As many as KH_TOKEN_QUESTIONS are under way.
 */
static kh_result ask(kh_token *token, kh_token_key *key)
{
    kh_link_message message = {.op = KH_LINK_KEY, .ref = key->ref};
    kh_result result = KH_E_UNAVAILABLE;

    if (token->link_fd < 0) {
        return KH_E_UNAVAILABLE;
    }
    if (token->kept != NULL || (key->question == 0 && token->questions >= KH_TOKEN_QUESTIONS)) {
        return KH_AGAIN;
    }
    message.number = key->question != 0 ? key->question : token->next_number + 1;
    result = kh_link_send(token->link_fd, &message, NULL);
    if (result == KH_OK && key->question == 0) {
        key->question = ++token->next_number;
        token->questions++;
    }
    key->asked_ns = token->now_ns;
    return result;
}

void kh_token_keys_ask(kh_token *token)
{
    for (kh_token_key *key = token->asked, *next = NULL; key != NULL; key = next) {
        kh_result result = KH_OK;

        next = key->next;
        if (token->link_fd >= 0 && key->question == 0 && token->questions >= KH_TOKEN_QUESTIONS) {
            continue;
        }
        if (key->question != 0 && token->now_ns - key->asked_ns < ASK_AGAIN_NS) {
            continue;
        }
        result = ask(token, key);
        if (result != KH_OK && result != KH_AGAIN) {
            unlist_asked(token, key);
            take_out(token, key);
            answer_all(token, key, KH_E_UNAVAILABLE);
            key_free(key);
        }
    }
}

/* ---- Time */

static void expire_key(kh_token *token, kh_token_key *key)
{
    kh_token_op *op = key->first;

    key->first = key->last = NULL;
    key->waiting = 0;
    while (op != NULL) {
        kh_token_op *next = op->next;

        if (op->record.deadline_ns != 0 && op->record.deadline_ns <= token->now_ns) {
            const kh_lane_stats expired = {.expired = 1};

            kh_token_count(token, kh_lane_of((int)key->info.type, key->info.bits), &expired);
            kh_token_answer(token, op, KH_E_DEADLINE);
        } else {
            push_op(key, op);
        }
        op = next;
    }
}

void kh_token_keys_expire(kh_token *token)
{
    for (uint32_t i = 0; token->bucket != NULL && token->in_flight > 0 && i < BUCKETS; i++) {
        for (kh_token_key *key = token->bucket[i]; key != NULL; key = key->hash_next) {
            if (key->waiting > 0) {
                expire_key(token, key);
            }
        }
    }
}

void kh_token_keys_drop(kh_token *token, kh_result result)
{
    for (uint32_t i = 0; token->bucket != NULL && i < BUCKETS; i++) {
        for (kh_token_key *key = token->bucket[i]; key != NULL; key = key->hash_next) {
            answer_all(token, key, result);
        }
    }
}

/* How long the fastest of the keys in use takes. */
void kh_token_keys_judge(kh_token *token)
{
    uint64_t fastest = 0;

    for (uint32_t i = 0; token->bucket != NULL && i < BUCKETS; i++) {
        for (const kh_token_key *key = token->bucket[i]; key != NULL; key = key->hash_next) {
            if (key->usual_ns > 0 && token->now_ns - key->used_ns < ALONE_NS) {
                fastest = fastest == 0 || key->usual_ns < fastest ? key->usual_ns : fastest;
            }
        }
    }
    token->usual_ns = fastest;
}

void kh_token_keys_free(kh_token *token)
{
    for (uint32_t i = 0; token->bucket != NULL && i < BUCKETS; i++) {
        while (token->bucket[i] != NULL) {
            kh_token_key *key = token->bucket[i];

            token->bucket[i] = key->hash_next;
            key_free(key);
        }
    }
    free(token->bucket);
}

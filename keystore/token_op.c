/* SPDX-License-Identifier: Apache-2.0 */
/* A token's keeper: records in the ring, and answers. */
#include "token.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define DRAIN_MAX 256 /* records taken while the lock is held once */
/* A front can move sleepers to where no wake-up finds them (see worker.c), so they come back by themselves. */
#define SLEEP_MAX_NS UINT64_C(500000000)

/* ---- Answers */

static void wipe(kh_token_op *op)
{
    if (op->long_data != NULL) {
        OPENSSL_cleanse(op->long_data, op->record.data_len);
        free(op->long_data);
        op->long_data = NULL;
    }
    if (op->out_len > 0) {
        OPENSSL_cleanse(op->out, op->out_len);
    }
}

void kh_token_answer(kh_token *token, kh_token_op *op, kh_result result)
{
    kh_keeper_ring *ring = op->ring;

    op->out_len = result == KH_OK ? op->out_len : 0;
    token->in_flight--;
    if (ring == NULL) {
        kh_token_link_answer(token, op->link_life, KH_LINK_SIGN, op->number, result, op->out, op->out_len);
        wipe(op);
        free(op);
        return;
    }
    ring->in_flight--;
    if (!ring->dead) {
        kh_ring_end_result(&ring->end, op->slot, result, op->out, op->out_len, result == KH_OK);
        kh_ring_end_push(&ring->end, op->slot);
        kh_ring_end_ring_front(&ring->end);
    }
    wipe(op);
}

/* ---- Records */

/* A private operation out of a record; its data is copied here, before anything looks at it. */
static kh_result take_record(kh_keeper_ring *ring, const kh_ring_copy *copy, kh_token_op *op)
{
    kh_result result = KH_OK;

    op->next = NULL;
    op->ring = ring;
    op->slot = copy->slot;
    op->is_slow = false;
    op->out_len = 0;
    result = kh_ring_end_take(&ring->end, copy, &op->record, op->inline_data, sizeof(op->inline_data), &op->long_data);
    if (result != KH_OK) {
        return result;
    }
    return op->record.op == KH_STORE_SIGN || op->record.op == KH_STORE_TLS_RSA_KX || op->record.op == KH_STORE_DECRYPT
               ? KH_OK
               : KH_E_UNSUPPORTED;
}

void kh_token_take(kh_token *token)
{
    kh_keeper_ring *ring = token->ring;
    kh_ring_copy copy;

    if (ring == NULL || token->closed) {
        return;
    }
    for (unsigned i = 0; i < DRAIN_MAX && kh_ring_end_next(&ring->end, &copy); i++) {
        kh_token_op *op = &ring->token_ops[copy.slot];
        kh_result result = take_record(ring, &copy, op);

        ring->in_flight++;
        token->in_flight++;
        if (result == KH_OK) {
            kh_token_key_queue(token, op);
        } else {
            kh_token_answer(token, op, result);
        }
    }
}

/* ---- Sleeping and waking */

void kh_token_wake(kh_token *token, uint32_t n)
{
    _Atomic uint32_t *door = token->ring != NULL ? &token->ring->end.map.shared->door : &token->idle_door;

    if (token->sleeping > 0) {
        atomic_fetch_add(door, 1);
        kh_futex_wake(door, n);
    }
}

void kh_token_sleep(kh_token *token)
{
    kh_keeper_ring *ring = token->ring;
    _Atomic uint32_t *door = ring != NULL ? &ring->end.map.shared->door : &token->idle_door;
    uint32_t seen = atomic_load(door);
    bool work = false;

    token->sleeping++;
    if (ring != NULL) {
        ring->sleeping++;
        atomic_fetch_add(&ring->end.map.shared->sleepers, 1);
        /* The front writes its queue and then looks at `sleepers`; here it is the other way round. */
        work = !token->closed && kh_ring_end_pending(&ring->end);
    }
    if (!work) {
        pthread_mutex_unlock(&token->lock);
        kh_futex_wait(door, seen, SLEEP_MAX_NS);
        pthread_mutex_lock(&token->lock);
    }
    if (ring != NULL) {
        atomic_fetch_sub(&ring->end.map.shared->sleepers, 1);
        ring->sleeping--;
    }
    token->sleeping--;
}

/* ---- Counters */

static void publish_words(kh_token *token, size_t offset, size_t len)
{
    size_t first = offset / sizeof(uint64_t), n = len / sizeof(uint64_t);
    uint64_t word = 0;

    for (size_t i = first; token->ring != NULL && i < first + n; i++) {
        memcpy(&word, (const uint8_t *)&token->stats + i * sizeof(word), sizeof(word));
        atomic_store_explicit(&token->ring->end.map.shared->stats[i], word, memory_order_relaxed);
    }
}

void kh_token_publish(kh_token *token)
{
    token->stats.keys_resident = token->key_count;
    token->stats.workers = token->config->sessions;
    token->stats.running = token->serving && !token->closed;
    publish_words(token, 0, sizeof(token->stats));
}

void kh_token_count(kh_token *token, kh_lane lane, const kh_lane_stats *more)
{
    kh_lane_stats *stats = &token->stats.lanes[lane];

    stats->operations += more->operations;
    stats->errors += more->errors;
    stats->expired += more->expired;
    stats->batches[1] += more->batches[1];
    stats->busy_ns += more->busy_ns;
    publish_words(token, offsetof(kh_keeper_stats, lanes) + (size_t)lane * sizeof(*stats), sizeof(*stats));
    publish_words(token, offsetof(kh_keeper_stats, refused_usage), sizeof(uint64_t));
}

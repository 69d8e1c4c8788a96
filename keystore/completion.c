/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that are done: answers and counters; and what operations are asked before. */
#include "keeper.h"
#include "permit.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint8_t *kh_op_out(kh_op *op, size_t len)
{
    if (len <= sizeof(op->out)) {
        return op->out;
    }
    if (op->long_out == NULL && len <= KH_RECORD_DATA_MAX) {
        op->long_out = malloc(len);
    }
    return op->long_out;
}

bool kh_op_expired(const kh_op *op, uint64_t now_ns)
{
    return op->record.deadline_ns != 0 && op->record.deadline_ns <= now_ns;
}

kh_result kh_op_usage(const kh_op *op)
{
    const kh_key_info *info = &op->key->info;

    /*
     * A validity begins and ends without anybody changing anything, so it is looked at each time. Root certifies with a key
     * whose time has not come, too: its certificate is made before.
     */
    if ((info->not_before != 0 || info->expires != 0) && op->record.op != KH_STORE_CERTIFY) {
        kh_result result = kh_permit_now(info, (uint64_t)time(NULL));

        if (result != KH_OK) {
            return result;
        }
    }
    return kh_permit(&op->record, info);
}

void kh_op_to_tier(kh_op *op, kh_tier_op *tier)
{
    memset(tier, 0, sizeof(*tier));
    tier->kind = op->record.op == KH_STORE_TLS_RSA_KX ? KH_TIER_TLS_RSA_KX
                 : op->record.op == KH_STORE_DECRYPT  ? KH_TIER_DECRYPT
                                                      : KH_TIER_SIGN;
    tier->key = op->key;
    tier->scheme = op->record.scheme;
    tier->arg = op->record.arg;
    tier->is_digest = op->record.op == KH_STORE_SIGN && (op->record.flags & KH_SIGN_IS_DIGEST) != 0;
    tier->data = op->record.data;
    tier->len = op->record.data_len;
    tier->out = op->out;
}

/* ---- Counters ------------------------------------------------------------------------------------------ */

static void publish_words(kh_keeper *keeper, size_t offset, size_t len)
{
    size_t first = offset / sizeof(uint64_t), n = len / sizeof(uint64_t);
    uint64_t word = 0;

    for (size_t i = first; keeper->ring != NULL && i < first + n; i++) {
        memcpy(&word, (const uint8_t *)&keeper->stats + i * sizeof(word), sizeof(word));
        atomic_store_explicit(&keeper->ring->end.map.shared->stats[i], word, memory_order_relaxed);
    }
}

void kh_keeper_count(kh_keeper *keeper, int lane, const kh_lane_stats *more)
{
    kh_lane_stats *stats = &keeper->stats.lanes[lane];

    stats->operations += more->operations;
    stats->errors += more->errors;
    stats->expired += more->expired;
    for (int i = 0; i <= KH_BATCH_MAX; i++) {
        stats->batches[i] += more->batches[i];
    }
    stats->by_openssl += more->by_openssl;
    stats->by_kernel += more->by_kernel;
    stats->kernel_faults += more->kernel_faults;
    stats->busy_ns += more->busy_ns;
    publish_words(keeper, offsetof(kh_keeper_stats, lanes) + (size_t)lane * sizeof(*stats), sizeof(*stats));
    publish_words(keeper, offsetof(kh_keeper_stats, refused_usage), sizeof(uint64_t));
}

void kh_keeper_publish(kh_keeper *keeper)
{
    const kh_cache_stats cache = kh_cache_get_stats(keeper->cache);

    keeper->stats.keys_resident = cache.resident;
    keeper->stats.keys_loaded = cache.loaded;
    keeper->stats.keys_evicted = cache.evicted;
    publish_words(keeper, 0, sizeof(keeper->stats));
    if (keeper->ring != NULL) {
        atomic_store(&keeper->ring->end.map.shared->generation, keeper->generation);
    }
}

bool kh_keeper_closed(kh_keeper *keeper)
{
    bool closed = false;

    pthread_mutex_lock(&keeper->lock);
    closed = keeper->closed;
    pthread_mutex_unlock(&keeper->lock);
    return closed;
}

void kh_keeper_changed(kh_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->generation++;
    kh_keeper_publish(keeper);
    pthread_mutex_unlock(&keeper->lock);
}

/*
 * Batches are counted by the lowest bit of the epoch in which they began. The next epoch begins, and the
 * batches of the one before run out; polled, since it takes one batch and happens when an operator acts.
 */
void kh_keeper_settle(kh_keeper *keeper)
{
    const struct timespec brief = {.tv_nsec = 100000};
    uint32_t before = 0;
    bool settled = false;

    pthread_mutex_lock(&keeper->lock);
    before = keeper->epoch++ & 1;
    settled = keeper->computing[before] == 0;
    pthread_mutex_unlock(&keeper->lock);
    while (!settled) {
        nanosleep(&brief, NULL);
        pthread_mutex_lock(&keeper->lock);
        settled = keeper->computing[before] == 0;
        pthread_mutex_unlock(&keeper->lock);
    }
}

/* ---- Done ---------------------------------------------------------------------------------------------- */

void kh_keeper_wake(kh_keeper *keeper, uint32_t n)
{
    _Atomic uint32_t *door = keeper->ring != NULL ? &keeper->ring->end.map.shared->door : &keeper->idle_door;

    if (keeper->sleeping > 0) {
        atomic_fetch_add(door, 1);
        kh_futex_wake(door, n);
    }
}

/* Frees what an operation holds. Without the lock. */
static void let_go(kh_op *op)
{
    kh_key_release(op->key);
    op->key = NULL;
    if (op->long_data != NULL) {
        OPENSSL_cleanse(op->long_data, op->record.data_len);
        free(op->long_data);
        op->long_data = NULL;
    }
    free(op->long_out);
    op->long_out = NULL;
    if (op->material != NULL) {
        kh_material_wipe(op->material);
        free(op->material);
        op->material = NULL;
    }
    if (op->task != NULL) {
        op->task_free(op->task);
        op->task = NULL;
    }
    if (op->ring == NULL && op->file_fd >= 0) {
        close(op->file_fd);
        op->file_fd = -1;
    }
    if (op->out_len > 0) {
        OPENSSL_cleanse(op->out, op->out_len < sizeof(op->out) ? op->out_len : sizeof(op->out));
    }
}

/* Under the lock. */
static void count_out(kh_keeper *keeper, kh_keeper_ring *ring)
{
    keeper->in_flight--;
    if (ring != NULL) {
        ring->in_flight--;
    }
}

void kh_keeper_forget(kh_keeper *keeper, kh_op *op)
{
    let_go(op);
    count_out(keeper, op->ring);
}

static void write_result(kh_keeper *keeper, kh_op *op)
{
    const uint8_t *out = op->long_out != NULL ? op->long_out : op->out;

    if (op->result != KH_OK && (op->ring != NULL || op->task == NULL)) {
        op->out_len = 0; /* only what takes long says why */
    }
    if (op->answered != NULL) {
        op->answered(keeper, op);
    } else if (op->ring != NULL) {
        kh_ring_end_result(&op->ring->end, op->slot, op->result, out, op->out_len, op->batch);
    } else {
        kh_admin_answer(op->admin_fd, op->result, out, op->out_len);
        op->admin_fd = -1;
    }
    let_go(op);
}

void kh_keeper_complete(kh_keeper *keeper, kh_op *const ops[], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        write_result(keeper, ops[i]);
    }
    pthread_mutex_lock(&keeper->lock);
    for (size_t i = 0; i < n; i++) {
        kh_op *op = ops[i];
        kh_keeper_ring *ring = op->ring;

        count_out(keeper, ring);
        if (ring == NULL) {
            free(op);
        } else if (!ring->dead) {
            kh_ring_end_push(&ring->end, op->slot);
        }
    }
    if (keeper->ring != NULL) {
        kh_ring_end_ring_front(&keeper->ring->end);
    }
    if (keeper->closed && keeper->in_flight == 0) {
        kh_keeper_wake(keeper, UINT32_MAX);
    }
    pthread_mutex_unlock(&keeper->lock);
}

void kh_keeper_complete_one(kh_keeper *keeper, kh_op *op, kh_result result)
{
    kh_op *ops[1] = {op};

    op->result = result;
    kh_keeper_complete(keeper, ops, 1);
}

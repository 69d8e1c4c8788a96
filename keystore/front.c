/* SPDX-License-Identifier: Apache-2.0 */
/* The front's end of the ring: submit, flush, collect, release. One thread. */
#include "affinity.h"
#include "ring.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef enum slot_state { SLOT_FREE = 0, SLOT_SUBMITTED, SLOT_COLLECTED } slot_state;

typedef struct slot_note {
    uint64_t cookie;
    uint32_t next_free;
    slot_state state;
} slot_note;

struct kh_keystore {
    kh_ring_map map;
    int event_fd;
    int keeper_fd; /* the other end, held so that event_fd does not come to its end when a keeper dies */
    uint32_t sq_tail;
    uint32_t cq_head;
    uint32_t first_free; /* map.slots: none */
    uint32_t free_slots;
    uint32_t unflushed;
    bool armed;          /* front_waits was set and not yet seen cleared */
    int32_t events_owed; /* wishes seen taken less events read: each taken wish gives one event, perhaps late;
                            below 0: read before the wish was seen taken */
    kh_affinity affinity; /* of the front's thread */
    slot_note note[];
};

kh_result kh_keystore_attach(int fds[3], kh_keystore **keystore)
{
    kh_ring_map map = {0};
    kh_keystore *ks = NULL;
    kh_result result = KH_OK;

    *keystore = NULL;
    result = kh_ring_mmap(fds[0], &map);
    if (result != KH_OK) {
        goto done;
    }
    ks = calloc(1, sizeof(*ks) + map.slots * sizeof(ks->note[0]));
    if (ks == NULL) {
        result = KH_E_MEMORY;
        goto done;
    }
    ks->map = map;
    ks->event_fd = fds[1];
    ks->keeper_fd = fds[2];
    fds[1] = fds[2] = -1;
    memset(&map, 0, sizeof(map));
    ks->sq_tail = atomic_load(&ks->map.shared->sq_tail);
    ks->cq_head = atomic_load(&ks->map.shared->cq_tail);
    ks->free_slots = ks->map.slots;
    for (uint32_t i = 0; i < ks->map.slots; i++) {
        ks->note[i].next_free = i + 1;
    }
    *keystore = ks;
    ks = NULL;
done:
    for (int i = 0; i < 3; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
        fds[i] = -1;
    }
    kh_ring_munmap(&map);
    return result;
}

void kh_keystore_free(kh_keystore *ks)
{
    if (ks == NULL) {
        return;
    }
    kh_affinity_restore(&ks->affinity);
    close(ks->event_fd);
    close(ks->keeper_fd);
    kh_ring_munmap(&ks->map);
    free(ks);
}

kh_result kh_keystore_submit(kh_keystore *ks, const kh_record *record)
{
    uint32_t index = ks->first_free;
    kh_ring_slot *slot = NULL;

    if (record->data_len > KH_RECORD_DATA_MAX) {
        return KH_E_TOO_LARGE;
    }
    if (index >= ks->map.slots) {
        return KH_E_OVERLOADED;
    }
    slot = &ks->map.slot[index];
    ks->first_free = ks->note[index].next_free;
    ks->free_slots--;
    ks->note[index].cookie = record->cookie;
    ks->note[index].state = SLOT_SUBMITTED;
    slot->key_ref = record->key_ref;
    slot->deadline_ns = record->deadline_ns;
    slot->op = record->op;
    slot->scheme = record->scheme;
    slot->flags = record->flags;
    slot->arg = record->arg;
    slot->data_len = record->data_len;
    if (record->data_len > 0) {
        memcpy(slot->data, record->data, record->data_len);
    }
    atomic_store_explicit(&ks->map.sq[ks->sq_tail & ks->map.mask], index, memory_order_relaxed);
    atomic_store(&ks->map.shared->sq_tail, ++ks->sq_tail);
    ks->unflushed++;
    return KH_OK;
}

/*
 * A worker takes a batch, and wakes the next one if anything is left: more wakes than batches would only have workers find
 * nothing, and a wake costs as much as a P-256 signature.
 */
void kh_keystore_flush(kh_keystore *ks)
{
    uint32_t sleepers = 0, batches = (ks->unflushed + KH_BATCH_MAX - 1) / KH_BATCH_MAX;

    if (ks->unflushed == 0) {
        return;
    }
    sleepers = atomic_load(&ks->map.shared->sleepers);
    if (sleepers > 0) {
        atomic_fetch_add(&ks->map.shared->door, 1);
        kh_futex_wake(&ks->map.shared->door, batches < sleepers ? batches : sleepers);
    }
    ks->unflushed = 0;
}

int kh_keystore_apart(kh_keystore *ks, int avoid)
{
    int cpu = sched_getcpu();

    if (cpu >= 0 && cpu == avoid) {
        cpu = kh_affinity_next((uint32_t)cpu);
    }
    if (cpu < 0 || !kh_affinity_only(&ks->affinity, (uint32_t)cpu)) {
        kh_keystore_anywhere(ks);
        return -1;
    }
    atomic_store(&ks->map.shared->apart, (uint32_t)cpu + 1);
    return cpu;
}

void kh_keystore_anywhere(kh_keystore *ks)
{
    atomic_store(&ks->map.shared->apart, 0);
    kh_affinity_restore(&ks->affinity);
}

/* Reads events, but makes no system call when none can be there. */
static void drain_event(kh_keystore *ks)
{
    char events[64];
    ssize_t n = 0;

    if (ks->armed && atomic_load(&ks->map.shared->front_waits) == 0) {
        ks->armed = false;
        ks->events_owed++;
    }
    if (ks->events_owed > 0) {
        n = recv(ks->event_fd, events, sizeof(events), MSG_DONTWAIT);
        ks->events_owed -= n > 0 ? (int32_t)n : 0;
    }
}

/* Asks for an event with the next completion. */
static void arm(kh_keystore *ks)
{
    if (atomic_exchange(&ks->map.shared->front_waits, 1) == 0 && ks->armed) {
        ks->events_owed++; /* the wish before was taken since drain_event looked */
    }
    ks->armed = true;
}

static size_t take_completions(kh_keystore *ks, kh_completion *completions, size_t max)
{
    uint32_t tail = atomic_load(&ks->map.shared->cq_tail);
    size_t n = 0;

    /* The keeper is trusted with keys, but a bug of its must not become one of the front's. */
    if (tail - ks->cq_head > ks->map.mask + 1) {
        ks->cq_head = tail - (ks->map.mask + 1);
    }
    while (n < max && ks->cq_head != tail) {
        uint32_t index =
            atomic_load_explicit(&ks->map.cq[ks->cq_head++ & ks->map.mask], memory_order_relaxed);
        const kh_ring_slot *slot = NULL;
        uint32_t len = 0;

        if (index >= ks->map.slots || ks->note[index].state != SLOT_SUBMITTED) {
            continue;
        }
        slot = &ks->map.slot[index];
        len = *(const volatile uint32_t *)&slot->result_len; /* once: a keeper may still write */
        ks->note[index].state = SLOT_COLLECTED;
        completions[n].cookie = ks->note[index].cookie;
        completions[n].result = (kh_result)slot->result;
        completions[n].data = slot->data;
        completions[n].data_len = len <= KH_RECORD_DATA_MAX ? len : 0;
        completions[n].slot = index;
        completions[n].batch = slot->batch;
        n++;
    }
    return n;
}

size_t kh_keystore_collect(kh_keystore *ks, kh_completion *completions, size_t max)
{
    size_t n = 0;

    drain_event(ks);
    n = take_completions(ks, completions, max);
    if (n == 0 && max > 0) {
        arm(ks);
        /* What came between the look and the wish would otherwise never be announced. */
        n = take_completions(ks, completions, max);
    }
    return n;
}

void kh_keystore_release(kh_keystore *ks, const kh_completion *completion)
{
    uint32_t index = completion->slot;

    if (index >= ks->map.slots || ks->note[index].state != SLOT_COLLECTED) {
        return;
    }
    /* The result may be a secret, and nobody says when the slot is used again. */
    OPENSSL_cleanse(ks->map.slot[index].data,
                    completion->data_len <= KH_RECORD_DATA_MAX ? completion->data_len : KH_RECORD_DATA_MAX);
    ks->note[index].state = SLOT_FREE;
    ks->note[index].next_free = ks->first_free;
    ks->first_free = index;
    ks->free_slots++;
}

int kh_keystore_event_fd(const kh_keystore *ks)
{
    return ks->event_fd;
}

uint32_t kh_keystore_free_slots(const kh_keystore *ks)
{
    return ks->free_slots;
}

uint64_t kh_keystore_generation(const kh_keystore *ks)
{
    return atomic_load(&ks->map.shared->generation);
}

void kh_keystore_stats(const kh_keystore *ks, kh_keeper_stats *stats)
{
    uint64_t words[KH_STATS_WORDS];

    for (size_t i = 0; i < KH_STATS_WORDS; i++) {
        words[i] = atomic_load_explicit(&ks->map.shared->stats[i], memory_order_relaxed);
    }
    memcpy(stats, words, sizeof(*stats));
}

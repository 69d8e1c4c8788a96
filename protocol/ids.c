/* SPDX-License-Identifier: Apache-2.0 */
/* The set of outstanding ids (ids.h): chained hash over one array of slots. */
#include "ids.h"

#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#define KH_IDS_START 32

/*
 * The kernel's random bytes for this process, without a system call. The peer sees no hash, so a multiplier
 * that it does not know (multiply-shift hashing, universal) is all that is needed.
 */
static uint64_t kh_ids_secret(const void *salt)
{
    const void *random = (const void *)getauxval(AT_RANDOM); /* NOLINT(performance-no-int-to-ptr) */
    uint64_t secret = (uint64_t)(uintptr_t)salt;
    uint64_t bytes[2] = {0, 0};

    if (random != NULL) {
        memcpy(bytes, random, sizeof(bytes));
    }
    secret = (secret ^ bytes[0]) * UINT64_C(0x9e3779b97f4a7c15);
    secret = (secret ^ (secret >> 29) ^ bytes[1]) * UINT64_C(0xbf58476d1ce4e5b9);
    return (secret ^ (secret >> 32)) | 1;
}

static uint32_t kh_ids_bucket(const kh_ids *ids, uint32_t id)
{
    uint64_t hash = (id + UINT64_C(1)) * ids->multiplier;

    return (uint32_t)(hash >> 32) & (ids->cap - 1);
}

void kh_ids_init(kh_ids *ids)
{
    *ids = (kh_ids){.multiplier = kh_ids_secret(ids)};
}

void kh_ids_free(kh_ids *ids)
{
    free(ids->slots);
    free(ids->buckets);
    *ids = (kh_ids){0};
}

kh_outstanding *kh_ids_find(const kh_ids *ids, uint32_t id)
{
    uint32_t at = 0;

    if (ids->cap == 0) {
        return NULL;
    }
    for (at = ids->buckets[kh_ids_bucket(ids, id)]; at != 0; at = ids->slots[at - 1].next) {
        if (ids->slots[at - 1].id == id) {
            return &ids->slots[at - 1];
        }
    }
    return NULL;
}

static void kh_ids_link(kh_ids *ids, uint32_t index)
{
    uint32_t *bucket = &ids->buckets[kh_ids_bucket(ids, ids->slots[index].id)];

    ids->slots[index].next = *bucket;
    *bucket = index + 1;
}

/* Doubles the table. It is full when this is called, so every old slot is linked anew. */
static kh_result kh_ids_grow(kh_ids *ids)
{
    uint32_t old_cap = ids->cap;
    uint32_t cap = old_cap > 0 ? old_cap * 2 : KH_IDS_START;
    kh_outstanding *slots = calloc(cap, sizeof(*slots));
    uint32_t *buckets = calloc(cap, sizeof(*buckets));

    if (slots == NULL || buckets == NULL) {
        free(slots);
        free(buckets);
        return KH_E_MEMORY;
    }
    if (old_cap > 0) {
        memcpy(slots, ids->slots, old_cap * sizeof(*slots));
    }
    free(ids->slots);
    free(ids->buckets);
    ids->slots = slots;
    ids->buckets = buckets;
    ids->cap = cap;
    for (uint32_t i = 0; i < old_cap; i++) {
        kh_ids_link(ids, i);
    }
    for (uint32_t i = cap; i > old_cap; i--) {
        ids->slots[i - 1].next = ids->free;
        ids->free = i;
    }
    return KH_OK;
}

kh_result kh_ids_add(kh_ids *ids, uint32_t id, uint16_t op)
{
    uint32_t index = 0;

    if (ids->free == 0) {
        kh_result result = kh_ids_grow(ids);

        if (result != KH_OK) {
            return result;
        }
    }
    index = ids->free - 1;
    ids->free = ids->slots[index].next;
    ids->slots[index] = (kh_outstanding){.id = id, .op = op};
    kh_ids_link(ids, index);
    ids->count++;
    return KH_OK;
}

void kh_ids_remove(kh_ids *ids, uint32_t id)
{
    uint32_t *at = NULL;

    if (ids->cap == 0) {
        return;
    }
    for (at = &ids->buckets[kh_ids_bucket(ids, id)]; *at != 0; at = &ids->slots[*at - 1].next) {
        uint32_t index = *at - 1;

        if (ids->slots[index].id == id) {
            *at = ids->slots[index].next;
            ids->slots[index].next = ids->free;
            ids->free = index + 1;
            ids->count--;
            return;
        }
    }
}

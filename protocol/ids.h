/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The set of outstanding request ids at the agent's end. The peer chooses the ids, so the hash is keyed with
 * a secret of the process, and the set is bounded by the connection's credit. Grows by doubling up to that,
 * never shrinks.
 */
#ifndef KH_IDS_H
#define KH_IDS_H

#include <keyhold/protocol.h>

typedef struct kh_outstanding {
    uint32_t id;
    uint32_t next; /* index + 1 of the next in the bucket or in the free list; 0: none */
    uint16_t op;
    bool cancelled;
} kh_outstanding;

typedef struct kh_ids {
    kh_outstanding *slots;
    uint32_t *buckets; /* cap of them: index + 1 of the first slot */
    uint32_t cap;      /* a power of two; 0: nothing allocated */
    uint32_t free;     /* index + 1 of the first free slot */
    uint32_t count;
    uint64_t multiplier;
} kh_ids;

void kh_ids_init(kh_ids *ids);
void kh_ids_free(kh_ids *ids);
/* NULL: not outstanding. Valid until the next add. */
kh_outstanding *kh_ids_find(const kh_ids *ids, uint32_t id);
/* The id must not be in the set. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_ids_add(kh_ids *ids, uint32_t id, uint16_t op);
/* No effect when it is not in the set. */
void kh_ids_remove(kh_ids *ids, uint32_t id);

#endif

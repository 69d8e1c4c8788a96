/* SPDX-License-Identifier: Apache-2.0 */
/* A ring that a keeper serves, be it the store's or a token's: the ring's end, and memory of the keeper's own for each of its slots. */
#ifndef KEYHOLD_KEYSTORE_KEEPER_RING_H
#define KEYHOLD_KEYSTORE_KEEPER_RING_H

#include "ring.h"

/* A ring that the front has, or had. All under the lock of the keeper. */
typedef struct kh_keeper_ring {
    kh_ring_end end;
    struct kh_keeper_ring *next_dead;
    bool dead;          /* replaced: results are dropped */
    uint32_t in_flight; /* operations of it anywhere in this process */
    uint32_t sleeping;  /* workers on its door */
    size_t op_len;
    union { /* one for each slot, of op_len bytes: of the store's keeper, or of a token's */
        void *slots;
        struct kh_op *ops;
        struct kh_token_op *token_ops;
    };
} kh_keeper_ring;

/* Takes the descriptors over; the operations are zeros. NULL: it is a ring of another build, or there is no memory for it. */
KH_MUST_USE kh_keeper_ring *kh_keeper_ring_open(int fds[3], size_t op_len);
/* Wipes the operations. NULL is fine. */
void kh_keeper_ring_close(kh_keeper_ring *ring);

#endif

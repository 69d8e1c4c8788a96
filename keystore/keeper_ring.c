/* SPDX-License-Identifier: Apache-2.0 */
/* A ring that a keeper serves: its life. */
#include "keeper_ring.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <unistd.h>

kh_keeper_ring *kh_keeper_ring_open(int fds[3], size_t op_len)
{
    kh_keeper_ring *ring = calloc(1, sizeof(*ring));

    if (ring == NULL) {
        for (int i = 0; i < 3; i++) {
            close(fds[i]);
        }
        return NULL;
    }
    if (kh_ring_end_open(fds, &ring->end) != KH_OK) {
        free(ring);
        return NULL;
    }
    ring->op_len = op_len;
    ring->slots = calloc(ring->end.map.slots, op_len);
    if (ring->slots == NULL) {
        kh_ring_end_close(&ring->end);
        free(ring);
        return NULL;
    }
    return ring;
}

void kh_keeper_ring_close(kh_keeper_ring *ring)
{
    if (ring != NULL) {
        OPENSSL_cleanse(ring->slots, ring->end.map.slots * ring->op_len);
        free(ring->slots);
        kh_ring_end_close(&ring->end);
        free(ring);
    }
}

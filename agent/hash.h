/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-2-4 (Aumasson, Bernstein 2012): hashes what peers choose, under a key that they do not know. */
#ifndef KH_AGENT_HASH_H
#define KH_AGENT_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct kh_hash_key {
    uint64_t k0, k1;
} kh_hash_key;

/* A fresh random key. */
kh_hash_key kh_hash_key_new(void);
uint64_t kh_hash(kh_hash_key key, const void *data, size_t len);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The bounded cache of prepared keys: least recently used first out. Thread-safe. */
#ifndef KEYHOLD_KEYSTORE_CACHE_H
#define KEYHOLD_KEYSTORE_CACHE_H

#include "key.h"

typedef struct kh_cache kh_cache;

typedef struct kh_cache_stats {
    uint64_t resident, loaded, evicted;
} kh_cache_stats;

KH_MUST_USE kh_result kh_cache_new(uint32_t max_keys, kh_cache **cache);
void kh_cache_free(kh_cache *cache);
/* A reference for the caller, or NULL. */
kh_key *kh_cache_get(kh_cache *cache, uint64_t ref);
/* Takes its own reference; may evict another. A key whose use goes on lives until it is released. */
void kh_cache_put(kh_cache *cache, kh_key *key);
void kh_cache_drop(kh_cache *cache, uint64_t ref);
kh_cache_stats kh_cache_get_stats(kh_cache *cache);

#endif

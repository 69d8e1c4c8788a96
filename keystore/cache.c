/* SPDX-License-Identifier: Apache-2.0 */
/* The bounded cache of prepared keys: a hash table and a list in the order of use. */
#include "cache.h"

#include <pthread.h>
#include <stdlib.h>

struct kh_cache {
    pthread_mutex_t lock;
    uint32_t max_keys;
    uint32_t mask;
    kh_key *newest, *oldest;
    kh_cache_stats stats;
    kh_key *bucket[];
};

kh_result kh_cache_new(uint32_t max_keys, kh_cache **out)
{
    uint32_t buckets = 64;
    kh_cache *cache = NULL;

    while (buckets < max_keys && buckets < (1u << 24)) {
        buckets *= 2;
    }
    cache = calloc(1, sizeof(*cache) + buckets * sizeof(cache->bucket[0]));
    *out = cache;
    if (cache == NULL) {
        return KH_E_MEMORY;
    }
    pthread_mutex_init(&cache->lock, NULL);
    cache->max_keys = max_keys > 0 ? max_keys : 1;
    cache->mask = buckets - 1;
    return KH_OK;
}

static kh_key **bucket_of(kh_cache *cache, uint64_t ref)
{
    return &cache->bucket[(ref * UINT64_C(0x9e3779b97f4a7c15)) >> 32 & cache->mask];
}

static void list_remove(kh_cache *cache, kh_key *key)
{
    *(key->newer != NULL ? &key->newer->older : &cache->newest) = key->older;
    *(key->older != NULL ? &key->older->newer : &cache->oldest) = key->newer;
    key->newer = key->older = NULL;
}

static void list_add_newest(kh_cache *cache, kh_key *key)
{
    key->newer = NULL;
    key->older = cache->newest;
    *(cache->newest != NULL ? &cache->newest->newer : &cache->oldest) = key;
    cache->newest = key;
}

/* Takes a key out; its reference is now the caller's. */
static kh_key *take_out(kh_cache *cache, uint64_t ref)
{
    for (kh_key **at = bucket_of(cache, ref); *at != NULL; at = &(*at)->hash_next) {
        kh_key *key = *at;

        if (key->info.ref == ref) {
            *at = key->hash_next;
            key->hash_next = NULL;
            list_remove(cache, key);
            cache->stats.resident--;
            return key;
        }
    }
    return NULL;
}

void kh_cache_free(kh_cache *cache)
{
    if (cache == NULL) {
        return;
    }
    while (cache->newest != NULL) {
        kh_key_release(take_out(cache, cache->newest->info.ref));
    }
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

kh_key *kh_cache_get(kh_cache *cache, uint64_t ref)
{
    kh_key *key = NULL;

    pthread_mutex_lock(&cache->lock);
    for (key = *bucket_of(cache, ref); key != NULL && key->info.ref != ref; key = key->hash_next) {
    }
    if (key != NULL) {
        kh_key_ref(key);
        if (cache->newest != key) {
            list_remove(cache, key);
            list_add_newest(cache, key);
        }
    }
    pthread_mutex_unlock(&cache->lock);
    return key;
}

void kh_cache_put(kh_cache *cache, kh_key *key)
{
    kh_key *before = NULL, *evicted = NULL;
    kh_key **bucket = bucket_of(cache, key->info.ref);

    pthread_mutex_lock(&cache->lock);
    before = take_out(cache, key->info.ref);
    if (cache->stats.resident >= cache->max_keys) {
        evicted = take_out(cache, cache->oldest->info.ref);
        cache->stats.evicted++;
    }
    kh_key_ref(key);
    key->hash_next = *bucket;
    *bucket = key;
    list_add_newest(cache, key);
    cache->stats.resident++;
    cache->stats.loaded++;
    pthread_mutex_unlock(&cache->lock);
    /* Freed without the lock: wiping takes its time. */
    kh_key_release(before);
    kh_key_release(evicted);
}

void kh_cache_drop(kh_cache *cache, uint64_t ref)
{
    kh_key *key = NULL;

    pthread_mutex_lock(&cache->lock);
    key = take_out(cache, ref);
    pthread_mutex_unlock(&cache->lock);
    kh_key_release(key);
}

kh_cache_stats kh_cache_get_stats(kh_cache *cache)
{
    kh_cache_stats stats;

    pthread_mutex_lock(&cache->lock);
    stats = cache->stats;
    pthread_mutex_unlock(&cache->lock);
    return stats;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Prepared keys and their cache: order of eviction, references, contexts under many threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "algorithms.h"
#include "cache.h"
#include "material.h"
#include "software.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static kh_material material;

static kh_key *make_key(uint64_t ref)
{
    kh_key_info info = {.ref = ref,
                        .type = (uint32_t)material.type,
                        .bits = material.bits,
                        .usage = KH_USAGE_SIGN,
                        .state = 1};
    kh_key *key = NULL;

    assert_int_equal(kh_key_new(&info, material.pkcs8, material.pkcs8_len, &key), KH_OK);
    return key;
}

static void put(kh_cache *cache, uint64_t ref)
{
    kh_key *key = make_key(ref);

    kh_cache_put(cache, key);
    kh_key_release(key);
}

static bool has(kh_cache *cache, uint64_t ref)
{
    kh_key *key = kh_cache_get(cache, ref);

    assert_true(key == NULL || key->info.ref == ref);
    kh_key_release(key);
    return key != NULL;
}

static void test_eviction(void **state)
{
    kh_cache *cache = NULL;
    kh_key *held = NULL;

    (void)state;
    assert_int_equal(kh_cache_new(3, &cache), KH_OK);
    put(cache, 1);
    put(cache, 2);
    put(cache, 3);
    assert_true(has(cache, 1)); /* used: 2 is the oldest now */
    put(cache, 4);
    assert_false(has(cache, 2));
    assert_true(has(cache, 1) && has(cache, 3) && has(cache, 4));
    held = kh_cache_get(cache, 1);
    kh_cache_drop(cache, 1);
    kh_cache_drop(cache, 99);
    assert_false(has(cache, 1));
    assert_int_equal(held->info.ref, 1); /* whoever has it may finish with it */
    kh_key_release(held);
    put(cache, 3); /* anew: replaces, evicts nothing */
    assert_int_equal(kh_cache_get_stats(cache).resident, 2);
    assert_int_equal(kh_cache_get_stats(cache).evicted, 1);
    assert_int_equal(kh_cache_get_stats(cache).loaded, 5);
    for (uint64_t ref = 100; ref < 400; ref++) {
        put(cache, ref);
    }
    assert_int_equal(kh_cache_get_stats(cache).resident, 3);
    kh_cache_free(cache);
    kh_cache_free(NULL);
    kh_key_release(NULL);
}

/* Threads that sign with the same key, with changing schemes, while it is evicted again and again. */
static void *signer(void *arg)
{
    static const uint32_t schemes[] = {KH_ECDSA_SHA256, KH_ECDSA_SHA384, KH_ECDSA_SHA512};
    kh_cache *cache = arg;
    kh_software *software = NULL;

    assert_int_equal(kh_software_new(&software), KH_OK);
    for (unsigned i = 0; i < 300; i++) {
        uint8_t out[KH_SIGNATURE_MAX];
        uint64_t ref = 1 + i % 5;
        kh_key *key = kh_cache_get(cache, ref);
        kh_tier_op op = {.kind = KH_TIER_SIGN,
                         .scheme = schemes[i % 3],
                         .data = (const uint8_t *)"x",
                         .len = 1,
                         .out = out};
        kh_tier_op *ops[1] = {&op};

        if (key == NULL) {
            key = make_key(ref);
            kh_cache_put(cache, key);
        }
        op.key = key;
        kh_software_batch(software, ops, 1);
        assert_int_equal(op.result, KH_OK);
        assert_true(op.out_len >= 68);
        kh_key_release(key);
    }
    kh_software_free(software);
    return NULL;
}

static void test_threads(void **state)
{
    pthread_t threads[6];
    kh_cache *cache = NULL;

    (void)state;
    assert_int_equal(kh_cache_new(3, &cache), KH_OK);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, signer, cache), 0);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
    }
    kh_cache_free(cache);
}

/* More users at once than a key keeps contexts: the others get one of their own. */
static void test_contexts(void **state)
{
    kh_key *key = make_key(1);
    kh_key_context local[8] = {{0}}, *taken[8];

    (void)state;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(kh_key_context_take(key, KH_ECDSA_SHA256, &local[i], &taken[i]), KH_OK);
        assert_int_equal(taken[i] == &local[i], i >= KH_KEY_CONTEXTS);
    }
    for (int i = 0; i < 8; i++) {
        kh_key_context_return(taken[i], i == 0);
    }
    assert_null(key->context[0].pkey_ctx); /* failed: not used again */
    assert_non_null(key->context[1].pkey_ctx);
    for (uint32_t code = 1; code < 8; code++) { /* codes that are no schemes cannot be set up */
        assert_int_equal(kh_key_context_take(key, code, &local[0], &taken[0]), KH_E_CRYPTO);
    }
    assert_int_equal(kh_key_context_take(key, KH_ECDSA_SHA384, &local[0], &taken[0]), KH_OK);
    kh_key_context_return(taken[0], false);
    kh_key_release(key);
}

static void test_bad_key(void **state)
{
    kh_key_info info = {.ref = 1, .type = KH_KEY_P256, .bits = 256};
    kh_key *key = NULL;

    (void)state;
    assert_int_equal(kh_key_new(&info, (const uint8_t *)"nonsense", 8, &key), KH_E_MALFORMED);
    assert_null(key);
    info.type = KH_KEY_RSA; /* not what the material is */
    assert_int_equal(kh_key_new(&info, material.pkcs8, material.pkcs8_len, &key), KH_E_CRYPTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_eviction), cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_contexts), cmocka_unit_test(test_bad_key)};

    if (kh_algorithms_init() != KH_OK || kh_material_generate(KH_KEY_P256, 256, &material) != KH_OK) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* M8 as a front that was taken over sees it: this program is the front, the keeper a process of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper_rig.h"
#include "usage_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A key for each usage and type that is asked about, made when it is. */
typedef struct known_key {
    uint32_t usage, type;
    kh_key_info info;
} known_key;

static keeper_rig rig;
static known_key keys[128];
static size_t key_count;

static const kh_key_info *key_for(uint32_t usage, uint32_t type)
{
    known_key *key = &keys[key_count];
    char name[64];

    for (size_t i = 0; i < key_count; i++) {
        if (keys[i].usage == usage && keys[i].type == type) {
            return &keys[i].info;
        }
    }
    assert_true(key_count < sizeof(keys) / sizeof(keys[0]));
    snprintf(name, sizeof(name), "u%u-t%u", usage, type);
    assert_int_equal(
        rig_create(&rig, name, (kh_key_type)type, type == KH_KEY_RSA ? 2048 : 0, usage, 0, &key->info),
        KH_OK);
    key->usage = usage;
    key->type = type;
    key_count++;
    return &key->info;
}

static kh_result ask(void *ctx, uint32_t usage, uint32_t key_type, uint32_t scheme, bool is_digest,
                     const uint8_t *data, size_t len)
{
    const kh_key_info *key = key_for(usage, key_type);
    kh_result result = rig_sign(&rig, key, scheme, is_digest ? KH_SIGN_IS_DIGEST : 0, data, len);

    (void)ctx;
    if (result == KH_OK) {
        /* What came is a signature of these bytes, and nothing is where a refusal came. */
        kh_record record = {.op = KH_STORE_SIGN,
                            .key_ref = key->ref,
                            .scheme = scheme,
                            .flags = is_digest ? KH_SIGN_IS_DIGEST : 0,
                            .data = data,
                            .data_len = (uint32_t)len};
        static unsigned every;

        if (every++ % 64 == 0) {
            const rig_answer *got = rig_call(&rig, &record);

            assert_true(
                rig_verify(key->spki, key->spki_len, scheme, is_digest, data, len, got->data, got->len));
        }
    }
    return result;
}

static usage_asker asker = {.ask = ask};

#define CASE(name)                                                                                           \
    static void test_##name(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        asker.accepted = asker.refused = 0;                                                                  \
        usage_cases_##name(&asker);                                                                          \
        print_message("M8: through the ring: " #name ": %u accepted, %u refused\n", asker.accepted,          \
                      asker.refused);                                                                        \
    }
CASE(tls13)
CASE(ecdhe)
CASE(dhe)
CASE(der)
CASE(tls12_client)
CASE(foreign)
CASE(sign)

/* What else a front might try: keys that are not, versions, operations and flags that are not. */
static void test_odd_records(void **state)
{
    const uint8_t message[4] = "abcd";
    const kh_key_info *key = key_for(KH_USAGE_SIGN, KH_KEY_P256);

    (void)state;
    for (unsigned op = 0; op < 80; op++) {
        kh_record record = {
            .op = op, .key_ref = 0xdeadbeef, .scheme = KH_ECDSA_SHA256, .data = message, .data_len = 4};
        kh_result result = rig_call(&rig, &record)->result;

        assert_true(result != KH_OK || op == KH_STORE_IMPORT_KEY);
    }
    for (unsigned bit = 1; bit < 32; bit++) {
        assert_int_equal(rig_sign(&rig, key, KH_ECDSA_SHA256, 1u << bit, message, 4), KH_E_INVALID);
    }
    const uint64_t refs[] = {0, 1u << 30, UINT64_C(1) << 63, UINT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        kh_key_info none = {.ref = refs[i]};

        assert_int_equal(rig_sign(&rig, &none, KH_ECDSA_SHA256, 0, message, 4), KH_E_NOT_FOUND);
    }
    static uint8_t large[KH_RECORD_DATA_MAX];
    assert_int_equal(rig_sign(&rig, key, KH_ECDSA_SHA256, 0, large, KH_MESSAGE_MAX), KH_OK);
    assert_int_equal(rig_sign(&rig, key, KH_ECDSA_SHA256, 0, large, KH_MESSAGE_MAX + 1), KH_E_TOO_LARGE);
    assert_int_equal(rig_sign(&rig, key, KH_ECDSA_SHA256, 0, large, sizeof(large)), KH_E_TOO_LARGE);
}

static void test_counted(void **state)
{
    kh_keeper_stats stats;

    (void)state;
    kh_keystore_stats(rig.keystore, &stats);
    assert_true(stats.refused_usage > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tls13), cmocka_unit_test(test_ecdhe),        cmocka_unit_test(test_dhe),
        cmocka_unit_test(test_der),   cmocka_unit_test(test_tls12_client), cmocka_unit_test(test_foreign),
        cmocka_unit_test(test_sign),  cmocka_unit_test(test_odd_records),  cmocka_unit_test(test_counted),
    };
    int failed = 0;

    kh_secure_openssl();
    /* That each tag is judged as it should be is test_usage's to show; here, that the keeper asks the same judge. */
    asker.sparse = getenv("KH_CHECK") == NULL || strcmp(getenv("KH_CHECK"), "full") != 0;
    rig_init(&rig, NULL);
    if (rig_start(&rig) != KH_OK) {
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rig_stop(&rig);
    rig_clean(&rig);
    return failed;
}

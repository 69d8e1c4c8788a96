/* SPDX-License-Identifier: Apache-2.0 */
/* M8 at the pure function: every value of every fixed byte, every length, every group. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "usage.h"
#include "usage_cases.h"

#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

static kh_result ask(void *ctx, uint32_t usage, uint32_t key_type, uint32_t scheme, bool is_digest,
                     const uint8_t *data, size_t len)
{
    /* Exactly as long as the message: a sanitizer sees the first byte read past its end. */
    uint8_t *exact = malloc(len > 0 ? len : 1);
    kh_result result = KH_OK;

    (void)ctx;
    memcpy(exact, data, len);
    const kh_sign_question question = {.usage = usage,
                                       .key_type = key_type,
                                       .scheme = scheme,
                                       .is_digest = is_digest,
                                       .data = exact,
                                       .len = len};
    result = kh_usage_may_sign(&question);
    free(exact);
    return result;
}

static usage_asker asker = {.ask = ask, .thorough = true};

#define CASE(name)                                                                                           \
    static void test_##name(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        asker.accepted = asker.refused = 0;                                                                  \
        usage_cases_##name(&asker);                                                                          \
        print_message("M8: " #name ": %u accepted, %u refused\n", asker.accepted, asker.refused);            \
    }
CASE(tls13)
CASE(ecdhe)
CASE(dhe)
CASE(der)
CASE(tls12_client)
CASE(foreign)
CASE(sign)

/*
 * Random bytes behind the header of a SEQUENCE of the right length, as 1 in 32,768 handshakes with X25519 has it by
 * chance: nearly all of them must pass, since each that is refused is a handshake that fails.
 */
static void test_der_by_chance(void **state)
{
    const unsigned count = 100000;
    uint8_t data[100];
    unsigned refused = 0;

    (void)state;
    for (unsigned i = 0; i < count; i++) {
        RAND_bytes(data, sizeof(data));
        memcpy(data, (uint8_t[]){0x30, sizeof(data) - 2}, 2);
        memcpy(data + 64, (uint8_t[]){3, 0, 29, 32}, 4);
        refused += ask(NULL, KH_USAGE_TLS_SERVER, KH_KEY_P256, KH_ECDSA_SHA256, false, data, sizeof(data)) != KH_OK;
    }
    print_message("M8: one message with X25519 in %.1f million is refused by chance\n",
                  32768.0 * count / (refused > 0 ? refused : 1) / 1e6);
    assert_in_range(refused, count / 1000, count / 50);
}

/* Without its groups DHE is refused, not guessed. */
static void test_groups_first(void **state)
{
    const uint8_t p[256] = {0xff}, g[1] = {2};

    (void)state;
    assert_false(kh_dh_group_known(p, sizeof(p), g, 1));
    assert_int_equal(kh_dh_groups_init(), KH_OK);
    assert_false(kh_dh_group_known(p, sizeof(p), g, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups_first), cmocka_unit_test(test_tls13),
        cmocka_unit_test(test_ecdhe),        cmocka_unit_test(test_dhe),
        cmocka_unit_test(test_der), cmocka_unit_test(test_der_by_chance),          cmocka_unit_test(test_tls12_client),
        cmocka_unit_test(test_foreign),      cmocka_unit_test(test_sign),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

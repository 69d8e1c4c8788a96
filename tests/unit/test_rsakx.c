/* SPDX-License-Identifier: Apache-2.0 */
/* The judgement of a decrypted premaster secret: every byte of the block, every value. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "algorithms.h"
#include "rsakx.h"

#include <string.h>

static void good_block(uint8_t *block, size_t len)
{
    memset(block, 0x5f, len);
    block[0] = 0;
    block[1] = 2;
    block[len - 49] = 0;
    block[len - 48] = block[len - 47] = 3;
}

static void test_every_byte(void **state)
{
    static const size_t lens[] = {256, 384, 512};
    uint8_t block[512], random[48], out[48];

    (void)state;
    memset(random, 0xa7, sizeof(random));
    for (size_t l = 0; l < 3; l++) {
        size_t len = lens[l];

        good_block(block, len);
        kh_rsakx_select(block, len, 0x0303, true, random, out);
        assert_memory_equal(out, block + len - 48, 48);
        kh_rsakx_select(block, len, 0x0303, false, random, out);
        assert_memory_equal(out, random, 48);
        for (size_t at = 0; at < len; at++) {
            uint8_t was = block[at];

            for (unsigned value = 0; value < 256; value++) {
                bool pad = at >= 2 && at < len - 49, secret = at >= len - 46;
                bool good = value == was || (pad && value != 0) || secret;

                block[at] = (uint8_t)value;
                kh_rsakx_select(block, len, 0x0303, true, random, out);
                assert_memory_equal(out, good ? block + len - 48 : random, 48);
            }
            block[at] = was;
        }
        for (unsigned version = 0; version < 65536; version += 257) {
            block[len - 48] = (uint8_t)(version >> 8);
            block[len - 47] = (uint8_t)version;
            kh_rsakx_select(block, len, (uint16_t)version, true, random, out);
            assert_memory_equal(out, block + len - 48, 48);
            kh_rsakx_select(block, len, (uint16_t)(version ^ 0x100), true, random, out);
            assert_memory_equal(out, random, 48);
        }
    }
}

static void test_block(void **state)
{
    uint8_t modulus[256], ciphertext[300] = {0}, block[256];

    (void)state;
    memset(modulus, 0xc1, sizeof(modulus));
    for (size_t len = 0; len <= 300; len++) {
        assert_int_equal(kh_rsakx_block(ciphertext, len, modulus, 256, block), len == 256);
        assert_true(block[0] == 0); /* below the modulus, whatever came */
    }
    memcpy(ciphertext, modulus, 256);
    assert_false(kh_rsakx_block(ciphertext, 256, modulus, 256, block));
    ciphertext[255]--;
    assert_true(kh_rsakx_block(ciphertext, 256, modulus, 256, block));
    assert_memory_equal(block, ciphertext, 256);
    ciphertext[0]++;
    assert_false(kh_rsakx_block(ciphertext, 256, modulus, 256, block));
}

/* What a fault is answered with: fixed by key, version and ciphertext, and by nothing else. */
static void test_random(void **state)
{
    uint8_t secret[2][KH_RSAKX_SECRET_LEN], ciphertext[300] = {1}, random[5][KH_PREMASTER_LEN];

    (void)state;
    assert_int_equal(kh_algorithms_init(), KH_OK);
    assert_int_equal(kh_rsakx_secret((const uint8_t *)"one", 3, secret[0]), KH_OK);
    assert_int_equal(kh_rsakx_secret((const uint8_t *)"two", 3, secret[1]), KH_OK);
    assert_int_equal(kh_rsakx_random(secret[0], 0x0303, ciphertext, 256, random[0]), KH_OK);
    assert_int_equal(kh_rsakx_random(secret[0], 0x0303, ciphertext, 256, random[1]), KH_OK);
    assert_memory_equal(random[0], random[1], KH_PREMASTER_LEN);
    assert_int_equal(kh_rsakx_random(secret[0], 0x0304, ciphertext, 256, random[1]), KH_OK);
    assert_int_equal(kh_rsakx_random(secret[0], 0x0303, ciphertext, 257, random[2]), KH_OK);
    assert_int_equal(kh_rsakx_random(secret[1], 0x0303, ciphertext, 256, random[3]), KH_OK);
    assert_int_equal(kh_rsakx_random(secret[0], 0x0303, NULL, 0, random[4]), KH_OK);
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < i; j++) {
            assert_memory_not_equal(random[i], random[j], KH_PREMASTER_LEN);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_byte), cmocka_unit_test(test_block),
                                       cmocka_unit_test(test_random)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

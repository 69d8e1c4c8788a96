/* SPDX-License-Identifier: Apache-2.0 */
/* HPKE against RFC 9180's vector, and the import format above it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "hpke.h"

#include <keyhold/import.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

static size_t unhex(const char *hex, uint8_t *out)
{
    size_t len = 0;

    assert_int_equal(OPENSSL_hexstr2buf_ex(out, 512, &len, hex, '\0'), 1);
    return len;
}

/* RFC 9180, A.1.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, base mode, first encryption. */
static void test_rfc9180(void **state)
{
    uint8_t info[64], ephemeral[32], recipient[32], recipient_private[32], enc[32], secret[32], key[16],
        nonce[12];
    uint8_t plain[64], aad[16], expected[64], sealed[128], back[64];
    kh_hpke_context context;

    (void)state;
    size_t info_len = unhex("4f6465206f6e2061204772656369616e2055726e", info);
    unhex("52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736", ephemeral);
    unhex("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d", recipient);
    unhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8", recipient_private);
    unhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431", enc);
    unhex("fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc", secret);
    unhex("4531685d41d65f03dc48f6b8302c05b0", key);
    unhex("56d890e5accaaf011cff4b7d", nonce);
    size_t len = unhex("4265617574792069732074727574682c20747275746820626561757479", plain);
    size_t aad_len = unhex("436f756e742d30", aad);
    size_t expected_len =
        unhex("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
              expected);

    assert_int_equal(kh_hpke_seal(&kh_hpke_aes128, recipient, ephemeral, info, info_len, aad, aad_len, plain,
                                  len, sealed, &context),
                     KH_OK);
    assert_memory_equal(sealed, enc, 32);
    assert_memory_equal(context.shared_secret, secret, 32);
    assert_memory_equal(context.key, key, 16);
    assert_memory_equal(context.base_nonce, nonce, 12);
    assert_int_equal(expected_len, len + 16);
    assert_memory_equal(sealed + 32, expected, expected_len);
    assert_int_equal(kh_hpke_open(&kh_hpke_aes128, recipient_private, info, info_len, aad, aad_len, sealed,
                                  32 + expected_len, back),
                     KH_OK);
    assert_memory_equal(back, plain, len);
}

static void key_pair(uint8_t private_key[32], uint8_t public_key[32])
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    size_t len = 32;

    assert_int_equal(EVP_PKEY_get_raw_private_key(pkey, private_key, &len), 1);
    assert_int_equal(EVP_PKEY_get_raw_public_key(pkey, public_key, &len), 1);
    EVP_PKEY_free(pkey);
}

static void test_import(void **state)
{
    uint8_t private_key[32], public_key[32], other_private[32], other_public[32];
    uint8_t plain[200], sealed[248], back[248];
    size_t sealed_len = 0, len = 0;

    (void)state;
    key_pair(private_key, public_key);
    key_pair(other_private, other_public);
    memset(plain, 7, sizeof(plain));
    assert_int_equal(kh_import_seal(public_key, "site", 1, 0, plain, 200, sealed, 247, &sealed_len),
                     KH_E_TOO_LARGE);
    assert_int_equal(kh_import_seal(public_key, "site", 1, 0, plain, KH_IMPORT_PKCS8_MAX + 1, sealed,
                                    SIZE_MAX, &sealed_len),
                     KH_E_TOO_LARGE);
    assert_int_equal(kh_import_seal(public_key, "no name", 1, 0, plain, 200, sealed, 248, &sealed_len),
                     KH_E_INVALID);
    assert_int_equal(kh_import_seal(public_key, "site", 1, 0, plain, 200, sealed, 248, &sealed_len), KH_OK);
    assert_int_equal(sealed_len, 248);
    assert_int_equal(kh_import_open(private_key, "site", 1, 0, sealed, 248, back, 248, &len), KH_OK);
    assert_int_equal(len, 200);
    assert_memory_equal(back, plain, 200);
    /* Nobody on the way can change what the key is for. */
    assert_int_equal(kh_import_open(private_key, "sitf", 1, 0, sealed, 248, back, 248, &len), KH_E_CRYPTO);
    assert_int_equal(kh_import_open(private_key, "site", 9, 0, sealed, 248, back, 248, &len), KH_E_CRYPTO);
    assert_int_equal(kh_import_open(private_key, "site", 1, 1, sealed, 248, back, 248, &len), KH_E_CRYPTO);
    assert_int_equal(kh_import_open(other_private, "site", 1, 0, sealed, 248, back, 248, &len), KH_E_CRYPTO);
    assert_int_equal(len, 0);
    for (size_t at = 0; at < 248; at++) {
        sealed[at] ^= 1;
        assert_int_equal(kh_import_open(private_key, "site", 1, 0, sealed, 248, back, 248, &len),
                         KH_E_CRYPTO);
        sealed[at] ^= 1;
        assert_int_equal(kh_import_open(private_key, "site", 1, 0, sealed, at, back, 248, &len), KH_E_CRYPTO);
    }
    memset(sealed, 0, 32); /* a point of low order */
    assert_int_equal(kh_import_open(private_key, "site", 1, 0, sealed, 248, back, 248, &len), KH_E_CRYPTO);
}

static void test_fingerprint(void **state)
{
    const uint8_t zero[32] = {0};
    char text[52];

    (void)state;
    kh_import_fingerprint(zero, text);
    assert_string_equal(text, "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rfc9180), cmocka_unit_test(test_import),
                                       cmocka_unit_test(test_fingerprint)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing, and the key-encryption keys above it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "kek.h"
#include "seal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void test_seal(void **state)
{
    const uint8_t key[32] = {1}, other[32] = {2}, aad[20] = "associated data";
    uint8_t plain[100], sealed[100 + KH_SEAL_OVERHEAD], again[100 + KH_SEAL_OVERHEAD], back[100];
    kh_sealer *sealer = NULL, *stranger = NULL;

    (void)state;
    memset(plain, 0x33, sizeof(plain));
    assert_int_equal(kh_sealer_new(key, &sealer), KH_OK);
    assert_int_equal(kh_sealer_new(other, &stranger), KH_OK);
    for (size_t len = 0; len <= sizeof(plain); len++) {
        assert_int_equal(kh_seal(sealer, aad, sizeof(aad), plain, len, sealed), KH_OK);
        assert_int_equal(kh_seal(sealer, aad, sizeof(aad), plain, len, again), KH_OK);
        assert_memory_not_equal(sealed, again, 12); /* the nonce */
        assert_int_equal(kh_unseal(sealer, aad, sizeof(aad), sealed, len + KH_SEAL_OVERHEAD, back), KH_OK);
        assert_memory_equal(back, plain, len);
    }
    for (size_t at = 0; at < sizeof(sealed); at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            sealed[at] ^= (uint8_t)(1u << bit);
            memset(back, 1, sizeof(back));
            assert_int_equal(kh_unseal(sealer, aad, sizeof(aad), sealed, sizeof(sealed), back), KH_E_DAMAGED);
            assert_int_equal(back[50], 0); /* nothing of it is left */
            sealed[at] ^= (uint8_t)(1u << bit);
        }
    }
    for (size_t len = 0; len < sizeof(sealed); len++) {
        assert_int_equal(kh_unseal(sealer, aad, sizeof(aad), sealed, len, back), KH_E_DAMAGED);
    }
    assert_int_equal(kh_unseal(sealer, aad, sizeof(aad) - 1, sealed, sizeof(sealed), back), KH_E_DAMAGED);
    assert_int_equal(kh_unseal(stranger, aad, sizeof(aad), sealed, sizeof(sealed), back), KH_E_DAMAGED);
    assert_int_equal(kh_unseal(sealer, aad, sizeof(aad), sealed, sizeof(sealed), back),
                     KH_OK); /* and still works */
    kh_sealer_free(sealer);
    kh_sealer_free(stranger);
    kh_sealer_free(NULL);
}

static void write_kek(const char *path, const char *text, mode_t mode)
{
    FILE *file = fopen(path, "w");

    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static void test_kek_file(void **state)
{
    static const char hex[] = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
    char dir[] = "/tmp/keyhold-kek-XXXXXX", path[64], text[200];
    uint8_t kek[32], again[32];
    struct stat st;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/kek", dir);
    assert_int_equal(kh_kek_file_load(path, kek), KH_E_IO);
    assert_int_equal(kh_kek_file_create(path), KH_OK);
    assert_int_equal(kh_kek_file_create(path), KH_E_EXISTS);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(kh_kek_file_load(path, kek), KH_OK);
    assert_int_equal(kh_kek_file_load(path, again), KH_OK);
    assert_memory_equal(kek, again, 32);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(kh_kek_file_load(path, kek), KH_E_FORBIDDEN);
    snprintf(text, sizeof(text), "keyhold-kek-1 %s\n", hex);
    write_kek(path, text, 0600);
    assert_int_equal(kh_kek_file_load(path, kek), KH_OK);
    assert_int_equal(kek[1], 0x11);
    assert_int_equal(kek[16], 0xff);
    for (size_t len = 0; len < strlen(text) - 1; len++) { /* the newline may be missing, nothing else */
        char cut[200];

        snprintf(cut, len + 1, "%s", text);
        write_kek(path, cut, 0600);
        assert_int_equal(kh_kek_file_load(path, kek), KH_E_MALFORMED);
    }
    for (size_t at = 0; at < strlen(text); at++) {
        char bad[200];

        strcpy(bad, text);
        bad[at] = 'x';
        write_kek(path, bad, 0600);
        assert_int_equal(kh_kek_file_load(path, kek), KH_E_MALFORMED);
    }
    strcat(text, "\n");
    write_kek(path, text, 0600);
    assert_int_equal(kh_kek_file_load(path, kek), KH_E_MALFORMED);
    unlink(path);
    rmdir(dir);
}

static void test_kek_derive(void **state)
{
    uint8_t params[KH_KEK_PARAMS_LEN], other[KH_KEK_PARAMS_LEN], kek[32], again[32];
    const uint8_t secret[32] = {5};

    (void)state;
    assert_int_equal(kh_kek_params_new(KH_KEK_FILE, params), KH_OK);
    assert_int_equal(kh_kek_derive(KH_KEK_FILE, secret, 32, params, kek), KH_OK);
    assert_memory_equal(kek, secret, 32);
    assert_int_equal(kh_kek_derive(KH_KEK_FILE, secret, 16, params, kek), KH_E_INVALID);
    assert_int_equal(kh_kek_params_new((kh_kek_kind)9, params), KH_E_INVALID);
    assert_int_equal(kh_kek_params_new(KH_KEK_PASSPHRASE, params), KH_OK);
    assert_int_equal(kh_kek_params_new(KH_KEK_PASSPHRASE, other), KH_OK);
    assert_memory_not_equal(params, other, sizeof(params)); /* the salt */
    params[0] = 12;                                         /* quick, for the test */
    assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, (const uint8_t *)"pass", 4, params, kek), KH_OK);
    assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, (const uint8_t *)"pass", 4, params, again), KH_OK);
    assert_memory_equal(kek, again, 32);
    assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, (const uint8_t *)"Pass", 4, params, again), KH_OK);
    assert_memory_not_equal(kek, again, 32);
    assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, (const uint8_t *)"", 0, params, again), KH_E_INVALID);
    /* Parameters that would eat the machine's memory are damage, not work. */
    const uint8_t bad[][3] = {{9, 8, 1},   {21, 8, 1}, {255, 8, 1}, {12, 0, 1},
                              {12, 17, 1}, {12, 8, 0}, {12, 8, 17}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memcpy(params, bad[i], 3);
        assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, (const uint8_t *)"pass", 4, params, again),
                         KH_E_DAMAGED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seal), cmocka_unit_test(test_kek_file),
                                       cmocka_unit_test(test_kek_derive)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

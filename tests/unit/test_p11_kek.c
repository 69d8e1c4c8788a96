/* SPDX-License-Identifier: Apache-2.0 */
/* A KEK that a token opens: by AES-GCM, and by RFC 5649 where there is no GCM; its file, and damage of it. */
#include "p11_rig.h"

#include "kek_token.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char path[300];

static void write_file(const char *text, size_t len, mode_t mode)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static size_t read_file(char text[512])
{
    FILE *file = fopen(path, "r");
    size_t len = 0;

    assert_non_null(file);
    len = fread(text, 1, 511, file);
    fclose(file);
    text[len] = '\0';
    return len;
}

/* Each byte of the file changed and each truncation is refused: by the reader, or by the token. */
static void check_damage(kh_p11_session *session, const uint8_t kek[KH_KEK_LEN])
{
    char text[512];
    size_t len = read_file(text);
    uint8_t got[KH_KEK_LEN];
    kh_kek_token loaded;

    for (size_t at = 0; at < len; at++) {
        for (int bit = 0; bit < 8; bit += 3) {
            kh_result result = KH_OK;

            text[at] ^= (char)(1 << bit);
            write_file(text, len, 0600);
            text[at] ^= (char)(1 << bit);
            result = kh_kek_token_file_load(path, &loaded);
            if (result == KH_OK) {
                result = kh_kek_token_unwrap(session, &loaded, got);
                /* RFC 5649 authenticates no token's name. */
                if (result == KH_OK) {
                    assert_true(loaded.how == KH_KEK_KWP && at > 19 && at < 24);
                    assert_memory_equal(got, kek, KH_KEK_LEN);
                    continue;
                }
                assert_true(result == KH_E_DAMAGED || result == KH_E_NOT_FOUND);
            } else {
                assert_int_equal(result, KH_E_MALFORMED);
            }
        }
    }
    for (size_t cut = 0; cut < len - 1; cut++) {
        write_file(text, cut, 0600);
        assert_true(kh_kek_token_file_load(path, &loaded) == KH_E_MALFORMED ||
                    kh_kek_token_unwrap(session, &loaded, got) == KH_E_DAMAGED);
    }
    write_file(text, len, 0644);
    assert_int_equal(kh_kek_token_file_load(path, &loaded), KH_E_FORBIDDEN);
    write_file(text, len, 0600);
    assert_int_equal(kh_kek_token_file_load(path, &loaded), KH_OK);
}

static void check(const char *rules, kh_kek_how how)
{
    uint8_t kek[KH_KEK_LEN], got[KH_KEK_LEN] = {0}, plain[KH_KEK_LEN];
    kh_kek_token made, loaded;
    kh_p11 *p11 = NULL;
    kh_p11_session *session = NULL;

    rig_rules(rules);
    p11 = rig_open(KH_SHIM, "kek");
    assert_int_equal(kh_p11_session_new(p11, true, &session), KH_OK);
    assert_int_equal(kh_kek_token_create(session, "hsm1", &made, kek), KH_OK);
    assert_int_equal(made.how, how);
    unlink(path);
    assert_int_equal(kh_kek_token_file_create(path, &made), KH_OK);
    assert_int_equal(kh_kek_token_file_create(path, &made), KH_E_EXISTS);
    assert_int_equal(kh_kek_token_file_load(path, &loaded), KH_OK);
    assert_string_equal(loaded.token, "hsm1");
    assert_int_equal(kh_kek_token_unwrap(session, &loaded, got), KH_OK);
    assert_memory_equal(got, kek, sizeof(kek));
    assert_int_equal(kh_kek_file_load(path, plain), KH_E_MALFORMED); /* and it is no plain KEK file */
    check_damage(session, kek);

    /* Rotation: another KEK by the same AES key. */
    memset(kek, 0x5a, sizeof(kek));
    assert_int_equal(kh_kek_token_wrap(session, &loaded, kek), KH_OK);
    assert_int_equal(kh_kek_token_unwrap(session, &loaded, got), KH_OK);
    assert_memory_equal(got, kek, sizeof(kek));
    loaded.id[0] ^= 1;
    assert_int_equal(kh_kek_token_unwrap(session, &loaded, got), KH_E_NOT_FOUND);
    assert_int_equal(kh_kek_token_create(session, "no name", &made, kek), KH_E_INVALID);
    kh_p11_session_free(session);
    kh_p11_close(p11);
}

static void by_gcm(void **state)
{
    (void)state;
    check("", KH_KEK_GCM);
}

static void by_key_wrap(void **state)
{
    (void)state;
    check("hide 0x1087\n", KH_KEK_KWP);
}

static void refused_without_both(void **state)
{
    uint8_t kek[KH_KEK_LEN];
    kh_kek_token made;
    kh_p11 *p11 = NULL;
    kh_p11_session *session = NULL;

    (void)state;
    rig_rules("hide 0x1087\nhide 0x210a\nhide 0x210b\n");
    p11 = rig_open(KH_SHIM, "kek");
    assert_int_equal(kh_p11_session_new(p11, true, &session), KH_OK);
    assert_int_equal(kh_kek_token_create(session, "hsm1", &made, kek), KH_E_UNSUPPORTED);
    kh_p11_session_free(session);
    kh_p11_close(p11);
}

static int set_up(void **state)
{
    (void)state;
    rig_token("kek");
    snprintf(path, sizeof(path), "%s.kek", getenv("SOFTHSM2_CONF"));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rig_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(by_gcm), cmocka_unit_test(by_key_wrap),
                                       cmocka_unit_test(refused_without_both)};

    if (rig_softhsm() == NULL) {
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Changing a store's KEK: at each point the KEK that may be in the file opens it, and in the end only the new one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[256], path[300];
static const uint8_t first[32] = {1}, second[32] = {2}, third[32] = {3};

static kh_result opens(const uint8_t kek[32], uint8_t import_public[32])
{
    uint8_t secret[32];
    kh_store *store = NULL;
    kh_result result = KH_OK;

    memcpy(secret, kek, 32);
    result = kh_store_open(path, KH_KEK_FILE, secret, 32, NULL, NULL, &store);
    if (result == KH_OK) {
        memcpy(import_public, kh_store_import_public(store), 32);
    }
    kh_store_close(store);
    return result;
}

/* Which of the three open it, as bits; all that do find the same keys. */
static int openers(void)
{
    static uint8_t always[32];
    const uint8_t *const keks[] = {first, second, third};
    uint8_t import_public[32];
    int bits = 0;

    for (int i = 0; i < 3; i++) {
        kh_result result = opens(keks[i], import_public);

        assert_true(result == KH_OK || result == KH_E_PASSPHRASE);
        if (result == KH_OK) {
            if (always[0] == 0 && always[1] == 0) {
                memcpy(always, import_public, 32);
            }
            assert_memory_equal(import_public, always, 32);
            bits |= 1 << i;
        }
    }
    return bits;
}

static kh_result change(const uint8_t *opener, const uint8_t *kek, const uint8_t *next)
{
    uint8_t secret[32];
    kh_store *store = NULL;
    kh_result result = KH_OK;

    memcpy(secret, opener, 32);
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, secret, 32, NULL, NULL, &store), KH_OK);
    result = next != NULL ? kh_store_kek_next(store, kek, next) : kh_store_kek_end(store, kek);
    kh_store_close(store);
    return result;
}

static void changes(void **state)
{
    (void)state;
    assert_int_equal(openers(), 1);
    assert_int_equal(change(first, second, third), KH_E_PASSPHRASE); /* who does not have it changes nothing */
    assert_int_equal(change(first, second, NULL), KH_E_PASSPHRASE);
    assert_int_equal(openers(), 1);
    assert_int_equal(change(first, first, second), KH_OK);
    assert_int_equal(openers(), 3);
    assert_int_equal(change(first, first, second), KH_OK); /* interrupted, and said again */
    assert_int_equal(openers(), 3);
    assert_int_equal(change(first, second, NULL), KH_OK);
    assert_int_equal(openers(), 2);
    assert_int_equal(change(second, first, third), KH_E_PASSPHRASE);
    /* Interrupted after the file has the new one: the next change begins with that, and keeps it opening. */
    assert_int_equal(change(second, second, third), KH_OK);
    assert_int_equal(openers(), 6);
    assert_int_equal(change(third, third, first), KH_OK);
    assert_int_equal(openers(), 5);
    assert_int_equal(change(third, third, NULL), KH_OK); /* the file still has it: given up */
    assert_int_equal(openers(), 4);
}

static int set_up(void **state)
{
    const char *tmp = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    uint8_t import_public[32], secret[32];

    (void)state;
    snprintf(dir, sizeof(dir), "%s/keyhold-kek-XXXXXX", tmp);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/store", dir);
    memcpy(secret, first, 32);
    return kh_store_init(path, KH_KEK_FILE, secret, 32, import_public) == KH_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    char command[300];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(changes, set_up, tear_down)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

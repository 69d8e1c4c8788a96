/* SPDX-License-Identifier: Apache-2.0 */
/* Changing a store's KEK or passphrase: at each point the one that may be in the file opens it, and in the end only the new one. */
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
    result = kh_store_open_to_read(path, KH_KEK_FILE, secret, 32, NULL, NULL, &store); /* which ends no change */
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
    if (next != NULL) {
        kh_kek_change change = {.recipe = {KH_KEK_FILE}};

        memcpy(change.kek, kek, 32);
        memcpy(change.next, next, 32);
        result = kh_store_kek_next(store, &change);
    } else {
        result = kh_store_kek_end(store, kek);
    }
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
    /* Interrupted after the file has the new one, and the agent has the one before: the next change begins with that, and keeps it
     * opening. */
    assert_int_equal(change(second, second, third), KH_OK);
    assert_int_equal(openers(), 6);
    assert_int_equal(change(third, third, first), KH_OK);
    assert_int_equal(openers(), 5);
    assert_int_equal(change(third, third, NULL), KH_OK); /* the file still has it: given up */
    assert_int_equal(openers(), 4);
    /* Who starts with the next one gives up the one before. */
    assert_int_equal(change(third, third, first), KH_OK);
    assert_int_equal(change(third, second, NULL), KH_E_PASSPHRASE);
    assert_int_equal(openers(), 5);
    assert_int_equal(change(first, third, second), KH_E_PASSPHRASE);
    assert_int_equal(openers(), 1);
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

/* ---- Passphrases --------------------------------------------------------------------------------------- */

#define OLD "correct horse battery staple"
#define NEW "an umbrella for seven cats"

static kh_result open_by(const char *phrase, kh_store **store)
{
    uint8_t secret[64];
    size_t len = strlen(phrase);

    memcpy(secret, phrase, len);
    return kh_store_open(path, KH_KEK_PASSPHRASE, secret, len, NULL, NULL, store);
}

/* Of now (0) or the next one; how many there are. */
static size_t recipe_of(kh_store *store, int which, uint8_t recipe[KH_KEK_RECIPE_LEN])
{
    uint8_t recipes[2][KH_KEK_RECIPE_LEN];
    size_t count = 0;

    assert_int_equal(kh_store_kek_recipes(store, recipes, &count), KH_OK);
    assert_true((int)count > which);
    memcpy(recipe, recipes[which], KH_KEK_RECIPE_LEN);
    return count;
}

static void derive(const char *phrase, const uint8_t recipe[KH_KEK_RECIPE_LEN], uint8_t kek[32])
{
    assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, (const uint8_t *)phrase, strlen(phrase), recipe + 1, kek), KH_OK);
}

static kh_kek_change new_change(kh_store *store)
{
    uint8_t recipe[KH_KEK_RECIPE_LEN];
    kh_kek_change change = {.recipe = {KH_KEK_PASSPHRASE}};

    assert_int_equal(recipe_of(store, 0, recipe), 1);
    derive(OLD, recipe, change.kek);
    assert_int_equal(kh_kek_params_new(KH_KEK_PASSPHRASE, change.recipe + 1), KH_OK);
    assert_memory_not_equal(change.recipe, recipe, sizeof(recipe)); /* another salt */
    derive(NEW, change.recipe, change.next);
    return change;
}

static void changes_passphrase(void **state)
{
    uint8_t recipe[KH_KEK_RECIPE_LEN];
    kh_store *store = NULL;
    kh_kek_change change, wrong;

    (void)state;
    assert_int_equal(open_by(OLD, &store), KH_OK);
    change = wrong = new_change(store);
    wrong.recipe[1] = 30; /* 2^30 times 1 KB: nothing that a start should be asked for */
    assert_int_equal(kh_store_kek_next(store, &wrong), KH_E_INVALID);
    memset(wrong.recipe, 0, sizeof(wrong.recipe));
    wrong.recipe[0] = KH_KEK_FILE; /* another kind is in the configuration, too */
    assert_int_equal(kh_store_kek_next(store, &wrong), KH_E_INVALID);
    assert_int_equal(kh_store_kek_next(store, &change), KH_OK);
    kh_store_close(store);

    assert_int_equal(open_by(OLD, &store), KH_OK); /* ends nothing */
    assert_int_equal(recipe_of(store, 1, recipe), 2);
    assert_memory_equal(recipe, change.recipe, sizeof(recipe));
    kh_store_close(store);

    assert_int_equal(open_by(NEW, &store), KH_OK); /* the one before opens it no more */
    assert_int_equal(recipe_of(store, 0, recipe), 1);
    assert_memory_equal(recipe, change.recipe, sizeof(recipe));
    assert_int_equal(kh_store_kek_next(store, &change), KH_E_PASSPHRASE);
    kh_store_close(store);
    assert_int_equal(open_by(OLD, &store), KH_E_PASSPHRASE);
}

static int set_up_passphrase(void **state)
{
    uint8_t import_public[32];

    return set_up(state) != 0 || unlink(path) != 0 ||
                   kh_store_init(path, KH_KEK_PASSPHRASE, (const uint8_t *)OLD, strlen(OLD), import_public) != KH_OK
               ? -1
               : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(changes, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(changes_passphrase, set_up_passphrase, tear_down)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Rotation policies: the store's thread, without its loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DAY UINT64_C(86400) /* seconds */

static void no_log(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    (void)level;
    (void)text;
}

/* The store's thread, without its loop: what it is to do is in its desk. */
static kh_keeper *open_keeper(void)
{
    static const kh_keeper_config config = {.log = no_log};
    kh_keeper *keeper = calloc(1, sizeof(*keeper));

    assert_non_null(keeper);
    keeper->config = &config;
    pthread_mutex_init(&keeper->lock, NULL);
    assert_int_equal(kh_desk_init(&keeper->store_desk), KH_OK);
    assert_int_equal(kh_links_new(&keeper->links), KH_OK);
    assert_int_equal(kh_store_open(rig.store, KH_KEK_FILE, rig.kek, 32, NULL, NULL, &keeper->store), KH_OK);
    return keeper;
}

static void close_keeper(kh_keeper *keeper)
{
    while (keeper->store_desk.waiting > 0) {
        kh_op *op = kh_desk_pop(&keeper->store_desk);

        free(op->long_data);
        free(op);
    }
    kh_store_close(keeper->store);
    kh_links_free(keeper->links);
    kh_desk_destroy(&keeper->store_desk);
    pthread_mutex_destroy(&keeper->lock);
    free(keeper);
}

/* A key with a policy of 30 days, that is to live 40. */
static void add_rotated(kh_keeper *keeper, const char *name, uint64_t now)
{
    kh_key_change change = {.what = KH_CHANGE_ROTATE | KH_CHANGE_EXPIRES, .expires = now + 40 * DAY, .policy.rotate_days = 30};
    kh_key_info info = {.usage = KH_USAGE_SIGN};
    kh_material material;

    strcpy(info.name, name);
    strcpy(change.policy.name, name);
    assert_int_equal(kh_material_generate(KH_KEY_P256, 256, &material), KH_OK);
    assert_int_equal(kh_store_insert(keeper->store, KH_ASKER_ROOT, &info, &material), KH_OK);
    assert_int_equal(kh_store_set(keeper->store, &change, &info), KH_OK);
}

/* What the policies ask for next, which ends so. */
static void expect_rotation(kh_keeper *keeper, const char *name, kh_result result)
{
    kh_op *op = NULL;
    kh_key_info asked;

    assert_true(keeper->store_desk.waiting > 0); /* else it would be waited for */
    op = kh_desk_pop(&keeper->store_desk);
    assert_int_equal(op->record.op, KH_STORE_CREATE);
    memcpy(&asked, op->record.data, sizeof(asked));
    assert_string_equal(asked.name, name);
    op->result = result;
    op->long_out = malloc(sizeof(asked));
    memcpy(op->long_out, &asked, sizeof(asked));
    op->answered(keeper, op);
    free(op->long_out);
    free(op->long_data);
    free(op);
}

static void test_rotation(void **state)
{
    const uint64_t now = (uint64_t)time(NULL);
    kh_keeper *keeper = open_keeper();
    kh_key_info info, asked;
    kh_op *op = NULL;

    (void)state;
    add_rotated(keeper, "www", now);
    kh_rotate_due(keeper, now + 29 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 0);
    kh_rotate_soon(keeper->links);
    kh_rotate_due(keeper, now + 31 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 1);
    kh_rotate_due(keeper, now + 32 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 1); /* it is being made */
    op = kh_desk_pop(&keeper->store_desk);
    assert_int_equal(op->record.op, KH_STORE_CREATE);
    memcpy(&asked, op->record.data, sizeof(asked));
    assert_string_equal(asked.name, "www");
    assert_int_equal(asked.type, KH_KEY_P256);
    assert_int_equal(asked.flags, KH_KEY_NEW_VERSION);
    assert_true(asked.expires >= now + (31 + 40) * DAY - 60); /* it lives as long */
    free(op->long_data);
    free(op);
    /* A key that is disabled stays as it is. */
    assert_int_equal(kh_store_set_state(keeper->store, KH_ASKER_ROOT, "www", 0, 2, &info), KH_OK);
    keeper->links->rotating = 0;
    kh_rotate_soon(keeper->links);
    kh_rotate_due(keeper, now + 31 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 0);
    close_keeper(keeper);
}

/* One that fails is left for a while, and the others go on; no more than a few are made at a time. */
static void test_rotation_that_fails(void **state)
{
    const uint64_t now = (uint64_t)time(NULL), then = now + 31 * DAY;
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
    kh_keeper *keeper = open_keeper();

    (void)state;
    for (int i = 0; i < 6; i++) {
        add_rotated(keeper, names[i], now);
    }
    kh_rotate_due(keeper, then);
    assert_int_equal(keeper->store_desk.waiting, 4);
    expect_rotation(keeper, "a", KH_E_UNAVAILABLE);
    for (int i = 1; i < 4; i++) {
        expect_rotation(keeper, names[i], KH_OK);
    }
    kh_rotate_due(keeper, then + 1);
    assert_int_equal(keeper->store_desk.waiting, 2);
    expect_rotation(keeper, "e", KH_E_UNAVAILABLE);
    expect_rotation(keeper, "f", KH_OK);
    /* The next round: nothing was really made here, so all but those that failed are due again. */
    kh_rotate_due(keeper, then + 120);
    for (int i = 1; i < 4; i++) {
        expect_rotation(keeper, names[i], KH_OK);
    }
    expect_rotation(keeper, "f", KH_OK);
    assert_int_equal(keeper->store_desk.waiting, 0);
    kh_rotate_due(keeper, then + 602); /* the end of this round; and then they are, too */
    kh_rotate_due(keeper, then + 663);
    expect_rotation(keeper, "a", KH_E_UNAVAILABLE);
    for (int i = 1; i < 4; i++) {
        expect_rotation(keeper, names[i], KH_OK);
    }
    kh_rotate_soon(keeper->links); /* a token came: nobody is left out */
    keeper->links->rotate_from[0] = '\0';
    kh_rotate_due(keeper, then + 664);
    expect_rotation(keeper, "a", KH_OK);
    close_keeper(keeper);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rotation, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_rotation_that_fails, links_set_up, links_tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

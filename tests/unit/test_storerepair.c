/* SPDX-License-Identifier: Apache-2.0 */
/* What is to be destroyed in tokens, and what partitions lack: done when they can, counted and said until then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <stdio.h>
#include <string.h>

static void test_purge(void **state)
{
    kh_key_info info;

    (void)state;
    links_start(0, 0);
    assert_int_equal(links_create("www", KH_TIER_HSM, "", &info), KH_OK);
    assert_int_equal(rig_set_state(&rig, "www", 0, 3, &info), KH_OK);
    assert_int_equal(links_by_name(KH_STORE_PURGE, "www"), KH_OK);
    assert_int_equal(peers[0].count, 0); /* gone before it was acknowledged */
    /* A token that is not there loses it when it comes. */
    assert_int_equal(links_create("api", KH_TIER_HSM, "", &info), KH_OK);
    assert_int_equal(rig_set_state(&rig, "api", 0, 3, &info), KH_OK);
    peer_end(&peers[0]);
    assert_int_equal(links_by_name(KH_STORE_PURGE, "api"), KH_OK);
    assert_int_equal(peers[0].count, 1);
    rig_kill(&rig);
    links_start(0, 0);
    peer_wait_objects(&peers[0], 0);
}

/* What a partition cannot take is said in one line for all keys, and not each second. */
static void test_repair_that_fails(void **state)
{
    const kh_record repair = {.op = KH_STORE_REPAIR, .data = (const uint8_t *)"pool", .data_len = 4};
    kh_key_info info;

    (void)state;
    links_start(1, 2);
    for (int i = 0; i < 10; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(links_create(name, KH_TIER_HSM_POOL, "", &info), KH_OK);
    }
    peers[3].fail_on = KH_LINK_PLACE;
    peers[3].why = "no such\n mechanism";
    peer_connect(&peers[3]);
    peer_wait_seen(&peers[3], KH_LINK_PLACE, 10);
    for (int i = 0; i < 5000 && links_logged("lacks") == 0; i++) {
        pause_briefly();
    }
    assert_int_equal(links_logged("partition p3 lacks 10 of 10 keys of its pool, which cannot be placed: no such? mechanism; "
                                  "tried again in 2 s"),
                     1);
    assert_int_equal(links_logged("p3"), 2); /* it is there; and that */
    peers[3].fail_on = 0;
    (void)rig_admin(&rig, &repair);
    peer_wait_objects(&peers[3], 10);
    for (int i = 0; i < 5000 && links_logged("p3 has all 10 keys") == 0; i++) {
        pause_briefly();
    }
    assert_int_equal(links_logged("p3 has all 10 keys"), 1);
}

static uint64_t orders(const char *token)
{
    const kh_record record = {.op = KH_STORE_ORDERS};
    const rig_answer *got = rig_admin(&rig, &record);
    kh_order order;

    assert_int_equal(got->result, KH_OK);
    for (size_t at = 0; at < got->len; at += sizeof(order)) {
        memcpy(&order, got->data + at, sizeof(order));
        if (strcmp(order.token, token) == 0) {
            return order.objects;
        }
    }
    return 0;
}

/* What a token would not destroy, or could not since it was away, is counted until it is gone. */
static void test_orders(void **state)
{
    kh_key_info info;

    (void)state;
    links_start(1, 3);
    for (int i = 0; i < 3; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(links_create(name, KH_TIER_HSM_POOL, "", &info), KH_OK);
        assert_int_equal(rig_set_state(&rig, name, 0, 3, &info), KH_OK);
    }
    for (int i = 1; i < 4; i++) {
        peer_wait_objects(&peers[i], 3);
    }
    assert_int_equal(orders("p1") + orders("p2") + orders("p3"), 0);
    peer_end(&peers[3]);
    peers[2].fail_on = KH_LINK_DESTROY;
    for (int i = 0; i < 3; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(links_by_name(KH_STORE_PURGE, name), KH_OK);
    }
    assert_int_equal(orders("p1"), 0);
    assert_int_equal(orders("p2"), 3);
    assert_int_equal(orders("p3"), 3);
    assert_true(links_logged("objects in token p2 that are to be destroyed are still there") > 0);
    peers[2].fail_on = 0;
    peer_connect(&peers[3]);
    peer_wait_objects(&peers[3], 0);
    peer_wait_objects(&peers[2], 0);
    for (int i = 0; i < 5000 && orders("p2") + orders("p3") > 0; i++) {
        pause_briefly();
    }
    assert_int_equal(orders("p2") + orders("p3"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_purge, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_repair_that_fails, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_orders, links_set_up, links_tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

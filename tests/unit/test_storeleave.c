/* SPDX-License-Identifier: Apache-2.0 */
/* A partition that leaves its pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

static kh_result leave(const char *pool, const char *token, kh_left *left)
{
    kh_pool_leave asked = {.pool = ""};
    const kh_record record = {.op = KH_STORE_LEAVE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    const rig_answer *got = NULL;

    strcpy(asked.pool, pool);
    strcpy(asked.token, token);
    got = rig_admin(&rig, &record);
    if (got->result == KH_OK) {
        memcpy(left, got->data, sizeof(*left));
    }
    return got->result;
}

/* One that leaves is told of no key any more, and destroys those of that pool; a repair takes it back. */
static void test_leave(void **state)
{
    const kh_record repair = {.op = KH_STORE_REPAIR, .data = (const uint8_t *)"pool", .data_len = 4};
    const uint8_t own[KH_P11_ID_LEN] = "made by others";
    kh_key_info info;
    kh_left left;

    (void)state;
    links_start(0, 3);
    for (int i = 0; i < 5; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(links_create(name, KH_TIER_HSM_POOL, "", &info), KH_OK);
    }
    for (int i = 1; i < 4; i++) {
        peer_wait_objects(&peers[i], 5);
    }
    assert_int_equal(rig_set_state(&rig, "k1", 0, 3, &info), KH_OK); /* a deleted one has its object, too */
    pthread_mutex_lock(&peers[3].lock);
    peer_add_object(&peers[3], own);
    pthread_mutex_unlock(&peers[3].lock);
    assert_int_equal(leave("pool", "p9", &left), KH_E_NOT_FOUND);
    assert_int_equal(leave("pool", "p3", &left), KH_OK);
    assert_int_equal(left.gone, 5);
    assert_int_equal(left.kept, 0);
    assert_true(peer_seen(&peers[3], KH_LINK_CHANGED) > 0);
    peer_wait_objects(&peers[3], 1);
    assert_int_equal(peer_find_object(&peers[3], own), 0);
    peer_wait_objects(&peers[2], 5);
    assert_int_equal(leave("pool", "p3", &left), KH_OK); /* said again, it is as before */
    peer_end(&peers[3]);
    assert_int_equal(leave("pool", "p3", &left), KH_E_UNAVAILABLE);
    peer_connect(&peers[3]); /* it comes back, and gets nothing */
    assert_int_equal(links_create("k5", KH_TIER_HSM_POOL, "", &info), KH_OK);
    peer_wait_objects(&peers[2], 6);
    peers[3].fail_on = KH_LINK_DESTROY;
    assert_int_equal(leave("pool", "p3", &left), KH_OK);
    assert_int_equal(left.gone, 0);
    assert_int_equal(left.kept, 6);
    peers[3].fail_on = 0;
    assert_int_equal(rig_admin(&rig, &repair)->result, KH_OK);
    peer_wait_objects(&peers[3], 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_leave, links_set_up, links_tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

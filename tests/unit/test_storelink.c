/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The links between the store's keeper and tokens' keepers: a token that is not there (yet), what a token's keeper is told when it
 * asks, and that a change is not acknowledged before it knows of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static void test_no_token(void **state)
{
    kh_key_info info;

    (void)state;
    assert_int_equal(rig_start(&rig), KH_OK);
    assert_int_equal(links_create("www", KH_TIER_HSM, "", &info), KH_E_NOT_FOUND);
    assert_int_equal(links_create("www", KH_TIER_HSM_POOL, "", &info), KH_E_NOT_FOUND);
    assert_int_equal(kh_keeper_send_places(rig.control, &places), KH_OK);
    assert_int_equal(links_create("www", KH_TIER_HSM, "other", &info), KH_E_NOT_FOUND);
    assert_int_equal(links_create("www", 9, "", &info), KH_E_INVALID);
    assert_int_equal(links_create("www", KH_TIER_SOFTWARE, "t1", &info), KH_E_INVALID);
    assert_int_equal(links_create("www", KH_TIER_HSM, "t1", &info), KH_E_UNAVAILABLE); /* after it was waited for */
    assert_int_equal(rig_lookup(&rig, "www", &info), KH_E_NOT_FOUND);
}

/* One that is asked for a moment before its token is there waits for it. */
static void test_waits_for_token(void **state)
{
    links_call call;
    kh_key_info asked = {.type = KH_KEY_P256, .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .name = "www"};

    (void)state;
    assert_int_equal(rig_start(&rig), KH_OK);
    assert_int_equal(kh_keeper_send_places(rig.control, &places), KH_OK);
    links_begin(&call, KH_STORE_CREATE, &asked);
    for (int i = 0; i < 50; i++) {
        pause_briefly();
    }
    assert_false(call.done);
    peer_connect(&peers[0]);
    assert_int_equal(links_end(&call), KH_OK);
}

/* Disabling is not acknowledged before the token's keeper says that nothing runs any more, or is dead. */
static void test_disable(void **state)
{
    links_call call;
    kh_key_info info, asked = {.state = 2, .name = "www"};

    (void)state;
    links_start(0, 1);
    assert_int_equal(links_create("www", KH_TIER_HSM, "t1", &info), KH_OK);
    for (int dies = 0; dies < 2; dies++) {
        peers[0].silent_on = KH_LINK_CHANGED;
        links_begin(&call, KH_STORE_SET_STATE, &asked);
        peer_wait_seen(&peers[0], KH_LINK_CHANGED, 1);
        assert_int_equal(peer_meet(0)->held.ref, info.ref);
        for (int i = 0; i < 50; i++) {
            pause_briefly();
        }
        assert_false(call.done);
        /* Meanwhile it tells anew whoever asks, and others are served. */
        assert_int_equal(links_by_name(KH_STORE_LOOKUP, "x"), KH_E_INVALID);
        if (dies == 0) {
            peer_answer(&peers[0], &peer_meet(0)->held);
        } else {
            peer_end(&peers[0]);
        }
        assert_int_equal(links_end(&call), KH_OK);
        peers[0].silent_on = 0;
        asked.state = 1;
    }
    assert_int_equal(peer_seen(&peers[1], KH_LINK_CHANGED), 0); /* it is not its key */
}

/* What it is told when it asks. */
static void test_key_question(void **state)
{
    int fds[2];
    uint8_t data[KH_LINK_DATA_MAX];
    kh_link_message message = {.op = KH_LINK_KEY, .number = 77};
    kh_link_key *key = (kh_link_key *)(void *)data;
    kh_key_info info;

    (void)state;
    links_start(0, 0);
    assert_int_equal(links_create("www", KH_TIER_HSM, "", &info), KH_OK);
    peer_end(&peers[0]);
    for (int i = 0; i < 2; i++) { /* its own token, and another's */
        assert_int_equal(kh_link_pair(fds), KH_OK);
        assert_int_equal(kh_keeper_send_link(rig.control, i == 0 ? "t1" : "p1", fds[0]), KH_OK);
        close(fds[0]);
        message.ref = info.ref;
        message.answer = 0;
        message.data_len = 0;
        assert_int_equal(kh_link_send(fds[1], &message, NULL), KH_OK);
        do {
            struct pollfd pfd = {.fd = fds[1], .events = POLLIN};

            assert_int_equal(poll(&pfd, 1, 20000), 1);
            assert_int_equal(kh_link_receive(fds[1], &message, data), KH_OK);
        } while (message.op != KH_LINK_KEY);
        assert_int_equal(message.number, 77);
        assert_int_equal(message.result, i == 0 ? KH_OK : KH_E_NOT_FOUND);
        if (i == 0) {
            assert_int_equal(message.data_len, sizeof(*key));
            assert_int_equal(key->info.ref, info.ref);
            assert_string_equal(key->info.name, "www");
            assert_memory_equal(key->locator.id, peer_meet(0)->last.locator.id, KH_P11_ID_LEN);
        }
        close(fds[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_token, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_waits_for_token, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_disable, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_key_question, links_set_up, links_tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

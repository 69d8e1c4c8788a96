/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys made in, brought into and moved into tokens and pools of them. After each end at each point nothing is half there: a key has
 * its row and its object, or its object is asked to be destroyed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <keyhold/import.h>
#include <openssl/evp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

static void test_create(void **state)
{
    kh_key_info info, again;

    (void)state;
    links_start(0, 0);
    assert_int_equal(links_create("www", KH_TIER_HSM, "", &info), KH_OK);
    assert_int_equal(info.tier, KH_TIER_HSM);
    assert_string_equal(info.place, "t1");
    assert_int_equal(peer_meet(0)->last.locator.id_len, KH_P11_ID_LEN);
    assert_string_equal(peer_meet(0)->last.locator.label, "www");
    assert_string_equal(peer_meet(0)->last.pool, "");
    assert_int_equal(peer_meet(0)->last.info.usage, KH_USAGE_SIGN);
    assert_int_equal(peers[0].count, 1);
    links_expect_report("ok 1 keys\n");
    /* It is no key of this process. */
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_E_UNAVAILABLE);
    peers_end();
    rig_kill(&rig);
    links_start(0, 0);
    assert_int_equal(rig_lookup(&rig, "www", &again), KH_OK);
    assert_memory_equal(again.id, info.id, sizeof(info.id));
    assert_int_equal(peer_seen(&peers[0], KH_LINK_DESTROY), 0);
    /* What the token cannot do. */
    peers[0].fail_on = KH_LINK_GENERATE;
    assert_int_equal(links_create("api", KH_TIER_HSM, "", &info), KH_E_UNSUPPORTED);
    peer_wait_objects(&peers[0], 1);
    links_expect_report("ok 1 keys\n");
}

/* The token's keeper ends while it makes a key: before, or when it is made and nobody knows. */
static void test_token_dies(void **state)
{
    kh_key_info info;

    (void)state;
    links_start(0, 0);
    for (int after = 0; after < 2; after++) {
        peers[0].die_on = KH_LINK_GENERATE;
        peers[0].die_after = after != 0;
        peers[0].count = 0;
        if (after == 0) {
            assert_int_equal(links_create("www", KH_TIER_HSM, "t1", &info), KH_E_UNAVAILABLE);
            assert_int_equal(rig_lookup(&rig, "www", &info), KH_E_NOT_FOUND);
        } else {
            assert_int_equal(links_create("www", KH_TIER_HSM, "t1", &info), KH_OK); /* its last word counts */
        }
        peer_end(&peers[0]);
        peer_put_last(0); /* as if it had been made */
        peer_connect(&peers[0]);
        if (after == 0) {
            peer_wait_seen(&peers[0], KH_LINK_DESTROY, 1);
            peer_wait_objects(&peers[0], 0);
        } else {
            peer_wait_objects(&peers[0], 1);
        }
    }
}

/* T6: the store's keeper is killed while a key is made, before and after the token made it. */
static void test_t6_killed(void **state)
{
    unsigned there = 0, gone = 0;

    (void)state;
    for (unsigned round = 0; round < 24; round++) {
        links_call call;
        kh_key_info asked = {.type = KH_KEY_P256, .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"}, info;
        bool silent = round % 3 == 0;
        kh_result result = KH_OK;

        snprintf(asked.name, sizeof(asked.name), "key-%u", round);
        links_start(0, 0);
        peers[0].silent_on = silent ? KH_LINK_GENERATE : 0;
        links_begin(&call, KH_STORE_CREATE, &asked);
        peer_wait_seen(&peers[0], KH_LINK_GENERATE, 1);
        for (unsigned i = 0; !silent && i < round * 20; i++) {
            sched_yield(); /* a little later each time */
        }
        rig_kill(&rig);
        result = links_end(&call);
        if (silent) { /* made, and the answer lost */
            peer_put_last(0);
        }
        peers_end();
        links_start(0, 0);
        if (rig_lookup(&rig, asked.name, &info) == KH_OK) {
            there++;
        } else {
            assert_int_not_equal(result, KH_OK); /* what was acknowledged is there */
            gone++;
        }
        peer_wait_objects(&peers[0], there); /* an object for each key, and no other */
        peers_end();
        assert_int_equal(rig_stop(&rig), KH_OK);
    }
    assert_true(gone >= 8);
    print_message("T6: the keeper killed %u times while a token made a key: %u were there, %u gone without a trace\n",
                  there + gone, there, gone);
}

static void test_move(void **state)
{
    kh_key_info info, asked = {.tier = KH_TIER_HSM, .name = "www"}, moved;
    const kh_record record = {.op = KH_STORE_MOVE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    const rig_answer *got = NULL;
    EVP_PKEY *pkey = NULL;
    uint8_t spki[KH_SPKI_MAX];

    (void)state;
    links_start(0, 0);
    assert_int_equal(links_create("www", 0, "", &info), KH_OK);
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_OK);
    peers[0].fail_on = KH_LINK_IMPORT;
    assert_int_equal(rig_admin(&rig, &record)->result, KH_E_UNSUPPORTED);
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_OK); /* as before */
    peers[0].fail_on = 0;
    got = rig_admin(&rig, &record);
    assert_int_equal(got->result, KH_OK);
    memcpy(&moved, got->data, sizeof(moved));
    assert_int_equal(moved.tier, KH_TIER_HSM);
    assert_memory_equal(moved.id, info.id, sizeof(info.id));
    assert_int_equal(kh_pkcs8_parse(peer_meet(0)->pkcs8, peer_meet(0)->pkcs8_len, &pkey), KH_OK);
    assert_int_equal(spki_of(pkey, spki), info.spki_len);
    assert_memory_equal(spki, info.spki, info.spki_len);
    EVP_PKEY_free(pkey);
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_E_UNAVAILABLE);
    assert_int_equal(rig_admin(&rig, &record)->result, KH_E_ORDER);
    links_expect_report("ok 1 keys\n");
}

static void test_import(void **state)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX], data[sizeof(kh_key_info) + 1024];
    kh_material material;
    kh_key_info asked = {.name = "www", .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"};
    kh_import_terms terms = {.name = "www", .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"};
    kh_record record = {.op = KH_STORE_IMPORT, .data = data};
    size_t len = 0;

    (void)state;
    links_start(0, 0);
    assert_int_equal(kh_material_encode(pkey, &material), KH_OK);
    memcpy(pkcs8, material.pkcs8, material.pkcs8_len);
    for (int honest = 0; honest < 2; honest++) {
        /* Sealed for the token: nobody on the way makes it a key of memory. */
        asked.tier = honest != 0 ? KH_TIER_HSM : KH_TIER_SOFTWARE;
        asked.place[0] = honest != 0 ? 't' : '\0';
        memcpy(data, &asked, sizeof(asked));
        assert_int_equal(kh_import_seal_as(rig.import_public, &terms, pkcs8, material.pkcs8_len, data + sizeof(asked), 1024,
                                           &len),
                         KH_OK);
        record.data_len = (uint32_t)(sizeof(asked) + len);
        assert_int_equal(rig_admin(&rig, &record)->result, honest != 0 ? KH_OK : KH_E_CRYPTO);
    }
    assert_int_equal(peer_meet(0)->pkcs8_len, material.pkcs8_len);
    assert_memory_equal(peer_meet(0)->pkcs8, pkcs8, material.pkcs8_len);
    EVP_PKEY_free(pkey);
    links_expect_report("ok 1 keys\n");
}

static void test_pool(void **state)
{
    kh_key_info info;

    (void)state;
    links_start(1, 3);
    assert_int_equal(links_create("www", KH_TIER_HSM_POOL, "", &info), KH_OK);
    assert_string_equal(info.place, "pool");
    for (int i = 1; i < 4; i++) {
        peer_wait_objects(&peers[i], 1);
    }
    /* The quorum is enough; who was slow or away has it afterwards. */
    peers[3].silent_on = KH_LINK_PLACE;
    assert_int_equal(links_create("api", KH_TIER_HSM_POOL, "pool", &info), KH_OK);
    peer_end(&peers[3]);
    assert_int_equal(links_create("shop", KH_TIER_HSM_POOL, "pool", &info), KH_OK);
    peer_connect(&peers[3]);
    peer_wait_objects(&peers[3], 3);
    /* An emptied one is filled. */
    peer_end(&peers[2]);
    peers[2].count = 0;
    peer_connect(&peers[2]);
    peer_wait_objects(&peers[2], 3);
    links_expect_report("ok 3 keys\n");
    assert_int_equal(rig_set_state(&rig, "api", 0, 3, &info), KH_OK);
    assert_int_equal(links_by_name(KH_STORE_PURGE, "api"), KH_OK);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(peers[i].count, 2);
    }
}

/* Without the quorum nothing stays behind. */
static void test_pool_without_quorum(void **state)
{
    kh_key_info info;

    (void)state;
    links_start(1, 3);
    peers[1].fail_on = peers[2].fail_on = KH_LINK_PLACE;
    assert_int_equal(links_create("www", KH_TIER_HSM_POOL, "", &info), KH_E_UNAVAILABLE);
    assert_int_equal(rig_lookup(&rig, "www", &info), KH_E_NOT_FOUND);
    peer_wait_objects(&peers[3], 0);
    peers[1].fail_on = peers[2].fail_on = 0;
    /* The one that makes it dies: another does. */
    peers[1].die_on = KH_LINK_GENERATE;
    assert_int_equal(links_create("www", KH_TIER_HSM_POOL, "", &info), KH_OK);
    peer_wait_objects(&peers[2], 1);
    peer_wait_objects(&peers[3], 1);
    links_expect_report("ok 1 keys\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_token_dies, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_t6_killed, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_move, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_import, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_pool, links_set_up, links_tear_down),
        cmocka_unit_test_setup_teardown(test_pool_without_quorum, links_set_up, links_tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A key that somebody else made in a token: it signs for root as others do, and is never destroyed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <string.h>

static void test_adopt_and_certify(void **state)
{
    kh_key_adoption asked = {.info = {.name = "theirs", .usage = KH_USAGE_TLS_SERVER}, .label = "made elsewhere"};
    const kh_record record = {.op = KH_STORE_ADOPT, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    kh_record certify = {.op = KH_STORE_CERTIFY, .scheme = KH_ECDSA_SHA256, .data = (const uint8_t *)"tbs", .data_len = 3};
    const rig_answer *got = NULL;
    kh_key_info info;

    (void)state;
    links_start(0, 0);
    got = rig_admin(&rig, &record);
    assert_int_equal(got->result, KH_OK);
    memcpy(&info, got->data, sizeof(info));
    assert_int_equal(info.tier, KH_TIER_HSM);
    assert_string_equal(peer_meet(0)->last.locator.label, "made elsewhere");
    certify.key_ref = info.ref;
    got = rig_admin(&rig, &certify);
    assert_int_equal(got->result, KH_OK);
    assert_memory_equal(got->data, "signed", 6);
    certify.scheme = KH_ED25519;
    assert_int_equal(rig_admin(&rig, &certify)->result, KH_E_SCHEME);
    asked.label[0] = '\0';
    assert_int_equal(rig_admin(&rig, &record)->result, KH_E_INVALID);
    assert_int_equal(rig_set_state(&rig, "theirs", 0, 3, &info), KH_OK);
    assert_int_equal(links_by_name(KH_STORE_PURGE, "theirs"), KH_OK);
    assert_int_equal(peer_seen(&peers[0], KH_LINK_DESTROY), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_adopt_and_certify, links_set_up, links_tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

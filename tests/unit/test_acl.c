/* SPDX-License-Identifier: Apache-2.0 */
/* Who may do what, and which of several versions is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "acl.h"
#include <string.h>

static char *site_keys[] = {(char *)"site-*", (char *)"www"};
static char *other_keys[] = {(char *)"o?her"};
static kh_allow allows[] = {
    {.keys = site_keys, .key_count = 2, .operations = 1u << KH_OP_SIGN | 1u << KH_OP_PUBLIC_KEY},
    {.keys = other_keys, .key_count = 1, .operations = 1u << KH_OP_STATUS | 1u << KH_OP_DECRYPT},
};
static const kh_config_identity edge = {.name = "edge", .allows = allows, .allow_count = 2};
static const kh_config_identity nobody = {.name = "nobody"};

static bool allowed(const kh_config_identity *identity, kh_op op, const char *name)
{
    return kh_acl_allows(identity, op, name, strlen(name));
}

static void test_allows(void **state)
{
    (void)state;
    assert_true(allowed(&edge, KH_OP_SIGN, "site-1"));
    assert_true(allowed(&edge, KH_OP_SIGN, "www"));
    assert_true(allowed(&edge, KH_OP_PUBLIC_KEY, "site-"));
    assert_true(allowed(&edge, KH_OP_DECRYPT, "other"));
    assert_false(allowed(&edge, KH_OP_DECRYPT, "www")); /* the blocks do not mix */
    assert_false(allowed(&edge, KH_OP_SIGN, "other"));
    assert_false(allowed(&edge, KH_OP_SIGN, "www2"));
    assert_false(allowed(&edge, KH_OP_SIGN, "a-site-1"));
    assert_false(allowed(&edge, KH_OP_CREATE, "site-1"));
    assert_false(allowed(&nobody, KH_OP_SIGN, "www"));
    assert_true(allowed(NULL, KH_OP_CREATE, "anything")); /* root */
    assert_true(kh_acl_allows_op(&edge, KH_OP_STATUS));
    assert_false(kh_acl_allows_op(&edge, KH_OP_LIST));
    assert_false(kh_acl_allows_op(&nobody, KH_OP_STATUS));
    assert_true(kh_acl_allows_op(NULL, KH_OP_LIST));
}

#define NOW 1000 /* Unix time */

static kh_result choose(const kh_config_identity *identity, kh_op op, uint32_t usages, const kh_key_info *infos,
                        size_t count, bool any_state, const kh_key_info **chosen)
{
    const kh_key_info *pointers[4] = {NULL};

    for (size_t i = 0; i < count; i++) {
        pointers[i] = &infos[i];
    }
    return kh_acl_choose(identity, op, usages, pointers, count, any_state, NOW, chosen);
}

static void test_choose(void **state)
{
    kh_key_info infos[4] = {{.ref = 1, .state = KH_STATE_ENABLED, .name = "secret"},
                            {.ref = 2, .state = KH_STATE_ENABLED, .name = "www"},
                            {.ref = 3, .state = KH_STATE_ENABLED, .name = "site-a"},
                            {.ref = 4, .state = KH_STATE_DISABLED, .name = "site-b"}};
    const kh_key_info *chosen = NULL;

    (void)state;
    assert_int_equal(choose(&edge, KH_OP_SIGN, 0, infos, 4, false, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 2); /* the first enabled and permitted one */
    infos[1].state = KH_STATE_DISABLED;
    assert_int_equal(choose(&edge, KH_OP_SIGN, 0, infos, 4, false, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 3);
    infos[2].state = KH_STATE_DELETED;
    assert_int_equal(choose(&edge, KH_OP_SIGN, 0, infos, 4, false, &chosen), KH_E_DISABLED);
    assert_null(chosen);
    assert_int_equal(choose(&edge, KH_OP_PUBLIC_KEY, 0, infos, 4, true, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 2);
    assert_int_equal(choose(&edge, KH_OP_SIGN, 0, infos, 1, false, &chosen), KH_E_NOT_FOUND);
    assert_int_equal(choose(&edge, KH_OP_SIGN, 0, infos, 0, false, &chosen), KH_E_NOT_FOUND);
    assert_int_equal(choose(&edge, KH_OP_SIGN, 0, infos + 2, 1, true, &chosen),
                     KH_E_NOT_FOUND); /* deleted */
    assert_int_equal(choose(&nobody, KH_OP_SIGN, 0, infos, 4, true, &chosen), KH_E_NOT_FOUND);
    assert_int_equal(choose(NULL, KH_OP_SIGN, 0, infos, 4, false, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 1);
}

/* The same key under several names, with different usages: the one that can do it is taken. */
static void test_choose_by_usage(void **state)
{
    kh_key_info infos[4] = {{.ref = 1, .state = KH_STATE_ENABLED, .usage = KH_USAGE_SIGN, .name = "secret"},
                            {.ref = 2, .state = KH_STATE_ENABLED, .usage = KH_USAGE_DECRYPT, .name = "www"},
                            {.ref = 3, .state = KH_STATE_ENABLED, .usage = KH_USAGE_TLS_SERVER, .name = "site-a"},
                            {.ref = 4, .state = KH_STATE_DISABLED, .usage = KH_USAGE_SIGN, .name = "site-b"}};
    const kh_key_info *chosen = NULL;

    (void)state;
    assert_int_equal(choose(&edge, KH_OP_SIGN, KH_USAGE_TLS_SERVER | KH_USAGE_SIGN, infos, 4, false, &chosen),
                     KH_OK);
    assert_int_equal(chosen->ref, 3);
    assert_int_equal(choose(NULL, KH_OP_SIGN, KH_USAGE_TLS_SERVER | KH_USAGE_SIGN, infos, 4, false, &chosen),
                     KH_OK);
    assert_int_equal(chosen->ref, 1); /* root may use that one too */
    /* None that is enabled and permitted can: the first, so that the keeper names the reason. */
    assert_int_equal(choose(&edge, KH_OP_SIGN, KH_USAGE_SIGN, infos, 4, false, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 2);
    assert_int_equal(choose(&edge, KH_OP_SIGN, KH_USAGE_SIGN, infos + 3, 1, false, &chosen), KH_E_DISABLED);
}

/* Before and after its validity a key is as if it were disabled, and an older version that is valid serves. */
static void test_choose_by_validity(void **state)
{
    kh_key_info infos[2] = {{.ref = 2, .state = KH_STATE_ENABLED, .name = "www", .not_before = NOW + 1},
                            {.ref = 1, .state = KH_STATE_ENABLED, .name = "www", .expires = NOW + 1}};
    const kh_key_info *chosen = NULL;

    (void)state;
    assert_int_equal(choose(NULL, KH_OP_SIGN, 0, infos, 2, false, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 1);
    infos[0].not_before = NOW;
    assert_int_equal(choose(NULL, KH_OP_SIGN, 0, infos, 2, false, &chosen), KH_OK);
    assert_int_equal(chosen->ref, 2);
    infos[0].expires = infos[1].expires = NOW; /* the second at which it ends does not count */
    assert_int_equal(choose(NULL, KH_OP_SIGN, 0, infos, 2, false, &chosen), KH_E_DISABLED);
    assert_int_equal(choose(NULL, KH_OP_PUBLIC_KEY, 0, infos, 2, true, &chosen), KH_OK);
    assert_int_equal(choose(&nobody, KH_OP_SIGN, 0, infos, 2, false, &chosen), KH_E_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_allows), cmocka_unit_test(test_choose),
                                       cmocka_unit_test(test_choose_by_usage),
                                       cmocka_unit_test(test_choose_by_validity)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

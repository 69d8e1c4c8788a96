/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a key in the store: keys of tokens, what is intended for their objects, validity, tags, rotation and
 * retention of names, moving, and the export of all that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "locator.h"
#include "store_transfer.h"

#include <ftw.h>
#include <keyhold/storefile.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char dir[256];
static const uint8_t kek[32] = {1, 2, 3};
static kh_store *store;
static kh_touched touched[16];
static size_t touches;

static const kh_keeper_places places = {.token_count = 4,
                                        .tokens = {"t1", "p1", "p2", "p3"},
                                        .pool_count = 1,
                                        .pools = {{"pool", 2, 3, {1, 2, 3}}}};

static int remove_one(const char *name, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(name);
}

static void on_change(void *ctx, const kh_touched *one)
{
    (void)ctx;
    assert_true(touches < 16);
    touched[touches++] = *one;
}

static kh_store *open_named(const char *name, bool make)
{
    char path[400];
    uint8_t import_public[32];
    kh_store *opened = NULL;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (make) {
        assert_int_equal(kh_store_init(path, KH_KEK_FILE, kek, 32, import_public), KH_OK);
    }
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, NULL, NULL, &opened), KH_OK);
    kh_store_on_change(opened, on_change, NULL);
    return opened;
}

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "%s/keyhold-life-XXXXXX", getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    assert_non_null(mkdtemp(dir));
    store = open_named("store", true);
    touches = 0;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kh_store_close(store);
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

/* A key of a token: its public key, and the locator where its private key would be. */
static void make_material(uint8_t object, size_t blob_len, kh_material *material)
{
    kh_p11_locator locator = {.id_len = KH_P11_ID_LEN, .label = "www"};
    static uint8_t blob[KH_P11_BLOB_MAX];

    memset(locator.id, object, KH_P11_ID_LEN);
    memset(blob, object, sizeof(blob));
    assert_int_equal(kh_material_generate(KH_KEY_P256, 256, material), KH_OK);
    assert_int_equal(kh_locator_encode(&locator, blob, blob_len, material->pkcs8, &material->pkcs8_len), KH_OK);
}

static kh_result insert(const char *name, uint32_t tier, const char *place, uint8_t object, uint32_t flags,
                        kh_key_info *info)
{
    kh_material material;

    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "%s", name);
    snprintf(info->place, sizeof(info->place), "%s", place);
    info->tier = tier;
    info->usage = (flags & KH_KEY_NEW_VERSION) != 0 ? 0 : KH_USAGE_SIGN;
    info->flags = flags;
    if (tier > KH_TIER_SOFTWARE) {
        make_material(object, tier == KH_TIER_HSM_POOL ? 1200 : 0, &material);
    } else {
        assert_int_equal(kh_material_generate(KH_KEY_P256, 256, &material), KH_OK);
    }
    return kh_store_insert(store, KH_ASKER_ROOT, info, &material);
}

static void expect_report(kh_store *of, const char *wanted)
{
    kh_store_checking checking = {0};
    char text[8192];
    size_t len = 0;
    kh_result result = KH_OK;

    do {
        result = kh_store_check(of, &checking, 4, text, sizeof(text) - 1, &len);
    } while (result == KH_AGAIN);
    text[len] = '\0';
    assert_int_equal(result, KH_OK);
    assert_string_equal(text, wanted);
}

/* ---- Locators ------------------------------------------------------------------------------------------ */

static void test_locators(void **state)
{
    static const struct {
        uint8_t id_len;
        const char *label;
        size_t blob_len;
    } cases[] = {{16, "", 0}, {0, "a label", 0}, {64, "www", KH_P11_BLOB_MAX}, {1, "x", 1}};
    static uint8_t blob[KH_P11_BLOB_MAX + 1];
    uint8_t bytes[KH_LOCATOR_MAX + 1];
    kh_p11_locator locator, got;
    const uint8_t *got_blob = NULL;
    size_t len = 0, got_len = 0;

    (void)state;
    memset(blob, 0xb1, sizeof(blob));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memset(&locator, 0, sizeof(locator));
        memset(locator.id, 0xa0, cases[i].id_len);
        locator.id_len = cases[i].id_len;
        strcpy(locator.label, cases[i].label);
        assert_int_equal(kh_locator_encode(&locator, blob, cases[i].blob_len, bytes, &len), KH_OK);
        assert_true(len <= KH_LOCATOR_MAX);
        assert_int_equal(kh_locator_parse(bytes, len, &got, &got_blob, &got_len), KH_OK);
        assert_memory_equal(&got, &locator, sizeof(got));
        assert_int_equal(got_len, cases[i].blob_len);
        assert_int_equal(got_blob != NULL, got_len > 0);
        for (size_t cut = 0; cut < len; cut++) {
            assert_int_equal(kh_locator_parse(bytes, cut, &got, &got_blob, &got_len), KH_E_DAMAGED);
        }
        bytes[len] = 0;
        assert_int_equal(kh_locator_parse(bytes, len + 1, &got, &got_blob, &got_len), KH_E_DAMAGED);
    }
    memset(&locator, 0, sizeof(locator));
    assert_int_equal(kh_locator_encode(&locator, NULL, 0, bytes, &len), KH_E_INVALID);
    locator.id_len = 65;
    assert_int_equal(kh_locator_encode(&locator, NULL, 0, bytes, &len), KH_E_INVALID);
    locator.id_len = 1;
    assert_int_equal(kh_locator_encode(&locator, blob, sizeof(blob), bytes, &len), KH_E_TOO_LARGE);
}

/* ---- Keys of tokens ------------------------------------------------------------------------------------ */

static void test_token_rows(void **state)
{
    kh_key_info info, got;
    uint8_t bytes[KH_IMPORT_PKCS8_MAX];
    const uint8_t *blob = NULL;
    kh_p11_locator locator;
    size_t len = 0, blob_len = 0, count = 0;

    (void)state;
    assert_int_equal(insert("www", KH_TIER_HSM, "t1", 1, 0, &info), KH_OK);
    assert_int_equal(insert("api", KH_TIER_HSM_POOL, "pool", 2, 0, &info), KH_OK);
    assert_int_equal(kh_store_get(store, info.ref, &got, bytes, &len), KH_OK);
    assert_int_equal(got.tier, KH_TIER_HSM_POOL);
    assert_string_equal(got.place, "pool");
    assert_int_equal(kh_locator_parse(bytes, len, &locator, &blob, &blob_len), KH_OK);
    assert_int_equal(blob_len, 1200);
    assert_int_equal(locator.id[0], 2);
    /* A version that does not say lives where the one before lives. */
    memset(&got, 0, sizeof(got));
    strcpy(got.name, "www");
    got.flags = KH_KEY_NEW_VERSION;
    assert_int_equal(kh_store_may_insert(store, KH_ASKER_FRONT, &got), KH_OK);
    assert_int_equal(got.tier, KH_TIER_HSM);
    assert_string_equal(got.place, "t1");
    assert_int_equal(got.version, 2);
    /* The front does not say that the next one lives elsewhere; root may. */
    memset(&got, 0, sizeof(got));
    strcpy(got.name, "www");
    got.flags = KH_KEY_NEW_VERSION;
    got.tier = KH_TIER_SOFTWARE;
    assert_int_equal(kh_store_may_insert(store, KH_ASKER_FRONT, &got), KH_E_FORBIDDEN);
    got.tier = KH_TIER_HSM;
    strcpy(got.place, "t2");
    assert_int_equal(kh_store_may_insert(store, KH_ASKER_FRONT, &got), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_may_insert(store, KH_ASKER_ROOT, &got), KH_OK);
    /* What does not fit together. */
    assert_int_equal(insert("none", KH_TIER_HSM, "", 3, 0, &info), KH_E_INVALID);
    assert_int_equal(insert("none", KH_TIER_SOFTWARE, "t1", 3, 0, &info), KH_E_INVALID);
    assert_int_equal(insert("none", 4, "t1", 3, 0, &info), KH_E_INVALID);
    assert_int_equal(kh_store_find_name(store, "none", 4, 0, &info, 1, &count), KH_E_NOT_FOUND);
    expect_report(store, "ok 2 keys\n");
}

/* An intent lives until its key is there, or its object gone. */
static void test_intents(void **state)
{
    uint8_t object[KH_P11_ID_LEN] = {0}, other[KH_P11_ID_LEN];
    bool destroy = true;
    kh_key_info info;

    (void)state;
    memset(object, 7, sizeof(object));
    memset(other, 8, sizeof(other));
    assert_int_equal(kh_store_intend(store, "t1", object, false), KH_OK);
    assert_int_equal(kh_store_intend(store, "t1", other, false), KH_OK);
    kh_store_close(store);
    store = open_named("store", false); /* as after a crash */
    memset(object, 0, sizeof(object));
    assert_int_equal(kh_store_intent_next(store, "t1", object, &destroy), KH_OK);
    assert_int_equal(object[0], 7);
    assert_false(destroy);
    assert_int_equal(insert("www", KH_TIER_HSM, "t1", 7, 0, &info), KH_OK);
    memset(object, 0, sizeof(object));
    assert_int_equal(kh_store_intent_next(store, "t1", object, &destroy), KH_OK);
    assert_int_equal(object[0], 8);
    assert_int_equal(kh_store_intent_next(store, "t1", object, &destroy), KH_E_NOT_FOUND);
    assert_int_equal(kh_store_intent_done(store, "t1", other), KH_OK);
    memset(object, 0, sizeof(object));
    assert_int_equal(kh_store_intent_next(store, "t1", object, &destroy), KH_E_NOT_FOUND);
}

static unsigned intents_of(const char *token, uint8_t object)
{
    uint8_t at[KH_P11_ID_LEN] = {0};
    bool destroy = false;
    unsigned found = 0;

    while (kh_store_intent_next(store, token, at, &destroy) == KH_OK) {
        found += at[0] == object && destroy;
    }
    return found;
}

static void test_purge(void **state)
{
    kh_key_info info;

    (void)state;
    assert_int_equal(insert("www", KH_TIER_HSM, "t1", 1, 0, &info), KH_OK);
    assert_int_equal(insert("www", 0, "", 0, KH_KEY_NEW_VERSION, &info), KH_E_INVALID); /* no locator for a token */
    assert_int_equal(insert("api", KH_TIER_HSM_POOL, "pool", 2, 0, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(touches, 1);
    assert_int_equal(touched[0].tier, KH_TIER_HSM);
    assert_string_equal(touched[0].place, "t1");
    assert_int_equal(kh_store_purge(store, "www", &places, 0), KH_OK);
    assert_int_equal(intents_of("t1", 1), 1);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "api", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "api", &places, 0), KH_OK);
    assert_int_equal(intents_of("p1", 2) + intents_of("p2", 2) + intents_of("p3", 2), 3);
}

/* What was not made here is not destroyed from here. */
static void test_adopted(void **state)
{
    kh_key_info info = {.name = "theirs", .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"};
    kh_material material;

    (void)state;
    make_material(9, 0, &material);
    material.adopted = true;
    assert_int_equal(kh_store_insert(store, KH_ASKER_ROOT, &info, &material), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "theirs", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "theirs", &places, 0), KH_OK);
    assert_int_equal(intents_of("t1", 9), 0);
}

static void test_move(void **state)
{
    kh_key_info info, to = {.tier = KH_TIER_HSM, .place = "t1"}, moved;
    kh_material material;
    uint8_t bytes[KH_IMPORT_PKCS8_MAX];
    size_t len = 0;

    (void)state;
    assert_int_equal(insert("www", 0, "", 0, 0, &info), KH_OK);
    assert_int_equal(info.tier, KH_TIER_SOFTWARE);
    make_material(5, 0, &material);
    assert_int_equal(kh_store_move(store, info.ref, &to, &material, &moved), KH_OK);
    assert_int_equal(moved.tier, KH_TIER_HSM);
    assert_memory_equal(moved.id, info.id, sizeof(info.id));
    assert_int_equal(kh_store_get(store, info.ref, &moved, bytes, &len), KH_OK);
    assert_int_equal(len, material.pkcs8_len);
    assert_int_equal(touches, 1);
    assert_int_equal(touched[0].tier, KH_TIER_SOFTWARE); /* where it was */
    assert_int_equal(kh_store_move(store, info.ref, &to, &material, &moved), KH_E_ORDER);
    expect_report(store, "ok 1 keys\n");
}

/* ---- Names --------------------------------------------------------------------------------------------- */

static kh_result set(const char *name, uint32_t what, const char *tags, uint32_t days, uint64_t not_before,
                     uint64_t expires, kh_key_info *info)
{
    kh_key_change change = {.what = what, .not_before = not_before, .expires = expires};

    snprintf(change.policy.name, sizeof(change.policy.name), "%s", name);
    snprintf(change.policy.tags, sizeof(change.policy.tags), "%s", tags);
    change.policy.rotate_days = change.policy.retain_days = days;
    return kh_store_set(store, &change, info);
}

static void test_names(void **state)
{
    kh_name_policy policy;
    kh_key_info info;
    char name[KH_NAME_MAX + 1] = "", big[KH_TAGS_MAX];

    (void)state;
    assert_int_equal(set("www", KH_CHANGE_TAGS, "team=edge\n", 0, 0, 0, &info), KH_E_NOT_FOUND);
    assert_int_equal(insert("www", 0, "", 0, 0, &info), KH_OK);
    assert_int_equal(set("www", KH_CHANGE_TAGS, "team=edge\ncolour=blue and green\n", 0, 0, 0, &info), KH_OK);
    assert_int_equal(set("www", KH_CHANGE_TAGS | KH_CHANGE_ROTATE, "team=core\n", 90, 0, 0, &info), KH_OK);
    kh_store_close(store);
    store = open_named("store", false);
    assert_int_equal(kh_store_policy(store, "www", &policy), KH_OK);
    assert_string_equal(policy.tags, "colour=blue and green\nteam=core\n");
    assert_int_equal(policy.rotate_days, 90);
    assert_int_equal(set("www", KH_CHANGE_TAGS, "colour=\n", 0, 0, 0, &info), KH_OK);
    assert_int_equal(kh_store_policy(store, "www", &policy), KH_OK);
    assert_string_equal(policy.tags, "team=core\n");
    assert_int_equal(set("www", KH_CHANGE_TAGS, "no equals\n", 0, 0, 0, &info), KH_E_INVALID);
    assert_int_equal(set("www", KH_CHANGE_TAGS, "-x=1\n", 0, 0, 0, &info), KH_E_INVALID);
    assert_int_equal(set("www", KH_CHANGE_TAGS, "x=\x01\n", 0, 0, 0, &info), KH_E_INVALID);
    assert_true(kh_tags_valid("x=\xc3\xbc \xe2\x82\xac \xf0\x9f\x94\x91 \xf4\x8f\xbf\xbf\ny=\n"));
    assert_false(kh_tags_valid("x=\xff\n") || kh_tags_valid("x=\xc3\n") || kh_tags_valid("x=\xe2\x82\n") ||
                 kh_tags_valid("x=\xf0\x9f\x94\n") || kh_tags_valid("x=\x80\n") || kh_tags_valid("x=\xc3z\n"));
    assert_false(kh_tags_valid("x=\xc1\x81\n") || kh_tags_valid("x=\xe0\x80\x81\n") || kh_tags_valid("x=\xed\xa0\x80\n") ||
                 kh_tags_valid("x=\xf4\x90\x80\x80\n") || kh_tags_valid("x=\xc2\x9b\n") || kh_tags_valid("x=1"));
    assert_int_equal(set("www", KH_CHANGE_TAGS, "x=unfinished", 0, 0, 0, &info), KH_E_INVALID);
    memset(big, 'y', sizeof(big));
    memcpy(big, "b=", 2);
    strcpy(big + sizeof(big) - 8, "\n");
    assert_int_equal(set("www", KH_CHANGE_TAGS, big, 0, 0, 0, &info), KH_E_TOO_LARGE);
    assert_int_equal(set("www", KH_CHANGE_ROTATE, "", KH_DAYS_MAX + 1, 0, 0, &info), KH_E_INVALID);
    assert_int_equal(set("www", 0x80, "", 0, 0, 0, &info), KH_E_INVALID);
    assert_int_equal(set("", KH_CHANGE_TAGS, "a=b\n", 0, 0, 0, &info), KH_E_INVALID);
    assert_int_equal(kh_store_next_named(store, name), KH_OK);
    assert_string_equal(name, "www");
    assert_int_equal(kh_store_next_named(store, name), KH_E_NOT_FOUND);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "www", NULL, 0), KH_OK);
    name[0] = '\0';
    assert_int_equal(kh_store_next_named(store, name), KH_E_NOT_FOUND);
}

static void test_retention(void **state)
{
    const uint64_t now = (uint64_t)time(NULL), day = 86400;
    kh_key_info info;

    (void)state;
    assert_int_equal(insert("www", 0, "", 0, 0, &info), KH_OK);
    assert_int_equal(insert("api", 0, "", 0, 0, &info), KH_OK);
    assert_int_equal(set("www", KH_CHANGE_RETAIN, "", 30, 0, 0, &info), KH_OK);
    assert_int_equal(set("www", KH_CHANGE_RETAIN, "", 29, 0, 0, &info), KH_E_FORBIDDEN);
    assert_int_equal(set("", KH_CHANGE_RETAIN, "", 7, 0, 0, &info), KH_OK);
    assert_int_equal(set("", KH_CHANGE_RETAIN, "", 6, 0, 0, &info), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_purge(store, "www", NULL, now + 1000 * day), KH_E_ORDER);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "api", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "www", NULL, now + 29 * day), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_purge(store, "api", NULL, now + 6 * day), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_recover(store, "www"), KH_OK);
    assert_int_equal(kh_store_purge(store, "www", NULL, now + 31 * day), KH_E_ORDER);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "www", NULL, now + 31 * day), KH_OK);
    assert_int_equal(kh_store_purge(store, "api", NULL, now + 8 * day), KH_OK);
}

static void test_validity(void **state)
{
    kh_key_info info, got;

    (void)state;
    assert_int_equal(insert("www", 0, "", 0, 0, &info), KH_OK);
    assert_int_equal(set("www", KH_CHANGE_EXPIRES, "", 0, 0, 5000, &got), KH_OK);
    assert_int_equal(got.expires, 5000);
    assert_int_equal(touches, 1);
    assert_int_equal(set("www", KH_CHANGE_NOT_BEFORE, "", 0, 5000, 0, &got), KH_E_INVALID);
    assert_int_equal(set("www", KH_CHANGE_NOT_BEFORE, "", 0, 4999, 0, &got), KH_OK);
    assert_int_equal(kh_store_get(store, info.ref, &got, NULL, NULL), KH_OK);
    assert_int_equal(got.not_before, 4999);
    assert_int_equal(got.expires, 5000);
    assert_int_equal(set("www", KH_CHANGE_NOT_BEFORE | KH_CHANGE_EXPIRES, "", 0, 0, 0, &got), KH_OK);
    assert_int_equal(got.expires, 0);
    expect_report(store, "ok 1 keys\n");
}

/* ---- Exports ------------------------------------------------------------------------------------------- */

static uint8_t file[64 * 1024];
static size_t file_len;

static bool write_file(void *ctx, uint64_t at, const uint8_t *data, size_t len)
{
    (void)ctx;
    assert_true(at + len <= sizeof(file));
    memcpy(file + at, data, len);
    file_len = at + len;
    return true;
}

static bool read_file(void *ctx, uint64_t at, uint8_t *data, size_t len)
{
    (void)ctx;
    assert_true(at + len <= file_len);
    memcpy(data, file + at, len);
    return true;
}

static kh_result run(kh_store_transfer *transfer, kh_store_report *report)
{
    kh_result result = KH_OK;

    do {
        result = kh_store_transfer_step(transfer, 2);
    } while (result == KH_AGAIN);
    kh_store_transfer_report(transfer, report);
    kh_store_transfer_free(transfer);
    return result;
}

static kh_result bring_in(kh_store *to, kh_store_report *report)
{
    kh_store_transfer *transfer = NULL;

    assert_int_equal(kh_store_import_new(to, read_file, NULL, file_len, NULL, false, &transfer), KH_OK);
    return run(transfer, report);
}

/* T9: a backup of keys of both kinds, each byte changed and each length cut, brings nothing in. */
static void test_t9_backup(void **state)
{
    kh_key_info info;
    kh_store_transfer *transfer = NULL;
    kh_store_report report;
    kh_store *to = open_named("to", true);
    uint64_t count = 0;
    size_t whole = 0;
    unsigned tries = 0;

    (void)state;
    assert_int_equal(insert("pooled", KH_TIER_HSM_POOL, "pool", 2, 0, &info), KH_OK);
    assert_int_equal(insert("single", KH_TIER_HSM, "t1", 1, 0, &info), KH_OK);
    assert_int_equal(set("single", KH_CHANGE_EXPIRES, "", 0, 0, UINT64_C(5000000000), &info), KH_OK);
    assert_int_equal(kh_store_export_new(store, "", 0, write_file, NULL, &transfer), KH_OK);
    assert_int_equal(run(transfer, &report), KH_OK);
    whole = file_len;
    for (size_t at = 0; at < whole; at++, tries++) {
        file[at] ^= 0x20;
        assert_int_not_equal(bring_in(to, &report), KH_OK);
        file[at] ^= 0x20;
        file_len = at;
        assert_int_not_equal(bring_in(to, &report), KH_OK);
        file_len = whole;
    }
    assert_int_equal(kh_store_count(to, &count), KH_OK);
    assert_int_equal(count, 0);
    assert_int_equal(bring_in(to, &report), KH_OK);
    assert_int_equal(report.stored, 2);
    expect_report(to, "ok 2 keys\n");
    assert_int_equal(kh_store_find_name(to, "single", 6, 0, &info, 1, &(size_t){0}), KH_OK);
    assert_int_equal(info.tier, KH_TIER_HSM);
    assert_string_equal(info.place, "t1");
    assert_int_equal(info.expires, UINT64_C(5000000000));
    kh_store_close(to);
    print_message("T9: %u bytes of a backup, each changed and cut before: refused, nothing stored\n", tries);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_locators),
        cmocka_unit_test_setup_teardown(test_token_rows, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_intents, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_purge, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_adopted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_move, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_retention, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_validity, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_t9_backup, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Export and import of a store's keys. Whatever is changed in an export file, each byte and each length, is
 * refused, and nothing of it is stored.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "store_transfer.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[256];
static const uint8_t kek[32] = {1, 2, 3};
static kh_store *from, *to;

/* ---- A file in memory ---------------------------------------------------------------------------------- */

typedef struct file {
    uint8_t bytes[256 * 1024];
    size_t len;
} file;

static file exported, changed;
static size_t full_at; /* the disk; 0: never */

static bool write_file(void *ctx, uint64_t at, const uint8_t *data, size_t len)
{
    file *to_file = ctx;

    assert_int_equal(at, to_file->len);
    if (at + len > sizeof(to_file->bytes) || (full_at > 0 && at + len > full_at)) {
        return false;
    }
    memcpy(to_file->bytes + at, data, len);
    to_file->len += len;
    return true;
}

static bool read_file(void *ctx, uint64_t at, uint8_t *data, size_t len)
{
    const file *of = ctx;

    assert_true(at <= of->len && len <= of->len - at); /* never beyond what it was told */
    memcpy(data, of->bytes + at, len);
    return true;
}

/* ---- Stores -------------------------------------------------------------------------------------------- */

static int remove_one(const char *name, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(name);
}

static kh_store *make_store(const char *name, kh_kek_kind kind, const uint8_t *secret, size_t len)
{
    char path[400];
    uint8_t import_public[32];
    kh_store *store = NULL;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(kh_store_init(path, kind, secret, len, import_public), KH_OK);
    assert_int_equal(kh_store_open(path, kind, secret, len, NULL, NULL, &store), KH_OK);
    return store;
}

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "%s/keyhold-transfer-XXXXXX",
             getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    assert_non_null(mkdtemp(dir));
    from = make_store("from", KH_KEK_FILE, kek, 32);
    to = make_store("to", KH_KEK_FILE, kek, 32);
    full_at = 0;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kh_store_close(from);
    kh_store_close(to);
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static kh_key_info insert(kh_store *store, const char *name, kh_key_type type, uint32_t usage, uint32_t flags)
{
    kh_key_info info = {.usage = usage, .flags = flags};
    kh_material material;

    snprintf(info.name, sizeof(info.name), "%s", name);
    assert_int_equal(kh_material_generate(type, type == KH_KEY_RSA ? 2048 : 0, &material), KH_OK);
    assert_int_equal(kh_store_insert(store, KH_ASKER_ROOT, &info, &material), KH_OK);
    return info;
}

static uint64_t count_of(kh_store *store)
{
    uint64_t count = 0;

    assert_int_equal(kh_store_count(store, &count), KH_OK);
    return count;
}

static kh_result run_out(kh_store *store, const char *globs, size_t len, kh_store_report *report)
{
    kh_store_transfer *transfer = NULL;
    kh_result result = KH_OK;

    exported.len = 0;
    result = kh_store_export_new(store, globs, len, write_file, &exported, &transfer);
    if (result == KH_OK) {
        do {
            result = kh_store_transfer_step(transfer, 3);
        } while (result == KH_AGAIN);
        kh_store_transfer_report(transfer, report);
    }
    kh_store_transfer_free(transfer);
    return result;
}

static char why[KH_TRANSFER_WHY_MAX];

static kh_result run_in(kh_store *store, file *of, const uint8_t *key, bool purged, kh_store_report *report)
{
    kh_store_transfer *transfer = NULL;
    kh_result result = kh_store_import_new(store, read_file, of, of->len, key, purged, &transfer);

    assert_int_equal(result, KH_OK);
    do {
        result = kh_store_transfer_step(transfer, 3);
    } while (result == KH_AGAIN);
    kh_store_transfer_report(transfer, report);
    snprintf(why, sizeof(why), "%s", kh_store_transfer_why(transfer));
    kh_store_transfer_free(transfer);
    return result;
}

/* The same but for the number of the row; the private key, too. */
static void expect_same(const char *name, uint32_t version)
{
    kh_key_info a, b;
    uint8_t pkcs8[2][KH_IMPORT_PKCS8_MAX];
    size_t found = 0, len[2] = {0};

    assert_int_equal(kh_store_find_name(from, name, strlen(name), version, &a, 1, &found), KH_OK);
    assert_int_equal(kh_store_find_name(to, name, strlen(name), version, &b, 1, &found), KH_OK);
    assert_int_equal(kh_store_get(from, a.ref, &a, pkcs8[0], &len[0]), KH_OK);
    assert_int_equal(kh_store_get(to, b.ref, &b, pkcs8[1], &len[1]), KH_OK);
    a.ref = b.ref = 0;
    assert_memory_equal(&a, &b, sizeof(a));
    assert_int_equal(len[0], len[1]);
    assert_memory_equal(pkcs8[0], pkcs8[1], len[0]);
}

/* ---- What it does -------------------------------------------------------------------------------------- */

static void test_all_kinds(void **state)
{
    kh_store_report report = {0};
    kh_key_info info;

    (void)state;
    insert(to, "own", KH_KEY_P256, KH_USAGE_SIGN, 0); /* the numbers of the rows differ */
    insert(from, "www", KH_KEY_P256, KH_USAGE_TLS_SERVER, 0);
    insert(from, "www", KH_KEY_RSA, KH_USAGE_TLS_SERVER, KH_KEY_NEW_VERSION);
    insert(from, "ed", KH_KEY_ED25519, KH_USAGE_SIGN, 0);
    insert(from, "p384", KH_KEY_P384, KH_USAGE_SIGN, 0);
    insert(from, "p521", KH_KEY_P521, KH_USAGE_TLS_CLIENT, 0);
    insert(from, "off", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "gone", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(kh_store_set_state(from, KH_ASKER_ROOT, "off", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_set_state(from, KH_ASKER_ROOT, "gone", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_set_state(from, KH_ASKER_ROOT, "gone", 0, 3, &info), KH_OK);
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    assert_int_equal(report.keys, 7);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_OK);
    assert_int_equal(report.keys, 7);
    assert_int_equal(report.stored, 7);
    assert_int_equal(count_of(to), 8);
    static const struct {
        const char *name;
        uint32_t version;
    } keys[] = {{"www", 1}, {"www", 2}, {"ed", 1}, {"p384", 1}, {"p521", 1}, {"off", 1}, {"gone", 1}};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        expect_same(keys[i].name, keys[i].version);
    }
    /* What root disabled stays root's, and what was disabled before it was deleted is so afterwards. */
    assert_int_equal(kh_store_set_state(to, KH_ASKER_FRONT, "off", 0, 1, &info), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_recover(to, "gone"), KH_OK);
    assert_int_equal(kh_store_set_state(to, KH_ASKER_FRONT, "gone", 0, 1, &info), KH_E_FORBIDDEN);
    /* Again: nothing happens, and what was changed here stays so. */
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_OK);
    assert_int_equal(report.stored, 0);
    assert_int_equal(report.present, 7);
    assert_int_equal(count_of(to), 8);
    /* Back where it came from, too. */
    assert_int_equal(run_in(from, &exported, NULL, false, &report), KH_OK);
    assert_int_equal(report.present, 7);
}

static void test_globs(void **state)
{
    static const char two[] = "www.*\0shop", none[] = "nothing";
    kh_store_report report = {0};

    (void)state;
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK); /* an empty store */
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_OK);
    assert_int_equal(report.keys, 0);
    insert(from, "www.a", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "www.b", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "shop", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "shopping", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(run_out(from, two, sizeof(two), &report), KH_OK);
    assert_int_equal(report.keys, 3);
    assert_int_equal(run_out(from, none, sizeof(none), &report), KH_OK);
    assert_int_equal(report.keys, 0);
    assert_int_equal(run_out(from, two, sizeof(two) - 1, &report), KH_E_INVALID); /* no zero at the end */
}

/* What speaks against one key speaks against all, before anything is stored. */
static void test_conflicts(void **state)
{
    kh_store_report report = {0};
    kh_key_info info;

    (void)state;
    insert(from, "a", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "b", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "b", KH_KEY_P256, KH_USAGE_SIGN, KH_KEY_NEW_VERSION);
    insert(from, "z", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    insert(to, "z", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_E_EXISTS);
    assert_non_null(strstr(why, "z/1"));
    assert_int_equal(report.stored, 0);
    assert_int_equal(count_of(to), 1);
    assert_int_equal(kh_store_set_state(to, KH_ASKER_ROOT, "z", 0, 3, &info), KH_OK);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_E_EXISTS);
    assert_int_equal(kh_store_purge(to, "z", NULL, 0), KH_OK);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_OK);
    assert_int_equal(report.stored, 4);

    /* A key that was purged here comes back only if root wants it. */
    assert_int_equal(kh_store_set_state(to, KH_ASKER_ROOT, "b", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(to, "b", NULL, 0), KH_OK);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_E_FORBIDDEN);
    assert_non_null(strstr(why, "b/1"));
    assert_non_null(strstr(why, "--allow-purged"));
    assert_int_equal(count_of(to), 2);
    assert_int_equal(run_in(to, &exported, NULL, true, &report), KH_OK);
    assert_int_equal(report.stored, 2);
    assert_int_equal(report.present, 2);

    /* All versions of a name have one usage. */
    assert_int_equal(kh_store_set_state(to, KH_ASKER_ROOT, "b", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(to, "b", NULL, 0), KH_OK);
    for (int i = 0; i < 3; i++) { /* the version that comes is not there */
        insert(to, "b", KH_KEY_P256, KH_USAGE_TLS_SERVER, i > 0 ? KH_KEY_NEW_VERSION : 0);
    }
    assert_int_equal(run_in(to, &exported, NULL, true, &report), KH_E_EXISTS);
    insert(from, "u", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "u", KH_KEY_P256, KH_USAGE_SIGN, KH_KEY_NEW_VERSION);
    assert_int_equal(run_out(from, "u", 2, &report), KH_OK);
    kh_store *third = make_store("third", KH_KEK_FILE, kek, 32);
    kh_store_report ignored = {0};
    assert_int_equal(run_in(third, &exported, NULL, false, &ignored), KH_OK);
    kh_store_close(third);
    insert(to, "u", KH_KEY_P256, KH_USAGE_TLS_SERVER, 0);
    assert_int_equal(kh_store_set_state(to, KH_ASKER_ROOT, "u", 0, 3, &info), KH_OK);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_E_EXISTS);
}

/* Between the passes somebody else makes a key of that name: what was stored stays, and it is said. */
static void test_conflict_meanwhile(void **state)
{
    kh_store_transfer *transfer = NULL;
    kh_store_report report = {0};
    kh_result result = KH_AGAIN;

    (void)state;
    for (char name[2] = "a"; name[0] <= 'h'; name[0]++) {
        insert(from, name, KH_KEY_ED25519, KH_USAGE_SIGN, 0);
    }
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    assert_int_equal(kh_store_import_new(to, read_file, &exported, exported.len, NULL, false, &transfer),
                     KH_OK);
    while (result == KH_AGAIN && report.stored == 0) {
        result = kh_store_transfer_step(transfer, 3);
        kh_store_transfer_report(transfer, &report);
    }
    assert_int_equal(report.stored, 3);
    assert_int_equal(count_of(to), 3);
    insert(to, "h", KH_KEY_P256, KH_USAGE_SIGN, 0);
    while (result == KH_AGAIN) {
        result = kh_store_transfer_step(transfer, 3);
    }
    assert_int_equal(result, KH_E_EXISTS);
    assert_non_null(strstr(kh_store_transfer_why(transfer), "h/1"));
    kh_store_transfer_report(transfer, &report);
    assert_int_equal(report.stored, 6); /* the slice that failed is undone */
    assert_int_equal(count_of(to), 7);
    kh_store_transfer_free(transfer);
}

static void test_wrong_kek(void **state)
{
    static const uint8_t other[32] = {9}, passphrase[] = "correct horse";
    uint8_t key[32], derived[KH_KEK_LEN];
    kh_transfer_header header;
    kh_store_report report = {0};
    kh_store *stranger = make_store("stranger", KH_KEK_FILE, other, 32);
    kh_store *asked = make_store("asked", KH_KEK_PASSPHRASE, passphrase, 13);
    kh_store *again = make_store("again", KH_KEK_PASSPHRASE, passphrase, 13);

    (void)state;
    insert(from, "www", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(asked, "shop", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    assert_int_equal(run_in(stranger, &exported, NULL, false, &report), KH_E_PASSPHRASE);
    assert_non_null(strstr(why, "another key-encryption key"));
    assert_int_equal(count_of(stranger), 0);
    /* Root has the other one. */
    assert_int_equal(kh_kek_transfer_key(kek, key), KH_OK);
    assert_int_equal(run_in(stranger, &exported, key, false, &report), KH_OK);
    assert_int_equal(report.stored, 1);
    /* Each store makes another KEK of the same passphrase: the file says how its own was made. */
    assert_int_equal(run_out(asked, NULL, 0, &report), KH_OK);
    assert_int_equal(run_in(again, &exported, NULL, false, &report), KH_E_PASSPHRASE);
    assert_int_equal(kh_transfer_header_parse(exported.bytes, &header), KH_OK);
    assert_int_equal(header.kek[0], KH_KEK_PASSPHRASE);
    assert_int_equal(kh_kek_derive(KH_KEK_PASSPHRASE, passphrase, 13, header.kek + 1, derived), KH_OK);
    assert_int_equal(kh_kek_transfer_key(derived, key), KH_OK);
    assert_int_equal(run_in(again, &exported, key, false, &report), KH_OK);
    assert_int_equal(report.stored, 1);
    kh_store_close(stranger);
    kh_store_close(asked);
    kh_store_close(again);
}

/* ---- Damage -------------------------------------------------------------------------------------------- */

static void expect_refused(void)
{
    kh_store_report report = {0};
    kh_result result = run_in(to, &changed, NULL, true, &report);

    assert_true(result == KH_E_DAMAGED || result == KH_E_MALFORMED || result == KH_E_VERSION);
    assert_true(why[0] != '\0');
    assert_int_equal(report.stored, 0);
    assert_int_equal(count_of(to), 0);
}

static void test_each_byte(void **state)
{
    kh_store_report report = {0};

    (void)state;
    insert(from, "www", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "www", KH_KEY_ED25519, KH_USAGE_SIGN, KH_KEY_NEW_VERSION);
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    for (size_t at = 0; at < exported.len; at++) {
        changed = exported;
        changed.bytes[at] ^= (uint8_t)(1u << at % 8);
        expect_refused();
    }
    for (size_t len = 0; len < exported.len; len++) {
        changed = exported;
        changed.len = len;
        expect_refused();
    }
    changed = exported;
    changed.bytes[changed.len++] = 0;
    expect_refused();
    print_message("%zu flipped bytes and %zu lengths refused\n", exported.len, exported.len);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_OK);
    assert_int_equal(report.stored, 2);
}

static size_t entry_len(const file *of, size_t at)
{
    const uint8_t *b = of->bytes + at;

    return 4 + ((size_t)b[0] << 24 | (size_t)b[1] << 16 | (size_t)b[2] << 8 | b[3]);
}

/* Whole entries that move, come twice, are left out, or come from another file of the same store. */
static void test_entries(void **state)
{
    static file other;
    const size_t first = KH_TRANSFER_HEADER_LEN;
    kh_store_report report = {0};

    (void)state;
    insert(from, "a", KH_KEY_P256, KH_USAGE_SIGN, 0);
    insert(from, "b", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    other = exported;
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    const size_t a = entry_len(&exported, first), b = entry_len(&exported, first + a);
    changed = exported; /* moved */
    memcpy(changed.bytes + first, exported.bytes + first + a, b);
    memcpy(changed.bytes + first + b, exported.bytes + first, a);
    expect_refused();
    changed = exported; /* left out: the first, the last */
    memmove(changed.bytes + first, changed.bytes + first + a, changed.len - first - a);
    changed.len -= a;
    expect_refused();
    changed = exported;
    memmove(changed.bytes + first + a, changed.bytes + first + a + b, changed.len - first - a - b);
    changed.len -= b;
    expect_refused();
    changed = exported; /* twice */
    memmove(changed.bytes + first + a, changed.bytes + first, changed.len - first);
    changed.len += a;
    expect_refused();
    changed = exported; /* of another file */
    memcpy(changed.bytes + first, other.bytes + first, entry_len(&other, first));
    expect_refused();
    changed = exported; /* longer than anything can be, longer than the file */
    static const uint8_t lengths[][4] = {
        {0xff, 0xff, 0xff, 0xff}, {0, 0, 0x40, 0}, {0, 0, 0, 1}, {0, 0, 0, 40}};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        memcpy(changed.bytes + first, lengths[i], 4);
        expect_refused();
    }
}

/* Of a format that is not known yet: said so. */
static void test_newer(void **state)
{
    kh_store_report report = {0};

    (void)state;
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    exported.bytes[15]++;
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_E_VERSION);
    assert_non_null(strstr(why, "newer Keyhold"));
    memcpy(exported.bytes, "SQLite format 3", 16);
    assert_int_equal(run_in(to, &exported, NULL, false, &report), KH_E_MALFORMED);
}

static void test_full(void **state)
{
    kh_store_report report = {0};

    (void)state;
    insert(from, "www", KH_KEY_P256, KH_USAGE_SIGN, 0);
    assert_int_equal(run_out(from, NULL, 0, &report), KH_OK);
    for (size_t len = exported.len, at = 1; at < len; at += 13) {
        full_at = at;
        assert_int_equal(run_out(from, NULL, 0, &report), KH_E_IO);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_all_kinds, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_globs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_conflicts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_conflict_meanwhile, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_kek, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_byte, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_entries, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_newer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

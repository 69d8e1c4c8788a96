/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store by itself. M14: a flipped byte anywhere in a sealed row is refused by name, in the columns and in
 * the file; a full disk refuses changes by name and lets keys be read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "store.h"

#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[256], path[400];
static uint8_t kek[32] = {1, 2, 3};
static char last_log[512];
static kh_material material; /* one P-256 key, used again and again */

static void log_line(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    if (level <= KH_LOG_WARN) {
        snprintf(last_log, sizeof(last_log), "%s", text);
    }
}

static void make_dir(void)
{
    const char *tmp = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";

    snprintf(dir, sizeof(dir), "%s/keyhold-store-XXXXXX", tmp);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/store", dir);
}

static int remove_one(const char *name, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(name);
}

static int set_up(void **state)
{
    uint8_t import_public[32];

    (void)state;
    make_dir();
    assert_int_equal(kh_store_init(path, KH_KEK_FILE, kek, 32, import_public), KH_OK);
    return 0;
}

static int tear_down(void **state)
{
    char small[300];

    (void)state;
    snprintf(small, sizeof(small), "%s/small", dir);
    umount2(small, MNT_DETACH); /* after a test that failed */
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static kh_store *open_store(void)
{
    kh_store *store = NULL;

    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_OK);
    return store;
}

static kh_result insert(kh_store *store, const char *name, uint32_t flags, kh_key_info *info)
{
    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "%s", name);
    info->usage = KH_USAGE_SIGN;
    info->flags = flags;
    return kh_store_insert(store, KH_ASKER_FRONT, info, &material);
}

/* ---- Opening ------------------------------------------------------------------------------------------- */

static void test_open(void **state)
{
    uint8_t public_key[32], wrong[32] = {9};
    kh_store *store = open_store(), *second = NULL;
    struct stat st;

    (void)state;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    memcpy(public_key, kh_store_import_public(store), 32);
    assert_int_equal(kh_store_init(path, KH_KEK_FILE, kek, 32, public_key), KH_E_EXISTS);
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &second), KH_E_LOCKED);
    assert_null(second);
    kh_store_close(store);
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, wrong, 32, log_line, NULL, &second), KH_E_PASSPHRASE);
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 31, log_line, NULL, &second), KH_E_INVALID);
    assert_int_equal(kh_store_open(path, KH_KEK_PASSPHRASE, kek, 32, log_line, NULL, &second),
                     KH_E_PASSPHRASE);
    assert_int_equal(kh_store_open("/nonexistent/store", KH_KEK_FILE, kek, 32, log_line, NULL, &second),
                     KH_E_NOT_FOUND);
    store = open_store();
    assert_memory_equal(public_key, kh_store_import_public(store), 32);
    kh_store_close(store);
    kh_store_close(NULL);
}

static void raw(const char *sql)
{
    sqlite3 *db = NULL;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void test_versions_and_damage_of_meta(void **state)
{
    kh_store *store = NULL;

    (void)state;
    raw("PRAGMA user_version = 4"); /* of a newer Keyhold */
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_VERSION);
    assert_non_null(strstr(last_log, "has version 4, this program knows 1 to 3"));
    raw("PRAGMA user_version = 0");
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_VERSION);
    raw("PRAGMA user_version = 3");
    raw("PRAGMA application_id = 5");
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_VERSION);
    raw("PRAGMA application_id = 0x4b484c44");
    kh_store_close(open_store());
    static const char *const keys[] = {"kek", "store key", "import key", "store id"};
    for (int i = 0; i < 4; i++) {
        char sql[256];

        raw("CREATE TABLE saved AS SELECT * FROM meta");
        snprintf(sql, sizeof(sql), "UPDATE meta SET value = zeroblob(length(value)) WHERE key = '%s'",
                 keys[i]);
        raw(sql);
        assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_DAMAGED);
        assert_non_null(strstr(last_log, keys[i]));
        snprintf(sql, sizeof(sql), "DELETE FROM meta WHERE key = '%s'", keys[i]);
        raw(sql);
        assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_DAMAGED);
        raw("DELETE FROM meta; INSERT INTO meta SELECT * FROM saved; DROP TABLE saved");
    }
    kh_store_close(open_store());
    FILE *file = fopen(path, "r+");
    fputs("this is not a database, whatever its name says", file);
    fclose(file);
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_DAMAGED);
}

static void test_passphrase(void **state)
{
    uint8_t public_key[32];
    kh_store *store = NULL;

    (void)state;
    assert_int_equal(unlink(path), 0);
    assert_int_equal(kh_store_init(path, KH_KEK_PASSPHRASE, (const uint8_t *)"correct horse", 13, public_key),
                     KH_OK);
    assert_int_equal(
        kh_store_open(path, KH_KEK_PASSPHRASE, (const uint8_t *)"correct hors", 12, log_line, NULL, &store),
        KH_E_PASSPHRASE);
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_PASSPHRASE);
    assert_int_equal(
        kh_store_open(path, KH_KEK_PASSPHRASE, (const uint8_t *)"correct horse", 13, log_line, NULL, &store),
        KH_OK);
    assert_memory_equal(public_key, kh_store_import_public(store), 32);
    kh_store_close(store);
}

/* ---- Rows ---------------------------------------------------------------------------------------------- */

static void test_rows(void **state)
{
    kh_store *store = open_store();
    kh_key_info info, got[KH_LOOKUP_MAX];
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX];
    size_t len = 0, count = 0;
    uint64_t before = 0;

    (void)state;
    for (unsigned v = 1; v <= 12; v++) {
        assert_int_equal(
            insert(store, "many", KH_KEY_ALLOW_DUPLICATE | (v > 1 ? KH_KEY_NEW_VERSION : 0), &info), KH_OK);
        assert_int_equal(info.version, v);
        assert_true(info.ref > before);
        before = info.ref;
    }
    assert_int_equal(insert(store, "other", 0, &info), KH_E_DUPLICATE);
    assert_int_equal(kh_store_get(store, before, &info, pkcs8, &len), KH_OK);
    assert_int_equal(len, material.pkcs8_len);
    assert_memory_equal(pkcs8, material.pkcs8, len);
    assert_int_equal(kh_store_get(store, before + 1, &info, pkcs8, &len), KH_E_NOT_FOUND);
    assert_int_equal(kh_store_get(store, 0, &info, NULL, NULL), KH_E_NOT_FOUND);
    assert_int_equal(kh_store_get(store, UINT64_MAX, &info, NULL, NULL), KH_E_NOT_FOUND);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "many", 12, 2, &info), KH_OK);
    assert_int_equal(info.state, 2);
    assert_int_equal(kh_store_find_name(store, "many", 4, 0, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(count, KH_LOOKUP_MAX);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(got[i].version,
                         11 - i); /* the newest is disabled, so it is not among the best eight */
    }
    assert_int_equal(kh_store_find_name(store, "many", 4, 12, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(count, 1);
    assert_int_equal(got[0].state, 2);
    assert_int_equal(kh_store_find_id(store, material.id, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(count, KH_LOOKUP_MAX);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "many", 99, 2, &info), KH_E_NOT_FOUND);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "many", 1, 4, &info), KH_E_INVALID);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "many", 1, 0, &info), KH_E_INVALID);
    assert_int_equal(kh_store_purge(store, "many", NULL, 0), KH_E_ORDER);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "many", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_recover(store, "many"), KH_OK);
    assert_int_equal(kh_store_recover(store, "many"), KH_E_ORDER);
    assert_int_equal(kh_store_find_name(store, "many", 4, 12, got, 1, &count), KH_OK);
    assert_int_equal(got[0].state, 2); /* what it was before */
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "many", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "many", NULL, 0), KH_OK);
    assert_int_equal(kh_store_purge(store, "many", NULL, 0), KH_E_NOT_FOUND);
    assert_int_equal(insert(store, "many", 0, &info), KH_E_FORBIDDEN); /* not over the front: it was purged */
    assert_int_equal(kh_store_insert(store, KH_ASKER_ROOT, &info, &material), KH_OK);
    assert_true(info.ref > before); /* never used again */
    kh_store_close(store);
}

/* A plain name: all versions are disabled, the newest is enabled. */
static void test_plain_name(void **state)
{
    kh_store *store = open_store();
    kh_key_info info, got[KH_LOOKUP_MAX];
    size_t count = 0;

    (void)state;
    for (unsigned v = 1; v <= 3; v++) {
        assert_int_equal(
            insert(store, "www", KH_KEY_ALLOW_DUPLICATE | (v > 1 ? KH_KEY_NEW_VERSION : 0), &info), KH_OK);
    }
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_find_name(store, "www", 3, 0, got, KH_LOOKUP_MAX, &count), KH_OK);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(got[i].state, 2);
    }
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_OK);
    assert_int_equal(info.version, 3);
    assert_int_equal(info.state, 1);
    assert_int_equal(kh_store_find_name(store, "www", 3, 0, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(count, 3);
    assert_int_equal(got[0].state, 1);
    assert_int_equal(got[1].state, 2);
    assert_int_equal(got[2].state, 2);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 3, 3, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_OK);
    assert_int_equal(kh_store_find_name(store, "www", 3, 2, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(got[0].state, 1);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_E_FORBIDDEN);
    kh_store_close(store);
}

/* What root did, the front does not undo. */
static void test_root_and_front(void **state)
{
    kh_store *store = open_store();
    kh_key_info info;

    (void)state;
    assert_int_equal(insert(store, "www", 0, &info), KH_OK);
    /* The front's own disabling is the front's to undo. */
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "www", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 1, 1, &info), KH_E_FORBIDDEN);
    assert_int_equal(insert(store, "copy", KH_KEY_ALLOW_DUPLICATE, &info), KH_E_FORBIDDEN);
    kh_store_close(store);
    store = open_store(); /* it is in the row, under the seal */
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_recover(store, "www"), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_E_FORBIDDEN);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "www", 0, 1, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 2, &info), KH_OK);
    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 1, &info), KH_OK);

    assert_int_equal(kh_store_set_state(store, KH_ASKER_FRONT, "www", 0, 3, &info), KH_OK);
    assert_int_equal(kh_store_purge(store, "www", NULL, 0), KH_OK);
    kh_store_close(store);
    store = open_store();
    assert_int_equal(insert(store, "www", 0, &info), KH_E_FORBIDDEN);
    assert_int_equal(insert(store, "other", KH_KEY_ALLOW_DUPLICATE, &info), KH_E_FORBIDDEN);
    memset(&info, 0, sizeof(info));
    snprintf(info.name, sizeof(info.name), "www");
    info.usage = KH_USAGE_SIGN;
    assert_int_equal(kh_store_insert(store, KH_ASKER_ROOT, &info, &material), KH_OK);
    kh_store_close(store);
}

/* ---- M14: damage --------------------------------------------------------------------------------------- */

/* A check by single rows. */
static kh_result check(kh_store *store, char *text, size_t cap, size_t *len)
{
    kh_store_checking checking = {0};
    kh_result result = KH_AGAIN;

    *len = 0;
    for (unsigned slices = 0; result == KH_AGAIN; slices++) {
        assert_true(slices < 1000);
        result = kh_store_check(store, &checking, 1, text, cap - 1, len);
    }
    text[*len] = '\0';
    return result;
}

static void expect_damaged(const char *name, unsigned *refused)
{
    kh_key_info got[KH_LOOKUP_MAX];
    char text[4096];
    size_t count = 0;
    kh_store *store = open_store();

    last_log[0] = '\0';
    assert_int_equal(kh_store_find_name(store, name, strlen(name), 0, got, KH_LOOKUP_MAX, &count),
                     KH_E_DAMAGED);
    assert_non_null(strstr(last_log, name));
    last_log[0] = '\0';
    assert_int_equal(kh_store_get(store, 2, &got[0], NULL, NULL), KH_E_DAMAGED);
    assert_non_null(strstr(last_log, name));
    assert_int_equal(check(store, text, sizeof(text), &count), KH_OK);
    assert_non_null(strstr(text, "victim/1 damaged: its row is not as it was sealed"));
    assert_non_null(strstr(text, "\ndamaged: good are 2 keys"));
    /* The others are not touched by it. */
    assert_int_equal(kh_store_find_name(store, "before", 6, 0, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(kh_store_list(store, "", 0, 0, got, KH_LOOKUP_MAX, &count), KH_OK);
    assert_int_equal(count, 2);
    kh_store_close(store);
    ++*refused;
}

static void three_rows(void)
{
    kh_store *store = open_store();
    kh_key_info info;

    assert_int_equal(insert(store, "before", KH_KEY_ALLOW_DUPLICATE, &info), KH_OK);
    assert_int_equal(insert(store, "victim", KH_KEY_ALLOW_DUPLICATE, &info), KH_OK);
    assert_int_equal(info.ref, 2);
    assert_int_equal(insert(store, "with-one-after", KH_KEY_ALLOW_DUPLICATE, &info), KH_OK);
    kh_store_close(store);
}

/* Each column of the row, and each byte of the long ones. The name's index keeps the old name: see
 * expect_damaged. */
static void test_flip_columns(void **state)
{
    static const char *const numbers[] = {"version", "type", "bits", "usage", "state", "policy", "created",
                                          "tier",    "not_before", "expires", "deleted"};
    static const char *const blobs[] = {"id", "spki", "sealed"};
    unsigned refused = 0;
    char sql[512];

    (void)state;
    three_rows();
    raw("DROP INDEX keys_id; CREATE INDEX keys_id ON keys (ref)"); /* its only purpose is another lookup */
    for (size_t i = 1; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        for (unsigned bit = 0; bit < 62; bit += bit < 8 ? 1 : 9) {
            snprintf(sql, sizeof(sql), "UPDATE keys SET %s = (%s | %llu) - (%s & %llu) WHERE ref = 2",
                     numbers[i], numbers[i], 1ULL << bit, numbers[i], 1ULL << bit);
            raw(sql);
            expect_damaged("victim", &refused);
            raw(sql);
        }
    }
    for (size_t i = 0; i < sizeof(blobs) / sizeof(blobs[0]); i++) {
        size_t len = i == 0 ? 32 : i == 1 ? material.spki_len : material.pkcs8_len + 28;

        raw("CREATE TABLE saved AS SELECT * FROM keys WHERE ref = 2");
        for (size_t at = 0; at <= len; at += 7) { /* the last one is a byte too many */
            snprintf(sql, sizeof(sql),
                     "UPDATE keys SET %s = CAST(substr(%s, 1, %zu) || iif(substr(%s, %zu, 1) = x'5a', x'a5', "
                     "x'5a')"
                     " || substr(%s, %zu) AS BLOB) WHERE ref = 2",
                     blobs[i], blobs[i], at, blobs[i], at + 1, blobs[i], at + 2);
            raw(sql);
            expect_damaged("victim", &refused);
            snprintf(sql, sizeof(sql), "UPDATE keys SET %s = (SELECT %s FROM saved) WHERE ref = 2", blobs[i],
                     blobs[i]);
            raw(sql);
        }
        snprintf(sql, sizeof(sql), "UPDATE keys SET %s = x'' WHERE ref = 2", blobs[i]);
        raw(sql);
        expect_damaged("victim", &refused);
        snprintf(sql, sizeof(sql),
                 "UPDATE keys SET %s = (SELECT %s FROM saved) WHERE ref = 2; DROP TABLE saved", blobs[i],
                 blobs[i]);
        raw(sql);
    }
    raw("UPDATE keys SET place = 'elsewhere' WHERE ref = 2");
    expect_damaged("victim", &refused);
    raw("UPDATE keys SET tier = 2 WHERE ref = 2");
    expect_damaged("victim", &refused);
    print_message("M14: %u changed columns refused by name\n", refused);
}

static uint8_t *read_file(size_t *len)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t *bytes = NULL;

    assert_int_equal(fstat(fd, &st), 0);
    *len = (size_t)st.st_size;
    bytes = malloc(*len);
    assert_int_equal(read(fd, bytes, *len), *len);
    close(fd);
    return bytes;
}

static void write_byte(size_t at, uint8_t byte)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

static void write_file(const uint8_t *bytes, size_t len)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

    assert_int_equal(write(fd, bytes, len), len);
    close(fd);
}

/* Where the row lies in the file: SQLite stores a record's columns one after the other. */
static void find_row(size_t *begin, size_t *end)
{
    size_t len = 0, name_len = 6;
    uint8_t *file = read_file(&len), *row = NULL;

    for (size_t at = 0; at + name_len < len && row == NULL; at++) {
        uint8_t *here = file + at;

        /* name, then among what follows the id; the index has the name without the id */
        if (memcmp(here, "victim", name_len) == 0 && memmem(here, 64, material.id, 32) != NULL) {
            row = here;
        }
    }
    assert_non_null(row);
    uint8_t *id = memmem(row, 64, material.id, 32);
    *begin = (size_t)(row - file);
    *end = (size_t)(id - file) + 32 + material.spki_len + material.pkcs8_len + 28;
    free(file);
}

/* Every byte of the row as it lies in the file, each bit of it once. */
static void test_flip_file(void **state)
{
    size_t begin = 0, end = 0, len = 0;
    unsigned refused = 0;

    (void)state;
    three_rows();
    find_row(&begin, &end);
    uint8_t *file = read_file(&len);
    for (size_t at = begin; at < end; at++) {
        write_byte(at, file[at] ^ (uint8_t)(1u << at % 8));
        expect_damaged("victim", &refused);
        write_byte(at, file[at]);
    }
    /* The record's header: lengths and types. SQLite may refuse, and then no key is given out either. */
    for (size_t at = begin - 16; at < begin; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            kh_key_info got[KH_LOOKUP_MAX];
            size_t count = 0;
            kh_result result = KH_OK;
            kh_store *store = NULL;

            write_byte(at, file[at] ^ (uint8_t)(1u << bit));
            result = kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store);
            if (result == KH_OK) {
                result = kh_store_find_name(store, "victim", 6, 0, got, KH_LOOKUP_MAX, &count);
            }
            if (result == KH_OK) { /* a byte of the row before */
                assert_memory_equal(got[0].id, material.id, 32);
                assert_int_equal(got[0].usage, KH_USAGE_SIGN);
                assert_int_equal(got[0].state, 1);
            } else {
                assert_int_equal(result, KH_E_DAMAGED);
                refused++;
            }
            kh_store_close(store);
            write_file(file, len); /* closing may have written elsewhere */
        }
    }
    kh_store_close(open_store());
    free(file);
    print_message("M14: %u flipped bytes of %zu in the file refused by name\n", refused, end - begin);
}

/* Walks the whole store as `key list` does; each key at most once, whatever the index says. */
static unsigned list_all(kh_store *store)
{
    kh_key_info got[3];
    char at[KH_NAME_MAX + 1] = "";
    uint32_t version = 0;
    unsigned seen = 0;
    size_t count = 0;

    while (kh_store_list(store, at, strlen(at), version, got, 3, &count) == KH_OK && count > 0) {
        seen += (unsigned)count;
        assert_true(seen <= 8);
        snprintf(at, sizeof(at), "%s", got[count - 1].name);
        version = got[count - 1].version;
    }
    return seen;
}

static int page_of_index(int *page_size)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    int page = 0;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_prepare_v2(db, "SELECT rootpage FROM sqlite_master WHERE name = 'keys_name'", -1, &st, NULL);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    page = sqlite3_column_int(st, 0);
    sqlite3_finalize(st);
    sqlite3_prepare_v2(db, "PRAGMA page_size", -1, &st, NULL);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    *page_size = sqlite3_column_int(st, 0);
    sqlite3_finalize(st);
    sqlite3_close(db);
    return page;
}

/* Each bit of the index of names, which no seal protects: list and check come to their end, and what is wrong
 * is said. */
static void test_flip_index(void **state)
{
    kh_store *store = open_store();
    kh_key_info info;
    char text[4096];
    size_t len = 0, count = 0;
    unsigned flips = 0, told = 0;
    int page_size = 0;

    (void)state;
    for (int i = 0; i < 8; i++) {
        char name[16];

        snprintf(name, sizeof(name), "key-%c", 'a' + i / 2);
        assert_int_equal(
            insert(store, name, KH_KEY_ALLOW_DUPLICATE | (i % 2 == 1 ? KH_KEY_NEW_VERSION : 0), &info),
            KH_OK);
    }
    assert_int_equal(list_all(store), 8);
    assert_int_equal(check(store, text, sizeof(text), &count), KH_OK);
    assert_string_equal(text, "ok 8 keys\n");
    kh_store_close(store);
    size_t begin = (size_t)(page_of_index(&page_size) - 1) * (size_t)page_size;
    uint8_t *file = read_file(&len);
    alarm(300);
    for (size_t at = begin; at < begin + (size_t)page_size; at++) {
        for (unsigned bit = 0; file[at] != 0 && bit < 8; bit++) {
            write_byte(at, file[at] ^ (uint8_t)(1u << bit));
            if (kh_store_open(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store) == KH_OK) {
                unsigned seen = list_all(store);
                kh_result result = check(store, text, sizeof(text), &count);

                told += result != KH_OK || strncmp(text, "ok", 2) != 0;
                assert_true(seen <= 8);
            }
            kh_store_close(store);
            flips++;
            write_file(file, len);
        }
    }
    alarm(0);
    free(file);
    print_message("M14: %u flipped bits of the index: list and check end; %u told by check\n", flips, told);
    assert_true(told > flips / 2);
}

/* Rows that come and go between the slices of a check are no damage. */
static void test_check_meanwhile(void **state)
{
    kh_store *store = NULL;
    kh_key_info info;
    kh_store_checking checking = {0};
    char text[4096];
    size_t len = 0;
    kh_result result = KH_AGAIN;

    (void)state;
    three_rows();
    store = open_store();
    for (unsigned slice = 0; result == KH_AGAIN; slice++) {
        if (slice == 2) { /* counted; one row seen */
            assert_int_equal(insert(store, "a", KH_KEY_ALLOW_DUPLICATE, &info), KH_OK);
            assert_int_equal(insert(store, "z", KH_KEY_ALLOW_DUPLICATE, &info), KH_OK);
            assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "victim", 0, 3, &info), KH_OK);
            assert_int_equal(kh_store_purge(store, "victim", NULL, 0), KH_OK);
        }
        result = kh_store_check(store, &checking, 1, text, sizeof(text) - 1, &len);
    }
    assert_int_equal(result, KH_OK);
    text[len] = '\0';
    assert_string_equal(text, "ok 3 keys\n");
    kh_store_close(store);
}

/* Rows that change places keep their seals, but not their names and numbers. */
static void test_swap(void **state)
{
    kh_store *store = NULL;
    kh_key_info got[2];
    size_t count = 0;

    (void)state;
    three_rows();
    raw("UPDATE keys SET sealed = (SELECT sealed FROM keys WHERE ref = 1) WHERE ref = 2");
    store = open_store();
    assert_int_equal(kh_store_find_name(store, "victim", 6, 0, got, 2, &count), KH_E_DAMAGED);
    kh_store_close(store);
    raw("UPDATE keys SET ref = 7 WHERE ref = 3");
    store = open_store();
    assert_int_equal(kh_store_find_name(store, "with-one-after", 14, 0, got, 2, &count), KH_E_DAMAGED);
    kh_store_close(store);
}

/* ---- M14: a full disk ---------------------------------------------------------------------------------- */

static void fill_and_use(void)
{
    kh_store *store = open_store();
    kh_key_info info, got[1];
    kh_result result = KH_OK;
    unsigned kept = 0;
    size_t count = 0;
    char name[32];

    while (result == KH_OK && kept < 100000) {
        snprintf(name, sizeof(name), "full-%u", kept);
        result = insert(store, name, KH_KEY_ALLOW_DUPLICATE, &info);
        kept += result == KH_OK;
    }
    assert_int_equal(result, KH_E_STORAGE);
    assert_true(kept > 10);
    for (int again = 0; again < 3; again++) {
        assert_int_equal(insert(store, "one-more", KH_KEY_ALLOW_DUPLICATE, &info), KH_E_STORAGE);
        assert_int_equal(kh_store_find_name(store, "one-more", 8, 0, got, 1, &count), KH_E_NOT_FOUND);
    }
    for (int round = 0; round < 2; round++) { /* before and after opening it anew, on the full disk */
        for (unsigned i = 0; i < kept; i++) {
            snprintf(name, sizeof(name), "full-%u", i);
            assert_int_equal(kh_store_find_name(store, name, strlen(name), 0, got, 1, &count), KH_OK);
        }
        kh_store_close(store);
        store = open_store();
    }
    kh_store_close(store);
    print_message("M14: full after %u keys; all of them are there\n", kept);
}

static void test_full_disk(void **state)
{
    uint8_t import_public[32];
    char small[300];

    (void)state;
    if (geteuid() != 0) {
        print_message(
            "M14: the small tmpfs needs root; the limit on the file's size is tried all the same\n");
        return;
    }
    snprintf(small, sizeof(small), "%s/small", dir);
    assert_int_equal(mkdir(small, 0700), 0);
    assert_int_equal(mount("tmpfs", small, "tmpfs", 0, "size=1m"), 0);
    snprintf(path, sizeof(path), "%s/store", small);
    assert_int_equal(kh_store_init(path, KH_KEK_FILE, kek, 32, import_public), KH_OK);
    fill_and_use();
    assert_int_equal(umount2(small, MNT_DETACH), 0);
}

static void test_file_limit(void **state)
{
    const struct rlimit limit = {.rlim_cur = 400000, .rlim_max = RLIM_INFINITY};
    struct rlimit before;

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    fill_and_use();
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_open, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_versions_and_damage_of_meta, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_passphrase, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rows, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_plain_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_root_and_front, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flip_index, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_check_meanwhile, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flip_columns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flip_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_swap, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_file_limit, set_up, tear_down),
    };

    kh_secure_openssl();
    if (kh_material_generate(KH_KEY_P256, 256, &material) != KH_OK) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

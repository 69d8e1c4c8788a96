/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Versions of the store: one of version 1, made by the program that knew no other, is led on; whoever is
 * killed meanwhile leaves it old or new; who may not open it leaves it alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "store.h"
#include "store_copy.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <keyhold/storefile.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIXTURE_KEYS 6
#define VERSION_NOW 3

static char dir[256], path[400], kept[420];
static uint8_t kek[32];
static char last_error[512];
static unsigned lines, die_at; /* of the log */

static void log_line(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    if (level == KH_LOG_ERROR) {
        snprintf(last_error, sizeof(last_error), "%s", text);
    }
    if (++lines == die_at) {
        kill(getpid(), SIGKILL);
    }
}

static void copy_file(const char *from, const char *to)
{
    uint8_t bytes[64 * 1024];
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t n = read(in, bytes, sizeof(bytes));

    assert_true(n > 0 && n < (ssize_t)sizeof(bytes) && write(out, bytes, (size_t)n) == n);
    close(in);
    close(out);
}

static int remove_one(const char *name, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(name);
}

static int set_up_with(unsigned version)
{
    char kek_path[400], from[400];

    snprintf(dir, sizeof(dir), "%s/keyhold-schema-XXXXXX",
             getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/keys.db", dir);
    snprintf(kept, sizeof(kept), "%s.v%u.bak", path, version);
    snprintf(kek_path, sizeof(kek_path), "%s/kek", dir);
    snprintf(from, sizeof(from), KH_SOURCE_DIR "/tests/fixtures/store-v%u/keys.db", version);
    copy_file(from, path);
    copy_file(KH_SOURCE_DIR "/tests/fixtures/store-v1/kek", kek_path); /* of all fixtures */
    assert_int_equal(kh_kek_file_load(kek_path, kek), KH_OK);
    last_error[0] = '\0';
    lines = die_at = 0;
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    return set_up_with(1);
}

static int set_up_2(void **state)
{
    (void)state;
    return set_up_with(2);
}

static int tear_down(void **state)
{
    (void)state;
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static kh_result open_at(const char *at, kh_store **store)
{
    return kh_store_open(at, KH_KEK_FILE, kek, 32, log_line, NULL, store);
}

static int64_t number(const char *at, const char *sql)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    int64_t value = -1;

    assert_int_equal(sqlite3_open(at, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &st, NULL), SQLITE_OK);
    if (sqlite3_step(st) == SQLITE_ROW) {
        value = sqlite3_column_int64(st, 0);
    }
    sqlite3_finalize(st);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    return value;
}

/* Its private key signs what its public key verifies. */
static void sign_with(kh_store *store, const kh_key_info *named)
{
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX], signature[512];
    const uint8_t *at = named->spki;
    size_t pkcs8_len = 0, len = sizeof(signature);
    kh_key_info info;
    EVP_PKEY *private_key = NULL, *public_key = d2i_PUBKEY(NULL, &at, (long)named->spki_len);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    const EVP_MD *md = named->type == KH_KEY_ED25519 ? NULL : EVP_sha256();

    assert_int_equal(kh_store_get(store, named->ref, &info, pkcs8, &pkcs8_len), KH_OK);
    assert_int_equal(kh_pkcs8_parse(pkcs8, pkcs8_len, &private_key), KH_OK);
    assert_int_equal(EVP_DigestSignInit(ctx, NULL, md, NULL, private_key), 1);
    assert_int_equal(EVP_DigestSign(ctx, signature, &len, (const uint8_t *)"x", 1), 1);
    EVP_MD_CTX_reset(ctx);
    assert_int_equal(EVP_DigestVerifyInit(ctx, NULL, md, NULL, public_key), 1);
    assert_int_equal(EVP_DigestVerify(ctx, signature, len, (const uint8_t *)"x", 1), 1);
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(private_key);
    EVP_PKEY_free(public_key);
}

/* All keys of the fixture, as they were. */
static void expect_fixture(kh_store *store)
{
    static const struct {
        const char *name;
        uint32_t version, state;
    } keys[FIXTURE_KEYS] = {{"ed.example", 1, 1},  {"gone.example", 1, 3}, {"off.example", 1, 2},
                            {"rsa.example", 1, 1}, {"www.example", 1, 1},  {"www.example", 2, 1}};
    kh_key_info got;
    uint64_t count = 0;
    size_t found = 0;

    assert_int_equal(kh_store_count(store, &count), KH_OK);
    assert_int_equal(count, FIXTURE_KEYS);
    for (size_t i = 0; i < FIXTURE_KEYS; i++) {
        assert_int_equal(
            kh_store_find_name(store, keys[i].name, strlen(keys[i].name), keys[i].version, &got, 1, &found),
            KH_OK);
        assert_int_equal(got.state, keys[i].state);
        sign_with(store, &got);
    }
}

static void test_migrates(void **state)
{
    uint8_t id[KH_STORE_ID_LEN];
    kh_store *store = NULL;
    struct stat st;

    (void)state;
    assert_int_equal(number(path, "PRAGMA user_version"), 1);
    assert_int_equal(open_at(path, &store), KH_OK);
    expect_fixture(store);
    memcpy(id, kh_store_id(store), sizeof(id));
    assert_int_equal(kh_store_last_backup(store), 0);
    kh_store_close(store);
    assert_int_equal(number(path, "PRAGMA user_version"), VERSION_NOW);
    assert_int_equal(number(path, "SELECT count(*) FROM purged"), 1); /* still known */
    /* The copy is what it was, and as good as it. */
    assert_int_equal(stat(kept, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(number(kept, "PRAGMA user_version"), 1);
    assert_int_equal(open_at(kept, &store), KH_OK);
    expect_fixture(store);
    assert_memory_not_equal(id, kh_store_id(store), sizeof(id)); /* it went its own way */
    kh_store_close(store);
    /* Once is enough. */
    assert_int_equal(unlink(kept), 0);
    assert_int_equal(open_at(path, &store), KH_OK);
    assert_memory_equal(id, kh_store_id(store), sizeof(id));
    kh_store_close(store);
    assert_int_equal(access(kept, F_OK), -1);
}

/* Keys of version 2 keep their seals: a copy of them into the migrated store is as good as they are. */
static void test_migrates_2(void **state)
{
    kh_store *store = NULL;
    kh_key_info info;
    size_t count = 0;

    (void)state;
    assert_int_equal(number(path, "PRAGMA user_version"), 2);
    assert_int_equal(kh_store_open_to_read(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_OK);
    expect_fixture(store);
    kh_store_close(store);
    assert_int_equal(open_at(path, &store), KH_OK);
    expect_fixture(store);
    assert_int_equal(kh_store_find_name(store, "rsa.example", 11, 0, &info, 1, &count), KH_OK);
    assert_int_equal(info.tier, KH_TIER_SOFTWARE);
    assert_string_equal(info.place, "");
    assert_int_equal(info.not_before, 0);
    assert_int_equal(info.expires, 0);
    kh_store_close(store);
    assert_int_equal(number(path, "PRAGMA user_version"), VERSION_NOW);
    assert_int_equal(number(kept, "PRAGMA user_version"), 2);
    assert_int_equal(number(path, "SELECT count(*) FROM intents"), 0);
    assert_int_equal(number(path, "SELECT count(*) FROM names"), 0);
}

/* Very old stores lack the table of purged keys. */
static void test_without_purged(void **state)
{
    kh_store *store = NULL;

    (void)state;
    (void)number(path, "DROP TABLE purged");
    assert_int_equal(open_at(path, &store), KH_OK);
    expect_fixture(store);
    kh_store_close(store);
    assert_int_equal(number(path, "SELECT count(*) FROM purged"), 0);
}

/* A new store is what a migrated one is. */
static void test_same_schema(void **state)
{
    static const char sql[] =
        "SELECT sum(length(sql)) FROM (SELECT DISTINCT sql FROM sqlite_master ORDER BY name)";
    char fresh[420];
    uint8_t import_public[32];
    kh_store *store = NULL;

    (void)state;
    snprintf(fresh, sizeof(fresh), "%s/fresh", dir);
    assert_int_equal(kh_store_init(fresh, KH_KEK_FILE, kek, 32, import_public), KH_OK);
    assert_int_equal(open_at(path, &store), KH_OK);
    kh_store_close(store);
    assert_int_equal(number(fresh, "PRAGMA user_version"), VERSION_NOW);
    (void)number(path, "DELETE FROM keys");
    (void)number(path, "VACUUM");
    assert_true(number(fresh, sql) > 0);
    /* "IF NOT EXISTS" is not kept in the schema. */
    assert_int_equal(number(fresh, sql), number(path, sql));
}

/* Killed at each line that it logs on the way: before the copy, after it, in the transaction, after it. */
static void test_killed(void **state)
{
    unsigned old = 0, new = 0, turn = 1;

    for (;; turn++) {
        kh_store *store = NULL;
        int status = 0;
        pid_t pid = fork();

        if (pid == 0) {
            die_at = turn;
            _exit(open_at(path, &store) == KH_OK ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        if (number(path, "PRAGMA user_version") == 1) {
            old++;
            assert_int_equal(number(path, "SELECT count(*) FROM meta WHERE key = 'store id'"), 0);
        } else {
            new ++; /* or between two of the new ones */
            assert_true(number(path, "PRAGMA user_version") <= VERSION_NOW);
            assert_int_equal(number(path, "SELECT count(*) FROM meta WHERE key = 'store id'"), 1);
            assert_int_equal(number(kept, "PRAGMA user_version"), 1);
        }
        assert_int_equal(number(path, "SELECT count(*) FROM keys"), FIXTURE_KEYS);
        assert_int_equal(open_at(path, &store), KH_OK);
        expect_fixture(store);
        kh_store_close(store);
        tear_down(state);
        set_up(state);
    }
    assert_true(old >= 3 && new >= 1);
    print_message("migration killed %u times: %u times the old store, %u times the new one\n", old + new, old,
                  new);
}

/* Who does not have the key, or has no room for the copy, changes nothing. */
static void test_leaves_alone(void **state)
{
    char partial[440];
    uint8_t wrong[32] = {1};
    kh_store *store = NULL;

    (void)state;
    assert_int_equal(kh_store_open(path, KH_KEK_FILE, wrong, 32, log_line, NULL, &store), KH_E_PASSPHRASE);
    assert_int_equal(number(path, "PRAGMA user_version"), 1);
    assert_int_equal(access(kept, F_OK), -1);
    snprintf(partial, sizeof(partial), "%s.partial", kept);
    assert_int_equal(mkdir(partial, 0700), 0);
    assert_int_equal(open_at(path, &store), KH_E_STORAGE);
    assert_non_null(strstr(last_error, kept));
    assert_int_equal(number(path, "PRAGMA user_version"), 1);
    /* What only looks does not migrate either. */
    assert_int_equal(kh_store_open_to_read(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_OK);
    expect_fixture(store);
    kh_store_close(store);
    assert_int_equal(number(path, "PRAGMA user_version"), 1);
}

static void test_newer_and_other(void **state)
{
    kh_store *store = NULL;

    (void)state;
    (void)number(path, "PRAGMA user_version = 4");
    assert_int_equal(open_at(path, &store), KH_E_VERSION);
    assert_non_null(strstr(last_error, path));
    assert_non_null(strstr(last_error, "version 4, this program knows 1 to 3"));
    assert_int_equal(kh_store_open_to_read(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_VERSION);
    assert_int_equal(number(path, "PRAGMA user_version"), 4);
    (void)number(path, "PRAGMA user_version = 1");
    (void)number(path, "PRAGMA application_id = 7");
    assert_int_equal(open_at(path, &store), KH_E_VERSION);
    assert_non_null(strstr(last_error, "is not a Keyhold store"));
}

/* A second agent is told who has the store. */
static void test_holder(void **state)
{
    char wanted[64];
    int pair[2];
    kh_store *store = NULL;
    char byte = 0;
    pid_t pid = 0;

    (void)state;
    assert_int_equal(pipe(pair), 0);
    pid = fork();
    if (pid == 0) {
        if (open_at(path, &store) != KH_OK || write(pair[1], "", 1) != 1) {
            _exit(1);
        }
        pause();
    }
    assert_int_equal(read(pair[0], &byte, 1), 1);
    assert_int_equal(kh_storefile_holder(path), pid);
    assert_int_equal(open_at(path, &store), KH_E_LOCKED);
    snprintf(wanted, sizeof(wanted), "(process %ld)", (long)pid);
    assert_non_null(strstr(last_error, wanted));
    assert_non_null(strstr(last_error, path));
    assert_int_equal(kh_store_open_to_read(path, KH_KEK_FILE, kek, 32, log_line, NULL, &store), KH_E_LOCKED);
    int lock = -1;
    assert_int_equal(kh_storefile_lock(path, &lock), KH_E_LOCKED);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(kh_storefile_holder(path), 0);
    assert_int_equal(kh_storefile_lock(path, &lock), KH_OK);
    close(lock);
    close(pair[0]);
    close(pair[1]);
}

/* ---- Copies of a store that is in use ------------------------------------------------------------------ */

static kh_result insert(kh_store *store, unsigned i, kh_key_info *info)
{
    kh_material material;

    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "more-%04u", i);
    info->usage = KH_USAGE_SIGN;
    assert_int_equal(kh_material_generate(KH_KEY_ED25519, 0, &material), KH_OK);
    return kh_store_insert(store, KH_ASKER_FRONT, info, &material);
}

/* Keys that come while it is copied page by page are in it, too; one that fails disturbs nothing. */
static void test_copy_in_use(void **state)
{
    char to[420], name[32];
    kh_store *store = NULL;
    kh_store_copy *copy = NULL;
    kh_key_info info;
    kh_result result = KH_AGAIN;
    unsigned keys = 0;
    uint64_t count = 0;
    int fd = -1;

    (void)state;
    snprintf(to, sizeof(to), "%s/copy", dir);
    assert_int_equal(open_at(path, &store), KH_OK);
    for (; keys < 300; keys++) {
        assert_int_equal(insert(store, keys, &info), KH_OK);
    }
    fd = open(to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    snprintf(name, sizeof(name), "fd:%d", fd);
    assert_int_equal(kh_store_copy_new(store, name, KH_FDVFS, &copy), KH_OK);
    for (unsigned slice = 0; (result = kh_store_copy_step(copy, 1)) == KH_AGAIN; slice++) {
        assert_true(slice < 10000);
        if (keys < 330) {
            assert_int_equal(insert(store, keys++, &info), KH_OK);
            assert_int_equal(insert(store, keys - 1, &info), KH_E_EXISTS);
            assert_int_equal(kh_store_set_state(store, KH_ASKER_ROOT, "more-0007", 0, 1 + slice % 2, &info),
                             KH_OK);
        }
    }
    assert_int_equal(result, KH_OK);
    kh_store_copy_free(copy);
    close(fd);
    assert_int_equal(kh_store_count(store, &count), KH_OK);
    kh_store_close(store);
    assert_int_equal(keys, 330); /* it has more pages than that */
    kh_storefile_checking checking = {.kind = KH_KEK_FILE, .kek_secret = kek, .kek_secret_len = 32};
    uint64_t good = 0;
    assert_int_equal(kh_storefile_check(to, &checking, &good), KH_OK);
    assert_int_equal(good, count);
    assert_int_equal(good, FIXTURE_KEYS + keys);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_migrates, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_migrates_2, set_up_2, tear_down),
        cmocka_unit_test_setup_teardown(test_without_purged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_same_schema, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_killed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_leaves_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_newer_and_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_holder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_copy_in_use, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

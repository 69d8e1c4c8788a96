/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backup, export and import through a real keeper: while it signs and makes keys, killed in the middle, with
 * files and askers that are not as they should be. None of it is to be had over the ring, so no front can ask
 * for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper_rig.h"

#include <fcntl.h>
#include <keyhold/storefile.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEYS 300
#define TIMEOUT_MS 60000
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KILLS 8 /* a start costs ten times as much */
#else
#define KILLS 20
#endif

static keeper_rig first, second; /* two agents with the same KEK */
static char backup[320], export_path[320];

/* Not the one of before, emptied: somebody who was hung up on may still write to that. */
static int new_file(const char *path)
{
    int fd = -1;

    unlink(path);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* An operation with a file, and its report. */
static kh_result with_file(const keeper_rig *rig, uint32_t op, int fd, kh_store_report *report)
{
    const kh_record record = {.op = op};
    uint8_t out[1024];
    size_t len = 0;
    kh_result result =
        kh_admin_call_long(rig->admin, &record, fd, NULL, NULL, out, sizeof(out), &len, TIMEOUT_MS);

    memset(report, 0, sizeof(*report));
    if (result == KH_OK && len == sizeof(*report)) {
        memcpy(report, out, sizeof(*report));
    }
    return result;
}

static uint64_t check_store(keeper_rig *rig)
{
    kh_record check = {.op = KH_STORE_CHECK};
    const rig_answer *got = rig_admin(rig, &check);

    assert_int_equal(got->result, KH_OK);
    assert_memory_equal(got->data, "ok ", 3);
    return strtoull((const char *)got->data + 3, NULL, 10);
}

static int set_up(void **state)
{
    kh_key_info info;
    char name[32];

    (void)state;
    rig_init(&first, NULL);
    rig_init(&second, NULL);
    unlink(second.store);
    memcpy(second.kek, first.kek, sizeof(first.kek));
    assert_int_equal(kh_store_init(second.store, KH_KEK_FILE, second.kek, 32, second.import_public), KH_OK);
    snprintf(backup, sizeof(backup), "%s/backup", first.dir);
    snprintf(export_path, sizeof(export_path), "%s/export", first.dir);
    assert_int_equal(rig_start(&first), KH_OK);
    assert_int_equal(rig_start(&second), KH_OK);
    for (unsigned i = 0; i < KEYS; i++) {
        snprintf(name, sizeof(name), "key-%03u", i);
        assert_int_equal(rig_create(&first, name, KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &info), KH_OK);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (first.pid != 0) {
        (void)rig_stop(&first);
    }
    if (second.pid != 0) {
        (void)rig_stop(&second);
    }
    rig_clean(&first);
    rig_clean(&second);
    return 0;
}

static void test_not_over_the_ring(void **state)
{
    static const uint32_t ops[] = {KH_STORE_CHECK, KH_STORE_BACKUP, KH_STORE_BACKED_UP, KH_STORE_EXPORT,
                                   KH_STORE_IMPORT_ALL};

    (void)state;
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        kh_record record = {.op = ops[i]};

        assert_int_equal(rig_call(&first, &record)->result, KH_E_FORBIDDEN);
    }
}

typedef struct asking {
    keeper_rig *rig;
    uint32_t op;
    int fd;
    kh_store_report report;
    kh_result result;
    _Atomic bool done;
} asking;

static void *ask(void *asking_)
{
    asking *self = asking_;

    self->result = with_file(self->rig, self->op, self->fd, &self->report);
    self->done = true;
    return NULL;
}

/* Signatures and new keys go on while the store is copied; what was acknowledged before is in the copy. */
static void test_backup_under_load(void **state)
{
    asking backing = {.rig = &first, .op = KH_STORE_BACKUP};
    const uint8_t message[5] = "hello";
    kh_key_info key, made;
    pthread_t thread;
    char name[32];
    unsigned signs = 0, created = 0;

    (void)state;
    assert_int_equal(rig_lookup(&first, "key-000", &key), KH_OK);
    backing.fd = new_file(backup);
    assert_int_equal(pthread_create(&thread, NULL, ask, &backing), 0);
    while (!backing.done || signs == 0) {
        assert_int_equal(rig_sign(&first, &key, KH_ECDSA_SHA256, 0, message, 5), KH_OK);
        signs++;
        snprintf(name, sizeof(name), "during-%04u", created++);
        assert_int_equal(rig_create(&first, name, KH_KEY_ED25519, 0, KH_USAGE_SIGN, 0, &made), KH_OK);
    }
    pthread_join(thread, NULL);
    close(backing.fd);
    assert_int_equal(backing.result, KH_OK);
    assert_true(backing.report.keys >= KEYS && backing.report.keys <= KEYS + created);
    kh_storefile_checking checking = {.kind = KH_KEK_FILE, .kek_secret = first.kek, .kek_secret_len = 32};
    uint64_t keys = 0;
    assert_int_equal(kh_storefile_check(backup, &checking, &keys), KH_OK);
    assert_int_equal(keys, backing.report.keys);
    /* It is a store: a keeper opens it, and every key of before signs. */
    keeper_rig third = first;
    snprintf(third.store, sizeof(third.store), "%.299s", backup);
    snprintf(third.admin, sizeof(third.admin), "%.200s/admin3", first.dir);
    third.keystore = NULL;
    assert_int_equal(rig_start(&third), KH_OK);
    for (unsigned i = 0; i < KEYS; i++) {
        snprintf(name, sizeof(name), "key-%03u", i);
        assert_int_equal(rig_lookup(&third, name, &key), KH_OK);
        assert_int_equal(rig_sign(&third, &key, KH_ECDSA_SHA256, 0, message, 5), KH_OK);
    }
    assert_int_equal(rig_stop(&third), KH_OK);
    print_message("backup of %llu keys during %u signatures and %u new keys\n", (unsigned long long)keys,
                  signs, created);
}

static void test_export_and_import(void **state)
{
    const uint8_t message[5] = "hello";
    kh_store_report report;
    kh_key_info key, there, none;
    int fd = new_file(export_path);
    uint64_t before = kh_keystore_generation(second.keystore);
    kh_record lookup = {.op = KH_STORE_LOOKUP, .flags = 1, .data = key.id, .data_len = KH_KEY_ID_LEN};

    (void)state;
    assert_int_equal(with_file(&first, KH_STORE_EXPORT, fd, &report), KH_OK);
    assert_true(report.keys >= KEYS);
    assert_int_equal(rig_lookup(&second, "key-007", &none), KH_E_NOT_FOUND);
    assert_int_equal(with_file(&second, KH_STORE_IMPORT_ALL, fd, &report), KH_OK);
    assert_true(report.stored == report.keys && report.keys >= KEYS);
    assert_true(kh_keystore_generation(second.keystore) > before); /* fronts that found nothing look again */
    assert_int_equal(rig_lookup(&first, "key-007", &key), KH_OK);
    const rig_answer *found = rig_call(&second, &lookup);
    assert_int_equal(found->result, KH_OK);
    memcpy(&there, found->data, sizeof(there));
    assert_int_equal(rig_sign(&second, &there, KH_ECDSA_SHA256, 0, message, 5), KH_OK);
    before = kh_keystore_generation(second.keystore);
    assert_int_equal(with_file(&second, KH_STORE_IMPORT_ALL, fd, &report), KH_OK);
    assert_int_equal(report.stored, 0);
    assert_int_equal(kh_keystore_generation(second.keystore), before);
    assert_int_equal(check_store(&second), report.keys);
    close(fd);
}

/* What came along is not a file, or not such a one. */
static void test_bad_files(void **state)
{
    static const uint32_t writing[] = {KH_STORE_BACKUP, KH_STORE_EXPORT};
    kh_store_report report;
    int pair[2], fd = -1;

    (void)state;
    assert_int_equal(pipe(pair), 0);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(with_file(&first, writing[i], -1, &report), KH_E_INVALID);
        assert_int_equal(with_file(&first, writing[i], pair[1], &report), KH_E_INVALID);
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        assert_int_equal(with_file(&first, writing[i], fd, &report), KH_E_INVALID);
        close(fd);
        fd = open(first.kek_file, O_RDWR | O_CLOEXEC); /* not empty */
        assert_int_equal(with_file(&first, writing[i], fd, &report), KH_E_INVALID);
        close(fd);
        close(new_file(backup));
        fd = open(backup, O_RDONLY | O_CLOEXEC);
        assert_int_equal(with_file(&first, writing[i], fd, &report), KH_E_INVALID);
        close(fd);
        fd = open(backup, O_RDWR | O_APPEND | O_CLOEXEC);
        assert_int_equal(with_file(&first, writing[i], fd, &report), KH_E_INVALID);
        close(fd);
    }
    assert_int_equal(with_file(&first, KH_STORE_IMPORT_ALL, -1, &report), KH_E_INVALID);
    assert_int_equal(with_file(&first, KH_STORE_IMPORT_ALL, pair[0], &report), KH_E_INVALID);
    fd = open(backup, O_WRONLY | O_CLOEXEC);
    assert_int_equal(with_file(&first, KH_STORE_IMPORT_ALL, fd, &report), KH_E_INVALID);
    close(fd);
    fd = open(first.kek_file, O_RDONLY | O_CLOEXEC);
    assert_int_equal(with_file(&first, KH_STORE_IMPORT_ALL, fd, &report),
                     KH_E_DAMAGED); /* too short for anything */
    close(fd);
    close(pair[0]);
    close(pair[1]);
    assert_true(check_store(&first) >= KEYS);
}

static unsigned descriptors_of(pid_t pid)
{
    char path[64];
    unsigned count = 0;

    for (int fd = 0; fd < 256; fd++) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
        count += faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    }
    return count;
}

/* Askers that hang up at any moment leave nothing behind. */
static void test_hang_up(void **state)
{
    kh_store_report report;
    unsigned before = descriptors_of(first.pid);

    (void)state;
    for (unsigned turn = 0; turn < 24; turn++) {
        const uint32_t op = (const uint32_t[]){KH_STORE_BACKUP, KH_STORE_EXPORT, KH_STORE_CHECK}[turn % 3];
        pid_t pid = fork();

        if (pid == 0) {
            const kh_record record = {.op = op};
            uint8_t out[64];
            size_t len = 0;
            int fd = new_file(backup);
            kh_result result = kh_admin_call_long(first.admin, &record, fd, NULL, NULL, out, sizeof(out),
                                                  &len, 1 + turn / 3);

            _exit(result == KH_OK);
        }
        waitpid(pid, NULL, 0);
    }
    int fd = new_file(backup);
    assert_int_equal(with_file(&first, KH_STORE_BACKUP, fd, &report), KH_OK);
    close(fd);
    assert_true(check_store(&first) >= KEYS);
    for (unsigned turn = 0; descriptors_of(first.pid) > before; turn++) { /* it answers, and closes then */
        assert_true(turn < 1000);
        usleep(10000);
    }
}

/* Until something was written to the file so many times; or nothing more comes. */
static void wait_writes(int watch, unsigned count)
{
    struct pollfd pfd = {.fd = watch, .events = POLLIN};
    char events[4096];

    while (count > 0 && poll(&pfd, 1, 2000) == 1 && read(watch, events, sizeof(events)) > 0) {
        count--;
    }
}

/* An agent with nothing in its store. */
static void begin_anew(keeper_rig *rig)
{
    if (rig->pid != 0) {
        assert_int_equal(rig_stop(rig), KH_OK);
    }
    unlink(rig->store);
    assert_int_equal(kh_store_init(rig->store, KH_KEK_FILE, rig->kek, 32, rig->import_public), KH_OK);
    assert_int_equal(rig_start(rig), KH_OK);
}

/* Killed in the middle of an import: each key is there whole or not at all; what was acknowledged is there. */
static void test_killed_import(void **state)
{
    kh_store_report report;
    uint64_t keys = 0, last = 0;
    unsigned partial = 0, whole = 0, turn = 0;
    char log[512];
    int fd = open(export_path, O_RDONLY | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    snprintf(log, sizeof(log), "%s-wal", second.store);
    for (; turn < KILLS || (partial == 0 && turn < 200); turn++) {
        asking importing = {.rig = &second, .op = KH_STORE_IMPORT_ALL, .fd = fd};
        pthread_t thread;
        int watch = inotify_init1(IN_CLOEXEC);

        if (last == 0 || last >= KEYS) {
            begin_anew(&second);
            last = 0;
        }
        assert_true(watch >= 0 && inotify_add_watch(watch, log, IN_MODIFY) >= 0);
        assert_int_equal(pthread_create(&thread, NULL, ask, &importing), 0);
        wait_writes(watch, 1 + turn % 8 * 4);
        rig_kill(&second);
        pthread_join(thread, NULL);
        close(watch);
        assert_int_equal(rig_start(&second), KH_OK);
        keys = check_store(&second);
        assert_true(keys >= last);
        if (importing.result == KH_OK) {
            assert_int_equal(keys, importing.report.keys);
            whole++;
        } else if (keys > 0) {
            partial++;
        }
        last = keys;
    }
    assert_int_equal(with_file(&second, KH_STORE_IMPORT_ALL, fd, &report), KH_OK);
    assert_int_equal(check_store(&second), report.keys);
    close(fd);
    assert_true(partial > 0);
    print_message("killed %u times during an import: %u times in the middle, %u times after it\n", turn,
                  partial, whole);
}

/* Killed during a backup: the store is whole, and the next backup is. */
static void test_killed_backup(void **state)
{
    kh_storefile_checking checking = {.kind = KH_KEK_FILE, .kek_secret = first.kek, .kek_secret_len = 32};
    kh_store_report report;
    uint64_t before = check_store(&first), keys = 0;

    (void)state;
    for (unsigned turn = 0; turn < 6; turn++) {
        asking backing = {.rig = &first, .op = KH_STORE_BACKUP, .fd = new_file(backup)};
        pthread_t thread;

        assert_int_equal(pthread_create(&thread, NULL, ask, &backing), 0);
        usleep(200 * turn);
        rig_kill(&first);
        pthread_join(thread, NULL);
        close(backing.fd);
        assert_int_equal(rig_start(&first), KH_OK);
        assert_int_equal(check_store(&first), before);
    }
    int fd = new_file(backup);
    assert_int_equal(with_file(&first, KH_STORE_BACKUP, fd, &report), KH_OK);
    close(fd);
    assert_int_equal(kh_storefile_check(backup, &checking, &keys), KH_OK);
    assert_int_equal(keys, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_not_over_the_ring), cmocka_unit_test(test_backup_under_load),
        cmocka_unit_test(test_export_and_import), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_hang_up),           cmocka_unit_test(test_killed_import),
        cmocka_unit_test(test_killed_backup),
    };

    kh_secure_openssl();
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

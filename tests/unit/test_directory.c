/* SPDX-License-Identifier: Apache-2.0 */
/* The directory: one lookup for many who wait, bounds, generations, a keeper that dies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "directory.h"
#include <stdio.h>
#include <string.h>

static kh_directory *new_directory(uint32_t max)
{
    kh_directory *directory = NULL;

    assert_int_equal(kh_directory_new(max, &directory), KH_OK);
    return directory;
}

static kh_result get(kh_directory *directory, const char *name, kh_entry **entry)
{
    return kh_directory_get(directory, (const uint8_t *)name, strlen(name), false, entry);
}

/* Asks for a name and answers at once with one info (or none) of that ref. */
static void learn(kh_directory *directory, const char *name, uint64_t ref)
{
    kh_key_info info = {.ref = ref};
    kh_job_list waiters;
    kh_entry *entry = NULL;

    assert_int_equal(get(directory, name, &entry), KH_AGAIN);
    assert_ptr_equal(kh_directory_wanted(directory, 1), entry);
    assert_int_equal(
        kh_directory_answer(directory, entry, ref == 0 ? KH_E_NOT_FOUND : KH_OK, &info, 1, &waiters), KH_OK);
    kh_directory_settle(directory, entry);
}

static void test_coalesced(void **state)
{
    kh_directory *directory = new_directory(10);
    kh_key_info infos[2] = {{.ref = 5}, {.ref = 6}};
    kh_job jobs[3] = {0};
    kh_job_list waiters;
    kh_entry *entry = NULL, *again = NULL;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(get(directory, "www", &entry), KH_AGAIN);
        kh_directory_wait(entry, &jobs[i]);
        if (i == 0) {
            assert_ptr_equal(kh_directory_wanted(directory, 77), entry);
            assert_null(kh_directory_wanted(directory, 78)); /* one lookup for all */
        }
    }
    kh_directory_unwait(directory, &jobs[1]); /* cancelled meanwhile */
    assert_null(kh_directory_asked(directory, 78));
    assert_ptr_equal(kh_directory_asked(directory, 77), entry);
    assert_int_equal(kh_directory_answer(directory, entry, KH_OK, infos, 2, &waiters), KH_OK);
    assert_int_equal(waiters.count, 2);
    assert_ptr_equal(waiters.first, &jobs[0]);
    assert_ptr_equal(waiters.last, &jobs[2]);
    kh_directory_settle(directory, entry);
    assert_int_equal(get(directory, "www", &again), KH_OK);
    assert_int_equal(again->count, 2);
    assert_int_equal(again->infos[1]->ref, 6);
    kh_directory_free(directory);
}

static void test_names_and_ids_are_apart(void **state)
{
    kh_directory *directory = new_directory(10);
    char name[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"; /* 32 bytes, like an id */
    kh_entry *as_name = NULL, *as_id = NULL;

    (void)state;
    assert_int_equal(get(directory, name, &as_name), KH_AGAIN);
    assert_int_equal(kh_directory_get(directory, (const uint8_t *)name, 32, true, &as_id), KH_AGAIN);
    assert_ptr_not_equal(as_name, as_id);
    assert_int_equal(kh_directory_get(directory, (const uint8_t *)name, 0, true, &as_id), KH_E_TOO_LARGE);
    assert_int_equal(
        kh_directory_get(directory, (const uint8_t *)name, KH_DIRECTORY_KEY_MAX + 1, false, &as_id),
        KH_E_TOO_LARGE);
    kh_directory_free(directory);
}

static void test_least_recently_used(void **state)
{
    kh_directory *directory = new_directory(3);
    kh_directory_stats stats;
    kh_entry *entry = NULL;

    (void)state;
    learn(directory, "a", 1);
    learn(directory, "b", 2);
    learn(directory, "c", 3);
    assert_int_equal(get(directory, "a", &entry), KH_OK); /* used again */
    learn(directory, "d", 4);
    kh_directory_get_stats(directory, &stats);
    assert_int_equal(stats.entries, 3);
    assert_int_equal(stats.evicted, 1);
    assert_int_equal(get(directory, "a", &entry), KH_OK);
    assert_int_equal(get(directory, "c", &entry), KH_OK);
    assert_int_equal(get(directory, "b", &entry), KH_AGAIN);
    kh_directory_limit(directory, 1);
    kh_directory_get_stats(directory, &stats);
    assert_int_equal(stats.entries, 1);
    kh_directory_free(directory);
}

/* Asking for what does not exist costs one lookup each, and pushes nothing real out. */
static void test_absent(void **state)
{
    kh_directory *directory = new_directory(3);
    kh_directory_stats stats;
    kh_entry *entry = NULL;
    char name[32];

    (void)state;
    learn(directory, "real", 1);
    for (int i = 0; i < KH_DIRECTORY_NEGATIVE_MAX + 100; i++) {
        snprintf(name, sizeof name, "absent-%d", i);
        learn(directory, name, 0);
    }
    kh_directory_get_stats(directory, &stats);
    assert_int_equal(stats.absent, KH_DIRECTORY_NEGATIVE_MAX);
    assert_int_equal(get(directory, "real", &entry), KH_OK);
    assert_int_equal(get(directory, name, &entry), KH_OK);
    assert_int_equal(entry->count, 0);
    assert_int_equal(get(directory, "absent-0", &entry), KH_AGAIN); /* the oldest was forgotten */
    kh_directory_free(directory);
}

static void test_generation(void **state)
{
    kh_directory *directory = new_directory(10);
    kh_key_info info = {.ref = 9};
    kh_job_list waiters;
    kh_entry *entry = NULL;
    kh_job job = {0};

    (void)state;
    learn(directory, "a", 1);
    learn(directory, "gone", 0);
    kh_directory_generation(directory, 0);
    assert_int_equal(get(directory, "a", &entry), KH_OK);
    kh_directory_generation(directory, 1);
    assert_int_equal(get(directory, "gone", &entry), KH_AGAIN);
    assert_int_equal(get(directory, "a", &entry), KH_AGAIN);
    kh_directory_wait(entry, &job);
    assert_non_null(kh_directory_wanted(directory, 1));
    entry = kh_directory_wanted(directory, 2);
    assert_non_null(entry);
    kh_directory_generation(directory, 2); /* while it is asked: good for who waits, not to keep */
    assert_int_equal(kh_directory_answer(directory, entry, KH_OK, &info, 1, &waiters), KH_OK);
    assert_int_equal(waiters.count, 1);
    assert_int_equal(entry->infos[0]->ref, 9);
    kh_directory_settle(directory, entry);
    assert_int_equal(get(directory, "a", &entry), KH_AGAIN);
    kh_directory_free(directory);
}

static void test_failures(void **state)
{
    kh_directory *directory = new_directory(10);
    kh_key_info info = {0};
    kh_job_list waiters;
    kh_entry *entry = NULL;
    kh_job job = {0};

    (void)state;
    assert_int_equal(get(directory, "a", &entry), KH_AGAIN);
    kh_directory_wait(entry, &job);
    kh_directory_wanted(directory, 5);
    assert_int_equal(kh_directory_answer(directory, entry, KH_E_STORAGE, NULL, 0, &waiters), KH_E_STORAGE);
    assert_int_equal(waiters.count, 1);
    kh_directory_settle(directory, entry);
    assert_int_equal(get(directory, "a", &entry), KH_AGAIN); /* not remembered */
    kh_directory_wanted(directory, 6);
    assert_int_equal(kh_directory_answer(directory, entry, KH_OK, &info, 0, &waiters), KH_E_INTERNAL);
    kh_directory_settle(directory, entry);
    assert_int_equal(get(directory, "a", &entry), KH_AGAIN);
    kh_directory_wanted(directory, 7);
    assert_int_equal(kh_directory_answer(directory, entry, KH_OK, &info, KH_LOOKUP_MAX + 1, &waiters),
                     KH_E_INTERNAL);
    kh_directory_settle(directory, entry);
    kh_directory_free(directory);
}

static void test_keeper_died(void **state)
{
    kh_directory *directory = new_directory(10);
    kh_directory_stats stats;
    kh_entry *wanted = NULL, *unwanted = NULL;
    kh_job job = {0};

    (void)state;
    assert_int_equal(get(directory, "a", &wanted), KH_AGAIN);
    kh_directory_wait(wanted, &job);
    assert_int_equal(get(directory, "b", &unwanted), KH_AGAIN);
    kh_directory_wanted(directory, 1);
    kh_directory_wanted(directory, 2);
    kh_directory_again(directory);
    kh_directory_get_stats(directory, &stats);
    assert_int_equal(stats.pending, 1); /* who waits keeps its place, what nobody waits for is gone */
    assert_null(kh_directory_asked(directory, 1));
    assert_ptr_equal(kh_directory_wanted(directory, 3), wanted);
    kh_directory_unwait(directory, &job); /* asked: stays for its answer */
    assert_ptr_equal(kh_directory_asked(directory, 3), wanted);
    kh_directory_free(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coalesced),           cmocka_unit_test(test_names_and_ids_are_apart),
        cmocka_unit_test(test_least_recently_used), cmocka_unit_test(test_absent),
        cmocka_unit_test(test_generation),          cmocka_unit_test(test_failures),
        cmocka_unit_test(test_keeper_died),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

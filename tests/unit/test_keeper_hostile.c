/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A front that was taken over scribbles over the shared memory while the keeper works. The keeper must live,
 * keep serving root's socket, and serve the next front as if nothing had been.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper_rig.h"
#include "ring.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static keeper_rig rig;
static kh_key_info keys[3];

typedef enum lie {
    LIE_ANYWHERE,
    LIE_QUEUES,
    LIE_SLOTS,
    LIE_DOORS,
    LIE_ALL_SLOTS_TWICE,
    LIE_GOOD_RECORDS,
    LIES
} lie;

static uint64_t seed = 88172645463325252u;

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* A record as the keeper knows them, in a slot, with fields that are often good. */
static void write_record(kh_ring_slot *slot)
{
    slot->op = (uint32_t)(dice() % 40);
    slot->key_ref = dice() % 4 != 0 ? keys[dice() % 3].ref : dice();
    slot->scheme = dice() % 2 ? KH_ECDSA_SHA256 : (uint32_t)dice();
    slot->flags = (uint32_t)(dice() % 3);
    slot->arg = dice() % 2 ? (uint32_t)(dice() % 20) : (uint32_t)dice();
    slot->deadline_ns = dice() % 2 ? 0 : dice();
    slot->data_len = dice() % 4 != 0 ? (uint32_t)(dice() % 2000) : (uint32_t)dice();
}

static void scribble(const kh_ring_map *map, lie kind)
{
    kh_ring_shared *shared = map->shared;

    switch (kind) {
    case LIE_ANYWHERE:
        ((uint8_t *)map->shared)[dice() % map->len] = (uint8_t)dice();
        break;
    case LIE_QUEUES:
        atomic_store(&map->sq[dice() % (2 * (map->mask + 1))],
                     (uint32_t)(dice() % 2 ? dice() : dice() % map->slots));
        atomic_store(&shared->sq_tail, (uint32_t)dice());
        break;
    case LIE_SLOTS:
        write_record(&map->slot[dice() % map->slots]);
        break;
    case LIE_DOORS:
        atomic_store(&shared->door, (uint32_t)dice());
        atomic_store(&shared->sleepers, (uint32_t)dice());
        atomic_store(&shared->front_waits, (uint32_t)dice() & 1);
        atomic_store(&shared->apart, (uint32_t)dice() % 4 != 0 ? (uint32_t)dice() % 4 : (uint32_t)dice());
        atomic_fetch_add(&shared->sq_tail, 1);
        break;
    case LIE_ALL_SLOTS_TWICE:
        write_record(&map->slot[0]);
        for (unsigned i = 0; i <= map->mask; i++) {
            atomic_store(&map->sq[i], 0);
        }
        atomic_fetch_add(&shared->sq_tail, map->mask + 1);
        break;
    default: {
        uint32_t tail = atomic_load(&shared->sq_tail), index = (uint32_t)(dice() % map->slots);

        write_record(&map->slot[index]);
        atomic_store(&map->sq[tail & map->mask], index);
        atomic_store(&shared->sq_tail, tail + 1);
        break;
    }
    }
    if (dice() % 64 == 0) {
        kh_futex_wake(&shared->door, 64);
    }
}

static pid_t start_scribbler(int memory, lie kind)
{
    pid_t pid = fork();
    kh_ring_map map;

    assert_true(pid >= 0);
    if (pid > 0) {
        return pid;
    }
    if (kh_ring_mmap(memory, &map) != KH_OK) {
        _exit(1);
    }
    for (;;) {
        scribble(&map, kind);
    }
}

static void run_lie(lie kind)
{
    static const uint8_t message[5] = "hello";
    const struct timespec moment = {.tv_nsec = 20000000};
    kh_record admin = {.op = KH_STORE_SIGN,
                       .key_ref = keys[0].ref,
                       .scheme = KH_ECDSA_SHA256,
                       .data = message,
                       .data_len = 5};
    int fds[3], copy[3];
    pid_t pid = 0;
    int status = 0;

    assert_int_equal(kh_ring_create(rig.slots, fds), KH_OK);
    assert_int_equal(kh_keeper_send_ring(rig.control, fds), KH_OK);
    for (int i = 0; i < 3; i++) {
        copy[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
    }
    kh_keystore_free(rig.keystore);
    assert_int_equal(kh_keystore_attach(copy, &rig.keystore), KH_OK);
    pid = start_scribbler(fds[0], kind);
    for (int round = 0; round < 10; round++) {
        kh_completion done[64];
        size_t n = 0;

        for (int i = 0; i < 32; i++) {
            kh_result result = kh_keystore_submit(rig.keystore, &admin);

            assert_true(result == KH_OK || result == KH_E_OVERLOADED);
        }
        kh_keystore_flush(rig.keystore);
        nanosleep(&moment, NULL);
        n = kh_keystore_collect(rig.keystore, done, 64);
        for (size_t i = 0; i < n; i++) {
            kh_keystore_release(rig.keystore, &done[i]);
        }
        /* Root is served all the while. */
        if (kind != LIE_GOOD_RECORDS || round == 0) {
            const rig_answer *got = rig_admin(&rig, &admin);

            assert_int_equal(got->result, KH_OK);
            assert_true(rig_verify(keys[0].spki, keys[0].spki_len, KH_ECDSA_SHA256, false, message, 5,
                                   got->data, got->len));
        }
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    for (int i = 0; i < 3; i++) {
        close(fds[i]);
    }
    /* The keeper lives, and the next front is served. */
    assert_int_equal(waitpid(rig.pid, &status, WNOHANG), 0);
    rig_new_ring(&rig);
    for (int k = 0; k < 3; k++) {
        kh_record record = admin;
        const rig_answer *got = NULL;

        record.key_ref = keys[k].ref;
        record.scheme = k == 0 ? KH_ECDSA_SHA256 : k == 1 ? KH_RSA_PSS_RSAE_SHA256 : KH_ED25519;
        got = rig_call(&rig, &record);
        assert_int_equal(got->result, KH_OK);
        assert_true(rig_verify(keys[k].spki, keys[k].spki_len, record.scheme, false, message, 5, got->data,
                               got->len));
    }
}

/* Gives the keeper a ring that the test holds too; the memory is mapped. */
static void ring_in_hand(int fds[3], kh_ring_map *map)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    assert_int_equal(kh_ring_create(rig.slots, fds), KH_OK);
    assert_int_equal(kh_keeper_send_ring(rig.control, fds), KH_OK);
    assert_int_equal(kh_ring_mmap(fds[0], map), KH_OK);
    while (atomic_load(&map->shared->sleepers) < rig.workers) {
        nanosleep(&moment, NULL);
    }
}

static void drop_in_hand(int fds[3], kh_ring_map *map)
{
    kh_ring_munmap(map);
    for (int i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

static void assert_served(void)
{
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    const rig_answer *got = rig_admin(&rig, &record);

    assert_int_equal(got->result, KH_OK);
    rig_new_ring(&rig);
    got = rig_call(&rig, &record);
    assert_int_equal(got->result, KH_OK);
    assert_int_equal(rig_sign(&rig, &keys[0], KH_ECDSA_SHA256, 0, "x", 1), KH_OK);
}

/* The front's event descriptors are made blocking and full, and an event is asked for all the time. */
static void test_blocking_events(void **state)
{
    kh_ring_map map;
    int fds[3];

    (void)state;
    ring_in_hand(fds, &map);
    while (send(fds[2], "", 1, MSG_DONTWAIT) == 1) {
    }
    assert_int_equal(fcntl(fds[1], F_SETFL, 0), 0);
    assert_int_equal(fcntl(fds[2], F_SETFL, 0), 0);
    for (int i = 0; i < 16; i++) {
        uint32_t tail = atomic_load(&map.shared->sq_tail);

        atomic_store(&map.shared->front_waits, 1);
        map.slot[i % 8].op = KH_STORE_IMPORT_KEY;
        map.slot[i % 8].data_len = 0;
        atomic_store(&map.sq[tail & map.mask], (uint32_t)i % 8);
        atomic_store(&map.shared->sq_tail, tail + 1);
        atomic_fetch_add(&map.shared->door, 1);
        kh_futex_wake(&map.shared->door, 1);
        while (atomic_load(&map.shared->cq_tail) != tail + 1) {
            sched_yield();
        }
    }
    assert_served();
    drop_in_hand(fds, &map);
}

/* The front moves the sleeping workers to a word of its own memory, where nobody wakes them. */
static void test_stolen_sleepers(void **state)
{
    static uint32_t elsewhere;
    kh_ring_map map;
    int fds[3];
    long stolen = 0;

    (void)state;
    ring_in_hand(fds, &map);
    for (int tries = 0; tries < 10000 && stolen < (long)rig.workers; tries++) {
        long n = syscall(SYS_futex, &map.shared->door, FUTEX_REQUEUE, 0, INT_MAX, &elsewhere, 0);

        stolen += n > 0 ? n : 0;
        sched_yield();
    }
    assert_true(stolen > 0);
    assert_served();
    drop_in_hand(fds, &map);
}

/* More fronts than one die while operations of theirs are still being computed. */
static void test_many_dead_rings(void **state)
{
    kh_record record = {.op = KH_STORE_CREATE, .data_len = sizeof(kh_key_info)};

    (void)state;
    for (unsigned i = 0; i < 24; i++) {
        kh_key_info info = {.type = KH_KEY_RSA, .bits = 3072, .usage = KH_USAGE_SIGN};

        snprintf(info.name, sizeof(info.name), "dead-%u", i);
        record.data = (const uint8_t *)&info;
        assert_int_equal(kh_keystore_submit(rig.keystore, &record), KH_OK);
        kh_keystore_flush(rig.keystore);
        rig_new_ring(&rig);
        assert_int_equal(rig_sign(&rig, &keys[0], KH_ECDSA_SHA256, 0, "x", 1), KH_OK);
    }
}

/* 7: what a front piles up for store and generator does not shut out root. */
static void test_flood_of_creations(void **state)
{
    kh_key_info flood = {.type = KH_KEY_RSA, .bits = 4096, .usage = KH_USAGE_SIGN};
    kh_key_info mine = {.type = KH_KEY_P256, .bits = 256, .usage = KH_USAGE_SIGN, .name = "operator"};
    kh_record record = {.op = KH_STORE_CREATE, .data_len = sizeof(flood)};
    unsigned refused = 0;

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        snprintf(flood.name, sizeof(flood.name), "flood-%u", i);
        record.data = (const uint8_t *)&flood;
        assert_int_equal(kh_keystore_submit(rig.keystore, &record), KH_OK);
    }
    kh_keystore_flush(rig.keystore);
    while (refused < 20) { /* the generator's desk is full */
        refused += rig_wait(&rig, NULL)->result == KH_E_OVERLOADED;
    }
    record.data = (const uint8_t *)&mine;
    assert_int_equal(rig_admin(&rig, &record)->result, KH_OK);
}

#define LIE_TEST(name, kind)                                                                                 \
    static void test_##name(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        run_lie(kind);                                                                                       \
    }
LIE_TEST(anywhere, LIE_ANYWHERE)
LIE_TEST(queues, LIE_QUEUES)
LIE_TEST(slots, LIE_SLOTS)
LIE_TEST(doors, LIE_DOORS)
LIE_TEST(all_slots_twice, LIE_ALL_SLOTS_TWICE)
LIE_TEST(good_records, LIE_GOOD_RECORDS)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_anywhere),        cmocka_unit_test(test_queues),
        cmocka_unit_test(test_slots),           cmocka_unit_test(test_doors),
        cmocka_unit_test(test_all_slots_twice), cmocka_unit_test(test_good_records),
        cmocka_unit_test(test_blocking_events), cmocka_unit_test(test_stolen_sleepers),
        cmocka_unit_test(test_many_dead_rings), cmocka_unit_test(test_flood_of_creations),
    };
    int failed = 0;

    kh_secure_openssl();
    rig_init(&rig, NULL);
    if (rig_start(&rig) != KH_OK ||
        rig_create(&rig, "a", KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &keys[0]) != KH_OK ||
        rig_create(&rig, "b", KH_KEY_RSA, 2048, KH_USAGE_SIGN | KH_USAGE_DECRYPT | KH_USAGE_TLS_RSA_KX, 0,
                   &keys[1]) != KH_OK ||
        rig_create(&rig, "c", KH_KEY_ED25519, 0, KH_USAGE_SIGN, 0, &keys[2]) != KH_OK) {
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed == 0 && rig_stop(&rig) != KH_OK) {
        failed = 1;
    } else if (failed != 0) {
        rig_kill(&rig);
    }
    rig_clean(&rig);
    return failed;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The ring by itself: making, attaching, order, wrap-around, wake-ups between threads, and lies in the
 * memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "ring.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct pair {
    kh_keystore *front;
    kh_ring_end end;
    int memory; /* a descriptor of the shared memory, to lie with */
} pair;

static void dup3_fds(const int from[3], int to[3])
{
    for (int i = 0; i < 3; i++) {
        to[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 0);
        assert_true(to[i] >= 0);
    }
}

static void open_pair(pair *p, uint32_t slots)
{
    int fds[3], mine[3];

    assert_int_equal(kh_ring_create(slots, fds), KH_OK);
    dup3_fds(fds, mine);
    p->memory = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
    assert_int_equal(kh_keystore_attach(mine, &p->front), KH_OK);
    assert_int_equal(mine[0], -1);
    assert_int_equal(kh_ring_end_open(fds, &p->end), KH_OK);
}

static void close_pair(pair *p)
{
    kh_keystore_free(p->front);
    kh_ring_end_close(&p->end);
    close(p->memory);
}

/* The keeper's part: takes one, answers its data backwards. */
static bool serve_one(kh_ring_end *end)
{
    kh_ring_copy copy;
    uint8_t data[KH_RECORD_DATA_MAX], back[KH_RECORD_DATA_MAX];

    if (!kh_ring_end_next(end, &copy)) {
        return false;
    }
    assert_true(copy.record.data_len <= sizeof(data));
    kh_ring_end_data(end, &copy, data);
    for (uint32_t i = 0; i < copy.record.data_len; i++) {
        back[i] = data[copy.record.data_len - 1 - i];
    }
    kh_ring_end_result(end, copy.slot, (kh_result)copy.record.arg, back, copy.record.data_len,
                       copy.record.flags);
    kh_ring_end_push(end, copy.slot);
    kh_ring_end_ring_front(end);
    return true;
}

static void test_create(void **state)
{
    int fds[3];

    (void)state;
    assert_int_equal(kh_ring_create(7, fds), KH_E_INVALID);
    assert_int_equal(kh_ring_create(4097, fds), KH_E_INVALID);
    for (uint32_t slots = 8; slots <= 4096; slots = slots * 3 + 1) {
        kh_keystore *front = NULL;

        assert_int_equal(kh_ring_create(slots, fds), KH_OK);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        }
        assert_int_equal(ftruncate(fds[0], 0), -1); /* sealed */
        assert_int_equal(ftruncate(fds[0], 1 << 30), -1);
        assert_int_equal(kh_keystore_attach(fds, &front), KH_OK);
        assert_int_equal(kh_keystore_free_slots(front), slots);
        kh_keystore_free(front);
    }
    kh_keystore_free(NULL);
}

static void refuse(size_t offset, uint32_t value, kh_result result)
{
    int fds[3], mine[3];
    kh_keystore *front = NULL;
    kh_ring_end end;

    assert_int_equal(kh_ring_create(8, fds), KH_OK);
    assert_int_equal(pwrite(fds[0], &value, sizeof(value), (off_t)offset), sizeof(value));
    dup3_fds(fds, mine);
    assert_int_equal(kh_keystore_attach(mine, &front), result);
    assert_null(front);
    assert_int_equal(mine[0], -1);
    assert_int_equal(kh_ring_end_open(fds, &end), result);
    assert_int_equal(fds[2], -1);
}

static void test_refused(void **state)
{
    int fds[3] = {memfd_create("x", MFD_CLOEXEC), dup(0), dup(0)};
    kh_keystore *front = NULL;

    (void)state;
    refuse(offsetof(kh_ring_shared, magic), 1, KH_E_VERSION);
    refuse(offsetof(kh_ring_shared, layout), 1, KH_E_VERSION);
    refuse(offsetof(kh_ring_shared, slots), 9, KH_E_INVALID);
    refuse(offsetof(kh_ring_shared, slots), 4096, KH_E_INVALID);
    refuse(offsetof(kh_ring_shared, slots), 0xffffffff, KH_E_INVALID);
    refuse(offsetof(kh_ring_shared, slots), 0, KH_E_INVALID);
    assert_int_equal(kh_keystore_attach(fds, &front), KH_E_INVALID); /* not sealed */
}

static void test_round_trips(void **state)
{
    static const uint32_t sizes[] = {0, 1, 146, 1024, 1025, KH_MESSAGE_MAX, KH_RECORD_DATA_MAX};
    uint8_t data[KH_RECORD_DATA_MAX];
    kh_completion done[4];
    pair p;

    (void)state;
    open_pair(&p, 8);
    for (unsigned i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)(i * 31);
    }
    for (unsigned round = 0; round < 1000; round++) { /* many times around */
        uint32_t len = sizes[round % 7];
        kh_record record = {
            .cookie = round, .arg = round % 31, .flags = round, .data = data, .data_len = len};

        assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
        assert_true(serve_one(&p.end));
        assert_false(serve_one(&p.end));
        assert_int_equal(kh_keystore_collect(p.front, done, 4), 1);
        assert_int_equal(done[0].cookie, round);
        assert_int_equal(done[0].result, round % 31);
        assert_int_equal(done[0].batch, round);
        assert_int_equal(done[0].data_len, len);
        assert_true(len == 0 || (done[0].data[0] == data[len - 1] && done[0].data[len - 1] == data[0]));
        assert_int_equal(kh_keystore_free_slots(p.front), 7);
        kh_keystore_release(p.front, &done[0]);
        kh_keystore_release(p.front, &done[0]); /* twice does nothing */
        assert_int_equal(kh_keystore_free_slots(p.front), 8);
    }
    close_pair(&p);
}

static void test_full(void **state)
{
    kh_record record = {.op = 1};
    kh_completion done[16];
    pair p;

    (void)state;
    open_pair(&p, 13);
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 13; i++) {
            record.cookie = i;
            assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
        }
        assert_int_equal(kh_keystore_submit(p.front, &record), KH_E_OVERLOADED);
        while (serve_one(&p.end)) {
        }
        assert_int_equal(kh_keystore_submit(p.front, &record), KH_E_OVERLOADED); /* done, but not released */
        assert_int_equal(kh_keystore_collect(p.front, done, 16), 13);
        for (unsigned i = 0; i < 13; i++) {
            assert_int_equal(done[i].cookie, i);
            kh_keystore_release(p.front, &done[i]);
        }
    }
    record.data_len = KH_RECORD_DATA_MAX + 1;
    assert_int_equal(kh_keystore_submit(p.front, &record), KH_E_TOO_LARGE);
    close_pair(&p);
}

/* An event is written only for a front that said it would sleep. */
static void test_event(void **state)
{
    kh_record record = {.op = 1};
    kh_completion done[4];
    struct pollfd pfd = {.events = POLLIN};
    pair p;

    (void)state;
    open_pair(&p, 8);
    pfd.fd = kh_keystore_event_fd(p.front);
    assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
    assert_true(serve_one(&p.end));
    assert_int_equal(poll(&pfd, 1, 0), 0); /* the front is awake */
    assert_int_equal(kh_keystore_collect(p.front, done, 4), 1);
    kh_keystore_release(p.front, done);
    assert_int_equal(kh_keystore_collect(p.front, done, 4), 0); /* arms */
    assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
    assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
    assert_true(serve_one(&p.end));
    assert_true(serve_one(&p.end));
    assert_int_equal(poll(&pfd, 1, 0), 1);
    assert_int_equal(kh_keystore_collect(p.front, done, 4), 2);
    assert_int_equal(poll(&pfd, 1, 0), 0); /* drained */
    close_pair(&p);
}

static bool readable(const pair *p)
{
    struct pollfd pfd = {.fd = kh_keystore_event_fd(p->front), .events = POLLIN};

    return poll(&pfd, 1, 0) == 1;
}

/*
 * The keeper takes a wish, and writes its event later. However late: the descriptor does not stay readable
 * after the front has looked, or its event loop would spin.
 */
static void test_late_events(void **state)
{
    kh_completion done[4];
    pair p;

    (void)state;
    open_pair(&p, 8);
    for (unsigned round = 0; round < 256; round++) {
        unsigned late = 0;

        /* Each two bits of the round: a wish is taken; its event comes; the front looks. */
        for (unsigned step = 0; step < 4; step++) {
            assert_int_equal(kh_keystore_collect(p.front, done, 4), 0);
            late += atomic_exchange(&p.end.map.shared->front_waits, 0);
            if ((round >> (2 * step) & 1) != 0) {
                kh_keystore_collect(p.front, done, 4);
                late += atomic_exchange(&p.end.map.shared->front_waits, 0);
            }
            for (; (round >> (2 * step) & 2) != 0 && late > 0; late--) {
                assert_int_equal(send(p.end.event_fd, "", 1, MSG_DONTWAIT), 1);
            }
        }
        for (; late > 0; late--) {
            assert_int_equal(send(p.end.event_fd, "", 1, MSG_DONTWAIT), 1);
        }
        assert_int_equal(kh_keystore_collect(p.front, done, 4), 0);
        assert_false(readable(&p));
    }
    close_pair(&p);
}

/* A front makes the shared socket blocking, fills it, and asks for one more event. */
static void test_full_socket(void **state)
{
    int front_fd = -1;
    pair p;

    (void)state;
    open_pair(&p, 8);
    front_fd = kh_keystore_event_fd(p.front);
    while (send(p.end.event_fd, "", 1, MSG_DONTWAIT) == 1) {
    }
    assert_int_equal(fcntl(front_fd, F_SETFL, 0), 0);
    assert_int_equal(fcntl(p.end.event_fd, F_SETFL, 0), 0); /* it has a descriptor of that end too */
    atomic_store(&p.end.map.shared->front_waits, 1);
    alarm(10);
    kh_ring_end_ring_front(&p.end);
    alarm(0);
    assert_int_equal(atomic_load(&p.end.map.shared->front_waits), 0);
    close_pair(&p);
}

/* What a slot held is gone when it is released. */
static void test_release_wipes(void **state)
{
    static const uint8_t secret[] = "a plaintext";
    kh_record record = {.op = 1, .data = secret, .data_len = sizeof(secret)};
    kh_completion done[1];
    pair p;

    (void)state;
    open_pair(&p, 8);
    assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
    assert_true(serve_one(&p.end));
    assert_int_equal(kh_keystore_collect(p.front, done, 1), 1);
    assert_int_equal(done[0].data[1], 't');
    kh_keystore_release(p.front, done);
    for (size_t i = 0; i < sizeof(secret); i++) {
        assert_int_equal(done[0].data[i], 0);
    }
    close_pair(&p);
}

/* ---- Two threads --------------------------------------------------------------------------------------- */

#define EXCHANGES 60000

static void *keeper_thread(void *arg)
{
    kh_ring_end *end = arg;
    kh_ring_shared *shared = end->map.shared;

    for (unsigned served = 0; served < EXCHANGES;) {
        uint32_t seen = 0;

        if (serve_one(end)) {
            served++;
            continue;
        }
        seen = atomic_load(&shared->door);
        atomic_fetch_add(&shared->sleepers, 1);
        if (!kh_ring_end_pending(end)) {
            kh_futex_wait(&shared->door, seen, 0); /* for ever: a lost wake-up hangs the test */
        }
        atomic_fetch_sub(&shared->sleepers, 1);
    }
    return NULL;
}

static void test_threads(void **state)
{
    kh_completion done[8];
    struct pollfd pfd = {.events = POLLIN};
    unsigned submitted = 0, collected = 0;
    pthread_t thread;
    pair p;

    (void)state;
    open_pair(&p, 16);
    pfd.fd = kh_keystore_event_fd(p.front);
    assert_int_equal(pthread_create(&thread, NULL, keeper_thread, &p.end), 0);
    while (collected < EXCHANGES) {
        size_t n = 0;

        for (unsigned burst = submitted % 5 + 1; burst > 0 && submitted < EXCHANGES; burst--) {
            uint32_t value = submitted;
            kh_record record = {
                .cookie = submitted, .data = (const uint8_t *)&value, .data_len = sizeof(value)};

            if (kh_keystore_submit(p.front, &record) != KH_OK) {
                break;
            }
            submitted++;
        }
        kh_keystore_flush(p.front);
        while ((n = kh_keystore_collect(p.front, done, 8)) > 0) {
            for (size_t i = 0; i < n; i++) {
                uint32_t value = (uint32_t)done[i].cookie, got = 0;

                memcpy(&got, done[i].data, sizeof(got));
                assert_int_equal(got, __builtin_bswap32(value));
                kh_keystore_release(p.front, &done[i]);
            }
            collected += (unsigned)n;
        }
        if (collected < EXCHANGES && submitted > collected) {
            assert_int_equal(poll(&pfd, 1, 30000), 1);
        }
    }
    pthread_join(thread, NULL);
    close_pair(&p);
}

/* ---- Lies ---------------------------------------------------------------------------------------------- */

/* Whatever the memory says, the keeper's end gives at most so many records and never a slot that is not one.
 */
static void test_lies(void **state)
{
    kh_ring_copy copy;
    pair p;

    (void)state;
    open_pair(&p, 8);
    kh_ring_shared *shared = p.end.map.shared;
    srandom(1);
    for (unsigned round = 0; round < 20000; round++) {
        unsigned n = 0;

        atomic_store(&shared->sq_tail, (uint32_t)random() << 8 ^ (uint32_t)random());
        for (unsigned i = 0; i <= p.end.map.mask; i++) {
            atomic_store(&p.end.map.sq[i], (uint32_t)random() % (round % 2 ? 16 : UINT32_MAX));
        }
        shared->slots = (uint32_t)random(); /* what the mapping was made with is private */
        while (kh_ring_end_next(&p.end, &copy)) {
            assert_true(copy.slot < 8);
            assert_true(++n <= 8);
            kh_ring_end_push(&p.end, copy.slot);
        }
        assert_false(kh_ring_end_pending(&p.end));
    }
    /* And a keeper that lies to the front. */
    atomic_store(&p.end.map.shared->cq_tail, 0xfffffff0u);
    for (unsigned i = 0; i <= p.end.map.mask; i++) {
        atomic_store(&p.end.map.cq[i], 0x7fffffffu + i);
    }
    kh_completion done[8];
    kh_record record = {.op = 1};
    assert_int_equal(kh_keystore_submit(p.front, &record), KH_OK);
    assert_int_equal(kh_keystore_collect(p.front, done, 8), 0);
    close_pair(&p);
}

/* A ring that a keeper had is continued at its end by the next one: old records are not answered twice. */
static void test_second_keeper(void **state)
{
    kh_record record = {.op = 1};
    int fds[3], mine[3], again[3];
    kh_keystore *front = NULL;
    kh_ring_end end;

    (void)state;
    assert_int_equal(kh_ring_create(8, fds), KH_OK);
    dup3_fds(fds, mine);
    dup3_fds(fds, again);
    assert_int_equal(kh_keystore_attach(mine, &front), KH_OK);
    assert_int_equal(kh_keystore_submit(front, &record), KH_OK);
    assert_int_equal(kh_ring_end_open(fds, &end), KH_OK);
    assert_true(serve_one(&end)); /* submitted before the keeper was there */
    kh_ring_end_close(&end);
    assert_int_equal(kh_keystore_submit(front, &record), KH_OK);
    assert_int_equal(kh_ring_end_open(again, &end), KH_OK);
    assert_false(serve_one(&end));
    assert_int_equal(kh_keystore_submit(front, &record), KH_OK);
    assert_true(serve_one(&end));
    kh_ring_end_close(&end);
    kh_keystore_free(front);
}

static void test_lanes(void **state)
{
    (void)state;
    assert_int_equal(kh_lane_of(KH_KEY_RSA, 2048), KH_LANE_RSA2048);
    assert_int_equal(kh_lane_of(KH_KEY_RSA, 2050), KH_LANE_RSA3072);
    assert_int_equal(kh_lane_of(KH_KEY_RSA, 3072), KH_LANE_RSA3072);
    assert_int_equal(kh_lane_of(KH_KEY_RSA, 3074), KH_LANE_RSA4096);
    assert_int_equal(kh_lane_of(KH_KEY_RSA, 4096), KH_LANE_RSA4096);
    assert_int_equal(kh_lane_of(KH_KEY_RSA, 4098), KH_LANE_STORE);
    assert_int_equal(kh_lane_of(KH_KEY_P256, 256), KH_LANE_P256);
    assert_int_equal(kh_lane_of(KH_KEY_P384, 384), KH_LANE_P384);
    assert_int_equal(kh_lane_of(KH_KEY_P521, 521), KH_LANE_P521);
    assert_int_equal(kh_lane_of(KH_KEY_ED25519, 256), KH_LANE_ED25519);
    assert_int_equal(kh_lane_of(99, 256), KH_LANE_STORE);
    assert_string_equal(kh_lane_name(KH_LANE_P521), "p521");
    assert_string_equal(kh_lane_name(-1), "unknown");
    assert_string_equal(kh_lane_name(KH_LANE_COUNT), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_round_trips),   cmocka_unit_test(test_full),
        cmocka_unit_test(test_event),         cmocka_unit_test(test_late_events),
        cmocka_unit_test(test_full_socket),   cmocka_unit_test(test_release_wipes),
        cmocka_unit_test(test_threads),       cmocka_unit_test(test_lies),
        cmocka_unit_test(test_second_keeper), cmocka_unit_test(test_lanes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

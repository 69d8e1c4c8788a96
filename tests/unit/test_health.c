/* SPDX-License-Identifier: Apache-2.0 */
/* Partitions: which one is asked, when one is left out, and how it comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "health.h"

#define START (UINT64_C(1000000) * KH_MS)
#define KEY 7

/* It fails at an operation that another partition does. */
static bool fails(kh_health *health, uint64_t key, uint64_t now)
{
    kh_health_sent(health, now);
    kh_health_heard(health, now);
    return kh_health_bad(health, key, now);
}

static bool serve_key(kh_health *health, uint64_t key, uint64_t now)
{
    kh_health_sent(health, now);
    return kh_health_good(health, key, now, KH_MS);
}

/* Gives each operation to the one that is chosen; each takes as long as its partition needs for one, times its queue. */
static void serve(kh_health *members[3], const uint32_t each_ms[3], unsigned operations, unsigned counts[3])
{
    uint64_t now = START;

    for (unsigned i = 0; i < operations; i++) {
        int chosen = kh_health_choose(members, 3, 7, i);

        assert_in_range(chosen, 0, 2);
        counts[chosen]++;
        kh_health_sent(members[chosen], now);
        if (i % 4 == 3) { /* four at a time, then all answer */
            for (int m = 0; m < 3; m++) {
                while (members[m]->outstanding > 0) {
                    (void)kh_health_good(members[m], KEY, now, members[m]->outstanding * each_ms[m] * KH_MS);
                }
            }
        }
        now += KH_MS;
    }
}

static void test_balance(void **state)
{
    kh_health a = {0}, b = {0}, c = {0};
    kh_health *members[3] = {&a, &b, &c};
    unsigned counts[3] = {0};

    (void)state;
    serve(members, (const uint32_t[]){5, 5, 5}, 600, counts);
    for (int i = 0; i < 3; i++) {
        assert_in_range(counts[i], 120, 280);
        counts[i] = 0;
    }
    serve(members, (const uint32_t[]){5, 5, 100}, 600, counts); /* one became slow: it gets little */
    assert_in_range(counts[2], 0, 60);
    for (int tick = 0; tick < 400; tick++) { /* idle: what it was like is forgotten */
        kh_health_age(&c);
    }
    counts[2] = 0;
    serve(members, (const uint32_t[]){5, 5, 5}, 600, counts);
    assert_in_range(counts[2], 60, 600);
}

/* One that was never measured is taken for as fast as the fastest: it does not get everything. */
static void test_unknown(void **state)
{
    kh_health a = {.usual_ns = 5 * KH_MS, .outstanding = 1}, b = {.usual_ns = 9 * KH_MS}, fresh = {.outstanding = 2};
    kh_health *members[3] = {&a, &b, &fresh};

    (void)state;
    assert_int_equal(kh_health_choose(members, 3, 7, 0), 1);
    fresh.outstanding = 0;
    assert_int_equal(kh_health_choose(members, 3, 7, 0), 2);
    assert_int_equal(kh_health_choose(members, 3, 3, 0), 1); /* it is not usable */
    assert_int_equal(kh_health_choose(members, 3, 0, 0), -1);
    members[1] = NULL;
    assert_int_equal(kh_health_choose(members, 3, 1, 5), 0);
}

/* Failures in a row leave it out; a copy that is answered takes it back. */
static void test_failures(void **state)
{
    kh_health a = {0}, b = {0};
    kh_health *members[2] = {&a, &b};
    uint64_t now = START;

    (void)state;
    kh_health_begin(&a, now, true);
    kh_health_begin(&b, now, true);
    for (int round = 0; round < 2; round++) { /* a success between them: not in a row */
        for (int i = 0; i < KH_HEALTH_FAILURES - 1; i++) {
            assert_false(fails(&a, KEY, now));
        }
        kh_health_sent(&a, now);
        assert_false(kh_health_good(&a, KEY, now, KH_MS));
    }
    for (int i = 0; i < KH_HEALTH_FAILURES; i++) {
        assert_int_equal(fails(&a, KEY, now), i == KH_HEALTH_FAILURES - 1);
    }
    assert_true(a.lost && a.out);
    b.outstanding = 100;
    assert_int_equal(kh_health_choose(members, 2, 3, 0), 1); /* however busy the other is */
    assert_int_equal(kh_health_choose(members, 2, 1, 0), 0); /* unless there is none */
    assert_false(kh_health_probe(&a, KEY, now));
    now += KH_HEALTH_PROBE_FIRST_NS;
    assert_true(kh_health_probe(&a, KEY, now));
    assert_false(kh_health_probe(&a, KEY, now)); /* one at a time */
    assert_false(fails(&a, KEY, now)); /* it is known to be lost */
    now += KH_HEALTH_PROBE_FIRST_NS;
    assert_true(kh_health_probe(&a, KEY, now));
    for (int i = 0; i < 20; i++) { /* longer and longer, but never longer than this */
        now += KH_HEALTH_PROBE_MOST_NS;
        assert_true(kh_health_probe(&a, KEY, now));
        assert_false(kh_health_probe(&a, KEY, now + KH_HEALTH_PROBE_FIRST_NS));
    }
    kh_health_sent(&a, now);
    assert_true(kh_health_good(&a, KEY, now, 0)); /* back: told once */
    kh_health_sent(&a, now);
    assert_false(kh_health_good(&a, KEY, now, KH_MS));
    assert_false(a.out || kh_health_probe(&a, KEY, now));
}

static void test_silence(void **state)
{
    kh_health a = {0};
    uint64_t now = START;

    (void)state;
    kh_health_begin(&a, now, true);
    assert_false(kh_health_silent(&a, now + 3600 * 1000 * KH_MS)); /* nothing to answer */
    now += 3600 * 1000 * KH_MS;
    kh_health_sent(&a, now); /* a single operation may be a slow key's */
    assert_false(kh_health_silent(&a, now + 2 * KH_HEALTH_PATIENCE_NS));
    assert_true(kh_health_silent(&a, now + KH_HEALTH_SILENCE_NS + 1));
    kh_health_sent(&a, now);
    kh_health_sent(&a, now);
    assert_false(kh_health_silent(&a, now + KH_HEALTH_STILL_NS + 1)); /* a burst at first: it may be a slow HSM */
    assert_true(kh_health_silent(&a, now + KH_HEALTH_SILENCE_NS + 1));
    a.usual_ns = KH_MS; /* known to be fast */
    assert_false(kh_health_silent(&a, now + KH_HEALTH_STILL_NS));
    assert_true(kh_health_silent(&a, now + KH_HEALTH_STILL_NS + 1));
    a.aged = true; /* or that is a memory, from before a pause */
    assert_false(kh_health_silent(&a, now + KH_HEALTH_STILL_NS + 1));
    a.usual_ns = 0;
    now += KH_HEALTH_STILL_NS;
    (void)kh_health_good(&a, KEY, now, KH_HEALTH_STILL_NS); /* it is slow, not silent */
    assert_true(kh_health_patience(&a) == 4 * KH_HEALTH_STILL_NS);
    assert_false(kh_health_silent(&a, now + KH_HEALTH_STILL_NS + 1));
    assert_true(kh_health_lose(&a, now));
    assert_false(kh_health_lose(&a, now));
    kh_health_begin(&a, now + KH_MS, true); /* a new keeper proves itself at once, but proves itself */
    assert_true(a.out && a.lost && a.outstanding == 0);
    assert_true(kh_health_probe(&a, KEY, now + KH_MS));
    kh_health_sent(&a, now + KH_MS);
    assert_true(kh_health_good(&a, KEY, now + 2 * KH_MS, KH_MS));
}

/* A key that fails while others are served leaves the partition in, whatever the order of its uses. */
static void test_broken_key(void **state)
{
    kh_health a = {0};
    uint64_t now = START;
    unsigned lost = 0;

    (void)state;
    kh_health_begin(&a, now, true);
    for (int i = 0; i < 1000; i++) { /* much used, beside one that is used now and then */
        now += 10 * KH_MS;
        lost += fails(&a, 13, now);
        if (i % 20 == 0) {
            assert_false(serve_key(&a, KEY, now));
        }
    }
    assert_int_equal(lost, 0);
    assert_false(a.out);
    for (int i = 0; i < 100; i++) { /* and then alone: it is known */
        now += 1000 * KH_MS;
        lost += fails(&a, 13, now);
    }
    assert_int_equal(lost, 0);
    for (int i = 0; i < KH_HEALTH_FAILURES; i++) { /* that does not hide what is the partition's */
        lost += fails(&a, 13, now) + fails(&a, KEY, now) + fails(&a, 14, now);
    }
    assert_int_equal(lost, 1);
    assert_true(a.lost);
    assert_true(serve_key(&a, 14, now));
    assert_false(a.out);
}

/* One that nobody used of late does not speak against the only one that is used; nor does one that comes to be served. */
static void test_one_key(void **state)
{
    kh_health a = {0};
    uint64_t now = START;
    unsigned lost = 0;

    (void)state;
    kh_health_begin(&a, now, true);
    (void)serve_key(&a, KEY, now);
    for (uint64_t until = now + KH_HEALTH_LATELY_NS - 1; now < until; now += 50 * KH_MS) {
        assert_false(fails(&a, 13, now));
    }
    now += 100 * KH_MS;
    assert_true(fails(&a, 13, now)); /* a while without any other: it may well be the partition */
    assert_true(serve_key(&a, KEY, now)); /* it was not, */
    for (int i = 0; i < 100; i++) {
        now += 1000 * KH_MS;
        lost += fails(&a, 13, now); /* and that is remembered */
    }
    assert_int_equal(lost, 0);
    assert_false(serve_key(&a, 13, now)); /* until it works: */
    now += 2 * KH_HEALTH_LATELY_NS;
    for (int i = 0; i < KH_HEALTH_FAILURES; i++) {
        lost += fails(&a, 13, now);
    }
    assert_int_equal(lost, 1); /* no other speaks against it any more */
    kh_health_begin(&a, now, true); /* a new keeper: whatever was lacking may be there */
    assert_int_equal(a.failing[0].key, 0);
}

/* With nothing to do one that is lost counts as back after a while: longer each time that it was wrong. */
static void test_rest(void **state)
{
    kh_health a = {0};
    uint64_t now = START, quiet = KH_HEALTH_QUIET_NS;

    (void)state;
    kh_health_begin(&a, now, true);
    assert_false(kh_health_rest(&a, now + 3600 * 1000 * KH_MS)); /* it is not lost */
    (void)kh_health_lose(&a, now);
    for (int i = 0; i < 12; i++) {
        kh_health_begin(&a, now, true); /* its keeper is back */
        kh_health_sent(&a, now);
        assert_false(kh_health_rest(&a, now + 3600 * 1000 * KH_MS)); /* it has something to do */
        kh_health_heard(&a, now);
        assert_false(kh_health_rest(&a, now + quiet - 1));
        assert_true(kh_health_rest(&a, now + quiet));
        assert_true(a.out && !a.lost); /* the next operations prove it */
        assert_false(kh_health_rest(&a, now + quiet));
        now += quiet;
        assert_true(kh_health_probe(&a, KEY, now));
        assert_true(kh_health_lose(&a, now));
        quiet = 2 * quiet < KH_HEALTH_QUIET_MOST_NS ? 2 * quiet : KH_HEALTH_QUIET_MOST_NS;
    }
    (void)serve_key(&a, KEY, now);
    (void)kh_health_lose(&a, now);
    assert_true(kh_health_rest(&a, now + KH_HEALTH_QUIET_NS));
    for (int i = 0; i < KH_HEALTH_FAILURES; i++) {
        assert_int_equal(fails(&a, KEY, now + KH_HEALTH_QUIET_NS), i == KH_HEALTH_FAILURES - 1);
    }
}

static void test_slow(void **state)
{
    kh_health a = {.usual_ns = KH_MS};

    (void)state;
    kh_health_slow(&a, 80 * KH_MS);
    assert_in_range(a.usual_ns, 10 * KH_MS, 11 * KH_MS);
    kh_health_slow(&a, KH_MS); /* less than usual is no news */
    assert_in_range(a.usual_ns, 10 * KH_MS, 11 * KH_MS);
}

static void test_verdicts(void **state)
{
    (void)state;
    assert_int_equal(kh_health_verdict(KH_OK, true), KH_VERDICT_DONE);
    assert_int_equal(kh_health_verdict(KH_E_UNAVAILABLE, true), KH_VERDICT_FAULT);
    assert_int_equal(kh_health_verdict(KH_E_MISMATCH, true), KH_VERDICT_FAULT);
    assert_int_equal(kh_health_verdict(KH_E_NOT_FOUND, true), KH_VERDICT_ELSEWHERE);
    assert_int_equal(kh_health_verdict(KH_E_UNSUPPORTED, true), KH_VERDICT_ELSEWHERE); /* a caller's doing, perhaps */
    assert_int_equal(kh_health_verdict(KH_E_INVALID, true), KH_VERDICT_ELSEWHERE);
    assert_int_equal(kh_health_verdict(KH_E_OVERLOADED, true), KH_VERDICT_ELSEWHERE);
    assert_int_equal(kh_health_verdict(KH_E_CRYPTO, true), KH_VERDICT_FAULT);
    assert_int_equal(kh_health_verdict(KH_E_CRYPTO, false), KH_VERDICT_FINAL); /* a caller sent nonsense */
    assert_int_equal(kh_health_verdict(KH_E_USAGE, true), KH_VERDICT_FINAL);
    assert_int_equal(kh_health_verdict(KH_E_DEADLINE, true), KH_VERDICT_FINAL);
    assert_int_equal(kh_health_verdict(KH_E_DISABLED, true), KH_VERDICT_FINAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balance), cmocka_unit_test(test_unknown), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_silence), cmocka_unit_test(test_slow),    cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_broken_key), cmocka_unit_test(test_one_key), cmocka_unit_test(test_rest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

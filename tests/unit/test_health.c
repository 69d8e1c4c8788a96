/* SPDX-License-Identifier: Apache-2.0 */
/* Partitions: which one is asked, when one is left out, and how it comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "health.h"

#define START (UINT64_C(1000000) * KH_MS)

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
                    (void)kh_health_good(members[m], now, members[m]->outstanding * each_ms[m] * KH_MS);
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
            kh_health_sent(&a, now);
            assert_false(kh_health_bad(&a, now));
        }
        kh_health_sent(&a, now);
        assert_false(kh_health_good(&a, now, KH_MS));
    }
    for (int i = 0; i < KH_HEALTH_FAILURES; i++) {
        kh_health_sent(&a, now);
        assert_int_equal(kh_health_bad(&a, now), i == KH_HEALTH_FAILURES - 1);
    }
    assert_true(a.lost && a.out);
    b.outstanding = 100;
    assert_int_equal(kh_health_choose(members, 2, 3, 0), 1); /* however busy the other is */
    assert_int_equal(kh_health_choose(members, 2, 1, 0), 0); /* unless there is none */
    assert_false(kh_health_probe(&a, now));
    now += KH_HEALTH_PROBE_FIRST_NS;
    assert_true(kh_health_probe(&a, now));
    assert_false(kh_health_probe(&a, now)); /* one at a time */
    kh_health_sent(&a, now);
    assert_false(kh_health_bad(&a, now)); /* it is known to be lost */
    now += KH_HEALTH_PROBE_FIRST_NS;
    assert_true(kh_health_probe(&a, now));
    for (int i = 0; i < 20; i++) { /* longer and longer, but never longer than this */
        now += KH_HEALTH_PROBE_MOST_NS;
        assert_true(kh_health_probe(&a, now));
        assert_false(kh_health_probe(&a, now + KH_HEALTH_PROBE_FIRST_NS));
    }
    kh_health_sent(&a, now);
    assert_true(kh_health_good(&a, now, 0)); /* back: told once */
    kh_health_sent(&a, now);
    assert_false(kh_health_good(&a, now, KH_MS));
    assert_false(a.out || kh_health_probe(&a, now));
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
    assert_false(kh_health_silent(&a, now + KH_HEALTH_PATIENCE_NS + 1)); /* a burst at first: it may be a slow HSM */
    assert_true(kh_health_silent(&a, now + KH_HEALTH_SILENCE_NS + 1));
    a.usual_ns = KH_MS; /* known to be fast */
    assert_false(kh_health_silent(&a, now + KH_HEALTH_PATIENCE_NS));
    assert_true(kh_health_silent(&a, now + KH_HEALTH_PATIENCE_NS + 1));
    a.aged = true; /* or that is a memory, from before a pause */
    assert_false(kh_health_silent(&a, now + KH_HEALTH_PATIENCE_NS + 1));
    a.usual_ns = 0;
    now += KH_HEALTH_PATIENCE_NS;
    (void)kh_health_good(&a, now, KH_HEALTH_PATIENCE_NS); /* it is slow, not silent */
    assert_true(kh_health_patience(&a) == 4 * KH_HEALTH_PATIENCE_NS);
    assert_false(kh_health_silent(&a, now + KH_HEALTH_PATIENCE_NS + 1));
    assert_true(kh_health_lose(&a, now));
    assert_false(kh_health_lose(&a, now));
    kh_health_begin(&a, now + KH_MS, true); /* a new keeper proves itself at once, but proves itself */
    assert_true(a.out && a.lost && a.outstanding == 0);
    assert_true(kh_health_probe(&a, now + KH_MS));
    kh_health_sent(&a, now + KH_MS);
    assert_true(kh_health_good(&a, now + 2 * KH_MS, KH_MS));
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
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

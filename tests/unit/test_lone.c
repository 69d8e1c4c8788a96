/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that come one at a time: when front and workers keep apart, when they stop, and how long the front sleeps. */
#include "lone.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
/* cmocka.h needs the three before it. */
#include <cmocka.h>

#define US 1000u
#define MS 1000000u
#define ENOUGH (KH_LONE_LEARN + KH_LONE_STREAK)

static uint64_t now_ns, cookies;

static void one(kh_lone *lone, kh_lane lane, uint64_t took_ns)
{
    now_ns += 50 * US;
    kh_lone_turn(lone, 1, now_ns);
    assert_true(kh_lone_begin(lone, ++cookies, lane, now_ns));
    now_ns += took_ns;
    kh_lone_done(lone, cookies, now_ns);
}

static bool play(kh_lone *lone, kh_lane lane, unsigned count, uint64_t took_ns)
{
    for (unsigned i = 0; i < count; i++) {
        one(lone, lane, took_ns);
    }
    return lone->apart;
}

static int fresh(void **state)
{
    static kh_lone lone;

    lone = (kh_lone){0};
    now_ns = 1000 * (uint64_t)MS;
    *state = &lone;
    return 0;
}

static void test_begins(void **state)
{
    kh_lone *lone = *state;

    assert_false(play(lone, KH_LANE_RSA2048, KH_LONE_STREAK, 300 * US));
    assert_true(play(lone, KH_LANE_RSA2048, KH_LONE_LEARN, 300 * US));
    assert_true(play(lone, KH_LANE_RSA2048, 1000, 300 * US));
}

static void test_not_for_short_or_long(void **state)
{
    kh_lone *lone = *state;

    assert_false(play(lone, KH_LANE_P256, 1000, KH_LONE_LEAST_NS - 1));
    assert_false(play(lone, KH_LANE_RSA4096, 1000, KH_LONE_MOST_NS + 1));
    assert_true(play(lone, KH_LANE_RSA3072, ENOUGH, KH_LONE_MOST_NS));
}

/* The first of a key loads it, and that is no measure of those that follow. */
static void test_first_is_slow(void **state)
{
    kh_lone *lone = *state;

    one(lone, KH_LANE_P256, 8 * MS);
    for (unsigned i = 0; i < 1000; i++) {
        one(lone, KH_LANE_P256, 40 * US);
        assert_false(lone->apart);
    }
    one(lone, KH_LANE_RSA2048, 8 * MS);
    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
}

static void test_company_ends_it(void **state)
{
    kh_lone *lone = *state;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    assert_true(kh_lone_begin(lone, ++cookies, KH_LANE_RSA2048, now_ns));
    kh_lone_turn(lone, 2, now_ns);
    assert_false(lone->apart);
    assert_int_equal(lone->why, KH_LONE_COMPANY);
    kh_lone_done(lone, cookies, now_ns + 3000 * (uint64_t)MS); /* it was not alone: nothing is learned from it */
    assert_int_equal(lone->usual_ns[KH_LANE_RSA2048], 300 * US);
    assert_false(play(lone, KH_LANE_RSA2048, 1000, 300 * US)); /* 350 ms */
    assert_true(play(lone, KH_LANE_RSA2048, 2000, 300 * US));
}

/* Company now and then keeps it from beginning: each beginning is a system call for front and workers. */
static void test_company_now_and_then(void **state)
{
    kh_lone *lone = *state;

    for (unsigned i = 0; i < 100; i++) {
        assert_false(play(lone, KH_LANE_RSA2048, KH_LONE_STREAK - 1, 300 * US));
        kh_lone_turn(lone, 2, now_ns);
    }
}

/* What is left of several took longer than it would have alone. */
static void test_began_in_company(void **state)
{
    kh_lone *lone = *state;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    kh_lone_turn(lone, 2, now_ns);
    assert_false(kh_lone_begin(lone, ++cookies, KH_LANE_RSA2048, now_ns));
    kh_lone_done(lone, cookies, now_ns + 900 * US);
    assert_int_equal(lone->usual_ns[KH_LANE_RSA2048], 300 * US);
}

static void test_short_one_ends_it(void **state)
{
    kh_lone *lone = *state;

    assert_false(play(lone, KH_LANE_P256, 1000, 40 * US));
    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    assert_true(kh_lone_begin(lone, ++cookies, KH_LANE_P256, now_ns));
    assert_false(lone->apart);
    assert_int_equal(lone->why, KH_LONE_KIND);
    kh_lone_done(lone, cookies, now_ns + 40 * US);
    assert_true(play(lone, KH_LANE_RSA2048, KH_LONE_STREAK, 300 * US)); /* no pause: nobody wanted the CPU */
}

static void test_harm_ends_it(void **state)
{
    kh_lone *lone = *state;
    unsigned bad = 0;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    while (lone->apart && bad++ < 100) {
        one(lone, KH_LANE_RSA2048, 3 * MS); /* a turn of somebody else's on that CPU */
    }
    assert_in_range(bad, 2, 20);
    assert_int_equal(lone->why, KH_LONE_HARM);
    assert_false(play(lone, KH_LANE_RSA2048, 1400, 300 * US)); /* 0.49 s */
    assert_true(play(lone, KH_LANE_RSA2048, 2 * ENOUGH, 300 * US));
}

/* Until it has gone well for long, each harm is followed by a longer pause. */
static void test_harm_again_and_again(void **state)
{
    kh_lone *lone = *state;
    uint64_t pause_ns = 0, before_ns = 0;

    for (unsigned i = 0; i < 20; i++) {
        assert_true(play(lone, KH_LANE_RSA2048, 60000, 300 * US)); /* longer than any pause, and proven */
        for (unsigned bad = 0; lone->apart && bad < 100; bad++) {
            one(lone, KH_LANE_RSA2048, 3 * MS);
        }
        assert_in_range(lone->not_before_ns - now_ns, 1, 250 * MS); /* the first again */
    }
    for (unsigned i = 0; i < 20; i++, before_ns = pause_ns) {
        while (!lone->apart) {
            one(lone, KH_LANE_RSA2048, 300 * US);
        }
        for (unsigned bad = 0; lone->apart && bad < 100; bad++) {
            one(lone, KH_LANE_RSA2048, 3 * MS);
        }
        pause_ns = lone->not_before_ns - now_ns;
        assert_true(pause_ns >= before_ns && pause_ns <= 16000 * (uint64_t)MS);
    }
    assert_int_equal(pause_ns, 16000 * (uint64_t)MS);
}

static void test_some_late_ones_do_not(void **state)
{
    kh_lone *lone = *state;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    for (unsigned i = 0; i < 1000; i++) {
        one(lone, KH_LANE_RSA2048, i % 10 == 0 ? 50 * MS : 300 * US);
        assert_true(lone->apart);
    }
}

/* Faster than it was before, as it should be: that is no reason to think it harmed when it was slower. */
static void test_gets_faster(void **state)
{
    kh_lone *lone = *state;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 400 * US));
    assert_true(play(lone, KH_LANE_RSA2048, 1000, 280 * US));
    assert_true(play(lone, KH_LANE_RSA2048, 1000, 480 * US));
    assert_int_equal(lone->usual_ns[KH_LANE_RSA2048], 400 * US);
    assert_true(play(lone, KH_LANE_RSA2048, 1000, 280 * US));
    assert_true(kh_lone_begin(lone, ++cookies, KH_LANE_RSA2048, now_ns));
    assert_in_range(kh_lone_nap(lone, now_ns), 100 * US, 150 * US); /* half of what it takes now, not of what it took */
}

/* What is usual is learned again as long as they are not apart. */
static void test_usual_follows(void **state)
{
    kh_lone *lone = *state;

    assert_false(play(lone, KH_LANE_RSA2048, KH_LONE_LEARN, 90 * US));
    assert_false(play(lone, KH_LANE_RSA2048, 5, 300 * US));
    assert_true(play(lone, KH_LANE_RSA2048, 200, 300 * US));
    assert_in_range(lone->usual_ns[KH_LANE_RSA2048], 200 * US, 300 * US);
}

static void test_another_kind_between(void **state)
{
    kh_lone *lone = *state;

    for (unsigned i = 0; i < 1000; i++) {
        one(lone, KH_LANE_RSA2048, 300 * US);
        assert_false(lone->apart);
        one(lone, KH_LANE_P256, 40 * US);
        assert_false(lone->apart);
    }
}

static void test_another_one_is_done(void **state)
{
    kh_lone *lone = *state;
    uint64_t cookie = ++cookies;

    assert_true(kh_lone_begin(lone, cookie, KH_LANE_RSA2048, now_ns));
    assert_false(kh_lone_begin(lone, cookie, KH_LANE_RSA2048, now_ns)); /* told again */
    kh_lone_done(lone, cookie + 1, now_ns + 5 * US); /* of a caller that is gone, say */
    assert_true(lone->under_way);
    assert_int_equal(lone->learned[KH_LANE_RSA2048], 0);
    kh_lone_done(lone, cookie, now_ns + 300 * US);
    assert_int_equal(lone->usual_ns[KH_LANE_RSA2048], 300 * US);
    kh_lone_done(lone, cookie, now_ns + 5 * US);
    assert_int_equal(lone->learned[KH_LANE_RSA2048], 1);
}

/* No traffic ends it, and what came so long ago counts for nothing. */
static void test_idle(void **state)
{
    kh_lone *lone = *state;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    kh_lone_turn(lone, 0, now_ns + KH_LONE_IDLE_NS / 2);
    assert_true(lone->apart);
    kh_lone_turn(lone, 1, now_ns + 2 * KH_LONE_IDLE_NS); /* one takes very long: it is not idle */
    assert_true(lone->apart);
    kh_lone_turn(lone, 0, now_ns + 2 * KH_LONE_IDLE_NS);
    assert_false(lone->apart);
    assert_int_equal(lone->why, KH_LONE_IDLE);
    for (unsigned i = 0; i < 1000; i++) {
        one(lone, KH_LANE_RSA2048, 300 * US);
        assert_false(lone->apart);
        now_ns += 2 * KH_LONE_IDLE_NS;
    }
}

static void test_refused(void **state)
{
    kh_lone *lone = *state;

    assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, 300 * US));
    kh_lone_end(lone, KH_LONE_REFUSED, now_ns);
    assert_false(play(lone, KH_LANE_RSA2048, 20000, 300 * US)); /* 7 s */
    assert_true(play(lone, KH_LANE_RSA2048, 20000, 300 * US));
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(kh_lone_why_name(KH_LONE_COMPANY), "company");
    assert_string_equal(kh_lone_why_name(KH_LONE_OFF), "off");
}

/* No sleep up to the expected end is longer than a CPU stays warm, and there are no more than needed. */
static void test_naps(void **state)
{
    for (uint64_t takes_ns = KH_LONE_LEAST_NS; takes_ns <= KH_LONE_MOST_NS; takes_ns += 7 * US) {
        kh_lone *lone = *state;
        uint64_t slept_ns = 0, nap_ns = 0;
        unsigned naps = 0;

        fresh(state);
        assert_int_equal(kh_lone_nap(lone, now_ns), 0);
        assert_true(play(lone, KH_LANE_RSA2048, ENOUGH, takes_ns));
        assert_int_equal(kh_lone_nap(lone, now_ns), 0); /* nothing under way */
        assert_true(kh_lone_begin(lone, ++cookies, KH_LANE_RSA2048, now_ns));
        while ((nap_ns = kh_lone_nap(lone, now_ns + slept_ns)) > 0) {
            assert_true(nap_ns <= KH_LONE_SLEEP_NS);
            slept_ns += nap_ns;
            naps++;
        }
        assert_in_range(takes_ns - slept_ns, KH_LONE_LEAST_NS - 10, KH_LONE_SLEEP_NS); /* the last sleep ends with it */
        assert_true(naps <= takes_ns / KH_LONE_NAP_NS);
        assert_int_equal(kh_lone_nap(lone, now_ns + takes_ns + 1), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_begins, fresh),
        cmocka_unit_test_setup(test_not_for_short_or_long, fresh),
        cmocka_unit_test_setup(test_first_is_slow, fresh),
        cmocka_unit_test_setup(test_company_ends_it, fresh),
        cmocka_unit_test_setup(test_company_now_and_then, fresh),
        cmocka_unit_test_setup(test_began_in_company, fresh),
        cmocka_unit_test_setup(test_short_one_ends_it, fresh),
        cmocka_unit_test_setup(test_harm_ends_it, fresh),
        cmocka_unit_test_setup(test_harm_again_and_again, fresh),
        cmocka_unit_test_setup(test_some_late_ones_do_not, fresh),
        cmocka_unit_test_setup(test_gets_faster, fresh),
        cmocka_unit_test_setup(test_usual_follows, fresh),
        cmocka_unit_test_setup(test_another_kind_between, fresh),
        cmocka_unit_test_setup(test_another_one_is_done, fresh),
        cmocka_unit_test_setup(test_idle, fresh),
        cmocka_unit_test_setup(test_refused, fresh),
        cmocka_unit_test_setup(test_names, fresh),
        cmocka_unit_test_setup(test_naps, fresh),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "lone.h"
#include <string.h>

static const struct {
    const char *name;
    uint64_t pause_ns;
} ends[] = {
#define KH_X(constant, name, pause_ns) {name, pause_ns},
    KH_LONE_ENDS(KH_X)
#undef KH_X
};

const char *kh_lone_why_name(kh_lone_why why)
{
    return ends[why].name;
}

static bool suits(const kh_lone *lone, kh_lane lane)
{
    return lone->learned[lane] == KH_LONE_LEARN && lone->usual_ns[lane] >= KH_LONE_LEAST_NS &&
           lone->usual_ns[lane] <= KH_LONE_MOST_NS;
}

/* One that was held up for long must not count for many. */
static uint64_t smooth(uint64_t before, uint64_t took_ns)
{
    const uint64_t most = 2 * before;

    return before - before / 16 + (took_ns < most ? took_ns : most) / 16;
}

/* The first of a kind load their key and make its tables. */
static void learn(kh_lone *lone, uint64_t took_ns)
{
    uint64_t *usual_ns = &lone->usual_ns[lone->lane];
    uint8_t *learned = &lone->learned[lone->lane];

    if (*learned == KH_LONE_LEARN) {
        *usual_ns = smooth(*usual_ns, took_ns);
        return;
    }
    *usual_ns = *learned == 0 || took_ns < *usual_ns ? took_ns : *usual_ns;
    (*learned)++;
}

/* What slows a machine down for a moment looks like harm once; harm comes again and again. */
static uint64_t pause_of(kh_lone *lone, kh_lone_why why)
{
    if (why != KH_LONE_HARM) {
        return ends[why].pause_ns;
    }
    lone->harms = lone->streak >= KH_LONE_PROVEN ? 0 : lone->harms < KH_LONE_HARMS ? lone->harms + 1 : lone->harms;
    return ends[why].pause_ns << lone->harms;
}

void kh_lone_end(kh_lone *lone, kh_lone_why why, uint64_t now_ns)
{
    if (lone->apart) {
        lone->apart = false;
        lone->why = why;
        lone->not_before_ns = now_ns + pause_of(lone, why);
    }
    lone->under_way = false;
    lone->streak = 0;
    if (why == KH_LONE_COMPANY) {
        lone->company_ns = now_ns;
    }
}

void kh_lone_turn(kh_lone *lone, uint32_t operations, uint64_t now_ns)
{
    if (operations > 1) {
        kh_lone_end(lone, KH_LONE_COMPANY, now_ns);
    } else if (lone->apart && operations == 0 && now_ns - lone->began_ns > KH_LONE_IDLE_NS) {
        kh_lone_end(lone, KH_LONE_IDLE, now_ns);
    }
}

bool kh_lone_begin(kh_lone *lone, uint64_t cookie, kh_lane lane, uint64_t began_ns)
{
    if (began_ns <= lone->company_ns || (lone->under_way && lone->cookie == cookie)) {
        return false;
    }
    if (!suits(lone, lane)) {
        kh_lone_end(lone, KH_LONE_KIND, began_ns);
    } else if (began_ns - lone->began_ns > KH_LONE_IDLE_NS) {
        lone->streak = 0;
    }
    lone->under_way = true;
    lone->cookie = cookie;
    lone->lane = lane;
    lone->began_ns = began_ns;
    return true;
}

static void done_apart(kh_lone *lone, uint64_t took_ns, uint64_t now_ns)
{
    const uint64_t usual_ns = lone->usual_ns[lone->lane];
    uint64_t *apart_ns = &lone->apart_ns[lone->lane];

    lone->streak++;
    *apart_ns = smooth(*apart_ns, took_ns);
    if (*apart_ns > usual_ns + usual_ns / 4) {
        kh_lone_end(lone, KH_LONE_HARM, now_ns);
    }
}

void kh_lone_done(kh_lone *lone, uint64_t cookie, uint64_t now_ns)
{
    uint64_t took_ns = now_ns > lone->began_ns ? now_ns - lone->began_ns : 0;

    if (!lone->under_way || cookie != lone->cookie) {
        return;
    }
    lone->under_way = false;
    if (lone->apart) {
        done_apart(lone, took_ns, now_ns);
        return;
    }
    learn(lone, took_ns);
    lone->streak = suits(lone, lone->lane) ? lone->streak + 1 : 0;
    if (lone->streak >= KH_LONE_STREAK && now_ns >= lone->not_before_ns) {
        lone->apart = true;
        lone->streak = 0;
        memcpy(lone->apart_ns, lone->usual_ns, sizeof lone->apart_ns);
    }
}

/* The last sleep, which ends with the operation, needs no end of its own. */
uint64_t kh_lone_nap(const kh_lone *lone, uint64_t now_ns)
{
    const uint64_t apart_ns = lone->apart_ns[lone->lane], usual_ns = lone->usual_ns[lone->lane];
    const uint64_t takes_ns = apart_ns < usual_ns ? apart_ns : usual_ns, elapsed_ns = now_ns - lone->began_ns;
    uint64_t left_ns = takes_ns > elapsed_ns ? takes_ns - elapsed_ns : 0;

    if (!lone->apart || !lone->under_way || left_ns <= KH_LONE_SLEEP_NS) {
        return 0;
    }
    return left_ns / 2 < KH_LONE_NAP_NS ? left_ns / 2 : KH_LONE_NAP_NS;
}

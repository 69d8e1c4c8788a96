/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations that come one at a time. What such a one takes beyond the signature is mostly waking: caller, front and worker
 * wait for each other, and a CPU that slept for long is slow to wake (a virtual one whose host took it away, or one in a deep
 * C-state: 30 to 70 µs each time). So, while every operation is alone:
 *   - front and workers keep to different CPUs (kh_keystore_apart): the worker computes where the caller waited, and the
 *     front disturbs it not at all;
 *   - the front sleeps in naps (naps.c), so that its CPU is soon there again when the result comes.
 * For short operations nobody falls asleep, for long ones it does not matter; and two at a time end it at once, since then
 * every CPU may be wanted. Where it does harm, because somebody else needs that CPU, it ends for longer. Harm is what most
 * operations show: one in five that is late goes unnoticed.
 *
 * All zero is a fresh one. Times are CLOCK_MONOTONIC. One thread.
 */
#ifndef KH_AGENT_LONE_H
#define KH_AGENT_LONE_H

#include <keyhold/keystore.h>

#define KH_LONE_LEAST_NS 100000u /* operations that take from so long */
#define KH_LONE_MOST_NS 2000000u /* to so long */
#define KH_LONE_SLEEP_NS 200000u /* KVM polls so long before it takes a CPU away (halt_poll_ns); C-states are chosen by the next timer */
#define KH_LONE_NAP_NS 160000u
#define KH_LONE_LEARN 16         /* operations of a kind until it is known how long they take */
#define KH_LONE_STREAK 32        /* so many without company begin it, */
#define KH_LONE_PROVEN 1000      /* after so many operations harm is the first, */
#define KH_LONE_HARMS 6          /* and after so many in a row (16 s) the pause grows no more */
#define KH_LONE_IDLE_NS UINT64_C(10000000000) /* none of them so long after the one before; and so long without one ends it */

/* Why it ended, and how long it then does not begin again. */
#define KH_LONE_ENDS(X)                                                                                     \
    X(COMPANY, "company", 1000000000)  /* several were under way */                                         \
    X(HARM, "harm", 250000000)         /* operations took longer than before; twice as long each time */    \
    X(REFUSED, "refused", 10000000000) /* they cannot be apart: one CPU */                                  \
    X(KIND, "kind", 0)                 /* one came that is short, or long, or new */                        \
    X(IDLE, "idle", 0)                                                                                      \
    X(KEEPER, "keeper", 0)             /* it is gone */                                                     \
    X(OFF, "off", 0)                   /* the configuration */

typedef enum kh_lone_why {
#define KH_X(constant, name, pause_ns) KH_LONE_##constant,
    KH_LONE_ENDS(KH_X)
#undef KH_X
} kh_lone_why;

typedef struct kh_lone {
    bool apart;
    kh_lone_why why; /* it ended last; company, if it never did */
    bool under_way;  /* an operation that is alone: */
    uint64_t cookie;
    kh_lane lane;
    uint64_t began_ns; /* it, or the last */
    uint32_t streak; /* without company; apart: since it began */
    uint32_t harms;  /* in a row */
    uint8_t learned[KH_LANE_COUNT];
    uint64_t usual_ns[KH_LANE_COUNT]; /* not apart: the least of those that were learned from, then smoothed */
    uint64_t apart_ns[KH_LANE_COUNT]; /* smoothed, apart; begins as the usual */
    uint64_t company_ns;              /* when there were several for the last time */
    uint64_t not_before_ns;           /* it does not begin again */
} kh_lone;

/* At the beginning of a turn: so many operations are under way. */
void kh_lone_turn(kh_lone *lone, uint32_t operations, uint64_t now_ns);
/*
 * Of those that the keeper has one is left, which it has since began_ns: it is alone, unless it began in company. True: it is, and
 * this is the first time that it is told of.
 */
bool kh_lone_begin(kh_lone *lone, uint64_t cookie, kh_lane lane, uint64_t began_ns);
/* One is done; unless it is the one that was alone, this is nothing. */
void kh_lone_done(kh_lone *lone, uint64_t cookie, uint64_t now_ns);
/* It is not to be now, whatever was. */
void kh_lone_end(kh_lone *lone, kh_lone_why why, uint64_t now_ns);
/* How long the front may sleep at most: nanoseconds from now; 0: until it is woken. */
uint64_t kh_lone_nap(const kh_lone *lone, uint64_t now_ns);
const char *kh_lone_why_name(kh_lone_why why);

#endif

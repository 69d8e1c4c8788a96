/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a keeper of a token does, seen from outside: how long it usually takes, whether it should be left out
 * (a circuit breaker), and which of several that can do the same is asked next. Pure: the clock is passed in.
 *
 * A partition that was left out gets no operation of its own, but now and then a copy of one that another has as well: so a
 * probe delays nobody, and the first answer takes the partition back. While there are no operations to be copied, one whose keeper
 * has its token open counts as back after a while, and proves itself with the next ones.
 *
 * A key may be broken in one partition or in all of them, and that leaves no partition out. So a failure counts only if another
 * partition could do it, and a row of failures of a single key only if no other key was served just before.
 */
#ifndef KH_AGENT_HEALTH_H
#define KH_AGENT_HEALTH_H

#include <keyhold/types.h>

#define KH_MS UINT64_C(1000000)                 /* nanoseconds */
#define KH_HEALTH_PATIENCE_NS (50 * KH_MS)      /* at least so long is waited before another is asked as well */
#define KH_HEALTH_STILL_NS (200 * KH_MS)       /* of several operations, on one that is usually fast: shorter, and a busy machine looks like a loss */
#define KH_HEALTH_SILENCE_NS (700 * KH_MS)      /* of one single operation, until it is no longer called slow but lost */
#define KH_HEALTH_FAILURES 3                    /* in a row leave a partition out */
#define KH_HEALTH_PROBE_FIRST_NS (100 * KH_MS)
#define KH_HEALTH_PROBE_MOST_NS (1000 * KH_MS)
#define KH_HEALTH_LATELY_NS (1000 * KH_MS) /* so long a key that was served speaks against the one that fails */
#define KH_HEALTH_QUIET_NS (500 * KH_MS)   /* without anything to do, until one that is lost is believed to be back */
#define KH_HEALTH_QUIET_MOST_NS (256000 * KH_MS)
#define KH_HEALTH_KEYS 32 /* keys that fail in a partition while it serves others, */
#define KH_HEALTH_KEYS_NS (600000 * KH_MS) /* and how long that is remembered */

typedef struct kh_health {
    uint32_t outstanding; /* records that it has */
    uint32_t failures;    /* in a row, that count */
    uint64_t row[KH_HEALTH_FAILURES]; /* the keys of that row, */
    uint32_t row_keys;                /* that many are known */
    uint64_t good_key;    /* which it served last, */
    uint64_t good_ns;     /* and when; 0: none yet */
    struct {
        uint64_t key;
        uint64_t until_ns;
    } failing[KH_HEALTH_KEYS]; /* keys whose failures say nothing of it */
    uint32_t failing_at;       /* the place of the next one */
    uint64_t usual_ns;    /* from sending to the answer, smoothed; 0: not known */
    bool aged;            /* nothing was measured since it was idle: usual_ns is a memory */
    uint64_t heard_ns;    /* when it last answered, or began to have something to answer */
    bool out;             /* left out */
    bool lost;            /* and it was told so; false with `out`: new, and has not proved itself */
    uint64_t lost_ns;     /* when */
    uint64_t probe_ns;    /* OUT: when it gets the next copy, */
    uint64_t probe_key;   /* of which key the last one was, */
    uint64_t pause_ns;    /* and how long after that the one after */
    uint64_t quiet_ns;    /* how long nothing is to be done until it counts as back; more each time that this was wrong */
} kh_health;

/* A keeper serves it from now on. One that is `trusted` takes part at once, another proves itself first. */
void kh_health_begin(kh_health *health, uint64_t now_ns, bool trusted);
void kh_health_sent(kh_health *health, uint64_t now_ns);
/* It has done an operation of that key (0: not known which); took_ns 0: nobody knows in how long. True: it was lost, and is back. */
bool kh_health_good(kh_health *health, uint64_t key, uint64_t now_ns, uint64_t took_ns);
/* An answer that says neither, or not yet: the keeper lives. */
void kh_health_heard(kh_health *health, uint64_t now_ns);
/* It has failed at an operation of that key, which another partition has done. True: it is left out from now on. */
bool kh_health_bad(kh_health *health, uint64_t key, uint64_t now_ns);
/* Its keeper is there and has its token open. True: it was lost, nothing was to be done for a while, and it counts as back. */
bool kh_health_rest(kh_health *health, uint64_t now_ns);
/* An operation of it was given to another after so long: it takes at least that. */
void kh_health_slow(kh_health *health, uint64_t waited_ns);
/* It is dead or says nothing. True: it was not known to be lost. */
bool kh_health_lose(kh_health *health, uint64_t now_ns);
/* How long an operation may take before another is asked as well. */
uint64_t kh_health_patience(const kh_health *health);
/* It has work and answers nothing any more. */
bool kh_health_silent(const kh_health *health, uint64_t now_ns);
/* Four times a second: what is known of one that has nothing to do grows old. */
void kh_health_age(kh_health *health);
/* Whether it is left out and its next copy is due, of an operation of that key; then it counts as sent. */
bool kh_health_probe(kh_health *health, uint64_t key, uint64_t now_ns);
/*
 * Which of members[0..count) is asked: of those in the set `usable` (bits; NULL members are in none) the one with the least outstanding
 * work by its usual latency; ones that are left out only if there is no other. `turn` breaks ties. -1: none.
 */
int kh_health_choose(kh_health *const members[], uint32_t count, uint32_t usable, uint32_t turn);

/* What an answer of a partition means for the operation and for the partition. */
typedef enum kh_verdict {
    KH_VERDICT_DONE,
    KH_VERDICT_FINAL,     /* the same everywhere: it is the caller's; the token was perhaps not even asked */
    KH_VERDICT_ELSEWHERE, /* another partition may do it; it says nothing about this one */
    KH_VERDICT_FAULT,     /* another partition may do it; this one should have */
} kh_verdict;

kh_verdict kh_health_verdict(kh_result result, bool is_sign);

#endif

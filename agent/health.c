/* SPDX-License-Identifier: Apache-2.0 */
/* How a keeper of a token does, and which is asked next. */
#include "health.h"
#include <string.h>

#define SMOOTHING 8

void kh_health_begin(kh_health *health, uint64_t now_ns, bool trusted)
{
    health->outstanding = 0;
    health->failures = health->row_keys = 0;
    memset(health->failing, 0, sizeof health->failing); /* whatever they lacked, it may be there now */
    health->heard_ns = now_ns;
    health->out = health->lost || !trusted;
    health->probe_ns = now_ns;
    health->pause_ns = KH_HEALTH_PROBE_FIRST_NS;
}

void kh_health_sent(kh_health *health, uint64_t now_ns)
{
    if (health->outstanding++ == 0) {
        health->heard_ns = now_ns;
    }
}

void kh_health_heard(kh_health *health, uint64_t now_ns)
{
    health->outstanding -= health->outstanding > 0;
    health->heard_ns = now_ns;
}

static void learn(kh_health *health, uint64_t took_ns)
{
    if (health->usual_ns == 0) {
        health->usual_ns = took_ns;
    } else {
        health->usual_ns = health->usual_ns - health->usual_ns / SMOOTHING + took_ns / SMOOTHING;
    }
    health->usual_ns += health->usual_ns == 0;
    health->aged = false;
}

/* ---- Whose fault a failure is */

static bool is_failing(const kh_health *health, uint64_t key, uint64_t now_ns)
{
    for (uint32_t i = 0; i < KH_HEALTH_KEYS; i++) {
        if (health->failing[i].key == key && now_ns < health->failing[i].until_ns) {
            return true;
        }
    }
    return false;
}

/* The partition has served `good` after a row of failures: those were the other keys' fault. */
static void end_row(kh_health *health, uint64_t good, uint64_t now_ns)
{
    for (uint32_t i = 0; i < health->row_keys && health->failures >= KH_HEALTH_FAILURES && good != 0; i++) {
        if (health->row[i] != good && !is_failing(health, health->row[i], now_ns)) {
            health->failing[health->failing_at].key = health->row[i];
            health->failing[health->failing_at].until_ns = now_ns + KH_HEALTH_KEYS_NS;
            health->failing_at = (health->failing_at + 1) % KH_HEALTH_KEYS;
        }
    }
    for (uint32_t i = 0; i < KH_HEALTH_KEYS; i++) {
        if (health->failing[i].key == good) {
            health->failing[i].until_ns = 0;
        }
    }
    health->failures = health->row_keys = 0;
}

static void add_to_row(kh_health *health, uint64_t key)
{
    health->failures++;
    for (uint32_t i = 0; i < health->row_keys; i++) {
        if (health->row[i] == key) {
            return;
        }
    }
    if (health->row_keys < KH_HEALTH_FAILURES) {
        health->row[health->row_keys++] = key;
    }
}

/* ---- What is heard */

bool kh_health_good(kh_health *health, uint64_t key, uint64_t now_ns, uint64_t took_ns)
{
    bool back = health->lost;

    kh_health_heard(health, now_ns);
    end_row(health, key, now_ns);
    if (key != 0) {
        health->good_key = key;
        health->good_ns = now_ns;
    }
    health->out = health->lost = false;
    health->pause_ns = KH_HEALTH_PROBE_FIRST_NS;
    health->quiet_ns = KH_HEALTH_QUIET_NS;
    if (took_ns > 0) {
        learn(health, took_ns);
    }
    return back;
}

bool kh_health_bad(kh_health *health, uint64_t key, uint64_t now_ns)
{
    if (is_failing(health, key, now_ns)) {
        return false;
    }
    add_to_row(health, key);
    if (health->failures < KH_HEALTH_FAILURES) {
        return false;
    }
    if (health->row_keys == 1 && health->good_key != key && health->good_ns != 0 &&
        now_ns - health->good_ns < KH_HEALTH_LATELY_NS) {
        return false; /* it may be the key: the next one that is served says so, or that none is */
    }
    return kh_health_lose(health, now_ns);
}

bool kh_health_rest(kh_health *health, uint64_t now_ns)
{
    if (!health->lost || health->outstanding > 0) {
        return false;
    }
    if (health->quiet_ns == 0) {
        health->quiet_ns = KH_HEALTH_QUIET_NS;
    }
    if (now_ns - health->heard_ns < health->quiet_ns) {
        return false;
    }
    health->quiet_ns = 2 * health->quiet_ns < KH_HEALTH_QUIET_MOST_NS ? 2 * health->quiet_ns : KH_HEALTH_QUIET_MOST_NS;
    health->failures = health->row_keys = 0;
    health->lost = false; /* but out: it proves itself with the next operations */
    health->probe_ns = now_ns;
    return true;
}

void kh_health_slow(kh_health *health, uint64_t waited_ns)
{
    if (waited_ns > health->usual_ns) {
        learn(health, waited_ns);
    }
}

bool kh_health_lose(kh_health *health, uint64_t now_ns)
{
    if (health->lost) {
        return false;
    }
    if (!health->out) {
        health->pause_ns = KH_HEALTH_PROBE_FIRST_NS;
        health->probe_ns = now_ns + health->pause_ns;
    }
    health->out = health->lost = true;
    health->lost_ns = now_ns;
    return true;
}

uint64_t kh_health_patience(const kh_health *health)
{
    uint64_t patience = 4 * health->usual_ns;

    return patience > KH_HEALTH_PATIENCE_NS ? patience : KH_HEALTH_PATIENCE_NS;
}

/*
 * One operation that takes long may be a slow key; several, and no other answer meanwhile, are not. Answers come more often than
 * each takes, so it takes fewer of these times than until an operation is late.
 */
bool kh_health_silent(const kh_health *health, uint64_t now_ns)
{
    uint64_t patience = 2 * health->usual_ns, silence = now_ns - health->heard_ns;

    patience = patience > KH_HEALTH_STILL_NS ? patience : KH_HEALTH_STILL_NS;
    /* What is usual has to be known, and of late: a burst after a pause may meet a slow HSM. */
    if ((health->outstanding < KH_HEALTH_FAILURES || health->usual_ns == 0 || health->aged) &&
        patience < KH_HEALTH_SILENCE_NS) {
        patience = KH_HEALTH_SILENCE_NS;
    }
    return health->outstanding > 0 && now_ns > health->heard_ns && silence > patience;
}

void kh_health_age(kh_health *health)
{
    if (health->outstanding == 0) {
        health->usual_ns -= health->usual_ns / 16;
        health->aged = true;
    }
}

bool kh_health_probe(kh_health *health, uint64_t key, uint64_t now_ns)
{
    if (!health->out || now_ns < health->probe_ns) {
        return false;
    }
    health->probe_key = key;
    health->probe_ns = now_ns + health->pause_ns;
    health->pause_ns *= 2;
    if (health->pause_ns > KH_HEALTH_PROBE_MOST_NS) {
        health->pause_ns = KH_HEALTH_PROBE_MOST_NS;
    }
    return true;
}

/* What a member that was never measured is taken for: the fastest of the others. */
static uint64_t least_usual(kh_health *const members[], uint32_t count)
{
    uint64_t least = UINT64_MAX;

    for (uint32_t i = 0; i < count; i++) {
        if (members[i] != NULL && members[i]->usual_ns > 0 && members[i]->usual_ns < least) {
            least = members[i]->usual_ns;
        }
    }
    return least == UINT64_MAX ? 1 : least;
}

int kh_health_choose(kh_health *const members[], uint32_t count, uint32_t usable, uint32_t turn)
{
    uint64_t unknown = least_usual(members, count), best_score = 0;
    int best = -1;

    for (uint32_t n = 0; n < count; n++) {
        uint32_t i = (n + turn) % count;
        const kh_health *one = members[i];
        uint64_t score = 0;

        if ((usable >> i & 1) == 0) {
            continue;
        }
        score = (one->outstanding + UINT64_C(1)) * (one->usual_ns > 0 ? one->usual_ns : unknown);
        if (best < 0 || one->out < members[best]->out || (one->out == members[best]->out && score < best_score)) {
            best = (int)i;
            best_score = score;
        }
    }
    return best;
}

kh_verdict kh_health_verdict(kh_result result, bool is_sign)
{
    switch (result) {
    case KH_OK:
        return KH_VERDICT_DONE;
    case KH_E_USAGE:
    case KH_E_SCHEME:
    case KH_E_DISABLED:
    case KH_E_TOO_LARGE:
    case KH_E_MALFORMED:
    case KH_E_DEADLINE:
        return KH_VERDICT_FINAL;
    case KH_E_CRYPTO: /* a decryption fails for what it is given, a signature does not */
        return is_sign ? KH_VERDICT_FAULT : KH_VERDICT_FINAL;
    case KH_E_STORAGE:
    case KH_E_INTERNAL:
    case KH_E_LOCKED:
    case KH_E_PASSPHRASE:
    case KH_E_MISMATCH:
        return KH_VERDICT_FAULT;
    case KH_E_OVERLOADED:
    case KH_E_THROTTLED:
        return KH_VERDICT_ELSEWHERE;
    default: /* what a caller, or the store, may be the reason of leaves no partition out, but is asked for at the others */
        return kh_result_retryable(result) ? KH_VERDICT_FAULT : KH_VERDICT_ELSEWHERE;
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token's keeper: a worker. It has a session, takes the operation whose turn it is, asks whether it may be done, finds the key in
 * the token if nobody has yet, operates, and mends what the library says is broken: once more with a new session, handle or login.
 */
#include "permit.h"
#include "token.h"
#include "token_rsa.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define TRIES 4 /* session, login and handle may all be lost at once */
#define PLACE_MS 10000 /* unwrapping a key makes an object of the token, which some do slowly */

#define SAY_AGAIN_NS UINT64_C(60000000000)

/* ---- Finding the key */

/* Under heal_lock: once in a while for a reason, since it mostly is the same for all keys. */
static void say_not_placed(kh_token *token, const kh_token_key *key, const char *why)
{
    const uint64_t now_ns = kh_now_ns();
    const bool same = strncmp(token->not_placed.why, why, sizeof(token->not_placed.why) - 1) == 0;

    if (same && now_ns - token->not_placed.said_ns < SAY_AGAIN_NS) {
        token->not_placed.more++;
        return;
    }
    kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR,
            "token %s: %s/%u cannot be brought into it: %s (%u more such failures before)", token->config->name, key->info.name,
            key->info.version, why, same ? token->not_placed.more : 0);
    snprintf(token->not_placed.why, sizeof(token->not_placed.why), "%s", why);
    token->not_placed.said_ns = now_ns;
    token->not_placed.more = 0;
}

/*
 * A partition that came back empty or stale: the key is unwrapped from the copy that the store keeps. One at a time, so that no
 * two objects are made.
 */
static kh_result place(kh_token_worker *worker, kh_token_key *key)
{
    kh_token *token = worker->token;
    kh_p11_session *session = NULL;
    kh_result result = KH_OK;

    pthread_mutex_lock(&token->heal_lock);
    kh_token_enter(token, &worker->watch, PLACE_MS);
    result = kh_p11_session_new(token->p11, true, &session);
    if (result == KH_OK) {
        result = kh_p11_pool_unwrap(session, key->pool, key->blob, key->blob_len, &key->locator, key->info.usage,
                                    key->info.spki, key->info.spki_len);
        if (result != KH_OK) {
            say_not_placed(token, key, kh_p11_session_error(session));
        }
        kh_p11_session_free(session);
    }
    kh_token_leave(&worker->watch);
    pthread_mutex_unlock(&token->heal_lock);
    if (result == KH_OK) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_NOTICE, "token %s: %s/%u was not there and was brought into it",
                token->config->name, key->info.name, key->info.version);
    }
    return result;
}

static kh_result find_once(kh_token_worker *worker, const kh_token_key *key, kh_p11_key *object)
{
    kh_result result = KH_OK;

    kh_token_enter(worker->token, &worker->watch, 0);
    result = kh_p11_find(worker->session, &key->locator, object);
    kh_token_leave(&worker->watch);
    return result;
}

static void say_missing(kh_token *token, kh_token_key *key)
{
    bool said = false;

    pthread_mutex_lock(&token->lock);
    said = key->missed;
    key->missed = true;
    pthread_mutex_unlock(&token->lock);
    if (!said) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR,
                "token %s: %s/%u is not in it: is this the right token?", token->config->name, key->info.name,
                key->info.version);
    }
}

/*
 * The first time: whether what was found is the key. Under its label, or with an id of others' making, there may be another one
 * by now, and its signatures would go out under this key's name. One that only decrypts cannot be asked.
 */
static kh_result prove(kh_token_worker *worker, const kh_token_key *key, const kh_p11_key *object)
{
    kh_result result = KH_OK;

    if ((key->info.usage & (KH_USAGE_TLS_SERVER | KH_USAGE_TLS_CLIENT | KH_USAGE_SIGN)) == 0) {
        return KH_OK;
    }
    kh_token_enter(worker->token, &worker->watch, 0);
    result = kh_p11_prove(worker->session, object, key->info.spki, key->info.spki_len);
    kh_token_leave(&worker->watch);
    return result;
}

static kh_result find_own(kh_token_worker *worker, const kh_token_key *key, kh_p11_key *object)
{
    kh_result result = find_once(worker, key, object);

    return result == KH_OK && !key->was_found ? prove(worker, key, object) : result;
}

static void say_other(kh_token *token, const kh_token_key *key)
{
    kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR,
            "token %s: what is there as %s/%u is another key: it is not used", token->config->name, key->info.name,
            key->info.version);
}

/* Where the key is. KH_E_UNAVAILABLE: not in this token. */
static kh_result find(kh_token_worker *worker, kh_token_key *key, kh_p11_key *object)
{
    kh_token *token = worker->token;
    bool found = false, was_found = false;
    kh_result result = KH_OK;

    pthread_mutex_lock(&token->lock);
    found = key->found;
    was_found = key->was_found;
    *object = key->object;
    pthread_mutex_unlock(&token->lock);
    if (found) {
        return KH_OK;
    }
    result = find_own(worker, key, object);
    if (result == KH_E_NOT_FOUND && was_found) {
        /* A token that was replaced looks so to a library that still has the old one open. */
        kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR, "token %s: %s/%u is gone from it; it is opened anew",
                token->config->name, key->info.name, key->info.version);
        kh_token_die(token, KH_TOKEN_GONE);
    }
    if ((result == KH_E_NOT_FOUND || result == KH_E_MISMATCH || result == KH_E_INVALID) && key->blob_len > 0) {
        result = place(worker, key); /* replaces what should not be there, too */
        result = result == KH_OK ? find_own(worker, key, object) : result;
    }
    if (result == KH_E_MISMATCH) {
        say_other(token, key);
        return KH_E_UNAVAILABLE;
    }
    if (result == KH_E_NOT_FOUND) {
        say_missing(token, key);
        return KH_E_UNAVAILABLE;
    }
    if (result == KH_OK) {
        pthread_mutex_lock(&token->lock);
        key->object = *object;
        key->found = key->was_found = true;
        pthread_mutex_unlock(&token->lock);
    }
    return result;
}

/* ---- Operating */

static kh_result operate(kh_token_worker *worker, kh_token_key *key, kh_token_op *op)
{
    kh_p11_key object = {0};
    kh_result result = find(worker, key, &object);

    if (result != KH_OK) {
        return result;
    }
    if (op->record.op == KH_STORE_SIGN || op->record.op == KH_STORE_CERTIFY) {
        kh_token_enter(worker->token, &worker->watch, 0);
        result = kh_p11_sign(worker->session, &object, op->record.scheme,
                             op->record.op == KH_STORE_SIGN && (op->record.flags & KH_SIGN_IS_DIGEST) != 0, op->record.data,
                             op->record.data_len, op->out, &op->out_len);
        kh_token_leave(&worker->watch);
        return result;
    }
    return op->record.op == KH_STORE_TLS_RSA_KX ? kh_token_rsa_kx(worker, key, &object, op)
                                                : kh_token_rsa_decrypt(worker, &object, op);
}

static kh_result new_session(kh_token_worker *worker)
{
    kh_result result = KH_OK;

    if (worker->session != NULL) {
        return KH_OK;
    }
    kh_token_enter(worker->token, &worker->watch, 0);
    result = kh_p11_session_new(worker->token->p11, false, &worker->session);
    kh_token_leave(&worker->watch);
    return result;
}

/* Mends what the last failure left broken. true: it is worth another try. */
static bool heal(kh_token_worker *worker, kh_token_key *key, uint32_t logins)
{
    kh_token *token = worker->token;
    kh_p11_heal what = kh_p11_session_heal(worker->session);
    kh_result result = KH_OK;

    switch (what) {
    case KH_HEAL_SESSION:
        kh_token_enter(token, &worker->watch, 0);
        result = kh_p11_session_renew(worker->session);
        kh_token_leave(&worker->watch);
        kh_token_check_pin(token, result);
        if (result != KH_OK && kh_p11_session_heal(worker->session) == KH_HEAL_TOKEN) {
            break;
        }
        /* Where one session was lost all may be, and the login and the handles with them. */
        if (kh_token_login_again(token, &worker->watch, logins) == KH_OK) {
            return true;
        }
        break; /* a library that opens sessions and cannot log in has lost its token */
    case KH_HEAL_OBJECT:
        pthread_mutex_lock(&token->lock);
        key->found = false;
        pthread_mutex_unlock(&token->lock);
        return true;
    case KH_HEAL_LOGIN:
        if (kh_token_login_again(token, &worker->watch, logins) == KH_OK) {
            return true;
        }
        break;
    case KH_HEAL_TOKEN:
        break;
    default:
        return false;
    }
    kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR, "token %s: %s; it is opened anew", token->config->name,
            kh_p11_session_error(worker->session));
    kh_token_die(token, KH_TOKEN_GONE);
}

/*
 * What the token says, as its caller gets it. Whether the caller may was decided before, so whatever is refused now is the token's
 * fault; in a pool another partition can do it, and must be asked.
 */
static kh_result as_answer(const kh_token_key *key, const kh_token_op *op, kh_result result)
{
    const bool decrypts = op->record.op == KH_STORE_TLS_RSA_KX || op->record.op == KH_STORE_DECRYPT;

    switch (result) {
    case KH_OK:
    case KH_E_DEADLINE:
    case KH_E_MEMORY:
    case KH_E_OVERLOADED:
    case KH_E_UNAVAILABLE:
        return result;
    case KH_E_CRYPTO: /* what cannot be decrypted is its sender's */
    case KH_E_INVALID:
    case KH_E_TOO_LARGE:
        if (decrypts) {
            return result;
        }
        break;
    default:
        break;
    }
    if (key->pool[0] != '\0') {
        return KH_E_UNAVAILABLE;
    }
    return result == KH_E_UNSUPPORTED ? result : KH_E_CRYPTO; /* asked again, it would say the same */
}

static kh_result perform(kh_token_worker *worker, kh_token_key *key, kh_token_op *op, uint64_t now_ns)
{
    struct timespec today = {0};
    kh_result result = KH_OK;

    if (op->record.deadline_ns != 0 && op->record.deadline_ns <= now_ns) {
        return KH_E_DEADLINE;
    }
    clock_gettime(CLOCK_REALTIME, &today);
    if (op->record.op != KH_STORE_CERTIFY && (result = kh_permit_now(&key->info, (uint64_t)today.tv_sec)) != KH_OK) {
        return result;
    }
    if ((result = kh_permit(&op->record, &key->info)) != KH_OK) {
        return result;
    }
    for (int tries = 0; tries < TRIES; tries++) {
        uint32_t logins = atomic_load(&worker->token->logins);

        result = new_session(worker);
        if (result != KH_OK) {
            return KH_E_UNAVAILABLE;
        }
        result = operate(worker, key, op);
        if (result == KH_OK || !heal(worker, key, logins)) {
            break;
        }
    }
    if (result != KH_OK) {
        OPENSSL_cleanse(op->out, sizeof(op->out));
        ERR_clear_error();
    }
    return as_answer(key, op, result);
}

/* ---- Turns */

/* What a failure is worth to whoever reads the log: not each of thousands. */
static void say_failure(kh_token_worker *worker, const kh_token_key *key, kh_result result)
{
    static _Atomic uint64_t last_ns;
    uint64_t now_ns = kh_now_ns(), before = atomic_load(&last_ns);
    const kh_token_config *config = worker->token->config;

    if (worker->session == NULL || (before != 0 && now_ns - before < UINT64_C(1000000000)) ||
        !atomic_compare_exchange_strong(&last_ns, &before, now_ns)) {
        return;
    }
    kh_logf(config->log, config->ctx, KH_LOG_WARN, "token %s: an operation with %s/%u failed: %s (%s)", config->name,
            key->info.name, key->info.version, kh_result_name(result), kh_p11_session_error(worker->session));
}

static void serve(kh_token_worker *worker, kh_token_key *key, kh_token_op *op)
{
    kh_token *token = worker->token;
    kh_lane lane = kh_lane_of((int)key->info.type, key->info.bits);
    uint64_t began_ns = kh_now_ns(), took_ns = 0;
    kh_result result = perform(worker, key, op, began_ns);
    kh_lane_stats stats = {.operations = 1, .errors = result != KH_OK};

    if (result == KH_OK) {
        took_ns = kh_now_ns() - began_ns;
        stats.batches[1] = 1;
    } else if (result == KH_E_DEADLINE) {
        stats = (kh_lane_stats){.expired = 1};
    } else if (result == KH_E_UNAVAILABLE || result == KH_E_CRYPTO || result == KH_E_INTERNAL) {
        say_failure(worker, key, result);
    }
    stats.busy_ns = took_ns;
    pthread_mutex_lock(&token->lock);
    token->stats.refused_usage += result == KH_E_USAGE;
    kh_token_count(token, lane, &stats);
    kh_token_key_done(token, key, op, result, took_ns);
    pthread_mutex_unlock(&token->lock);
}

/* One turn: false when the worker is to end. */
static bool turn(kh_token_worker *worker)
{
    kh_token *token = worker->token;
    kh_token_key *key = NULL;
    kh_token_op *op = NULL;
    bool end = false;

    pthread_mutex_lock(&token->lock);
    token->now_ns = kh_now_ns();
    kh_token_take(token);
    op = kh_token_key_next(token, &key);
    if (op != NULL) {
        if (token->ready_first != NULL) {
            kh_token_wake(token, 1);
        }
    } else if (token->closed && token->in_flight == 0) {
        end = true;
    } else {
        kh_token_sleep(token);
    }
    pthread_mutex_unlock(&token->lock);
    if (op != NULL) {
        serve(worker, key, op);
    }
    return !end;
}

void *kh_token_worker_main(void *arg)
{
    kh_token_worker *worker = arg;

    while (turn(worker)) {
    }
    pthread_mutex_lock(&worker->token->lock);
    worker->token->workers_running--;
    pthread_mutex_unlock(&worker->token->lock);
    return NULL;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token's keeper: the maker, the thread that opens the token and then makes, brings in, finds and destroys keys, as the store's
 * keeper asks. What it does may take long, and delays no signature.
 */
#include "token.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OPEN_MS 8000  /* for loading and initializing a library, and for logging in */
#define MAKE_MS 60000 /* RSA-4096 takes a slow token that long */
#define LOOK_MS 1000 /* how often an open token is looked after */
#define POLL_MS 250   /* how often a token that is not there is looked for, */
#define POLL_LATER_MS 1000
#define POLLS 120      /* and from then on less often */
#define LOGIN_MS 30000 /* between logins that fail, nobody knows why */

/* ---- Tasks */

/* The question, checked: lengths, and strings that end. KH_E_MALFORMED. */
static kh_result take_question(const kh_token_task *task, kh_link_key *key, const uint8_t **blob, const uint8_t **pkcs8)
{
    size_t rest = 0;

    if (task->message.data_len < sizeof(*key)) {
        return KH_E_MALFORMED;
    }
    memcpy(key, task->data, sizeof(*key));
    rest = task->message.data_len - sizeof(*key);
    key->info.name[KH_NAME_MAX] = key->locator.label[KH_NAME_MAX] = key->pool[KH_PLACE_MAX] = '\0';
    if (key->blob_len > rest || key->pkcs8_len != rest - key->blob_len || key->info.spki_len > sizeof(key->info.spki) ||
        key->locator.id_len > sizeof(key->locator.id)) {
        return KH_E_MALFORMED;
    }
    *blob = task->data + sizeof(*key);
    *pkcs8 = *blob + key->blob_len;
    return KH_OK;
}

static kh_result do_task(kh_token *token, uint32_t op, kh_link_key *key, const uint8_t *blob, const uint8_t *pkcs8,
                         uint8_t *new_blob, size_t *new_blob_len)
{
    kh_p11_session *session = token->maker_session;
    const bool pool = key->pool[0] != '\0';
    kh_p11_key object = {0};
    size_t spki_len = 0;
    kh_result result = KH_E_UNSUPPORTED;

    switch (op) {
    case KH_LINK_GENERATE:
        result = pool ? kh_p11_pool_generate(session, key->pool, key->info.type, key->info.bits, key->info.spki, &spki_len,
                                             new_blob, new_blob_len)
                      : kh_p11_generate(session, key->info.type, key->info.bits, &key->locator, key->info.usage,
                                        key->info.spki, &spki_len);
        key->info.spki_len = result == KH_OK ? (uint32_t)spki_len : 0;
        break;
    case KH_LINK_IMPORT:
        result = pool ? kh_p11_pool_wrap(session, key->pool, pkcs8, key->pkcs8_len, new_blob, new_blob_len)
                      : kh_p11_import(session, pkcs8, key->pkcs8_len, &key->locator, key->info.usage);
        break;
    case KH_LINK_PLACE: /* what is there already is looked at, and replaced if need be */
        pthread_mutex_lock(&token->heal_lock);
        result = kh_p11_pool_unwrap(session, key->pool, blob, key->blob_len, &key->locator, key->info.usage, key->info.spki,
                                    key->info.spki_len);
        pthread_mutex_unlock(&token->heal_lock);
        break;
    case KH_LINK_DESTROY:
        result = kh_p11_destroy(session, &key->locator);
        break;
    case KH_LINK_FIND:
        result = kh_p11_find(session, &key->locator, &object);
        if (result == KH_OK) {
            result = kh_p11_public(session, &key->locator, key->info.spki, &spki_len);
        }
        key->info.type = object.type;
        key->info.bits = object.bits;
        key->info.spki_len = result == KH_OK ? (uint32_t)spki_len : 0;
        break;
    case KH_LINK_ALIVE:
        result = kh_p11_alive(session);
        break;
    default:
        break;
    }
    return result;
}

static kh_result new_session(kh_token *token)
{
    kh_result result = KH_OK;

    if (token->maker_session == NULL) {
        kh_token_enter(token, &token->maker_watch, 0);
        result = kh_p11_session_new(token->p11, true, &token->maker_session);
        kh_token_leave(&token->maker_watch);
    }
    return result == KH_OK ? KH_OK : KH_E_UNAVAILABLE;
}

/* Whether the token is there all the same: an object that cannot be destroyed is no reason to open it anew. */
static bool is_alive(kh_token *token)
{
    kh_result result = KH_OK;

    kh_token_enter(token, &token->maker_watch, 0);
    kh_p11_session_free(token->maker_session);
    token->maker_session = NULL;
    kh_token_leave(&token->maker_watch);
    result = new_session(token);
    if (result == KH_OK) {
        kh_token_enter(token, &token->maker_watch, 0);
        result = kh_p11_alive(token->maker_session);
        kh_token_leave(&token->maker_watch);
    }
    return result == KH_OK;
}

/* After a failure of that operation. true: it is worth another try. */
static bool mend(kh_token *token, uint32_t op, uint32_t logins)
{
    kh_p11_heal heal = kh_p11_session_heal(token->maker_session);
    char why[160];
    kh_result result = KH_OK;

    snprintf(why, sizeof(why), "%s", kh_p11_session_error(token->maker_session));
    if (heal == KH_HEAL_SESSION) {
        kh_token_enter(token, &token->maker_watch, 0);
        result = kh_p11_session_renew(token->maker_session);
        kh_token_leave(&token->maker_watch);
        kh_token_check_pin(token, result);
        if (result != KH_OK) {
            return false;
        }
    }
    if (heal == KH_HEAL_TOKEN && (op != KH_LINK_DESTROY || !is_alive(token))) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_ERROR, "token %s: %s; it is opened anew", token->config->name,
                why);
        kh_token_die(token, KH_TOKEN_GONE);
    }
    return (heal == KH_HEAL_SESSION || heal == KH_HEAL_LOGIN) &&
           kh_token_login_again(token, &token->maker_watch, logins) == KH_OK;
}

/* Whether the answer says more than how it went. */
static bool tells(uint32_t op)
{
    return op == KH_LINK_GENERATE || op == KH_LINK_IMPORT || op == KH_LINK_FIND;
}

static void serve(kh_token *token, const kh_token_task *task)
{
    struct {
        kh_link_key key;
        uint8_t blob[KH_P11_BLOB_MAX];
    } out = {0};
    const uint8_t *blob = NULL, *pkcs8 = NULL;
    const char *why = NULL;
    size_t blob_len = 0, len = 0;
    kh_result result = KH_OK;

    for (int tries = 0; tries < 3; tries++) {
        uint32_t logins = atomic_load(&token->logins);

        blob_len = 0;
        if ((result = take_question(task, &out.key, &blob, &pkcs8)) != KH_OK || (result = new_session(token)) != KH_OK) {
            break;
        }
        kh_token_enter(token, &token->maker_watch, MAKE_MS);
        result = do_task(token, task->message.op, &out.key, blob, pkcs8, out.blob, &blob_len);
        kh_token_leave(&token->maker_watch);
        if (result == KH_OK || !mend(token, task->message.op, logins)) {
            break;
        }
    }
    if (result != KH_OK && token->maker_session != NULL && task->message.op != KH_LINK_PLACE) {
        kh_logf(token->config->log, token->config->ctx, KH_LOG_WARN, "token %s: %s of %s failed: %s (%s)", token->config->name,
                kh_link_op_name(task->message.op), out.key.info.name, kh_result_name(result),
                kh_p11_session_error(token->maker_session));
    }
    out.key.blob_len = (uint32_t)blob_len;
    out.key.pkcs8_len = 0;
    memmove((uint8_t *)&out + sizeof(out.key), out.blob, blob_len);
    len = result == KH_OK && tells(task->message.op) ? sizeof(out.key) + blob_len : 0;
    if (result != KH_OK && task->message.op == KH_LINK_PLACE && token->maker_session != NULL) {
        /* Of thousands of keys it is the same: the store's keeper counts, and says it once. */
        why = kh_p11_session_error(token->maker_session);
        len = strlen(why);
    }
    pthread_mutex_lock(&token->lock);
    kh_token_link_answer(token, task->link_life, task->message.op, task->message.number, result,
                         why != NULL ? (const void *)why : &out, len);
    pthread_mutex_unlock(&token->lock);
}

void kh_token_task_free(kh_token_task *task)
{
    OPENSSL_cleanse(task, sizeof(*task) + task->message.data_len);
    free(task);
}

/* ---- Opening the token */

/* Opens and logs in; *p11 stays NULL otherwise. tried: whether it came to the PIN. */
static kh_result open_once(kh_token *token, kh_p11 **p11, bool *tried)
{
    const kh_token_config *config = token->config;
    const kh_p11_config how = {.module = config->module,
                               .label = config->label,
                               .serial = config->serial,
                               .pin = config->pin,
                               .pin_len = config->pin_len,
                               .new_pin = config->new_pin,
                               .log = config->log,
                               .log_ctx = config->ctx};
    kh_result result = KH_OK;

    kh_token_enter(token, &token->maker_watch, OPEN_MS);
    result = kh_p11_open(&how, p11);
    *tried = result == KH_OK;
    if (result == KH_OK) {
        result = kh_p11_login(*p11);
    }
    kh_token_check_pin(token, result);
    if (result != KH_OK) {
        kh_p11_close(*p11); /* nobody else is inside */
        *p11 = NULL;
    }
    kh_token_leave(&token->maker_watch);
    return result;
}

/* Under the lock: waits so long, or until there is something to do, or it is to end. false: so long. */
static bool wait_ms(kh_token *token, long ms)
{
    struct timespec until = {0};

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (!token->closed && token->tasks == NULL) {
        if (pthread_cond_timedwait(&token->maker_wake, &token->lock, &until) != 0) {
            return false;
        }
    }
    return true;
}

static bool stop(kh_token *token)
{
    bool closed = false;

    pthread_mutex_lock(&token->lock);
    closed = token->closed;
    pthread_mutex_unlock(&token->lock);
    return closed;
}

static void say_absent(const kh_token_config *config, kh_result result)
{
    kh_logf(config->log, config->ctx, KH_LOG_ERROR, "token %s: cannot be opened: %s; it is waited for", config->name,
            result == KH_E_NOT_FOUND     ? "there is no such library or token"
            : result == KH_E_INVALID     ? "several tokens fit, say more with label and serial"
            : result == KH_E_UNAVAILABLE ? "the library or the device fails"
                                         : kh_result_name(result));
}

/* Waits for the token. false: it is to end before. */
static bool open_token(kh_token *token)
{
    const kh_token_config *config = token->config;
    kh_result result = KH_OK, said = KH_OK;
    unsigned failed_logins = 0;
    kh_p11 *p11 = NULL;

    for (unsigned polls = 0; !stop(token); polls++) {
        bool tried = false;
        long pause = polls < POLLS ? POLL_MS : POLL_LATER_MS;

        result = open_once(token, &p11, &tried);
        if (result == KH_OK) {
            break;
        }
        if (result != said) {
            say_absent(config, result);
            said = result;
        }
        if (polls == 0 && config->ready != NULL) {
            config->ready(config->ctx);
        }
        if (tried) { /* nobody knows what a library means by such an answer: it may have been the PIN */
            pause = failed_logins++ == 0 ? POLL_LATER_MS : LOGIN_MS;
        }
        pthread_mutex_lock(&token->lock);
        (void)wait_ms(token, pause);
        pthread_mutex_unlock(&token->lock);
    }
    if (p11 == NULL) {
        return false;
    }
    pthread_mutex_lock(&token->lock);
    token->p11 = p11;
    token->serving = true;
    kh_token_publish(token);
    kh_token_link_hello(token);
    pthread_mutex_unlock(&token->lock);
    kh_logf(config->log, config->ctx, KH_LOG_NOTICE, "token %s: open, %u sessions", config->name, config->sessions);
    if (said == KH_OK && config->ready != NULL) {
        config->ready(config->ctx);
    }
    return true;
}

/* A token that is pulled out while nobody uses it is noticed before somebody does. */
static void look_after(kh_token *token)
{
    uint32_t logins = atomic_load(&token->logins);
    kh_result result = new_session(token);

    if (result == KH_OK) {
        kh_token_enter(token, &token->maker_watch, 0);
        result = kh_p11_alive(token->maker_session);
        kh_token_leave(&token->maker_watch);
        if (result != KH_OK) {
            (void)mend(token, KH_LINK_ALIVE, logins);
        }
    }
}

void *kh_token_maker_main(void *arg)
{
    kh_token *token = arg;

    if (!open_token(token)) {
        return NULL;
    }
    pthread_mutex_lock(&token->lock);
    while (!token->closed) {
        kh_token_task *task = token->tasks;

        if (task == NULL) {
            if (!wait_ms(token, LOOK_MS)) {
                pthread_mutex_unlock(&token->lock);
                look_after(token);
                pthread_mutex_lock(&token->lock);
            }
            continue;
        }
        token->tasks = task->next;
        token->tasks_end = task->next != NULL ? token->tasks_end : &token->tasks;
        pthread_mutex_unlock(&token->lock);
        serve(token, task);
        kh_token_task_free(task);
        pthread_mutex_lock(&token->lock);
    }
    pthread_mutex_unlock(&token->lock);
    return NULL;
}

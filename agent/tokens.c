/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keepers of tokens, as the supervisor has them: one for each token of the configuration. One that dies is started again as any
 * child, but not with a PIN that the token refused: then it waits for SIGHUP, so that no restart can lock a token. The token of a
 * block that changed is given up by the old keeper before the new one opens it: a token is open once.
 */
#include "channel.h"
#include "log.h"
#include "secret.h"
#include "supervisor.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define STOP_S 4.0
#define OPEN_AGAIN_S 30.0 /* after two that died while they opened the token */
#define AGAIN_S 0.25 /* between starts of a keeper whose token fails as soon as it is used */

kh_child *kh_token_find(kh_supervisor *supervisor, const char *name)
{
    for (size_t i = 0; i < KH_TOKENS_MAX; i++) {
        if (supervisor->tokens[i] != NULL && strcmp(supervisor->tokens[i]->token, name) == 0) {
            return supervisor->tokens[i];
        }
    }
    return NULL;
}

const kh_config_token *kh_token_block(const kh_child *child)
{
    const kh_config *config = child->supervisor->settings.config;
    int index = kh_config_find_token(config, child->token);

    return index >= 0 ? &config->tokens[index] : NULL;
}

/* ---- Start */

/* Appends zero-terminated text. */
static bool put(uint8_t *payload, size_t *len, const char *text)
{
    size_t size = text != NULL ? strlen(text) + 1 : 1;

    if (size > KH_CHANNEL_PAYLOAD_MAX - *len) {
        return false;
    }
    memcpy(payload + *len, text != NULL ? text : "", size);
    *len += size;
    return true;
}

/* The path in "NAME=/path", which is likely to be a file that the library reads. */
static const char *path_of(const char *variable)
{
    const char *value = strchr(variable, '=');

    return value != NULL && value[1] == '/' ? value + 1 : NULL;
}

static bool fill_boot(const kh_settings *settings, const kh_config_token *token, bool new_pin, uint8_t *payload,
                      size_t *len)
{
    const kh_pin *pin = &settings->pins[token - settings->config->tokens];
    kh_boot_token_keeper boot = {.sessions = (uint32_t)token->sessions,
                                 .call_timeout_ms = (uint32_t)token->call_timeout_ms,
                                 .confine_strict = token->confine_strict,
                                 .log_level = settings->config->log_level,
                                 .log_json = settings->config->log_format == KH_FORMAT_JSON,
                                 .path_count = (uint32_t)token->path_count,
                                 .has_pin = pin->present,
                                 .new_pin = new_pin,
                                 .pin_len = (uint32_t)pin->len};
    bool fits = false;

    *len = sizeof boot;
    fits = put(payload, len, token->name) && put(payload, len, token->module) && put(payload, len, token->label) &&
           put(payload, len, token->serial);
    for (size_t i = 0; i < token->path_count; i++) {
        fits = fits && put(payload, len, token->paths[i]);
    }
    for (size_t i = 0; i < token->env_count; i++) {
        if (path_of(token->env[i]) != NULL) {
            fits = fits && put(payload, len, path_of(token->env[i]));
            boot.read_count++;
        }
    }
    if (!fits || pin->len > KH_CHANNEL_PAYLOAD_MAX - *len) {
        return false;
    }
    memcpy(payload + *len, pin->text, pin->len);
    *len += pin->len;
    memcpy(payload, &boot, sizeof boot);
    return true;
}

kh_result kh_token_boot(kh_child *child, int control_fd)
{
    const kh_config_token *token = kh_token_block(child);
    uint8_t *payload = NULL;
    size_t len = 0;
    kh_result result = KH_E_MEMORY;

    if (token == NULL) {
        return KH_E_NOT_FOUND;
    }
    payload = kh_secret_alloc(KH_CHANNEL_PAYLOAD_MAX, NULL);
    if (payload != NULL) {
        result = fill_boot(&child->supervisor->settings, token, child->new_pin, payload, &len)
                     ? kh_channel_send(child->channel_fd, KH_MSG_TOKEN_BOOT, payload, len, &control_fd, 1)
                     : KH_E_TOO_LARGE;
    }
    kh_secret_free(payload, KH_CHANNEL_PAYLOAD_MAX);
    return result;
}

/* Not before the store's keeper has been there: an agent that does not start again and again must not cost tries of a PIN. */
void kh_tokens_start(kh_supervisor *supervisor)
{
    const kh_config *config = supervisor->settings.config;

    for (size_t i = 0; i < config->token_count && supervisor->has_tokens && supervisor->keeper.was_ready; i++) {
        kh_child **free_place = NULL;

        for (size_t j = 0; j < KH_TOKENS_MAX && free_place == NULL; j++) {
            free_place = supervisor->tokens[j] == NULL ? &supervisor->tokens[j] : NULL;
        }
        if (kh_token_find(supervisor, config->tokens[i].name) != NULL) {
            continue;
        }
        if (free_place != NULL) {
            *free_place = calloc(1, sizeof **free_place);
        }
        if (free_place == NULL || *free_place == NULL) {
            kh_log(KH_LOG_ERROR, "process_not_started", KH_LT("role", config->tokens[i].name),
                   KH_LT("error", "too many that still have to stop: send SIGHUP again"));
            continue;
        }
        kh_child_init(supervisor, *free_place, KH_CHILD_TOKEN, config->tokens[i].name);
        kh_child_start(*free_place);
    }
}

/* ---- The end */

void kh_token_forget(kh_child *child)
{
    kh_supervisor *supervisor = child->supervisor;

    for (size_t i = 0; i < KH_TOKENS_MAX; i++) {
        if (supervisor->tokens[i] == child) {
            supervisor->tokens[i] = NULL;
        }
    }
    if (supervisor->loop != NULL) {
        ev_timer_stop(supervisor->loop, &child->restart);
        ev_timer_stop(supervisor->loop, &child->patience);
    }
    free(child);
}

/* Seconds until the next start after a death that is the token's fault, not the keeper's; negative: it was the keeper's. */
static double patience_with(kh_child *child, int status)
{
    child->early_deaths = child->ready_at < child->started ? child->early_deaths + 1 : 0;
    if (child->early_deaths > 1) {
        return OPEN_AGAIN_S;
    }
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != KH_EXIT_HUNG && WEXITSTATUS(status) != KH_EXIT_TOKEN)) {
        return -1;
    }
    return kh_supervisor_clock() - child->started > AGAIN_S ? 0 : AGAIN_S;
}

void kh_token_died(kh_child *child, int status)
{
    double wait_s = patience_with(child, status);
    kh_supervisor *supervisor = child->supervisor;

    ev_timer_stop(supervisor->loop, &child->patience);
    if (kh_token_block(child) == NULL) {
        kh_log(KH_LOG_NOTICE, "token_removed", KH_LT("token", child->token));
        kh_token_forget(child);
        kh_tokens_start(supervisor); /* one may have waited for the place */
    } else if (child->asked_to_stop) {
        child->asked_to_stop = child->parked = false;
        child->failures = 0;
        kh_child_start(child);
    } else if (child->parked) {
        kh_log(KH_LOG_ERROR, "pin_refused", KH_LT("token", child->token),
               KH_LT("means", "it is not tried again, lest the token be locked; its keys do not work"),
               KH_LT("do", "put the right PIN into its pin_file and send keyholdd SIGHUP"));
    } else if (wait_s >= 0) {
        child->failures = 0;
        kh_child_start_after(child, wait_s);
    } else {
        kh_child_start_later(child);
    }
}

static void on_patience(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop;
    (void)events;
    kh_child_kill(timer->data, "does not stop");
}

static void stop(kh_child *child)
{
    struct ev_loop *loop = child->supervisor->loop;

    ev_timer_stop(loop, &child->restart);
    child->asked_to_stop = true;
    if (kh_keeper_send_stop(child->control_fd) != KH_OK) {
        kh_child_kill(child, "does not read its channel");
    }
    ev_timer_stop(loop, &child->patience);
    ev_timer_init(&child->patience, on_patience, STOP_S, 0.);
    child->patience.data = child;
    ev_now_update(loop);
    ev_timer_start(loop, &child->patience);
}

/* ---- SIGHUP */

static bool differs(const char *a, const char *b)
{
    return (a == NULL) != (b == NULL) || (a != NULL && strcmp(a, b) != 0);
}

static bool lists_differ(char *const *a, size_t a_count, char *const *b, size_t b_count)
{
    bool differ = a_count != b_count;

    for (size_t i = 0; i < a_count && !differ; i++) {
        differ = strcmp(a[i], b[i]) != 0;
    }
    return differ;
}

static bool pin_differs(const kh_pin *a, const kh_pin *b)
{
    return a->present != b->present || a->len != b->len || CRYPTO_memcmp(a->text, b->text, a->len) != 0;
}

static bool block_differs(const kh_config_token *a, const kh_config_token *b)
{
    return differs(a->module, b->module) || differs(a->label, b->label) || differs(a->serial, b->serial) ||
           differs(a->user, b->user) || a->confine_strict != b->confine_strict || a->sessions != b->sessions ||
           a->call_timeout_ms != b->call_timeout_ms || lists_differ(a->env, a->env_count, b->env, b->env_count) ||
           lists_differ(a->paths, a->path_count, b->paths, b->path_count);
}

/* Whether the keeper has to begin anew to be what the configuration says. */
static bool changed(const kh_child *child, const kh_settings *old)
{
    const kh_settings *now = &child->supervisor->settings;
    int before = kh_config_find_token(old->config, child->token), index = kh_config_find_token(now->config, child->token);

    return before < 0 || index < 0 || block_differs(&old->config->tokens[before], &now->config->tokens[index]) ||
           pin_differs(&old->pins[before], &now->pins[index]);
}

static bool pin_changed(const kh_child *child, const kh_settings *old)
{
    const kh_settings *now = &child->supervisor->settings;
    int before = kh_config_find_token(old->config, child->token), index = kh_config_find_token(now->config, child->token);

    return before >= 0 && index >= 0 && pin_differs(&old->pins[before], &now->pins[index]);
}

void kh_tokens_change(kh_supervisor *supervisor, const kh_settings *old)
{
    for (size_t i = 0; i < KH_TOKENS_MAX; i++) {
        kh_child *child = supervisor->tokens[i];

        if (child == NULL || !changed(child, old)) {
            continue;
        }
        child->parked = false;
        child->early_deaths = 0;
        child->new_pin = pin_changed(child, old);
        if (child->pid != 0) {
            stop(child);
        } else if (kh_token_block(child) == NULL) {
            kh_log(KH_LOG_NOTICE, "token_removed", KH_LT("token", child->token));
            kh_token_forget(child);
        } else {
            ev_timer_stop(supervisor->loop, &child->restart);
            child->failures = 0;
            kh_child_start(child);
        }
    }
    kh_joints_send_places(supervisor);
    kh_tokens_start(supervisor);
}

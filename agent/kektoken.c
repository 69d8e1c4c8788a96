/* SPDX-License-Identifier: Apache-2.0 */
#include "kektoken.h"
#include "channel.h"
#include "log.h"
#include "process.h"
#include "secret.h"
#include <errno.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define DESCRIPTORS 256

/* Followed by module, label and serial, each with its zero, and the PIN. */
typedef struct kek_question {
    kh_kek_token wrapped;
    uint32_t has_pin, pin_len, log_level, log_json;
} kek_question;

typedef struct kek_answer {
    uint32_t result;
    uint8_t kek[KH_KEK_LEN];
} kek_answer;

/* ---- The supervisor's side */

static kh_result put(uint8_t *payload, size_t *len, const void *bytes, size_t size)
{
    if (size > KH_CHANNEL_PAYLOAD_MAX - *len) {
        return KH_E_TOO_LARGE;
    }
    memcpy(payload + *len, bytes, size);
    *len += size;
    return KH_OK;
}

static kh_result put_text(uint8_t *payload, size_t *len, const char *text)
{
    return put(payload, len, text != NULL ? text : "", text != NULL ? strlen(text) + 1 : 1);
}

static kh_result ask(const kh_settings *settings, const kh_config_token *token, const kh_kek_token *wrapped, int fd)
{
    const kh_pin *pin = &settings->pins[token - settings->config->tokens];
    const kek_question question = {.wrapped = *wrapped,
                                   .has_pin = pin->present,
                                   .pin_len = (uint32_t)pin->len,
                                   .log_level = settings->config->log_level,
                                   .log_json = settings->config->log_format == KH_FORMAT_JSON};
    uint8_t *payload = kh_secret_alloc(KH_CHANNEL_PAYLOAD_MAX, NULL);
    size_t len = 0;
    kh_result result = KH_E_MEMORY;

    if (payload == NULL) {
        return result;
    }
    if ((result = put(payload, &len, &question, sizeof question)) == KH_OK &&
        (result = put_text(payload, &len, token->module)) == KH_OK &&
        (result = put_text(payload, &len, token->label)) == KH_OK &&
        (result = put_text(payload, &len, token->serial)) == KH_OK &&
        (result = put(payload, &len, pin->text, pin->len)) == KH_OK) {
        result = kh_channel_send(fd, KH_MSG_KEK_QUESTION, payload, len, NULL, 0);
    }
    kh_secret_free(payload, KH_CHANNEL_PAYLOAD_MAX);
    return result;
}

static kh_result await(int fd, uint8_t *kek)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    kh_channel_message *message = kh_secret_alloc(sizeof *message, NULL);
    kh_result result = message != NULL ? KH_E_DEADLINE : KH_E_MEMORY;
    kek_answer answer;
    int ready = 0;

    while (message != NULL && (ready = poll(&waiting, 1, KH_KEK_TOKEN_S * 1000)) < 0 && errno == EINTR) {
    }
    if (ready > 0) {
        result = kh_channel_receive(fd, false, message);
    }
    if (ready > 0 && result == KH_OK) {
        kh_channel_close_fds(message);
        result = KH_E_MALFORMED;
        if (message->type == KH_MSG_KEK_ANSWER && message->len == sizeof answer) {
            memcpy(&answer, message->payload, sizeof answer);
            result = (kh_result)answer.result;
            memcpy(kek, answer.kek, sizeof answer.kek);
            OPENSSL_cleanse(&answer, sizeof answer);
        }
    }
    kh_secret_free(message, sizeof *message);
    return result;
}

static const char *words(kh_result result)
{
    switch (result) {
    case KH_E_NOT_FOUND:
        return "no such token, or the key that wraps it is not in it";
    case KH_E_UNAVAILABLE:
        return "its library does not get at it: is it there, are module and env of its block right?";
    case KH_E_PASSPHRASE:
        return "the PIN is wrong; it was tried once: put the right one into pin_file before the next start";
    case KH_E_LOCKED:
        return "the PIN is locked, or one more wrong one would lock it";
    case KH_E_DAMAGED:
        return "it is not what the token wrapped: bring the file back from a backup";
    case KH_E_DEADLINE:
        return "the token's library does not answer";
    default:
        return kh_result_text(result);
    }
}

kh_result kh_kek_from_token(const kh_supervisor *supervisor, const kh_kek_token *wrapped, uint8_t *kek, char *error)
{
    const kh_config *config = supervisor->settings.config;
    int index = kh_config_find_token(config, wrapped->token), channel[2] = {-1, -1};
    const kh_config_token *token = index >= 0 ? &config->tokens[index] : NULL;
    kh_process_spec spec = {.role = KH_ROLE_KEK,
                            .exe_fd = supervisor->exe_fd,
                            .change_user = supervisor->privileged,
                            .locks_memory = true,
                            .user = supervisor->keeper_user,
                            .descriptors = DESCRIPTORS};
    kh_result result = KH_OK;
    pid_t pid = -1;

    if (token == NULL) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "kek_file %.200s is wrapped by the token \"%s\", for which there is no block token",
                 config->kek_file, wrapped->token);
        return KH_E_NOT_FOUND;
    }
    spec.env = token->env;
    spec.env_count = token->env_count;
    if (supervisor->privileged && (result = kh_token_user(config, token, &spec.user, error)) != KH_OK) {
        return result;
    }
    result = kh_channel_pair(channel);
    spec.channel_fd = channel[1];
    if (result == KH_OK && (pid = kh_process_start(&spec)) < 0) {
        result = KH_E_MEMORY;
    }
    if (channel[1] >= 0) {
        close(channel[1]);
    }
    if (result == KH_OK && (result = ask(&supervisor->settings, token, wrapped, channel[0])) == KH_OK) {
        result = await(channel[0], kek);
    }
    if (pid > 0) {
        kill(pid, SIGKILL); /* it has said what it has to say, or hangs */
        waitpid(pid, NULL, 0);
    }
    if (channel[0] >= 0) {
        close(channel[0]);
    }
    if (result != KH_OK) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "kek_file %.200s: token \"%s\": %s", config->kek_file, wrapped->token, words(result));
    }
    return result;
}

static kh_result take_from_token(kh_supervisor *supervisor, const kh_kek_token *wrapped, const kh_kek *had, kh_kek *kek, char *error)
{
    kh_result result = KH_E_MEMORY;

    kek->kind = KH_KEK_FILE;
    kek->len = KH_KEK_LEN;
    kek->secret = kh_secret_alloc(KH_PASSPHRASE_MAX, NULL);
    if (kek->secret == NULL) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "out of memory");
        return result;
    }
    if (had != NULL && supervisor->kek_wrapped != NULL && memcmp(supervisor->kek_wrapped, wrapped, sizeof *wrapped) == 0) {
        memcpy(kek->secret, had->secret, KH_KEK_LEN);
        return KH_OK;
    }
    result = kh_kek_from_token(supervisor, wrapped, kek->secret, error);
    if (result == KH_OK && supervisor->kek_wrapped == NULL) {
        supervisor->kek_wrapped = calloc(1, sizeof *wrapped);
    }
    if (result == KH_OK && supervisor->kek_wrapped != NULL) {
        *supervisor->kek_wrapped = *wrapped;
    }
    if (result != KH_OK) {
        kh_kek_free(kek);
    }
    return result;
}

kh_result kh_kek_take(kh_supervisor *supervisor, const kh_kek *had, kh_kek *kek, char *error)
{
    const kh_config *config = supervisor->settings.config;
    kh_kek_token wrapped;
    char path[PATH_MAX];

    memset(&wrapped, 0, sizeof wrapped); /* compared as a whole */
    if (config->kek_file == NULL || !kh_credential_resolve(config->kek_file, path, sizeof path) ||
        kh_kek_token_file_load(path, &wrapped) != KH_OK) {
        return kh_kek_load(config, kek, error);
    }
    return take_from_token(supervisor, &wrapped, had, kek, error);
}

/* ---- The role */

static kh_result unwrap(const kek_question *question, const char *module, const char *label, const char *serial,
                        const uint8_t *pin, uint8_t *kek)
{
    const kh_p11_config config = {.module = module,
                                  .label = label[0] != '\0' ? label : NULL,
                                  .serial = serial[0] != '\0' ? serial : NULL,
                                  .pin = question->has_pin != 0 ? pin : NULL,
                                  .pin_len = question->pin_len,
                                  .log = kh_log_keystore};
    kh_p11_session *session = NULL;
    kh_p11 *p11 = NULL;
    kh_result result = kh_p11_open(&config, &p11);

    if (result == KH_OK) {
        result = kh_p11_login(p11);
    }
    if (result == KH_OK) {
        result = kh_p11_session_new(p11, false, &session);
    }
    return result == KH_OK ? kh_kek_token_unwrap(session, &question->wrapped, kek) : result;
}

/* The next string of the message; NULL: it has none. */
static const char *take_text(const kh_channel_message *message, size_t *at)
{
    const char *text = (const char *)message->payload + *at;
    const char *zero = memchr(text, '\0', message->len - *at);

    *at += zero != NULL ? (size_t)(zero - text) + 1 : 0;
    return zero != NULL ? text : NULL;
}

static kh_result answer_question(const kh_channel_message *message, kek_answer *answer)
{
    const char *module = NULL, *label = NULL, *serial = NULL;
    kek_question question;
    size_t at = sizeof question;

    if (message->type != KH_MSG_KEK_QUESTION || message->len < sizeof question) {
        return KH_E_MALFORMED;
    }
    memcpy(&question, message->payload, sizeof question);
    if ((module = take_text(message, &at)) == NULL || (label = take_text(message, &at)) == NULL ||
        (serial = take_text(message, &at)) == NULL || question.pin_len != message->len - at) {
        return KH_E_MALFORMED;
    }
    kh_log_init("kek", (kh_log_level)question.log_level, question.log_json != 0);
    return unwrap(&question, module, label, serial, message->payload + at, answer->kek);
}

int kh_kek_main(void)
{
    kh_channel_message *message = kh_secret_alloc(sizeof *message, NULL);
    kek_answer *answer = kh_secret_alloc(sizeof *answer, NULL);

    if (message != NULL && answer != NULL && kh_channel_receive(KH_BOOT_FD, true, message) == KH_OK) {
        answer->result = (uint32_t)answer_question(message, answer);
        (void)!kh_channel_send(KH_BOOT_FD, KH_MSG_KEK_ANSWER, answer, sizeof *answer, NULL, 0);
    }
    kh_secret_free(answer, sizeof *answer);
    kh_secret_free(message, sizeof *message);
    _exit(KH_EXIT_OK); /* past the library's exit handlers */
}

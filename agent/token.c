/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process of a token's keeper: takes its boot message, gives up what the vendor's library does not need, then is all the
 * keystore's. With `confine = strict` the library is loaded before anything is given up, since afterwards no memory can be made
 * executable.
 */
#include "token.h"
#include "beat.h"
#include "boot.h"
#include "channel.h"
#include "config.h"
#include "confine.h"
#include "log.h"
#include "probe.h"
#include "secret.h"
#include <dlfcn.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATHS_MAX (KH_TOKEN_PATHS_MAX + KH_TOKEN_ENV_MAX)

/* What came, taken apart. The strings are in `text`. */
typedef struct token_boot {
    kh_boot_token_keeper head;
    const char *name, *module, *label, *serial;
    kh_confine_path paths[PATHS_MAX];
    size_t path_count;
    int control_fd;
    uint8_t *pin;
    char text[KH_CHANNEL_PAYLOAD_MAX];
} token_boot;

static void ready(void *ctx)
{
    (void)ctx;
    kh_beat_start();
    if (kh_channel_send(KH_BOOT_FD, KH_MSG_READY, NULL, 0, NULL, 0) == KH_OK) {
        kh_log(KH_LOG_INFO, "keeper_ready");
    }
}

/* No exit handler: threads may be inside the library, and most libraries crash when they are finalized under them. */
static void end(void *ctx, kh_token_end why)
{
    static const int codes[] = {[KH_TOKEN_STOPPED] = KH_EXIT_OK,
                                [KH_TOKEN_PIN] = KH_EXIT_PIN,
                                [KH_TOKEN_HUNG] = KH_EXIT_HUNG,
                                [KH_TOKEN_GONE] = KH_EXIT_TOKEN};

    (void)ctx;
    _exit(codes[why]);
}

/* ---- The boot message */

/* The next string; NULL: there is none. */
static const char *take_string(const char *text, size_t len, size_t *at)
{
    const char *string = text + *at, *zero = memchr(string, 0, len - *at);

    if (zero == NULL) {
        return NULL;
    }
    *at += (size_t)(zero - string) + 1;
    return string;
}

static bool take_paths(token_boot *boot, size_t len, size_t *at)
{
    size_t count = (size_t)boot->head.path_count + boot->head.read_count;

    if (count > PATHS_MAX) {
        return false;
    }
    for (; boot->path_count < count; boot->path_count++) {
        kh_confine_path *path = &boot->paths[boot->path_count];

        path->path = take_string(boot->text, len, at);
        path->what = boot->path_count < boot->head.path_count ? KH_PATH_ALL : KH_PATH_READ;
        if (path->path == NULL) {
            return false;
        }
    }
    return true;
}

/* The PIN moves into locked memory. */
static kh_result take_boot(const kh_channel_message *message, token_boot *boot)
{
    size_t len = message->len - sizeof boot->head, at = 0;

    if (message->type != KH_MSG_TOKEN_BOOT || message->fd_count != 1 || message->len < sizeof boot->head) {
        return KH_E_MALFORMED;
    }
    memcpy(&boot->head, message->payload, sizeof boot->head);
    boot->control_fd = message->fds[0];
    if (boot->head.pin_len > len) {
        return KH_E_MALFORMED;
    }
    len -= boot->head.pin_len;
    memcpy(boot->text, message->payload + sizeof boot->head, len);
    if ((boot->name = take_string(boot->text, len, &at)) == NULL ||
        (boot->module = take_string(boot->text, len, &at)) == NULL ||
        (boot->label = take_string(boot->text, len, &at)) == NULL ||
        (boot->serial = take_string(boot->text, len, &at)) == NULL || !take_paths(boot, len, &at)) {
        return KH_E_MALFORMED;
    }
    boot->pin = kh_secret_alloc(boot->head.pin_len + 1, NULL);
    if (boot->pin == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(boot->pin, message->payload + sizeof boot->head + len, boot->head.pin_len);
    return KH_OK;
}

/* ---- Confinement */

static void confine_files(const token_boot *boot)
{
    kh_confine_path paths[PATHS_MAX + 4];
    size_t count = boot->path_count;

    if (!boot->head.confine_strict && boot->head.path_count == 0) {
        return;
    }
    memcpy(paths, boot->paths, count * sizeof *paths);
    if (boot->head.confine_strict) {
        paths[count++] = (kh_confine_path){boot->module, KH_PATH_EXECUTE};
    } else {
        paths[count++] = (kh_confine_path){"/", KH_PATH_LOOK};
        paths[count++] = (kh_confine_path){"/dev/null", KH_PATH_ALL};
    }
    if (!kh_confine_paths(paths, count)) {
        kh_log(KH_LOG_WARN, "landlock_unavailable", KH_LT("token", boot->name),
               KH_LT("means", "its library can open what its user may"));
    }
}

/* false: the library cannot be loaded. */
static bool confine(const token_boot *boot)
{
    if (boot->head.confine_strict && dlopen(boot->module, RTLD_NOW | RTLD_LOCAL) == NULL) {
        kh_log(KH_LOG_ERROR, "start_failed", KH_LT("why", "the library cannot be loaded"), KH_LT("error", dlerror()));
        return false;
    }
    confine_files(boot);
    if (boot->head.confine_strict) {
        kh_confine(KH_CONFINE_TOKEN);
        kh_probe("token");
    }
    return true;
}

int kh_token_main(void)
{
    static kh_channel_message message;
    static token_boot boot;
    kh_token_config config = {.ready = ready, .end = end, .log = kh_log_keystore};
    kh_result result = kh_channel_receive(KH_BOOT_FD, true, &message);

    if (result == KH_OK) {
        result = take_boot(&message, &boot);
    }
    OPENSSL_cleanse(&message, sizeof message);
    if (result == KH_OK) {
        kh_log_init("token", (kh_log_level)boot.head.log_level, boot.head.log_json != 0);
        config.name = boot.name;
        config.module = boot.module;
        config.label = boot.label[0] != '\0' ? boot.label : NULL;
        config.serial = boot.serial[0] != '\0' ? boot.serial : NULL;
        config.pin = boot.head.has_pin ? boot.pin : NULL;
        config.pin_len = boot.head.pin_len;
        config.new_pin = boot.head.new_pin != 0;
        config.sessions = boot.head.sessions;
        config.call_timeout_ms = boot.head.call_timeout_ms;
        config.control_fd = boot.control_fd;
        if (!confine(&boot)) {
            return KH_EXIT_BUG;
        }
        result = kh_token_run(&config); /* which ends the process */
    }
    if (result == KH_E_CLOSED) {
        return KH_EXIT_OK;
    }
    kh_log(KH_LOG_ERROR, "start_failed", KH_LT("why", kh_result_name(result)), KH_LT("text", kh_result_text(result)));
    return KH_EXIT_BUG;
}

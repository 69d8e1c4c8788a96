/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's process: takes its boot message, then is all the keystore's. */
#include "keeper.h"
#include "beat.h"
#include "boot.h"
#include "channel.h"
#include "confine.h"
#include "log.h"
#include "probe.h"
#include "secret.h"
#include <openssl/crypto.h>
#include <string.h>
#include <unistd.h>

static void confine(void *ctx)
{
    (void)ctx;
    kh_confine(KH_CONFINE_KEEPER);
    kh_probe("keeper");
}

static void ready(void *ctx)
{
    (void)ctx;
    kh_beat_start();
    if (kh_channel_send(KH_BOOT_FD, KH_MSG_READY, NULL, 0, NULL, 0) == KH_OK) {
        kh_log(KH_LOG_INFO, "keeper_ready");
    }
}

/*
 * From the message to the keystore's configuration. The secret moves into locked memory, the message is
 * wiped.
 */
static kh_result take_boot(kh_channel_message *message, kh_keeper_config *config, char *path, size_t path_cap)
{
    kh_boot_keeper boot;
    size_t path_len = 0;

    if (message->type != KH_MSG_KEEPER_BOOT || message->fd_count < 1 || message->fd_count > 2 ||
        message->len < sizeof boot) {
        return KH_E_MALFORMED;
    }
    memcpy(&boot, message->payload, sizeof boot);
    if (boot.kek_len > message->len - sizeof boot) {
        return KH_E_MALFORMED;
    }
    path_len = message->len - sizeof boot - boot.kek_len;
    if (path_len == 0 || path_len >= path_cap) {
        return KH_E_MALFORMED;
    }
    memcpy(path, message->payload + sizeof boot + boot.kek_len, path_len);
    path[path_len] = '\0';
    kh_log_init("keeper", (kh_log_level)boot.log_level, boot.log_json != 0);
    config->store_path = path;
    config->kek_kind = (kh_kek_kind)boot.kek_kind;
    config->kek_secret_len = boot.kek_len;
    config->kek_secret = kh_secret_alloc(boot.kek_len, NULL);
    if (config->kek_secret == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(config->kek_secret, message->payload + sizeof boot, boot.kek_len);
    config->workers = boot.workers;
    config->cache_keys = boot.cache_keys;
    config->batch_window_us = boot.batch_window_us;
    config->use_kernels = boot.use_kernels != 0;
    config->control_fd = message->fds[0];
    config->admin_fd = message->fd_count == 2 ? message->fds[1] : -1;
    config->with_places = true;
    message->fd_count = 0; /* they are the keystore's now */
    return KH_OK;
}

int kh_keeper_main(void)
{
    static char path[4096];
    kh_keeper_config config = {.admin_fd = -1, .confine = confine, .ready = ready, .log = kh_log_keystore};
    kh_channel_message message = {0};
    kh_result result = kh_channel_receive(KH_BOOT_FD, true, &message);

    if (result == KH_OK) {
        result = take_boot(&message, &config, path, sizeof path);
    }
    OPENSSL_cleanse(&message, sizeof message);
    if (result == KH_OK) {
        result = kh_keeper_run(&config);
        kh_secret_free(config.kek_secret, config.kek_secret_len);
    }
    if (result == KH_OK || result == KH_E_CLOSED) {
        return KH_EXIT_OK;
    }
    kh_log(KH_LOG_ERROR, "start_failed", KH_LT("why", kh_result_name(result)),
           KH_LT("text", result == KH_E_NOT_FOUND ? "the store is not there" : kh_result_text(result)), KH_LT("store", path));
    switch (result) {
    case KH_E_NOT_FOUND:
    case KH_E_PASSPHRASE:
    case KH_E_VERSION:
    case KH_E_DAMAGED:
    case KH_E_LOCKED:
    case KH_E_STORAGE:
    case KH_E_INVALID:
        return KH_EXIT_REFUSED;
    default:
        return KH_EXIT_BUG;
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the supervisor sends to the front: first everything to begin with, later new configurations, listeners
 * and rings. A configuration comes in pieces and is used when it is complete, or not at all. When the
 * supervisor goes, so does the front.
 */
#include "confine.h"
#include "front.h"
#include "metrics.h"
#include "tls_material.h"
#include "secret.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CREDENTIALS_SIZE (KH_IDENTITIES_MAX * sizeof(kh_credential))

static void drop_next(kh_front *front)
{
    kh_config_free(front->next_config);
    front->next_config = NULL;
    if (front->next_credentials != NULL) {
        OPENSSL_cleanse(front->next_credentials, CREDENTIALS_SIZE);
    }
    for (size_t i = 0; i < KH_LISTENERS_MAX; i++) {
        kh_tls_server_free(front->next_tls[i]);
        front->next_tls[i] = NULL;
    }
}

static kh_result take_config(kh_front *front, kh_channel_message *message)
{
    char path[4096], error[KH_CONFIG_ERROR_MAX];
    size_t path_len = message->len - sizeof front->next_boot;
    off_t size = message->fd_count == 1 ? lseek(message->fds[0], 0, SEEK_END) : -1;
    char *text = MAP_FAILED;
    kh_result result = KH_OK;

    drop_next(front);
    if (message->len <= sizeof front->next_boot || path_len >= sizeof path || size <= 0 ||
        size > KH_CONFIG_TEXT_MAX) {
        return KH_E_MALFORMED;
    }
    memcpy(&front->next_boot, message->payload, sizeof front->next_boot);
    memcpy(path, message->payload + sizeof front->next_boot, path_len);
    path[path_len] = '\0';
    text = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, message->fds[0], 0);
    if (text == MAP_FAILED) {
        return KH_E_MEMORY;
    }
    result = kh_config_parse(text, (size_t)size, path, &front->next_config, error);
    munmap(text, (size_t)size);
    if (result != KH_OK) { /* the supervisor has parsed it already: it is a bug, or no memory */
        kh_log(KH_LOG_ERROR, "configuration_refused", KH_LT("error", error));
    }
    return result;
}

static kh_result take_tokens(kh_front *front, const kh_channel_message *message)
{
    if (front->next_config == NULL || message->len % sizeof(kh_boot_token) != 0) {
        return KH_E_MALFORMED;
    }
    for (size_t at = 0; at < message->len; at += sizeof(kh_boot_token)) {
        kh_boot_token token;

        memcpy(&token, message->payload + at, sizeof token);
        if (token.identity >= front->next_config->identity_count) {
            return KH_E_MALFORMED;
        }
        memcpy(front->next_credentials[token.identity].secret, token.secret, sizeof token.secret);
        OPENSSL_cleanse(&token, sizeof token);
    }
    return KH_OK;
}

static kh_result take_tls(kh_front *front, const kh_channel_message *message)
{
    kh_tls_server *server = NULL;
    uint32_t listener = 0;
    kh_result result = front->next_config != NULL ? kh_material_receive(message, &listener, &server) : KH_E_ORDER;

    if (result == KH_OK &&
        (listener >= front->next_config->listener_count || front->next_tls[listener] != NULL)) {
        kh_tls_server_free(server);
        return KH_E_MALFORMED;
    }
    if (result == KH_OK) {
        front->next_tls[listener] = server;
    }
    return result;
}

/* A listening socket and its address, for whoever `add` is: it owns the descriptor from then on. */
static kh_result take_socket(kh_front *front, kh_channel_message *message,
                             kh_result (*add)(kh_front *front, int fd, const char *address))
{
    char address[256];
    int fd = message->fd_count == 1 ? message->fds[0] : -1;

    if (fd < 0 || message->len == 0 || message->len >= sizeof address) {
        return KH_E_MALFORMED;
    }
    memcpy(address, message->payload, message->len);
    address[message->len] = '\0';
    message->fds[0] = -1;
    return add(front, fd, address);
}

static void limits(kh_front *front)
{
    const kh_config *config = front->config;
    uint32_t jobs = (uint32_t)config->queue_total + 65536; /* and those in the ring, and held back */

    front->queue.total_max = (uint32_t)config->queue_total;
    kh_log_init("front", config->log_level, config->log_format == KH_FORMAT_JSON);
    if (front->jobs != NULL) {
        kh_jobs_limit(front->jobs, jobs, (uint64_t)config->queue_bytes);
        kh_directory_limit(front->directory, (uint32_t)config->directory_entries);
    }
}

/* The pieces are complete. */
static kh_result commit(kh_front *front)
{
    kh_config *old = front->config;
    kh_credential *credentials = front->credentials;
    kh_result result = KH_OK;

    if (front->next_config == NULL) {
        return KH_E_ORDER;
    }
    front->config = front->next_config;
    front->next_config = NULL;
    front->credentials = front->next_credentials;
    front->next_credentials = credentials;
    front->boot = front->next_boot;
    limits(front);
    result = kh_identities_apply(front);
    if (result == KH_OK) {
        result = kh_backends_apply(front);
    }
    if (credentials != NULL) {
        OPENSSL_cleanse(credentials, CREDENTIALS_SIZE);
    }
    if (old != NULL) {
        kh_listeners_apply(front);
        kh_metrics_apply(front);
        kh_conns_apply(front);
        kh_config_free(old);
        kh_log(KH_LOG_NOTICE, "configuration_applied", KH_LN("identities", front->config->identity_count),
               KH_LN("listeners", front->config->listener_count));
    }
    return result;
}

static void take_processes(kh_front *front, const kh_channel_message *message)
{
    size_t count = message->len / sizeof(kh_boot_process);

    front->process_count = (uint32_t)(count < KH_BOOT_PROCESSES ? count : KH_BOOT_PROCESSES);
    memcpy(front->processes, message->payload, front->process_count * sizeof(kh_boot_process));
    for (uint32_t i = 0; i < front->process_count; i++) {
        front->processes[i].role[sizeof front->processes[i].role - 1] = '\0';
    }
}

static void drain(kh_front *front, const kh_channel_message *message)
{
    uint32_t most_ms = 0;

    memcpy(&most_ms, message->payload, message->len == sizeof most_ms ? sizeof most_ms : 0);
    front->draining = true;
    front->drain_until_ns = front->now_ns + (uint64_t)most_ms * 1000000;
    kh_listeners_stop(front);
    kh_log(KH_LOG_NOTICE, "draining", KH_LN("waiting", front->waiting_jobs), KH_LN("timeout_ms", most_ms));
}

/* Which keeper a message is about; NULL: the store's. */
static const kh_boot_ring *boot_ring(const kh_channel_message *message, kh_boot_ring *which)
{
    if (message->len != sizeof *which) {
        return NULL;
    }
    memcpy(which, message->payload, sizeof *which);
    which->token[sizeof which->token - 1] = '\0';
    return which;
}

static kh_result take(kh_front *front, kh_channel_message *message)
{
    kh_boot_ring which;

    switch (message->type) {
    case KH_MSG_CONFIG:
        return take_config(front, message);
    case KH_MSG_TOKENS:
        return take_tokens(front, message);
    case KH_MSG_TLS:
        return take_tls(front, message);
    case KH_MSG_LISTENER:
        return take_socket(front, message, kh_listener_add);
    case KH_MSG_METRICS:
        return take_socket(front, message, kh_metrics_listen);
    case KH_MSG_COMMIT:
        return commit(front);
    case KH_MSG_RING:
        if (message->fd_count != 3) {
            return KH_E_MALFORMED;
        }
        kh_backend_ring(front, boot_ring(message, &which), message->fds); /* takes them */
        message->fd_count = 0;
        return KH_OK;
    case KH_MSG_KEEPER_DOWN:
        kh_backend_down(front, boot_ring(message, &which));
        return KH_OK;
    case KH_MSG_PROCESSES:
        take_processes(front, message);
        return KH_OK;
    case KH_MSG_DRAIN:
        drain(front, message);
        return KH_OK;
    default:
        return KH_E_UNSUPPORTED;
    }
}

static kh_result receive(kh_front *front, bool wait, uint32_t *type)
{
    kh_channel_message *message = front->message;
    kh_result result = kh_channel_receive(front->channel_fd, wait, message);

    *type = 0;
    if (result != KH_OK) {
        return result;
    }
    *type = message->type;
    result = take(front, message);
    kh_channel_close_fds(message);
    if (*type == KH_MSG_TOKENS || *type == KH_MSG_TLS) {
        OPENSSL_cleanse(message, sizeof *message);
    }
    return result;
}

kh_result kh_control_boot(kh_front *front)
{
    bool locked = true;
    kh_result result = KH_OK;
    uint32_t type = 0;

    front->credentials = kh_secret_alloc(CREDENTIALS_SIZE, &locked);
    front->next_credentials = kh_secret_alloc(CREDENTIALS_SIZE, &locked);
    front->message = kh_secret_alloc(sizeof *front->message, &locked);
    if (front->credentials == NULL || front->next_credentials == NULL || front->message == NULL) {
        return KH_E_MEMORY;
    }
    if (!locked) {
        kh_log(KH_LOG_WARN, "memory_not_locked", KH_LT("what", "tokens"),
               KH_LT("do", "set LimitMEMLOCK=infinity, as the unit does"));
    }
    while (result == KH_OK && type != KH_MSG_COMMIT) {
        result = receive(front, true, &type);
    }
    return result;
}

static void on_channel(struct ev_loop *loop, ev_io *io, int events)
{
    kh_front *front = io->data;
    uint32_t type = 0;
    kh_result result = KH_OK;

    (void)events;
    front->now_ns = kh_front_clock();
    while ((result = receive(front, false, &type)) != KH_AGAIN) {
        if (result == KH_E_CLOSED) { /* the supervisor is gone, killed perhaps: nobody may be left behind */
            kh_log(KH_LOG_WARN, "supervisor_gone");
            _exit(KH_EXIT_OK);
        }
        if (result != KH_OK) {
            kh_log(KH_LOG_ERROR, "control_failed", KH_LN("message", type),
                   KH_LT("why", kh_result_name(result)));
            drop_next(front);
        }
    }
    (void)loop;
}

/* The supervisor kills a front that has been silent for long. */
static void on_alive(struct ev_loop *loop, ev_timer *timer, int events)
{
    kh_front *front = timer->data;

    (void)loop;
    (void)events;
    kh_channel_poke(front->channel_fd, KH_MSG_ALIVE);
}

void kh_control_start(kh_front *front)
{
    ev_timer_init(&front->alive, on_alive, KH_ALIVE_S, KH_ALIVE_S);
    front->alive.data = front;
    ev_timer_start(front->loop, &front->alive);
    ev_io_init(&front->channel_io, on_channel, front->channel_fd, EV_READ);
    front->channel_io.data = front;
    ev_io_start(front->loop, &front->channel_io);
}

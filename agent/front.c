/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front's process: it is told everything over its channel, confines itself, and serves until it is told
 * to stop.
 */
#include "front.h"
#include "confine.h"
#include "metrics.h"
#include "probe.h"
#include "secret.h"
#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define SECURE_HEAP (512 * 1024) /* bytes, a power of two: some kilobytes for each TCP listener */
#define SECURE_LEAST 64

uint64_t kh_front_clock(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The end: everything answered and taken, or the time is up. */
static void check_drained(struct ev_loop *loop, ev_prepare *prepare, int events)
{
    kh_front *front = prepare->data;

    (void)events;
    if (front->draining &&
        ((front->waiting_jobs == 0 && !kh_conns_pending(front)) || front->now_ns >= front->drain_until_ns)) {
        if (front->waiting_jobs > 0) {
            kh_log(KH_LOG_WARN, "drain_incomplete", KH_LN("operations", front->waiting_jobs),
                   KH_LT("means", "they are lost: drain_timeout_ms is over"));
        }
        ev_break(loop, EVBREAK_ALL);
    }
}

/*
 * OpenSSL loads what TLS needs now, since the first TCP listener may come with a later configuration. The numbers of
 * private keys go to memory that is locked and left out of dumps.
 */
static kh_result set_up_tls(void)
{
    SSL_CTX *ctx = NULL;

    if (CRYPTO_secure_malloc_init(SECURE_HEAP, SECURE_LEAST) == 0) {
        return KH_E_MEMORY;
    }
    ctx = SSL_CTX_new(TLS_server_method());
    SSL_CTX_free(ctx);
    return ctx != NULL ? KH_OK : KH_E_MEMORY;
}

static kh_result set_up(kh_front *front)
{
    const kh_config *config = NULL;
    uint8_t warm[KH_PROOF_LEN], nonce[KH_NONCE_LEN] = {0};
    kh_result result = set_up_tls();

    if (result == KH_OK) {
        result = kh_control_boot(front);
    }
    if (result != KH_OK) {
        return result;
    }
    config = front->config;
    front->nobody = kh_secret_alloc(sizeof *front->nobody, NULL);
    if (front->nobody == NULL ||
        getrandom(front->nobody->secret, KH_TOKEN_SECRET_LEN, 0) != KH_TOKEN_SECRET_LEN ||
        !kh_credential_prove(front->nobody, "keyhold-1 agent", nonce, nonce,
                             warm)) { /* OpenSSL loads what it needs now */
        return KH_E_MEMORY;
    }
    result = kh_jobs_new((uint32_t)config->queue_total + 65536, (uint64_t)config->queue_bytes, &front->jobs);
    if (result == KH_OK) {
        result = kh_directory_new((uint32_t)config->directory_entries, &front->directory);
    }
    if (result == KH_OK) {
        front->loop = ev_default_loop(EVFLAG_NOENV | EVBACKEND_EPOLL);
        result = front->loop == NULL ? KH_E_MEMORY : KH_OK;
    }
    return result;
}

int kh_front_main(void)
{
    static ev_prepare drained;
    kh_front *front = calloc(1, sizeof *front);
    kh_result result = KH_E_MEMORY;
    struct timespec now = {0};

    if (front != NULL) {
        front->channel_fd = KH_BOOT_FD;
        front->now_ns = front->started_ns = kh_front_clock();
        clock_gettime(CLOCK_REALTIME, &now);
        front->started_s = (uint64_t)now.tv_sec;
        front->boot.operator_uid = 0;
        result = set_up(front);
    }
    if (result != KH_OK) {
        if (result != KH_E_CLOSED) {
            kh_log(KH_LOG_ERROR, "start_failed", KH_LT("why", kh_result_name(result)));
        }
        return KH_EXIT_BUG;
    }
    kh_confine(KH_CONFINE_FRONT);
    kh_probe("front");
    kh_control_start(front);
    kh_conns_start(front);
    kh_dispatch_start(front);
    ev_prepare_init(&drained, check_drained);
    drained.data = front;
    ev_set_priority(&drained, EV_MINPRI); /* after everything of this turn */
    ev_prepare_start(front->loop, &drained);
    kh_listeners_start(front);
    kh_metrics_apply(front);
    if (kh_channel_send(front->channel_fd, KH_MSG_READY, NULL, 0, NULL, 0) != KH_OK) {
        return KH_EXIT_OK;
    }
    kh_log(KH_LOG_INFO, "front_ready", KH_LN("listeners", front->config->listener_count),
           KH_LN("identities", front->config->identity_count));
    ev_run(front->loop, 0);
    kh_log(KH_LOG_NOTICE, "drained");
    (void)!kh_channel_send(front->channel_fd, KH_MSG_DRAINED, NULL, 0, NULL, 0);
    return KH_EXIT_OK;
}

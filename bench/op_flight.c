/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench op --agent`: what TCP with mutual TLS costs beside the Unix socket. One connection of each kind to the
 * same agent, the same number of operations always in flight, in turns in one run.
 */
#include "../protocol/link.h"
#include "op_flight.h"
#include "op_key.h"

#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MS 10000
#define IN_FLIGHT_MAX 1024

typedef struct flight {
    kh_link *link;
    kh_session *session;
    kh_credential credential;
    uint64_t begun_ns[IN_FLIGHT_MAX]; /* of what is in flight; a request's user pointer points here */
} flight;

static bool lost(const flight *f, kh_result why)
{
    const char *words = "";

    if (f->session != NULL) {
        (void)kh_session_why(f->session, &words);
    }
    fprintf(stderr, "keyhold-bench op: %s: %s %s %s\n", f->link != NULL ? f->link->name : "", kh_result_text(why), words,
            f->link != NULL ? f->link->detail : "");
    return false;
}

/* Writes what is to be written, and reads what comes, waiting for it if nothing was there. */
static kh_result turn(flight *f)
{
    kh_bytes out = kh_session_output(f->session);
    kh_result result = KH_OK;
    size_t moved = 0, cap = 0;
    uint8_t *room = NULL;

    if (out.len > 0) {
        result = f->link->ops->write(f->link, out.data, out.len, &moved);
        kh_session_sent(f->session, moved);
    }
    if (result == KH_OK || result == KH_AGAIN) {
        result = kh_link_wait(f->link, kh_link_now_ms() + TIMEOUT_MS);
    }
    room = result == KH_OK ? kh_session_read_buffer(f->session, &cap) : NULL;
    if (room != NULL) {
        moved = 0;
        result = f->link->ops->read(f->link, room, cap, &moved);
        kh_session_fed(f->session, moved);
    }
    return result == KH_AGAIN ? KH_OK : result;
}

/* Connects, and says who we are. */
static bool start(flight *f, kh_link *link, const char *token)
{
    kh_session_config config = {.client_name = "keyhold-bench", .prove = kh_credential_prove, .prove_ctx = &f->credential};
    kh_result result = token != NULL ? kh_credential_load(token, &f->credential) : KH_OK;
    kh_reply reply;
    void *user = NULL;

    f->link = link;
    config.identity = f->credential.identity;
    if (result == KH_OK) {
        result = RAND_bytes(config.nonce, sizeof(config.nonce)) == 1 ? link->ops->connect(link, kh_link_now_ms() + TIMEOUT_MS)
                                                                     : KH_E_CRYPTO;
    }
    if (result == KH_OK) {
        result = kh_session_new(&config, &f->session);
    }
    while (result == KH_OK && kh_session_get_state(f->session) != KH_SESSION_READY) {
        result = turn(f);
        if (result == KH_OK && (result = kh_session_next(f->session, &reply, &user)) == KH_AGAIN) {
            result = KH_OK;
        }
    }
    return result == KH_OK || lost(f, result);
}

static void stop(flight *f)
{
    if (f->link != NULL) {
        f->link->ops->disconnect(f->link);
        f->link->ops->free(f->link);
    }
    kh_session_free(f->session);
    kh_credential_wipe(&f->credential);
}

static bool submit(flight *f, kh_op_key *key, uint64_t *begun_ns)
{
    kh_request request;
    uint32_t id = 0;
    kh_result result = kh_op_key_next(key) ? KH_OK : KH_E_CRYPTO;

    request = kh_op_key_request(key, TIMEOUT_MS);
    *begun_ns = kh_now_ns();
    if (result == KH_OK) {
        result = kh_session_submit(f->session, &request, kh_link_now_ms(), begun_ns, &id);
    }
    return result == KH_OK || lost(f, result);
}

/* So many operations, in_flight of them at a time. */
static bool half_round(flight *f, kh_op_key *key, const kh_flight_config *config, kh_hist *hist, uint64_t *took_ns,
                       uint64_t *failed)
{
    uint64_t begun_ns = kh_now_ns();
    unsigned sent = 0, done = 0;
    kh_result result = KH_OK;
    kh_reply reply;
    void *user = NULL;

    for (; sent < config->in_flight && sent < config->per_round; sent++) {
        if (!submit(f, key, &f->begun_ns[sent])) {
            return false;
        }
    }
    while (done < config->per_round) {
        result = turn(f);
        if (result != KH_OK) {
            return lost(f, result);
        }
        while ((result = kh_session_next(f->session, &reply, &user)) == KH_OK) {
            kh_hist_add(hist, kh_now_ns() - *(uint64_t *)user);
            *failed += reply.status != KH_OK;
            done++;
            if (sent < config->per_round) {
                sent++;
                if (!submit(f, key, user)) {
                    return false;
                }
            }
        }
        if (result != KH_AGAIN) {
            return lost(f, result);
        }
    }
    *took_ns += kh_now_ns() - begun_ns;
    return true;
}

bool kh_flight_run(const kh_flight_config *config, kh_flight_result *result)
{
    static flight local, remote;
    static kh_hist warm;
    char detail[KH_LINK_DETAIL_MAX] = "";
    kh_link *unix_link = NULL, *tcp_link = NULL;
    uint64_t unused_ns = 0;
    kh_op_key key = {0};
    unsigned round;
    bool ok = false;

    memset(result, 0, sizeof(*result));
    memset(&local, 0, sizeof(local));
    memset(&remote, 0, sizeof(remote));
    result->in_flight = config->in_flight;
    if (config->in_flight == 0 || config->in_flight > IN_FLIGHT_MAX) {
        fprintf(stderr, "keyhold-bench op: 1 to %d in flight\n", IN_FLIGHT_MAX);
        return false;
    }
    if (!kh_op_key_load(config->key_file, &key)) {
        return false;
    }
    if (kh_link_unix(config->unix_address, &unix_link, detail) != KH_OK ||
        kh_link_tcp(config->tcp_address, &config->tls, &tcp_link, detail) != KH_OK) {
        fprintf(stderr, "keyhold-bench op: %s\n", detail);
    }
    ok = unix_link != NULL && tcp_link != NULL && start(&local, unix_link, config->token) && start(&remote, tcp_link, NULL);
    ok = ok && half_round(&local, &key, config, &warm, &unused_ns, &result->failed) &&
         half_round(&remote, &key, config, &warm, &unused_ns, &result->failed);
    for (round = 0; ok && round < config->rounds; round++) {
        ok = half_round(&remote, &key, config, &result->tcp_hist, &result->tcp_ns, &result->failed) &&
             half_round(&local, &key, config, &result->unix_hist, &result->unix_ns, &result->failed);
    }
    local.link = unix_link;
    remote.link = tcp_link;
    stop(&local);
    stop(&remote);
    kh_op_key_free(&key);
    return ok;
}

/* ---- Several keys ---- */

static bool submit_named(flight *f, const char *name, uint64_t *begun_ns)
{
    uint8_t message[KH_OP_PROLOGUE_LEN + 32];
    kh_request request = {.op = KH_OP_SIGN,
                          .deadline_ms = TIMEOUT_MS,
                          .key = {(const uint8_t *)name, strlen(name)},
                          .scheme = KH_ECDSA_SHA256,
                          .data = {message, sizeof(message)}};
    uint32_t id = 0;
    kh_result result = KH_OK;

    memset(message, ' ', 64);
    memcpy(message + 64, "TLS 1.3, server CertificateVerify", 34); /* with its zero byte */
    result = RAND_bytes(message + KH_OP_PROLOGUE_LEN, 32) == 1 ? KH_OK : KH_E_CRYPTO;
    *begun_ns = kh_now_ns();
    if (result == KH_OK) {
        result = kh_session_submit(f->session, &request, kh_link_now_ms(), begun_ns, &id);
    }
    return result == KH_OK || lost(f, result);
}

/* Keeps so many in flight until the time is over, and waits for the last ones. */
static bool mix(flight *f, const kh_mix_config *config, kh_mix_result *result)
{
    uint64_t from_ns = kh_now_ns() + config->warmup_ns, end_ns = from_ns + config->duration_ns;
    unsigned sent = 0, done = 0;
    kh_result got = KH_OK;
    kh_reply reply;
    void *user = NULL;

    for (; sent < config->in_flight; sent++) {
        if (!submit_named(f, config->keys[sent % config->key_count], &f->begun_ns[sent])) {
            return false;
        }
    }
    while (done < sent) {
        got = turn(f);
        while (got == KH_OK && (got = kh_session_next(f->session, &reply, &user)) == KH_OK) {
            uint64_t now_ns = kh_now_ns();

            done++;
            result->failed += reply.status != KH_OK;
            if (now_ns >= from_ns && now_ns < end_ns) {
                kh_hist_add(&result->hist, now_ns - *(uint64_t *)user);
            }
            if (now_ns < end_ns && !submit_named(f, config->keys[sent++ % config->key_count], user)) {
                return false;
            }
        }
        if (got != KH_AGAIN) {
            return lost(f, got);
        }
    }
    result->ns = config->duration_ns;
    return true;
}

bool kh_mix_run(const kh_mix_config *config, kh_mix_result *result)
{
    static flight f;
    char detail[KH_LINK_DETAIL_MAX] = "";
    kh_link *link = NULL;
    bool ok = false;

    memset(result, 0, sizeof(*result));
    memset(&f, 0, sizeof(f));
    if (config->in_flight == 0 || config->in_flight > IN_FLIGHT_MAX || config->key_count == 0) {
        return false;
    }
    if (kh_link_unix(config->address, &link, detail) != KH_OK) {
        fprintf(stderr, "keyhold-bench: %s\n", detail);
        return false;
    }
    ok = start(&f, link, NULL) && mix(&f, config, result);
    f.link = link;
    stop(&f);
    return ok;
}

double kh_mix_rate(const kh_mix_result *result)
{
    return result->ns > 0 ? (double)result->hist.count * 1e9 / (double)result->ns : 0;
}

static double rate(const kh_hist *hist, uint64_t ns)
{
    return ns > 0 ? (double)hist->count * 1e9 / (double)ns : 0;
}

double kh_flight_ratio(const kh_flight_result *result)
{
    double local = rate(&result->unix_hist, result->unix_ns);

    return local > 0 ? rate(&result->tcp_hist, result->tcp_ns) / local : 0;
}

void kh_flight_print(const kh_flight_result *result, bool as_json)
{
    const struct {
        const char *name;
        const kh_hist *hist;
        uint64_t ns;
    } sides[] = {{"unix", &result->unix_hist, result->unix_ns}, {"tcp", &result->tcp_hist, result->tcp_ns}};
    json_t *json = json_pack("{s:i, s:I, s:f}", "in_flight", (int)result->in_flight, "failed", (json_int_t)result->failed,
                             "ratio", kh_flight_ratio(result));
    size_t i;

    for (i = 0; i < 2; i++) {
        double p50 = (double)kh_hist_quantile(sides[i].hist, 0.5) / 1e3;
        double p99 = (double)kh_hist_quantile(sides[i].hist, 0.99) / 1e3;

        json_object_set_new(json, sides[i].name,
                            json_pack("{s:I, s:f, s:f, s:f}", "operations", (json_int_t)sides[i].hist->count, "per_second",
                                      rate(sides[i].hist, sides[i].ns), "p50_us", p50, "p99_us", p99));
        if (!as_json) {
            printf("  %-5s %9.0f operations/s   p50 %8.1f µs   p99 %8.1f µs\n", sides[i].name,
                   rate(sides[i].hist, sides[i].ns), p50, p99);
        }
    }
    if (as_json) {
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
        putchar('\n');
    } else {
        printf("  TCP over Unix socket: %.2f at %u in flight, %llu failed\n", kh_flight_ratio(result), result->in_flight,
               (unsigned long long)result->failed);
    }
    json_decref(json);
}

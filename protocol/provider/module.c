/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keyhold.so: the provider for every OpenSSL 3 program. Waits in the calling thread, over a blocking client.
 *
 * Where the agent is comes from the provider's section of openssl.cnf (agent, token, timeout_ms), else from the
 * environment (KH_AGENT, KH_TOKEN, KH_TIMEOUT_MS), else it is unix:/run/keyhold/agent.sock without a token.
 *
 * A program that runs OpenSSL's ASYNC jobs will be paused instead of blocked: that belongs into host_perform(), where a
 * job is current.
 */
#include "provider.h"

#include <keyhold/client.h>
#include <openssl/core_dispatch.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_AGENT "unix:/run/keyhold/agent.sock"
enum { DEFAULT_TIMEOUT_MS = 5000, IDLE_MAX = 16, DETAIL_MAX = 256 };

/* Connections that nobody uses at the moment; the lock is held for pointer moves only, never while waiting. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kh_client *idle[IDLE_MAX];
static size_t idle_count;

static struct {
    char *agent;
    char *token;
    uint32_t timeout_ms;
} config;

static void fork_prepare(void)
{
    pthread_mutex_lock(&lock);
}

static void fork_release(void)
{
    pthread_mutex_unlock(&lock);
}

/* A child must not speak on its parent's connections: it closes its copies of their descriptors. */
static void fork_child(void)
{
    for (size_t i = 0; i < idle_count; i++) {
        kh_client_close(idle[i]);
    }
    idle_count = 0;
    pthread_mutex_unlock(&lock);
}

static kh_result client_take(uint32_t timeout_ms, kh_client **client)
{
    kh_credential cred = {.identity = ""};
    char detail[DETAIL_MAX] = "";
    kh_result rc = KH_OK;

    *client = NULL;
    pthread_mutex_lock(&lock);
    if (idle_count > 0) {
        *client = idle[--idle_count];
    }
    pthread_mutex_unlock(&lock);
    if (*client != NULL) {
        return KH_OK;
    }
    if (config.token != NULL) {
        rc = kh_credential_load(config.token, &cred);
    }
    if (rc == KH_OK) {
        rc = kh_client_open(config.agent, config.token != NULL ? &cred : NULL, "keyhold.so", timeout_ms, client,
                            detail, sizeof(detail));
    }
    kh_credential_wipe(&cred);
    return rc;
}

static void client_give(kh_client *client)
{
    pthread_mutex_lock(&lock);
    if (idle_count < IDLE_MAX) {
        idle[idle_count++] = client;
        client = NULL;
    }
    pthread_mutex_unlock(&lock);
    kh_client_close(client);
}

static kh_result host_perform(void *ctx, kh_request *req, uint8_t *out, size_t cap, size_t *len)
{
    kh_client *client = NULL;
    kh_reply reply;
    kh_result rc = KH_OK;

    (void)ctx;
    *len = 0;
    rc = client_take(config.timeout_ms, &client);
    if (rc != KH_OK) {
        return rc;
    }
    req->deadline_ms = config.timeout_ms;
    rc = kh_client_call(client, req, &reply);
    if (rc != KH_OK) {
        kh_client_close(client);
        return rc;
    }
    rc = reply.status;
    if (rc == KH_OK && reply.data.len > cap) {
        rc = KH_E_TOO_LARGE;
    }
    if (rc == KH_OK) {
        memcpy(out, reply.data.data, reply.data.len);
        *len = reply.data.len;
    }
    client_give(client);
    return rc;
}

static char *setting(char *from_config, const char *variable)
{
    const char *value = from_config != NULL ? from_config : secure_getenv(variable);

    return value != NULL ? strdup(value) : NULL;
}

static void read_config(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in)
{
    OSSL_FUNC_core_get_params_fn *core_get_params = NULL;
    char *agent = NULL;
    char *token = NULL;
    char *timeout = NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_utf8_ptr("agent", &agent, 0),
        OSSL_PARAM_utf8_ptr("token", &token, 0),
        OSSL_PARAM_utf8_ptr("timeout_ms", &timeout, 0),
        OSSL_PARAM_END,
    };

    for (; in->function_id != 0; in++) {
        if (in->function_id == OSSL_FUNC_CORE_GET_PARAMS) {
            core_get_params = OSSL_FUNC_core_get_params(in);
        }
    }
    if (core_get_params != NULL) {
        (void)core_get_params(handle, params);
    }
    free(config.agent);
    free(config.token);
    config.agent = setting(agent, "KH_AGENT");
    if (config.agent == NULL) {
        config.agent = strdup(DEFAULT_AGENT);
    }
    config.token = setting(token, "KH_TOKEN");
    if (timeout == NULL) {
        timeout = secure_getenv("KH_TIMEOUT_MS");
    }
    config.timeout_ms = timeout != NULL ? (uint32_t)strtoul(timeout, NULL, 10) : DEFAULT_TIMEOUT_MS;
    if (config.timeout_ms == 0 || config.timeout_ms > KH_DEADLINE_MAX_MS) {
        config.timeout_ms = DEFAULT_TIMEOUT_MS;
    }
}

__attribute__((visibility("default"))) OSSL_provider_init_fn OSSL_provider_init;

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                       void **provctx)
{
    static const kh_provider_host host = {.perform = host_perform};
    static bool watched;

    if (!watched) {
        watched = pthread_atfork(fork_prepare, fork_release, fork_child) == 0;
    }
    read_config(handle, in);
    kh_provider_set_host(&host);
    return config.agent != NULL && kh_provider_init(handle, in, out, provctx);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keyhold.so: the provider for every OpenSSL 3 program. Waits in the calling thread, over a blocking client.
 *
 * Where the agent is comes from the provider's section of openssl.cnf (agent, token, timeout_ms), else from
 * the environment (KH_AGENT, KH_TOKEN, KH_TIMEOUT_MS), else it is unix:/run/keyhold/agent.sock without a
 * token.
 *
 * A program that runs OpenSSL's ASYNC jobs will be paused instead of blocked: that belongs into
 * host_perform(), where a job is current.
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

typedef struct settings {
    char *agent;
    char *token; /* NULL: known by our uid */
    uint32_t timeout_ms;
    unsigned serial; /* which settings these are */
} settings;

/*
 * The settings of the load that came last (a program may load the provider into several library contexts),
 * and connections made with them that nobody uses at the moment. The lock is never held while waiting for the
 * agent.
 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static settings config;
static kh_client *idle[IDLE_MAX];
static size_t idle_count;

static void settings_free(settings *s)
{
    free(s->agent);
    free(s->token);
    *s = (settings){0};
}

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

/* An idle connection, or a copy of the settings to make one with. False: out of memory. */
static bool take_idle(kh_client **client, settings *copy)
{
    bool ok = true;

    *client = NULL;
    pthread_mutex_lock(&lock);
    *copy = (settings){.timeout_ms = config.timeout_ms, .serial = config.serial};
    if (idle_count > 0) {
        *client = idle[--idle_count];
    } else {
        copy->agent = strdup(config.agent);
        copy->token = config.token != NULL ? strdup(config.token) : NULL;
        ok = copy->agent != NULL && (copy->token != NULL) == (config.token != NULL);
    }
    pthread_mutex_unlock(&lock);
    return ok;
}

/* A connection, and of `with` the time-out and the serial. */
static kh_result client_take(kh_client **client, settings *with)
{
    kh_credential cred = {.identity = ""};
    settings copy = {0};
    char detail[DETAIL_MAX] = "";
    kh_result rc = take_idle(client, &copy) ? KH_OK : KH_E_MEMORY;

    *with = (settings){.timeout_ms = copy.timeout_ms, .serial = copy.serial};
    if (rc == KH_OK && *client == NULL) {
        if (copy.token != NULL) {
            rc = kh_credential_load(copy.token, &cred);
        }
        if (rc == KH_OK) {
            rc = kh_client_open(copy.agent, copy.token != NULL ? &cred : NULL, "keyhold.so", copy.timeout_ms,
                                client, detail, sizeof(detail));
        }
    }
    kh_credential_wipe(&cred);
    settings_free(&copy);
    return rc;
}

static void client_give(kh_client *client, unsigned serial)
{
    pthread_mutex_lock(&lock);
    if (idle_count < IDLE_MAX && serial == config.serial) {
        idle[idle_count++] = client;
        client = NULL;
    }
    pthread_mutex_unlock(&lock);
    kh_client_close(client);
}

static kh_result host_perform(void *ctx, const kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap,
                              size_t *len)
{
    kh_client *client = NULL;
    settings with = {0};
    kh_reply reply;
    kh_result rc = KH_OK;

    (void)ctx, (void)key;
    *len = 0;
    rc = client_take(&client, &with);
    if (rc != KH_OK) {
        return rc;
    }
    req->deadline_ms = with.timeout_ms;
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
    client_give(client, with.serial);
    return rc;
}

static char *setting(char *from_config, const char *variable)
{
    const char *value = from_config != NULL ? from_config : secure_getenv(variable);

    return value != NULL ? strdup(value) : NULL;
}

static settings read_settings(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in)
{
    OSSL_FUNC_core_get_params_fn *core_get_params = NULL;
    settings found = {.timeout_ms = DEFAULT_TIMEOUT_MS};
    unsigned long ms = 0;
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
    found.agent = setting(agent, "KH_AGENT");
    if (found.agent == NULL) {
        found.agent = strdup(DEFAULT_AGENT);
    }
    found.token = setting(token, "KH_TOKEN");
    if (timeout == NULL) {
        timeout = secure_getenv("KH_TIMEOUT_MS");
    }
    ms = timeout != NULL ? strtoul(timeout, NULL, 10) : 0;
    if (ms > 0 && ms <= KH_DEADLINE_MAX_MS) {
        found.timeout_ms = (uint32_t)ms;
    }
    return found;
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* Other threads may be using a key through another library context: they go on with what they have. */
static bool use_settings(settings *found)
{
    kh_client *old[IDLE_MAX];
    settings before = {0};
    size_t count = 0;

    if (found->agent == NULL) {
        settings_free(found);
        return false;
    }
    pthread_mutex_lock(&lock);
    found->serial = config.serial;
    if (!same_text(found->agent, config.agent) || !same_text(found->token, config.token)) {
        found->serial++;
        count = idle_count;
        memcpy(old, idle, count * sizeof(idle[0]));
        idle_count = 0;
    }
    before = config;
    config = *found; /* its texts are the process's now */
    *found = (settings){0};
    pthread_mutex_unlock(&lock);
    settings_free(&before);
    for (size_t i = 0; i < count; i++) {
        kh_client_close(old[i]);
    }
    return true;
}

__attribute__((visibility("default"))) OSSL_provider_init_fn OSSL_provider_init;

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                       void **provctx)
{
    static const kh_provider_host host = {.perform = host_perform};
    static bool watched;
    settings found = read_settings(handle, in);

    if (!watched) {
        watched = pthread_atfork(fork_prepare, fork_release, fork_child) == 0;
    }
    kh_provider_set_host(&host);
    return use_settings(&found) && kh_provider_init(handle, in, out, provctx);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keyhold.so: the provider for every OpenSSL 3 program. Waits in the calling thread, over a blocking client.
 *
 * Where the agent is comes from the provider's section of openssl.cnf (agent, token, timeout_ms; for an agent behind
 * TCP ca, certificate, key, name), else from the environment (KH_AGENT, KH_TOKEN, KH_TIMEOUT_MS, KH_CA,
 * KH_CERTIFICATE, KH_KEY, KH_NAME), else it is unix:/run/keyhold/agent.sock without a token.
 *
 * A program that runs OpenSSL's ASYNC jobs will be paused instead of blocked: that belongs into
 * host_perform(), where a job is current.
 */
#include "provider.h"

#include <keyhold/client.h>
#include <openssl/core_dispatch.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_AGENT "unix:/run/keyhold/agent.sock"
#define CLIENT_NAME "keyhold.so"
enum { DEFAULT_TIMEOUT_MS = 5000, IDLE_MAX = 16, DETAIL_MAX = 256 };

/* The texts: their names in openssl.cnf and in the environment. NULL where a text is not given. */
#define SETTINGS(X)                                                                                          \
    X(agent, "KH_AGENT")                                                                                     \
    X(token, "KH_TOKEN") /* NULL: known by our uid */                                                        \
    X(ca, "KH_CA")       /* this and what follows: for an agent behind TCP */                                \
    X(certificate, "KH_CERTIFICATE")                                                                         \
    X(key, "KH_KEY")                                                                                         \
    X(name, "KH_NAME")

typedef struct settings {
#define KH_X(field, variable) char *field;
    SETTINGS(KH_X)
#undef KH_X
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
#define KH_X(field, variable) free(s->field);
    SETTINGS(KH_X)
#undef KH_X
    *s = (settings){0};
}

static bool copy_text(const char *text, char **into)
{
    *into = text != NULL ? strdup(text) : NULL;
    return (*into == NULL) == (text == NULL);
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
#define KH_X(field, variable) ok = copy_text(config.field, &copy->field) && ok;
        SETTINGS(KH_X)
#undef KH_X
    }
    pthread_mutex_unlock(&lock);
    return ok;
}

static kh_result open_tcp(const settings *with, kh_client **client, char *detail)
{
    const kh_client_tls tls = {.ca_file = with->ca,
                               .certificate_file = with->certificate,
                               .key_file = with->key,
                               .server_name = with->name};

    return kh_client_open_tls(with->agent, &tls, CLIENT_NAME, with->timeout_ms, client, detail, DETAIL_MAX);
}

static kh_result open_unix(const settings *with, kh_client **client, char *detail)
{
    kh_credential cred = {.identity = ""};
    kh_result rc = with->token != NULL ? kh_credential_load(with->token, &cred) : KH_OK;

    if (rc == KH_OK) {
        rc = kh_client_open(with->agent, with->token != NULL ? &cred : NULL, CLIENT_NAME, with->timeout_ms, client, detail,
                            DETAIL_MAX);
    }
    kh_credential_wipe(&cred);
    return rc;
}

/* A connection, and of `with` the time-out and the serial. */
static kh_result client_take(kh_client **client, settings *with)
{
    settings copy = {0};
    char detail[DETAIL_MAX] = "";
    kh_result rc = take_idle(client, &copy) ? KH_OK : KH_E_MEMORY;

    *with = (settings){.timeout_ms = copy.timeout_ms, .serial = copy.serial};
    if (rc == KH_OK && *client == NULL) {
        rc = strncmp(copy.agent, "tcp:", 4) == 0 ? open_tcp(&copy, client, detail) : open_unix(&copy, client, detail);
        if (rc != KH_OK) { /* the core adds the result; this is what to do something about */
            ERR_raise_data(ERR_LIB_USER, ERR_R_OPERATION_FAIL, "keyhold agent: %s", detail);
        }
    }
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
    settings given = {0}; /* borrowed */
    unsigned long ms = 0;
    char *timeout = NULL;
    OSSL_PARAM params[] = {
#define KH_X(field, variable) OSSL_PARAM_utf8_ptr(#field, &given.field, 0),
        SETTINGS(KH_X)
#undef KH_X
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
#define KH_X(field, variable) found.field = setting(given.field, variable);
    SETTINGS(KH_X)
#undef KH_X
    if (found.agent == NULL) {
        found.agent = strdup(DEFAULT_AGENT);
    }
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

static bool same_settings(const settings *a, const settings *b)
{
#define KH_X(field, variable) &&same_text(a->field, b->field)
    return true SETTINGS(KH_X);
#undef KH_X
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
    if (!same_settings(found, &config)) {
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

/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a way to the agent, and calling it: the admin socket or the wire. The operations on keys are in
 * agent_keys.c. */
#include "agent_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

kh_result ctl_load_config(ctl_run *ctl, kh_config **config)
{
    const char *path = ctl_args_value(&ctl->args, "config");
    char text[KH_CONFIG_ERROR_MAX] = "";
    bool given = path != NULL;
    kh_result result = KH_OK;

    path = given ? path : CTL_DEFAULT_CONFIG;
    if (access(path, R_OK) != 0) {
        return ctl_fail(&ctl->error, errno == EACCES ? KH_E_FORBIDDEN : KH_E_IO, "cannot read %s: %s; %s",
                        path, strerror(errno),
                        errno == EACCES ? "run this as root"
                        : given         ? "check the name given with --config"
                                        : "run keyholdctl init, or name the file with --config");
    }
    result = kh_config_load(path, config, text);
    return result == KH_OK ? KH_OK : ctl_fail(&ctl->error, result, "%s; correct the configuration", text);
}

/* A socket that cannot be reached: is it not there, or not ours? */
static kh_result cannot_reach(ctl_error *error, const char *path, const char *why)
{
    if (access(path, W_OK) != 0 && errno == EACCES) {
        return ctl_fail(error, KH_E_FORBIDDEN, "no permission to use %s; run this as root or give --token",
                        path);
    }
    if (access(path, F_OK) != 0) {
        return ctl_fail_unreachable(
            error, KH_E_UNAVAILABLE,
            "the agent is not running: there is no socket %s; start it with systemctl start keyhold, or "
            "name the right --config",
            path);
    }
    return ctl_fail_unreachable(
        error, KH_E_UNAVAILABLE,
        "the agent does not answer at %s (%s); start it with systemctl start keyhold, or see its log", path,
        why);
}

static kh_result load_token(const char *path, kh_credential *cred, ctl_error *error)
{
    kh_result result = kh_credential_load(path, cred);

    switch (result) {
    case KH_OK:
        break;
    case KH_E_FORBIDDEN:
        ctl_fail(error, result,
                 "the token %s can be read by others; chmod 0600 %s, and make a new one if it was exposed",
                 path, path);
        break;
    case KH_E_MALFORMED:
        ctl_fail(error, result, "%s is not a token; make one with keyholdctl token create", path);
        break;
    default:
        ctl_fail(error, result, "cannot read the token %s: %s; check the name, or run this as root", path,
                 strerror(errno));
        break;
    }
    return result;
}

static kh_result cannot_open(ctl_error *error, const char *address, const char *token, kh_result result,
                             const char *detail)
{
    const char *why = detail[0] != '\0' ? detail : kh_result_text(result);

    if (result == KH_E_UNAUTHENTICATED && token != NULL) {
        return ctl_fail(error, result,
                        "the agent at %s does not accept the token %s (%s); is its identity in the agent's "
                        "configuration, and was "
                        "the agent told (SIGHUP)?",
                        address, token, why);
    }
    if (result == KH_E_UNAUTHENTICATED || result == KH_E_FORBIDDEN) {
        return ctl_fail(error, result,
                        "the agent at %s does not know uid %u (%s); run this as root or give --token",
                        address, (unsigned)geteuid(), why);
    }
    if (result == KH_E_VERSION) {
        return ctl_fail(error, result,
                        "the agent at %s speaks another version (%s); install the same version of both",
                        address, why);
    }
    if (result == KH_E_INVALID) {
        return ctl_fail_usage(error, "\"%s\" is not an address; it is unix:/path", address);
    }
    return cannot_reach(error, strncmp(address, "unix:", 5) == 0 ? address + 5 : address, why);
}

static kh_result cannot_open_tls(ctl_error *error, const char *address, kh_result result, const char *detail)
{
    const char *why = detail[0] != '\0' ? detail : kh_result_text(result);

    switch (result) {
    case KH_E_UNAUTHENTICATED:
        return ctl_fail(error, result,
                        "no connection to the agent at %s (%s); each side needs a certificate of the authority that the "
                        "other knows: the agent's for HOST or --agent-name, ours with a name that is the san of an "
                        "identity in the agent's configuration",
                        address, why);
    case KH_E_INVALID:
        return ctl_fail_usage(error, "%s; an agent on another machine is --agent tcp:HOST:PORT with --agent-ca, "
                                     "--agent-cert and --agent-key",
                              why);
    case KH_E_IO:
    case KH_E_FORBIDDEN:
    case KH_E_MALFORMED:
    case KH_E_MISMATCH:
    case KH_E_PASSPHRASE:
        return ctl_fail(error, result, "cannot open the connection to the agent at %s: %s", address, why);
    case KH_E_VERSION:
        return ctl_fail(error, result, "the agent at %s speaks another version (%s); install the same version of both",
                        address, why);
    default:
        return ctl_fail_unreachable(error, result, "the agent at %s does not answer (%s); does it run, and does it listen "
                                                   "there?",
                                    address, why);
    }
}

kh_result ctl_agent_open_tls_at(ctl_run *ctl, const char *address, const kh_client_tls *tls, ctl_agent **out)
{
    char detail[256] = "";
    ctl_agent *agent = calloc(1, sizeof(*agent));
    kh_result result = KH_OK;

    *out = NULL;
    if (agent == NULL || (agent->address = strdup(address)) == NULL) {
        ctl_agent_close(agent);
        return ctl_fail(&ctl->error, KH_E_MEMORY, "cannot reach %s: out of memory", address);
    }
    agent->error = &ctl->error;
    agent->timeout_ms = ctl->timeout_ms;
    result = kh_client_open_tls(address, tls, "keyholdctl", ctl->timeout_ms, &agent->client, detail, sizeof(detail));
    if (result != KH_OK) {
        ctl_agent_close(agent);
        return cannot_open_tls(&ctl->error, address, result, detail);
    }
    *out = agent;
    return KH_OK;
}

/* The wire to an agent on another machine. */
static kh_result open_tls(ctl_run *ctl, const char *address, ctl_agent **out)
{
    const kh_client_tls tls = {.ca_file = ctl_args_value(&ctl->args, "agent-ca"),
                               .certificate_file = ctl_args_value(&ctl->args, "agent-cert"),
                               .key_file = ctl_args_value(&ctl->args, "agent-key"),
                               .server_name = ctl_args_value(&ctl->args, "agent-name")};

    return ctl_agent_open_tls_at(ctl, address, &tls, out);
}

kh_result ctl_agent_open_at(ctl_run *ctl, const char *address, const char *token, ctl_agent **out)
{
    kh_credential cred = {0};
    char detail[256] = "";
    kh_result result = KH_OK;
    ctl_agent *agent = calloc(1, sizeof(*agent));

    *out = NULL;
    if (agent == NULL || (agent->address = strdup(address)) == NULL) {
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot reach %s: out of memory", address);
        goto done;
    }
    agent->error = &ctl->error;
    agent->timeout_ms = ctl->timeout_ms;
    if (token != NULL && (result = load_token(token, &cred, &ctl->error)) != KH_OK) {
        goto done;
    }
    result = kh_client_open(address, token != NULL ? &cred : NULL, "keyholdctl", ctl->timeout_ms,
                            &agent->client, detail, sizeof(detail));
    if (result != KH_OK) {
        agent->client = NULL;
        result = cannot_open(&ctl->error, address, token, result, detail);
        goto done;
    }
    *out = agent;
    agent = NULL; /* the caller's now */
done:
    kh_credential_wipe(&cred);
    ctl_agent_close(agent);
    return result;
}

static kh_result open_admin(ctl_run *ctl, const char *path, ctl_agent **out)
{
    ctl_agent *agent = calloc(1, sizeof(*agent));

    if (agent == NULL || asprintf(&agent->address, "admin:%s", path) < 0 ||
        (agent->admin = strdup(path)) == NULL) {
        if (agent != NULL) {
            ctl_agent_close(agent);
        }
        return ctl_fail(&ctl->error, KH_E_MEMORY, "cannot reach %s: out of memory", path);
    }
    agent->error = &ctl->error;
    agent->timeout_ms = ctl->timeout_ms;
    *out = agent;
    return KH_OK;
}

/* The first Unix socket that the agent listens on; NULL: there is none. */
static const char *local_address(const kh_config *config)
{
    for (size_t i = 0; i < config->listener_count; i++) {
        if (config->listeners[i].path != NULL) {
            return config->listeners[i].address;
        }
    }
    return NULL;
}

static kh_result open_configured(ctl_run *ctl, ctl_way way, const char *token, ctl_agent **out)
{
    kh_config *config = NULL;
    const char *address = NULL;
    kh_result result = ctl_load_config(ctl, &config);

    if (result != KH_OK) {
        goto done;
    }
    if (way == CTL_WAY_ADMIN && config->admin_socket == NULL) {
        result = ctl_fail(&ctl->error, KH_E_INVALID, "%s has no admin_socket; add one and restart the agent",
                          config->path);
    } else if (way == CTL_WAY_ADMIN && access(config->admin_socket, W_OK) != 0) {
        result = cannot_reach(&ctl->error, config->admin_socket, "");
    } else if (way == CTL_WAY_ADMIN || (way == CTL_WAY_ANY && token == NULL && config->admin_socket != NULL &&
                                        access(config->admin_socket, W_OK) == 0)) {
        result = open_admin(ctl, config->admin_socket, out);
    } else if ((address = local_address(config)) == NULL) {
        result = ctl_fail(&ctl->error, KH_E_INVALID,
                          "%s has no Unix socket to listen on; name the agent's TCP address with --agent",
                          config->path);
    } else {
        result = ctl_agent_open_at(ctl, address, token, out);
    }
done:
    kh_config_free(config);
    return result;
}

kh_result ctl_agent_open(ctl_run *ctl, ctl_way way, ctl_agent **agent)
{
    const char *address = ctl_args_value(&ctl->args, "socket");
    const char *token = ctl_args_value(&ctl->args, "token");
    const char *remote = ctl_args_value(&ctl->args, "agent");
    char plain[256];

    *agent = NULL;
    if (way == CTL_WAY_ADMIN && (address != NULL || token != NULL || remote != NULL)) {
        return ctl_fail_usage(
            &ctl->error,
            "this command goes over the agent's admin socket; leave out --socket, --token and --agent, and "
            "run it as root on the agent's host");
    }
    if (remote != NULL && (address != NULL || token != NULL)) {
        return ctl_fail_usage(&ctl->error, "an agent on another machine knows us by our certificate; leave out "
                                           "--socket and --token, or --agent");
    }
    if (remote != NULL) {
        return open_tls(ctl, remote, agent);
    }
    if (address != NULL && address[0] == '/') { /* a plain path is meant as one */
        (void)snprintf(plain, sizeof(plain), "unix:%s", address);
        address = plain;
    }
    if (address != NULL) {
        return ctl_agent_open_at(ctl, address, token, agent);
    }
    return open_configured(ctl, way, token, agent);
}

void ctl_agent_close(ctl_agent *agent)
{
    if (agent == NULL) {
        return;
    }
    kh_client_close(agent->client);
    free(agent->address);
    free(agent->admin);
    free(agent);
}

const char *ctl_agent_address(const ctl_agent *agent)
{
    return agent->address;
}

const char *ctl_agent_identity(const ctl_agent *agent)
{
    return agent->client != NULL ? kh_client_identity(agent->client) : "root";
}

/* What to do about a result, for the end of a message. */
static const char *advice(kh_result result)
{
    static const struct {
        kh_result result;
        const char *text;
    } table[] = {
        {KH_E_NOT_FOUND, "see keyholdctl key list"},
        {KH_E_EXISTS, "choose another name, or add a version with --new-version"},
        {KH_E_DUPLICATE, "use that one, or add --allow-duplicate"},
        {KH_E_WEAK,
         "use rsa2048 or more with the public exponent 65537 or more, p256, p384, p521 or ed25519"},
        {KH_E_FORBIDDEN, "run this as root on the agent's host"},
        {KH_E_UNAUTHENTICATED, "give the right --token"},
        {KH_E_STORAGE, "make room and check the store's directory"},
        {KH_E_DAMAGED, "run keyholdctl store fsck and restore the store from its backup"},
        {KH_E_DISABLED, "enable it with keyholdctl key enable"},
        {KH_E_LOCKED, "stop the other agent"},
        {KH_E_CRYPTO, "was the store made anew? see its import.pub"},
        {KH_E_OVERLOADED, "try again"},
        {KH_E_THROTTLED, "try again"},
        {KH_E_UNAVAILABLE, "try again; if it stays so, see the agent's log"},
        {KH_E_DEADLINE, "try again, or raise --timeout"},
        {KH_E_VERSION, "install the same version of keyholdctl and keyholdd"},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (table[i].result == result) {
            return table[i].text;
        }
    }
    return "see the agent's log";
}

static kh_result fail_call(ctl_agent *agent, kh_result result, const char *what, kh_bytes detail)
{
    const char *text = kh_result_text(result);

    /* The agent's own words, unless they only repeat what the result says. */
    if (detail.len > 0 && (detail.len != strlen(text) || memcmp(detail.data, text, detail.len) != 0)) {
        return ctl_fail(agent->error, result, "%s: %s (%.*s); %s", what, text, (int)detail.len,
                        (const char *)detail.data, advice(result));
    }
    return ctl_fail(agent->error, result, "%s: %s; %s", what, text, advice(result));
}

static bool keeper_answers(ctl_agent *agent)
{
    const kh_record record = {.op = KH_STORE_IMPORT_KEY};
    uint8_t out[32];
    size_t len = 0;

    return kh_admin_call(agent->admin, &record, out, sizeof(out), &len, agent->timeout_ms) == KH_OK;
}

kh_result ctl_agent_admin_file(ctl_agent *agent, const kh_record *record, int fd, const char *what,
                               uint8_t *out, size_t cap, size_t *out_len)
{
    kh_result result =
        kh_admin_call_long(agent->admin, record, fd, NULL, NULL, out, cap, out_len, agent->timeout_ms);

    /* The keeper's own words say what to do, too. */
    if (result != KH_OK && *out_len > 0) {
        return ctl_fail(agent->error, result, "%s: %.*s", what, (int)*out_len, (const char *)out);
    }
    if (result == KH_E_IO && fd >= 0 && access(agent->admin, W_OK) == 0) {
        return ctl_fail(agent->error, result, "%s: %s", what,
                        kh_result_text(result)); /* the file, not the socket */
    }
    if (result == KH_E_UNAVAILABLE && keeper_answers(agent)) {
        return fail_call(agent, result, what, (kh_bytes){NULL, 0}); /* not it, but a token */
    }
    if (result == KH_E_UNAVAILABLE || result == KH_E_CLOSED || result == KH_E_IO) {
        return cannot_reach(agent->error, agent->admin, kh_result_text(result));
    }
    return result == KH_OK ? KH_OK : fail_call(agent, result, what, (kh_bytes){NULL, 0});
}

kh_result ctl_agent_admin(ctl_agent *agent, const kh_record *record, const char *what, uint8_t *out,
                          size_t cap, size_t *out_len)
{
    return ctl_agent_admin_file(agent, record, -1, what, out, cap, out_len);
}

kh_result ctl_agent_wire(ctl_agent *agent, kh_request *request, const char *what, kh_reply *reply)
{
    kh_result result = KH_OK;

    request->deadline_ms = agent->timeout_ms;
    result = kh_client_call(agent->client, request, reply);
    if (result == KH_E_INVALID || result == KH_E_TOO_LARGE) {
        return fail_call(agent, result, what, (kh_bytes){NULL, 0});
    }
    if (result != KH_OK) {
        return ctl_fail_unreachable(agent->error, result,
                                    "%s: the agent at %s did not answer (%s); see its log", what,
                                    agent->address, kh_result_text(result));
    }
    return reply->status == KH_OK ? KH_OK : fail_call(agent, reply->status, what, reply->detail);
}

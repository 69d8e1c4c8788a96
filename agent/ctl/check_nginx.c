/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check-nginx: does the agent have the key of each certificate that an nginx configuration names? Without
 * --config, --socket and --token it asks the way nginx would: at the keyhold_agent in effect, with its token.
 */
#include "agent.h"
#include "keyfile.h"
#include "keyview.h"
#include "nginxsites.h"
#include "output.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* X(constant, word in the table and in JSON, whether it makes the check fail) */
#define VERDICTS(X)                                                                                          \
    X(V_OK, "ok", 0)                                                                                         \
    X(V_READY, "in the agent, local key in use", 0)                                                          \
    X(V_LOCAL, "local key, not in the agent", 0)                                                             \
    X(V_VARIABLE, "not checkable: has variables", 0)                                                         \
    X(V_MISSING, "MISSING", 1)                                                                               \
    X(V_DISABLED, "DISABLED", 1)                                                                             \
    X(V_EXPIRED, "EXPIRED", 1)                                                                               \
    X(V_NOT_YET, "NOT YET VALID", 1)                                                                         \
    X(V_USAGE, "WRONG USAGE: not for tls-server", 1)                                                         \
    X(V_USAGE_CLIENT, "WRONG USAGE: not for tls-client", 1)                                                  \
    X(V_UNREADABLE, "CERTIFICATE NOT READABLE", 1)                                                           \
    X(V_UNSUPPORTED, "KEY TYPE NOT SUPPORTED", 1)                                                            \
    X(V_OTHER_KEY, "REFERENCE IS TO ANOTHER KEY", 1)                                                         \
    X(V_NO_KEY, "NO KEY: neither keyhold on nor ssl_certificate_key", 1)                                     \
    X(V_NO_CLIENT_KEY, "NO KEY: the directive with _key is missing", 1)                                      \
    X(V_VARIABLE_ON, "VARIABLES with keyhold on: use a key reference", 1)

typedef enum verdict {
#define KH_X(constant, word, bad) constant,
    VERDICTS(KH_X)
#undef KH_X
} verdict;

static const struct {
    const char *word;
    bool bad;
} verdicts[] = {
#define KH_X(constant, word, bad) {word, bad},
    VERDICTS(KH_X)
#undef KH_X
};

/* How the key of a site is had, apart from `keyhold on`. */
typedef enum key_kind { KEY_NONE, KEY_LOCAL, KEY_REFERENCE, KEY_VARIABLE } key_kind;

#define AGENTS_MAX 64

typedef struct checker {
    ctl_run *ctl;
    nginxconf *conf;
    bool as_nginx; /* ask at keyhold_agent's addresses */
    struct {
        const char *address, *token; /* NULL: the agent of the command line */
        ctl_agent *agent;
    } agents[AGENTS_MAX];
    size_t agent_count;
    output_table *table;
    json_t *json;
    size_t bad, missing;
} checker;

static const char *setting_path(checker *c, const char *name)
{
    const char *value = nginxsites_setting(c->conf, name);

    return value != NULL ? nginxconf_path(c->conf, value) : NULL;
}

/* As nginx would connect to an agent that keyhold_agent names: server_name is that of an agent on TCP. */
static kh_result open_as_nginx(checker *c, const char *address, const char *token, const char *server_name, ctl_agent **agent)
{
    const kh_client_tls tls = {.ca_file = setting_path(c, "keyhold_trusted_certificate"),
                               .certificate_file = setting_path(c, "keyhold_certificate"),
                               .key_file = setting_path(c, "keyhold_certificate_key"),
                               .server_name = server_name};

    return strncmp(address, "tcp:", 4) == 0 ? ctl_agent_open_tls_at(c->ctl, address, &tls, agent)
                                            : ctl_agent_open_at(c->ctl, address, token, agent);
}

/* The agent at that address; opened when first asked for. */
static kh_result agent_at(checker *c, const char *address, const char *token, const char *server_name, ctl_agent **agent)
{
    kh_result result = KH_OK;
    size_t i = 0;

    for (i = 0; i < c->agent_count; i++) {
        if (address == NULL ? c->agents[i].address == NULL
                            : c->agents[i].address != NULL && strcmp(c->agents[i].address, address) == 0 &&
                                  strcmp(c->agents[i].token != NULL ? c->agents[i].token : "",
                                         token != NULL ? token : "") == 0) {
            *agent = c->agents[i].agent;
            return KH_OK;
        }
    }
    if (i == AGENTS_MAX) {
        return ctl_fail(&c->ctl->error, KH_E_TOO_LARGE,
                        "the configuration names more than %d agents; check with --socket", AGENTS_MAX);
    }
    result = address != NULL ? open_as_nginx(c, address, token, server_name, agent)
                             : ctl_agent_open(c->ctl, CTL_WAY_ANY, agent);
    if (result == KH_OK) {
        c->agents[i].address = address;
        c->agents[i].token = token;
        c->agents[i].agent = *agent;
        c->agent_count++;
    }
    return result;
}

/* What a handshake would get from a key that the agent has. */
static verdict judge_key(const kh_key_info *info, bool client)
{
    const unsigned useful = KH_USAGE_SIGN | (client ? KH_USAGE_TLS_CLIENT : KH_USAGE_TLS_SERVER);

    if (info->state != KH_STATE_ENABLED) {
        return V_DISABLED;
    }
    if ((info->usage & useful) == 0) {
        return client ? V_USAGE_CLIENT : V_USAGE;
    }
    switch (keyview_when(info)) {
    case KEYVIEW_EXPIRED:
        return V_EXPIRED;
    case KEYVIEW_NOT_YET:
        return V_NOT_YET;
    default:
        return V_OK;
    }
}

/* What one agent says of a key. Only a failure to ask is a failure. */
static kh_result ask(checker *c, ctl_agent *agent, const uint8_t *id, bool client, verdict *says)
{
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    size_t count = 0;
    kh_result result = infos != NULL ? ctl_agent_lookup(agent, NULL, id, infos, KH_LOOKUP_MAX, &count)
                                     : ctl_fail(&c->ctl->error, KH_E_MEMORY, "cannot check: out of memory");

    if (result == KH_OK) {
        *says = V_DISABLED;
        for (size_t i = 0; i < count; i++) {
            if (infos[i].state == KH_STATE_ENABLED && *says != V_OK) {
                *says = judge_key(&infos[i], client);
            }
        }
    } else if (result == KH_E_NOT_FOUND || result == KH_E_DISABLED) {
        *says = result == KH_E_NOT_FOUND ? V_MISSING : V_DISABLED;
        memset(&c->ctl->error, 0, sizeof(c->ctl->error));
        result = KH_OK;
    }
    free(infos);
    return result;
}

/* The worst that any of the site's agents says. */
static kh_result ask_all(checker *c, const nginxsite *site, const uint8_t *id, verdict *worst)
{
    const nginxconf_directive *line = c->as_nginx ? site->agents : NULL;
    kh_result result = KH_OK;

    *worst = V_OK;
    do {
        const char *address = line != NULL && line->argc > 1 ? line->argv[1] : NULL;
        const char *token = line != NULL ? nginxsites_parameter(line, "token") : NULL;
        ctl_agent *agent = NULL;
        verdict says = V_OK;

        token = token != NULL ? nginxconf_path(c->conf, token) : NULL;
        result = agent_at(c, address, token, line != NULL ? nginxsites_parameter(line, "name") : NULL, &agent);
        if (result == KH_OK) {
            result = ask(c, agent, id, site->client, &says);
        }
        *worst = result == KH_OK && says > *worst ? says : *worst;
        line = line != NULL ? nginxsites_next_agent(line) : NULL;
    } while (result == KH_OK && line != NULL);
    return result;
}

/* Whether a key file is a reference, and then to which key. A private key is looked at only for its label,
 * and wiped. */
static key_kind look_at_key(checker *c, const char *name, uint8_t id[KH_KEY_ID_LEN])
{
    static const char begin[] = "-----BEGIN " KH_REFERENCE_LABEL "-----";
    ctl_error ignored = {0};
    ctl_secret file = {0};
    key_kind kind = KEY_LOCAL;
    char *label = NULL, *header = NULL;
    unsigned char *der = NULL;
    long der_len = 0;
    kh_bytes reference_name, spki;
    BIO *bio = NULL;

    if (name == NULL) {
        return KEY_NONE;
    }
    if (nginxconf_has_variable(name)) {
        return KEY_VARIABLE;
    }
    if (strncmp(name, "engine:", 7) == 0 || strncmp(name, "store:", 6) == 0 ||
        strncmp(name, "data:", 5) == 0 ||
        ctl_secret_read_file(nginxconf_path(c->conf, name), KEYFILE_MAX, &file, &ignored) != KH_OK ||
        memmem(file.data, file.len, begin, sizeof(begin) - 1) == NULL) {
        goto done;
    }
    kind = KEY_REFERENCE;
    memset(id, 0, KH_KEY_ID_LEN); /* a reference that cannot be read is to no key */
    bio = BIO_new_mem_buf(file.data, (int)file.len);
    if (bio != NULL && PEM_read_bio(bio, &label, &header, &der, &der_len) == 1 &&
        strcmp(label, KH_REFERENCE_LABEL) == 0 &&
        kh_reference_decode(der, (size_t)der_len, &reference_name, &spki) == KH_OK) {
        const unsigned char *at = spki.data;
        EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)spki.len);

        if (pkey == NULL || kh_key_id(pkey, id, NULL, NULL, NULL, NULL) != KH_OK) {
            memset(id, 0, KH_KEY_ID_LEN);
        }
        EVP_PKEY_free(pkey);
    }
done:
    BIO_free(bio);
    OPENSSL_free(label);
    OPENSSL_free(header);
    OPENSSL_free(der);
    ctl_secret_free(&file);
    return kind;
}

/* A certificate with variables: a reference file in variables too is right, `keyhold on` cannot work. */
static verdict judge_variable(const nginxsite *site)
{
    return site->keyhold ? V_VARIABLE_ON : V_VARIABLE;
}

static kh_result judge(checker *c, const nginxsite *site, uint8_t id[KH_KEY_ID_LEN], bool *id_known,
                       verdict *says)
{
    uint8_t reference[KH_KEY_ID_LEN] = {0};
    const char *path = nginxconf_path(c->conf, site->certificate);
    kh_key_type type = KH_KEY_NONE;
    ctl_error ignored = {0};
    unsigned bits = 0;
    X509 *cert = NULL;
    kh_result result = KH_OK;
    key_kind kind = site->keyhold ? KEY_NONE : look_at_key(c, site->key, reference);
    bool local = kind == KEY_LOCAL || kind == KEY_VARIABLE;

    *id_known = false;
    if (nginxconf_has_variable(site->certificate) || strncmp(site->certificate, "data:", 5) == 0) {
        *says = judge_variable(site);
        return KH_OK;
    }
    if (path == NULL || keyfile_load_certificate(path, &cert, &ignored) != KH_OK) {
        *says = V_UNREADABLE;
        return KH_OK;
    }
    result = keyfile_certificate_id(cert, id, &type, &bits);
    X509_free(cert);
    if (result != KH_OK) {
        *says = local ? V_LOCAL : V_UNSUPPORTED;
        return KH_OK;
    }
    *id_known = true;
    if (!site->keyhold && kind == KEY_NONE) {
        *says = site->client ? V_NO_CLIENT_KEY : V_NO_KEY;
        return KH_OK;
    }
    if (kind == KEY_REFERENCE && memcmp(reference, id, KH_KEY_ID_LEN) != 0) {
        *says = V_OTHER_KEY;
        return KH_OK;
    }
    result = ask_all(c, site, id, says);
    if (result == KH_OK && local && *says == V_MISSING) {
        *says = V_LOCAL;
    } else if (result == KH_OK && local && *says == V_OK) {
        *says = V_READY;
    }
    return result;
}

static kh_result add_row(checker *c, const nginxsite *site, const char *id, verdict says)
{
    bool bad = verdicts[says].bad || (says == V_LOCAL && ctl_args_value(&c->ctl->args, "all") != NULL);
    char place[PATH_MAX + 16];
    char name[300];
    json_t *row = NULL;

    c->bad += bad;
    c->missing += says == V_MISSING;
    if (c->ctl->json) {
        row =
            json_pack("{s:s, s:I, s:s, s:s, s:s, s:s*, s:b, s:s, s:b}", "file", site->file, "line",
                      (json_int_t)site->line, "server_name", site->server_name, "directive", site->directive,
                      "certificate", site->certificate, "key_id", id[0] != '\0' ? id : NULL, "keyhold",
                      site->keyhold, "verdict", verdicts[says].word, "ok", !bad);
        return row != NULL && json_array_append_new(c->json, row) == 0
                   ? KH_OK
                   : ctl_fail(&c->ctl->error, KH_E_MEMORY,
                              "cannot print the table: out of memory, or a name is not UTF-8");
    }
    (void)snprintf(place, sizeof(place), "%s:%u", site->file, site->line);
    if (site->more_names > 0) {
        (void)snprintf(name, sizeof(name), "%.200s (+%u)", site->server_name, site->more_names);
    } else {
        (void)snprintf(name, sizeof(name), "%.200s", site->server_name[0] != '\0' ? site->server_name : "-");
    }
    output_table_row(c->table, (const char *[]){place, name, site->directive, site->certificate,
                                                id[0] != '\0' ? id : "-", verdicts[says].word});
    return KH_OK;
}

static kh_result check_sites(checker *c)
{
    nginxsite *sites = NULL;
    size_t count = 0;
    kh_result result = nginxsites_find(c->conf, &sites, &count);

    if (result != KH_OK) {
        return ctl_fail(&c->ctl->error, result, "cannot check: out of memory");
    }
    for (size_t i = 0; i < count && result == KH_OK; i++) {
        uint8_t id[KH_KEY_ID_LEN] = {0};
        char hex[2 * KH_KEY_ID_LEN + 1] = "";
        bool id_known = false;
        verdict says = V_OK;

        result = judge(c, &sites[i], id, &id_known, &says);
        if (result == KH_OK) {
            if (id_known) {
                (void)output_hex(id, c->ctl->json ? KH_KEY_ID_LEN : 8, hex);
            }
            result = add_row(c, &sites[i], hex, says);
        }
    }
    free(sites);
    if (result != KH_OK) {
        return result;
    }
    if (c->ctl->json) {
        json_incref(c->json);
        result = output_json(c->json, &c->ctl->error);
    } else if (count > 0) {
        result = output_table_print(c->table, stdout);
        (void)printf("\n%zu certificate%s, %zu bad\n", count, count == 1 ? "" : "s", c->bad);
    } else {
        (void)printf("nothing in this configuration uses a certificate\n");
    }
    if (result == KH_OK && c->bad > 0) {
        (void)fflush(stdout);
        result = ctl_fail(&c->ctl->error, KH_E_NOT_FOUND,
                          "%zu of %zu certificates will not work with the agent, %zu of them for want of "
                          "their key; %s",
                          c->bad, count, c->missing,
                          c->missing > 0 ? "import it with keyholdctl key import NAME FILE --cert CERT"
                                         : "see the table");
    }
    return result;
}

/* Absolute, but with links as they are: nginx takes relative names from where the file was named, not from
 * where it lies. */
static char *absolute_name(const char *name)
{
    char *cwd = name[0] == '/' ? NULL : getcwd(NULL, 0);
    char *path = NULL;

    if (name[0] == '/') {
        return strdup(name);
    }
    if (cwd == NULL || asprintf(&path, "%s/%s", cwd, name) < 0) {
        path = NULL;
    }
    free(cwd);
    return path;
}

kh_result ctl_cmd_check_nginx(ctl_run *ctl)
{
    static const char *const headings[] = {"FILE:LINE",   "SERVER", "DIRECTIVE",
                                           "CERTIFICATE", "KEY",    "VERDICT"};
    const char *prefix = ctl_args_value(&ctl->args, "prefix");
    char *path = absolute_name(ctl->args.operands[0]);
    char *dir = path != NULL ? strdup(path) : NULL;
    char error[CTL_ERROR_MAX] = "";
    checker c = {.ctl = ctl, .table = output_table_new(headings, 6), .json = json_array()};
    kh_result result = KH_OK;

    c.as_nginx = ctl_args_value(&ctl->args, "config") == NULL && ctl_args_value(&ctl->args, "agent") == NULL &&
                 ctl_args_value(&ctl->args, "socket") == NULL && ctl_args_value(&ctl->args, "token") == NULL;
    if (path == NULL || dir == NULL || c.table == NULL || c.json == NULL) {
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot check %s: out of memory", ctl->args.operands[0]);
        goto done;
    }
    if (access(path, R_OK) != 0) {
        result = ctl_fail(&ctl->error, KH_E_IO, "cannot read %s: %s; check the name", path, strerror(errno));
        goto done;
    }
    result = nginxconf_parse(&nginxconf_files, path, prefix != NULL ? prefix : dirname(dir), &c.conf, error,
                             sizeof(error));
    if (result != KH_OK) {
        ctl_fail(&ctl->error, result, "%s; correct the configuration (nginx -t)", error);
        goto done;
    }
    result = check_sites(&c);
done:
    for (size_t i = 0; i < c.agent_count; i++) {
        ctl_agent_close(c.agents[i].agent);
    }
    nginxconf_free(c.conf);
    output_table_free(c.table);
    json_decref(c.json);
    free(dir);
    free(path);
    return result;
}

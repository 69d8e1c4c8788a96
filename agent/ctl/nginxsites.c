/* SPDX-License-Identifier: Apache-2.0 */
/* From an nginx configuration to the certificates that it uses. See nginxsites.h. */
#include "nginxsites.h"

#include <stdlib.h>
#include <string.h>

typedef struct collector {
    nginxsite *sites;
    size_t count, cap;
    const nginxconf_directive *agents; /* of whichever block names them: they are nginx's, not the block's */
} collector;

/* Where nginx shows a certificate of its own to others. stream has only the first. */
static const struct {
    const char *certificate, *key;
} clients[] = {
    {"proxy_ssl_certificate", "proxy_ssl_certificate_key"},
    {"grpc_ssl_certificate", "grpc_ssl_certificate_key"},
    {"uwsgi_ssl_certificate", "uwsgi_ssl_certificate_key"},
};

static bool is_named(const nginxconf_directive *directive, const char *name)
{
    return strcmp(directive->argv[0], name) == 0;
}

static const nginxconf_directive *find_from(const nginxconf_directive *directive, const char *name)
{
    while (directive != NULL && !is_named(directive, name)) {
        directive = directive->next;
    }
    return directive;
}

/* The first directive of that name in the server, else in the block around it: a list is inherited whole or
 * not at all. */
static const nginxconf_directive *in_effect(const nginxconf_directive *server, const char *name)
{
    const nginxconf_directive *found = find_from(server->children, name);

    return found != NULL ? found : find_from(server->parent->children, name);
}

/* The directive of that name in the block or in the nearest one around it that has it. */
static const nginxconf_directive *nearest(const nginxconf_directive *block, const char *name)
{
    const nginxconf_directive *found = NULL;

    for (; block != NULL && found == NULL; block = block->parent) {
        found = find_from(block->children, name);
    }
    return found;
}

static bool is_on(const nginxconf_directive *directive)
{
    return directive != NULL && directive->argc == 2 && strcasecmp(directive->argv[1], "on") == 0;
}

static bool listens_tls(const nginxconf_directive *listen)
{
    for (unsigned i = 2; i < listen->argc; i++) {
        if (strcmp(listen->argv[i], "ssl") == 0 || strcmp(listen->argv[i], "quic") == 0) {
            return true;
        }
    }
    return false;
}

/* Whether a server of the same block speaks TLS at this address: then every server at that address does. */
static bool address_is_tls(const nginxconf_directive *block, const char *address)
{
    for (const nginxconf_directive *server = block->children; server != NULL; server = server->next) {
        const nginxconf_directive *listen =
            server->block && is_named(server, "server") ? server->children : NULL;

        for (listen = find_from(listen, "listen"); listen != NULL;
             listen = find_from(listen->next, "listen")) {
            if (listen->argc > 1 && strcmp(listen->argv[1], address) == 0 && listens_tls(listen)) {
                return true;
            }
        }
    }
    return false;
}

/* Inherited certificates count only for a server that speaks TLS; its own always do. */
static bool speaks_tls(const nginxconf_directive *server)
{
    const nginxconf_directive *listen = find_from(server->children, "listen");

    if (is_on(in_effect(server, "ssl"))) {
        return true;
    }
    for (; listen != NULL; listen = find_from(listen->next, "listen")) {
        if (listens_tls(listen) || (listen->argc > 1 && address_is_tls(server->parent, listen->argv[1]))) {
            return true;
        }
    }
    return false;
}

static const char *nth_value(const nginxconf_directive *directive, const char *name, unsigned index)
{
    for (; directive != NULL && index > 0; index--) {
        directive = find_from(directive->next, name);
    }
    return directive != NULL && directive->argc > 1 ? directive->argv[1] : NULL;
}

static kh_result add_site(collector *c, const nginxsite *site)
{
    if (c->count == c->cap) {
        size_t cap = c->cap > 0 ? c->cap * 2 : 64;
        nginxsite *grown = reallocarray(c->sites, cap, sizeof(*grown));

        if (grown == NULL) {
            return KH_E_MEMORY;
        }
        c->sites = grown;
        c->cap = cap;
    }
    c->sites[c->count++] = *site;
    return KH_OK;
}

static void set_names(nginxsite *site, const nginxconf_directive *server)
{
    const nginxconf_directive *names = server != NULL ? find_from(server->children, "server_name") : NULL;

    site->server_name = names != NULL && names->argc > 1 ? names->argv[1] : "";
    site->more_names = names != NULL && names->argc > 2 ? names->argc - 2 : 0;
}

static kh_result add_server(collector *c, const nginxconf_directive *server)
{
    const nginxconf_directive *certificate = in_effect(server, "ssl_certificate");
    const nginxconf_directive *keys = in_effect(server, "ssl_certificate_key");
    const nginxconf_directive *agents = in_effect(server, "keyhold_agent");
    kh_result result = KH_OK;

    if (certificate == NULL || (certificate->parent != server && !speaks_tls(server))) {
        return KH_OK;
    }
    for (unsigned i = 0; certificate != NULL && result == KH_OK; i++) {
        nginxsite site = {
            .file = certificate->file,
            .line = certificate->line,
            .directive = certificate->argv[0],
            .certificate = certificate->argc > 1 ? certificate->argv[1] : "",
            .key = nth_value(keys, "ssl_certificate_key", i),
            .keyhold = is_on(in_effect(server, "keyhold")),
            .agents = agents != NULL ? agents : c->agents,
        };

        set_names(&site, server);
        result = add_site(c, &site);
        certificate = find_from(certificate->next, "ssl_certificate");
    }
    return result;
}

/* What the block itself says of a client certificate; what it only inherits was found where it stands. */
static kh_result add_clients(collector *c, const nginxconf_directive *block,
                             const nginxconf_directive *server)
{
    kh_result result = KH_OK;

    for (size_t i = 0; i < sizeof(clients) / sizeof(clients[0]) && result == KH_OK; i++) {
        const nginxconf_directive *certificate = find_from(block->children, clients[i].certificate);
        const nginxconf_directive *key = find_from(block->children, clients[i].key);
        nginxsite site = {.client = true, .agents = c->agents};

        if (certificate == NULL && key == NULL) {
            continue;
        }
        certificate = certificate != NULL ? certificate : nearest(block->parent, clients[i].certificate);
        key = key != NULL ? key : nearest(block->parent, clients[i].key);
        if (certificate == NULL || certificate->argc < 2 || certificate->argv[1][0] == '\0') {
            continue;
        }
        site.file = certificate->file;
        site.line = certificate->line;
        site.directive = certificate->argv[0];
        site.certificate = certificate->argv[1];
        site.key = key != NULL && key->argc > 1 ? key->argv[1] : NULL;
        set_names(&site, server);
        result = add_site(c, &site);
    }
    return result;
}

/* A block and those in it. Nesting is bounded by the parser. */
static kh_result add_block(collector *c, const nginxconf_directive *block, const nginxconf_directive *server)
{
    kh_result result = add_clients(c, block, server);

    for (const nginxconf_directive *inner = block->children; inner != NULL && result == KH_OK;
         inner = inner->next) {
        if (!inner->block) {
            continue;
        }
        if (is_named(inner, "server") && block->parent == NULL) {
            result = add_server(c, inner);
            result = result == KH_OK ? add_block(c, inner, inner) : result;
        } else {
            result = add_block(c, inner, server);
        }
    }
    return result;
}

/* The first of that name in any block of the top level. */
static const nginxconf_directive *find_global(const nginxconf *conf, const char *name)
{
    const nginxconf_directive *found = NULL;

    for (const nginxconf_directive *top = nginxconf_top(conf); top != NULL && found == NULL; top = top->next) {
        found = top->block ? find_from(top->children, name) : NULL;
    }
    return found;
}

const char *nginxsites_setting(const nginxconf *conf, const char *name)
{
    const nginxconf_directive *found = find_global(conf, name);

    return found != NULL && found->argc > 1 ? found->argv[1] : NULL;
}

kh_result nginxsites_find(const nginxconf *conf, nginxsite **sites, size_t *count)
{
    static const char *const blocks[] = {"http", "stream", "mail"};
    collector c = {NULL, 0, 0, find_global(conf, "keyhold_agent")};
    kh_result result = KH_OK;

    for (const nginxconf_directive *top = nginxconf_top(conf); top != NULL && result == KH_OK;
         top = top->next) {
        for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]) && result == KH_OK; i++) {
            if (top->block && is_named(top, blocks[i])) {
                result = add_block(&c, top, NULL);
            }
        }
    }
    if (result != KH_OK) {
        free(c.sites);
        c.sites = NULL;
        c.count = 0;
    }
    *sites = c.sites;
    *count = c.count;
    return result;
}

const nginxconf_directive *nginxsites_next_agent(const nginxconf_directive *agent)
{
    return find_from(agent->next, "keyhold_agent");
}

const char *nginxsites_parameter(const nginxconf_directive *directive, const char *name)
{
    size_t len = strlen(name);

    for (unsigned i = 1; i < directive->argc; i++) {
        if (strncmp(directive->argv[i], name, len) == 0 && directive->argv[i][len] == '=') {
            return directive->argv[i] + len + 1;
        }
    }
    return NULL;
}

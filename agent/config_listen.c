/* SPDX-License-Identifier: Apache-2.0 */
/* The `listen` blocks of the configuration: Unix sockets, and TCP with its certificates. */
#include "config_syntax.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define DEFAULT_MODE 0666

bool kh_config_parse_tcp(const char *text, kh_tcp_address *tcp)
{
    const char *colon = strrchr(text, ':');
    char host[INET6_ADDRSTRLEN], *end = NULL;
    size_t len = colon != NULL ? (size_t)(colon - text) : 0;
    bool bracketed = len > 2 && text[0] == '[' && text[len - 1] == ']';
    unsigned long port = 0;

    if (colon == NULL || colon[1] < '0' || colon[1] > '9') {
        return false;
    }
    port = strtoul(colon + 1, &end, 10);
    text += bracketed;
    len -= bracketed ? 2 : 0;
    if (*end != '\0' || port == 0 || port > 65535 || len >= sizeof host) {
        return false;
    }
    memcpy(host, text, len);
    host[len] = '\0';
    if (bracketed) {
        tcp->in6.sin6_family = AF_INET6;
        tcp->in6.sin6_port = htons((uint16_t)port);
        return inet_pton(AF_INET6, host, &tcp->in6.sin6_addr) == 1;
    }
    tcp->in.sin_family = AF_INET;
    tcp->in.sin_port = htons((uint16_t)port);
    return inet_pton(AF_INET, host, &tcp->in.sin_addr) == 1;
}

/* The address in one spelling. NULL: no memory. */
static char *spell_tcp(const kh_tcp_address *tcp)
{
    bool is_six = tcp->any.sa_family == AF_INET6;
    char host[INET6_ADDRSTRLEN], *text = NULL;

    inet_ntop(tcp->any.sa_family, is_six ? (const void *)&tcp->in6.sin6_addr : &tcp->in.sin_addr, host, sizeof host);
    return asprintf(&text, is_six ? "tcp:[%s]:%u" : "tcp:%s:%u", host,
                    ntohs(is_six ? tcp->in6.sin6_port : tcp->in.sin_port)) < 0
               ? NULL
               : text;
}

static kh_result take_unix(kh_config *config, cfg_t *cfg, kh_config_listener *listener, char *error)
{
    char *path = kh_config_absolute(config, cfg_title(cfg) + strlen("unix:"));

    if (path == NULL || asprintf(&listener->address, "unix:%s", path) < 0) {
        free(path);
        listener->address = NULL;
        return KH_E_MEMORY;
    }
    free(path);
    listener->path = listener->address + strlen("unix:");
    if (strlen(listener->path) >= sizeof((struct sockaddr_un *)0)->sun_path) {
        return kh_config_fail(config, listener->line, error,
                              "the path is too long for a Unix socket: ", listener->path);
    }
    return KH_OK;
}

static kh_result take_tcp(kh_config *config, cfg_t *cfg, kh_config_listener *listener, char *error)
{
    if (!kh_config_parse_tcp(cfg_title(cfg) + strlen("tcp:"), &listener->tcp)) {
        return kh_config_fail(config, listener->line, error,
                              "not \"tcp:ADDRESS:PORT\" with a numeric address (IPv6 in brackets): listen ",
                              cfg_title(cfg));
    }
    listener->address = spell_tcp(&listener->tcp);
    return listener->address != NULL ? KH_OK : KH_E_MEMORY;
}

/* What only the other kind of listener has, and what this kind cannot be without. */
static kh_result check_options(const kh_config *config, cfg_t *cfg, const kh_config_listener *listener, char *error)
{
    static const char *const of_unix[] = {"owner", "group", NULL};
    static const char *const of_tcp[] = {"certificate", "certificate_key", "client_ca", "client_crl", NULL};
    bool is_tcp = listener->path == NULL;
    const char *const *foreign = is_tcp ? of_unix : of_tcp;
    char what[128];

    for (; *foreign != NULL; foreign++) {
        if (cfg_getstr(cfg, *foreign) != NULL) {
            break;
        }
    }
    if (*foreign != NULL || (is_tcp && cfg_getint(cfg, "mode") >= 0) ||
        (!is_tcp && cfg_getbool(cfg, "administration"))) {
        snprintf(what, sizeof what, "`%s` has no meaning for listen ",
                 *foreign != NULL ? *foreign : is_tcp ? "mode" : "administration");
        return kh_config_fail(config, listener->line, error, what, listener->address);
    }
    for (size_t i = 0; is_tcp && i < 3; i++) {
        if (cfg_getstr(cfg, of_tcp[i]) == NULL) {
            snprintf(what, sizeof what, "`%s` is missing: listen ", of_tcp[i]);
            return kh_config_fail(config, listener->line, error, what, listener->address);
        }
    }
    return KH_OK;
}

static kh_result take_text(cfg_t *cfg, const char *option, char **field)
{
    const char *value = cfg_getstr(cfg, option);

    *field = value != NULL ? strdup(value) : NULL;
    return (*field == NULL) == (value == NULL) ? KH_OK : KH_E_MEMORY;
}

static kh_result take_listener(kh_config *config, cfg_t *cfg, kh_config_listener *listener, char *error)
{
    bool is_tcp = strncmp(cfg_title(cfg), "tcp:", 4) == 0;
    kh_result result = KH_OK;

    listener->line = (unsigned)cfg->line;
    listener->mode = cfg_getint(cfg, "mode") < 0 ? DEFAULT_MODE : (mode_t)cfg_getint(cfg, "mode");
    listener->administration = cfg_getbool(cfg, "administration");
    if ((result = is_tcp ? take_tcp(config, cfg, listener, error) : take_unix(config, cfg, listener, error)) != KH_OK ||
        (result = check_options(config, cfg, listener, error)) != KH_OK ||
        (result = take_text(cfg, "owner", &listener->owner)) != KH_OK ||
        (result = take_text(cfg, "group", &listener->group)) != KH_OK ||
        (result = kh_config_take_path(config, cfg, "certificate", &listener->certificate)) != KH_OK ||
        (result = kh_config_take_path(config, cfg, "certificate_key", &listener->certificate_key)) != KH_OK ||
        (result = kh_config_take_path(config, cfg, "client_ca", &listener->client_ca)) != KH_OK) {
        return result;
    }
    return kh_config_take_path(config, cfg, "client_crl", &listener->client_crl);
}

kh_result kh_config_take_listeners(kh_config *config, cfg_t *cfg, char *error)
{
    unsigned count = cfg_size(cfg, "listen");
    kh_result result = KH_OK;

    if (count == 0) {
        return kh_config_fail(config, 0, error, "there is no `listen`", "");
    }
    if (count > KH_LISTENERS_MAX) {
        return kh_config_fail(config, 0, error, "too many listeners", "");
    }
    config->listeners = calloc(count, sizeof *config->listeners);
    if (config->listeners == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < count && result == KH_OK; i++) {
        result = take_listener(config, cfg_getnsec(cfg, "listen", i), &config->listeners[i], error);
        config->listener_count++;
        for (unsigned j = 0; j < i && result == KH_OK; j++) {
            if (strcmp(config->listeners[i].address, config->listeners[j].address) == 0) {
                result = kh_config_fail(config, config->listeners[i].line, error, "declared twice: listen ",
                                        config->listeners[i].address);
            }
        }
    }
    return result;
}

void kh_config_free_listeners(kh_config *config)
{
    for (size_t i = 0; i < config->listener_count; i++) {
        kh_config_listener *listener = &config->listeners[i];
        char *const texts[] = {listener->address,         listener->owner,     listener->group,     listener->certificate,
                               listener->certificate_key, listener->client_ca, listener->client_crl};

        for (size_t j = 0; j < sizeof texts / sizeof *texts; j++) {
            free(texts[j]);
        }
    }
    free(config->listeners);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `metrics` blocks of the configuration. Metrics are for everybody who can connect, so a TCP address has
 * to be one of this machine's own unless the configuration says that it is meant: `public = true`.
 */
#include "config_syntax.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

static bool is_loopback(const kh_config_metrics *metrics)
{
    const struct in6_addr *six = &metrics->tcp.in6.sin6_addr;

    if (metrics->tcp.any.sa_family == AF_INET) {
        return ntohl(metrics->tcp.in.sin_addr.s_addr) >> 24 == 127;
    }
    return IN6_IS_ADDR_LOOPBACK(six) || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
}

static kh_result take_address(const kh_config *config, kh_config_metrics *metrics, char *error)
{
    if (strncmp(metrics->address, "unix:", 5) == 0) {
        metrics->path = kh_config_absolute(config, metrics->address + 5);
        if (metrics->path == NULL) {
            return KH_E_MEMORY;
        }
        return strlen(metrics->path) < sizeof((struct sockaddr_un *)0)->sun_path
                   ? KH_OK
                   : kh_config_fail(config, metrics->line, error,
                                    "the path is too long for a Unix socket: ", metrics->path);
    }
    if (!kh_config_parse_tcp(metrics->address + 4, &metrics->tcp)) {
        return kh_config_fail(config, metrics->line, error,
                              "not \"tcp:ADDRESS:PORT\" with a numeric address (IPv6 in brackets): metrics ",
                              metrics->address);
    }
    if (!is_loopback(metrics) && !metrics->is_public) {
        return kh_config_fail(
            config, metrics->line, error,
            "others could read the metrics there; write `public = true` if that is meant: metrics ",
            metrics->address);
    }
    return KH_OK;
}

static kh_result take_one(const kh_config *config, cfg_t *cfg, kh_config_metrics *metrics, char *error)
{
    const char *owner = cfg_getstr(cfg, "owner"), *group = cfg_getstr(cfg, "group");

    metrics->line = (unsigned)cfg->line;
    metrics->mode = (mode_t)cfg_getint(cfg, "mode");
    metrics->is_public = cfg_getbool(cfg, "public") == cfg_true;
    metrics->address = strdup(cfg_title(cfg));
    metrics->owner = owner != NULL ? strdup(owner) : NULL;
    metrics->group = group != NULL ? strdup(group) : NULL;
    if (metrics->address == NULL || (owner != NULL && metrics->owner == NULL) ||
        (group != NULL && metrics->group == NULL)) {
        return KH_E_MEMORY;
    }
    return take_address(config, metrics, error);
}

/* The same place twice, among the `metrics` and the `listen` blocks. */
static kh_result check_apart(const kh_config *config, const kh_config_metrics *metrics, char *error)
{
    bool taken = false;

    for (const kh_config_metrics *other = config->metrics; other < metrics; other++) {
        taken = taken || strcmp(other->address, metrics->address) == 0 ||
                (other->path != NULL && metrics->path != NULL && strcmp(other->path, metrics->path) == 0);
    }
    for (size_t i = 0; i < config->listener_count; i++) {
        taken = taken || (metrics->path != NULL && config->listeners[i].path != NULL &&
                          strcmp(config->listeners[i].path, metrics->path) == 0);
    }
    return taken ? kh_config_fail(config, metrics->line, error, "something else is to listen there: metrics ",
                                  metrics->address)
                 : KH_OK;
}

kh_result kh_config_take_metrics(kh_config *config, cfg_t *cfg, char *error)
{
    unsigned count = cfg_size(cfg, "metrics");
    kh_result result = KH_OK;

    if (count > KH_METRICS_MAX) {
        return kh_config_fail(config, 0, error, "too many `metrics` blocks", "");
    }
    config->metrics = calloc(KH_METRICS_MAX, sizeof *config->metrics);
    if (config->metrics == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < count && result == KH_OK; i++) {
        result = take_one(config, cfg_getnsec(cfg, "metrics", i), &config->metrics[i], error);
        config->metrics_count++;
        if (result == KH_OK) {
            result = check_apart(config, &config->metrics[i], error);
        }
    }
    return result;
}

void kh_config_free_metrics(kh_config *config)
{
    for (size_t i = 0; i < config->metrics_count; i++) {
        free(config->metrics[i].address);
        free(config->metrics[i].path);
        free(config->metrics[i].owner);
        free(config->metrics[i].group);
    }
    free(config->metrics);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor's part in the metrics: it opens the sockets that the configuration names, and the front
 * serves them. All of them are sent with each configuration; the front takes the later one of an address.
 */
#include "channel.h"
#include "log.h"
#include "supervisor.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 64

static kh_result open_tcp(const kh_config_metrics *metrics, kh_socket *out, char *error)
{
    int family = metrics->tcp.any.sa_family, on = 1;
    socklen_t len = family == AF_INET ? sizeof metrics->tcp.in : sizeof metrics->tcp.in6;

    *out = (kh_socket){.fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    /* Without SO_REUSEADDR connections of before would keep a restarted agent out. IPv6 means IPv6 alone. */
    if (out->fd < 0 || setsockopt(out->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        (family == AF_INET6 && setsockopt(out->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
        bind(out->fd, &metrics->tcp.any, len) != 0 || listen(out->fd, BACKLOG) != 0) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "metrics %.200s: %s", metrics->address, strerror(errno));
        kh_socket_close(out);
        return KH_E_IO;
    }
    return KH_OK;
}

static kh_result open_one(const kh_config_metrics *metrics, kh_socket *out, char *error)
{
    kh_result result = KH_OK;
    int fd = metrics->path != NULL ? kh_socket_inherited(metrics->path) : -1;

    if (fd >= 0) {
        *out = (kh_socket){.fd = fd};
    } else {
        result = metrics->path != NULL ? kh_socket_open(metrics->path, SOCK_STREAM, metrics->mode,
                                                        metrics->owner, metrics->group, out, error)
                                       : open_tcp(metrics, out, error);
    }
    if (result == KH_OK && metrics->is_public) {
        kh_log(KH_LOG_WARN, "metrics_public", KH_LT("address", metrics->address),
               KH_LT("means", "whoever can connect there reads the metrics, names of identities included"));
    }
    return result;
}

static kh_metrics_socket *find(kh_supervisor *supervisor, const char *address)
{
    for (size_t i = 0; i < supervisor->metrics_count; i++) {
        if (strcmp(supervisor->metrics[i].address, address) == 0) {
            return &supervisor->metrics[i];
        }
    }
    return NULL;
}

static void drop(kh_supervisor *supervisor, size_t i)
{
    kh_socket_close(&supervisor->metrics[i].sock);
    free(supervisor->metrics[i].address);
    supervisor->metrics[i] = supervisor->metrics[--supervisor->metrics_count];
}

kh_result kh_metrics_open(kh_supervisor *supervisor, const kh_config *config, char *error)
{
    size_t before = supervisor->metrics_count;
    kh_result result = KH_OK;

    for (size_t i = 0; i < config->metrics_count && result == KH_OK; i++) {
        kh_metrics_socket *next = &supervisor->metrics[supervisor->metrics_count];
        const kh_metrics_socket *open = find(supervisor, config->metrics[i].address);

        if (open != NULL && kh_socket_present(&open->sock)) {
            continue;
        }
        result = open_one(&config->metrics[i], &next->sock, error);
        if (result == KH_OK) {
            supervisor->metrics_count++;
            next->address = strdup(config->metrics[i].address);
            result = next->address != NULL ? KH_OK : KH_E_MEMORY;
        }
    }
    while (result != KH_OK && supervisor->metrics_count > before) {
        drop(supervisor, supervisor->metrics_count - 1);
    }
    return result;
}

void kh_metrics_close(kh_supervisor *supervisor, const kh_config *config)
{
    for (size_t i = supervisor->metrics_count; i-- > 0;) {
        kh_metrics_socket *open = &supervisor->metrics[i];
        const kh_config_metrics *named = NULL;

        for (size_t j = 0; config != NULL && j < config->metrics_count && named == NULL; j++) {
            named = strcmp(config->metrics[j].address, open->address) == 0 ? &config->metrics[j] : NULL;
        }
        if (named != NULL && kh_socket_present(&open->sock)) {
            kh_socket_dress(&open->sock, named->mode, named->owner, named->group);
        } else {
            drop(supervisor, i);
        }
    }
}

kh_result kh_metrics_send(kh_supervisor *supervisor)
{
    kh_result result = KH_OK;

    for (size_t i = 0; i < supervisor->metrics_count && result == KH_OK; i++) {
        const kh_metrics_socket *one = &supervisor->metrics[i];

        result = kh_channel_send(supervisor->front.channel_fd, KH_MSG_METRICS, one->address,
                                 strlen(one->address), &one->sock.fd, 1);
    }
    return result;
}

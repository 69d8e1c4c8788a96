/* SPDX-License-Identifier: Apache-2.0 */
/* The client's way to an agent on the same machine: a Unix socket. Also what both ways share: waiting. */
#include "link.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define KH_UNIX_PREFIX "unix:"
#define KH_CONNECT_RETRY_MS 5 /* a full backlog cannot be polled for */

typedef struct kh_unix_link {
    kh_link link; /* first */
    struct sockaddr_un address;
} kh_unix_link;

kh_result kh_link_wait(kh_link *link, uint64_t deadline_ms)
{
    struct pollfd pollfd = {.fd = link->fd, .events = (short)(POLLIN | (link->wants_write ? POLLOUT : 0))};
    uint64_t now = kh_link_now_ms();

    if (now >= deadline_ms) {
        return KH_E_DEADLINE;
    }
    if (!link->held && poll(&pollfd, 1, deadline_ms - now < INT_MAX ? (int)(deadline_ms - now) : INT_MAX) < 0 &&
        errno != EINTR) {
        return KH_E_IO;
    }
    return KH_OK;
}

static kh_result unix_connect(kh_link *link, uint64_t deadline_ms)
{
    const struct sockaddr_un *address = &((kh_unix_link *)link)->address;
    int error = 0;

    link->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (link->fd < 0) {
        error = errno;
    } else {
        while (connect(link->fd, (const struct sockaddr *)address, sizeof(*address)) != 0) {
            error = errno;
            if (error != EAGAIN && error != EINTR) {
                break;
            }
            error = 0;
            if (kh_link_now_ms() >= deadline_ms) {
                snprintf(link->detail, sizeof(link->detail), "%s: the agent does not accept connections in time", link->name);
                return KH_E_DEADLINE;
            }
            poll(NULL, 0, KH_CONNECT_RETRY_MS);
        }
    }
    if (error == 0) {
        return KH_OK;
    }
    snprintf(link->detail, sizeof(link->detail), "%s: %s", link->name, strerror(error));
    return error == ENOENT || error == ECONNREFUSED ? KH_E_UNAVAILABLE : KH_E_IO;
}

static kh_result failed(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK         ? KH_AGAIN
           : error == EPIPE || error == ECONNRESET         ? KH_E_CLOSED
                                                           : KH_E_IO;
}

static kh_result unix_read(kh_link *link, uint8_t *room, size_t cap, size_t *got)
{
    ssize_t n = 0;

    do {
        n = recv(link->fd, room, cap, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    *got = n > 0 ? (size_t)n : 0;
    return n > 0 ? KH_OK : n == 0 ? KH_E_CLOSED : failed(errno);
}

static kh_result unix_write(kh_link *link, const uint8_t *data, size_t len, size_t *sent)
{
    kh_result result = KH_OK;
    ssize_t n = 0;

    do {
        n = send(link->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    *sent = n > 0 ? (size_t)n : 0;
    result = n > 0 ? KH_OK : failed(errno);
    link->wants_write = result == KH_AGAIN;
    return result;
}

static void unix_disconnect(kh_link *link)
{
    if (link->fd >= 0) {
        close(link->fd);
    }
    link->fd = -1;
    link->wants_write = false;
}

static void unix_free(kh_link *link)
{
    free(link);
}

kh_result kh_link_unix(const char *address, kh_link **link, char *detail)
{
    static const kh_link_ops ops = {unix_connect, unix_read, unix_write, unix_disconnect, unix_free};
    const size_t prefix_len = sizeof(KH_UNIX_PREFIX) - 1;
    size_t len = strlen(address);
    kh_unix_link *made = NULL;

    *link = NULL;
    if (strncmp(address, KH_UNIX_PREFIX, prefix_len) != 0 || len == prefix_len ||
        len - prefix_len >= sizeof(made->address.sun_path)) {
        snprintf(detail, KH_LINK_DETAIL_MAX, "%.200s: not an address of the form unix:/path", address);
        return KH_E_INVALID;
    }
    made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return KH_E_MEMORY;
    }
    made->link.ops = &ops;
    made->link.fd = -1;
    made->address.sun_family = AF_UNIX;
    memcpy(made->address.sun_path, address + prefix_len, len - prefix_len + 1);
    memcpy(made->link.name, made->address.sun_path, len - prefix_len + 1);
    *link = &made->link;
    return KH_OK;
}

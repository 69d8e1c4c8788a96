/* SPDX-License-Identifier: Apache-2.0 */
/* A Unix socket: bytes as they are; the kernel says whose process it is. */
#include "front.h"
#include "transport.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

static kh_result failed(void)
{
    return errno == EAGAIN || errno == EINTR ? KH_AGAIN : KH_E_IO;
}

static kh_result unix_read(kh_transport *transport, uint8_t *room, size_t cap, size_t *got)
{
    ssize_t n = recv(transport->fd, room, cap, 0);

    *got = n > 0 ? (size_t)n : 0;
    return n > 0 ? KH_OK : n == 0 ? KH_E_CLOSED : failed();
}

static kh_result unix_write(kh_transport *transport, const uint8_t *data, size_t len, size_t *sent)
{
    ssize_t n = send(transport->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

    *sent = n > 0 ? (size_t)n : 0;
    return n > 0 ? KH_OK : failed();
}

static kh_identity *unix_identify(kh_transport *transport, kh_front *front)
{
    return kh_identity_by_uid(front, transport->uid);
}

static void unix_free(kh_transport *transport)
{
    free(transport);
}

kh_result kh_transport_unix(int fd, kh_transport **out)
{
    static const kh_transport_ops ops = {.by = "uid",
                                         .tokens = true,
                                         .read = unix_read,
                                         .write = unix_write,
                                         .identify = unix_identify,
                                         .free = unix_free};
    kh_transport *transport = calloc(1, sizeof *transport);
    struct ucred peer = {.pid = 0, .uid = (uid_t)-1};
    socklen_t len = sizeof peer;

    *out = transport;
    if (transport == NULL) {
        return KH_E_MEMORY;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0) {
        peer.uid = (uid_t)-1;
    }
    *transport = (kh_transport){.ops = &ops,
                                .fd = fd,
                                .uid = peer.uid,
                                .who = {KH_LN("peer_uid", peer.uid), KH_LN("peer_pid", peer.pid)}};
    return KH_OK;
}

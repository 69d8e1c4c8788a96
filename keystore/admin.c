/* SPDX-License-Identifier: Apache-2.0 */
/* The admin socket: root's way to the keeper, past the front. One datagram each way, one request per
 * connection. */
#include "keeper.h"
#include "process.h"

#include <errno.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct admin_request {
    uint32_t layout;
    uint32_t op, scheme, flags, arg, data_len;
    uint64_t key_ref;
} admin_request;

typedef struct admin_answer {
    uint32_t layout;
    uint32_t result;
} admin_answer;

/* ---- The keeper's end ---------------------------------------------------------------------------------- */

int kh_admin_accept(int listener)
{
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        return -1;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0 ||
        (peer.uid != 0 && peer.uid != geteuid())) {
        kh_admin_answer(fd, KH_E_FORBIDDEN, NULL, 0);
        return -1;
    }
    return fd;
}

kh_op *kh_admin_receive(int fd, kh_result *result)
{
    uint8_t datagram[sizeof(admin_request) + KH_RECORD_DATA_MAX + 1];
    admin_request request;
    kh_op *op = NULL;
    ssize_t n = recv(fd, datagram, sizeof(datagram), MSG_DONTWAIT);

    *result = n < 0 && (errno == EAGAIN || errno == EINTR) ? KH_AGAIN : KH_E_CLOSED;
    if (n <= 0) {
        return NULL;
    }
    *result = KH_E_MALFORMED;
    if ((size_t)n < sizeof(request)) {
        return NULL;
    }
    memcpy(&request, datagram, sizeof(request));
    if (request.layout != kh_ring_layout()) {
        *result = KH_E_VERSION;
        return NULL;
    }
    if (request.data_len > KH_RECORD_DATA_MAX || (size_t)n != sizeof(request) + request.data_len) {
        return NULL;
    }
    op = calloc(1, sizeof(*op));
    *result = KH_E_MEMORY;
    if (op == NULL || (op->long_data = malloc(request.data_len + 1)) == NULL) {
        free(op);
        return NULL;
    }
    memcpy(op->long_data, datagram + sizeof(request), request.data_len);
    op->admin_fd = fd;
    op->record.op = request.op;
    op->record.scheme = request.scheme;
    op->record.flags = request.flags;
    op->record.arg = request.arg;
    op->record.key_ref = request.key_ref;
    op->record.data = op->long_data;
    op->record.data_len = request.data_len;
    op->arrived_ns = kh_now_ns();
    *result = KH_OK;
    return op;
}

void kh_admin_answer(int fd, kh_result result, const uint8_t *data, size_t len)
{
    admin_answer answer = {kh_ring_layout(), (uint32_t)result};
    struct iovec iov[2] = {{&answer, sizeof(answer)}, {(void *)(uintptr_t)data, len}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = len > 0 ? 2 : 1};

    /* One datagram into an empty buffer: if it does not fit or nobody reads it, the asker sees the end of
     * file. */
    if (sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        errno = 0;
    }
    close(fd);
}

/* ---- The tool's end ------------------------------------------------------------------------------------ */

static bool wait_for(int fd, short events, uint64_t until_ns)
{
    for (;;) {
        uint64_t now_ns = kh_now_ns();
        struct pollfd pfd = {.fd = fd, .events = events};
        uint64_t left_ms = now_ns < until_ns ? (until_ns - now_ns) / 1000000 + 1 : 0;
        int n = left_ms == 0 ? 0 : poll(&pfd, 1, left_ms < INT_MAX ? (int)left_ms : INT_MAX);

        if (n > 0) {
            return true;
        }
        if (n == 0 || errno != EINTR) {
            return false;
        }
    }
}

static int connect_admin(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = -1;

    if (strlen(path) >= sizeof(address.sun_path)) {
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static kh_result receive_answer(int fd, uint8_t *out, size_t cap, size_t *out_len)
{
    admin_answer answer = {0};
    struct iovec iov[2] = {{&answer, sizeof(answer)}, {out, cap}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n = recvmsg(fd, &header, 0);

    if (n < (ssize_t)sizeof(answer)) {
        return n == 0 ? KH_E_CLOSED : KH_E_IO;
    }
    if (answer.layout != kh_ring_layout()) {
        return KH_E_VERSION;
    }
    if ((header.msg_flags & MSG_TRUNC) != 0) {
        return KH_E_TOO_LARGE;
    }
    *out_len = (size_t)n - sizeof(answer);
    return (kh_result)answer.result;
}

kh_result kh_admin_call(const char *socket_path, const kh_record *record, uint8_t *out, size_t cap,
                        size_t *out_len, uint32_t timeout_ms)
{
    const uint64_t until_ns = kh_now_ns() + (uint64_t)timeout_ms * 1000000;
    admin_request request = {kh_ring_layout(), record->op,       record->scheme, record->flags,
                             record->arg,      record->data_len, record->key_ref};
    struct iovec iov[2] = {{&request, sizeof(request)}, {(void *)(uintptr_t)record->data, record->data_len}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = record->data_len > 0 ? 2 : 1};
    kh_result result = KH_E_UNAVAILABLE;
    int fd = -1;

    *out_len = 0;
    if (record->data_len > KH_RECORD_DATA_MAX) {
        return KH_E_TOO_LARGE;
    }
    fd = connect_admin(socket_path);
    if (fd < 0) {
        return result;
    }
    if (!wait_for(fd, POLLOUT, until_ns) || sendmsg(fd, &header, MSG_NOSIGNAL) < 0) {
        /* A keeper that refused us has answered and closed before we wrote. */
        result = errno == EPIPE && wait_for(fd, POLLIN, until_ns) ? receive_answer(fd, out, cap, out_len)
                                                                  : KH_E_IO;
        goto done;
    }
    result = wait_for(fd, POLLIN, until_ns) ? receive_answer(fd, out, cap, out_len) : KH_E_DEADLINE;
done:
    close(fd);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The admin socket: root's way to the keeper, past the front. One request per connection, in one datagram,
 * perhaps with the descriptor of a file; then its answer. Before the answer to what takes long come parts:
 * its result is KH_AGAIN.
 */
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

union descriptor {
    struct cmsghdr header;
    uint8_t space[CMSG_SPACE(sizeof(int))];
};

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

/* One descriptor, or none. false: more, which are closed. (Where one fits there is room for two.) */
static bool take_descriptor(struct msghdr *header, int *taken)
{
    int fds[CMSG_SPACE(sizeof(int)) / sizeof(int)];
    size_t count = 0;

    *taken = -1;
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg != NULL; cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(cmsg), count * sizeof(int));
        }
    }
    if (count == 1 && (header->msg_flags & MSG_CTRUNC) == 0) {
        *taken = fds[0];
        return true;
    }
    for (size_t i = 0; i < count; i++) {
        close(fds[i]);
    }
    return count == 0 && (header->msg_flags & MSG_CTRUNC) == 0;
}

/* From a datagram that has the length that it says. */
static kh_op *new_op(const admin_request *request, const uint8_t *data)
{
    kh_op *op = calloc(1, sizeof(*op));

    if (op == NULL || (op->long_data = malloc(request->data_len + 1)) == NULL) {
        free(op);
        return NULL;
    }
    memcpy(op->long_data, data, request->data_len);
    op->record.op = request->op;
    op->record.scheme = request->scheme;
    op->record.flags = request->flags;
    op->record.arg = request->arg;
    op->record.key_ref = request->key_ref;
    op->record.data = op->long_data;
    op->record.data_len = request->data_len;
    op->arrived_ns = op->told_ns = kh_now_ns();
    return op;
}

kh_op *kh_admin_receive(int fd, kh_result *result)
{
    uint8_t datagram[sizeof(admin_request) + KH_RECORD_DATA_MAX + 1];
    struct iovec iov = {datagram, sizeof(datagram)};
    union descriptor control;
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    admin_request request;
    kh_op *op = NULL;
    int file_fd = -1;
    bool one = false;
    ssize_t n = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    *result = n < 0 && (errno == EAGAIN || errno == EINTR) ? KH_AGAIN : KH_E_CLOSED;
    if (n < 0) {
        return NULL;
    }
    one = take_descriptor(&header, &file_fd);
    if (n == 0) {
        goto done;
    }
    *result = KH_E_MALFORMED;
    if (!one || (size_t)n < sizeof(request)) {
        goto done;
    }
    memcpy(&request, datagram, sizeof(request));
    if (request.layout != kh_ring_layout()) {
        *result = KH_E_VERSION;
        goto done;
    }
    if (request.data_len > KH_RECORD_DATA_MAX || (size_t)n != sizeof(request) + request.data_len) {
        goto done;
    }
    op = new_op(&request, datagram + sizeof(request));
    *result = op != NULL ? KH_OK : KH_E_MEMORY;
    if (op != NULL) {
        op->admin_fd = fd;
        op->file_fd = file_fd;
        file_fd = -1; /* the operation's now */
    }
done:
    OPENSSL_cleanse(datagram, n > 0 ? (size_t)n : 0);
    if (file_fd >= 0) {
        close(file_fd);
    }
    return op;
}

static bool send_answer(int fd, kh_result result, const uint8_t *data, size_t len)
{
    admin_answer answer = {kh_ring_layout(), (uint32_t)result};
    struct iovec iov[2] = {{&answer, sizeof(answer)}, {(void *)(uintptr_t)data, len}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = len > 0 ? 2 : 1};
    bool sent = sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;

    errno = 0;
    return sent;
}

bool kh_admin_part(int fd, const uint8_t *data, size_t len)
{
    return send_answer(fd, KH_AGAIN, data, len);
}

bool kh_admin_gone(int fd)
{
    struct pollfd pfd = {.fd = fd};

    return poll(&pfd, 1, 0) > 0 && (pfd.revents & (POLLHUP | POLLERR)) != 0;
}

void kh_admin_answer(int fd, kh_result result, const uint8_t *data, size_t len)
{
    /* One datagram into a buffer that has room for it: if it does not fit or nobody reads it, the asker sees
     * the end of file. */
    (void)send_answer(fd, result, data, len);
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

/* Until the answer itself comes. */
static kh_result await_answer(int fd, kh_admin_part_fn part, void *ctx, uint8_t *out, size_t cap,
                              size_t *out_len, uint32_t timeout_ms)
{
    kh_result result = KH_AGAIN;

    while (result == KH_AGAIN) {
        if (!wait_for(fd, POLLIN, kh_now_ns() + (uint64_t)timeout_ms * 1000000)) {
            return KH_E_DEADLINE;
        }
        result = receive_answer(fd, out, cap, out_len);
        if (result == KH_AGAIN && part != NULL) {
            part(ctx, out, *out_len);
        }
    }
    return result;
}

static void attach_descriptor(struct msghdr *header, union descriptor *control, int fd)
{
    memset(control, 0, sizeof(*control));
    control->header.cmsg_level = SOL_SOCKET;
    control->header.cmsg_type = SCM_RIGHTS;
    control->header.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&control->header), &fd, sizeof(int));
    header->msg_control = control;
    header->msg_controllen = sizeof(*control);
}

kh_result kh_admin_call_long(const char *socket_path, const kh_record *record, int file_fd,
                             kh_admin_part_fn part, void *ctx, uint8_t *out, size_t cap, size_t *out_len,
                             uint32_t timeout_ms)
{
    const uint64_t until_ns = kh_now_ns() + (uint64_t)timeout_ms * 1000000;
    admin_request request = {kh_ring_layout(), record->op,       record->scheme, record->flags,
                             record->arg,      record->data_len, record->key_ref};
    struct iovec iov[2] = {{&request, sizeof(request)}, {(void *)(uintptr_t)record->data, record->data_len}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = record->data_len > 0 ? 2 : 1};
    union descriptor control;
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
    if (file_fd >= 0) {
        attach_descriptor(&header, &control, file_fd);
    }
    if (!wait_for(fd, POLLOUT, until_ns) || sendmsg(fd, &header, MSG_NOSIGNAL) < 0) {
        /* A keeper that refused us has answered and closed before we wrote. */
        result = errno == EPIPE && wait_for(fd, POLLIN, until_ns) ? receive_answer(fd, out, cap, out_len)
                                                                  : KH_E_IO;
        goto done;
    }
    result = await_answer(fd, part, ctx, out, cap, out_len, timeout_ms);
done:
    close(fd);
    return result;
}

kh_result kh_admin_call(const char *socket_path, const kh_record *record, uint8_t *out, size_t cap,
                        size_t *out_len, uint32_t timeout_ms)
{
    return kh_admin_call_long(socket_path, record, -1, NULL, NULL, out, cap, out_len, timeout_ms);
}

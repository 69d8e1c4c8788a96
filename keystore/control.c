/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's way to the keeper: one datagram per message, descriptors beside it. */
#include "keeper.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct control_message {
    uint32_t layout; /* both ends are of one build */
    uint32_t kind;
} control_message;

union descriptors {
    struct cmsghdr header;
    uint8_t space[CMSG_SPACE(3 * sizeof(int))];
};

static kh_result send_control(int fd, kh_control_kind kind, const int *fds)
{
    control_message message = {kh_ring_layout(), (uint32_t)kind};
    struct iovec iov = {&message, sizeof(message)};
    union descriptors control;
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n = 0;

    memset(&control, 0, sizeof(control));
    if (fds != NULL) {
        header.msg_control = &control;
        header.msg_controllen = sizeof(control);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(3 * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, 3 * sizeof(int));
    }
    do {
        n = sendmsg(fd, &header, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof(message)) {
        return errno == EPIPE || errno == ECONNRESET ? KH_E_CLOSED : KH_E_IO;
    }
    return KH_OK;
}

kh_result kh_keeper_send_ring(int control_fd, const int fds[3])
{
    return send_control(control_fd, KH_CONTROL_RING, fds);
}

kh_result kh_keeper_send_stop(int control_fd)
{
    return send_control(control_fd, KH_CONTROL_STOP, NULL);
}

/* Takes what descriptors came: all three or none are kept. */
static bool take_descriptors(struct msghdr *header, int fds[3])
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(header);
    int got[3] = {-1, -1, -1};
    size_t n = 0;

    if (cmsg == NULL || cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
        return false;
    }
    n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(got, CMSG_DATA(cmsg), (n <= 3 ? n : 3) * sizeof(int));
    if (n == 3 && (header->msg_flags & MSG_CTRUNC) == 0) {
        memcpy(fds, got, sizeof(got));
        return true;
    }
    for (size_t i = 0; i < n && i < 3; i++) {
        close(got[i]);
    }
    return false;
}

kh_control_kind kh_control_receive(int fd, int fds[3])
{
    control_message message = {0};
    struct iovec iov = {&message, sizeof(message)};
    union descriptors control;
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    bool with_fds = false;
    ssize_t n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

    fds[0] = fds[1] = fds[2] = -1;
    if (n == 0) {
        return KH_CONTROL_STOP;
    }
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR ? KH_CONTROL_NONE : KH_CONTROL_STOP;
    }
    with_fds = take_descriptors(&header, fds);
    if (n == (ssize_t)sizeof(message) && message.layout == kh_ring_layout()) {
        if (message.kind == KH_CONTROL_RING && with_fds) {
            return KH_CONTROL_RING;
        }
        if (message.kind == KH_CONTROL_STOP && !with_fds) {
            return KH_CONTROL_STOP;
        }
    }
    for (int i = 0; with_fds && i < 3; i++) {
        close(fds[i]);
        fds[i] = -1;
    }
    return KH_CONTROL_NONE;
}

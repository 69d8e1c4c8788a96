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
    uint8_t space[CMSG_SPACE(KH_CONTROL_FDS * sizeof(int))];
};

/* What goes with a message of each kind. */
static const struct {
    size_t fds, len;
} shapes[] = {
    [KH_CONTROL_RING] = {.fds = 3},
    [KH_CONTROL_STOP] = {.fds = 0},
    [KH_CONTROL_PLACES] = {.len = sizeof(kh_keeper_places)},
    [KH_CONTROL_LINK] = {.fds = 1, .len = KH_PLACE_MAX + 1},
};
#define KINDS (sizeof(shapes) / sizeof(shapes[0]))

static kh_result send_control(int fd, kh_control_kind kind, const int *fds, const void *data)
{
    control_message message = {kh_ring_layout(), (uint32_t)kind};
    const size_t fds_len = shapes[kind].fds * sizeof(int);
    struct iovec iov[2] = {{&message, sizeof(message)}, {(void *)(uintptr_t)data, shapes[kind].len}};
    union descriptors control;
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = shapes[kind].len > 0 ? 2 : 1};
    ssize_t n = 0;

    memset(&control, 0, sizeof(control));
    if (fds_len > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(fds_len);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(fds_len);
        memcpy(CMSG_DATA(&control.header), fds, fds_len);
    }
    do {
        n = sendmsg(fd, &header, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)(sizeof(message) + shapes[kind].len)) {
        return errno == EPIPE || errno == ECONNRESET ? KH_E_CLOSED : KH_E_IO;
    }
    return KH_OK;
}

kh_result kh_keeper_send_ring(int control_fd, const int fds[3])
{
    return send_control(control_fd, KH_CONTROL_RING, fds, NULL);
}

kh_result kh_keeper_send_stop(int control_fd)
{
    return send_control(control_fd, KH_CONTROL_STOP, NULL, NULL);
}

kh_result kh_keeper_send_places(int control_fd, const kh_keeper_places *places)
{
    return send_control(control_fd, KH_CONTROL_PLACES, NULL, places);
}

kh_result kh_keeper_send_link(int control_fd, const char *token, int fd)
{
    char name[KH_PLACE_MAX + 1] = "";

    if (strlen(token) > KH_PLACE_MAX) {
        return KH_E_INVALID;
    }
    memcpy(name, token, strlen(token));
    return send_control(control_fd, KH_CONTROL_LINK, &fd, name);
}

/* Takes what descriptors came. */
static size_t take_descriptors(struct msghdr *header, int fds[KH_CONTROL_FDS])
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(header);
    size_t n = 0;

    if (cmsg != NULL && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
        n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        n = n <= KH_CONTROL_FDS ? n : KH_CONTROL_FDS;
        memcpy(fds, CMSG_DATA(cmsg), n * sizeof(int));
    }
    return n;
}

kh_control_kind kh_control_receive(int fd, kh_control *control_)
{
    control_message message = {0};
    struct iovec iov[2] = {{&message, sizeof(message)}, {&control_->places, sizeof(control_->places)}};
    union descriptors control;
    struct msghdr header = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof(control)};
    size_t count = 0;
    ssize_t n = 0;

    memset(control_, 0, sizeof(*control_));
    for (size_t i = 0; i < KH_CONTROL_FDS; i++) {
        control_->fds[i] = -1;
    }
    n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n == 0) {
        return KH_CONTROL_STOP;
    }
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR ? KH_CONTROL_NONE : KH_CONTROL_STOP;
    }
    count = take_descriptors(&header, control_->fds);
    if ((size_t)n >= sizeof(message) && message.layout == kh_ring_layout() && message.kind < KINDS &&
        message.kind != KH_CONTROL_NONE && count == shapes[message.kind].fds &&
        (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 &&
        (size_t)n == sizeof(message) + shapes[message.kind].len) {
        if (message.kind == KH_CONTROL_LINK) {
            memcpy(control_->token, &control_->places, sizeof(control_->token));
            control_->token[KH_PLACE_MAX] = '\0';
        }
        return (kh_control_kind)message.kind;
    }
    for (size_t i = 0; i < count; i++) {
        close(control_->fds[i]);
        control_->fds[i] = -1;
    }
    return KH_CONTROL_NONE;
}

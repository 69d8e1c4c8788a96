/* SPDX-License-Identifier: Apache-2.0 */
/* The messages between the supervisor and its children. */
#include "channel.h"
#include <errno.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

kh_result kh_channel_pair(int fds[2])
{
    const struct timeval patience = {.tv_sec = 5};
    const int room = 1 << 20;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
        return KH_E_IO;
    }
    for (int i = 0; i < 2; i++) {
        setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    return KH_OK;
}

kh_result kh_channel_send(int fd, kh_channel_type type, const void *payload, size_t len, const int *fds,
                          size_t fd_count)
{
    uint32_t head = type;
    struct iovec iov[2] = {{&head, sizeof head}, {(void *)(uintptr_t)payload, len}};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(KH_CHANNEL_FDS_MAX * sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = len > 0 ? 2 : 1};
    ssize_t sent = 0;

    if (len > KH_CHANNEL_PAYLOAD_MAX || fd_count > KH_CHANNEL_FDS_MAX) {
        return KH_E_TOO_LARGE;
    }
    if (len == 0 &&
        fd_count == 0) { /* all that the front may send: its filter refuses sendmsg, and so descriptors */
        do {
            sent = send(fd, &head, sizeof head, MSG_NOSIGNAL);
        } while (sent < 0 && errno == EINTR);
        return sent < 0 ? KH_E_IO : KH_OK;
    }
    if (fd_count > 0) {
        struct cmsghdr *cmsg = NULL;

        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, fd_count * sizeof(int));
    }
    do {
        sent = sendmsg(fd, &msg, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? KH_E_IO : KH_OK;
}

void kh_channel_poke(int fd, kh_channel_type type)
{
    uint32_t head = type;

    (void)!send(fd, &head, sizeof head, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void kh_channel_note(int fd, kh_channel_type type, const void *payload, size_t len)
{
    uint8_t datagram[sizeof(uint32_t) + KH_CHANNEL_NOTE_MAX]; /* send, not sendmsg: see above */
    uint32_t head = type;

    len = len < KH_CHANNEL_NOTE_MAX ? len : KH_CHANNEL_NOTE_MAX;
    memcpy(datagram, &head, sizeof head);
    memcpy(datagram + sizeof head, payload, len);
    (void)!send(fd, datagram, sizeof head + len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void take_fds(struct msghdr *msg, kh_channel_message *message)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg != NULL; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            if (count <= KH_CHANNEL_FDS_MAX) {
                memcpy(message->fds, CMSG_DATA(cmsg), count * sizeof(int));
                message->fd_count = (uint32_t)count;
            }
        }
    }
}

kh_result kh_channel_receive(int fd, bool wait, kh_channel_message *message)
{
    struct iovec iov[2] = {{&message->type, sizeof message->type},
                           {message->payload, sizeof message->payload}};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(KH_CHANNEL_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = control.bytes, .msg_controllen = sizeof control};
    ssize_t got = 0;

    message->fd_count = 0;
    do {
        got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK ? KH_AGAIN : KH_E_CLOSED;
    }
    if (got == 0) {
        return KH_E_CLOSED;
    }
    take_fds(&msg, message);
    if (got < (ssize_t)sizeof message->type || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
        kh_channel_close_fds(message);
        return KH_E_MALFORMED;
    }
    message->len = (uint32_t)((size_t)got - sizeof message->type);
    return KH_OK;
}

void kh_channel_close_fds(kh_channel_message *message)
{
    for (uint32_t i = 0; i < message->fd_count; i++) {
        if (message->fds[i] >= 0) {
            close(message->fds[i]);
        }
    }
    message->fd_count = 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The link's transport: datagrams with a header of their own. See link.h. */
#include "link.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

kh_result kh_link_pair(int fds[2])
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0 ? KH_OK : KH_E_IO;
}

kh_result kh_link_send(int fd, const kh_link_message *message, const void *data)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)message, sizeof(*message)},
                           {(void *)(uintptr_t)data, message->data_len}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = message->data_len > 0 ? 2 : 1};
    ssize_t n = 0;

    if (message->data_len > KH_LINK_DATA_MAX) {
        return KH_E_TOO_LARGE;
    }
    do {
        n = sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0) {
        return KH_OK;
    }
    return errno == EAGAIN || errno == ENOBUFS ? KH_AGAIN : KH_E_CLOSED;
}

kh_result kh_link_receive(int fd, kh_link_message *message, uint8_t *data)
{
    struct iovec iov[2] = {{message, sizeof(*message)}, {data, KH_LINK_DATA_MAX}};
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0) {
        return errno == EAGAIN || errno == EINTR ? KH_AGAIN : KH_E_CLOSED;
    }
    if (n == 0) {
        return KH_E_CLOSED;
    }
    return (size_t)n >= sizeof(*message) && (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 &&
                   (size_t)n - sizeof(*message) == message->data_len
               ? KH_OK
               : KH_E_MALFORMED;
}

const char *kh_link_op_name(uint32_t op)
{
    switch (op) {
#define KH_X(constant, number, name, by_token)                                                               \
    case constant:                                                                                           \
        return name;
        KH_LINK_OPS(KH_X)
#undef KH_X
    default:
        return "?";
    }
}

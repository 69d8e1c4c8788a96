/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is between a connection's descriptor and its kh_server: bytes in and out, and who the other end is. One interface,
 * two implementations: transport_unix.c and transport_tls.c. Nothing here waits.
 */
#ifndef KH_AGENT_TRANSPORT_H
#define KH_AGENT_TRANSPORT_H

#include "log.h"
#include <keyhold/protocol.h>
#include <sys/socket.h>
#include <sys/types.h>

typedef struct kh_transport kh_transport;
struct kh_front;
struct kh_identity;
struct kh_listener;

typedef struct kh_transport_ops {
    const char *by; /* what a caller without a token is known by: for the log */
    bool tokens;    /* a caller may name an identity and prove it */
    /* KH_OK: *got > 0 bytes. KH_AGAIN: none now. KH_E_CLOSED: the end. Any other: it is lost. */
    kh_result (*read)(kh_transport *transport, uint8_t *room, size_t cap, size_t *got);
    /* KH_OK: *sent > 0 bytes. KH_AGAIN: not now; then the next call begins with the same bytes. Others as above. */
    kh_result (*write)(kh_transport *transport, const uint8_t *data, size_t len, size_t *sent);
    /* Who it is, by the configuration of now; NULL: nobody that is known. May change with each configuration. */
    struct kh_identity *(*identify)(kh_transport *transport, struct kh_front *front);
    void (*free)(kh_transport *transport); /* does not close the descriptor */
} kh_transport_ops;

struct kh_transport {
    const kh_transport_ops *ops;
    int fd;              /* the connection's */
    uid_t uid;           /* of a peer on this machine; -1: it is on another, or the kernel does not say */
    bool held;           /* bytes are inside that no event will tell of */
    bool wants_write;    /* it has to write before it can read */
    kh_log_field who[2]; /* the peer, for log lines */
};

/* For kh_log: the two fields that say who a connection's peer is. */
#define KH_LOG_PEER(conn) (conn)->transport->who[0], (conn)->transport->who[1]

/* KH_E_MEMORY. The descriptor stays the caller's, also on failure. */
KH_MUST_USE kh_result kh_transport_unix(int fd, kh_transport **transport);
/* The listener, which counts and logs, has to outlive it. peer: where it comes from. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_transport_tls(struct kh_listener *listener, int fd, const struct sockaddr *peer,
                                       kh_transport **transport);

#endif

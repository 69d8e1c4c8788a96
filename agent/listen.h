/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets: made, found from systemd, and removed by the supervisor. */
#ifndef KH_AGENT_LISTEN_H
#define KH_AGENT_LISTEN_H

#include "config.h"

typedef struct kh_socket {
    char *address;     /* "unix:/ABSOLUTE/PATH" or "tcp:ADDRESS:PORT": names it */
    int fd;            /* -1: none */
    uint64_t dev, ino; /* of the socket's file; 0: systemd's, not to be removed */
    bool keep;
} kh_socket;

/*
 * Binds and listens: type is SOCK_STREAM or SOCK_SEQPACKET. A file that nobody listens on any more is
 * replaced; a socket that is alive (KH_E_EXISTS) and a file that is no socket (KH_E_INVALID) are left alone.
 * KH_E_IO. error: KH_CONFIG_ERROR_MAX bytes.
 */
KH_MUST_USE kh_result kh_socket_open(const char *path, int type, mode_t mode, const char *owner,
                                     const char *group, kh_socket *out, char *error);
/*
 * The socket of a listener: systemd's if it passed one for that address, else a new one. One of TCP has the options that
 * the connections which are accepted from it inherit: nothing is held back to be sent in larger packets, and a peer
 * that is gone without a word is noticed. As above.
 */
KH_MUST_USE kh_result kh_socket_open_listener(const kh_config_listener *listener, kh_socket *out, char *error);
/* Whether its file is still the one that was made; systemd's and TCP's have none that could be gone. */
bool kh_socket_present(const kh_socket *socket);
/* Gives its file, if that is present, this mode and owner; what fails is logged. */
void kh_socket_dress(kh_socket *socket, mode_t mode, const char *owner, const char *group);
/* Whether all owners and groups of sockets in the configuration exist. KH_E_INVALID. */
KH_MUST_USE kh_result kh_socket_owners_check(const kh_config *config, char *error);
/* A Unix socket that systemd passed for that path; -1: none. */
int kh_socket_inherited(const char *path);
/* Closes, and removes the file if it is still the one that was made. */
void kh_socket_close(kh_socket *socket);

#endif

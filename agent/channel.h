/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages between the supervisor and its children: one SOCK_SEQPACKET datagram each, a type, a payload
 * of bounded length, and descriptors. Both ends are the same program, started from the same file; still
 * nothing is taken from a child but the bare type of its message.
 */
#ifndef KH_AGENT_CHANNEL_H
#define KH_AGENT_CHANNEL_H

#include <keyhold/types.h>

#define KH_CHANNEL_PAYLOAD_MAX 16384 /* bytes */
#define KH_CHANNEL_NOTE_MAX 64
#define KH_CHANNEL_FDS_MAX 4

/* Who sends what; the payload is a struct of boot.h or nothing. */
typedef enum kh_channel_type {
    /* supervisor to the front */
    KH_MSG_CONFIG = 1, /* kh_boot_config and the path; 1 descriptor: the text in a sealed memfd */
    KH_MSG_TOKENS,     /* some kh_boot_token */
    KH_MSG_TLS,        /* kh_boot_tls and the key; 2 or 3 descriptors: certificate, CA, CRL, in sealed memfds */
    KH_MSG_LISTENER,   /* its address; 1 descriptor */
    KH_MSG_COMMIT,     /* what came since KH_MSG_CONFIG is complete: use it */
    KH_MSG_RING,       /* kh_boot_ring (none: the store's keeper); 3 descriptors: a keeper serves this ring */
    KH_MSG_KEEPER_DOWN, /* kh_boot_ring, as above */
    KH_MSG_PROCESSES, /* kh_boot_process, one per running process */
    KH_MSG_DRAIN,     /* uint32: most milliseconds */
    KH_MSG_METRICS,   /* between CONFIG and COMMIT: an address of the metrics; 1 descriptor */
    /* supervisor to the keeper, over its boot channel */
    KH_MSG_KEEPER_BOOT, /* kh_boot_keeper, secret, path; 1 or 2 descriptors: control, admin socket */
    KH_MSG_KEK_QUESTION, /* to the one that has a token unwrap the key-encryption key, and its answer (kektoken.c) */
    KH_MSG_TOKEN_BOOT,  /* to a token's: kh_boot_token_keeper and what follows it; 1 descriptor: control */
    /* children to the supervisor */
    KH_MSG_READY = 64,
    KH_MSG_REFUSED, /* the new configuration */
    KH_MSG_DRAINED,
    KH_MSG_KEK_ANSWER,
    KH_MSG_ALIVE,
    KH_MSG_KEEPER_STUCK, /* from the front, kh_boot_ring: what is in this keeper's ring does not move */
} kh_channel_type;

typedef struct kh_channel_message {
    uint32_t type; /* kh_channel_type */
    uint32_t len;
    int fds[KH_CHANNEL_FDS_MAX]; /* received: owned by the receiver */
    uint32_t fd_count;
    uint8_t payload[KH_CHANNEL_PAYLOAD_MAX];
} kh_channel_message;

/* A connected pair, close-on-exec. KH_E_IO. */
KH_MUST_USE kh_result kh_channel_pair(int fds[2]);
/*
 * Blocks while the peer's buffer is full, at most a few seconds. The descriptors stay the caller's. KH_E_IO.
 */
KH_MUST_USE kh_result kh_channel_send(int fd, kh_channel_type type, const void *payload, size_t len,
                                      const int *fds, size_t fd_count);
/* A message that is all type, dropped when the peer's buffer is full: never blocks. */
void kh_channel_poke(int fd, kh_channel_type type);
/* The same with a short payload: at most KH_CHANNEL_NOTE_MAX bytes of it. */
void kh_channel_note(int fd, kh_channel_type type, const void *payload, size_t len);
/*
 * Takes one message. KH_E_CLOSED: end of file. KH_AGAIN: none there (with wait false). KH_E_MALFORMED: not a
 * message. Received descriptors are close-on-exec.
 */
KH_MUST_USE kh_result kh_channel_receive(int fd, bool wait, kh_channel_message *message);
/* Closes the descriptors that were not taken over (set those to -1). */
void kh_channel_close_fds(kh_channel_message *message);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The link between a token's keeper and the store's keeper: a pair of SOCK_SEQPACKET sockets that the supervisor makes, so that
 * what a key is and may do comes to the token's keeper from the store, and never through the front.
 *
 * One datagram is one kh_link_message followed by data_len bytes; same machine, same build. Each question has a number of its
 * asker's and is answered once, in any order. The end of the file is the other's death: what was asked is unanswered, and the
 * supervisor brings a new pair. Both sides check all lengths; neither trusts the other with its process.
 */
#ifndef KEYHOLD_KEYSTORE_LINK_H
#define KEYHOLD_KEYSTORE_LINK_H

#include "p11.h"

/* X(constant, number, name, asked by the token's keeper) */
#define KH_LINK_OPS(X)                                                                                       \
    X(KH_LINK_KEY, 1, "key", 1)           /* ref → kh_link_key: what it is, may do, and how it is found */   \
    X(KH_LINK_HELLO, 2, "hello", 1)       /* first: data = name of the token in the configuration, and what it can do */ \
    X(KH_LINK_CHANGED, 16, "changed", 0)  /* ref, 0: all. Answered when no operation with what was known before runs */ \
    X(KH_LINK_GENERATE, 17, "generate", 0) /* kh_link_key (type, bits, usage, locator; pool) → spki, or pool: spki and blob */ \
    X(KH_LINK_IMPORT, 18, "import", 0)    /* kh_link_key, PKCS#8 → nothing, or pool: blob */                 \
    X(KH_LINK_PLACE, 19, "place", 0)      /* pool: kh_link_key with blob: unwraps it into this partition → nothing, or why not */ \
    X(KH_LINK_DESTROY, 20, "destroy", 0)  /* kh_link_key (locator) → nothing */                              \
    X(KH_LINK_SIGN, 21, "sign", 0)        /* for root (certify): ref, scheme, message → signature */         \
    X(KH_LINK_FIND, 22, "find", 0)        /* kh_link_key (locator of a key made elsewhere) → spki: to be adopted */ \
    X(KH_LINK_ALIVE, 23, "alive", 0)      /* → nothing: the token answers (C_GetTokenInfo) */

typedef enum kh_link_op {
#define KH_X(constant, number, name, by_token) constant = number,
    KH_LINK_OPS(KH_X)
#undef KH_X
} kh_link_op;

#define KH_LINK_DATA_MAX (16 * 1024)

typedef struct kh_link_message {
    uint32_t op;     /* kh_link_op */
    uint32_t answer; /* 1: to the question with this number */
    uint64_t number;
    uint64_t ref;
    uint32_t result; /* kh_result, of an answer */
    uint32_t scheme;
    uint32_t data_len;
    uint32_t reserved;
} kh_link_message;

/* What the store's keeper says of a key of a token. blob_len bytes of blob may be 0 (asked for with KH_LINK_KEY only in pools). */
typedef struct kh_link_key {
    kh_key_info info;
    kh_p11_locator locator;
    char pool[KH_PLACE_MAX + 1]; /* empty: a key of this token alone */
    uint32_t blob_len;
    uint32_t pkcs8_len; /* KH_LINK_IMPORT: behind the blob; wiped by both sides after use */
    uint32_t reserved;  /* so that nothing lies between the structure and its tail */
    uint8_t tail[];     /* blob, pkcs8 */
} kh_link_key;
_Static_assert(offsetof(kh_link_key, tail) == sizeof(kh_link_key), "behind it is its tail");

/* ---- link.c: the transport. Stateless; any thread may send, one receives ---------------------------------------- */

/* Two ends: non-blocking, close-on-exec. KH_E_IO. */
KH_MUST_USE kh_result kh_link_pair(int fds[2]);
/* One datagram with data_len bytes behind it. Never blocks. KH_AGAIN: no room now. KH_E_CLOSED: nobody is there. */
KH_MUST_USE kh_result kh_link_send(int fd, const kh_link_message *message, const void *data);
/*
 * The next datagram, its data into KH_LINK_DATA_MAX bytes, which may hold a secret. Never blocks. KH_AGAIN: none.
 * KH_E_CLOSED: the other is gone. KH_E_MALFORMED: one that is not what it says; it is dropped.
 */
KH_MUST_USE kh_result kh_link_receive(int fd, kh_link_message *message, uint8_t *data);
/* The name of an operation; "?" for an unknown number. */
const char *kh_link_op_name(uint32_t op);

#endif

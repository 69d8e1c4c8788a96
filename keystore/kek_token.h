/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A key-encryption key that only a token can open: 32 random bytes, wrapped by an AES-256 key that never
 * leaves the token (sensitive, never extractable). To the store it is a KEK of kind KH_KEK_FILE: these 32
 * bytes.
 */
#ifndef KEYHOLD_KEYSTORE_KEK_TOKEN_H
#define KEYHOLD_KEYSTORE_KEK_TOKEN_H

#include "kek.h"
#include "p11.h"

/* X(constant, number, name in the file) */
#define KH_KEK_HOWS(X)                                                                                       \
    X(KH_KEK_GCM, 1,                                                                                         \
      "aes-gcm") /* 12 bytes of IV, the KEK, 16 of tag; token and id are authenticated, too */               \
    X(KH_KEK_KWP, 2, "aes-kwp") /* RFC 5649 */

typedef enum kh_kek_how {
#define KH_X(constant, number, name) constant = number,
    KH_KEK_HOWS(KH_X)
#undef KH_X
} kh_kek_how;

#define KH_KEK_WRAPPED_MAX 64 /* bytes */

/* What is in the file; not a secret. */
typedef struct kh_kek_token {
    char token[KH_PLACE_MAX + 1]; /* as the agent's configuration names it */
    uint8_t id[KH_P11_ID_LEN];    /* CKA_ID of the AES key */
    kh_kek_how how;
    uint8_t wrapped[KH_KEK_WRAPPED_MAX];
    size_t wrapped_len;
} kh_kek_token;

/*
 * Makes an AES key in the token (label "keyhold-kek") and a random KEK, and wraps this by that. token: its
 * name in the configuration. Session: read-write, logged in. KH_E_UNSUPPORTED: the token has neither AES-GCM
 * nor RFC 5649. A key that is left over when the caller dies before it wrote the file does no harm.
 */
KH_MUST_USE kh_result kh_kek_token_create(kh_p11_session *session, const char *token, kh_kek_token *kek_token,
                                          uint8_t kek[KH_KEK_LEN]);
/* Wraps another KEK by the same AES key (rotation): sets how, wrapped and wrapped_len. */
KH_MUST_USE kh_result kh_kek_token_wrap(kh_p11_session *session, kh_kek_token *kek_token,
                                        const uint8_t kek[KH_KEK_LEN]);
/* KH_E_DAMAGED: not what the token wrapped; KH_E_NOT_FOUND: the token has no such AES key. */
KH_MUST_USE kh_result kh_kek_token_unwrap(kh_p11_session *session, const kh_kek_token *kek_token,
                                          uint8_t kek[KH_KEK_LEN]);

/* Files hold one line "keyhold-kek-token-1 TOKEN HOW HEX(id) HEX(wrapped)", mode 0600. Never overwrites:
 * KH_E_EXISTS. */
KH_MUST_USE kh_result kh_kek_token_file_create(const char *path, const kh_kek_token *kek_token);
/* KH_E_IO, KH_E_FORBIDDEN (mode & 077), KH_E_MALFORMED (another kind of KEK file, too). */
KH_MUST_USE kh_result kh_kek_token_file_load(const char *path, kh_kek_token *kek_token);

#endif

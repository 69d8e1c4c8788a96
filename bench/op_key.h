/* SPDX-License-Identifier: Apache-2.0 */
/* Private to `keyhold-bench op`: the private key that it measures with, and what a TLS 1.3 server would sign. */
#ifndef KH_OP_KEY_H
#define KH_OP_KEY_H

#include <keyhold/client.h>

#define KH_OP_PROLOGUE_LEN (64 + 33 + 1)
#define KH_OP_MESSAGE_MAX (KH_OP_PROLOGUE_LEN + 48)

typedef struct kh_op_key {
    EVP_PKEY *pkey;
    uint8_t id[KH_KEY_ID_LEN];
    kh_scheme scheme;
    const EVP_MD *digest; /* NULL: Ed25519 */
    bool pss;
    uint8_t message[KH_OP_MESSAGE_MAX];
    size_t message_len;
} kh_op_key;

/* From a PEM file. False: a message is on standard error. */
bool kh_op_key_load(const char *path, kh_op_key *key);
void kh_op_key_free(kh_op_key *key);
/* Makes the next message. */
bool kh_op_key_next(kh_op_key *key);
/* Signs the message with OpenSSL. */
bool kh_op_key_sign(const kh_op_key *key);
bool kh_op_key_verify(const kh_op_key *key, kh_bytes signature);
/* The same operation for an agent; the views point into key. */
kh_request kh_op_key_request(const kh_op_key *key, uint32_t deadline_ms);

#endif

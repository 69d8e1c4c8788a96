/* SPDX-License-Identifier: Apache-2.0 */
/* The golden vectors of protocol/vectors/ as messages and as bytes, for the tests of the wire part. */
#ifndef KH_PROTOCOL_VECTORS_H
#define KH_PROTOCOL_VECTORS_H

#include <keyhold/protocol.h>

#define KH_VECTOR_MAX 2048 /* bytes of the longest frame */

typedef struct kh_vector {
    char name[64]; /* file name without .txt */
    bool is_request;
    kh_request req;
    kh_reply reply;
} kh_vector;

/* The messages, built here by hand and not decoded; static storage. */
const kh_vector *kh_vectors(size_t *count);
/* The message of that name; fails the test when there is none. */
const kh_vector *kh_vector_find(const char *name);
/* The frame in the file of that vector, prefix included; fails the test when it cannot be read. Returns its
 * length. */
size_t kh_vector_read(const char *name, uint8_t *frame);
/* Hex digits, white space and comments from `#` to the end of the line. Returns the number of bytes. */
size_t kh_hex_parse(const char *text, const char *end, uint8_t *out, size_t cap);
/* Encodes the vector's message; the result, with *len set. */
KH_MUST_USE kh_result kh_vector_encode(const kh_vector *vector, uint8_t *buf, size_t cap, size_t *len);
/* Fails the test unless all fields are equal. */
void kh_assert_same_request(const kh_request *a, const kh_request *b);
void kh_assert_same_reply(const kh_reply *a, const kh_reply *b);

/* The contents that the vectors use: 00 01 02 … , and the secret behind the proofs. */
extern const uint8_t kh_vector_counting[512];
#define KH_VECTOR_NONCE_CLIENT (&kh_vector_counting[0x00])
#define KH_VECTOR_NONCE_AGENT (&kh_vector_counting[0x20])
#define KH_VECTOR_SECRET (&kh_vector_counting[0x40])
extern const uint8_t kh_vector_proof_client[KH_PROOF_LEN];
extern const uint8_t kh_vector_proof_agent[KH_PROOF_LEN];

#endif

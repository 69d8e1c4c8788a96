/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does a key's usage allow signing these bytes? This is what bounds a front that was taken over: pure
 * functions over what the keeper was given, exact to the last byte.
 *
 * tls-server, one of
 *   1. TLS 1.3 (RFC 8446, 4.4.3): 64 spaces, "TLS 1.3, server CertificateVerify", 0, a hash of 32 or 48 bytes;
 *      not with rsa_pkcs1_*; ECDSA only with the curve of the scheme;
 *   2. TLS 1.2 ECDHE (RFC 8422, 5.4): 64 bytes of randoms, 3, a group of 23, 24, 25, 29, 30, its point in exact form.
 * tls-dhe
 *   3. TLS 1.2 DHE (RFC 5246, 7.4.3): 64 bytes of randoms, p and g of RFC 7919 or RFC 3526 with 2048 bits or more,
 *      1 < Ys < p - 1.
 *   4. Neither 2 nor 3 where the whole can also be read as one DER SEQUENCE or SET: who chooses the randoms could
 *      spell a certificate. One message of 2 with X25519 in about 3.5 million can be by chance.
 * tls-client
 *   TLS 1.3 with "client" in the place of "server"; TLS 1.2 (RFC 5246, 7.4.8): the handshake messages from
 *   ClientHello to ClientKeyExchange without a gap.
 * sign
 *   Anything; only with it the caller may give a digest.
 */
#ifndef KEYHOLD_KEYSTORE_USAGE_H
#define KEYHOLD_KEYSTORE_USAGE_H

#include <keyhold/types.h>

typedef struct kh_sign_question {
    uint32_t usage;    /* set of kh_usage */
    uint32_t key_type; /* kh_key_type */
    uint32_t scheme;   /* kh_scheme */
    bool is_digest;
    const uint8_t *data;
    size_t len;
} kh_sign_question;

/*
 * KH_OK: may be signed. KH_E_UNSUPPORTED: unknown scheme. KH_E_SCHEME: the key cannot make such signatures.
 * KH_E_TOO_LARGE: over KH_MESSAGE_MAX. KH_E_INVALID: a digest of another length than the scheme's.
 * KH_E_USAGE: no usage of the key covers this.
 */
KH_MUST_USE kh_result kh_usage_may_sign(const kh_sign_question *question);

/*
 * Finite-field groups of RFC 7919 and RFC 3526 with 2048 bits or more. Call init once before
 * kh_usage_may_sign is asked about tls-dhe; KH_E_CRYPTO.
 */
KH_MUST_USE kh_result kh_dh_groups_init(void);
/* Whether p (big-endian, no leading zero) and g are such a group's. */
bool kh_dh_group_known(const uint8_t *p, size_t p_len, const uint8_t *g, size_t g_len);

#endif

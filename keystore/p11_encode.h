/* SPDX-License-Identifier: Apache-2.0 */
/* The encodings around a bare signature that tokens leave to their callers. Pure functions over what is
 * public. */
#ifndef KEYHOLD_KEYSTORE_P11_ENCODE_H
#define KEYHOLD_KEYSTORE_P11_ENCODE_H

#include <keyhold/types.h>

#define KH_DIGEST_INFO_MAX (19 + 64)

/* DigestInfo of a SHA-256, -384 or -512 hash (RFC 8017, section 9.2, note 1); its length. out:
 * KH_DIGEST_INFO_MAX bytes. */
size_t kh_encode_digest_info(const uint8_t *hash, size_t hash_len, uint8_t *out);
/* EMSA-PKCS1-v1_5 (RFC 8017, section 9.2): exactly len bytes. KH_E_INVALID: too few for it. */
KH_MUST_USE kh_result kh_encode_pkcs1(const uint8_t *hash, size_t hash_len, uint8_t *out, size_t len);
/*
 * EMSA-PSS (RFC 8017, section 9.1.1) with MGF1, one hash for all and a salt of its length, random; as many
 * bytes as a modulus of `bits` bits has. After kh_algorithms_init. KH_E_CRYPTO; KH_E_INVALID: modulus too
 * short.
 */
KH_MUST_USE kh_result kh_encode_pss(const uint8_t *hash, size_t hash_len, uint32_t bits, uint8_t *out);
/* DER of r and s, each of n bytes (at most 66); its length. 0: r or s is zero. out: 2 n + 9 bytes. */
size_t kh_encode_ecdsa(const uint8_t *rs, size_t n, uint8_t *out);

#endif

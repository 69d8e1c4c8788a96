/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TLS RSA key exchange (RFC 5246, 7.4.7.1) in constant time: from the block that RSA decryption gave to
 * 48 bytes, which are others if anything about the block is wrong: random to whoever has not the key, and
 * always the same for the same question, for else asking twice would tell. Nobody who gets the 48 bytes can
 * tell, so there is no oracle.
 */
#ifndef KEYHOLD_KEYSTORE_RSAKX_H
#define KEYHOLD_KEYSTORE_RSAKX_H

#include <keyhold/types.h>

#define KH_PREMASTER_LEN 48
#define KH_RSAKX_SECRET_LEN 48

/*
 * What the answers to faulty questions are made of: HMAC-SHA384 of the private key (PKCS#8 as the store has
 * it, so each agent that has the key gives the same answers). KH_E_CRYPTO. After kh_algorithms_init.
 */
KH_MUST_USE kh_result kh_rsakx_secret(const uint8_t *pkcs8, size_t pkcs8_len,
                                      uint8_t secret[KH_RSAKX_SECRET_LEN]);
/* The answer to a faulty question: HMAC-SHA384(secret, version || ciphertext). KH_E_CRYPTO. */
KH_MUST_USE kh_result kh_rsakx_random(const uint8_t secret[KH_RSAKX_SECRET_LEN], uint16_t version,
                                      const uint8_t *ciphertext, size_t ciphertext_len,
                                      uint8_t random[KH_PREMASTER_LEN]);
/*
 * The block to decrypt, `len` bytes like the modulus (at least 64): the ciphertext if it has the length of
 * the modulus and is below it, else a stand-in, and false. Length and value of a ciphertext are no secrets.
 */
bool kh_rsakx_block(const uint8_t *ciphertext, size_t ciphertext_len, const uint8_t *modulus, size_t len,
                    uint8_t *block);
/*
 * block: 0, 2, no zero byte, then zero and 48 bytes that begin with `version`, or else out is `random`.
 * usable false: random in any case. No branch and no address depends on block, random or usable.
 */
void kh_rsakx_select(const uint8_t *block, size_t len, uint16_t version, bool usable,
                     const uint8_t random[KH_PREMASTER_LEN], uint8_t out[KH_PREMASTER_LEN]);
/* The answer to a question whose decryption gave `block`: both of the above. KH_E_CRYPTO: out is not written.
 */
KH_MUST_USE kh_result kh_rsakx_answer(const uint8_t secret[KH_RSAKX_SECRET_LEN], uint16_t version,
                                      const uint8_t *ciphertext, size_t ciphertext_len, const uint8_t *block,
                                      size_t len, bool usable, uint8_t out[KH_PREMASTER_LEN]);

#endif

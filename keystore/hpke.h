/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HPKE (RFC 9180), base mode, single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, and AES-GCM with a key of
 * 16 bytes (for the RFC's vectors) or 32. Thread-safe; no state.
 */
#ifndef KEYHOLD_KEYSTORE_HPKE_H
#define KEYHOLD_KEYSTORE_HPKE_H

#include <keyhold/types.h>

#define KH_HPKE_ENC_LEN 32
#define KH_HPKE_TAG_LEN 16

typedef struct kh_hpke_suite {
    uint16_t aead_id; /* 1: AES-128-GCM, 2: AES-256-GCM */
    const char *cipher;
    size_t key_len;
} kh_hpke_suite;

extern const kh_hpke_suite kh_hpke_aes128, kh_hpke_aes256;

typedef struct kh_hpke_context {
    uint8_t shared_secret[32];
    uint8_t key[32];
    uint8_t base_nonce[12];
} kh_hpke_context;

/*
 * ephemeral_private: 32 bytes for a vector, NULL for a fresh one. out: KH_HPKE_ENC_LEN + len +
 * KH_HPKE_TAG_LEN bytes. context: what was derived, for tests, or NULL.
 */
KH_MUST_USE kh_result kh_hpke_seal(const kh_hpke_suite *suite, const uint8_t public_key[32],
                                   const uint8_t *ephemeral_private, const uint8_t *info, size_t info_len,
                                   const uint8_t *aad, size_t aad_len, const uint8_t *plain, size_t len,
                                   uint8_t *out, kh_hpke_context *context);
/* plain: sealed_len - KH_HPKE_ENC_LEN - KH_HPKE_TAG_LEN bytes, wiped on failure. KH_E_CRYPTO. */
KH_MUST_USE kh_result kh_hpke_open(const kh_hpke_suite *suite, const uint8_t private_key[32],
                                   const uint8_t *info, size_t info_len, const uint8_t *aad, size_t aad_len,
                                   const uint8_t *sealed, size_t sealed_len, uint8_t *plain);

#endif

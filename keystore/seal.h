/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing: AES-256-GCM with a random nonce. sealed = nonce (12) || ciphertext || tag (16). Not thread-safe.
 */
#ifndef KEYHOLD_KEYSTORE_SEAL_H
#define KEYHOLD_KEYSTORE_SEAL_H

#include <keyhold/types.h>

#define KH_SEAL_KEY_LEN 32
#define KH_SEAL_OVERHEAD 28

typedef struct kh_sealer kh_sealer;

/* Keeps the key's schedule, so that opening a row costs no key setup. KH_E_MEMORY, KH_E_CRYPTO. */
KH_MUST_USE kh_result kh_sealer_new(const uint8_t key[KH_SEAL_KEY_LEN], kh_sealer **sealer);
void kh_sealer_free(kh_sealer *sealer);
/* sealed: at least len + KH_SEAL_OVERHEAD bytes. */
KH_MUST_USE kh_result kh_seal(kh_sealer *sealer, const uint8_t *aad, size_t aad_len, const uint8_t *plain,
                              size_t len, uint8_t *sealed);
/* plain: at least sealed_len - KH_SEAL_OVERHEAD bytes, wiped on failure. KH_E_DAMAGED: anything was changed.
 */
KH_MUST_USE kh_result kh_unseal(kh_sealer *sealer, const uint8_t *aad, size_t aad_len, const uint8_t *sealed,
                                size_t sealed_len, uint8_t *plain);

#endif

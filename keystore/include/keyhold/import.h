/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wrapping a private key for import, so that nothing between keyholdctl and the keeper sees it: HPKE (RFC 9180) base mode,
 * single shot, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, to the store's import key.
 *   info = "keyhold import 1"
 *   aad  = NAME "\n" usage in decimal "\n" flags in decimal     (so nobody on the way can change what the key is for)
 *          and, if any of these is not 0 or empty, "\n" tier "\n" place "\n" not_before "\n" expires, numbers in decimal
 *   plaintext = PKCS#8 PrivateKeyInfo, DER
 *   sealed = enc (32 bytes) || ciphertext || tag (16 bytes)
 * Needs only OpenSSL; used by keyholdctl (seal) and by the keeper (open).
 */
#ifndef KEYHOLD_IMPORT_H
#define KEYHOLD_IMPORT_H

#include <keyhold/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KH_IMPORT_PUBLIC_LEN 32
#define KH_IMPORT_OVERHEAD 48 /* sealed length = plaintext length + this */
#define KH_IMPORT_PKCS8_MAX 4096

/* sealed: at least pkcs8_len + KH_IMPORT_OVERHEAD bytes. KH_E_TOO_LARGE, KH_E_CRYPTO. */
KH_MUST_USE kh_result kh_import_seal(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], const char *name, uint32_t usage,
                                     uint32_t flags, const uint8_t *pkcs8, size_t pkcs8_len, uint8_t *sealed, size_t cap,
                                     size_t *sealed_len);
/*
 * The keeper's half. pkcs8: at least sealed_len bytes of memory that the caller wipes.
 * KH_E_CRYPTO: not sealed to this key, or anything was changed on the way.
 */
KH_MUST_USE kh_result kh_import_open(const uint8_t import_private[32], const char *name, uint32_t usage, uint32_t flags,
                                     const uint8_t *sealed, size_t sealed_len, uint8_t *pkcs8, size_t cap,
                                     size_t *pkcs8_len);
/* All that is bound to the key: what it is for, where it is to live, and when it is valid. */
typedef struct kh_import_terms {
    const char *name;
    uint32_t usage, flags, tier;
    const char *place; /* NULL: empty */
    uint64_t not_before, expires;
} kh_import_terms;

/* As above, with all of it. */
KH_MUST_USE kh_result kh_import_seal_as(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], const kh_import_terms *terms,
                                        const uint8_t *pkcs8, size_t pkcs8_len, uint8_t *sealed, size_t cap,
                                        size_t *sealed_len);
KH_MUST_USE kh_result kh_import_open_as(const uint8_t import_private[32], const kh_import_terms *terms, const uint8_t *sealed,
                                        size_t sealed_len, uint8_t *pkcs8, size_t cap, size_t *pkcs8_len);
/* What `keyholdctl init` prints and pins: "SHA256:" and 43 characters of base64 without padding (51 with the zero). */
void kh_import_fingerprint(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], char out[52]);

#ifdef __cplusplus
}
#endif
#endif

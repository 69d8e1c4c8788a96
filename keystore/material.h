/* SPDX-License-Identifier: Apache-2.0 */
/* Private keys as bytes: parsing, generating, judging and canonical encoding. Thread-safe; no state. */
#ifndef KEYHOLD_KEYSTORE_MATERIAL_H
#define KEYHOLD_KEYSTORE_MATERIAL_H

#include <keyhold/import.h>
#include <openssl/types.h>

/* One private key in canonical form. Holds a secret: kh_material_wipe. */
typedef struct kh_material {
    kh_key_type type;
    unsigned bits;
    uint8_t id[KH_KEY_ID_LEN];
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len;
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX]; /* PKCS#8 PrivateKeyInfo, DER, without attributes; of a token's key: its locator */
    size_t pkcs8_len;
    bool adopted; /* of a token's key: made elsewhere, and not destroyed from here */
} kh_material;

void kh_material_wipe(kh_material *material);
/* Parses PKCS#8 that must fill the input to the last byte. KH_E_MALFORMED, KH_E_UNSUPPORTED. Caller frees. */
KH_MUST_USE kh_result kh_pkcs8_parse(const uint8_t *der, size_t len, EVP_PKEY **pkey);
/*
 * The same for what kh_material_encode made, of that type: a third of the time, since OpenSSL need not find
 * out what it is. Of EC keys the curve is not compared. KH_E_CRYPTO: a key of another type.
 */
KH_MUST_USE kh_result kh_pkcs8_parse_as(kh_key_type type, const uint8_t *der, size_t len, EVP_PKEY **pkey);
/*
 * Judges a key from outside: KH_E_WEAK (RSA below 2048 bits, public exponent below 65537 or even or above 64
 * bits, equal primes, parts that do not belong together), KH_E_UNSUPPORTED (RSA above 4096 bits, another
 * curve or type). Slow for RSA.
 */
KH_MUST_USE kh_result kh_material_judge(const EVP_PKEY *pkey);
/* pkey stays the caller's. KH_E_UNSUPPORTED, KH_E_TOO_LARGE, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_material_encode(const EVP_PKEY *pkey, kh_material *material);
/* All but the private key, of a canonical SubjectPublicKeyInfo. KH_E_MALFORMED: it is none; KH_E_UNSUPPORTED. */
KH_MUST_USE kh_result kh_material_public(const uint8_t *spki, size_t len, kh_material *material);
/* Whether such a key may be made: RSA of an even size of 2048 to 4096 bits, or a curve with its own size (0
 * is taken). */
bool kh_material_possible(uint32_t type, uint32_t *bits);
/* Generates; RSA-4096 may take seconds. */
KH_MUST_USE kh_result kh_material_generate(kh_key_type type, unsigned bits, kh_material *material);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From OpenSSL's words for a signature (digest, padding, salt) to the protocol's scheme, and to the AlgorithmIdentifier
 * that certificates and requests carry.
 */
#ifndef KH_PROVIDER_SCHEME_H
#define KH_PROVIDER_SCHEME_H

#include <keyhold/protocol.h>

/* Length in bytes of the digest of that OpenSSL name ("SHA256", "SHA2-256", "sha-256", …): 32, 48, 64; 0: not ours. */
size_t kh_prov_digest_len(const char *name);
/* "SHA256", …; NULL. */
const char *kh_prov_digest_name(size_t digest_len);
/* The scheme for a key type, a digest length (ignored for Ed25519) and, for RSA, PSS or not. KH_SCHEME_NONE: none. */
kh_scheme kh_prov_scheme(kh_key_type type, size_t digest_len, bool pss);
/* Writes the DER AlgorithmIdentifier of a scheme; at most 72 bytes. Returns its length, 0 for an unknown scheme. */
size_t kh_prov_algorithm_id(kh_scheme scheme, uint8_t *der, size_t cap);

#endif

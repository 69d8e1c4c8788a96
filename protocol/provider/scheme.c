/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables between OpenSSL's names and the protocol's signature schemes.
 */
#include "scheme.h"

#include <string.h>
#include <strings.h>

static const struct {
    const char *name;
    size_t len;
} digests[] = {
    {"SHA256", 32},  {"SHA2-256", 32}, {"SHA-256", 32}, {"2.16.840.1.101.3.4.2.1", 32},
    {"SHA384", 48},  {"SHA2-384", 48}, {"SHA-384", 48}, {"2.16.840.1.101.3.4.2.2", 48},
    {"SHA512", 64},  {"SHA2-512", 64}, {"SHA-512", 64}, {"2.16.840.1.101.3.4.2.3", 64},
};

size_t kh_prov_digest_len(const char *name)
{
    for (size_t i = 0; name != NULL && i < sizeof(digests) / sizeof(digests[0]); i++) {
        if (strcasecmp(name, digests[i].name) == 0) {
            return digests[i].len;
        }
    }
    return 0;
}

const char *kh_prov_digest_name(size_t digest_len)
{
    for (size_t i = 0; i < sizeof(digests) / sizeof(digests[0]); i++) {
        if (digest_len == digests[i].len) {
            return digests[i].name;
        }
    }
    return NULL;
}

static const struct {
    kh_scheme scheme;
    kh_key_type type; /* any EC type is P-256 here: outside TLS 1.3 the scheme gives the hash only */
    size_t digest_len;
    bool pss;
} schemes[] = {
    {KH_RSA_PKCS1_SHA256, KH_KEY_RSA, 32, false},    {KH_RSA_PKCS1_SHA384, KH_KEY_RSA, 48, false},
    {KH_RSA_PKCS1_SHA512, KH_KEY_RSA, 64, false},    {KH_RSA_PSS_RSAE_SHA256, KH_KEY_RSA, 32, true},
    {KH_RSA_PSS_RSAE_SHA384, KH_KEY_RSA, 48, true},  {KH_RSA_PSS_RSAE_SHA512, KH_KEY_RSA, 64, true},
    {KH_ECDSA_SHA256, KH_KEY_P256, 32, false},       {KH_ECDSA_SHA384, KH_KEY_P256, 48, false},
    {KH_ECDSA_SHA512, KH_KEY_P256, 64, false},       {KH_ED25519, KH_KEY_ED25519, 0, false},
};

kh_scheme kh_prov_scheme(kh_key_type type, size_t digest_len, bool pss)
{
    if (type == KH_KEY_P384 || type == KH_KEY_P521) {
        type = KH_KEY_P256;
    }
    if (type == KH_KEY_ED25519) {
        return KH_ED25519;
    }
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (schemes[i].type == type && schemes[i].digest_len == digest_len && schemes[i].pss == pss) {
            return schemes[i].scheme;
        }
    }
    return KH_SCHEME_NONE;
}

/* RFC 8017 A.2 (RSA, with NULL), RFC 5758 3.2 (ECDSA, no parameters), RFC 8410 3 (Ed25519, no parameters). */
static const uint8_t rsa_pkcs1[] = {0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86,
                                    0xf7, 0x0d, 0x01, 0x01, 0x00, 0x05, 0x00};
static const uint8_t ecdsa[] = {0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x00};
static const uint8_t ed25519[] = {0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70};
static const uint8_t rsa_pss[] = {
    0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34, 0xa0, 0x0f,
    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x00, 0x05, 0x00, 0xa1, 0x1c,
    0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09,
    0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x00, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x00};

enum { PKCS1_HASH = 12, ECDSA_HASH = 11, PSS_HASH = 29, PSS_MGF_HASH = 59, PSS_SALT = 66 };

size_t kh_prov_algorithm_id(kh_scheme scheme, uint8_t *der, size_t cap)
{
    const size_t hash_len = kh_scheme_hash_len((int)scheme);
    const uint8_t nth = hash_len == 32 ? 0 : hash_len == 48 ? 1 : 2; /* SHA-256, -384, -512 are neighbours everywhere */
    const uint8_t *form = NULL;
    size_t len = 0;

    switch (scheme) {
    case KH_RSA_PKCS1_SHA256:
    case KH_RSA_PKCS1_SHA384:
    case KH_RSA_PKCS1_SHA512:
        form = rsa_pkcs1, len = sizeof(rsa_pkcs1);
        break;
    case KH_ECDSA_SHA256:
    case KH_ECDSA_SHA384:
    case KH_ECDSA_SHA512:
        form = ecdsa, len = sizeof(ecdsa);
        break;
    case KH_RSA_PSS_RSAE_SHA256:
    case KH_RSA_PSS_RSAE_SHA384:
    case KH_RSA_PSS_RSAE_SHA512:
        form = rsa_pss, len = sizeof(rsa_pss);
        break;
    case KH_ED25519:
        form = ed25519, len = sizeof(ed25519);
        break;
    default:
        return 0;
    }
    if (len > cap) {
        return 0;
    }
    memcpy(der, form, len);
    if (form == rsa_pkcs1) {
        der[PKCS1_HASH] = 11 + nth;
    } else if (form == ecdsa) {
        der[ECDSA_HASH] = 2 + nth;
    } else if (form == rsa_pss) {
        der[PSS_HASH] = der[PSS_MGF_HASH] = 1 + nth;
        der[PSS_SALT] = (uint8_t)hash_len;
    }
    return len;
}

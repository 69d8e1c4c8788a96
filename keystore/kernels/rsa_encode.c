/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RSA signature encodings of a digest: EMSA-PKCS1-v1_5 and EMSA-PSS (RFC 8017, 9.2 and 9.1.1; MGF1,
 * appendix B.2.1). The salt is as long as the digest, as TLS 1.3 asks.
 */
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include "private.h"

#define HASH_MAX 64

typedef unsigned char *hash_fn(const unsigned char *in, size_t len, unsigned char *out);

typedef struct encoding {
    kh_scheme scheme;
    size_t hash_len;
    hash_fn *hash;
    bool pss;
    uint8_t prefix[19]; /* DER of DigestInfo up to the digest (RFC 8017, 9.2, note 1) */
} encoding;

#define PREFIX(id, len)                                                                                      \
    {                                                                                                        \
        0x30, 0x11 + len, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, id, 0x05,  \
            0x00, 0x04, len                                                                                  \
    }

static const encoding encodings[] = {
    {KH_RSA_PKCS1_SHA256, 32, SHA256, false, PREFIX(1, 32)},
    {KH_RSA_PKCS1_SHA384, 48, SHA384, false, PREFIX(2, 48)},
    {KH_RSA_PKCS1_SHA512, 64, SHA512, false, PREFIX(3, 64)},
    {KH_RSA_PSS_RSAE_SHA256, 32, SHA256, true, {0}},
    {KH_RSA_PSS_RSAE_SHA384, 48, SHA384, true, {0}},
    {KH_RSA_PSS_RSAE_SHA512, 64, SHA512, true, {0}},
};

static kh_result encode_pkcs1(const encoding *enc, const uint8_t *digest, uint8_t *block, size_t len)
{
    size_t tail = sizeof(enc->prefix) + enc->hash_len;

    if (len < tail + 11)
        return KH_E_INVALID;
    memset(block, 0xff, len);
    block[0] = 0;
    block[1] = 1;
    block[len - tail - 1] = 0;
    memcpy(block + len - tail, enc->prefix, sizeof(enc->prefix));
    memcpy(block + len - enc->hash_len, digest, enc->hash_len);
    return KH_OK;
}

/* mask[0..len) ^= MGF1(seed) */
static void mgf1_xor(const encoding *enc, const uint8_t *seed, uint8_t *mask, size_t len)
{
    uint8_t in[HASH_MAX + 4] = {0}, out[HASH_MAX] = {0};

    memcpy(in, seed, enc->hash_len);
    for (size_t pos = 0, counter = 0; pos < len; counter++) {
        in[enc->hash_len + 2] = (uint8_t)(counter >> 8);
        in[enc->hash_len + 3] = (uint8_t)counter;
        enc->hash(in, enc->hash_len + 4, out);
        for (size_t i = 0; i < enc->hash_len && pos < len; i++, pos++)
            mask[pos] ^= out[i];
    }
}

static kh_result encode_pss(const encoding *enc, const uint8_t *digest, size_t mod_bits, uint8_t *block,
                            size_t len)
{
    size_t h = enc->hash_len, em_bits = mod_bits - 1, em_len = (em_bits + 7) / 8, db_len = em_len - h - 1;
    uint8_t in[8 + 2 * HASH_MAX] = {0}, *salt = in + 8 + h, *em = block + (len - em_len);

    if (em_len < 2 * h + 2)
        return KH_E_INVALID;
    if (RAND_bytes(salt, (int)h) != 1)
        return KH_E_CRYPTO;
    memcpy(in + 8, digest, h);
    memset(block, 0, len);
    em[db_len - h - 1] = 1;
    memcpy(em + db_len - h, salt, h);
    enc->hash(in, 8 + 2 * h, em + db_len);
    em[em_len - 1] = 0xbc;
    mgf1_xor(enc, em + db_len, em, db_len);
    em[0] &= (uint8_t)(0xff >> (8 * em_len - em_bits));
    return KH_OK;
}

kh_result kh_rsa_encode(kh_scheme scheme, const uint8_t *digest, size_t mod_bits, uint8_t *block, size_t len)
{
    for (size_t i = 0; i < sizeof(encodings) / sizeof(encodings[0]); i++) {
        if (encodings[i].scheme != scheme)
            continue;
        return encodings[i].pss ? encode_pss(&encodings[i], digest, mod_bits, block, len)
                                : encode_pkcs1(&encodings[i], digest, block, len);
    }
    return KH_E_SCHEME;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The TLS RSA key exchange in constant time: see rsakx.h. */
#include "rsakx.h"
#include "algorithms.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <string.h>

/* Keeps the compiler from learning that a value is a mask, and from making a branch of it. */
static inline uint32_t opaque(uint32_t value)
{
    __asm__ volatile("" : "+r"(value));
    return value;
}

/* All ones if value is 0, else 0; value below 2^31. */
static inline uint32_t mask_if_zero(uint32_t value)
{
    return opaque(0u - (opaque(value - 1) >> 31));
}

/* HMAC-SHA384 of two pieces. */
static kh_result hmac(const uint8_t *key, size_t key_len, const uint8_t *first, size_t first_len,
                      const uint8_t *second, size_t second_len, uint8_t out[48])
{
    static char sha384[] = "SHA384";
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, sha384, 0),
                                 OSSL_PARAM_construct_end()};
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(kh_algorithms_hmac());
    size_t len = 0;
    bool good = ctx != NULL && EVP_MAC_init(ctx, key, key_len, params) == 1 &&
                EVP_MAC_update(ctx, first, first_len) == 1 &&
                (second_len == 0 || EVP_MAC_update(ctx, second, second_len) == 1) &&
                EVP_MAC_final(ctx, out, &len, 48) == 1 && len == 48;

    EVP_MAC_CTX_free(ctx);
    return good ? KH_OK : KH_E_CRYPTO;
}

kh_result kh_rsakx_secret(const uint8_t *pkcs8, size_t pkcs8_len, uint8_t secret[KH_RSAKX_SECRET_LEN])
{
    static const uint8_t label[] = "keyhold tls-rsa-kx 1";

    return hmac(label, sizeof(label) - 1, pkcs8, pkcs8_len, NULL, 0, secret);
}

kh_result kh_rsakx_random(const uint8_t secret[KH_RSAKX_SECRET_LEN], uint16_t version,
                          const uint8_t *ciphertext, size_t ciphertext_len, uint8_t random[KH_PREMASTER_LEN])
{
    const uint8_t number[2] = {(uint8_t)(version >> 8), (uint8_t)version};

    return hmac(secret, KH_RSAKX_SECRET_LEN, number, sizeof(number), ciphertext, ciphertext_len, random);
}

bool kh_rsakx_block(const uint8_t *ciphertext, size_t ciphertext_len, const uint8_t *modulus, size_t len,
                    uint8_t *block)
{
    if (ciphertext_len == len && memcmp(ciphertext, modulus, len) < 0) {
        memcpy(block, ciphertext, len);
        return true;
    }
    memset(block, 0x5a, len);
    block[0] = 0;
    return false;
}

void kh_rsakx_select(const uint8_t *block, size_t len, uint16_t version, bool usable,
                     const uint8_t random[KH_PREMASTER_LEN], uint8_t out[KH_PREMASTER_LEN])
{
    const uint8_t *secret = block + len - KH_PREMASTER_LEN;
    uint32_t bad = (uint32_t)usable ^ 1u;
    uint32_t keep = 0;

    bad |= block[0];
    bad |= block[1] ^ 2u;
    for (size_t i = 2; i < len - KH_PREMASTER_LEN - 1; i++) {
        bad |= mask_if_zero(block[i]) & 1u;
    }
    bad |= secret[-1];
    bad |= secret[0] ^ (uint32_t)(version >> 8);
    bad |= secret[1] ^ (uint32_t)(version & 0xff);
    keep = mask_if_zero(bad);
    for (size_t i = 0; i < KH_PREMASTER_LEN; i++) {
        out[i] = (uint8_t)((secret[i] & keep) | (random[i] & ~keep));
    }
}

kh_result kh_rsakx_answer(const uint8_t secret[KH_RSAKX_SECRET_LEN], uint16_t version,
                          const uint8_t *ciphertext, size_t ciphertext_len, const uint8_t *block, size_t len,
                          bool usable, uint8_t out[KH_PREMASTER_LEN])
{
    uint8_t random[KH_PREMASTER_LEN];
    kh_result result = kh_rsakx_random(secret, version, ciphertext, ciphertext_len, random);

    if (result == KH_OK) {
        kh_rsakx_select(block, len, version, usable, random, out);
    }
    OPENSSL_cleanse(random, sizeof(random));
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The encodings around a bare signature that tokens leave to their callers. */
#include "p11_encode.h"

#include "algorithms.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

#define HASH_MAX 64
#define PREFIX_LEN 19
#define PKCS1_PADDING_MIN 8
#define DER_INTEGER 0x02
#define DER_SEQUENCE 0x30

size_t kh_encode_digest_info(const uint8_t *hash, size_t hash_len, uint8_t *out)
{
    /* SEQUENCE { SEQUENCE { OID 2.16.840.1.101.3.4.2.x, NULL }, OCTET STRING } */
    uint8_t prefix[PREFIX_LEN] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01,
                                  0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20};

    prefix[1] = (uint8_t)(PREFIX_LEN - 2 + hash_len);
    prefix[14] = (uint8_t)(hash_len / 16 - 1); /* 1, 2, 3: SHA-256, -384, -512 */
    prefix[18] = (uint8_t)hash_len;
    memcpy(out, prefix, PREFIX_LEN);
    memcpy(out + PREFIX_LEN, hash, hash_len);
    return PREFIX_LEN + hash_len;
}

kh_result kh_encode_pkcs1(const uint8_t *hash, size_t hash_len, uint8_t *out, size_t len)
{
    size_t info_len = PREFIX_LEN + hash_len;

    if (len < info_len + PKCS1_PADDING_MIN + 3) {
        return KH_E_INVALID;
    }
    memset(out, 0xff, len);
    out[0] = 0x00;
    out[1] = 0x01;
    out[len - info_len - 1] = 0x00;
    kh_encode_digest_info(hash, hash_len, out + len - info_len);
    return KH_OK;
}

/* XORs MGF1 of the seed into out. */
static bool mask(const EVP_MD *md, const uint8_t *seed, size_t seed_len, uint8_t *out, size_t len)
{
    uint8_t input[HASH_MAX + 4], block[HASH_MAX];

    memcpy(input, seed, seed_len);
    for (uint32_t counter = 0; len > 0; counter++) {
        size_t n = len < seed_len ? len : seed_len;

        input[seed_len] = (uint8_t)(counter >> 24);
        input[seed_len + 1] = (uint8_t)(counter >> 16);
        input[seed_len + 2] = (uint8_t)(counter >> 8);
        input[seed_len + 3] = (uint8_t)counter;
        if (EVP_Digest(input, seed_len + 4, block, NULL, md, NULL) != 1) {
            return false;
        }
        for (size_t i = 0; i < n; i++) {
            out[i] ^= block[i];
        }
        out += n;
        len -= n;
    }
    return true;
}

kh_result kh_encode_pss(const uint8_t *hash, size_t hash_len, uint32_t bits, uint8_t *out)
{
    const EVP_MD *md = kh_algorithms_md(hash_len);
    size_t len = (bits - 1 + 7) / 8, db_len = 0;
    uint8_t message[8 + 2 * HASH_MAX] = {0}, *salt = message + 8 + hash_len, *h = NULL;

    if (len < 2 * hash_len + 2 || md == NULL) {
        return KH_E_INVALID;
    }
    if (bits % 8 == 1) { /* the encoding has a byte less than the modulus */
        *out++ = 0;
    }
    db_len = len - hash_len - 1;
    h = out + db_len;
    memcpy(message + 8, hash, hash_len);
    if (RAND_bytes(salt, (int)hash_len) != 1 ||
        EVP_Digest(message, 8 + 2 * hash_len, h, NULL, md, NULL) != 1) {
        return KH_E_CRYPTO;
    }
    memset(out, 0, db_len);
    out[db_len - hash_len - 1] = 0x01;
    memcpy(out + db_len - hash_len, salt, hash_len);
    if (!mask(md, h, hash_len, out, db_len)) {
        return KH_E_CRYPTO;
    }
    out[0] &= (uint8_t)(0xff >> (8 * len - (bits - 1)));
    out[len - 1] = 0xbc;
    return KH_OK;
}

/* One INTEGER from n bytes; its length, 0 for zero. */
static size_t encode_integer(const uint8_t *value, size_t n, uint8_t *out)
{
    size_t sign = 0;

    while (n > 0 && *value == 0) {
        value++;
        n--;
    }
    if (n == 0) {
        return 0;
    }
    sign = *value >= 0x80;
    out[0] = DER_INTEGER;
    out[1] = (uint8_t)(n + sign);
    out[2] = 0;
    memcpy(out + 2 + sign, value, n);
    return 2 + sign + n;
}

size_t kh_encode_ecdsa(const uint8_t *rs, size_t n, uint8_t *out)
{
    uint8_t body[2 * (66 + 3)];
    size_t head = 2, r_len = encode_integer(rs, n, body), s_len = 0;

    if (r_len == 0) {
        return 0;
    }
    s_len = encode_integer(rs + n, n, body + r_len);
    if (s_len == 0) {
        return 0;
    }
    out[0] = DER_SEQUENCE;
    if (r_len + s_len >= 0x80) {
        out[1] = 0x81;
        head = 3;
    }
    out[head - 1] = (uint8_t)(r_len + s_len);
    memcpy(out + head, body, r_len + s_len);
    return head + r_len + s_len;
}

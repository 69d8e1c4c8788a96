/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ECDSA nonces by RFC 6979, 3.2: HMAC with the hash of the scheme over key and digest. For test vectors;
 * the hedged nonces that are used otherwise are made in the lanes (ecdsa.h).
 */
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "private.h"

/* The HMAC-DRBG of RFC 6979: K and V. */
typedef struct drbg {
    const EVP_MD *md;
    unsigned len;
    uint8_t k[EVP_MAX_MD_SIZE], v[EVP_MAX_MD_SIZE];
} drbg;

static bool drbg_next(drbg *d)
{
    return HMAC(d->md, d->k, (int)d->len, d->v, d->len, d->v, NULL) != NULL;
}

/* K = HMAC_K(V, tag, data); V = HMAC_K(V) */
static bool drbg_update(drbg *d, uint8_t tag, const uint8_t *data, size_t data_len)
{
    uint8_t in[EVP_MAX_MD_SIZE + 1 + 2 * 64] = {0};
    bool ok = false;

    memcpy(in, d->v, d->len);
    in[d->len] = tag;
    memcpy(in + d->len + 1, data, data_len);
    ok = HMAC(d->md, d->k, (int)d->len, in, d->len + 1 + data_len, d->k, NULL) != NULL && drbg_next(d);
    OPENSSL_cleanse(in, sizeof(in));
    return ok;
}

/* 0 < a < b, big-endian, without a branch on a. */
static bool in_range(const uint8_t *a, const uint8_t *b, size_t len)
{
    int borrow = 0, any = 0;

    for (size_t i = len; i-- > 0;) {
        borrow = (a[i] - b[i] + borrow) >> 8;
        any |= a[i];
    }
    return (borrow & 1) != 0 && any != 0;
}

/* bits2octets: the digest's leftmost bits, less the order at most once; scalars are whole bytes here. */
static void digest_to_scalar(uint8_t *out, const kh_lane *lane, const uint8_t *order, size_t len)
{
    size_t n = lane->in_len < len ? lane->in_len : len;
    int borrow = 0;

    memset(out, 0, len);
    memcpy(out + len - n, lane->in, n);
    if (memcmp(out, order, len) < 0) /* digests are public */
        return;
    for (size_t i = len; i-- > 0;) {
        int d = out[i] - order[i] + borrow;

        out[i] = (uint8_t)d;
        borrow = d >> 8;
    }
}

kh_result kh_nonce_rfc6979(const kh_lane *lane, const uint8_t *order, size_t scalar_len, uint8_t out[64])
{
    drbg d = {0};
    uint8_t seed[2 * 64] = {0}, *k = out + 64 - scalar_len;
    bool ok = false;

    memset(out, 0, 64);
    d.md = lane->in_len == 32 ? EVP_sha256() : lane->in_len == 48 ? EVP_sha384() : EVP_sha512();
    d.len = (unsigned)EVP_MD_get_size(d.md);
    memset(d.v, 1, d.len);
    memcpy(seed, lane->key->u.ec[0].d_bytes, scalar_len);
    digest_to_scalar(seed + scalar_len, lane, order, scalar_len);
    ok = drbg_update(&d, 0, seed, 2 * scalar_len) && drbg_update(&d, 1, seed, 2 * scalar_len);
    while (ok) {
        size_t have = 0;

        for (; ok && have < scalar_len; have += d.len) {
            ok = drbg_next(&d);
            memcpy(k + have, d.v, scalar_len - have < d.len ? scalar_len - have : d.len);
        }
        if (!ok || in_range(k, order, scalar_len))
            break;
        ok = drbg_update(&d, 0, seed, 0);
    }
    OPENSSL_cleanse(&d, sizeof(d));
    OPENSSL_cleanse(seed, sizeof(seed));
    return ok ? KH_OK : KH_E_CRYPTO;
}

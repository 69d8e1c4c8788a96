/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-512 (FIPS 180-4, 6.4) of eight messages at once, one in each lane. The messages may differ in length:
 * a lane that is done keeps its state. Lengths are public, contents secret. Own code since one hash of a
 * few blocks costs OpenSSL's EVP as much as eight do here, and since EVP's context keeps the last block,
 * which may hold a key, where it cannot be wiped.
 */
#ifndef KH_KERNELS_SHA512_H
#define KH_KERNELS_SHA512_H

#include <string.h>

#include "private.h"

#define KH_SHA512_BLOCK 128

/* A message: a head that is put together by the caller, and a body that stays where it is. */
typedef struct kh_sha512_input {
    uint8_t head[KH_SHA512_BLOCK];
    size_t head_len;
    const uint8_t *body;
    size_t body_len;
} kh_sha512_input;

typedef struct kh_sha512_work {
    kh_sha512_input input[KH_LANES];
    kh_vec w[16], state[8], saved[8];
    uint8_t block[KH_SHA512_BLOCK];
    uint8_t digest[KH_LANES][64];
} kh_sha512_work;

static const uint64_t kh_sha512_k[80] = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538,
    0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
    0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
    0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab,
    0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
    0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed,
    0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218,
    0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
    0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373,
    0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c,
    0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
    0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc,
    0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};

static const uint64_t kh_sha512_start[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

#define KH_ROR(x, n) (((x) >> (n)) | ((x) << (64 - (n))))

/* Block number `index` of a message, with the padding. */
static void kh_sha512_block(uint8_t *block, const kh_sha512_input *in, size_t index)
{
    size_t pos = index * KH_SHA512_BLOCK, len = in->head_len + in->body_len, used = 0;

    if (pos < in->head_len) {
        used = in->head_len - pos < KH_SHA512_BLOCK ? in->head_len - pos : KH_SHA512_BLOCK;
        memcpy(block, in->head + pos, used);
    }
    if (used < KH_SHA512_BLOCK && pos + used < len) {
        size_t n = len - pos - used < KH_SHA512_BLOCK - used ? len - pos - used : KH_SHA512_BLOCK - used;

        memcpy(block + used, in->body + (pos + used - in->head_len), n);
        used += n;
    }
    memset(block + used, 0, KH_SHA512_BLOCK - used);
    if (pos <= len && len < pos + KH_SHA512_BLOCK)
        block[len - pos] = 0x80;
    if (index == (len + 16) / KH_SHA512_BLOCK)
        for (unsigned i = 0; i < 8; i++)
            block[KH_SHA512_BLOCK - 1 - i] = (uint8_t)((uint64_t)len * 8 >> (8 * i));
}

static void kh_sha512_compress(kh_vec *state, kh_vec *w)
{
    kh_vec a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6],
           h = state[7];

    _Pragma("GCC unroll 16") for (unsigned t = 0; t < 80; t++)
    {
        kh_vec t1, t2;

        if (t >= 16) {
            kh_vec x = w[(t + 1) % 16], y = w[(t + 14) % 16];

            w[t % 16] += (KH_ROR(x, 1) ^ KH_ROR(x, 8) ^ (x >> 7)) + w[(t + 9) % 16] +
                         (KH_ROR(y, 19) ^ KH_ROR(y, 61) ^ (y >> 6));
        }
        t1 = h + (KH_ROR(e, 14) ^ KH_ROR(e, 18) ^ KH_ROR(e, 41)) + (g ^ (e & (f ^ g))) +
             kh_vec_all(kh_sha512_k[t]) + w[t % 16];
        t2 = (KH_ROR(a, 28) ^ KH_ROR(a, 34) ^ KH_ROR(a, 39)) + ((a & b) | (c & (a | b)));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

/* Hashes input[0..n) to digest[0..n); the other lanes hash lane 0's. */
static void kh_sha512(kh_sha512_work *s, size_t n)
{
    size_t blocks[KH_LANES], most = 0;

    for (unsigned i = 0; i < 8; i++)
        s->state[i] = kh_vec_all(kh_sha512_start[i]);
    for (size_t l = 0; l < n; l++) {
        blocks[l] = (s->input[l].head_len + s->input[l].body_len + 16) / KH_SHA512_BLOCK + 1;
        most = blocks[l] > most ? blocks[l] : most;
    }
    for (size_t index = 0; index < most; index++) {
        kh_vec going = {0};

        for (size_t l = 0; l < n; l++) {
            if (index >= blocks[l])
                continue;
            going[l] = UINT64_MAX;
            kh_sha512_block(s->block, &s->input[l], index);
            for (unsigned i = 0; i < 16; i++) {
                uint64_t word;

                memcpy(&word, s->block + 8 * i, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                word = __builtin_bswap64(word);
#endif
                s->w[i][l] = word;
            }
        }
        memcpy(s->saved, s->state, sizeof(s->saved));
        kh_sha512_compress(s->state, s->w);
        KH_FAULT(HASH, s->state, 8);
        for (unsigned i = 0; i < 8; i++)
            s->state[i] = kh_vec_select(going, s->state[i], s->saved[i]);
    }
    for (size_t l = 0; l < n; l++) {
        for (unsigned i = 0; i < 8; i++) {
            uint64_t word = s->state[i][l];

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
            word = __builtin_bswap64(word);
#endif
            memcpy(s->digest[l] + 8 * i, &word, 8);
        }
    }
}

#endif

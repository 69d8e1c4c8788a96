/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic modulo 2^255 - 19 in eight lanes: five limbs of 51 bits, as in Bernstein, Duif, Lange, Schwabe
 * and Yang, "High-speed high-security signatures" (2011). VPMADD52 splits a product at bit 52, one above
 * the limb, so the high halves count double; they are gathered by themselves and doubled once.
 *
 * Every result has limbs below 2^51 + 2^17; any two such numbers may be multiplied.
 */
#ifndef KH_KERNELS_FIELD25519_H
#define KH_KERNELS_FIELD25519_H

#include "inverse.h"

#define F25519_LEN 5
#define F25519_BITS 51
#define F25519_MASK ((UINT64_C(1) << F25519_BITS) - 1)

/* r = t, limbs below 2^63, with one round of carries; the top one comes back times 19. */
KH_INLINE void f25519_carry(kh_vec *r, const kh_vec *t)
{
    kh_vec top = t[4] >> F25519_BITS, mask = kh_vec_all(F25519_MASK), c[F25519_LEN];

    c[0] = (t[0] & mask) + top + (top << 1) + (top << 4);
    KH_UNROLL_FE
    for (int i = 1; i < F25519_LEN; i++)
        c[i] = (t[i] & mask) + (t[i - 1] >> F25519_BITS);
    kh_fe_copy(r, c, F25519_LEN);
}

/* r = low + 2 high, ten columns each, modulo p. high[k] belongs to column k. */
KH_INLINE void f25519_reduce(kh_vec *r, const kh_vec *low, const kh_vec *high)
{
    kh_vec t[F25519_LEN];

    KH_UNROLL_FE
    for (int i = 0; i < F25519_LEN; i++) {
        kh_vec up = low[i + 5] + (high[i + 5] << 1);

        t[i] = low[i] + (high[i] << 1) + up + (up << 1) + (up << 4);
    }
    f25519_carry(r, t);
}

KH_NOINLINE void f25519_mul(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_vec low[10] = {{0}}, high[10] = {{0}};

    KH_UNROLL_FE
    for (int i = 0; i < F25519_LEN; i++) {
        KH_UNROLL_FE
        for (int j = 0; j < F25519_LEN; j++) {
            low[i + j] = kh_madlo(low[i + j], a[i], b[j]);
            high[i + j + 1] = kh_madhi(high[i + j + 1], a[i], b[j]);
        }
    }
    f25519_reduce(r, low, high);
}

KH_NOINLINE void f25519_sqr(kh_vec *r, const kh_vec *a)
{
    kh_vec low[10] = {{0}}, high[10] = {{0}};

    KH_UNROLL_FE
    for (int i = 0; i < F25519_LEN; i++) {
        KH_UNROLL_FE
        for (int j = i + 1; j < F25519_LEN; j++) {
            low[i + j] = kh_madlo(low[i + j], a[i], a[j]);
            high[i + j + 1] = kh_madhi(high[i + j + 1], a[i], a[j]);
        }
    }
    KH_UNROLL_FE
    for (int i = 0; i < 10; i++) {
        low[i] += low[i];
        high[i] += high[i];
    }
    KH_UNROLL_FE
    for (int i = 0; i < F25519_LEN; i++) {
        low[2 * i] = kh_madlo(low[2 * i], a[i], a[i]);
        high[2 * i + 1] = kh_madhi(high[2 * i + 1], a[i], a[i]);
    }
    f25519_reduce(r, low, high);
}

KH_INLINE void f25519_add(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_vec t[F25519_LEN];

    KH_UNROLL_FE
    for (int i = 0; i < F25519_LEN; i++)
        t[i] = a[i] + b[i];
    f25519_carry(r, t);
}

/* r = a - b, with 2 p added so that no limb is negative. */
KH_INLINE void f25519_sub(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_vec t[F25519_LEN];

    t[0] = a[0] + kh_vec_all(2 * (F25519_MASK - 18)) - b[0];
    KH_UNROLL_FE
    for (int i = 1; i < F25519_LEN; i++)
        t[i] = a[i] + kh_vec_all(2 * F25519_MASK) - b[i];
    f25519_carry(r, t);
}

/* r = a, canonical: the multiple of p to take off is found by adding 19 and looking at bit 255. */
static void f25519_canonical(kh_vec *r, const kh_vec *a)
{
    kh_vec t[F25519_LEN], carry, mask = kh_vec_all(F25519_MASK);

    kh_fe_copy(t, a, F25519_LEN);
    for (int round = 0; round < 2; round++) {
        carry = (kh_vec){0};
        for (int i = 0; i < F25519_LEN; i++) {
            carry += t[i];
            t[i] = carry & mask;
            carry >>= F25519_BITS;
        }
        t[0] += 19 * carry;
    }
    carry = kh_vec_all(19);
    for (int i = 0; i < F25519_LEN; i++)
        carry = (carry + t[i]) >> F25519_BITS;
    carry *= 19;
    for (int i = 0; i < F25519_LEN; i++) {
        carry += t[i];
        r[i] = carry & mask;
        carry >>= F25519_BITS;
    }
}

/*
 * r = 1/a by inverse.h, which wants canonical limbs of 52 bits and leaves a factor 2^-24 (12 batches). Zero
 * gives some number.
 */
KH_NOINLINE void f25519_inv(kh_vec *r, const kh_vec *a)
{
    static const uint64_t p[F25519_LEN] = {0xfffffffffffed, 0xfffffffffffff, 0xfffffffffffff, 0xfffffffffffff,
                                           0x07fffffffffff};
    const uint64_t k0 = 0xca1af286bca1b; /* 1/19 modulo 2^52 */
    kh_vec n[F25519_LEN], t[F25519_LEN], c[F25519_LEN], mask = kh_vec_all(F25519_MASK);

    f25519_canonical(c, a);
    KH_UNROLL_FE
    for (int i = 0; i < F25519_LEN - 1; i++)
        t[i] = (c[i] >> i | c[i + 1] << (F25519_BITS - i)) & kh_vec_all(KH_LIMB_MASK);
    t[4] = c[4] >> 4;
    kh_fe_all(n, p, F25519_LEN);
    kh_inverse(t, t, n, kh_vec_all(k0), F25519_LEN, KH_INVERSE_BATCHES(255));
    c[0] = t[0] & mask;
    KH_UNROLL_FE
    for (int i = 1; i < F25519_LEN - 1; i++)
        c[i] = (t[i - 1] >> (KH_LIMB_BITS - i) | t[i] << i) & mask;
    c[4] = t[3] >> 48 | t[4] << 4;
    f25519_carry(c, c);
    f25519_mul(r, c, (kh_vec[F25519_LEN]){kh_vec_all(UINT64_C(1) << (2 * KH_INVERSE_BATCHES(255)))});
}

#endif

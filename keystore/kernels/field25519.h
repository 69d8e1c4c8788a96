/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic modulo 2^255 - 19 in eight lanes: five limbs of 51 bits, as in Bernstein, Duif, Lange, Schwabe and Yang,
 * "High-speed high-security signatures" (2011). VPMADD52 splits a product at bit 52, one above the limb, so the high
 * halves count double; they are gathered by themselves and doubled once.
 *
 * Every result has limbs below 2^51 + 2^17; any two such numbers may be multiplied.
 */
#ifndef KH_KERNELS_FIELD25519_H
#define KH_KERNELS_FIELD25519_H

#include "field.h"

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

KH_INLINE void f25519_sqr_times(kh_vec *r, const kh_vec *a, unsigned times)
{
    f25519_sqr(r, a);
    while (--times > 0)
        f25519_sqr(r, r);
}

/* r = a^(p-2); the exponent 2^255 - 21 by runs of ones: xN below is a^(2^N - 1). */
static void f25519_inv(kh_vec *r, const kh_vec *a)
{
    kh_vec a11[5], x5[5], x10[5], x20[5], x50[5], x100[5], t[5];

    f25519_sqr(t, a);               /* 2 */
    f25519_sqr_times(x5, t, 2);     /* 8 */
    f25519_mul(x5, x5, a);          /* 9 */
    f25519_mul(a11, x5, t);         /* 11 */
    f25519_sqr(t, a11);             /* 22 */
    f25519_mul(x5, t, x5);          /* 31 = 2^5 - 1 */
    f25519_sqr_times(t, x5, 5);
    f25519_mul(x10, t, x5);
    f25519_sqr_times(t, x10, 10);
    f25519_mul(x20, t, x10);
    f25519_sqr_times(t, x20, 20);
    f25519_mul(t, t, x20);
    f25519_sqr_times(t, t, 10);
    f25519_mul(x50, t, x10);
    f25519_sqr_times(t, x50, 50);
    f25519_mul(x100, t, x50);
    f25519_sqr_times(t, x100, 100);
    f25519_mul(t, t, x100);
    f25519_sqr_times(t, t, 50);
    f25519_mul(t, t, x50);          /* 2^250 - 1 */
    f25519_sqr_times(t, t, 5);
    f25519_mul(r, t, a11);          /* 2^255 - 32 + 11 */
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

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic modulo the primes and group orders of elliptic curves in eight lanes: 5 or 8 limbs of 52 bits,
 * Montgomery form with R = 2^(52 len). `len` and the modulus are constants wherever these are inlined, so
 * the loops unroll and zero limbs cost nothing.
 *
 * A modulus with n = -1 modulo 2^52 needs no multiplication for the quotient digit: it is the column
 * itself, and column + digit * n = digit * (n + 1) / 2^52 one column up. For P-256 that number, `up`, has
 * three limbs that are not 0.
 *
 * Bounds: with a < x n, b < y n the product is below (x y n / R + 1) n; R is 16 n or more for each n here.
 */
#ifndef KH_KERNELS_FIELD_H
#define KH_KERNELS_FIELD_H

#include <stdbool.h>

#include "lanes.h"

#define KH_FE_MAX 8
#define KH_UNROLL_FE _Pragma("GCC unroll 16")

typedef struct kh_modulus {
    uint64_t n[KH_FE_MAX];
    uint64_t k0;                            /* -1/n modulo 2^52; 1: then `up` is used */
    uint64_t up[KH_FE_MAX];                 /* (n + 1) / 2^52 */
    uint64_t rr[KH_FE_MAX], rrr[KH_FE_MAX]; /* R^2, R^3 modulo n */
    uint64_t inv_fix[KH_FE_MAX];            /* R^3 2^(2 batches), see inverse.h */
} kh_modulus;

KH_INLINE void kh_fe_copy(kh_vec *r, const kh_vec *a, int len)
{
    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        r[i] = a[i];
}

/* The same number in all lanes. */
KH_INLINE void kh_fe_all(kh_vec *r, const uint64_t *a, int len)
{
    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        r[i] = kh_vec_all(a[i]);
}

KH_INLINE void kh_fe_select(kh_vec *r, kh_vec mask, const kh_vec *a, const kh_vec *b, int len)
{
    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        r[i] = kh_vec_select(mask, a[i], b[i]);
}

/* All ones in the lanes where a is zero; limbs below 2^52. */
KH_INLINE kh_vec kh_fe_is_zero(const kh_vec *a, int len)
{
    kh_vec any = a[0];

    KH_UNROLL_FE
    for (int i = 1; i < len; i++)
        any |= a[i];
    return kh_vec_eq(any, (kh_vec){0});
}

/* r = t with limbs below 2^52; limbs of t may be negative as long as the whole is not. */
KH_INLINE void kh_fe_carry(kh_vec *r, const kh_vec *t, int len)
{
    kh_vec carry = {0};

    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        carry += t[i];
        r[i] = carry & kh_vec_all(KH_LIMB_MASK);
        carry = KH_SAR(carry, KH_LIMB_BITS);
    }
}

/* t[0..2 len) = a * b; a row's low halves come first, so that neighbours do not wait for each other. */
KH_INLINE void kh_fe_product(kh_vec *t, const kh_vec *a, const kh_vec *b, int len)
{
    KH_UNROLL_FE
    for (int i = 0; i < 2 * len; i++)
        t[i] = (kh_vec){0};
    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        KH_UNROLL_FE
        for (int j = 0; j < len; j++)
            t[i + j] = kh_madlo(t[i + j], a[i], b[j]);
        KH_UNROLL_FE
        for (int j = 0; j < len; j++)
            t[i + j + 1] = kh_madhi(t[i + j + 1], a[i], b[j]);
    }
}

/* t[0..2 len) = a^2: cross products once, doubled, then the squares of the limbs. */
KH_INLINE void kh_fe_square(kh_vec *t, const kh_vec *a, int len)
{
    KH_UNROLL_FE
    for (int i = 0; i < 2 * len; i++)
        t[i] = (kh_vec){0};
    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        KH_UNROLL_FE
        for (int j = i + 1; j < len; j++)
            t[i + j] = kh_madlo(t[i + j], a[i], a[j]);
        KH_UNROLL_FE
        for (int j = i + 1; j < len; j++)
            t[i + j + 1] = kh_madhi(t[i + j + 1], a[i], a[j]);
    }
    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        t[2 * i] = kh_madlo(t[2 * i] + t[2 * i], a[i], a[i]);
        t[2 * i + 1] = kh_madhi(t[2 * i + 1] + t[2 * i + 1], a[i], a[i]);
    }
}

/* r = t / R modulo n (Montgomery's reduction, digit by digit). */
KH_INLINE void kh_fe_reduce(kh_vec *r, kh_vec *t, const kh_modulus *n, int len)
{
    const kh_vec zero = {0}, mask = kh_vec_all(KH_LIMB_MASK);

    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        kh_vec *u = t + i;

        if (n->k0 == 1) {
            u[1] += u[0] >> KH_LIMB_BITS;
            KH_UNROLL_FE
            for (int j = 0; j < len - 1; j++) {
                if (n->up[j] == 0)
                    continue;
                u[j + 1] = kh_madlo(u[j + 1], u[0], kh_vec_all(n->up[j]));
                u[j + 2] = kh_madhi(u[j + 2], u[0], kh_vec_all(n->up[j]));
            }
        } else {
            kh_vec m = kh_madlo(zero, u[0], kh_vec_all(n->k0));

            u[1] += (u[0] + mask) >> KH_LIMB_BITS; /* the digit makes the column a multiple of 2^52 */
            KH_UNROLL_FE
            for (int j = 1; j < len; j++)
                u[j] = kh_madlo(u[j], m, kh_vec_all(n->n[j]));
            KH_UNROLL_FE
            for (int j = 0; j < len; j++)
                u[j + 1] = kh_madhi(u[j + 1], m, kh_vec_all(n->n[j]));
        }
    }
    kh_fe_carry(r, t + len, len);
}

KH_INLINE void kh_fe_mul(kh_vec *r, const kh_vec *a, const kh_vec *b, const kh_modulus *n, int len)
{
    kh_vec t[2 * KH_FE_MAX];

    kh_fe_product(t, a, b, len);
    kh_fe_reduce(r, t, n, len);
}

KH_INLINE void kh_fe_sqr(kh_vec *r, const kh_vec *a, const kh_modulus *n, int len)
{
    kh_vec t[2 * KH_FE_MAX];

    kh_fe_square(t, a, len);
    kh_fe_reduce(r, t, n, len);
}

/* r = a - n where a >= n, else a: canonical for a < 2 n. */
KH_INLINE void kh_fe_canonical(kh_vec *r, const kh_vec *a, const kh_modulus *n, int len)
{
    kh_vec d[KH_FE_MAX], borrow = {0};

    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        borrow += a[i] - kh_vec_all(n->n[i]);
        d[i] = borrow & kh_vec_all(KH_LIMB_MASK);
        borrow = KH_SAR(borrow, KH_LIMB_BITS);
    }
    kh_fe_select(r, KH_SAR(borrow, 63), a, d, len);
}

/* Out of Montgomery form, canonical. */
KH_INLINE void kh_fe_leave(kh_vec *r, const kh_vec *a, const kh_modulus *n, int len)
{
    kh_vec unit[KH_FE_MAX] = {{0}}, t[KH_FE_MAX];

    unit[0] = kh_vec_all(1);
    kh_fe_mul(t, a, unit, n, len);
    kh_fe_canonical(r, t, n, len);
}

/* NAME_mul and NAME_sqr modulo the constant MODULUS. Not inlined: an operation has hundreds of them. */
#define KH_FE_DEFINE(NAME, MODULUS, LEN)                                                                     \
    KH_NOINLINE void NAME##_mul(kh_vec *r, const kh_vec *a, const kh_vec *b)                                 \
    {                                                                                                        \
        kh_fe_mul(r, a, b, &MODULUS, LEN);                                                                   \
    }                                                                                                        \
    KH_NOINLINE void NAME##_sqr(kh_vec *r, const kh_vec *a)                                                  \
    {                                                                                                        \
        kh_fe_sqr(r, a, &MODULUS, LEN);                                                                      \
    }

#endif

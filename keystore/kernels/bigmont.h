/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Montgomery multiplication and squaring of large numbers (RSA) in eight lanes, radix 2^52.
 *
 * The numbers have `len` limbs, a multiple of KH_BLOCK. Everything is built from one loop, kh_sweep(): a
 * block of KH_BLOCK limbs, held in registers, times a long number, added to a long accumulator, KH_BLOCK
 * columns at a time. A tile of 5 x 5 limbs is 50 multiply-adds on 15 loads and 5 stores, so that the
 * multipliers are what limits it.
 *
 *  - product: a sweep for each block of one operand;
 *  - square: a sweep for each block over the limbs above it, doubled, and then the squares of the limbs;
 *  - reduction: Montgomery's ("Modular Multiplication Without Trial Division", 1985), a sweep over the
 *    modulus for each block of quotient digits.
 *
 * Columns gather up to 4 * len products of 52 bits, far below 2^64; carries are taken once, at the end.
 *
 * "Almost" Montgomery form (Gueron, "Efficient Software Implementations of Modular Exponentiation", 2012):
 * with R = 2^(52 len) >= 64 n, operands a < x n and b < y n with x y <= 64 give a result < 2 n, and no
 * subtraction is needed between multiplications. The bound holds for a < R and b < n too.
 */
#ifndef KH_KERNELS_BIGMONT_H
#define KH_KERNELS_BIGMONT_H

#include "lanes.h"

#define KH_BLOCK 5
#define KH_BIG_MAX 80 /* limbs: RSA-4096 */
#define KH_UNROLL _Pragma("GCC unroll 5")

/* acc += a column of x[0..4] times b, row 0 at b[0]: low and high halves of the rows from..to. */
KH_INLINE kh_vec kh_column(kh_vec acc, const kh_vec *x, const kh_vec *b, int low_from, int low_to,
                           int high_from, int high_to)
{
    KH_UNROLL
    for (int k = low_from; k < low_to; k++)
        acc = kh_madlo(acc, x[k], b[-k]);
    KH_UNROLL
    for (int k = high_from; k < high_to; k++)
        acc = kh_madhi(acc, x[k], b[-k - 1]);
    return acc;
}

/* The first KH_BLOCK columns of a sweep, where only some rows have begun. */
KH_INLINE void kh_sweep_head(kh_vec *t, const kh_vec *x, const kh_vec *b)
{
    KH_UNROLL
    for (int j = 0; j < KH_BLOCK; j++)
        t[j] = kh_column(t[j], x, b + j, 0, j + 1, 0, j);
}

/* The columns after the head: KH_BLOCK at a time, then those where only some rows go on. */
KH_INLINE void kh_sweep_rest(kh_vec *t, const kh_vec *x, const kh_vec *b, size_t len)
{
    kh_vec x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4];

    for (size_t j = KH_BLOCK; j < len; j += KH_BLOCK) {
        const kh_vec *c = b + j;
        kh_vec a0 = t[j], a1 = t[j + 1], a2 = t[j + 2], a3 = t[j + 3], a4 = t[j + 4];
#define KH_ROW(xk, k)                                                                                        \
    a0 = kh_madlo(a0, xk, c[0 - k]), a1 = kh_madlo(a1, xk, c[1 - k]), a2 = kh_madlo(a2, xk, c[2 - k]),       \
    a3 = kh_madlo(a3, xk, c[3 - k]), a4 = kh_madlo(a4, xk, c[4 - k]), a0 = kh_madhi(a0, xk, c[-1 - k]),      \
    a1 = kh_madhi(a1, xk, c[0 - k]), a2 = kh_madhi(a2, xk, c[1 - k]), a3 = kh_madhi(a3, xk, c[2 - k]),       \
    a4 = kh_madhi(a4, xk, c[3 - k])
        KH_ROW(x0, 0);
        KH_ROW(x1, 1);
        KH_ROW(x2, 2);
        KH_ROW(x3, 3);
        KH_ROW(x4, 4);
#undef KH_ROW
        t[j] = a0;
        t[j + 1] = a1;
        t[j + 2] = a2;
        t[j + 3] = a3;
        t[j + 4] = a4;
    }
    KH_UNROLL
    for (int j = 0; j < KH_BLOCK; j++)
        t[len + j] = kh_column(t[len + j], x, b + len + j, j + 1, KH_BLOCK, j, KH_BLOCK);
}

/* t[0..len+5) += x[0..5) * b[0..len) */
KH_INLINE void kh_sweep(kh_vec *t, const kh_vec *x, const kh_vec *b, size_t len)
{
    kh_sweep_head(t, x, b);
    kh_sweep_rest(t, x, b, len);
}

KH_INLINE void kh_big_zero(kh_vec *t, size_t len)
{
    for (size_t i = 0; i < len; i++)
        t[i] = (kh_vec){0};
}

/* t[0..2 len) += a * b, columns without carry. */
KH_INLINE void kh_big_product(kh_vec *t, const kh_vec *a, const kh_vec *b, size_t len)
{
    for (size_t i = 0; i < len; i += KH_BLOCK)
        kh_sweep(t + i, a + i, b, len);
}

/*
 * t[0..2 len) = a^2, columns without carry: each cross product once, doubled, and the squares of the limbs.
 */
KH_INLINE void kh_big_square(kh_vec *t, const kh_vec *a, size_t len)
{
    kh_big_zero(t, 2 * len);
    for (size_t i = 0; i < len; i += KH_BLOCK) {
        const kh_vec *x = a + i;
        KH_UNROLL
        for (int k = 0; k < KH_BLOCK; k++) {
            KH_UNROLL
            for (int l = k + 1; l < KH_BLOCK; l++) {
                t[2 * i + k + l] = kh_madlo(t[2 * i + k + l], x[k], x[l]);
                t[2 * i + k + l + 1] = kh_madhi(t[2 * i + k + l + 1], x[k], x[l]);
            }
        }
        if (i + KH_BLOCK < len)
            kh_sweep(t + 2 * i + KH_BLOCK, x, x + KH_BLOCK, len - i - KH_BLOCK);
    }
    for (size_t i = 0; i < len; i++) {
        t[2 * i] = kh_madlo(t[2 * i] + t[2 * i], a[i], a[i]);
        t[2 * i + 1] = kh_madhi(t[2 * i + 1] + t[2 * i + 1], a[i], a[i]);
    }
}

/* r = t with all limbs below 2^52. */
KH_INLINE void kh_big_carry(kh_vec *r, const kh_vec *t, size_t len)
{
    kh_vec carry = {0};

    for (size_t i = 0; i < len; i++) {
        carry += t[i];
        r[i] = carry & kh_vec_all(KH_LIMB_MASK);
        carry >>= KH_LIMB_BITS;
    }
}

/*
 * r[0..len) = t[0..2 len) / R modulo n; k0 = -1/n modulo 2^52. The digit m of a column makes it a multiple
 * of 2^52, so that the column itself need not be computed: its carry is ceil(column / 2^52).
 */
KH_INLINE void kh_big_reduce(kh_vec *r, kh_vec *t, const kh_vec *n, kh_vec k0, size_t len)
{
    const kh_vec zero = {0}, mask = kh_vec_all(KH_LIMB_MASK);
    kh_vec m[KH_BLOCK], carry = zero;

    for (size_t i = 0; i < len; i += KH_BLOCK) {
        KH_UNROLL
        for (int j = 0; j < KH_BLOCK; j++) {
            kh_vec column = kh_column(t[i + j], m, n + j, 0, j, 0, j) + carry;
            m[j] = kh_madlo(zero, column, k0);
            carry = (column + mask) >> KH_LIMB_BITS;
        }
        t[i + KH_BLOCK] += carry;
        carry = zero;
        kh_sweep_rest(t + i, m, n, len);
    }
    kh_big_carry(r, t + len, len);
}

/* r = a * b / R modulo n. r may be a or b. t: 2 len limbs of scratch. */
KH_NOINLINE void kh_big_mul(kh_vec *r, const kh_vec *a, const kh_vec *b, const kh_vec *n, kh_vec k0,
                            size_t len, kh_vec *t)
{
    kh_big_zero(t, 2 * len);
    kh_big_product(t, a, b, len);
    kh_big_reduce(r, t, n, k0, len);
}

/* r = a^2 / R modulo n, otherwise as kh_big_mul. */
KH_NOINLINE void kh_big_sqr(kh_vec *r, const kh_vec *a, const kh_vec *n, kh_vec k0, size_t len, kh_vec *t)
{
    kh_big_square(t, a, len);
    kh_big_reduce(r, t, n, k0, len);
}

/*
 * r = a - n where a >= n, else a: the canonical value of a < 2 n. Borrows are the signs of the differences.
 */
KH_NOINLINE void kh_big_canonical(kh_vec *r, const kh_vec *a, const kh_vec *n, size_t len, kh_vec *t)
{
    kh_vec borrow = {0};

    for (size_t i = 0; i < len; i++) {
        kh_vec d = a[i] - n[i] + borrow;
        t[i] = d & kh_vec_all(KH_LIMB_MASK);
        borrow = KH_SAR(d, KH_LIMB_BITS);
    }
    borrow = KH_SAR(borrow, 63);
    for (size_t i = 0; i < len; i++)
        r[i] = kh_vec_select(borrow, a[i], t[i]);
}

#endif

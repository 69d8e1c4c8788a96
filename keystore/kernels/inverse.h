/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Modular inversion in eight lanes in constant time, each lane with its own modulus: the divsteps of
 * Bernstein and Yang, "Fast constant-time gcd computation and modular inversion" (TCHES 2019), in batches
 * of 50 steps. A batch looks at the low words of f and g alone and gathers a 2 x 2 matrix; then (f, g) and
 * (d, e) are multiplied by it. About a fifth of the time of Fermat's a^(n-2).
 *
 * Numbers here are signed: two's complement in len + 1 limbs of 52 bits. f and g are divided by 2^50 per
 * batch as the divsteps ask; d and e are divided by 2^52 modulo n, Montgomery's way, and the factor 2^(2
 * batches) is made up for by the caller. Bounds: the rows of the matrix sum to 2^50 at most, so that |d| <
 * |d| / 4 + n stays below 4/3 n.
 */
#ifndef KH_KERNELS_INVERSE_H
#define KH_KERNELS_INVERSE_H

#include "field.h"

#define KH_DIVSTEPS 50
/*
 * Divsteps for 0 <= g <= f < 2^bits, up to 384 bits. The variant here begins with delta = 1/2, not the
 * paper's 1. Its bounds are those of Wuille's convex hulls ("Bounds on divsteps iterations in safegcd",
 * 2021): the area that (f, g) can be in, for each delta, is followed through all steps until |g| < 1. They
 * give 590 for 256 bits (724 for delta = 1, where the paper's theorem 11.2 proves 741) and 885 for 384 bits.
 * Too few would not give a wrong signature: the callers' checks would refuse it.
 */
#define KH_INVERSE_STEPS(bits) ((bits) <= 256 ? 590 : 885)
#define KH_INVERSE_BATCHES(bits) ((KH_INVERSE_STEPS(bits) + KH_DIVSTEPS - 1) / KH_DIVSTEPS)

/* (u, v; q, r) times 2^-50 is what the batch did to (f, g). */
typedef struct kh_divstep_matrix {
    kh_vec u, v, q, r;
} kh_divstep_matrix;

/* (a, b) = (b, -a) where the mask holds */
KH_INLINE void kh_swap_negate(kh_vec *a, kh_vec *b, kh_mask mask)
{
    kh_vec t = kh_mask_select(mask, *b, *a);

    *b = kh_mask_sub(mask, (kh_vec){0}, *a, *b);
    *a = t;
}

/* delta is twice the paper's, and odd. */
KH_INLINE kh_vec kh_divsteps(kh_divstep_matrix *m, kh_vec delta, kh_vec f, kh_vec g)
{
    kh_vec u = kh_vec_all(1), v = {0}, q = {0}, r = kh_vec_all(1);

    for (unsigned i = 0; i < KH_DIVSTEPS; i++) {
        kh_mask odd = kh_mask_odd(g), swap = kh_mask_positive(odd, delta);

        kh_swap_negate(&f, &g, swap);
        kh_swap_negate(&u, &q, swap);
        kh_swap_negate(&v, &r, swap);
        delta = kh_mask_sub(swap, (kh_vec){0}, delta, delta) + 2;
        g = kh_mask_add(odd, g, f) >> 1;
        q = kh_mask_add(odd, q, u);
        r = kh_mask_add(odd, r, v);
        u <<= 1;
        v <<= 1;
    }
    m->u = u, m->v = v, m->q = q, m->r = r;
    return delta;
}

/*
 * t = u a + v b modulo 2^(52 (len + 1)), columns without carry; u and v signed. A negative u is its low 52
 * bits less 2^52.
 */
KH_INLINE void kh_matrix_row(kh_vec *t, kh_vec u, kh_vec v, const kh_vec *a, const kh_vec *b, int len)
{
    kh_vec u_neg = KH_SAR(u, 63), v_neg = KH_SAR(v, 63);

    KH_UNROLL_FE
    for (int i = 0; i <= len; i++) {
        t[i] = kh_madlo(kh_madlo((kh_vec){0}, u, a[i]), v, b[i]);
        if (i > 0)
            t[i] =
                kh_madhi(kh_madhi(t[i], u, a[i - 1]), v, b[i - 1]) - (a[i - 1] & u_neg) - (b[i - 1] & v_neg);
    }
}

/* All ones where a number is negative. */
KH_INLINE kh_vec kh_signed_negative(const kh_vec *a, int len)
{
    return -(a[len] >> (KH_LIMB_BITS - 1) & 1);
}

/* (f, g) times the matrix, divided by 2^50. */
KH_INLINE void kh_matrix_plain(kh_vec *r, kh_vec u, kh_vec v, const kh_vec *f, const kh_vec *g, int len)
{
    kh_vec t[KH_FE_MAX + 1], mask = kh_vec_all(KH_LIMB_MASK);

    kh_matrix_row(t, u, v, f, g, len);
    kh_fe_carry(t, t, len + 1);
    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        r[i] = (t[i] >> KH_DIVSTEPS | t[i + 1] << (KH_LIMB_BITS - KH_DIVSTEPS)) & mask;
    r[len] = KH_SAR(t[len] << (64 - KH_LIMB_BITS), 64 - KH_LIMB_BITS + KH_DIVSTEPS) & mask;
}

/* (d, e) times the matrix, divided by 2^52 modulo n. */
KH_INLINE void kh_matrix_modular(kh_vec *r, kh_vec u, kh_vec v, const kh_vec *d, const kh_vec *e,
                                 const kh_vec *n, kh_vec k0, int len)
{
    kh_vec t[KH_FE_MAX + 1], m;

    kh_matrix_row(t, u, v, d, e, len);
    m = kh_madlo((kh_vec){0}, t[0], k0);
    KH_UNROLL_FE
    for (int i = 0; i < len; i++) {
        t[i] = kh_madlo(t[i], m, n[i]);
        t[i + 1] = kh_madhi(t[i + 1], m, n[i]);
    }
    kh_fe_carry(t, t, len + 1);
    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        r[i] = t[i + 1];
    r[len] = kh_signed_negative(t, len) & kh_vec_all(KH_LIMB_MASK);
}

/*
 * r = 2^(-2 batches) / a modulo n, below 3.4 n and not canonical. a is canonical, n odd, both below 2^bits;
 * k0 = -1/n modulo 2^52. a = 0 gives some number.
 */
KH_INLINE void kh_inverse(kh_vec *r, const kh_vec *a, const kh_vec *n, kh_vec k0, int len, unsigned batches)
{
    kh_vec f[KH_FE_MAX + 1], g[KH_FE_MAX + 1], d[KH_FE_MAX + 1] = {{0}}, e[KH_FE_MAX + 1] = {{0}},
                                                             t[KH_FE_MAX + 1];
    kh_vec delta = kh_vec_all(1), negative;

    kh_fe_copy(f, n, len);
    kh_fe_copy(g, a, len);
    f[len] = g[len] = (kh_vec){0};
    e[0] = kh_vec_all(1);
    for (unsigned i = 0; i < batches; i++) {
        kh_divstep_matrix m;

        delta = kh_divsteps(&m, delta, f[0] | f[1] << KH_LIMB_BITS, g[0] | g[1] << KH_LIMB_BITS);
        kh_matrix_plain(t, m.u, m.v, f, g, len);
        kh_matrix_plain(g, m.q, m.r, f, g, len);
        kh_fe_copy(f, t, len + 1);
        kh_matrix_modular(t, m.u, m.v, d, e, n, k0, len);
        kh_matrix_modular(e, m.q, m.r, d, e, n, k0, len);
        kh_fe_copy(d, t, len + 1);
    }
    /* f is 1 or -1 now; r = f d + 2 n */
    negative = kh_signed_negative(f, len);
    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        r[i] = n[i] + n[i] + ((d[i] ^ negative) - negative);
    r[len - 1] -= ((d[len] & 1) << KH_LIMB_BITS ^ negative) - negative; /* d's sign: limb len is 0 or -1 */
    kh_fe_carry(r, r, len);
}

#endif

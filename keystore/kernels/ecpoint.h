/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Points of a curve y^2 = x^3 - 3 x + b in the lanes, for ecdsa.h: the field, Jacobian coordinates (Cohen,
 * Miyaji and Ono, 1998) and the table of the base point, whose entries are affine. The curve's file defines
 *   EC_LEN limbs, EC_BITS of the field, EC_WINDOWS of the fixed base,
 *   static const kh_modulus ec_p, ec_n; static const uint64_t ec_b[], ec_gx[], ec_gy[] (plain numbers);
 *   ec_fold(): adds q (2^bits - p) to a number.
 *
 * Every coordinate is below 2.01 p: products are, and sums and differences are folded at once.
 */
#ifndef KH_KERNELS_ECPOINT_H
#define KH_KERNELS_ECPOINT_H

#include "fixedbase.h"
#include "inverse.h"
#include "private.h"

typedef struct ec_jacobian {
    kh_vec x[EC_LEN], y[EC_LEN], z[EC_LEN];
} ec_jacobian;

typedef struct ec_affine {
    kh_vec x[EC_LEN], y[EC_LEN];
} ec_affine;

/* One window: x and y of 32 entries, limb by limb. */
static kh_fb_limb ec_table[EC_WINDOWS][2 * EC_LEN];
static kh_vec ec_b_mont[EC_LEN];

KH_FE_DEFINE(fp, ec_p, EC_LEN)

KH_NOINLINE void ec_inverse(kh_vec *r, const kh_vec *a, const kh_vec *n, kh_vec k0)
{
    kh_inverse(r, a, n, k0, EC_LEN, KH_INVERSE_BATCHES(EC_BITS));
}

/*
 * r = t, |t| < 32 p with limbs of any sign, modulo p, into (0, 2.01 p): all but one multiple of 2^bits, by
 * the top limb, is replaced by what it is modulo p.
 */
KH_INLINE void fp_fold(kh_vec *r, kh_vec *t)
{
    const unsigned top = EC_BITS - KH_LIMB_BITS * (EC_LEN - 1);
    kh_vec q = KH_SAR(t[EC_LEN - 1], top) - 1;

    t[EC_LEN - 1] -= q << top;
    ec_fold(t, q);
    kh_fe_carry(r, t, EC_LEN);
}

KH_INLINE void fp_add(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_vec t[EC_LEN];

    KH_UNROLL_FE
    for (int i = 0; i < EC_LEN; i++)
        t[i] = a[i] + b[i];
    fp_fold(r, t);
}

KH_INLINE void fp_sub(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_vec t[EC_LEN];

    KH_UNROLL_FE
    for (int i = 0; i < EC_LEN; i++)
        t[i] = a[i] - b[i];
    fp_fold(r, t);
}

/* r = a - b - 2 c */
KH_INLINE void fp_sub_twice(kh_vec *r, const kh_vec *a, const kh_vec *b, const kh_vec *c)
{
    kh_vec t[EC_LEN];

    KH_UNROLL_FE
    for (int i = 0; i < EC_LEN; i++)
        t[i] = a[i] - b[i] - c[i] - c[i];
    fp_fold(r, t);
}

/* r = 2 a; "dbl-2001-b" of the Explicit-Formulas Database. r may be a. */
KH_NOINLINE void ec_double(ec_jacobian *r, const ec_jacobian *a)
{
    kh_vec delta[EC_LEN], gamma[EC_LEN], beta[EC_LEN], alpha[EC_LEN], t[EC_LEN], u[EC_LEN];

    fp_sqr(delta, a->z);
    fp_sqr(gamma, a->y);
    fp_mul(beta, a->x, gamma);
    fp_sub(t, a->x, delta);
    fp_add(u, a->x, delta);
    fp_mul(t, t, u);
    fp_add(alpha, t, t);
    fp_add(alpha, alpha, t);
    fp_add(t, a->y, a->z);
    fp_sqr(t, t);
    fp_sub(t, t, gamma);
    fp_sub(r->z, t, delta);
    fp_add(beta, beta, beta);
    fp_add(beta, beta, beta); /* 4 beta */
    fp_sqr(t, alpha);
    fp_sub(t, t, beta);
    fp_sub(r->x, t, beta);
    fp_sub(t, beta, r->x);
    fp_mul(t, alpha, t);
    fp_sqr(u, gamma);
    fp_add(u, u, u);
    fp_add(u, u, u);
    fp_sub_twice(r->y, t, (kh_vec[EC_LEN]){{0}}, u);
}

/* a += b; 8 multiplications and 3 squarings, the mixed addition of Cohen, Miyaji and Ono. */
KH_NOINLINE void ec_add(ec_jacobian *a, const ec_affine *b)
{
    kh_vec zz[EC_LEN], h[EC_LEN], r[EC_LEN], hh[EC_LEN], hhh[EC_LEN], v[EC_LEN], t[EC_LEN];

    fp_sqr(zz, a->z);
    fp_mul(h, b->x, zz);
    fp_mul(t, b->y, a->z);
    fp_sub(h, h, a->x);
    fp_mul(r, t, zz);
    fp_mul(a->z, a->z, h);
    fp_sqr(hh, h);
    fp_sub(r, r, a->y);
    fp_mul(hhh, hh, h);
    fp_mul(v, a->x, hh);
    fp_sqr(t, r);
    fp_mul(hh, a->y, hhh);
    fp_sub_twice(a->x, t, hhh, v);
    fp_sub(v, v, a->x);
    fp_mul(v, r, v);
    fp_sub(a->y, v, hh);
}

/* r = 1/a in all lanes, in Montgomery form; for the making of the table. */
static void fp_inv(kh_vec *r, const kh_vec *a)
{
    kh_vec t[EC_LEN], n[EC_LEN];

    kh_fe_all(n, ec_p.n, EC_LEN);
    kh_fe_canonical(t, a, &ec_p, EC_LEN);
    ec_inverse(t, t, n, kh_vec_all(ec_p.k0));
    kh_fe_all(n, ec_p.inv_fix, EC_LEN);
    fp_mul(r, t, n);
}

/* r = a / (1, z^2, z^3) with zi = 1/z. */
static void ec_to_affine(ec_affine *r, const ec_jacobian *a, const kh_vec *zi)
{
    kh_vec t[EC_LEN];

    fp_sqr(t, zi);
    fp_mul(r->x, a->x, t);
    fp_mul(t, t, zi);
    fp_mul(r->y, a->y, t);
}

/* The number 1 in Montgomery form. */
static void ec_one(kh_vec *one)
{
    kh_vec unit[EC_LEN] = {{0}};

    unit[0] = kh_vec_all(1);
    kh_fe_all(one, ec_p.rr, EC_LEN);
    fp_mul(one, one, unit);
}

/* point = k G, k recoded; entries of the table are read through registers (fixedbase.h). */
static void ec_mul_base(ec_jacobian *point, const kh_vec *recoded)
{
    kh_vec one[EC_LEN];

    ec_one(one);
    for (unsigned w = 0; w < EC_WINDOWS; w++) {
        kh_fb_digit digit = kh_fb_get(recoded, w, EC_LEN);
        kh_vec minus[EC_LEN];
        ec_affine b;

        KH_UNROLL_FE
        for (int i = 0; i < EC_LEN; i++) {
            b.x[i] = kh_fb_pick(ec_table[w][i], digit.index);
            b.y[i] = kh_fb_pick(ec_table[w][EC_LEN + i], digit.index);
        }
        fp_sub(minus, (kh_vec[EC_LEN]){{0}}, b.y);
        kh_fe_select(b.y, digit.negative, minus, b.y, EC_LEN);
        if (w == 0) {
            kh_fe_copy(point->x, b.x, EC_LEN);
            kh_fe_copy(point->y, b.y, EC_LEN);
            kh_fe_copy(point->z, one, EC_LEN);
        } else {
            ec_add(point, &b);
        }
        KH_FAULT(EC_WINDOW, point->x, EC_LEN);
    }
}

/* Entries 1, 3, ... 63 times the base of eight windows at once; one inversion for all by Montgomery's trick.
 */
static void ec_build_windows(unsigned first, const ec_jacobian *base, ec_jacobian *entry,
                             kh_vec (*prefix)[EC_LEN])
{
    unsigned count = EC_WINDOWS - first < KH_LANES ? EC_WINDOWS - first : KH_LANES;
    ec_jacobian twice;
    ec_affine step, out;
    kh_vec inv[EC_LEN], zi[EC_LEN];

    ec_double(&twice, base);
    fp_inv(zi, twice.z);
    ec_to_affine(&step, &twice, zi);
    entry[0] = *base;
    kh_fe_copy(prefix[0], base->z, EC_LEN);
    for (unsigned e = 1; e < KH_FB_ENTRIES; e++) {
        entry[e] = entry[e - 1];
        ec_add(&entry[e], &step);
        fp_mul(prefix[e], prefix[e - 1], entry[e].z);
    }
    fp_inv(inv, prefix[KH_FB_ENTRIES - 1]);
    for (unsigned e = KH_FB_ENTRIES; e-- > 0;) {
        if (e > 0)
            fp_mul(zi, inv, prefix[e - 1]);
        else
            kh_fe_copy(zi, inv, EC_LEN);
        fp_mul(inv, inv, entry[e].z);
        ec_to_affine(&out, &entry[e], zi);
        kh_fb_store(&ec_table[first][0], 2 * EC_LEN, count, e, out.x, EC_LEN);
        kh_fb_store(&ec_table[first][EC_LEN], 2 * EC_LEN, count, e, out.y, EC_LEN);
    }
}

/* Builds the table: lane l begins with 2^(w l) G, and eight windows further up for each group. */
static kh_result ec_build(void)
{
    ec_jacobian base, doubled, *entry = NULL;
    kh_vec(*prefix)[EC_LEN] = NULL, rr[EC_LEN], t[EC_LEN], unit[EC_LEN] = {{0}};
    const kh_vec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    kh_result rc = KH_E_MEMORY;

    entry = aligned_alloc(64, KH_FB_ENTRIES * sizeof(*entry));
    prefix = aligned_alloc(64, KH_FB_ENTRIES * sizeof(*prefix));
    if (entry == NULL || prefix == NULL)
        goto done;
    unit[0] = kh_vec_all(1);
    kh_fe_all(rr, ec_p.rr, EC_LEN);
    kh_fe_all(t, ec_b, EC_LEN);
    fp_mul(ec_b_mont, t, rr);
    kh_fe_all(t, ec_gx, EC_LEN);
    fp_mul(base.x, t, rr);
    kh_fe_all(t, ec_gy, EC_LEN);
    fp_mul(base.y, t, rr);
    fp_mul(base.z, unit, rr);
    for (unsigned i = 0; i < KH_FB_WINDOW * (KH_LANES - 1); i++) {
        kh_vec more = (kh_vec)(kh_vec_all(i) < KH_FB_WINDOW * lane);

        ec_double(&doubled, &base);
        kh_fe_select(base.x, more, doubled.x, base.x, EC_LEN);
        kh_fe_select(base.y, more, doubled.y, base.y, EC_LEN);
        kh_fe_select(base.z, more, doubled.z, base.z, EC_LEN);
    }
    for (unsigned first = 0; first < EC_WINDOWS; first += KH_LANES) {
        ec_build_windows(first, &base, entry, prefix);
        for (unsigned i = 0; i < KH_FB_WINDOW * KH_LANES; i++)
            ec_double(&base, &base);
    }
    rc = KH_OK;
done:
    free(entry);
    free(prefix);
    return rc;
}

/* All ones where an affine point is on the curve: y^2 - (x^2 - 3) x - b = 0. */
static kh_vec ec_on_curve(const ec_affine *a)
{
    kh_vec one[EC_LEN], t[EC_LEN], u[EC_LEN];

    ec_one(one);
    fp_sqr(t, a->x);
    fp_sub_twice(t, t, one, one);
    fp_mul(t, t, a->x);
    fp_sqr(u, a->y);
    fp_sub(u, u, t);
    fp_sub(u, u, ec_b_mont);
    kh_fe_leave(u, u, &ec_p, EC_LEN);
    return kh_fe_is_zero(u, EC_LEN);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ECDSA (FIPS 186-5, 6.4.1) in the lanes over a curve y^2 = x^3 - 3 x + b. Included by p256.c and p384.c,
 * which define
 *   EC_LEN limbs, EC_BYTES of a scalar, EC_WINDOWS of the fixed base, EC_RUN the function's name,
 *   static const kh_modulus ec_p, ec_n; static const uint64_t ec_b[], ec_gx[], ec_gy[] (plain numbers);
 *   ec_fold(): adds q (2^bits - p) to a number.
 *
 * Points are in Jacobian coordinates (Cohen, Miyaji and Ono, 1998), table entries affine. k G is a sum of
 * EC_WINDOWS table entries (fixedbase.h). Equal or opposite points meet in such a sum only where k is
 * within 2^-200 of chance; the result would be off the curve, be refused by the check below and done again
 * by OpenSSL.
 *
 * What is checked before a signature leaves: k G lies on the curve; r and s are in 1..n-1; s k = e + r d
 * with r d computed anew. What is not: that the point is k G and not another point of the curve. Such a
 * signature does not verify, and it tells an attacker who can place the fault at will something of one
 * nonce that is never used again; to check it would take a second multiplication by G.
 *
 * Every coordinate is below 2.01 p: products are, and sums and differences are folded at once.
 */
#include <string.h>

#include <openssl/rand.h>

#include "fixedbase.h"
#include "inverse.h"
#include "private.h"
#include "sha512.h"

typedef struct ec_jacobian {
    kh_vec x[EC_LEN], y[EC_LEN], z[EC_LEN];
} ec_jacobian;

typedef struct ec_affine {
    kh_vec x[EC_LEN], y[EC_LEN];
} ec_affine;

typedef struct ec_work {
    kh_vec low[EC_LEN], high[EC_LEN], k[EC_LEN], km[EC_LEN], kinv[EC_LEN], recoded[EC_LEN];
    kh_vec modulus[EC_LEN], inverse[EC_LEN], k_other[EC_LEN], z_other[EC_LEN];
    kh_vec e[EC_LEN], d[EC_LEN], r[EC_LEN], s[EC_LEN], rd[EC_LEN], t[EC_LEN], u[EC_LEN];
    ec_jacobian point;
    ec_affine affine;
    uint8_t random[KH_LANES][32];
    kh_sha512_work sha; /* its digests are the nonces, before they are reduced */
    uint64_t limbs[2 * EC_LEN];
} ec_work;

/* One window: x and y of 32 entries, limb by limb. */
static kh_fb_limb ec_table[EC_WINDOWS][2 * EC_LEN];
static kh_vec ec_b_mont[EC_LEN];

KH_FE_DEFINE(fp, ec_p, EC_LEN)

KH_NOINLINE void fn_mul(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_fe_mul(r, a, b, &ec_n, EC_LEN);
}

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

/* point = k G, k recoded; entries of the table are read through registers (fixedbase.h). */
static void ec_mul_base(ec_jacobian *point, const kh_vec *recoded, const kh_vec *one)
{
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
    }
}

/*
 * Entries 1, 3, ... 63 times the base of eight windows at once; one inversion for all by Montgomery's
 * trick.
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

/*
 * Hedged nonces: SHA-512(private key, 32 random bytes, digest). Reduced from 512 bits, so that the bias is
 * below 2^-128 for P-384 and 2^-256 for P-256. A broken random generator leaves a deterministic nonce.
 */
static kh_result ec_hedged_nonces(ec_work *w, kh_kernel_scratch *scratch, size_t n)
{
    if (RAND_bytes(w->random[0], (int)(n * sizeof(w->random[0]))) != 1)
        return KH_E_CRYPTO;
    for (size_t i = 0; i < n; i++) {
        const kh_lane *lane = &scratch->lane[i];
        kh_sha512_input *in = &w->sha.input[i];

        memcpy(in->head, lane->key->u.ec.d_bytes, EC_BYTES);
        memcpy(in->head + EC_BYTES, w->random[i], sizeof(w->random[i]));
        in->head_len = EC_BYTES + sizeof(w->random[i]);
        in->body = lane->in;
        in->body_len = lane->in_len;
    }
    kh_sha512(&w->sha, n);
    return KH_OK;
}

static kh_result ec_nonces(ec_work *w, kh_kernel_scratch *scratch, size_t n)
{
    static const uint8_t order[] = EC_ORDER_BYTES;
    kh_result rc = KH_OK;

    if (!scratch->deterministic)
        return ec_hedged_nonces(w, scratch, n);
    for (size_t i = 0; i < n && rc == KH_OK; i++)
        rc = kh_nonce_rfc6979(&scratch->lane[i], order, EC_BYTES, w->sha.digest[i]);
    return rc;
}

/* Keys, digests and nonces into the lanes; those without an operation do the first one's. */
static void ec_load(ec_work *w, kh_kernel_scratch *scratch, size_t n)
{
    for (unsigned i = 0; i < KH_LANES; i++) {
        unsigned from = i < n ? i : 0;
        const kh_lane *lane = &scratch->lane[from];
        size_t e_len =
            lane->in_len < EC_BYTES ? lane->in_len : EC_BYTES; /* the leftmost bits of the digest */

        kh_limbs_from_bytes(w->limbs, 2 * EC_LEN, w->sha.digest[from], sizeof(w->sha.digest[from]));
        for (int j = 0; j < EC_LEN; j++) {
            w->low[j][i] = w->limbs[j];
            w->high[j][i] = w->limbs[EC_LEN + j];
            w->d[j][i] = lane->key->u.ec.d[j];
        }
        kh_limbs_from_bytes(w->limbs, EC_LEN, lane->in, e_len);
        for (int j = 0; j < EC_LEN; j++)
            w->e[j][i] = w->limbs[j];
    }
}

/* k modulo the order, in and out of Montgomery form, from 64 bytes: low R^2 / R + high R^3 / R. */
static void ec_reduce_nonce(ec_work *w)
{
    kh_fe_all(w->t, ec_n.rr, EC_LEN);
    fn_mul(w->t, w->low, w->t);
    kh_fe_all(w->u, ec_n.rrr, EC_LEN);
    fn_mul(w->u, w->high, w->u);
    for (int i = 0; i < EC_LEN; i++)
        w->t[i] += w->u[i];
    kh_fe_carry(w->km, w->t, EC_LEN);
    kh_fe_leave(w->k, w->km, &ec_n, EC_LEN);
}

/* Lanes i and i + 4 change places. */
KH_INLINE void ec_other(kh_vec *r, const kh_vec *a)
{
    KH_UNROLL_FE
    for (int i = 0; i < EC_LEN; i++)
        r[i] = __builtin_shufflevector(a[i], a[i], 4, 5, 6, 7, 0, 1, 2, 3);
}

/*
 * kinv = 1/k modulo the order and w->t = 1/z modulo p, both for all lanes by one inversion: lanes 0 to 3
 * invert the products of two lanes' z, lanes 4 to 7 those of two lanes' k (Montgomery's trick); times the
 * other lane's factor gives the single inverses. A zero spoils its partner; both are refused by the checks.
 */
static void ec_invert(ec_work *w)
{
    const kh_vec first = {-1, -1, -1, -1, 0, 0, 0, 0};

    ec_other(w->z_other, w->point.z);
    fp_mul(w->t, w->point.z, w->z_other);
    kh_fe_canonical(w->t, w->t, &ec_p, EC_LEN);
    ec_other(w->k_other, w->km);
    fn_mul(w->u, w->km, w->k_other);
    kh_fe_canonical(w->u, w->u, &ec_n, EC_LEN);
    kh_fe_select(w->t, first, w->t, w->u, EC_LEN);
    for (int i = 0; i < EC_LEN; i++)
        w->modulus[i] = kh_vec_select(first, kh_vec_all(ec_p.n[i]), kh_vec_all(ec_n.n[i]));
    ec_inverse(w->inverse, w->t, w->modulus, kh_vec_select(first, kh_vec_all(ec_p.k0), kh_vec_all(ec_n.k0)));

    ec_other(w->t, w->inverse);
    kh_fe_select(w->u, first, w->t, w->inverse, EC_LEN);
    kh_fe_select(w->t, first, w->inverse, w->t, EC_LEN);
    kh_fe_all(w->kinv, ec_n.inv_fix, EC_LEN);
    fn_mul(w->kinv, w->u, w->kinv);
    fn_mul(w->kinv, w->kinv, w->k_other);
    kh_fe_all(w->u, ec_p.inv_fix, EC_LEN);
    fp_mul(w->t, w->t, w->u);
    fp_mul(w->t, w->t, w->z_other);
}

/* r = x of k G modulo the order, and 1/k; all ones where the point is on the curve. */
static kh_vec ec_nonce_point(ec_work *w)
{
    kh_vec one[EC_LEN], unit[EC_LEN] = {{0}}, *x = w->affine.x, *t = w->t, *u = w->u;

    unit[0] = kh_vec_all(1);
    kh_fe_all(t, ec_p.rr, EC_LEN);
    fp_mul(one, t, unit);
    kh_fb_recode(w->recoded, w->k, &ec_n, EC_WINDOWS, EC_LEN);
    ec_mul_base(&w->point, w->recoded, one);
    ec_invert(w);
    ec_to_affine(&w->affine, &w->point, t);

    /* y^2 - (x^2 - 3) x - b = 0 */
    fp_sqr(t, x);
    fp_sub_twice(t, t, one, one);
    fp_mul(t, t, x);
    fp_sqr(u, w->affine.y);
    fp_sub(u, u, t);
    fp_sub(u, u, ec_b_mont);
    kh_fe_leave(u, u, &ec_p, EC_LEN);
    kh_fe_leave(t, x, &ec_p, EC_LEN);
    kh_fe_canonical(w->r, t, &ec_n, EC_LEN);
    return kh_fe_is_zero(u, EC_LEN);
}

/* e + r d, below 2.5 n. */
static void ec_e_plus_rd(ec_work *w, kh_vec *out)
{
    fn_mul(w->rd, w->r, w->d);
    for (int i = 0; i < EC_LEN; i++)
        out[i] = w->rd[i] + w->e[i];
    kh_fe_carry(out, out, EC_LEN);
}

/* s = (e + r d) / k; all ones where s k = e + r d. */
static kh_vec ec_sign(ec_work *w)
{
    kh_vec differ = {0};

    ec_e_plus_rd(w, w->t);
    fn_mul(w->t, w->t, w->kinv);
    kh_fe_canonical(w->s, w->t, &ec_n, EC_LEN);

    fn_mul(w->u, w->s, w->km);
    kh_fe_canonical(w->u, w->u, &ec_n, EC_LEN);
    ec_e_plus_rd(w, w->t);
    kh_fe_canonical(w->t, w->t, &ec_n, EC_LEN);
    kh_fe_canonical(w->t, w->t, &ec_n, EC_LEN);
    for (int i = 0; i < EC_LEN; i++)
        differ |= w->t[i] ^ w->u[i];
    return kh_vec_eq(differ, (kh_vec){0});
}

unsigned KH_FN(EC_RUN)(kh_kernel_scratch *scratch, size_t n)
{
    ec_work *w = scratch->work;
    unsigned good = 0;
    kh_vec ok = {0};

    if (ec_nonces(w, scratch, n) != KH_OK)
        return 0;
    ec_load(w, scratch, n);
    ec_reduce_nonce(w);
    ok = ec_nonce_point(w);
    ok &= ec_sign(w);
    ok &= ~kh_fe_is_zero(w->k, EC_LEN) & ~kh_fe_is_zero(w->r, EC_LEN) & ~kh_fe_is_zero(w->s, EC_LEN);
    KH_PUBLIC(&ok, sizeof(ok));
    for (unsigned i = 0; i < n; i++) {
        uint8_t *out = scratch->lane[i].out;

        if (ok[i] == 0)
            continue;
        for (int j = 0; j < EC_LEN; j++) {
            w->limbs[j] = w->r[j][i];
            w->limbs[EC_LEN + j] = w->s[j][i];
        }
        kh_limbs_to_bytes(out, EC_BYTES, w->limbs, EC_LEN);
        kh_limbs_to_bytes(out + EC_BYTES, EC_BYTES, w->limbs + EC_LEN, EC_LEN);
        KH_PUBLIC(out, 2 * EC_BYTES);
        good |= 1U << i;
    }
    return good;
}

kh_result KH_FN(EC_INIT)(void)
{
    return ec_build();
}

#ifndef KH_LANES_IFMA
size_t EC_WORK_LEN(void)
{
    return sizeof(ec_work);
}
#endif

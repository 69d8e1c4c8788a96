/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ECDSA (FIPS 186-5, 6.4.1) in the lanes. Included by p256.c and p384.c, which define the curve (ecpoint.h)
 * and EC_BYTES of a scalar, EC_ORDER_BYTES, and the names EC_RUN, EC_INIT, EC_WORK_LEN.
 *
 * k G is a sum of EC_WINDOWS table entries (fixedbase.h). Equal or opposite points meet in such a sum only
 * where k is within 2^-200 of chance; the result would be off the curve, be refused by the check and done
 * again by OpenSSL.
 *
 * The check: once a signature is there, everything behind the nonce's hash is computed a second time, from
 * the bytes of nonce, digest and signature and from the key's second copy: k, k G, r d. The signature leaves
 * if r is the x of this k G, if s k = e + r d, if the first k G was on the curve (both come from one table),
 * and if none of k, r and s is 0. So no single fault in a value from the hash on, nor one that stays in a key
 * or in the table, lets a wrong signature out; one in the hash or before it makes another nonce, as good as
 * the first, or a signature of another digest. What both computations share are code and constants: a fault
 * that stays there is for the test at start (selftest.c). Without the second k G a fault in the first would
 * give signatures that do not verify, but tell an attacker who places it well some bits of their nonces, and
 * many of those give the key (Howgrave-Graham and Smart, 2001).
 *
 * Deterministic nonces (RFC 6979) are for test vectors alone: there a fault in the hash does harm, for the
 * same digest signed twice must have the same nonce.
 */
#include <string.h>

#include <openssl/rand.h>

#include "ecpoint.h"
#include "sha512.h"

typedef struct ec_work {
    kh_vec low[EC_LEN], high[EC_LEN], k[EC_LEN], km[EC_LEN], kinv[EC_LEN], recoded[EC_LEN];
    kh_vec modulus[EC_LEN], inverse[EC_LEN], k_other[EC_LEN], z_other[EC_LEN];
    kh_vec e[EC_LEN], d[EC_LEN], r[EC_LEN], s[EC_LEN], t[EC_LEN], u[EC_LEN];
    ec_jacobian point;
    ec_affine affine;
    uint8_t random[KH_LANES][32];
    kh_sha512_work sha; /* its digests are the nonces, before they are reduced */
    uint64_t limbs[2 * EC_LEN];
} ec_work;

KH_NOINLINE void fn_mul(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_fe_mul(r, a, b, &ec_n, EC_LEN);
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

        memcpy(in->head, lane->key->u.ec[0].d_bytes, EC_BYTES);
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

/*
 * The key's copy (0 or 1), digests and nonces into the lanes; those without an operation do the first one's.
 * Of a digest the leftmost bits count.
 */
static void ec_load(ec_work *w, const kh_kernel_scratch *scratch, size_t n, unsigned copy)
{
    for (unsigned i = 0; i < KH_LANES; i++) {
        unsigned from = i < n ? i : 0;
        const kh_lane *lane = &scratch->lane[from];
        size_t e_len = lane->in_len < EC_BYTES ? lane->in_len : EC_BYTES;

        kh_limbs_from_bytes(w->limbs, 2 * EC_LEN, w->sha.digest[from], sizeof(w->sha.digest[from]));
        for (int j = 0; j < EC_LEN; j++) {
            w->low[j][i] = w->limbs[j];
            w->high[j][i] = w->limbs[EC_LEN + j];
            w->d[j][i] = lane->key->u.ec[copy].d[j];
        }
        kh_limbs_from_bytes(w->limbs, EC_LEN, lane->in, e_len);
        for (int j = 0; j < EC_LEN; j++)
            w->e[j][i] = w->limbs[j];
    }
    KH_FAULT(EC_DIGEST, w->e, EC_LEN);
    KH_FAULT(EC_KEY, w->d, EC_LEN);
}

/* r and s to the bytes that go out, and back for the check. */
static void ec_store_signature(ec_work *w, kh_kernel_scratch *scratch, size_t n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t *out = scratch->lane[i].out;

        for (int j = 0; j < EC_LEN; j++) {
            w->limbs[j] = w->r[j][i];
            w->limbs[EC_LEN + j] = w->s[j][i];
        }
        kh_limbs_to_bytes(out, EC_BYTES, w->limbs, EC_LEN);
        kh_limbs_to_bytes(out + EC_BYTES, EC_BYTES, w->limbs + EC_LEN, EC_LEN);
    }
}

static void ec_load_signature(ec_work *w, const kh_kernel_scratch *scratch, size_t n)
{
    for (unsigned i = 0; i < KH_LANES; i++) {
        const uint8_t *out = scratch->lane[i < n ? i : 0].out;

        kh_limbs_from_bytes(w->limbs, EC_LEN, out, EC_BYTES);
        kh_limbs_from_bytes(w->limbs + EC_LEN, EC_LEN, out + EC_BYTES, EC_BYTES);
        for (int j = 0; j < EC_LEN; j++) {
            w->r[j][i] = w->limbs[j];
            w->s[j][i] = w->limbs[EC_LEN + j];
        }
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
    KH_FAULT(EC_NONCE, w->k, EC_LEN);
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
    KH_FAULT(EC_INVERSE, w->inverse, EC_LEN);

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

/* The nonces and the points k G, from the digests of ec_nonces(). */
static void ec_multiply(ec_work *w)
{
    ec_reduce_nonce(w);
    kh_fb_recode(w->recoded, w->k, &ec_n, EC_WINDOWS, EC_LEN);
    KH_FAULT(EC_RECODED, w->recoded, EC_LEN);
    ec_mul_base(&w->point, w->recoded);
    KH_FAULT(EC_Z, w->point.z, EC_LEN);
}

/* out = e + r d modulo the order, canonical. e is below 2^EC_BITS, so the sum is below 3 n. */
static void ec_e_plus_rd(ec_work *w, kh_vec *out)
{
    fn_mul(out, w->r, w->d);
    for (int i = 0; i < EC_LEN; i++)
        out[i] += w->e[i];
    kh_fe_carry(out, out, EC_LEN);
    kh_fe_canonical(out, out, &ec_n, EC_LEN);
    kh_fe_canonical(out, out, &ec_n, EC_LEN);
}

/* r = x of k G modulo the order, s = (e + r d) / k; all ones where the point is on the curve. */
static kh_vec ec_sign(ec_work *w)
{
    kh_vec ok;

    ec_invert(w);
    ec_to_affine(&w->affine, &w->point, w->t);
    KH_FAULT(EC_AFFINE, w->affine.x, EC_LEN);
    ok = ec_on_curve(&w->affine);
    kh_fe_leave(w->t, w->affine.x, &ec_p, EC_LEN);
    kh_fe_canonical(w->r, w->t, &ec_n, EC_LEN);
    KH_FAULT(EC_R, w->r, EC_LEN);
    ec_e_plus_rd(w, w->t);
    KH_FAULT(EC_SUM, w->t, EC_LEN);
    fn_mul(w->t, w->t, w->kinv);
    kh_fe_canonical(w->s, w->t, &ec_n, EC_LEN);
    KH_FAULT(EC_S, w->s, EC_LEN);
    return ok;
}

/*
 * All ones where r and s belong to the nonce, the point and the key that are in the lanes: r Z^2 = X, s k = e
 * + r d. An x of the order or more, of which r is what is left, is refused with the faults: there are fewer
 * than 2^-127 of them.
 */
static kh_vec ec_check(ec_work *w)
{
    kh_vec ok, differ = {0};

    kh_fe_all(w->u, ec_p.rr, EC_LEN);
    fp_mul(w->t, w->r, w->u);
    fp_sqr(w->u, w->point.z);
    fp_mul(w->t, w->t, w->u);
    fp_sub(w->t, w->t, w->point.x);
    kh_fe_leave(w->t, w->t, &ec_p, EC_LEN);
    kh_fe_leave(w->u, w->u, &ec_p, EC_LEN);
    ok = kh_fe_is_zero(w->t, EC_LEN) & ~kh_fe_is_zero(w->u, EC_LEN);

    fn_mul(w->u, w->s, w->km);
    kh_fe_canonical(w->u, w->u, &ec_n, EC_LEN);
    ec_e_plus_rd(w, w->t);
    for (int i = 0; i < EC_LEN; i++)
        differ |= w->t[i] ^ w->u[i];
    ok &= kh_vec_eq(differ, (kh_vec){0});
    return ok & ~kh_fe_is_zero(w->k, EC_LEN) & ~kh_fe_is_zero(w->r, EC_LEN) & ~kh_fe_is_zero(w->s, EC_LEN);
}

unsigned KH_FN(EC_RUN)(kh_kernel_scratch *scratch, size_t n)
{
    ec_work *w = scratch->work;
    unsigned good = 0;
    kh_vec ok = {0};

    if (ec_nonces(w, scratch, n) != KH_OK)
        return 0;
    ec_load(w, scratch, n, 0);
    ec_multiply(w);
    ok = ec_sign(w);
    ec_store_signature(w, scratch, n);

    /* once more, from the start */
    ec_load(w, scratch, n, 1);
    ec_load_signature(w, scratch, n);
    ec_multiply(w);
    ok &= ec_check(w);
    KH_PUBLIC(&ok, sizeof(ok));
    for (unsigned i = 0; i < n; i++) {
        if (ok[i] == 0)
            continue;
        KH_PUBLIC(scratch->lane[i].out, 2 * EC_BYTES);
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

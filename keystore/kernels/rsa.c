/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RSA private operations in the lanes, by the Chinese remainder theorem (RFC 8017, 5.1.2 and 5.2.1;
 * Quisquater and Couvreur, 1982). Up to 4 operations run as one batch of halves, modulo p in lanes 0 to 3
 * and modulo q in lanes 4 to 7; 5 to 8 operations as two batches.
 *
 * Blinding without an inversion: for a fresh random r, m^d = m r^(e-1) (m r^e)^(d-1), since e d = 1 in the
 * exponent. It is done in each half by itself, so that neither the base of the exponentiation nor its
 * powers are known to the caller, costs 20 multiplications of a half, and needs no state in the key.
 *
 * The check: the result, as the bytes that are to go out, to the power e modulo n, is compared with the
 * block's bytes, both read anew. A fault in either half would otherwise give the factors away (Boneh,
 * DeMillo and Lipton, 1997; Lenstra, 1996).
 *
 * The exponentiation is left to right with windows of four bits; each table lookup reads all sixteen
 * entries. Exponent length and e are taken to be public, all else is secret.
 */
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include "bigmont.h"
#include "private.h"

#define RSA_WINDOW 4
#define RSA_ENTRIES (1 << RSA_WINDOW)

typedef struct rsa_work {
    kh_vec n[KH_RSA_MAX], rr[KH_RSA_MAX], rrr[KH_RSA_MAX], exp[KH_RSA_MAX], k0; /* of the half at hand */
    kh_vec m[KH_RSA_MAX], r[KH_RSA_MAX], power[KH_RSA_MAX];
    kh_vec table[RSA_ENTRIES][KH_RSA_MAX];
    kh_vec half[2][KH_RSA_MAX]; /* the results modulo p and q, lane by operation */
    kh_vec big_n[KH_BIG_MAX], big_rr[KH_BIG_MAX], big_k0;
    kh_vec block[KH_BIG_MAX], s[KH_BIG_MAX], check[KH_BIG_MAX];
    kh_vec t[2 * KH_BIG_MAX];
    kh_vec unit[KH_BIG_MAX]; /* the number 1 */
    kh_vec e1;               /* e - 1 of each lane */
    uint64_t limbs[KH_BIG_MAX];
    const kh_rsa_key *key[KH_LANES];
    unsigned len, exp_bits, e1_bits;
} rsa_work;

#ifndef KH_LANES_IFMA
size_t kh_rsa_work_len(void)
{
    return sizeof(rsa_work);
}
#endif

static void lane_put(kh_vec *to, const uint64_t *from, size_t len, unsigned lane)
{
    for (size_t i = 0; i < len; i++)
        to[i][lane] = from[i];
}

static void lane_get(uint64_t *to, const kh_vec *from, size_t len, unsigned lane)
{
    for (size_t i = 0; i < len; i++)
        to[i] = from[i][lane];
}

/* Keys, public values and input of each lane; lanes without an operation do the first one's. */
static void load_batch(rsa_work *w, kh_kernel_scratch *scratch, size_t n)
{
    w->len = scratch->lane[0].key->u.rsa.len;
    w->exp_bits = 0;
    w->e1_bits = 0;
    for (unsigned i = 0; i < KH_LANES; i++) {
        const kh_lane *lane = &scratch->lane[i < n ? i : 0];
        const kh_rsa_key *key = &lane->key->u.rsa;

        w->key[i] = key;
        kh_limbs_from_bytes(w->limbs, 2 * w->len, lane->in, lane->in_len);
        lane_put(w->block, w->limbs, 2 * w->len, i);
        lane_put(w->big_n, key->n, 2 * w->len, i);
        lane_put(w->big_rr, key->n_rr, 2 * w->len, i);
        w->big_k0[i] = key->n_k0;
        while ((key->e - 1) >> w->e1_bits > 0 && w->e1_bits < 63)
            w->e1_bits++;
        if (key->exp_bits > w->exp_bits)
            w->exp_bits = key->exp_bits;
    }
    kh_big_zero(w->unit, KH_BIG_MAX);
    w->unit[0] = kh_vec_all(1);
}

/* Lane i of the halves: operation op[i] modulo its prime which[i]. */
static void load_half(rsa_work *w, const unsigned *op, const unsigned *which)
{
    unsigned len = w->len;

    for (unsigned i = 0; i < KH_LANES; i++) {
        const kh_rsa_prime *prime = &w->key[op[i]]->prime[which[i]];

        lane_put(w->n, prime->n, len, i);
        lane_put(w->rr, prime->rr, len, i);
        lane_put(w->rrr, prime->rrr, len, i);
        lane_put(w->exp, prime->exp, len, i);
        w->k0[i] = prime->k0;
        w->e1[i] = w->key[op[i]]->e - 1;
        for (unsigned j = 0; j < len; j++) {
            w->m[j][i] = w->block[j][op[i]];
            w->power[j][i] = w->block[len + j][op[i]];
        }
    }
    KH_FAULT(CONSTANT_P, w->n, len);
    KH_FAULT(CONSTANT_RR, w->rr, len);
}

/*
 * acc = base^(e-1) modulo n, all in Montgomery form. e is public, but lanes may have different ones. acc is
 * not base. one: R modulo n, made here in case that some lane's exponent is shorter than others'.
 */
static void power_public(rsa_work *w, kh_vec *acc, const kh_vec *base, const kh_vec *n, const kh_vec *rr,
                         kh_vec k0, size_t len, kh_vec *product)
{
    unsigned bit = w->e1_bits - 1;
    kh_vec on = -(w->e1 >> bit & 1);

    kh_big_mul(product, rr, w->unit, n, k0, len, w->t);
    for (size_t i = 0; i < len; i++)
        acc[i] = kh_vec_select(on, base[i], product[i]);
    while (bit-- > 0) {
        bool any = false;

        kh_big_sqr(acc, acc, n, k0, len, w->t);
        for (unsigned i = 0; i < KH_LANES; i++)
            any |= (w->e1[i] >> bit & 1) != 0;
        if (!any)
            continue;
        on = -(w->e1 >> bit & 1);
        kh_big_mul(product, acc, base, n, k0, len, w->t);
        for (size_t i = 0; i < len; i++)
            acc[i] = kh_vec_select(on, product[i], acc[i]);
    }
}

/* r = table[index], lane by lane; every entry is read. */
static void lookup(rsa_work *w, kh_vec *r, kh_vec index)
{
    kh_vec mask[RSA_ENTRIES];

    for (unsigned e = 0; e < RSA_ENTRIES; e++)
        mask[e] = kh_vec_eq(index, kh_vec_all(e));
    for (size_t i = 0; i < w->len; i++) {
        kh_vec even = {0}, odd = {0};

        for (unsigned e = 0; e < RSA_ENTRIES; e += 2) {
            even |= w->table[e][i] & mask[e];
            odd |= w->table[e + 1][i] & mask[e + 1];
        }
        r[i] = even | odd;
    }
}

/* power = table[1]^exp, all in Montgomery form; the table's entry 1 is set by the caller. */
static void power_secret(rsa_work *w)
{
    size_t len = w->len;
    unsigned i = (w->exp_bits + RSA_WINDOW - 1) / RSA_WINDOW;

    kh_big_mul(w->table[0], w->rr, w->unit, w->n, w->k0, len, w->t);
    for (unsigned e = 2; e < RSA_ENTRIES; e++)
        kh_big_mul(w->table[e], w->table[e - 1], w->table[1], w->n, w->k0, len, w->t);
    KH_FAULT(TABLE, w->table[7], len);

    memcpy(w->power, w->table[0], len * sizeof(kh_vec));
    while (i-- > 0) {
        unsigned per_limb = KH_LIMB_BITS / RSA_WINDOW;
        kh_vec index = w->exp[i / per_limb] >> (RSA_WINDOW * (i % per_limb)) & (RSA_ENTRIES - 1);

        for (unsigned k = 0; k < RSA_WINDOW; k++)
            kh_big_sqr(w->power, w->power, w->n, w->k0, len, w->t);
        lookup(w, w->r, index);
        kh_big_mul(w->power, w->power, w->r, w->n, w->k0, len, w->t);
        KH_FAULT(POWER, w->power, len);
    }
}

/* One batch of halves: out = block^d modulo each lane's prime, canonical. */
static kh_result do_half(rsa_work *w, kh_vec *out)
{
    size_t len = w->len;
    kh_vec *m = w->m, *r = w->r, *x = w->table[1], *y = w->table[0];

    /* m R modulo the prime from the block's halves: low R^2 / R + high R^3 / R */
    kh_big_mul(m, m, w->rr, w->n, w->k0, len, w->t);
    kh_big_mul(y, w->power, w->rrr, w->n, w->k0, len, w->t);
    for (size_t i = 0; i < len; i++)
        m[i] += y[i];
    kh_big_carry(m, m, len);
    KH_FAULT(REDUCED, m, len);

    if (RAND_bytes((unsigned char *)x, (int)(len * sizeof(kh_vec))) != 1)
        return KH_E_CRYPTO;
    for (size_t i = 0; i < len; i++)
        x[i] &= kh_vec_all(KH_LIMB_MASK);
    kh_big_mul(r, x, w->rr, w->n, w->k0, len, w->t); /* any number below R becomes a random one below 2 n */
    KH_FAULT(RANDOM, r, len);

    power_public(w, y, r, w->n, w->rr, w->k0, len, x);
    kh_big_mul(x, y, r, w->n, w->k0, len, w->t); /* r^e */
    kh_big_mul(x, x, m, w->n, w->k0, len, w->t); /* x = table[1]: m r^e */
    KH_FAULT(BLINDED, x, len);
    kh_big_mul(m, m, y, w->n, w->k0, len, w->t); /* m r^(e-1) */
    power_secret(w);
    kh_big_mul(m, m, w->power, w->n, w->k0, len, w->t);
    kh_big_mul(m, m, w->unit, w->n, w->k0, len, w->t);
    kh_big_canonical(out, m, w->n, len, w->t);
    KH_FAULT(HALF, out, len);
    return KH_OK;
}

/* Both halves of all operations, into half[0] and half[1]. */
static kh_result do_halves(rsa_work *w, size_t n)
{
    static const unsigned all[KH_LANES] = {0, 1, 2, 3, 4, 5, 6, 7}, four[KH_LANES] = {0, 1, 2, 3, 0, 1, 2, 3};
    static const unsigned p[KH_LANES] = {0}, q[KH_LANES] = {1, 1, 1, 1, 1, 1, 1, 1};
    static const unsigned both[KH_LANES] = {0, 0, 0, 0, 1, 1, 1, 1};
    kh_result rc = KH_OK;

    if (n <= KH_LANES / 2) {
        load_half(w, four, both);
        rc = do_half(w, w->half[0]);
        for (size_t i = 0; i < w->len; i++)
            for (unsigned l = 0; l < KH_LANES; l++)
                w->half[1][i][l] = w->half[0][i][l | KH_LANES / 2];
        for (size_t i = 0; i < w->len; i++)
            for (unsigned l = KH_LANES / 2; l < KH_LANES; l++)
                w->half[0][i][l] = w->half[0][i][l & (KH_LANES / 2 - 1)];
        load_half(w, all, p);
        return rc;
    }
    load_half(w, all, q);
    rc = do_half(w, w->half[1]);
    if (rc != KH_OK)
        return rc;
    load_half(w, all, p);
    return do_half(w, w->half[0]);
}

/*
 * s = sq + q h with h = (sp - sq) / q modulo p (Garner). The lanes have the constants of p. The difference is
 * formed as sp (R/q) + sq (-R/q) before one reduction.
 */
static void recombine(rsa_work *w)
{
    size_t len = w->len;
    kh_vec *plus = w->table[0], *minus = w->table[1], *h = w->table[2], *q = w->table[3];

    for (unsigned i = 0; i < KH_LANES; i++) {
        lane_put(plus, w->key[i]->prime[0].qinv, len, i);
        lane_put(minus, w->key[i]->prime[1].qinv, len, i);
        lane_put(q, w->key[i]->prime[1].n, len, i);
    }
    kh_big_zero(w->t, 2 * len);
    kh_big_product(w->t, w->half[0], plus, len);
    kh_big_product(w->t, w->half[1], minus, len);
    kh_big_reduce(h, w->t, w->n, w->k0, len);
    kh_big_canonical(h, h, w->n, len, w->t);
    KH_FAULT(RECOMBINE, h, len);

    kh_big_zero(w->t, 2 * len);
    kh_big_product(w->t, h, q, len);
    for (size_t i = 0; i < len; i++)
        w->t[i] += w->half[1][i];
    kh_big_carry(w->s, w->t, 2 * len);
    KH_FAULT(RESULT, w->s, 2 * len);
}

/* Writes the results to the lanes; checks them from there. Returns the mask of the good ones. */
static unsigned finish(rsa_work *w, kh_kernel_scratch *scratch, size_t n)
{
    size_t len = 2 * w->len;
    unsigned good = 0;
    kh_vec differ = {0};

    for (unsigned i = 0; i < KH_LANES; i++) {
        kh_lane *lane = &scratch->lane[i < n ? i : 0];

        lane_get(w->limbs, w->s, len, i);
        if (i < n)
            kh_limbs_to_bytes(lane->out, w->key[i]->bytes, w->limbs, len);
        kh_limbs_from_bytes(w->limbs, len, lane->out, w->key[i]->bytes);
        lane_put(w->s, w->limbs, len, i);
        kh_limbs_from_bytes(w->limbs, len, lane->in, lane->in_len);
        lane_put(w->block, w->limbs, len, i);
    }
    kh_big_mul(w->table[0], w->s, w->big_rr, w->big_n, w->big_k0, len, w->t);
    power_public(w, w->check, w->table[0], w->big_n, w->big_rr, w->big_k0, len, w->table[2]);
    kh_big_mul(w->check, w->check, w->s, w->big_n, w->big_k0, len, w->t); /* leaves Montgomery form */
    kh_big_canonical(w->check, w->check, w->big_n, len, w->t);
    for (size_t i = 0; i < len; i++)
        differ |= w->check[i] ^ w->block[i];
    KH_PUBLIC(&differ, sizeof(differ));
    for (unsigned i = 0; i < n; i++)
        if (differ[i] == 0)
            good |= 1U << i;
    return good;
}

unsigned KH_FN(kh_rsa_run)(kh_kernel_scratch *scratch, size_t n)
{
    rsa_work *w = scratch->work;

    load_batch(w, scratch, n);
    if (do_halves(w, n) != KH_OK)
        return 0;
    recombine(w);
    return finish(w, scratch, n);
}

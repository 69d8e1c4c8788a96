/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fixed-base scalar multiplication: what P-256, P-384 and Ed25519 share.
 *
 * An odd scalar k < 2^t, t = KH_FB_WINDOW * windows, is written with odd digits only: with K = (k >> 1) +
 * 2^(t-1) and K's windows K_i, k = sum of (2 K_i + 1 - 2^w) 2^(w i) (after Joye and Tunstall, "Exponent
 * Recoding and Regular Exponentiation Algorithms", 2009). No digit is zero, so that every window is one
 * addition and no addition meets the neutral element. The table holds the odd multiples 1, 3, ... 2^w - 1
 * of 2^(w i) B; the top bit of K_i is the digit's sign. An even scalar has the (odd) group order added.
 *
 * A table's limb lies in four registers of eight entries; a lookup permutes registers, no address depends
 * on a digit.
 */
#ifndef KH_KERNELS_FIXEDBASE_H
#define KH_KERNELS_FIXEDBASE_H

#include "field.h"

#define KH_FB_WINDOW 6
#define KH_FB_ENTRIES 32
typedef kh_vec kh_fb_limb[KH_FB_ENTRIES / KH_LANES]; /* one limb of all entries of a window */

typedef struct kh_fb_digit {
    kh_vec index;    /* entry 0..31: the odd multiple 2 index + 1 */
    kh_vec negative; /* all ones or 0 */
} kh_fb_digit;

/* The recoded scalar K of k; windows * 6 bits, in len limbs. k is below the order. */
KH_INLINE void kh_fb_recode(kh_vec *r, const kh_vec *k, const kh_modulus *order, unsigned windows, int len)
{
    unsigned top = KH_FB_WINDOW * windows - 1;
    kh_vec t[KH_FE_MAX], even = (k[0] & 1) - 1;

    KH_UNROLL_FE
    for (int i = 0; i < len; i++)
        t[i] = k[i] + (even & kh_vec_all(order->n[i]));
    kh_fe_carry(t, t, len);
    KH_UNROLL_FE
    for (int i = 0; i < len - 1; i++)
        r[i] = (t[i] >> 1) | ((t[i + 1] & 1) << (KH_LIMB_BITS - 1));
    r[len - 1] = t[len - 1] >> 1;
    r[top / KH_LIMB_BITS] |= kh_vec_all(UINT64_C(1) << (top % KH_LIMB_BITS));
}

KH_INLINE kh_fb_digit kh_fb_get(const kh_vec *k, unsigned window, int len)
{
    unsigned pos = KH_FB_WINDOW * window, limb = pos / KH_LIMB_BITS, off = pos % KH_LIMB_BITS;
    kh_vec v = k[limb] >> off;
    kh_fb_digit d;

    if (off > KH_LIMB_BITS - KH_FB_WINDOW && limb + 1 < (unsigned)len)
        v |= k[limb + 1] << (KH_LIMB_BITS - off);
    d.negative = (v >> (KH_FB_WINDOW - 1) & 1) - 1;
    d.index = (v ^ d.negative) & (KH_FB_ENTRIES - 1);
    return d;
}

/* One limb of each lane's entry. */
KH_INLINE kh_vec kh_fb_pick(const kh_fb_limb table, kh_vec index)
{
    kh_vec high = -(index >> 4 & 1);

    return kh_vec_select(high, kh_vec_pick16(table + 2, index), kh_vec_pick16(table, index));
}

/* The way back, when a table is made: entry e of the windows first, first + 1, ... from the lanes. */
KH_INLINE void kh_fb_store(kh_fb_limb *table, size_t stride, unsigned count, unsigned e, const kh_vec *value,
                           int len)
{
    for (unsigned l = 0; l < count; l++)
        for (int i = 0; i < len; i++)
            table[l * stride + (size_t)i][e / KH_LANES][e % KH_LANES] = value[i][l];
}

#endif

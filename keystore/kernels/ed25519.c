/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ed25519 (RFC 8032, 5.1.6) in the lanes: extended twisted Edwards coordinates (Hisil, Wong, Carter and
 * Dawson, "Twisted Edwards Curves Revisited", 2008), a fixed-base table of affine points as (y + x, y - x,
 * 2 d x y). The addition is complete: there are no exceptional points.
 *
 * The nonce is deterministic, so one wrong R beside a right one for the same message gives the key away
 * (Romailler and Pelissier, "Practical fault attack against the Ed25519 and EdDSA signature schemes",
 * 2017); so does a wrong public key in the challenge's hash. Therefore, once a signature is there, all of it
 * is computed a second time, from the message and from the key's second copy, and compared with the bytes
 * that are to go out; and R must be on the curve, since both come from one table. So no single fault in
 * a value, nor one that stays in a key or in the table, lets a wrong signature out; code and constants are
 * shared by both computations and are for the test at start (selftest.c).
 */
#include <string.h>

#include "field25519.h"
#include "fixedbase.h"
#include "private.h"
#include "sha512.h"

#define ED_LEN F25519_LEN
#define ED_WINDOWS 43

/* the order of the base point (RFC 8032, 5.1): 2^252 + 277...493 */
static const kh_modulus ed_order = {
    .n = {0x2631a5cf5d3ed, 0xdea2f79cd6581, 0x000000014def9, 0x0000000000000, 0x0100000000000},
    .k0 = 0x51da312547e1b,
    .rr = {0x9d265e952d13b, 0xd63c715bea69f, 0x5be65cb687604, 0x3dceec73d217f, 0x009411b7c309a},
    .rrr = {0x4f516a4e30429, 0xd71e63305a553, 0x5b6514d3c593a, 0x78065dc6c04ec, 0x000b773599cec},
};

/* d of the curve's equation, 2 d, and the base point, in limbs of 51 bits */
static const uint64_t ed_d[] = {0x34dca135978a3, 0x1a8283b156ebd, 0x5e7a26001c029, 0x739c663a03cbb,
                                0x52036cee2b6ff};
static const uint64_t ed_2d[] = {0x69b9426b2f159, 0x35050762add7a, 0x3cf44c0038052, 0x6738cc7407977,
                                 0x2406d9dc56dff};
static const uint64_t ed_bx[] = {0x62d608f25d51a, 0x412a4b4f6592a, 0x75b7171a4b31d, 0x1ff60527118fe,
                                 0x216936d3cd6e5};
static const uint64_t ed_by[] = {0x6666666666658, 0x4cccccccccccc, 0x1999999999999, 0x3333333333333,
                                 0x6666666666666};

typedef struct ed_point {
    kh_vec x[ED_LEN], y[ED_LEN], z[ED_LEN], t[ED_LEN];
} ed_point;

typedef struct ed_entry {
    kh_vec plus[ED_LEN], minus[ED_LEN], t2d[ED_LEN]; /* y + x, y - x, 2 d x y; */
    kh_vec negative;                                 /* all ones: -2 d x y is meant */
} ed_entry;

typedef struct ed_work {
    kh_vec nonce[ED_LEN], x[ED_LEN], hash[ED_LEN], a[ED_LEN], s[ED_LEN], low[ED_LEN], high[ED_LEN], t[ED_LEN];
    ed_point point;
    uint64_t limbs[10];
    kh_sha512_work sha;
    uint8_t r[KH_LANES][32];
} ed_work;

static kh_fb_limb ed_table[ED_WINDOWS][3 * ED_LEN];

/* p += b; 7 multiplications. */
KH_NOINLINE void ed_add(ed_point *p, const ed_entry *b)
{
    kh_vec s[ED_LEN], t[ED_LEN], c[ED_LEN], d[ED_LEN], e[ED_LEN], f[ED_LEN], g[ED_LEN], h[ED_LEN];
    kh_vec less[ED_LEN], more[ED_LEN];

    f25519_sub(s, p->y, p->x);
    f25519_add(t, p->y, p->x);
    f25519_mul(s, s, b->minus);
    f25519_mul(t, t, b->plus);
    f25519_mul(c, p->t, b->t2d);
    f25519_add(d, p->z, p->z);
    f25519_sub(e, t, s);
    f25519_sub(less, d, c);
    f25519_add(more, d, c);
    kh_fe_select(f, b->negative, more, less, ED_LEN);
    kh_fe_select(g, b->negative, less, more, ED_LEN);
    f25519_add(h, t, s);
    f25519_mul(p->x, e, f);
    f25519_mul(p->y, g, h);
    f25519_mul(p->t, e, h);
    f25519_mul(p->z, f, g);
}

/* p = 2 p */
static void ed_double(ed_point *p)
{
    kh_vec a[ED_LEN], b[ED_LEN], c[ED_LEN], e[ED_LEN], f[ED_LEN], g[ED_LEN], h[ED_LEN];

    f25519_sqr(a, p->x);
    f25519_sqr(b, p->y);
    f25519_sqr(c, p->z);
    f25519_add(c, c, c);
    f25519_add(e, p->x, p->y);
    f25519_sqr(e, e);
    f25519_sub(e, e, a);
    f25519_sub(e, e, b);
    f25519_sub(g, b, a);
    f25519_sub(f, g, c);
    f25519_add(h, a, b);
    f25519_sub(h, (kh_vec[ED_LEN]){{0}}, h);
    f25519_mul(p->x, e, f);
    f25519_mul(p->y, g, h);
    f25519_mul(p->t, e, h);
    f25519_mul(p->z, f, g);
}

static void ed_to_entry(ed_entry *r, const ed_point *p, const kh_vec *zi)
{
    kh_vec x[ED_LEN], y[ED_LEN], t[ED_LEN];

    f25519_mul(x, p->x, zi);
    f25519_mul(y, p->y, zi);
    f25519_add(r->plus, y, x);
    f25519_sub(r->minus, y, x);
    kh_fe_all(t, ed_2d, ED_LEN);
    f25519_mul(t, t, x);
    f25519_mul(r->t2d, t, y);
    r->negative = (kh_vec){0};
}

/* The entry of a window for each lane's digit; a negative digit's has y + x and y - x exchanged. */
KH_INLINE void ed_lookup(ed_entry *b, const kh_vec *recoded, unsigned window)
{
    kh_fb_digit digit = kh_fb_get(recoded, window, ED_LEN);

    KH_UNROLL_FE
    for (int i = 0; i < ED_LEN; i++) {
        kh_vec more = kh_fb_pick(ed_table[window][i], digit.index);
        kh_vec less = kh_fb_pick(ed_table[window][ED_LEN + i], digit.index);

        b->plus[i] = kh_vec_select(digit.negative, less, more);
        b->minus[i] = kh_vec_select(digit.negative, more, less);
        b->t2d[i] = kh_fb_pick(ed_table[window][2 * ED_LEN + i], digit.index);
    }
    b->negative = digit.negative;
}

/* p = an entry, with Z = 4: X = 4 x, Y = 4 y, T = 4 x y from 2 x and 2 y. */
static void ed_from_entry(ed_point *p, const ed_entry *b)
{
    memset(p->z, 0, sizeof(p->z));
    p->z[0] = kh_vec_all(4);
    f25519_sub(p->x, b->plus, b->minus);
    f25519_add(p->y, b->plus, b->minus);
    f25519_mul(p->t, p->x, p->y);
    f25519_add(p->x, p->x, p->x);
    f25519_add(p->y, p->y, p->y);
}

/* p = k B, k recoded (fixedbase.h) */
static void ed_mul_base(ed_point *p, const kh_vec *recoded)
{
    for (unsigned w = 0; w < ED_WINDOWS; w++) {
        ed_entry b;

        ed_lookup(&b, recoded, w);
        if (w == 0)
            ed_from_entry(p, &b);
        else
            ed_add(p, &b);
        KH_FAULT(ED_WINDOW, p->x, ED_LEN);
    }
}

/* Odd multiples of eight windows' bases, as in ecdsa.h. */
static void ed_build_windows(unsigned first, const ed_point *base)
{
    unsigned count = ED_WINDOWS - first < KH_LANES ? ED_WINDOWS - first : KH_LANES;
    ed_point twice = *base, entry = *base;
    ed_entry step, out;
    kh_vec zi[ED_LEN];

    ed_double(&twice);
    f25519_inv(zi, twice.z);
    ed_to_entry(&step, &twice, zi);
    for (unsigned e = 0; e < KH_FB_ENTRIES; e++) {
        kh_fb_limb *table = ed_table[first];

        if (e > 0)
            ed_add(&entry, &step);
        f25519_inv(zi, entry.z);
        ed_to_entry(&out, &entry, zi);
        kh_fb_store(table, 3 * ED_LEN, count, e, out.plus, ED_LEN);
        kh_fb_store(table + ED_LEN, 3 * ED_LEN, count, e, out.minus, ED_LEN);
        kh_fb_store(table + 2 * ED_LEN, 3 * ED_LEN, count, e, out.t2d, ED_LEN);
    }
}

kh_result KH_FN(kh_ed25519_init)(void)
{
    const kh_vec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    ed_point base, doubled;

    memset(&base, 0, sizeof(base));
    kh_fe_all(base.x, ed_bx, ED_LEN);
    kh_fe_all(base.y, ed_by, ED_LEN);
    base.z[0] = kh_vec_all(1);
    f25519_mul(base.t, base.x, base.y);
    for (unsigned i = 0; i < KH_FB_WINDOW * (KH_LANES - 1); i++) {
        kh_vec more = (kh_vec)(kh_vec_all(i) < KH_FB_WINDOW * lane);

        doubled = base;
        ed_double(&doubled);
        kh_fe_select(base.x, more, doubled.x, base.x, ED_LEN);
        kh_fe_select(base.y, more, doubled.y, base.y, ED_LEN);
        kh_fe_select(base.z, more, doubled.z, base.z, ED_LEN);
        kh_fe_select(base.t, more, doubled.t, base.t, ED_LEN);
    }
    for (unsigned first = 0; first < ED_WINDOWS; first += KH_LANES) {
        ed_build_windows(first, &base);
        for (unsigned i = 0; i < KH_FB_WINDOW * KH_LANES; i++)
            ed_double(&base);
    }
    return KH_OK;
}

KH_INLINE void ed_order_mul(kh_vec *r, const kh_vec *a, const kh_vec *b)
{
    kh_fe_mul(r, a, b, &ed_order, ED_LEN);
}

/* r = the lanes' digests, taken as little-endian numbers, modulo the order, canonical. */
static void ed_reduce(ed_work *w, kh_vec *r, size_t n)
{
    kh_vec t[ED_LEN], u[ED_LEN];

    for (size_t i = 0; i < n; i++) {
        kh_limbs_from_bytes_le(w->limbs, 2 * ED_LEN, w->sha.digest[i], sizeof(w->sha.digest[i]));
        for (int j = 0; j < ED_LEN; j++) {
            w->low[j][i] = w->limbs[j];
            w->high[j][i] = w->limbs[ED_LEN + j];
        }
    }
    kh_fe_all(t, ed_order.rr, ED_LEN);
    kh_fe_all(u, ed_order.rrr, ED_LEN);
    ed_order_mul(t, w->low, t);
    ed_order_mul(u, w->high, u);
    for (int i = 0; i < ED_LEN; i++)
        t[i] += u[i];
    kh_fe_carry(t, t, ED_LEN);
    kh_fe_leave(r, t, &ed_order, ED_LEN);
}

/* w->nonce: the hashes of prefix and message, reduced. */
static void ed_nonces(ed_work *w, kh_kernel_scratch *scratch, size_t n, unsigned copy)
{
    for (unsigned i = 0; i < n; i++) {
        const kh_lane *lane = &scratch->lane[i];
        kh_sha512_input *in = &w->sha.input[i];

        memcpy(in->head, lane->key->u.ed[copy].prefix, 32);
        in->head_len = 32;
        in->body = lane->in;
        in->body_len = lane->in_len;
    }
    kh_sha512(&w->sha, n);
    ed_reduce(w, w->nonce, n);
    KH_FAULT(ED_NONCE, w->nonce, ED_LEN);
}

/* All ones where a = b modulo p. */
static kh_vec ed_equal(const kh_vec *a, const kh_vec *b)
{
    kh_vec t[ED_LEN];

    f25519_sub(t, a, b);
    f25519_canonical(t, t);
    return kh_fe_is_zero(t, ED_LEN);
}

/* The points of the nonces. */
static void ed_multiply(ed_work *w)
{
    kh_fb_recode(w->t, w->nonce, &ed_order, ED_WINDOWS, ED_LEN);
    KH_FAULT(ED_RECODED, w->t, ED_LEN);
    ed_mul_base(&w->point, w->t);
}

/* w->r = the encoded points of the nonces, w->x their x; all ones where the point is on the curve. */
static kh_vec ed_commit(ed_work *w)
{
    kh_vec y[ED_LEN], t[ED_LEN], u[ED_LEN];

    ed_multiply(w);
    f25519_inv(t, w->point.z);
    f25519_mul(w->x, w->point.x, t);
    f25519_mul(y, w->point.y, t);
    f25519_canonical(w->x, w->x);
    f25519_canonical(y, y);
    KH_FAULT(ED_AFFINE, w->x, ED_LEN);
    for (unsigned i = 0; i < KH_LANES; i++) {
        uint64_t word[4] = {y[0][i] | y[1][i] << 51, y[1][i] >> 13 | y[2][i] << 38,
                            y[2][i] >> 26 | y[3][i] << 25,
                            y[3][i] >> 39 | y[4][i] << 12 | (w->x[0][i] & 1) << 63};

        memcpy(w->r[i], word, sizeof(word));
    }
    /* y^2 = 1 + x^2 + d x^2 y^2 */
    f25519_sqr(t, w->x);
    f25519_sqr(y, y);
    f25519_mul(u, t, y);
    f25519_add(t, t, (kh_vec[ED_LEN]){kh_vec_all(1)});
    kh_fe_all(w->t, ed_d, ED_LEN);
    f25519_mul(u, u, w->t);
    f25519_add(t, t, u);
    return ed_equal(t, y);
}

/*
 * All ones where the nonce's point, computed anew, is the one that w->r encodes. Compared without an
 * inversion: x Z = X, y Z = Y, with y and the parity of x from the bytes.
 */
static kh_vec ed_check_commit(ed_work *w)
{
    kh_vec y[ED_LEN], t[ED_LEN], sign = {0};

    for (unsigned i = 0; i < KH_LANES; i++) {
        uint64_t word[4];

        memcpy(word, w->r[i], sizeof(word));
        y[0][i] = word[0] & F25519_MASK;
        y[1][i] = (word[0] >> 51 | word[1] << 13) & F25519_MASK;
        y[2][i] = (word[1] >> 38 | word[2] << 26) & F25519_MASK;
        y[3][i] = (word[2] >> 25 | word[3] << 39) & F25519_MASK;
        y[4][i] = word[3] >> 12 & F25519_MASK;
        sign[i] = word[3] >> 63;
    }
    ed_multiply(w);
    f25519_mul(t, w->x, w->point.z);
    f25519_mul(y, y, w->point.z);
    return ed_equal(t, w->point.x) & ed_equal(y, w->point.y) & kh_vec_eq(sign, w->x[0] & 1);
}

/* s = nonce + challenge a modulo the order, canonical. */
static void ed_scalar(ed_work *w, kh_vec *s)
{
    ed_order_mul(w->t, w->hash, w->a);
    for (int i = 0; i < ED_LEN; i++)
        w->t[i] += w->nonce[i];
    kh_fe_carry(w->t, w->t, ED_LEN);
    kh_fe_canonical(w->t, w->t, &ed_order, ED_LEN);
    kh_fe_canonical(s, w->t, &ed_order, ED_LEN);
    KH_FAULT(ED_S, s, ED_LEN);
}

/* w->hash: the hashes of R, public key and message, reduced; w->a: the keys' scalars. */
static void ed_challenges(ed_work *w, kh_kernel_scratch *scratch, size_t n, unsigned copy)
{
    for (unsigned i = 0; i < n; i++) {
        const kh_lane *lane = &scratch->lane[i];
        kh_sha512_input *in = &w->sha.input[i];

        memcpy(in->head, w->r[i], 32);
        memcpy(in->head + 32, lane->key->u.ed[copy].pub, 32);
        in->head_len = 64;
        in->body = lane->in;
        in->body_len = lane->in_len;
        for (int j = 0; j < ED_LEN; j++)
            w->a[j][i] = lane->key->u.ed[copy].a[j];
    }
    kh_sha512(&w->sha, n);
    ed_reduce(w, w->hash, n);
    KH_FAULT(ED_CHALLENGE, w->hash, ED_LEN);
    KH_FAULT(ED_KEY, w->a, ED_LEN);
}

/* R and S to the bytes that go out. */
static void ed_store_signature(ed_work *w, kh_kernel_scratch *scratch, size_t n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t *out = scratch->lane[i].out;

        for (int j = 0; j < ED_LEN; j++)
            w->limbs[j] = w->s[j][i];
        memcpy(out, w->r[i], 32);
        kh_limbs_to_bytes_le(out + 32, 32, w->limbs, ED_LEN);
    }
}

/* Everything once more, from the bytes; all ones where a signature is right. */
static kh_vec ed_check(ed_work *w, kh_kernel_scratch *scratch, size_t n)
{
    kh_vec ok, differ = {0};

    for (unsigned i = 0; i < n; i++) {
        const uint8_t *out = scratch->lane[i].out;

        memcpy(w->r[i], out, 32);
        kh_limbs_from_bytes_le(w->limbs, ED_LEN, out + 32, 32);
        for (int j = 0; j < ED_LEN; j++)
            w->s[j][i] = w->limbs[j];
    }
    ed_nonces(w, scratch, n, 1);
    ok = ed_check_commit(w);
    ed_challenges(w, scratch, n, 1);
    ed_scalar(w, w->low);
    for (int i = 0; i < ED_LEN; i++)
        differ |= w->low[i] ^ w->s[i];
    return ok & kh_vec_eq(differ, (kh_vec){0});
}

unsigned KH_FN(kh_ed25519_run)(kh_kernel_scratch *scratch, size_t n)
{
    ed_work *w = scratch->work;
    unsigned good = 0;
    kh_vec ok;

    ed_nonces(w, scratch, n, 0);
    ok = ed_commit(w);
    ed_challenges(w, scratch, n, 0);
    ed_scalar(w, w->s);
    ed_store_signature(w, scratch, n);
    ok &= ed_check(w, scratch, n);
    KH_PUBLIC(&ok, sizeof(ok));
    for (unsigned i = 0; i < n; i++) {
        if (ok[i] == 0)
            continue;
        KH_PUBLIC(scratch->lane[i].out, 64);
        good |= 1U << i;
    }
    return good;
}

#ifndef KH_LANES_IFMA
size_t kh_ed25519_work_len(void)
{
    return sizeof(ed_work);
}
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K6 for ECDSA and Ed25519: a bit of each intermediate value is flipped in turn, the nonce's point at every
 * window of its multiplication among them, in the first computation or in the check; then bits of the key,
 * where they stay flipped. No wrong signature may come out; each fault is counted, and the lane done again by
 * OpenSSL.
 */
#include "kernels_common.h"
#include "private.h"

#define KEYS 2 /* different ones side by side */

typedef struct curve {
    const char *name; /* NULL: Ed25519 */
    kh_kernel_kind kind;
    unsigned limbs, windows;
} curve;

static const curve curves[] = {
    {"P-256", KH_KERNEL_P256, 5, 43},
    {"P-384", KH_KERNEL_P384, 8, 65},
    {NULL, KH_KERNEL_ED25519, 5, 43},
};
#define CURVES (sizeof(curves) / sizeof(curves[0]))

static EVP_PKEY *pkeys[CURVES][KEYS];
static kh_kernel_key *keys[CURVES][KEYS];
static kh_kernel_scratch *scratch;

static int setup(void **state)
{
    (void)state;
    for (size_t c = 0; c < CURVES; c++)
        for (unsigned k = 0; k < KEYS; k++) {
            pkeys[c][k] = curves[c].name != NULL ? EVP_EC_gen(curves[c].name)
                                                 : EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
            assert_int_equal(kh_kernel_key_new(pkeys[c][k], &keys[c][k]), KH_OK);
        }
    return kh_kernel_scratch_new(&scratch) == KH_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    kh_kernel_scratch_free(scratch);
    for (size_t c = 0; c < CURVES; c++)
        for (unsigned k = 0; k < KEYS; k++) {
            kh_kernel_key_free(keys[c][k]);
            EVP_PKEY_free(pkeys[c][k]);
        }
    return 0;
}

static bool right(EVP_PKEY *pkey, const kh_kernel_op *op)
{
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(pkey, NULL);
    bool ok = op->result == KH_OK;

    if (op->scheme == KH_ED25519)
        ok = ok && EVP_DigestVerifyInit(md, NULL, NULL, NULL, pkey) == 1 &&
             EVP_DigestVerify(md, op->out, op->out_len, op->in, op->in_len) == 1;
    else
        ok = ok && EVP_PKEY_verify_init(ctx) == 1 &&
             EVP_PKEY_verify(ctx, op->out, op->out_len, op->in, op->in_len) == 1;
    EVP_PKEY_CTX_free(ctx);
    EVP_MD_CTX_free(md);
    return ok;
}

/* One batch, all of it right; returns how many lanes were done again. */
static uint64_t batch(size_t c, size_t fill)
{
    static uint8_t in[KH_KERNEL_LANES][32], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_op ops[KH_KERNEL_LANES];
    uint64_t before = kh_kernels_faults();

    for (size_t i = 0; i < fill; i++) {
        random_fill(in[i], sizeof(in[i]));
        ops[i] = (kh_kernel_op){.key = keys[c][i % KEYS],
                                .scheme = curves[c].name == NULL ? KH_ED25519 : KH_ECDSA_SHA256,
                                .in = in[i],
                                .in_len = sizeof(in[i]),
                                .out = out[i],
                                .out_size = KH_SIGNATURE_MAX};
    }
    assert_int_equal(kh_kernel_batch(scratch, curves[c].kind, ops, fill), KH_OK);
    for (size_t i = 0; i < fill; i++)
        assert_true(right(pkeys[c][i % KEYS], &ops[i]));
    return kh_kernels_faults() - before;
}

/*
 * How many lanes a fault must spoil. The inverse of ECDSA serves two lanes; a fault in the hash of an ECDSA
 * nonce makes another nonce, which is as good.
 */
static unsigned expected(size_t c, unsigned point, size_t fill, unsigned lane)
{
    if (point == KH_FAULT_EC_INVERSE)
        return (lane % 4 < fill) + (lane % 4 + 4 < fill);
    if (point == KH_FAULT_HASH && curves[c].name != NULL)
        return 0;
    return lane < fill;
}

/* How often a batch passes a point: in both computations, or in the first alone. */
static unsigned passages(size_t c, unsigned point)
{
    switch (point) {
    case KH_FAULT_EC_WINDOW:
    case KH_FAULT_ED_WINDOW:
        return 2 * curves[c].windows;
    case KH_FAULT_HASH: /* Ed25519: of nonce and challenge, twice */
        return curves[c].name != NULL ? 1 : 4;
    case KH_FAULT_EC_INVERSE:
    case KH_FAULT_EC_AFFINE:
    case KH_FAULT_EC_R:
    case KH_FAULT_EC_SUM:
    case KH_FAULT_EC_S:
    case KH_FAULT_ED_AFFINE:
        return 1;
    default:
        return 2;
    }
}

static unsigned faults_at(size_t c, unsigned point, const char *name, unsigned count)
{
    static const size_t fills[] = {1, 3, 5, 8};
    unsigned times = passages(c, point), limbs = point == KH_FAULT_HASH ? 8 : curves[c].limbs - 1;
    unsigned seen = 0;

    for (unsigned n = 0; n < count; n++) {
        size_t fill = fills[n % 4];
        unsigned lane = n % 3 == 0 ? n % KH_LANES : (unsigned)(random_next() % fill);
        uint64_t redone = 0;

        kh_test = (kh_test_hooks){.fault_armed = true,
                                  .fault_point = point,
                                  .fault_skip = n % times,
                                  .fault_limb = (unsigned)(random_next() % limbs), /* below the top limb */
                                  .fault_lane = lane,
                                  .fault_bit = (unsigned)(random_next() % 51)};
        redone = batch(c, fill);
        assert_int_equal(kh_test.fault_done, 1);
        seen += redone > 0;
        if (redone != expected(c, point, fill, lane))
            fail_msg("%s: point %s, passage %u, fill %zu, lane %u: %lu lanes redone",
                     kh_kernel_kind_name(curves[c].kind), name, n % times, fill, lane, (unsigned long)redone);
    }
    memset(&kh_test, 0, sizeof(kh_test));
    return seen;
}

/* The points of a curve, `per_point` faults each; at each window at least one. */
static void k6_every_value(kh_kernel_backend backend, size_t c, unsigned per_point)
{
    static const struct {
        unsigned point;
        const char *name;
    } points[] = {
#define KH_X(name) {KH_FAULT_##name, #name},
        KH_FAULT_EC_POINTS(KH_X) KH_FAULT_ED_POINTS(KH_X)
#undef KH_X
    };
    unsigned injected = 0, seen = 0;

    assert_int_equal(kh_kernels_select(backend), KH_OK);
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        bool ecdsa = curves[c].name != NULL, of_ecdsa = strncmp(points[i].name, "EC_", 3) == 0;
        unsigned count = per_point > passages(c, points[i].point) ? per_point : passages(c, points[i].point);

        if (ecdsa != of_ecdsa && points[i].point != KH_FAULT_HASH)
            continue;
        injected += count;
        seen += faults_at(c, points[i].point, points[i].name, count);
    }
    print_message("K6 %s, %s: %u faults, %u seen and done again, 0 wrong signatures out\n",
                  backend == KH_BACKEND_IFMA ? "ifma" : "portable", kh_kernel_kind_name(curves[c].kind),
                  injected, seen);
}

static void k6_portable(void **state)
{
    (void)state;
    for (size_t c = 0; c < CURVES; c++)
        k6_every_value(KH_BACKEND_PORTABLE, c, QUICK ? 4 : 20);
}

static void k6_ifma(void **state)
{
    (void)state;
    if (!kh_kernels_available())
        skip();
    for (size_t c = 0; c < CURVES; c++)
        k6_every_value(KH_BACKEND_IFMA, c, QUICK ? 20 : 400);
}

/* Flips a bit, expects every lane of that key to be done again, flips it back. */
static void flip(size_t c, void *byte, unsigned bit)
{
    *(uint8_t *)byte ^= (uint8_t)(1U << bit);
    assert_int_equal(batch(c, 8), 8 / KEYS);
    *(uint8_t *)byte ^= (uint8_t)(1U << bit);
}

/*
 * A bit of the prepared key that stays flipped: in either copy of the scalar, of Ed25519's prefix and public
 * key. The wrong public key beside the right one would give the key away by two signatures.
 */
static void k6_damaged_key(void **state)
{
    (void)state;
    assert_int_equal(kh_kernels_select(kh_kernels_available() ? KH_BACKEND_IFMA : KH_BACKEND_PORTABLE),
                     KH_OK);
    for (size_t c = 0; c < CURVES; c++)
        for (unsigned n = 0; n < 64; n++) {
            kh_kernel_key *key = keys[c][0];
            unsigned limb = n % curves[c].limbs, bit = n % 8;

            if (curves[c].name != NULL) {
                flip(c, &key->u.ec[n & 1].d[limb], bit);
                continue;
            }
            flip(c, &key->u.ed[n & 1].a[limb], bit);
            flip(c, &key->u.ed[n & 1].prefix[n % 32], bit);
            flip(c, &key->u.ed[n & 1].pub[n % 32], bit);
        }
    for (size_t c = 0; c < CURVES; c++)
        assert_int_equal(batch(c, 8), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(k6_portable),
        cmocka_unit_test(k6_ifma),
        cmocka_unit_test(k6_damaged_key),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

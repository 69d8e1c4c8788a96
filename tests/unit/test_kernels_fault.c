/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K6: a bit of each intermediate value of RSA is flipped in turn (hooks of the test build), for all three
 * sizes of key. No wrong result may come out; a fault that matters is counted, and the lane done again by
 * OpenSSL.
 */
#include "kernels_common.h"
#include "private.h"

typedef struct test_key {
    EVP_PKEY *pkey;
    kh_kernel_key *key;
    BIGNUM *modulus, *exponent;
} test_key;

static test_key keys[3];
static kh_kernel_scratch *scratch;

static int setup(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        test_key *k = &keys[kind];

        k->pkey = EVP_RSA_gen(2048U + 1024U * (unsigned)kind);
        assert_int_equal(kh_kernel_key_new(k->pkey, &k->key), KH_OK);
        assert_int_equal(kh_kernel_key_kind(k->key), kind);
        assert_int_equal(EVP_PKEY_get_bn_param(k->pkey, OSSL_PKEY_PARAM_RSA_N, &k->modulus), 1);
        assert_int_equal(EVP_PKEY_get_bn_param(k->pkey, OSSL_PKEY_PARAM_RSA_E, &k->exponent), 1);
    }
    return kh_kernel_scratch_new(&scratch) == KH_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    kh_kernel_scratch_free(scratch);
    for (int kind = 0; kind < 3; kind++) {
        kh_kernel_key_free(keys[kind].key);
        EVP_PKEY_free(keys[kind].pkey);
        BN_free(keys[kind].modulus);
        BN_free(keys[kind].exponent);
    }
    return 0;
}

static bool right(const test_key *k, const kh_kernel_op *op)
{
    BIGNUM *s = BN_bin2bn(op->out, (int)op->out_len, NULL), *m = BN_bin2bn(op->in, (int)op->in_len, NULL);
    BN_CTX *ctx = BN_CTX_new();
    bool ok = op->result == KH_OK && op->out_len == op->in_len &&
              BN_mod_exp(s, s, k->exponent, k->modulus, ctx) == 1 && BN_cmp(s, m) == 0;

    BN_free(s);
    BN_free(m);
    BN_CTX_free(ctx);
    return ok;
}

/* One batch with one fault; returns how many lanes were done again. */
static uint64_t batch_with_fault(kh_kernel_kind kind, size_t fill)
{
    static uint8_t in[KH_KERNEL_LANES][KH_SIGNATURE_MAX], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    const test_key *k = &keys[kind];
    size_t len = kh_kernel_key_out_max(k->key);
    kh_kernel_op ops[KH_KERNEL_LANES];
    uint64_t before = kh_kernels_faults();

    for (size_t i = 0; i < fill; i++) {
        random_fill(in[i], len);
        in[i][0] = 0;
        ops[i] = (kh_kernel_op){.key = k->key, .in = in[i], .in_len = len, .out = out[i], .out_size = len};
    }
    assert_int_equal(kh_kernel_batch(scratch, kind, ops, fill), KH_OK);
    for (size_t i = 0; i < fill; i++)
        assert_true(right(k, &ops[i]));
    return kh_kernels_faults() - before;
}

/*
 * Whether a fault at that point, lane and fill must be seen: not in the blinding, nor in a lane without an
 * operation.
 */
static bool matters(unsigned point, size_t fill, unsigned lane)
{
    if (point == KH_FAULT_RANDOM)
        return false;
    if (fill > 4 || point == KH_FAULT_RECOMBINE || point == KH_FAULT_RESULT)
        return lane < fill;
    return lane % 4 < fill;
}

/* Faults number 0, step, 2 step, ... of those for a kind of key. */
static void k6_every_value(kh_kernel_backend backend, kh_kernel_kind kind, unsigned step)
{
    static const char *const names[] = {
#define KH_X(name) #name,
        KH_FAULT_RSA_POINTS(KH_X)
#undef KH_X
    };
    static const size_t fills[] = {1, 3, 4, 6, 8};
    unsigned prime_limbs = keys[kind].key->u.rsa.len, windows = keys[kind].key->u.rsa.exp_bits / 4;
    unsigned seen = 0, injected = 0;

    assert_int_equal(kh_kernels_select(backend), KH_OK);
    for (unsigned point = 0; point <= KH_FAULT_RESULT; point++) {
        unsigned skips = point == KH_FAULT_POWER ? windows : 1;
        unsigned limbs = point == KH_FAULT_RESULT ? 2 * prime_limbs : prime_limbs;

        for (unsigned n = 0; n < 3 * limbs; n += step) {
            size_t fill = fills[n % 5];
            uint64_t redone = 0;

            kh_test =
                (kh_test_hooks){.fault_armed = true,
                                .fault_point = point,
                                .fault_skip = (unsigned)(random_next() % skips),
                                .fault_limb = n % (limbs - 1), /* the top limb of a prime is almost empty */
                                .fault_lane = n % KH_LANES,
                                .fault_bit = (unsigned)(random_next() % 52)};
            redone = batch_with_fault(kind, fill);
            assert_int_equal(kh_test.fault_done, 1);
            injected++;
            seen += redone > 0;
            if (matters(point, fill, n % KH_LANES) != (redone == 1))
                fail_msg("point %s, fill %zu, lane %u: %lu lanes redone", names[point], fill, n % KH_LANES,
                         (unsigned long)redone);
        }
    }
    memset(&kh_test, 0, sizeof(kh_test));
    print_message("K6 %s, %s: %u faults, %u seen and done again, 0 wrong results out\n",
                  backend == KH_BACKEND_IFMA ? "ifma" : "portable", kh_kernel_kind_name(kind), injected,
                  seen);
}

static void k6_portable(void **state)
{
    (void)state;
    k6_every_value(KH_BACKEND_PORTABLE, KH_KERNEL_RSA2048, QUICK ? 29 : 7);
    k6_every_value(KH_BACKEND_PORTABLE, KH_KERNEL_RSA3072, QUICK ? 89 : 37);
    k6_every_value(KH_BACKEND_PORTABLE, KH_KERNEL_RSA4096, QUICK ? 119 : 59);
}

static void k6_ifma(void **state)
{
    (void)state;
    if (!kh_kernels_available())
        skip();
    k6_every_value(KH_BACKEND_IFMA, KH_KERNEL_RSA2048, QUICK ? 7 : 1);
    k6_every_value(KH_BACKEND_IFMA, KH_KERNEL_RSA3072, QUICK ? 19 : 3);
    k6_every_value(KH_BACKEND_IFMA, KH_KERNEL_RSA4096, QUICK ? 37 : 7);
}

/* A key whose constants were damaged in memory: every result is done again. */
static void k6_damaged_key(void **state)
{
    kh_rsa_key *rsa = &keys[KH_KERNEL_RSA2048].key->u.rsa;
    uint64_t *const limb[] = {&rsa->prime[0].n[3],   &rsa->prime[1].n[3],    &rsa->prime[0].exp[5],
                              &rsa->prime[1].exp[5], &rsa->prime[0].qinv[2], &rsa->prime[1].qinv[2],
                              &rsa->prime[0].rr[1],  &rsa->prime[1].rrr[1],  &rsa->n[7],
                              &rsa->n_rr[7],         &rsa->prime[0].k0};

    (void)state;
    assert_int_equal(kh_kernels_select(kh_kernels_available() ? KH_BACKEND_IFMA : KH_BACKEND_PORTABLE),
                     KH_OK);
    for (size_t i = 0; i < sizeof(limb) / sizeof(limb[0]); i++) {
        *limb[i] ^= 1U << 17;
        assert_int_equal(batch_with_fault(KH_KERNEL_RSA2048, 8), 8);
        *limb[i] ^= 1U << 17;
    }
    assert_int_equal(batch_with_fault(KH_KERNEL_RSA2048, 8), 0);
}

/* The test at start: a fault in any kernel turns the kernels off; without one they are on. */
static void self_test(void **state)
{
    static const unsigned points[] = {KH_FAULT_CONSTANT_P, KH_FAULT_RESULT,    KH_FAULT_EC_WINDOW,
                                      KH_FAULT_EC_S,       KH_FAULT_ED_WINDOW, KH_FAULT_ED_S};

    (void)state;
    if (!kh_kernels_available())
        skip();
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        kh_test = (kh_test_hooks){.fault_armed = true, .fault_point = points[i], .fault_lane = 2};
        assert_int_equal(kh_kernels_init(), KH_E_CRYPTO);
        assert_int_equal(kh_test.fault_done, 1);
        assert_int_equal(kh_kernels_selected(), KH_BACKEND_OPENSSL);
        assert_int_equal(kh_kernels_choose(KH_KERNEL_P384, 8), KH_WAY_OPENSSL);
    }
    memset(&kh_test, 0, sizeof(kh_test));
    assert_int_equal(kh_kernels_init(), KH_OK);
    assert_int_equal(kh_kernels_selected(), KH_BACKEND_IFMA);
}

/* What the test at start compares with: a kernel that is wrong, and whose own check is wrong too, is found.
 */
static void self_test_answers(void **state)
{
    (void)state;
    if (!kh_kernels_available())
        skip();
    for (unsigned kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++) {
        kh_test = (kh_test_hooks){.wrong_answer = kind + 1};
        assert_int_equal(kh_kernels_init(), KH_E_CRYPTO);
        assert_int_equal(kh_kernels_selected(), KH_BACKEND_OPENSSL);
    }
    memset(&kh_test, 0, sizeof(kh_test));
    assert_int_equal(kh_kernels_init(), KH_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(k6_portable), cmocka_unit_test(k6_ifma),           cmocka_unit_test(k6_damaged_key),
        cmocka_unit_test(self_test),   cmocka_unit_test(self_test_answers),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

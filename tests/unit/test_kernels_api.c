/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of kernels.h: errors by slot, keys that are refused, selection, the table of ways.
 */
#include <pthread.h>

#include "kernels_common.h"

static kh_kernel_key *rsa, *p256, *ed25519;
static EVP_PKEY *pkeys[3];
static kh_kernel_scratch *scratch;

static int setup(void **state)
{
    (void)state;
    assert_int_equal(kh_kernels_select(kh_kernels_available() ? KH_BACKEND_IFMA : KH_BACKEND_PORTABLE),
                     KH_OK);
    pkeys[0] = EVP_RSA_gen(2048);
    pkeys[1] = EVP_EC_gen("P-256");
    pkeys[2] = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    assert_int_equal(kh_kernel_key_new(pkeys[0], &rsa), KH_OK);
    assert_int_equal(kh_kernel_key_new(pkeys[1], &p256), KH_OK);
    assert_int_equal(kh_kernel_key_new(pkeys[2], &ed25519), KH_OK);
    return kh_kernel_scratch_new(&scratch) == KH_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    kh_kernel_scratch_free(scratch);
    kh_kernel_key_free(rsa);
    kh_kernel_key_free(p256);
    kh_kernel_key_free(ed25519);
    for (int i = 0; i < 3; i++)
        EVP_PKEY_free(pkeys[i]);
    return 0;
}

static uint8_t in[KH_MESSAGE_MAX + 1], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];

static kh_kernel_op op(const kh_kernel_key *key, kh_scheme scheme, size_t in_len, unsigned slot)
{
    return (kh_kernel_op){.key = key,
                          .scheme = scheme,
                          .in = in,
                          .in_len = in_len,
                          .out = out[slot],
                          .out_size = KH_SIGNATURE_MAX,
                          .result = KH_E_INTERNAL};
}

/* Bad slots get their error; the good ones between them are done. */
static void errors_by_slot(void **state)
{
    kh_kernel_op ops[KH_KERNEL_LANES] = {
        op(rsa, KH_RSA_PKCS1_SHA256, 32, 0), op(rsa, KH_ECDSA_SHA256, 32, 1),
        op(rsa, KH_RSA_PKCS1_SHA256, 31, 2), op(p256, KH_ECDSA_SHA256, 32, 3),
        op(rsa, KH_SCHEME_NONE, 256, 4),     op(NULL, KH_RSA_PKCS1_SHA256, 32, 5),
        op(rsa, KH_SCHEME_NONE, 255, 6),     op(rsa, KH_RSA_PSS_RSAE_SHA512, 64, 7),
    };
    static const kh_result expected[] = {KH_OK, KH_E_SCHEME,  KH_E_INVALID, KH_E_INVALID,
                                         KH_OK, KH_E_INVALID, KH_E_INVALID, KH_OK};

    (void)state;
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, ops, 8), KH_OK);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(ops[i].result, expected[i]);
        assert_int_equal(ops[i].out_len, expected[i] == KH_OK ? 256 : 0);
    }
    ops[0].out_size = 255;
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, ops, 1), KH_OK);
    assert_int_equal(ops[0].result, KH_E_INVALID);
    ops[0] = op(ed25519, KH_ED25519, KH_MESSAGE_MAX + 1, 0);
    ops[1] = op(ed25519, KH_ED25519, KH_MESSAGE_MAX, 1);
    ops[2] = op(ed25519, KH_ED25519, 0, 2);
    ops[3] = op(ed25519, KH_SCHEME_NONE, 32, 3);
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_ED25519, ops, 4), KH_OK);
    assert_int_equal(ops[0].result, KH_E_TOO_LARGE);
    assert_int_equal(ops[1].result, KH_OK);
    assert_int_equal(ops[2].result, KH_OK);
    assert_int_equal(ops[3].result, KH_E_SCHEME);
}

static void block_not_below_modulus(void **state)
{
    uint8_t block[256];
    BIGNUM *n = NULL;
    kh_kernel_op one = op(rsa, KH_SCHEME_NONE, 256, 0);

    (void)state;
    assert_int_equal(EVP_PKEY_get_bn_param(pkeys[0], OSSL_PKEY_PARAM_RSA_N, &n), 1);
    one.in = block;
    for (unsigned less = 0; less < 2; less++) {
        assert_int_equal(BN_bn2binpad(n, block, 256), 256);
        assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, &one, 1), KH_OK);
        assert_int_equal(one.result, less ? KH_OK : KH_E_INVALID);
        BN_sub_word(n, 1);
    }
    BN_free(n);
}

static void bad_calls(void **state)
{
    kh_kernel_op ops[1] = {op(rsa, KH_RSA_PKCS1_SHA256, 32, 0)};
    kh_kernel_backend before = kh_kernels_selected();

    (void)state;
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, ops, 0), KH_E_INVALID);
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, ops, 9), KH_E_INVALID);
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_KIND_COUNT, ops, 1), KH_E_INVALID);
    assert_int_equal(kh_kernels_select((kh_kernel_backend)7), KH_E_UNSUPPORTED);
    assert_int_equal(kh_kernels_select(KH_BACKEND_OPENSSL), KH_OK);
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, ops, 1), KH_E_ORDER);
    assert_int_equal(kh_kernels_choose(KH_KERNEL_P384, 8), KH_WAY_OPENSSL);
    kh_kernel_single(&ops[0]);
    assert_int_equal(ops[0].result, KH_OK);
    assert_int_equal(kh_kernels_select(before), KH_OK);
}

static void expect_unsupported(EVP_PKEY *pkey)
{
    kh_kernel_key *key = (kh_kernel_key *)1;

    assert_non_null(pkey);
    assert_int_equal(kh_kernel_key_new(pkey, &key), KH_E_UNSUPPORTED);
    assert_null(key);
    EVP_PKEY_free(pkey);
}

/* Multi-prime, short, uneven and foreign keys, and a public half. */
static void unsupported_keys(void **state)
{
    BIGNUM *p = prime(2080, 65537), *q = prime(1000, 65537); /* p has more bits than half of RSA-4096 */
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    EVP_PKEY *pkey = NULL;
    uint8_t pub[32];
    size_t len = sizeof(pub);

    (void)state;
    expect_unsupported(rsa_key(p, q, 65537));
    expect_unsupported(EVP_RSA_gen(1024));
    expect_unsupported(EVP_EC_gen("P-521"));
    expect_unsupported(EVP_PKEY_Q_keygen(NULL, NULL, "X25519"));
    assert_int_equal(EVP_PKEY_keygen_init(ctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, 2048), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_keygen_primes(ctx, 3), 1);
    assert_int_equal(EVP_PKEY_generate(ctx, &pkey), 1);
    expect_unsupported(pkey);
    assert_int_equal(EVP_PKEY_get_raw_public_key(pkeys[2], pub, &len), 1);
    expect_unsupported(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, pub, len));
    EVP_PKEY_CTX_free(ctx);
    BN_free(p);
    BN_free(q);
}

/* The table: measured within its time, and P-384 always by the kernel where there is IFMA. */
static void ways(void **state)
{
    (void)state;
    if (!kh_kernels_available())
        skip();
    assert_int_equal(kh_kernels_select(KH_BACKEND_IFMA), KH_OK);
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++)
        assert_int_equal(kh_kernels_choose(kind, 8), KH_WAY_KERNEL);
    for (size_t fill = 1; fill <= 8; fill++)
        assert_int_equal(kh_kernels_choose(KH_KERNEL_P384, fill), KH_WAY_KERNEL);
    assert_int_equal(kh_kernels_choose(KH_KERNEL_RSA2048, 1), KH_WAY_OPENSSL); /* K3 */
    assert_int_equal(kh_kernels_choose(KH_KERNEL_P256, 1), KH_WAY_OPENSSL);
    assert_int_equal(kh_kernels_choose(KH_KERNEL_P256, 2), KH_WAY_KERNEL);
    assert_int_equal(kh_kernels_choose(KH_KERNEL_P256, 0), KH_WAY_OPENSSL);
    assert_int_equal(kh_kernels_choose(KH_KERNEL_P256, 9), KH_WAY_OPENSSL);
    /* What a measurement finds where factors are near 1 is the machine's mood; P-384's factor is 70. */
    assert_int_equal(kh_kernels_measure(50), KH_OK);
    assert_int_equal(kh_kernels_choose(KH_KERNEL_P384, 8), KH_WAY_KERNEL);
}

static void *worker(void *arg)
{
    kh_kernel_scratch *own = NULL;
    uint8_t digest[32] = {0}, sig[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    long bad = kh_kernel_scratch_new(&own) != KH_OK;

    (void)arg;
    for (unsigned round = 0; round < 60 && !bad; round++) {
        kh_kernel_kind kind = round % 2 ? KH_KERNEL_RSA2048 : KH_KERNEL_P256;
        kh_kernel_op ops[KH_KERNEL_LANES];

        for (unsigned i = 0; i < KH_KERNEL_LANES; i++)
            ops[i] = (kh_kernel_op){.key = round % 2 ? rsa : p256,
                                    .scheme = round % 2 ? KH_RSA_PKCS1_SHA256 : KH_ECDSA_SHA256,
                                    .in = digest,
                                    .in_len = 32,
                                    .out = sig[i],
                                    .out_size = KH_SIGNATURE_MAX};
        bad |= kh_kernel_batch(own, kind, ops, KH_KERNEL_LANES) != KH_OK;
        for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
            EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(pkeys[!(round % 2)], NULL);

            bad |= ops[i].result != KH_OK || EVP_PKEY_verify_init(ctx) != 1;
            if (round % 2)
                bad |= EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256()) != 1;
            bad |= EVP_PKEY_verify(ctx, sig[i], ops[i].out_len, digest, 32) != 1;
            EVP_PKEY_CTX_free(ctx);
        }
    }
    kh_kernel_scratch_free(own);
    return (void *)bad;
}

/* Keys shared by threads, each with a scratch of its own. */
static void threads(void **state)
{
    pthread_t thread[4];
    uint64_t faults = kh_kernels_faults();

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, worker, NULL), 0);
    for (int i = 0; i < 4; i++) {
        void *bad = NULL;

        assert_int_equal(pthread_join(thread[i], &bad), 0);
        assert_null(bad);
    }
    assert_int_equal(kh_kernels_faults(), faults);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_by_slot), cmocka_unit_test(block_not_below_modulus),
        cmocka_unit_test(bad_calls),      cmocka_unit_test(unsupported_keys),
        cmocka_unit_test(ways),           cmocka_unit_test(threads),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

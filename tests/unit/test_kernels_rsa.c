/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K4 for RSA: random and edge operands in every lane, mixed keys, all fills, both backends; each result is
 * checked by the public operation, some by OpenSSL's private one; signatures by EVP_DigestVerify.
 */
#include "kernels_common.h"

#define KEYS_MAX 8

typedef struct test_key {
    EVP_PKEY *pkey;
    kh_kernel_key *key;
    BIGNUM *n, *e, *p, *q;
    BN_MONT_CTX *mont;
} test_key;

static test_key keys[3][KEYS_MAX];
static size_t key_count[3];
static BN_CTX *ctx;

static void add_key(EVP_PKEY *pkey)
{
    test_key k = {.pkey = pkey};
    kh_kernel_kind kind = KH_KERNEL_RSA2048;

    assert_non_null(pkey);
    assert_int_equal(kh_kernel_key_new(pkey, &k.key), KH_OK);
    kind = kh_kernel_key_kind(k.key);
    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &k.n), 1);
    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &k.e), 1);
    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR1, &k.p), 1);
    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR2, &k.q), 1);
    k.mont = BN_MONT_CTX_new();
    assert_int_equal(BN_MONT_CTX_set(k.mont, k.n, ctx), 1);
    assert_true(key_count[kind] < KEYS_MAX);
    keys[kind][key_count[kind]++] = k;
}

/* p and q of these lengths, e. */
static void add_uneven(int p_bits, int q_bits, unsigned long e)
{
    BIGNUM *p = prime(p_bits, e), *q = prime(q_bits, e);

    add_key(rsa_key(p, q, e));
    BN_free(p);
    BN_free(q);
}

static int make_keys(void **state)
{
    (void)state;
    ctx = BN_CTX_new();
    add_key(EVP_RSA_gen(2048));
    add_key(EVP_RSA_gen(2048));
    add_uneven(1024, 1024, 3);
    add_uneven(1030, 1018, 65537);
    add_uneven(1016, 1032, 4294967291UL); /* q longer than p, a long e */
    add_key(EVP_RSA_gen(3072));
    add_uneven(1280, 1280, 65537); /* 2560: rounded up */
    add_uneven(1500, 1545, 17);
    add_key(EVP_RSA_gen(4096));
    add_uneven(1800, 1801, 65537); /* 3600 or 3601: rounded up */
    assert_int_equal(key_count[0], 5);
    assert_int_equal(key_count[1], 3);
    assert_int_equal(key_count[2], 2);
    return 0;
}

static int free_keys(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < key_count[kind]; i++) {
            test_key *k = &keys[kind][i];

            kh_kernel_key_free(k->key);
            EVP_PKEY_free(k->pkey);
            BN_free(k->n);
            BN_free(k->e);
            BN_free(k->p);
            BN_free(k->q);
            BN_MONT_CTX_free(k->mont);
        }
    }
    BN_CTX_free(ctx);
    return 0;
}

/* Operand number `which`: edges first, then random ones. Always below n. */
static void operand(const test_key *k, unsigned which, uint8_t *out, size_t len)
{
    BIGNUM *m = BN_new(), *t = BN_new();

    switch (which % 24) {
    case 0:
        BN_zero(m);
        break;
    case 1:
        BN_one(m);
        break;
    case 2:
        BN_sub(m, k->n, BN_value_one());
        break;
    case 3:
        BN_copy(m, k->p);
        break;
    case 4:
        BN_copy(m, k->q);
        break;
    case 5: /* a random multiple of p */
        BN_rand(t, 900, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY);
        BN_mul(m, k->p, t, ctx);
        break;
    case 6:
        BN_sub(m, k->n, k->q);
        break;
    case 7:
        BN_sub(m, k->n, k->p);
        break;
    case 8: /* all ones, as long as it fits */
        BN_set_bit(m, BN_num_bits(k->n) - 1);
        BN_sub_word(m, 1);
        break;
    case 9: /* a single bit */
        BN_set_bit(m, (int)(random_next() % (uint64_t)(BN_num_bits(k->n) - 1)));
        break;
    case 10: /* 2^(52 len) around the middle: limbs 0 and full */
        BN_set_bit(m, BN_num_bits(k->n) / 2);
        BN_sub_word(m, 1 + random_next() % 3);
        break;
    case 11: /* p - 1, q + 1, p + 1, q - 1 */
        BN_copy(m, random_next() & 1 ? k->p : k->q);
        if (random_next() & 1)
            BN_add_word(m, 1);
        else
            BN_sub_word(m, 1);
        break;
    default:
        BN_rand_range(m, k->n);
        break;
    }
    BN_nnmod(m, m, k->n, ctx);
    assert_int_equal(BN_bn2binpad(m, out, (int)len), (int)len);
    BN_free(m);
    BN_free(t);
}

static void check_public(const test_key *k, const kh_kernel_op *op)
{
    BIGNUM *s = BN_bin2bn(op->out, (int)op->out_len, NULL), *m = BN_bin2bn(op->in, (int)op->in_len, NULL);

    assert_int_equal(op->result, KH_OK);
    assert_int_equal(op->out_len, op->in_len);
    assert_true(BN_cmp(s, k->n) < 0);
    BN_mod_exp_mont(s, s, k->e, k->n, ctx, k->mont);
    assert_int_equal(BN_cmp(s, m), 0);
    BN_free(s);
    BN_free(m);
}

static void check_private(const kh_kernel_op *op)
{
    uint8_t out[KH_SIGNATURE_MAX];
    kh_kernel_op other = *op;

    other.out = out;
    kh_kernel_single(&other);
    assert_int_equal(other.result, KH_OK);
    assert_int_equal(other.out_len, op->out_len);
    assert_memory_equal(out, op->out, op->out_len);
}

/* Batches of random fill, key and operand until `count` operations are done. */
static void raw_batches(kh_kernel_scratch *scratch, kh_kernel_kind kind, size_t count)
{
    static uint8_t in[KH_KERNEL_LANES][KH_SIGNATURE_MAX], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_op ops[KH_KERNEL_LANES];
    const test_key *used[KH_KERNEL_LANES];
    unsigned which = 0;

    for (size_t done = 0, batch = 0; done < count; batch++) {
        size_t fill = batch % 3 == 0 ? 8 : batch % 3 == 1 ? 4 : 1 + random_next() % 8;

        for (size_t i = 0; i < fill; i++) {
            used[i] = &keys[kind][random_next() % key_count[kind]];
            memset(&ops[i], 0, sizeof(ops[i]));
            ops[i].key = used[i]->key;
            ops[i].in = in[i];
            ops[i].in_len = kh_kernel_key_out_max(used[i]->key);
            ops[i].out = out[i];
            ops[i].out_size = sizeof(out[i]);
            operand(used[i], which++, in[i], ops[i].in_len);
        }
        assert_int_equal(kh_kernel_batch(scratch, kind, ops, fill), KH_OK);
        for (size_t i = 0; i < fill; i++)
            check_public(used[i], &ops[i]);
        if (batch % 8 == 0)
            check_private(&ops[random_next() % fill]);
        done += fill;
    }
}

static void k4_rsa_raw(void **state)
{
    kh_kernel_backend list[2];
    size_t n = backends(list), total = rounds(20000);

    (void)state;
    for (size_t b = 0; b < n; b++) {
        bool portable = list[b] == KH_BACKEND_PORTABLE;
        size_t count = portable ? 240 : total;
        kh_kernel_scratch *scratch = NULL;
        uint64_t faults = kh_kernels_faults();

        assert_int_equal(kh_kernels_select(list[b]), KH_OK);
        assert_int_equal(kh_kernel_scratch_new(&scratch), KH_OK);
        raw_batches(scratch, KH_KERNEL_RSA2048, count * 7 / 10);
        raw_batches(scratch, KH_KERNEL_RSA3072, count * 2 / 10);
        raw_batches(scratch, KH_KERNEL_RSA4096, count / 10);
        kh_kernel_scratch_free(scratch);
        assert_int_equal(kh_kernels_faults(), faults); /* every lane passed its own check */
        print_message("K4 rsa %s: %zu operations\n", portable ? "portable" : "ifma", count);
    }
}

/* Each edge operand in each lane, the other lanes with others. */
static void k4_rsa_each_lane(void **state)
{
    static uint8_t in[KH_KERNEL_LANES][KH_SIGNATURE_MAX], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_scratch *scratch = NULL;
    uint64_t faults = kh_kernels_faults();

    (void)state;
    if (!kh_kernels_available())
        skip();
    assert_int_equal(kh_kernels_select(KH_BACKEND_IFMA), KH_OK);
    assert_int_equal(kh_kernel_scratch_new(&scratch), KH_OK);
    for (size_t fill = 1; fill <= KH_KERNEL_LANES; fill++) {
        for (unsigned edge = 0; edge < 12; edge++) {
            kh_kernel_op ops[KH_KERNEL_LANES];

            for (size_t i = 0; i < fill; i++) {
                const test_key *k = &keys[0][(i + edge) % key_count[0]];

                ops[i] = (kh_kernel_op){.key = k->key,
                                        .in = in[i],
                                        .in_len = kh_kernel_key_out_max(k->key),
                                        .out = out[i],
                                        .out_size = 512};
                operand(k, (edge + (unsigned)i) % 12, in[i], ops[i].in_len);
            }
            assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_RSA2048, ops, fill), KH_OK);
            for (size_t i = 0; i < fill; i++)
                check_public(&keys[0][(i + edge) % key_count[0]], &ops[i]);
        }
    }
    assert_int_equal(kh_kernels_faults(), faults);
    kh_kernel_scratch_free(scratch);
}

static void check_signature(EVP_PKEY *pkey, kh_scheme scheme, const kh_kernel_op *op)
{
    EVP_PKEY_CTX *vctx = EVP_PKEY_CTX_new(pkey, NULL);
    bool pss = scheme >= KH_RSA_PSS_RSAE_SHA256;

    assert_int_equal(op->result, KH_OK);
    assert_int_equal(EVP_PKEY_verify_init(vctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(vctx, pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING), 1);
    assert_int_equal(EVP_PKEY_CTX_set_signature_md(vctx, op->in_len == 32   ? EVP_sha256()
                                                         : op->in_len == 48 ? EVP_sha384()
                                                                            : EVP_sha512()),
                     1);
    if (pss)
        assert_int_equal(EVP_PKEY_CTX_set_rsa_pss_saltlen(vctx, RSA_PSS_SALTLEN_DIGEST), 1);
    assert_int_equal(EVP_PKEY_verify(vctx, op->out, op->out_len, op->in, op->in_len), 1);
    EVP_PKEY_CTX_free(vctx);
}

/* All schemes, mixed in a batch, by the kernel and by OpenSSL; odd modulus lengths included. */
static void k4_rsa_signatures(void **state)
{
    static const kh_scheme schemes[] = {KH_RSA_PKCS1_SHA256,    KH_RSA_PKCS1_SHA384,
                                        KH_RSA_PKCS1_SHA512,    KH_RSA_PSS_RSAE_SHA256,
                                        KH_RSA_PSS_RSAE_SHA384, KH_RSA_PSS_RSAE_SHA512};
    static uint8_t digest[64], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_scratch *scratch = NULL;

    (void)state;
    if (!kh_kernels_available())
        skip();
    assert_int_equal(kh_kernels_select(KH_BACKEND_IFMA), KH_OK);
    assert_int_equal(kh_kernel_scratch_new(&scratch), KH_OK);
    for (int kind = 0; kind < 3; kind++) {
        for (unsigned round = 0; round < 12; round++) {
            kh_kernel_op ops[KH_KERNEL_LANES];
            const test_key *used[KH_KERNEL_LANES];

            random_fill(digest, sizeof(digest));
            for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
                kh_scheme scheme = schemes[(i + round) % 6];

                used[i] = &keys[kind][random_next() % key_count[kind]];
                ops[i] = (kh_kernel_op){.key = used[i]->key,
                                        .scheme = scheme,
                                        .in = digest,
                                        .in_len = (size_t[]){32, 48, 64}[(i + round) % 3],
                                        .out = out[i],
                                        .out_size = 512};
            }
            assert_int_equal(kh_kernel_batch(scratch, kind, ops, KH_KERNEL_LANES), KH_OK);
            for (unsigned i = 0; i < KH_KERNEL_LANES; i++)
                check_signature(used[i]->pkey, ops[i].scheme, &ops[i]);
            kh_kernel_single(&ops[round % 8]);
            check_signature(used[round % 8]->pkey, ops[round % 8].scheme, &ops[round % 8]);
        }
    }
    kh_kernel_scratch_free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(k4_rsa_raw),
        cmocka_unit_test(k4_rsa_each_lane),
        cmocka_unit_test(k4_rsa_signatures),
    };

    return cmocka_run_group_tests(tests, make_keys, free_keys);
}

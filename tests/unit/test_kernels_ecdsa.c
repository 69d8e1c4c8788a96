/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K4 for ECDSA: the vectors of RFC 6979 (A.2.5, A.2.6) in each lane; hedged signatures with mixed keys and
 * hashes and all fills, verified by OpenSSL; edge keys and digests; both backends give the same
 * deterministic signatures.
 */
#include <openssl/sha.h>

#include "kernels_common.h"

typedef struct vector {
    const char *curve, *key, *message;
    size_t hash_len;
    const char *r, *s;
} vector;

#define KEY_256 "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721"
#define KEY_384                                                                                              \
    "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5"

static const vector vectors[] = {
    {"P-256", KEY_256, "sample", 32, "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
     "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"},
    {"P-256", KEY_256, "sample", 48, "0EAFEA039B20E9B42309FB1D89E213057CBF973DC0CFC8F129EDDDC800EF7719",
     "4861F0491E6998B9455193E34E7B0D284DDD7149A74B95B9261F13ABDE940954"},
    {"P-256", KEY_256, "sample", 64, "8496A60B5E9B47C825488827E0495B0E3FA109EC4568FD3F8D1097678EB97F00",
     "2362AB1ADBE2B8ADF9CB9EDAB740EA6049C028114F2460F96554F61FAE3302FE"},
    {"P-256", KEY_256, "test", 32, "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367",
     "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083"},
    {"P-384", KEY_384, "sample", 32,
     "21B13D1E013C7FA1392D03C5F99AF8B30C570C6F98D4EA8E354B63A21D3DAA33BDE1E888E63355D92FA2B3C36D8FB2CD",
     "F3AA443FB107745BF4BD77CB3891674632068A10CA67E3D45DB2266FA7D1FEEBEFDC63ECCD1AC42EC0CB8668A4FA0AB0"},
    {"P-384", KEY_384, "sample", 48,
     "94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46",
     "99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8"},
    {"P-384", KEY_384, "sample", 64,
     "ED0959D5880AB2D869AE7F6C2915C6D60F96507F9CB3E047C0046861DA4A799CFE30F35CC900056D7C99CD7882433709",
     "512C8CCEEE3890A84058CE1E22DBC2198F42323CE8ACA9135329F03C068E5112DC7CC3EF3446DEFCEB01A45C2667FDD5"},
    {"P-384", KEY_384, "test", 48,
     "8203B63D3C853E8D77227FB377BCF7B7B772E97892A80F36AB775D509D7A5FEB0542A7F0812998DA8F1DD3CA3CF023DB",
     "DDD0760448D42D8A43AF45AF836FCE4DE8BE06B485E9B61B827C2F13173923E06A739F040649A667BF3B828246BAA5A5"},
};
#define VECTORS (sizeof(vectors) / sizeof(vectors[0]))

static kh_scheme scheme_of(size_t hash_len)
{
    return hash_len == 32 ? KH_ECDSA_SHA256 : hash_len == 48 ? KH_ECDSA_SHA384 : KH_ECDSA_SHA512;
}

static void hash(uint8_t *out, const char *message, size_t hash_len)
{
    const EVP_MD *md = hash_len == 32 ? EVP_sha256() : hash_len == 48 ? EVP_sha384() : EVP_sha512();

    assert_int_equal(EVP_Digest(message, strlen(message), out, NULL, md, NULL), 1);
}

static void check_vector(const vector *v, const kh_kernel_op *op)
{
    const uint8_t *der = op->out;
    ECDSA_SIG *sig = d2i_ECDSA_SIG(NULL, &der, (long)op->out_len);
    BIGNUM *r = NULL, *s = NULL;

    assert_int_equal(op->result, KH_OK);
    assert_non_null(sig);
    assert_ptr_equal(der, op->out + op->out_len);
    BN_hex2bn(&r, v->r);
    BN_hex2bn(&s, v->s);
    assert_int_equal(BN_cmp(r, ECDSA_SIG_get0_r(sig)), 0);
    assert_int_equal(BN_cmp(s, ECDSA_SIG_get0_s(sig)), 0);
    BN_free(r);
    BN_free(s);
    ECDSA_SIG_free(sig);
}

/* All vectors of a curve side by side, moved on by one lane each time. */
static void vectors_of(kh_kernel_scratch *scratch, const char *curve, kh_kernel_kind kind)
{
    static uint8_t digest[VECTORS][64], out[KH_KERNEL_LANES][128];
    EVP_PKEY *pkey = NULL;
    kh_kernel_key *key = NULL;
    BIGNUM *d = NULL;

    BN_hex2bn(&d, kind == KH_KERNEL_P256 ? KEY_256 : KEY_384);
    pkey = ec_key(curve, d);
    assert_int_equal(kh_kernel_key_new(pkey, &key), KH_OK);
    assert_int_equal(kh_kernel_key_kind(key), kind);
    for (unsigned turn = 0; turn < KH_KERNEL_LANES; turn++) {
        const vector *used[KH_KERNEL_LANES];
        kh_kernel_op ops[KH_KERNEL_LANES];

        for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
            used[i] = &vectors[(kind == KH_KERNEL_P256 ? 0 : 4) + (i + turn) % 4];
            hash(digest[i], used[i]->message, used[i]->hash_len);
            ops[i] = (kh_kernel_op){.key = key,
                                    .scheme = scheme_of(used[i]->hash_len),
                                    .in = digest[i],
                                    .in_len = used[i]->hash_len,
                                    .out = out[i],
                                    .out_size = sizeof(out[i])};
        }
        assert_int_equal(kh_kernel_batch(scratch, kind, ops, turn + 1), KH_OK);
        for (unsigned i = 0; i <= turn; i++)
            check_vector(used[i], &ops[i]);
    }
    kh_kernel_key_free(key);
    EVP_PKEY_free(pkey);
    BN_free(d);
}

static void k4_rfc6979(void **state)
{
    kh_kernel_backend list[2];
    size_t n = backends(list);

    (void)state;
    for (size_t b = 0; b < n; b++) {
        kh_kernel_scratch *scratch = NULL;
        uint64_t faults = kh_kernels_faults();

        assert_int_equal(kh_kernels_select(list[b]), KH_OK);
        assert_int_equal(kh_kernel_scratch_new(&scratch), KH_OK);
        kh_kernel_scratch_deterministic(scratch, true);
        vectors_of(scratch, "P-256", KH_KERNEL_P256);
        vectors_of(scratch, "P-384", KH_KERNEL_P384);
        kh_kernel_scratch_free(scratch);
        assert_int_equal(kh_kernels_faults(), faults);
    }
}

#define KEYS 12

/* Random keys, and scalars at the edges: 1, 2, n - 1, n - 2, one high bit, all ones below it. */
static void make_keys(const char *curve, EVP_PKEY **pkeys, kh_kernel_key **keys)
{
    EC_GROUP *group =
        EC_GROUP_new_by_curve_name(strcmp(curve, "P-256") == 0 ? NID_X9_62_prime256v1 : NID_secp384r1);
    const BIGNUM *order = EC_GROUP_get0_order(group);

    for (unsigned i = 0; i < KEYS; i++) {
        BIGNUM *d = BN_new();

        BN_copy(d, order);
        if (i < 2)
            BN_set_word(d, i + 1);
        else if (i < 4)
            BN_sub_word(d, i - 1);
        else if (i < 6) {
            BN_zero(d);
            BN_set_bit(d, BN_num_bits(order) - 1);
            if (i == 5)
                BN_sub_word(d, 1);
        } else
            BN_rand_range(d, order);
        pkeys[i] = ec_key(curve, d);
        assert_int_equal(kh_kernel_key_new(pkeys[i], &keys[i]), KH_OK);
        BN_free(d);
    }
    EC_GROUP_free(group);
}

static void hedged(kh_kernel_scratch *scratch, const char *curve, kh_kernel_kind kind, size_t count)
{
    static uint8_t digest[KH_KERNEL_LANES][64], out[KH_KERNEL_LANES][128];
    EVP_PKEY *pkeys[KEYS];
    kh_kernel_key *keys[KEYS];
    kh_kernel_op ops[KH_KERNEL_LANES];
    unsigned used[KH_KERNEL_LANES];

    make_keys(curve, pkeys, keys);
    for (size_t done = 0; done < count;) {
        size_t fill = done % 3 == 0 ? 8 : 1 + random_next() % 8;

        for (size_t i = 0; i < fill; i++) {
            size_t len = (size_t[]){32, 48, 64}[random_next() % 3];

            used[i] = (unsigned)(random_next() % KEYS);
            random_fill(digest[i], len);
            if (random_next() % 16 == 0)
                memset(digest[i], random_next() & 1 ? 0xff : 0, len);
            ops[i] = (kh_kernel_op){.key = keys[used[i]],
                                    .scheme = scheme_of(len),
                                    .in = digest[i],
                                    .in_len = len,
                                    .out = out[i],
                                    .out_size = kh_kernel_key_out_max(keys[used[i]])};
        }
        assert_int_equal(kh_kernel_batch(scratch, kind, ops, fill), KH_OK);
        for (size_t i = 0; i < fill; i++) {
            EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(pkeys[used[i]], NULL);

            assert_int_equal(ops[i].result, KH_OK);
            assert_int_equal(EVP_PKEY_verify_init(ctx), 1);
            assert_int_equal(EVP_PKEY_verify(ctx, out[i], ops[i].out_len, digest[i], ops[i].in_len), 1);
            EVP_PKEY_CTX_free(ctx);
        }
        done += fill;
    }
    for (unsigned i = 0; i < KEYS; i++) {
        kh_kernel_key_free(keys[i]);
        EVP_PKEY_free(pkeys[i]);
    }
}

static void k4_ecdsa(void **state)
{
    kh_kernel_backend list[2];
    size_t n = backends(list), total = rounds(10000);

    (void)state;
    for (size_t b = 0; b < n; b++) {
        size_t count = list[b] == KH_BACKEND_PORTABLE ? 400 : total;
        kh_kernel_scratch *scratch = NULL;
        uint64_t faults = kh_kernels_faults();

        assert_int_equal(kh_kernels_select(list[b]), KH_OK);
        assert_int_equal(kh_kernel_scratch_new(&scratch), KH_OK);
        hedged(scratch, "P-256", KH_KERNEL_P256, count);
        hedged(scratch, "P-384", KH_KERNEL_P384, count);
        kh_kernel_scratch_free(scratch);
        assert_int_equal(kh_kernels_faults(), faults);
        print_message("K4 ecdsa %s: %zu operations of each curve\n", b == 0 ? "portable" : "ifma", count);
    }
}

/* The same digest and key twice: the nonces differ. */
static void nonces_differ(void **state)
{
    static uint8_t digest[32], out[KH_KERNEL_LANES][128];
    EVP_PKEY *pkey = EVP_EC_gen("P-256");
    kh_kernel_key *key = NULL;
    kh_kernel_scratch *scratch = NULL;
    kh_kernel_op ops[KH_KERNEL_LANES];

    (void)state;
    assert_int_equal(kh_kernels_select(kh_kernels_available() ? KH_BACKEND_IFMA : KH_BACKEND_PORTABLE),
                     KH_OK);
    assert_int_equal(kh_kernel_key_new(pkey, &key), KH_OK);
    assert_int_equal(kh_kernel_scratch_new(&scratch), KH_OK);
    for (unsigned i = 0; i < KH_KERNEL_LANES; i++)
        ops[i] = (kh_kernel_op){.key = key,
                                .scheme = KH_ECDSA_SHA256,
                                .in = digest,
                                .in_len = 32,
                                .out = out[i],
                                .out_size = 128};
    assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_P256, ops, KH_KERNEL_LANES), KH_OK);
    for (unsigned i = 0; i < KH_KERNEL_LANES; i++)
        for (unsigned j = 0; j < i; j++)
            assert_memory_not_equal(out[i] + 4, out[j] + 4, 30);
    kh_kernel_scratch_free(scratch);
    kh_kernel_key_free(key);
    EVP_PKEY_free(pkey);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(k4_rfc6979),
        cmocka_unit_test(k4_ecdsa),
        cmocka_unit_test(nonces_differ),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

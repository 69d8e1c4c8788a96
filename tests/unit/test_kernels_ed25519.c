/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K4 for Ed25519: the vectors of RFC 8032, 7.1, in each lane, and equality byte for byte with OpenSSL for
 * random keys and messages of all lengths.
 */
#include "kernels_common.h"

typedef struct vector {
    const char *seed, *message, *signature;
} vector;

static const vector vectors[] = {
    {"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
     "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"},
    {"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
     "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"},
    {"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
     "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"},
    {"833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
     "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
     "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
     "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"},
};

static EVP_PKEY *from_seed(const uint8_t seed[32])
{
    return EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed, 32);
}

static void run_vectors(kh_kernel_scratch *scratch)
{
    static uint8_t seed[4][32], message[4][64], signature[4][64], out[KH_KERNEL_LANES][64];
    EVP_PKEY *pkeys[4];
    kh_kernel_key *keys[4];
    size_t len[4];

    for (unsigned v = 0; v < 4; v++) {
        assert_int_equal(from_hex(seed[v], vectors[v].seed), 32);
        len[v] = from_hex(message[v], vectors[v].message);
        assert_int_equal(from_hex(signature[v], vectors[v].signature), 64);
        pkeys[v] = from_seed(seed[v]);
        assert_int_equal(kh_kernel_key_new(pkeys[v], &keys[v]), KH_OK);
    }
    for (unsigned turn = 0; turn < KH_KERNEL_LANES; turn++) {
        kh_kernel_op ops[KH_KERNEL_LANES];

        for (unsigned i = 0; i <= turn; i++) {
            unsigned v = (i + turn) % 4;

            ops[i] = (kh_kernel_op){.key = keys[v],
                                    .scheme = KH_ED25519,
                                    .in = message[v],
                                    .in_len = len[v],
                                    .out = out[i],
                                    .out_size = 64};
        }
        assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_ED25519, ops, turn + 1), KH_OK);
        for (unsigned i = 0; i <= turn; i++) {
            assert_int_equal(ops[i].result, KH_OK);
            assert_memory_equal(out[i], signature[(i + turn) % 4], 64);
        }
    }
    for (unsigned v = 0; v < 4; v++) {
        kh_kernel_key_free(keys[v]);
        EVP_PKEY_free(pkeys[v]);
    }
}

#define KEYS 32

static void random_messages(kh_kernel_scratch *scratch, size_t count)
{
    static uint8_t message[KH_KERNEL_LANES][KH_MESSAGE_MAX], out[KH_KERNEL_LANES][64];
    EVP_PKEY *pkeys[KEYS];
    kh_kernel_key *keys[KEYS];

    for (unsigned k = 0; k < KEYS; k++) {
        uint8_t seed[32];

        random_fill(seed, sizeof(seed));
        pkeys[k] = from_seed(seed);
        assert_int_equal(kh_kernel_key_new(pkeys[k], &keys[k]), KH_OK);
    }
    for (size_t done = 0; done < count;) {
        size_t fill = done % 3 == 0 ? 8 : 1 + random_next() % 8;
        kh_kernel_op ops[KH_KERNEL_LANES];
        unsigned used[KH_KERNEL_LANES];

        for (size_t i = 0; i < fill; i++) {
            size_t len = random_next() % 64 == 0 ? random_next() % (KH_MESSAGE_MAX + 1) : random_next() % 400;

            used[i] = (unsigned)(random_next() % KEYS);
            random_fill(message[i], len);
            ops[i] = (kh_kernel_op){.key = keys[used[i]],
                                    .scheme = KH_ED25519,
                                    .in = message[i],
                                    .in_len = len,
                                    .out = out[i],
                                    .out_size = 64};
        }
        assert_int_equal(kh_kernel_batch(scratch, KH_KERNEL_ED25519, ops, fill), KH_OK);
        for (size_t i = 0; i < fill; i++) {
            EVP_MD_CTX *ctx = EVP_MD_CTX_new();
            uint8_t other[64];
            size_t len = sizeof(other);

            assert_int_equal(ops[i].result, KH_OK);
            assert_int_equal(EVP_DigestSignInit(ctx, NULL, NULL, NULL, pkeys[used[i]]), 1);
            assert_int_equal(EVP_DigestSign(ctx, other, &len, message[i], ops[i].in_len), 1);
            assert_memory_equal(other, out[i], 64);
            EVP_MD_CTX_free(ctx);
        }
        done += fill;
    }
    for (unsigned k = 0; k < KEYS; k++) {
        kh_kernel_key_free(keys[k]);
        EVP_PKEY_free(pkeys[k]);
    }
}

static void k4_ed25519(void **state)
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
        run_vectors(scratch);
        random_messages(scratch, count);
        kh_kernel_scratch_free(scratch);
        assert_int_equal(kh_kernels_faults(), faults);
        print_message("K4 ed25519 %s: %zu operations\n", b == 0 ? "portable" : "ifma", count);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(k4_ed25519)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The software tier's batches through the kernels: each kind, each fill and each lane, signing and TLS RSA
 * key exchange in one batch, with each backend that this CPU has and with the kernels off. OpenSSL judges
 * every result. K3: the way that was taken is the one that kh_kernels_choose names.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "algorithms.h"
#include "kernels/kernels.h"
#include "material.h"
#include "multibuffer.h"
#include "software.h"

#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    kh_key_type type;
    unsigned bits;
    kh_kernel_kind kind;
    uint32_t scheme[2];
} kinds[] = {
    {KH_KEY_RSA, 2048, KH_KERNEL_RSA2048, {KH_RSA_PSS_RSAE_SHA256, KH_RSA_PKCS1_SHA512}},
    {KH_KEY_RSA, 3072, KH_KERNEL_RSA3072, {KH_RSA_PSS_RSAE_SHA384, KH_RSA_PKCS1_SHA256}},
    {KH_KEY_RSA, 4096, KH_KERNEL_RSA4096, {KH_RSA_PSS_RSAE_SHA512, KH_RSA_PKCS1_SHA384}},
    {KH_KEY_P256, 256, KH_KERNEL_P256, {KH_ECDSA_SHA256, KH_ECDSA_SHA256}},
    {KH_KEY_P384, 384, KH_KERNEL_P384, {KH_ECDSA_SHA384, KH_ECDSA_SHA384}},
    {KH_KEY_ED25519, 256, KH_KERNEL_ED25519, {KH_ED25519, KH_ED25519}},
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static kh_material materials[KINDS][2];
static kh_software *software;

typedef struct bench { /* a batch with all that it points to */
    kh_tier_op op[KH_BATCH_MAX], *ops[KH_BATCH_MAX];
    uint8_t in[KH_BATCH_MAX][KH_SIGNATURE_MAX], out[KH_BATCH_MAX][KH_SIGNATURE_MAX];
    uint8_t expected[KH_BATCH_MAX][KH_PREMASTER_LEN];
} bench;

static bench batch;

static int group_set_up(void **state)
{
    (void)state;
    assert_int_equal(kh_algorithms_init(), KH_OK);
    for (size_t k = 0; k < KINDS; k++) {
        for (int i = 0; i < 2; i++) {
            assert_int_equal(kh_material_generate(kinds[k].type, kinds[k].bits, &materials[k][i]), KH_OK);
        }
    }
    return 0;
}

/* false: this CPU has not got it. */
static bool begin(kh_kernel_backend backend)
{
    if (kh_kernels_select(backend) != KH_OK) {
        return false;
    }
    assert_int_equal(kh_software_new(&software), KH_OK);
    return true;
}

static void end(void)
{
    kh_software_free(software);
    software = NULL;
    assert_int_equal(kh_multibuffer_new_faults(), 0);
}

static kh_key *make_key(size_t k, int which)
{
    const kh_key_info info = {.type = (uint32_t)kinds[k].type, .bits = kinds[k].bits};
    kh_key *key = NULL;

    assert_int_equal(kh_key_new(&info, materials[k][which].pkcs8, materials[k][which].pkcs8_len, &key),
                     KH_OK);
    assert_int_equal(key->kernel != NULL, kh_kernels_selected() != KH_BACKEND_OPENSSL);
    return key;
}

static void put_signing(size_t i, kh_key *key, uint32_t scheme)
{
    memset(batch.in[i], (int)(i * 17 + scheme), sizeof(batch.in[i]));
    batch.op[i] = (kh_tier_op){.kind = KH_TIER_SIGN,
                               .key = key,
                               .scheme = scheme,
                               .data = batch.in[i],
                               .len = 100 + i,
                               .out = batch.out[i]};
    batch.ops[i] = &batch.op[i];
    memset(batch.out[i], 0, sizeof(batch.out[i]));
}

/* fault 0: none; 1: padding; 2: version; 3: a ciphertext that is too long. */
static void put_kx(size_t i, kh_key *key, int fault)
{
    uint8_t block[KH_SIGNATURE_MAX];
    size_t len = key->modulus_len, out_len = sizeof(batch.in[i]);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);

    memset(block, 0x40 + (int)i, len);
    block[0] = 0;
    block[1] = fault == 1 ? 1 : 2;
    block[len - 49] = 0;
    block[len - 48] = 3;
    block[len - 47] = fault == 2 ? 2 : 3;
    assert_int_equal(EVP_PKEY_encrypt_init(ctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_NO_PADDING), 1);
    assert_int_equal(EVP_PKEY_encrypt(ctx, batch.in[i], &out_len, block, len), 1);
    EVP_PKEY_CTX_free(ctx);
    batch.op[i] = (kh_tier_op){.kind = KH_TIER_TLS_RSA_KX,
                               .key = key,
                               .arg = 0x0303,
                               .data = batch.in[i],
                               .len = fault == 3 ? len - 1 : len,
                               .out = batch.out[i]};
    batch.ops[i] = &batch.op[i];
    memcpy(batch.expected[i], block + len - 48, 48);
    if (fault != 0) {
        assert_int_equal(
            kh_rsakx_random(key->kx_secret, 0x0303, batch.in[i], batch.op[i].len, batch.expected[i]), KH_OK);
    }
}

static bool verified(const kh_tier_op *op)
{
    static const char *const names[] = {[32] = "SHA256", [48] = "SHA384", [64] = "SHA512"};
    size_t hash_len = kh_scheme_hash_len((int)op->scheme);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *pkey_ctx = NULL;
    bool good = EVP_DigestVerifyInit_ex(ctx, &pkey_ctx, hash_len != 0 ? names[hash_len] : NULL, NULL, NULL,
                                        op->key->pkey, NULL) == 1;

    if (good && (op->scheme == KH_RSA_PSS_RSAE_SHA256 || op->scheme == KH_RSA_PSS_RSAE_SHA384 ||
                 op->scheme == KH_RSA_PSS_RSAE_SHA512)) {
        good = EVP_PKEY_CTX_set_rsa_padding(pkey_ctx, RSA_PKCS1_PSS_PADDING) == 1 &&
               EVP_PKEY_CTX_set_rsa_pss_saltlen(pkey_ctx, RSA_PSS_SALTLEN_DIGEST) == 1;
    }
    good = good && EVP_DigestVerify(ctx, op->out, op->out_len, op->data, op->len) == 1;
    EVP_MD_CTX_free(ctx);
    return good;
}

/* Computes and judges a batch; returns how many went through a kernel. */
static size_t compute(size_t n)
{
    size_t by_kernel = 0;

    kh_software_batch(software, batch.ops, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(batch.op[i].result, KH_OK);
        if (batch.op[i].kind == KH_TIER_SIGN) {
            assert_true(verified(&batch.op[i]));
        } else {
            assert_int_equal(batch.op[i].out_len, KH_PREMASTER_LEN);
            assert_memory_equal(batch.out[i], batch.expected[i], KH_PREMASTER_LEN);
        }
        by_kernel += batch.op[i].by_kernel;
    }
    return by_kernel;
}

/* What the table of ways says of n operations; of RSA, which fills the lanes with four, perhaps the first
 * four. */
static size_t share(kh_kernel_kind kind, size_t n)
{
    if (kh_kernels_choose(kind, n) != KH_WAY_KERNEL) {
        return 0;
    }
    if (kind <= KH_KERNEL_RSA4096 && n > 4 && n < 8 && kh_kernels_choose(kind, n - 4) != KH_WAY_KERNEL) {
        return 4;
    }
    return n;
}

static void every_fill(kh_kernel_backend backend)
{
    size_t computed = 0, by_kernel = 0;

    if (!begin(backend)) {
        skip();
    }
    for (size_t k = 0; k < KINDS; k++) {
        kh_key *keys[2] = {make_key(k, 0), make_key(k, 1)};

        for (size_t n = 1; n <= KH_BATCH_MAX; n++) {
            size_t done = 0;

            for (size_t i = 0; i < n; i++) {
                put_signing(i, keys[(i + n) % 2], kinds[k].scheme[(i / 2) % 2]);
            }
            done = compute(n);
            assert_int_equal(done, backend == KH_BACKEND_OPENSSL ? 0 : share(kinds[k].kind, n));
            computed += n;
            by_kernel += done;
        }
        kh_key_release(keys[0]);
        kh_key_release(keys[1]);
    }
    print_message("K3: backend %d: %zu of %zu by a kernel, each where the table says so\n", (int)backend,
                  by_kernel, computed);
    end();
}

/* Signing and key exchange, good and faulty, of two keys in every lane of one batch. */
static void mixed_rsa(kh_kernel_backend backend)
{
    if (!begin(backend)) {
        skip();
    }
    for (size_t k = 0; k < 3; k++) {
        kh_key *keys[2] = {make_key(k, 0), make_key(k, 1)};

        for (size_t shift = 0; shift < 8; shift++) {
            for (size_t i = 0; i < KH_BATCH_MAX; i++) {
                size_t what = (i + shift) % 8;

                if (what < 4) {
                    put_signing(i, keys[what % 2], kinds[k].scheme[what / 2]);
                } else {
                    put_kx(i, keys[what % 2], (int)what - 4);
                }
            }
            (void)compute(1 + (shift * 3 + 7) % 8);
        }
        kh_key_release(keys[0]);
        kh_key_release(keys[1]);
    }
    end();
}

/* A decryption and a digest among signatures: OpenSSL does the first, and all others are as they were. */
static void among_others(kh_kernel_backend backend)
{
    kh_key *key = NULL;

    if (!begin(backend)) {
        skip();
    }
    key = make_key(0, 0);
    for (size_t i = 0; i < KH_BATCH_MAX; i++) {
        put_signing(i, key, KH_RSA_PKCS1_SHA256);
    }
    put_kx(5, key, 0);
    batch.op[5].kind = KH_TIER_DECRYPT;
    batch.op[5].scheme = KH_PADDING_PKCS1;
    batch.op[5].arg = 0;
    kh_software_batch(software, batch.ops, KH_BATCH_MAX);
    assert_false(batch.op[5].by_kernel);
    for (size_t i = 0; i < KH_BATCH_MAX; i++) {
        assert_int_equal(batch.op[i].result, KH_OK);
        if (i == 5) {
            assert_int_equal(batch.op[i].out_len, 48);
            assert_memory_equal(batch.out[i], batch.expected[i], 48);
        } else {
            assert_true(verified(&batch.op[i]));
        }
    }
    kh_key_release(key);
    end();
}

#define EACH_BACKEND(name)                                                                                   \
    static void name##_openssl(void **state)                                                                 \
    {                                                                                                        \
        (void)state;                                                                                         \
        name(KH_BACKEND_OPENSSL);                                                                            \
    }                                                                                                        \
    static void name##_portable(void **state)                                                                \
    {                                                                                                        \
        (void)state;                                                                                         \
        name(KH_BACKEND_PORTABLE);                                                                           \
    }                                                                                                        \
    static void name##_ifma(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        name(KH_BACKEND_IFMA);                                                                               \
    }
EACH_BACKEND(every_fill)
EACH_BACKEND(mixed_rsa)
EACH_BACKEND(among_others)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fill_openssl),   cmocka_unit_test(every_fill_portable),
        cmocka_unit_test(every_fill_ifma),      cmocka_unit_test(mixed_rsa_openssl),
        cmocka_unit_test(mixed_rsa_portable),   cmocka_unit_test(mixed_rsa_ifma),
        cmocka_unit_test(among_others_openssl), cmocka_unit_test(among_others_portable),
        cmocka_unit_test(among_others_ifma),
    };

    return cmocka_run_group_tests(tests, group_set_up, NULL);
}

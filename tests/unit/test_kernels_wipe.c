/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K7: after a batch neither the worker's stack nor its scratch holds anything of a key or a nonce. The
 * batch runs in a thread on a stack of our own, which is searched when the thread has ended. A control with
 * wiping off finds what the search looks for.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "kernels_common.h"
#include "private.h"

#define STACK_LEN (512 * 1024)

typedef struct job {
    kh_kernel_scratch *scratch;
    kh_kernel_kind kind;
    kh_kernel_op *ops;
    size_t n;
} job;

static void *run_job(void *arg)
{
    job *j = arg;

    return kh_kernel_batch(j->scratch, j->kind, j->ops, j->n) == KH_OK ? NULL : arg;
}

/* What to look for: words of 64 bits, limbs or bytes of secrets. */
static uint64_t needle[512];
static size_t needles;

static void want_limbs(const uint64_t *limbs, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (limbs[i] >> 40 != 0)
            needle[needles++] = limbs[i];
}

static void want_bytes(const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i + 8 <= len; i += 8)
        memcpy(&needle[needles++], bytes + i, 8);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Finds at any byte offset. */
static size_t search(const uint8_t *mem, size_t len)
{
    size_t found = 0;

    qsort(needle, needles, sizeof(needle[0]), by_value);
    for (size_t i = 0; i + 8 <= len; i++) {
        uint64_t word;

        memcpy(&word, mem + i, 8);
        if (word != 0)
            found += bsearch(&word, needle, needles, sizeof(needle[0]), by_value) != NULL;
    }
    return found;
}

/* The nonce of an ECDSA signature, k = (e + r d) / s, as limbs. */
static void want_ecdsa_nonce(EVP_PKEY *pkey, const char *curve, const kh_kernel_op *op, size_t limbs_len)
{
    EC_GROUP *group =
        EC_GROUP_new_by_curve_name(strcmp(curve, "P-256") == 0 ? NID_X9_62_prime256v1 : NID_secp384r1);
    const BIGNUM *order = EC_GROUP_get0_order(group);
    const uint8_t *der = op->out;
    ECDSA_SIG *sig = d2i_ECDSA_SIG(NULL, &der, (long)op->out_len);
    BIGNUM *d = NULL, *k = BN_new(), *t = BN_bin2bn(op->in, (int)op->in_len, NULL);
    BN_CTX *ctx = BN_CTX_new();
    uint8_t bytes[64];
    uint64_t limbs[8];

    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_PRIV_KEY, &d), 1);
    BN_mod_mul(k, d, ECDSA_SIG_get0_r(sig), order, ctx);
    BN_mod_add(t, t, k, order, ctx);
    BN_mod_inverse(k, ECDSA_SIG_get0_s(sig), order, ctx);
    BN_mod_mul(k, k, t, order, ctx);
    assert_int_equal(BN_bn2binpad(k, bytes, 64), 64);
    kh_limbs_from_bytes(limbs, limbs_len, bytes, 64);
    want_limbs(limbs, limbs_len);
    BN_free(d);
    BN_free(k);
    BN_free(t);
    BN_CTX_free(ctx);
    ECDSA_SIG_free(sig);
    EC_GROUP_free(group);
}

static void want_key(const kh_kernel_key *key)
{
    if (key->kind <= KH_KERNEL_RSA4096) {
        const kh_rsa_key *rsa = &key->u.rsa;

        for (int i = 0; i < 2; i++) {
            want_limbs(rsa->prime[i].n, rsa->len);
            want_limbs(rsa->prime[i].exp, rsa->len);
            want_limbs(rsa->prime[i].rr, rsa->len);
            want_limbs(rsa->prime[i].qinv, rsa->len);
        }
    } else if (key->kind == KH_KERNEL_ED25519) {
        want_limbs(key->u.ed[0].a, 5);
        want_bytes(key->u.ed[0].prefix, 32);
    } else {
        want_limbs(key->u.ec[0].d, key->kind == KH_KERNEL_P256 ? 5 : 8);
        want_bytes(key->u.ec[0].d_bytes, key->kind == KH_KERNEL_P256 ? 32 : 48);
    }
}

/* One batch on a fresh stack; returns how often a secret is found afterwards. */
static size_t residue(EVP_PKEY *pkey, kh_kernel_kind kind, size_t fill, bool wipe)
{
    static uint8_t digest[64], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_op ops[KH_KERNEL_LANES];
    kh_kernel_key *key = NULL;
    job j = {.kind = kind, .ops = ops, .n = fill};
    uint8_t *stack = mmap(NULL, STACK_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attr;
    pthread_t thread;
    void *failed = NULL;
    size_t found = 0;

    assert_ptr_not_equal(stack, MAP_FAILED);
    assert_int_equal(kh_kernel_key_new(pkey, &key), KH_OK);
    assert_int_equal(kh_kernel_scratch_new(&j.scratch), KH_OK);
    random_fill(digest, sizeof(digest));
    for (size_t i = 0; i < fill; i++)
        ops[i] = (kh_kernel_op){.key = key,
                                .scheme = kind <= KH_KERNEL_RSA4096   ? KH_RSA_PSS_RSAE_SHA256
                                          : kind == KH_KERNEL_ED25519 ? KH_ED25519
                                                                      : KH_ECDSA_SHA256,
                                .in = digest,
                                .in_len = 32,
                                .out = out[i],
                                .out_size = KH_SIGNATURE_MAX};
    kh_test.wipe_off = !wipe;
    assert_int_equal(pthread_attr_init(&attr), 0);
    assert_int_equal(pthread_attr_setstack(&attr, stack, STACK_LEN), 0);
    assert_int_equal(pthread_create(&thread, &attr, run_job, &j), 0);
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    kh_test.wipe_off = false;
    needles = 0;
    want_key(key);
    for (size_t i = 0; i < fill; i++) {
        assert_int_equal(ops[i].result, KH_OK);
        if (kind == KH_KERNEL_P256 || kind == KH_KERNEL_P384)
            want_ecdsa_nonce(pkey, kind == KH_KERNEL_P256 ? "P-256" : "P-384", &ops[i],
                             kind == KH_KERNEL_P256 ? 5 : 8);
    }
    found = search(stack, STACK_LEN) + search(j.scratch->work, j.scratch->work_len) +
            search((const uint8_t *)j.scratch, sizeof(*j.scratch));
    pthread_attr_destroy(&attr);
    munmap(stack, STACK_LEN);
    kh_kernel_scratch_free(j.scratch);
    kh_kernel_key_free(key);
    return found;
}

static void k7_nothing_left(void **state)
{
    kh_kernel_backend list[2];
    size_t n = backends(list);
    EVP_PKEY *pkeys[KH_KERNEL_KIND_COUNT] = {EVP_RSA_gen(2048),   EVP_RSA_gen(3072),
                                             EVP_RSA_gen(4096),   EVP_EC_gen("P-256"),
                                             EVP_EC_gen("P-384"), EVP_PKEY_Q_keygen(NULL, NULL, "ED25519")};

    (void)state;
    for (size_t b = 0; b < n; b++) {
        assert_int_equal(kh_kernels_select(list[b]), KH_OK);
        for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++) {
            size_t control = residue(pkeys[kind], kind, 8, false);

            print_message("K7 %s, %s: %zu words found without wiping\n", b == 0 ? "portable" : "ifma",
                          kh_kernel_kind_name(kind), control);
            assert_true(control > 0);
            assert_int_equal(residue(pkeys[kind], kind, 8, true), 0);
            assert_int_equal(residue(pkeys[kind], kind, 3, true), 0);
        }
    }
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++)
        EVP_PKEY_free(pkeys[kind]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(k7_nothing_left)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

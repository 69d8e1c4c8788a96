/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prepares an RSA key for the lanes: the constants of Montgomery's reduction for both primes and the
 * modulus, in limbs. All of it is done with OpenSSL's numbers, once per key.
 */
#include <string.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>

#include "private.h"

typedef struct rsa_numbers {
    BIGNUM *n, *e, *p, *q, *dp, *dq, *qinv, *third, *t, *r;
    BN_CTX *ctx;
} rsa_numbers;

static bool to_limbs(uint64_t *limbs, size_t len, const BIGNUM *v)
{
    uint8_t bytes[KH_SIGNATURE_MAX + 8] = {0};
    bool ok =
        BN_num_bytes(v) <= (int)sizeof(bytes) && BN_bn2binpad(v, bytes, sizeof(bytes)) == (int)sizeof(bytes);

    if (ok)
        kh_limbs_from_bytes(limbs, len, bytes, sizeof(bytes));
    OPENSSL_cleanse(bytes, sizeof(bytes));
    return ok;
}

/* limbs = 2^bits modulo n */
static bool power_of_two(rsa_numbers *a, uint64_t *limbs, size_t len, int bits, const BIGNUM *n)
{
    BN_zero(a->t);
    return BN_set_bit(a->t, bits) == 1 && BN_mod(a->t, a->t, n, a->ctx) == 1 && to_limbs(limbs, len, a->t);
}

static bool prepare_prime(rsa_numbers *a, kh_rsa_prime *prime, unsigned len, const BIGNUM *n, const BIGNUM *d)
{
    int bits = (int)(len * KH_LIMB_BITS);

    if (!to_limbs(prime->n, len, n) || !power_of_two(a, prime->rr, len, 2 * bits, n) ||
        !power_of_two(a, prime->rrr, len, 3 * bits, n))
        return false;
    prime->k0 = kh_limbs_k0(prime->n[0]);
    return BN_copy(a->t, d) != NULL && BN_sub_word(a->t, 1) == 1 && to_limbs(prime->exp, len, a->t);
}

/* R/q and -R/q modulo p */
static bool prepare_recombination(rsa_numbers *a, kh_rsa_key *rsa)
{
    return BN_lshift(a->t, a->qinv, (int)(rsa->len * KH_LIMB_BITS)) == 1 &&
           BN_mod(a->t, a->t, a->p, a->ctx) == 1 && to_limbs(rsa->prime[0].qinv, rsa->len, a->t) &&
           BN_sub(a->t, a->p, a->t) == 1 && to_limbs(rsa->prime[1].qinv, rsa->len, a->t);
}

/*
 * Chooses the kernel by the modulus, then asks whether the primes fit: bigmont.h wants R >= 64 n. A modulus
 * above the house's limits, or primes of very unequal length, stay with OpenSSL.
 */
static bool choose_kind(const rsa_numbers *a, kh_kernel_key *key)
{
    static const struct {
        int bits;
        unsigned len;
        kh_kernel_kind kind;
    } sizes[] = {{2048, 20, KH_KERNEL_RSA2048}, {3072, 30, KH_KERNEL_RSA3072}, {4096, 40, KH_KERNEL_RSA4096}};
    int longer = BN_num_bits(a->p) > BN_num_bits(a->q) ? BN_num_bits(a->p) : BN_num_bits(a->q);

    if (BN_num_bits(a->n) < 2048)
        return false;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (BN_num_bits(a->n) > sizes[i].bits || longer > (int)sizes[i].len * KH_LIMB_BITS - 6)
            continue;
        key->kind = sizes[i].kind;
        key->u.rsa.len = sizes[i].len;
        key->u.rsa.exp_bits = (unsigned)longer;
        key->u.rsa.bits = (unsigned)BN_num_bits(a->n);
        key->u.rsa.bytes = (unsigned)BN_num_bytes(a->n);
        key->out_max = key->u.rsa.bytes;
        return true;
    }
    return false;
}

static bool usable(rsa_numbers *a)
{
    return BN_is_odd(a->n) && BN_is_odd(a->e) && BN_num_bits(a->e) > 1 && BN_num_bits(a->e) <= 62 &&
           BN_is_odd(a->p) && BN_is_odd(a->q) && !BN_is_one(a->p) && !BN_is_one(a->q) && !BN_is_zero(a->dp) &&
           !BN_is_zero(a->dq) && BN_cmp(a->dp, a->p) < 0 && BN_cmp(a->dq, a->q) < 0 &&
           BN_cmp(a->qinv, a->p) < 0 && BN_mul(a->t, a->p, a->q, a->ctx) == 1 && BN_cmp(a->t, a->n) == 0;
}

static bool fetch(EVP_PKEY *pkey, rsa_numbers *a)
{
    /* A third factor means a multi-prime key. */
    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR3, &a->third))
        return false;
    if (!EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &a->n) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &a->e) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR1, &a->p) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR2, &a->q) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_EXPONENT1, &a->dp) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_EXPONENT2, &a->dq) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_COEFFICIENT1, &a->qinv))
        return false;
    BN_set_flags(a->p, BN_FLG_CONSTTIME);
    BN_set_flags(a->q, BN_FLG_CONSTTIME);
    return true;
}

kh_result kh_rsa_key_prepare(EVP_PKEY *pkey, kh_kernel_key *key)
{
    rsa_numbers a = {0};
    kh_rsa_key *rsa = &key->u.rsa;
    kh_result rc = KH_E_MEMORY;

    a.ctx = BN_CTX_secure_new();
    a.t = BN_secure_new();
    if (a.ctx == NULL || a.t == NULL)
        goto done;
    rc = KH_E_UNSUPPORTED;
    if (!fetch(pkey, &a) || !usable(&a) || !choose_kind(&a, key))
        goto done;
    rc = KH_E_CRYPTO;
    if (!prepare_prime(&a, &rsa->prime[0], rsa->len, a.p, a.dp) ||
        !prepare_prime(&a, &rsa->prime[1], rsa->len, a.q, a.dq) || !prepare_recombination(&a, rsa) ||
        !to_limbs(rsa->n, 2 * rsa->len, a.n) ||
        !power_of_two(&a, rsa->n_rr, 2 * rsa->len, (int)(4 * rsa->len * KH_LIMB_BITS), a.n))
        goto done;
    rsa->n_k0 = kh_limbs_k0(rsa->n[0]);
    rsa->e = BN_get_word(a.e);
    rc = KH_OK;
done:
    BN_free(a.n);
    BN_free(a.e);
    BN_clear_free(a.p);
    BN_clear_free(a.q);
    BN_clear_free(a.dp);
    BN_clear_free(a.dq);
    BN_clear_free(a.qinv);
    BN_clear_free(a.third);
    BN_clear_free(a.t);
    BN_CTX_free(a.ctx);
    return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prepared keys: from an EVP_PKEY to the limbs that the kernels want.
 */
#include <string.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include "private.h"

/* Curves by OpenSSL's name of the group. */
static const struct curve {
    const char *group;
    kh_kernel_kind kind;
    size_t bytes, limbs;
    const char *order;
} curves[] = {
    {"prime256v1", KH_KERNEL_P256, 32, 5, "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"},
    {"secp384r1", KH_KERNEL_P384, 48, 8,
     "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973"},
};

/* limbs = value * 2^(52 len) modulo order; the value in bytes, big-endian. */
static bool to_montgomery(uint64_t *limbs, size_t len, const BIGNUM *value, const char *order_hex)
{
    BN_CTX *ctx = BN_CTX_secure_new();
    BIGNUM *order = NULL, *t = BN_secure_new();
    uint8_t bytes[64] = {0};
    bool ok = ctx != NULL && t != NULL && BN_hex2bn(&order, order_hex) != 0 &&
              BN_lshift(t, value, (int)(len * KH_LIMB_BITS)) == 1;

    if (ok) {
        BN_set_flags(order, BN_FLG_CONSTTIME);
        ok = BN_mod(t, t, order, ctx) == 1 && BN_bn2binpad(t, bytes, sizeof(bytes)) == (int)sizeof(bytes);
    }
    if (ok)
        kh_limbs_from_bytes(limbs, len, bytes, sizeof(bytes));
    OPENSSL_cleanse(bytes, sizeof(bytes));
    BN_clear_free(t);
    BN_free(order);
    BN_CTX_free(ctx);
    return ok;
}

static kh_result prepare_ec(EVP_PKEY *pkey, kh_kernel_key *key)
{
    char group[32] = {0};
    kh_ec_key *ec = key->u.ec;
    BIGNUM *d = NULL;
    kh_result rc = KH_E_UNSUPPORTED;

    if (EVP_PKEY_get_group_name(pkey, group, sizeof(group), NULL) != 1 ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_PRIV_KEY, &d) != 1)
        goto done;
    for (size_t i = 0; i < sizeof(curves) / sizeof(curves[0]); i++) {
        const struct curve *c = &curves[i];

        if (strcmp(group, c->group) != 0)
            continue;
        key->kind = c->kind;
        key->out_max = 2 * c->bytes + 8;
        rc = !BN_is_zero(d) && BN_bn2binpad(d, ec->d_bytes, (int)c->bytes) == (int)c->bytes &&
                     to_montgomery(ec->d, c->limbs, d, c->order)
                 ? KH_OK
                 : KH_E_CRYPTO;
        ec[1] = ec[0];
    }
done:
    BN_clear_free(d);
    return rc;
}

static kh_result prepare_ed25519(EVP_PKEY *pkey, kh_kernel_key *key)
{
    static const char order[] = "1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed";
    uint8_t seed[32] = {0}, hash[64] = {0};
    kh_ed_key *ed = key->u.ed;
    size_t seed_len = sizeof(seed), pub_len = sizeof(ed->pub);
    BIGNUM *a = BN_secure_new();
    kh_result rc = KH_E_UNSUPPORTED;

    key->kind = KH_KERNEL_ED25519;
    key->out_max = 64;
    if (EVP_PKEY_get_raw_private_key(pkey, seed, &seed_len) != 1 || seed_len != 32)
        goto done;
    rc = KH_E_CRYPTO;
    if (a == NULL || EVP_PKEY_get_raw_public_key(pkey, ed->pub, &pub_len) != 1 ||
        EVP_Digest(seed, sizeof(seed), hash, NULL, EVP_sha512(), NULL) != 1)
        goto done;
    hash[0] &= 0xf8;
    hash[31] = (hash[31] & 0x7f) | 0x40;
    memcpy(ed->prefix, hash + 32, 32);
    if (BN_lebin2bn(hash, 32, a) == NULL || !to_montgomery(ed->a, 5, a, order))
        goto done;
    ed[1] = ed[0];
    rc = KH_OK;
done:
    BN_clear_free(a);
    OPENSSL_cleanse(seed, sizeof(seed));
    OPENSSL_cleanse(hash, sizeof(hash));
    return rc;
}

kh_result kh_kernel_key_new(EVP_PKEY *pkey, kh_kernel_key **out)
{
    kh_kernel_key *key = NULL;
    kh_result rc = KH_E_UNSUPPORTED;

    *out = NULL;
    if (pkey == NULL)
        return KH_E_UNSUPPORTED;
    key = OPENSSL_zalloc(sizeof(*key));
    if (key == NULL)
        return KH_E_MEMORY;
    if (EVP_PKEY_is_a(pkey, "RSA"))
        rc = kh_rsa_key_prepare(pkey, key);
    else if (EVP_PKEY_is_a(pkey, "EC"))
        rc = prepare_ec(pkey, key);
    else if (EVP_PKEY_is_a(pkey, "ED25519"))
        rc = prepare_ed25519(pkey, key);
    if (rc == KH_OK && EVP_PKEY_up_ref(pkey) == 1)
        key->pkey = pkey;
    else if (rc == KH_OK)
        rc = KH_E_CRYPTO;
    if (rc == KH_OK)
        *out = key;
    else
        kh_kernel_key_free(key);
    return rc;
}

void kh_kernel_key_free(kh_kernel_key *key)
{
    if (key == NULL)
        return;
    EVP_PKEY_free(key->pkey);
    OPENSSL_clear_free(key, sizeof(*key));
}

kh_kernel_kind kh_kernel_key_kind(const kh_kernel_key *key)
{
    return key->kind;
}

EVP_PKEY *kh_kernel_key_pkey(const kh_kernel_key *key)
{
    return key->pkey;
}

size_t kh_kernel_key_out_max(const kh_kernel_key *key)
{
    return key->out_max;
}

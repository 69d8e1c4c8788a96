/* SPDX-License-Identifier: Apache-2.0 */
/* Private keys as bytes: parsing, generating, judging and canonical encoding. */
#include "material.h"

#include <keyhold/client.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <string.h>

#define RSA_BITS_MIN 2048
#define RSA_BITS_MAX 4096

void kh_material_wipe(kh_material *material)
{
    OPENSSL_cleanse(material, sizeof(*material));
}

kh_result kh_pkcs8_parse(const uint8_t *der, size_t len, EVP_PKEY **pkey)
{
    PKCS8_PRIV_KEY_INFO *info = NULL;
    const uint8_t *at = der;
    kh_result result = KH_E_MALFORMED;

    *pkey = NULL;
    if (len > KH_IMPORT_PKCS8_MAX) {
        return KH_E_TOO_LARGE;
    }
    info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &at, (long)len);
    if (info == NULL || at != der + len) {
        goto done;
    }
    *pkey = EVP_PKCS82PKEY(info);
    result = *pkey != NULL ? KH_OK : KH_E_UNSUPPORTED;
done:
    PKCS8_PRIV_KEY_INFO_free(info);
    return result;
}

kh_result kh_pkcs8_parse_as(kh_key_type type, const uint8_t *der, size_t len, EVP_PKEY **pkey)
{
    static const int types[] = {[KH_KEY_RSA] = EVP_PKEY_RSA,
                                [KH_KEY_P256] = EVP_PKEY_EC,
                                [KH_KEY_P384] = EVP_PKEY_EC,
                                [KH_KEY_P521] = EVP_PKEY_EC,
                                [KH_KEY_ED25519] = EVP_PKEY_ED25519};
    const uint8_t *at = der;
    EVP_PKEY *other = NULL;
    kh_result result = KH_OK;

    *pkey = NULL;
    if (type <= KH_KEY_NONE || (size_t)type >= sizeof(types) / sizeof(types[0]) ||
        len > KH_IMPORT_PKCS8_MAX) {
        return KH_E_UNSUPPORTED;
    }
    *pkey = d2i_PrivateKey_ex(types[type], NULL, &at, (long)len, NULL, NULL);
    if (*pkey != NULL && at != der + len) {
        EVP_PKEY_free(*pkey);
        *pkey = NULL;
    }
    if (*pkey == NULL) {
        result = kh_pkcs8_parse(der, len, &other) == KH_OK ? KH_E_CRYPTO : KH_E_MALFORMED;
        EVP_PKEY_free(other);
    }
    return result;
}

static kh_result judge_rsa(const EVP_PKEY *pkey)
{
    BIGNUM *e = NULL, *p = NULL, *q = NULL;
    int bits = EVP_PKEY_get_bits(pkey);
    kh_result result = KH_E_WEAK;

    if (bits > RSA_BITS_MAX) {
        return KH_E_UNSUPPORTED;
    }
    if (bits < RSA_BITS_MIN || EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &e) != 1 ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR1, &p) != 1 ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR2, &q) != 1) {
        goto done;
    }
    if (!BN_is_odd(e) || BN_get_word(e) < 65537 || BN_num_bits(e) > 64 || BN_cmp(p, q) == 0) {
        goto done;
    }
    result = KH_OK;
done:
    BN_free(e);
    BN_clear_free(p);
    BN_clear_free(q);
    return result;
}

kh_result kh_material_judge(const EVP_PKEY *pkey)
{
    EVP_PKEY_CTX *ctx = NULL;
    kh_key_type type = KH_KEY_NONE;
    kh_result result = KH_OK;

    if (EVP_PKEY_is_a(pkey, "RSA")) {
        result = judge_rsa(pkey);
    } else {
        result = kh_key_id(pkey, NULL, NULL, NULL, &type, NULL);
    }
    if (result != KH_OK) {
        return result;
    }
    /* Checks RSA's primes, product and exponents; an EC key's range and public point. */
    ctx = EVP_PKEY_CTX_new_from_pkey(NULL, (EVP_PKEY *)(uintptr_t)pkey, NULL);
    if (ctx == NULL) {
        return KH_E_MEMORY;
    }
    result = EVP_PKEY_check(ctx) == 1 ? KH_OK : KH_E_WEAK;
    EVP_PKEY_CTX_free(ctx);
    return result;
}

kh_result kh_material_encode(const EVP_PKEY *pkey, kh_material *material)
{
    PKCS8_PRIV_KEY_INFO *info = NULL;
    uint8_t *at = material->pkcs8;
    int len = 0;
    kh_result result = KH_OK;

    memset(material, 0, sizeof(*material));
    result =
        kh_key_id(pkey, material->id, material->spki, &material->spki_len, &material->type, &material->bits);
    if (result != KH_OK) {
        goto done;
    }
    info = EVP_PKEY2PKCS8(pkey);
    len = info != NULL ? i2d_PKCS8_PRIV_KEY_INFO(info, NULL) : -1;
    if (len <= 0 || (size_t)len > sizeof(material->pkcs8)) {
        result = len <= 0 ? KH_E_UNSUPPORTED : KH_E_TOO_LARGE;
        goto done;
    }
    material->pkcs8_len = (size_t)len;
    i2d_PKCS8_PRIV_KEY_INFO(info, &at);
done:
    PKCS8_PRIV_KEY_INFO_free(info);
    if (result != KH_OK) {
        kh_material_wipe(material);
    }
    return result;
}

kh_result kh_material_public(const uint8_t *spki, size_t len, kh_material *material)
{
    const uint8_t *at = spki;
    EVP_PKEY *pkey = len <= KH_SPKI_MAX ? d2i_PUBKEY(NULL, &at, (long)len) : NULL;
    kh_result result = KH_E_MALFORMED;

    memset(material, 0, sizeof(*material));
    if (pkey != NULL && at == spki + len) {
        result = kh_key_id(pkey, material->id, material->spki, &material->spki_len, &material->type, &material->bits);
    }
    if (result == KH_OK && (material->spki_len != len || memcmp(material->spki, spki, len) != 0)) {
        result = KH_E_MALFORMED;
    }
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

bool kh_material_possible(uint32_t type, uint32_t *bits)
{
    static const uint32_t sizes[] = {
#define KH_X(constant, number, name, size, sig_max) [number] = size,
        KH_KEY_TYPES(KH_X)
#undef KH_X
    };

    if (type == KH_KEY_RSA) {
        return *bits >= RSA_BITS_MIN && *bits <= RSA_BITS_MAX && *bits % 2 == 0;
    }
    if (type >= sizeof(sizes) / sizeof(sizes[0]) || sizes[type] == 0 ||
        (*bits != 0 && *bits != sizes[type])) {
        return false;
    }
    *bits = sizes[type];
    return true;
}

kh_result kh_material_generate(kh_key_type type, unsigned bits, kh_material *material)
{
    EVP_PKEY *pkey = NULL;
    kh_result result = KH_E_CRYPTO;

    switch (type) {
    case KH_KEY_RSA:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)bits);
        break;
    case KH_KEY_P256:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
        break;
    case KH_KEY_P384:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-384");
        break;
    case KH_KEY_P521:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-521");
        break;
    case KH_KEY_ED25519:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
        break;
    default:
        return KH_E_UNSUPPORTED;
    }
    if (pkey != NULL) {
        result = kh_material_encode(pkey, material);
    }
    EVP_PKEY_free(pkey);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Keys come into a token: made there, or brought in. */
#include "p11_internal.h"

#include "material.h"

#include <keyhold/client.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <string.h>

#define MODULUS_MAX 512
#define POINT_MAX (3 + 1 + 2 * 66) /* with the header of its OCTET STRING */

static const CK_ULONG class_private = CKO_PRIVATE_KEY, class_public = CKO_PUBLIC_KEY;
static const CK_ULONG type_rsa = CKK_RSA, type_ec = CKK_EC, type_edwards = CKK_EC_EDWARDS;
static const uint8_t exponent_f4[] = {0x01, 0x00, 0x01};

static const CK_ULONG *ck_type(uint32_t type)
{
    return type == KH_KEY_RSA ? &type_rsa : type == KH_KEY_ED25519 ? &type_edwards : &type_ec;
}

/* The keeper checks a key's usage on every operation; here it only decides between signing and decrypting. */
void kh_p11_put_private(kh_p11_template *template, uint32_t usage, uint32_t type)
{
    bool decrypts =
        type == KH_KEY_RSA && (usage & (KH_USAGE_TLS_RSA_KX | KH_USAGE_DECRYPT | KH_USAGE_WRAP)) != 0;

    kh_p11_put_bool(template, CKA_TOKEN, true);
    kh_p11_put_bool(template, CKA_PRIVATE, true);
    kh_p11_put_bool(template, CKA_SENSITIVE, true);
    kh_p11_put_bool(template, CKA_EXTRACTABLE, false);
    kh_p11_put_bool(template, CKA_SIGN, true);
    kh_p11_put_bool(template, CKA_DECRYPT, decrypts);
    kh_p11_put_bool(template, CKA_UNWRAP, false);
    kh_p11_put_bool(template, CKA_DERIVE, false);
}

static void put_public(kh_p11_template *template, const kh_p11_locator *locator)
{
    kh_p11_put_bool(template, CKA_TOKEN, true);
    kh_p11_put_bool(template, CKA_PRIVATE, false);
    kh_p11_put_bool(template, CKA_VERIFY, true);
    kh_p11_put_names(template, locator);
}

kh_result kh_p11_is_kept(kh_p11_session *session, CK_OBJECT_HANDLE private_key)
{
    CK_BBOOL sensitive = CK_FALSE, extractable = CK_TRUE;
    size_t len = 0;
    kh_result result =
        kh_p11_attribute(session, private_key, CKA_SENSITIVE, &sensitive, sizeof(sensitive), &len);

    if (result == KH_OK) {
        result =
            kh_p11_attribute(session, private_key, CKA_EXTRACTABLE, &extractable, sizeof(extractable), &len);
    }
    if (result == KH_OK && (sensitive != CK_TRUE || extractable != CK_FALSE)) {
        return kh_p11_refuse(session, KH_E_FORBIDDEN, KH_HEAL_NONE,
                             "the token made a key that could be read or wrapped out of it");
    }
    return result;
}

/* What a token says of a template that it does not bear as it is. */
static bool template_refused(CK_RV rv)
{
    return rv == CKR_ATTRIBUTE_TYPE_INVALID || rv == CKR_ATTRIBUTE_VALUE_INVALID ||
           rv == CKR_ATTRIBUTE_READ_ONLY || rv == CKR_TEMPLATE_INCONSISTENT ||
           rv == CKR_DOMAIN_PARAMS_INVALID || rv == CKR_CURVE_NOT_SUPPORTED;
}

static CK_RV make_pair(kh_p11_session *session, CK_MECHANISM_TYPE type, const kh_p11_template *public_,
                       const kh_p11_template *private_, CK_OBJECT_HANDLE handles[2])
{
    CK_MECHANISM mechanism = {.mechanism = type};

    return session->p11->f->C_GenerateKeyPair(
        session->handle, &mechanism, (CK_ATTRIBUTE *)(uintptr_t)public_->attributes, public_->count,
        (CK_ATTRIBUTE *)(uintptr_t)private_->attributes, private_->count, &handles[0], &handles[1]);
}

kh_result kh_p11_pair_make(kh_p11_session *session, uint32_t type, uint32_t bits,
                           const kh_p11_template *public_, const kh_p11_template *private_,
                           CK_OBJECT_HANDLE handles[2])
{
    CK_MECHANISM_TYPE mechanism = type == KH_KEY_RSA       ? CKM_RSA_PKCS_KEY_PAIR_GEN
                                  : type == KH_KEY_ED25519 ? CKM_EC_EDWARDS_KEY_PAIR_GEN
                                                           : CKM_EC_KEY_PAIR_GEN;
    const kh_p11_curve *curve = NULL;
    CK_ULONG modulus_bits = bits;
    CK_RV rv = CKR_MECHANISM_INVALID;

    if (!kh_material_possible(type, &bits) ||
        !kh_p11_has_for(session->p11, mechanism, CKF_GENERATE_KEY_PAIR, type == KH_KEY_RSA ? bits : 0)) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE, "the token makes no %s keys of %u bits",
                             kh_key_type_name((int)type), (unsigned)bits);
    }
    for (size_t i = 0; type == KH_KEY_RSA ? i == 0 : (curve = kh_p11_curve_of(type, i)) != NULL; i++) {
        kh_p11_template full = *public_;

        if (curve != NULL) {
            kh_p11_put(&full, CKA_EC_PARAMS, curve->params, curve->params_len);
        } else {
            kh_p11_put_ulong(&full, CKA_MODULUS_BITS, &modulus_bits);
            kh_p11_put(&full, CKA_PUBLIC_EXPONENT, exponent_f4, sizeof(exponent_f4));
        }
        rv = make_pair(session, mechanism, &full, private_, handles);
        if (!template_refused(rv)) {
            break;
        }
    }
    return kh_p11_check(session, "C_GenerateKeyPair", rv);
}

/*
 * What an earlier try left under that CKA_ID, whose answer was lost with its session: a second pair beside it
 * could never be told apart. The id is random and this key's alone.
 */
static kh_result clear_place(kh_p11_session *session, const kh_p11_locator *locator)
{
    return locator->id_len == KH_P11_ID_LEN ? kh_p11_destroy(session, locator) : KH_OK;
}

kh_result kh_p11_generate(kh_p11_session *session, uint32_t type, uint32_t bits,
                          const kh_p11_locator *locator, uint32_t usage, uint8_t *spki, size_t *spki_len)
{
    kh_p11_template public_ = {0}, private_ = {0};
    CK_OBJECT_HANDLE handles[2] = {CK_INVALID_HANDLE, CK_INVALID_HANDLE};
    CK_FUNCTION_LIST *f = session->p11->f;
    kh_result result = KH_OK;

    result = clear_place(session, locator);
    if (result != KH_OK) {
        return result;
    }
    put_public(&public_, locator);
    kh_p11_put_private(&private_, usage, type);
    kh_p11_put_names(&private_, locator);
    kh_p11_put_bool(&private_, CKA_MODIFIABLE, false);
    result = kh_p11_pair_make(session, type, bits, &public_, &private_, handles);
    if (result == KH_E_UNSUPPORTED) { /* some know no MODIFIABLE */
        kh_p11_drop(&private_, CKA_MODIFIABLE);
        result = kh_p11_pair_make(session, type, bits, &public_, &private_, handles);
    }
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_is_kept(session, handles[1]);
    if (result == KH_OK) {
        result = kh_p11_spki_of(session, handles[0], spki, spki_len);
    }
    if (result != KH_OK) {
        f->C_DestroyObject(session->handle, handles[0]);
        f->C_DestroyObject(session->handle, handles[1]);
    }
    return result;
}

/* ---- Bringing in ---- */

/* One number of an RSA key, in memory that is wiped by the caller. */
typedef struct number {
    uint8_t bytes[MODULUS_MAX];
    size_t len;
} number;

typedef struct rsa_part {
    CK_ATTRIBUTE_TYPE attribute;
    const char *param;
} rsa_part;

static const rsa_part rsa_parts[] = {
    {CKA_MODULUS, OSSL_PKEY_PARAM_RSA_N},
    {CKA_PUBLIC_EXPONENT, OSSL_PKEY_PARAM_RSA_E},
    {CKA_PRIVATE_EXPONENT, OSSL_PKEY_PARAM_RSA_D},
    {CKA_PRIME_1, OSSL_PKEY_PARAM_RSA_FACTOR1},
    {CKA_PRIME_2, OSSL_PKEY_PARAM_RSA_FACTOR2},
    {CKA_EXPONENT_1, OSSL_PKEY_PARAM_RSA_EXPONENT1},
    {CKA_EXPONENT_2, OSSL_PKEY_PARAM_RSA_EXPONENT2},
    {CKA_COEFFICIENT, OSSL_PKEY_PARAM_RSA_COEFFICIENT1},
};
#define RSA_PARTS (sizeof(rsa_parts) / sizeof(rsa_parts[0]))

static bool take_number(const EVP_PKEY *pkey, const char *param, size_t width, number *out)
{
    BIGNUM *value = NULL;
    bool good = false;

    if (EVP_PKEY_get_bn_param(pkey, param, &value) == 1) {
        out->len = width > 0 ? width : (size_t)BN_num_bytes(value);
        good = out->len <= sizeof(out->bytes) && BN_bn2binpad(value, out->bytes, (int)out->len) >= 0;
    }
    BN_clear_free(value);
    return good;
}

/* The attributes that are the key itself. numbers: RSA_PARTS of them. */
static kh_result put_secret(const EVP_PKEY *pkey, kh_key_type type, number *numbers,
                            kh_p11_template *template)
{
    const kh_p11_curve *curve = kh_p11_curve_of(type, 0);
    size_t len = sizeof(numbers[0].bytes);

    if (type == KH_KEY_RSA) {
        for (size_t i = 0; i < RSA_PARTS; i++) {
            if (!take_number(pkey, rsa_parts[i].param, 0, &numbers[i])) {
                return KH_E_CRYPTO;
            }
            kh_p11_put(template, rsa_parts[i].attribute, numbers[i].bytes, numbers[i].len);
        }
        return KH_OK;
    }
    if (curve == NULL) {
        return KH_E_UNSUPPORTED;
    }
    if (curve->group == NULL) {
        if (EVP_PKEY_get_raw_private_key(pkey, numbers[0].bytes, &len) != 1) {
            return KH_E_CRYPTO;
        }
        numbers[0].len = len;
    } else if (!take_number(pkey, OSSL_PKEY_PARAM_PRIV_KEY, curve->field_len, &numbers[0])) {
        return KH_E_CRYPTO;
    }
    kh_p11_put(template, CKA_EC_PARAMS, curve->params, curve->params_len);
    kh_p11_put(template, CKA_VALUE, numbers[0].bytes, numbers[0].len);
    return KH_OK;
}

void kh_p11_put_type(kh_p11_template *template, uint32_t type)
{
    kh_p11_put_ulong(template, CKA_CLASS, &class_private);
    kh_p11_put_ulong(template, CKA_KEY_TYPE, ck_type(type));
}

kh_result kh_p11_create(kh_p11_session *session, const kh_p11_template *template, CK_OBJECT_HANDLE *object)
{
    CK_RV rv = session->p11->f->C_CreateObject(
        session->handle, (CK_ATTRIBUTE *)(uintptr_t) template->attributes, template->count, object);

    return kh_p11_check(session, "C_CreateObject", rv);
}

kh_result kh_p11_with_secret(kh_p11_session *session, const EVP_PKEY *pkey, uint32_t type,
                             kh_p11_template *template, kh_p11_make_fn make, void *ctx)
{
    number numbers[RSA_PARTS];
    kh_result result = KH_OK;

    kh_p11_put_type(template, type);
    result = put_secret(pkey, (kh_key_type)type, numbers, template);
    if (result == KH_OK) {
        result = make(session, template, ctx);
    }
    OPENSSL_cleanse(numbers, sizeof(numbers));
    return result;
}

kh_result kh_p11_read_pkcs8(kh_p11_session *session, const uint8_t *pkcs8, size_t pkcs8_len, EVP_PKEY **pkey,
                            kh_key_type *type, uint8_t *spki, size_t *spki_len)
{
    kh_result result = kh_pkcs8_parse(pkcs8, pkcs8_len, pkey);

    if (result == KH_OK) {
        result = kh_key_id(*pkey, NULL, spki, spki_len, type, NULL);
    }
    return result == KH_OK
               ? KH_OK
               : kh_p11_refuse(session, result, KH_HEAL_NONE, "the key to be brought in cannot be read");
}

kh_result kh_p11_public_create(kh_p11_session *session, const kh_p11_locator *locator, const uint8_t *spki,
                               size_t spki_len)
{
    kh_p11_template template = {0};
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    number numbers[2];
    uint8_t point[POINT_MAX];
    size_t len = 0, head = 2;
    const uint8_t *at = spki;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)spki_len);
    const kh_p11_curve *curve = NULL;
    kh_key_type type = KH_KEY_NONE;
    kh_result result = KH_E_INVALID;

    if (pkey == NULL || kh_key_id(pkey, NULL, NULL, NULL, &type, NULL) != KH_OK) {
        goto done;
    }
    kh_p11_put_ulong(&template, CKA_CLASS, &class_public);
    kh_p11_put_ulong(&template, CKA_KEY_TYPE, ck_type(type));
    put_public(&template, locator);
    if (type == KH_KEY_RSA) {
        if (!take_number(pkey, OSSL_PKEY_PARAM_RSA_N, 0, &numbers[0]) ||
            !take_number(pkey, OSSL_PKEY_PARAM_RSA_E, 0, &numbers[1])) {
            goto done;
        }
        kh_p11_put(&template, CKA_MODULUS, numbers[0].bytes, numbers[0].len);
        kh_p11_put(&template, CKA_PUBLIC_EXPONENT, numbers[1].bytes, numbers[1].len);
    } else {
        curve = kh_p11_curve_of(type, 0);
        head = curve->field_len > 63 ? 3 : 2; /* P-521: 133 bytes need the longer form of a length */
        if (EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_PUB_KEY, point + head, sizeof(point) - head,
                                            &len) != 1) {
            goto done;
        }
        point[0] = V_ASN1_OCTET_STRING;
        point[1] = head == 3 ? 0x81 : (uint8_t)len;
        point[head - 1] = (uint8_t)len;
        kh_p11_put(&template, CKA_EC_PARAMS, curve->params, curve->params_len);
        kh_p11_put(&template, CKA_EC_POINT, point, head + len);
    }
    result = kh_p11_create(session, &template, &object);
done:
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

/* A kh_p11_make_fn; ctx: where the handle goes. */
static kh_result make_private(kh_p11_session *session, kh_p11_template *template, void *object)
{
    kh_result result = kh_p11_create(session, template, object);

    if (result == KH_E_UNSUPPORTED) {
        kh_p11_drop(template, CKA_MODIFIABLE);
        result = kh_p11_create(session, template, object);
    }
    return result;
}

kh_result kh_p11_import(kh_p11_session *session, const uint8_t *pkcs8, size_t pkcs8_len,
                        const kh_p11_locator *locator, uint32_t usage)
{
    kh_p11_template template = {0};
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len = 0;
    kh_key_type type = KH_KEY_NONE;
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    EVP_PKEY *pkey = NULL;
    kh_result result = kh_p11_read_pkcs8(session, pkcs8, pkcs8_len, &pkey, &type, spki, &spki_len);

    if (result == KH_OK) {
        result = clear_place(session, locator);
    }
    if (result != KH_OK) {
        goto done;
    }
    kh_p11_put_private(&template, usage, type);
    kh_p11_put_names(&template, locator);
    kh_p11_put_bool(&template, CKA_MODIFIABLE, false);
    result = kh_p11_with_secret(session, pkey, type, &template, make_private, &object);
    if (result != KH_OK) {
        goto done;
    }
    result = kh_p11_is_kept(session, object);
    if (result == KH_OK) {
        result = kh_p11_public_create(session, locator, spki, spki_len);
    }
    if (result != KH_OK) {
        session->p11->f->C_DestroyObject(session->handle, object);
    }
done:
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

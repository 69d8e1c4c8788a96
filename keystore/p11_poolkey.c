/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool key: made in one partition, carried to the others under an RSA key that each of them makes and the
 * security officer of the giving one trusts. It never leaves a token otherwise, and opens its blobs only as
 * keys that stay in the token.
 */
#include "p11_internal.h"

#include <keyhold/client.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>

#define TRANSFER_BITS 3072
#define TRANSFER_LEN (TRANSFER_BITS / 8)
#define POOL_LABEL "keyhold-pool"
#define TRANSFER_LABEL "keyhold-transfer"

static const CK_ULONG class_secret = CKO_SECRET_KEY, class_public = CKO_PUBLIC_KEY, type_aes = CKK_AES,
                      type_rsa = CKK_RSA;
static const CK_ULONG aes_bytes = 32;
static const uint8_t exponent_f4[] = {0x01, 0x00, 0x01};

/* The attributes of the pool key that are pointed to while a template is used. */
typedef struct pool_template {
    kh_p11_template own;
    kh_p11_template unwrapped; /* what becomes of that which it unwraps */
    CK_MECHANISM mechanism;
} pool_template;

static kh_result put_pool_key(kh_p11_session *session, const char *label, pool_template *template)
{
    kh_p11_template *own = &template->own;

    memset(template, 0, sizeof(*template));
    if (!kh_p11_wrap_mechanism(session->p11, &template->mechanism)) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                             "the token has no AES key wrap with padding (RFC 5649): it cannot be in a pool");
    }
    kh_p11_put_bool(&template->unwrapped, CKA_SENSITIVE, true);
    kh_p11_put_bool(&template->unwrapped, CKA_EXTRACTABLE, false);
    kh_p11_put_ulong(own, CKA_CLASS, &class_secret);
    kh_p11_put_ulong(own, CKA_KEY_TYPE, &type_aes);
    kh_p11_put(own, CKA_LABEL, label, strlen(label));
    kh_p11_put_bool(own, CKA_TOKEN, true);
    kh_p11_put_bool(own, CKA_PRIVATE, true);
    kh_p11_put_bool(own, CKA_SENSITIVE, true);
    kh_p11_put_bool(own, CKA_EXTRACTABLE, true); /* but see the next: another partition may have to join */
    kh_p11_put_bool(own, CKA_WRAP_WITH_TRUSTED, true);
    kh_p11_put_bool(own, CKA_WRAP, true);
    kh_p11_put_bool(own, CKA_UNWRAP, true);
    kh_p11_put_bool(own, CKA_ENCRYPT, false);
    kh_p11_put_bool(own, CKA_DECRYPT, false);
    kh_p11_put_bool(own, CKA_SIGN, false);
    kh_p11_put_bool(own, CKA_VERIFY, false);
    kh_p11_put_bool(own, CKA_DERIVE, false);
    kh_p11_put(own, CKA_UNWRAP_TEMPLATE, template->unwrapped.attributes,
               template->unwrapped.count * sizeof(template->unwrapped.attributes[0]));
    kh_p11_put(own, CKA_ALLOWED_MECHANISMS, &template->mechanism.mechanism,
               sizeof(template->mechanism.mechanism));
    kh_p11_put_bool(own, CKA_MODIFIABLE, false); /* the last: SoftHSM takes none behind it when it unwraps */
    return KH_OK;
}

/* ---- What it must be ---- */

static kh_result expect(kh_p11_session *session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE_TYPE type, bool wanted,
                        const char *what)
{
    CK_BBOOL value = CK_FALSE;
    size_t len = 0;
    kh_result result = kh_p11_attribute(session, key, type, &value, sizeof(value), &len);

    if (result == KH_E_NOT_FOUND ||
        (result == KH_OK && (len != sizeof(value) || (value == CK_TRUE) != wanted))) {
        return kh_p11_refuse(session, KH_E_FORBIDDEN, KH_HEAL_NONE, "the pool key %s", what);
    }
    return result;
}

/*
 * The array of CKA_UNWRAP_TEMPLATE has our two attributes and no others. The standard has the token fill in
 * their types; SoftHSM looks for those that are asked for: both come to the same here.
 */
static kh_result expect_unwrap_template(kh_p11_session *session, CK_OBJECT_HANDLE key)
{
    CK_BBOOL values[2] = {CK_FALSE, CK_TRUE};
    CK_ATTRIBUTE inner[2] = {{CKA_SENSITIVE, &values[0], sizeof(values[0])},
                             {CKA_EXTRACTABLE, &values[1], sizeof(values[1])}};
    CK_ATTRIBUTE outer = {CKA_UNWRAP_TEMPLATE, inner, sizeof(inner)};
    bool sensitive = false, not_extractable = false;
    CK_RV rv = session->p11->f->C_GetAttributeValue(session->handle, key, &outer, 1);

    for (size_t i = 0; rv == CKR_OK && outer.ulValueLen == sizeof(inner) && i < 2; i++) {
        sensitive |= inner[i].type == CKA_SENSITIVE && inner[i].ulValueLen == 1 && values[i] == CK_TRUE;
        not_extractable |=
            inner[i].type == CKA_EXTRACTABLE && inner[i].ulValueLen == 1 && values[i] == CK_FALSE;
    }
    return sensitive && not_extractable
               ? KH_OK
               : kh_p11_refuse(session, KH_E_FORBIDDEN, KH_HEAL_NONE,
                               "the pool key would unwrap keys that can be read (no CKA_UNWRAP_TEMPLATE)");
}

static kh_result judge(kh_p11_session *session, CK_OBJECT_HANDLE key)
{
    static const struct {
        CK_ATTRIBUTE_TYPE type;
        bool wanted;
        const char *what;
    } rules[] = {
        {CKA_SENSITIVE, true, "is not sensitive: the token would show it"},
        {CKA_DECRYPT, false, "may decrypt: it would show what it wrapped"},
        {CKA_UNWRAP, true, "may not unwrap"},
        {CKA_WRAP, true, "may not wrap"},
        {CKA_MODIFIABLE, false, "can be modified: its protections could be taken off"},
    };
    kh_result result = KH_OK;
    CK_BBOOL extractable = CK_TRUE;
    size_t len = 0;

    for (size_t i = 0; result == KH_OK && i < sizeof(rules) / sizeof(rules[0]); i++) {
        result = expect(session, key, rules[i].type, rules[i].wanted, rules[i].what);
    }
    if (result == KH_OK) {
        result = kh_p11_attribute(session, key, CKA_EXTRACTABLE, &extractable, sizeof(extractable), &len);
    }
    if (result == KH_OK && extractable != CK_FALSE) {
        result = expect(session, key, CKA_WRAP_WITH_TRUSTED, true,
                        "can be wrapped by any key, and so be carried away");
    }
    return result == KH_OK ? expect_unwrap_template(session, key) : result;
}

static kh_result find_pool_key(kh_p11_session *session, const char *pool, char label[KH_P11_POOL_LABEL_MAX],
                               CK_OBJECT_HANDLE *key)
{
    kh_result result = kh_p11_pool_label(session, POOL_LABEL, pool, label);

    return result == KH_OK ? kh_p11_find_labelled(session, CKO_SECRET_KEY, label, key) : result;
}

kh_result kh_p11_poolkey_check(kh_p11_session *session, const char *pool)
{
    char label[KH_P11_POOL_LABEL_MAX];
    CK_OBJECT_HANDLE key = CK_INVALID_HANDLE;
    kh_result result = find_pool_key(session, pool, label, &key);

    return result == KH_OK ? judge(session, key) : result;
}

/* KH_OK: no pool key of that name here; label is its. */
static kh_result expect_none(kh_p11_session *session, const char *pool, char label[KH_P11_POOL_LABEL_MAX])
{
    CK_OBJECT_HANDLE key = CK_INVALID_HANDLE;
    kh_result result = find_pool_key(session, pool, label, &key);

    if (result == KH_OK || result == KH_E_INVALID) {
        return kh_p11_refuse(session, result == KH_OK ? KH_E_EXISTS : result, KH_HEAL_NONE,
                             "the token has a key of that pool already");
    }
    return result == KH_E_NOT_FOUND ? KH_OK : result;
}

/* ---- Joining ---- */

static kh_result destroy_labelled(kh_p11_session *session, CK_ULONG class, const char *label)
{
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    kh_result result = kh_p11_find_labelled(session, class, label, &object);

    if (result == KH_OK) {
        result = kh_p11_check(session, "C_DestroyObject",
                              session->p11->f->C_DestroyObject(session->handle, object));
    }
    return result == KH_E_NOT_FOUND ? kh_p11_check(session, "", CKR_OK) : result;
}

static kh_result forget_transfer(kh_p11_session *session, const char *pool, char label[KH_P11_POOL_LABEL_MAX])
{
    kh_result result = kh_p11_pool_label(session, TRANSFER_LABEL, pool, label);

    if (result == KH_OK) {
        result = destroy_labelled(session, CKO_PRIVATE_KEY, label);
    }
    return result == KH_OK ? destroy_labelled(session, CKO_PUBLIC_KEY, label) : result;
}

kh_result kh_p11_poolkey_receive(kh_p11_session *session, const char *pool, kh_p11_offer *offer)
{
    CK_OBJECT_HANDLE pair[2] = {CK_INVALID_HANDLE, CK_INVALID_HANDLE};
    char label[KH_P11_POOL_LABEL_MAX];
    kh_p11_template public_ = {0}, private_ = {0};
    kh_result result = expect_none(session, pool, label);

    if (result == KH_OK) {
        result = forget_transfer(session, pool, label); /* of an earlier try */
    }
    if (result != KH_OK) {
        return result;
    }
    kh_p11_put_bool(&public_, CKA_TOKEN, true);
    kh_p11_put(&public_, CKA_LABEL, label, strlen(label));
    kh_p11_put_bool(&private_, CKA_TOKEN, true);
    kh_p11_put_bool(&private_, CKA_PRIVATE, true);
    kh_p11_put_bool(&private_, CKA_SENSITIVE, true);
    kh_p11_put_bool(&private_, CKA_EXTRACTABLE, false);
    kh_p11_put_bool(&private_, CKA_UNWRAP, true);
    kh_p11_put_bool(&private_, CKA_DECRYPT, false); /* it would show the pool key */
    kh_p11_put_bool(&private_, CKA_SIGN, false);
    kh_p11_put_bool(&private_, CKA_MODIFIABLE, false);
    kh_p11_put(&private_, CKA_LABEL, label, strlen(label));
    result = kh_p11_pair_make(session, KH_KEY_RSA, TRANSFER_BITS, &public_, &private_, pair);
    return result == KH_OK ? kh_p11_spki_of(session, pair[0], offer->spki, &offer->spki_len) : result;
}

/* OAEP with one hash; 1 SHA-256, 2 SHA-1: SoftHSM knows no other. */
static void set_oaep(uint8_t hash, CK_RSA_PKCS_OAEP_PARAMS *params, CK_MECHANISM *mechanism)
{
    *params = (CK_RSA_PKCS_OAEP_PARAMS){.hashAlg = hash == 1 ? CKM_SHA256 : CKM_SHA_1,
                                        .mgf = hash == 1 ? CKG_MGF1_SHA256 : CKG_MGF1_SHA1,
                                        .source = CKZ_DATA_SPECIFIED};
    *mechanism = (CK_MECHANISM){
        .mechanism = CKM_RSA_PKCS_OAEP, .pParameter = params, .ulParameterLen = sizeof(*params)};
}

static kh_result wrap_pool_key(kh_p11_session *session, CK_OBJECT_HANDLE trusted, CK_OBJECT_HANDLE pool_key,
                               kh_p11_transfer *transfer)
{
    CK_RSA_PKCS_OAEP_PARAMS params;
    CK_MECHANISM mechanism;
    uint8_t answer[2 * TRANSFER_LEN];
    CK_ULONG len = 0;
    CK_RV rv = CKR_MECHANISM_PARAM_INVALID;
    kh_result result = KH_OK;

    for (transfer->hash = 1; transfer->hash <= 2; transfer->hash++) {
        len = sizeof(answer);
        set_oaep(transfer->hash, &params, &mechanism);
        rv = session->p11->f->C_WrapKey(session->handle, &mechanism, trusted, pool_key, answer, &len);
        if (rv != CKR_MECHANISM_PARAM_INVALID && rv != CKR_ARGUMENTS_BAD) {
            break;
        }
    }
    result = kh_p11_check(session, "C_WrapKey", rv);
    if (result == KH_OK && len != TRANSFER_LEN) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION, "C_WrapKey: answered %lu bytes",
                             (unsigned long)len);
    }
    if (result == KH_OK) {
        memcpy(transfer->wrapped, answer, TRANSFER_LEN);
    }
    return result;
}

/* Something that only the same pool key unwraps: a P-256 key that nobody else ever has. */
static kh_result make_probe(kh_p11_session *session, CK_OBJECT_HANDLE pool_key, kh_p11_transfer *transfer)
{
    CK_OBJECT_HANDLE pair[2] = {CK_INVALID_HANDLE, CK_INVALID_HANDLE};
    size_t len = 0;
    kh_result result = kh_p11_passing_pair(session, KH_KEY_P256, 256, pair);

    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_wrap(session, pool_key, pair[1], transfer->probe, sizeof(transfer->probe), &len);
    transfer->probe_len = (uint32_t)len;
    session->p11->f->C_DestroyObject(session->handle, pair[0]);
    session->p11->f->C_DestroyObject(session->handle, pair[1]);
    return result;
}

/* The public key of one that gets the pool key. trusted: by the security officer, and for the session that
 * comes after. */
static kh_result create_carrier(kh_p11_session *session, const char *label, const kh_p11_offer *offer,
                                bool trusted, CK_OBJECT_HANDLE *object)
{
    uint8_t modulus[TRANSFER_LEN];
    kh_p11_template template = {0};
    const uint8_t *at = offer->spki;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)offer->spki_len);
    BIGNUM *n = NULL;
    kh_result result = KH_OK;

    if (pkey == NULL || EVP_PKEY_get_bits(pkey) != TRANSFER_BITS || !EVP_PKEY_is_a(pkey, "RSA") ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &n) != 1 ||
        BN_bn2binpad(n, modulus, TRANSFER_LEN) < 0) {
        result = kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE,
                               "that is no public key of a partition that joins");
        goto done;
    }
    kh_p11_put_ulong(&template, CKA_CLASS, &class_public);
    kh_p11_put_ulong(&template, CKA_KEY_TYPE, &type_rsa);
    kh_p11_put(&template, CKA_LABEL, label, strlen(label));
    kh_p11_put_bool(&template, CKA_TOKEN, trusted);
    kh_p11_put_bool(&template, CKA_PRIVATE, false);
    kh_p11_put_bool(&template, CKA_WRAP, true);
    if (trusted) {
        kh_p11_put_bool(&template, CKA_TRUSTED, true);
    }
    kh_p11_put(&template, CKA_MODULUS, modulus, sizeof(modulus));
    kh_p11_put(&template, CKA_PUBLIC_EXPONENT, exponent_f4, sizeof(exponent_f4));
    result = kh_p11_create(session, &template, object);
done:
    BN_free(n);
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

/* ---- A new pool ---- */

static kh_result make_passing_pool_key(kh_p11_session *session, CK_OBJECT_HANDLE *key)
{
    CK_MECHANISM mechanism = {.mechanism = CKM_AES_KEY_GEN}, wrap;
    kh_p11_template template = {0};

    if (!kh_p11_wrap_mechanism(session->p11, &wrap) ||
        !kh_p11_has(session->p11, CKM_AES_KEY_GEN, CKF_GENERATE)) {
        return kh_p11_refuse(
            session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
            "the token has no AES keys, or no key wrap with padding (RFC 5649): it cannot be in a pool");
    }
    kh_p11_put_ulong(&template, CKA_CLASS, &class_secret);
    kh_p11_put_ulong(&template, CKA_KEY_TYPE, &type_aes);
    kh_p11_put_ulong(&template, CKA_VALUE_LEN, &aes_bytes);
    kh_p11_put_bool(&template, CKA_TOKEN, false);
    kh_p11_put_bool(&template, CKA_PRIVATE, true);
    kh_p11_put_bool(&template, CKA_SENSITIVE, true);
    kh_p11_put_bool(&template, CKA_EXTRACTABLE, true);
    kh_p11_put_bool(&template, CKA_WRAP, true);
    return kh_p11_check(session, "C_GenerateKey",
                        session->p11->f->C_GenerateKey(session->handle, &mechanism, template.attributes,
                                                       template.count, key));
}

kh_result kh_p11_poolkey_begin(kh_p11_session *session, const kh_p11_offer *offers, size_t count,
                               kh_p11_transfer *transfers)
{
    CK_FUNCTION_LIST *f = session->p11->f;
    CK_OBJECT_HANDLE pool_key = CK_INVALID_HANDLE, carrier = CK_INVALID_HANDLE;
    kh_result result = make_passing_pool_key(session, &pool_key);

    if (result != KH_OK) {
        return result;
    }
    memset(transfers, 0, count * sizeof(*transfers));
    for (size_t i = 0; i < count && result == KH_OK; i++) {
        result = create_carrier(session, TRANSFER_LABEL, &offers[i], false, &carrier);
        if (result == KH_OK) {
            result = wrap_pool_key(session, carrier, pool_key, &transfers[i]);
            f->C_DestroyObject(session->handle, carrier);
        }
        if (result == KH_OK) {
            result = make_probe(session, pool_key, &transfers[i]);
        }
    }
    f->C_DestroyObject(session->handle, pool_key);
    return result;
}

/* ---- A pool that exists ---- */

static kh_result trust(kh_p11_session *session, const uint8_t *so_pin, size_t so_pin_len, const char *label,
                       const kh_p11_offer *offer)
{
    CK_OBJECT_HANDLE carrier = CK_INVALID_HANDLE;
    CK_FUNCTION_LIST *f = session->p11->f;
    kh_result result =
        kh_p11_check(session, "C_Login (security officer)",
                     f->C_Login(session->handle, CKU_SO, (CK_BYTE *)(uintptr_t)so_pin, so_pin_len));

    if (result != KH_OK) {
        return result;
    }
    result = destroy_labelled(session, CKO_PUBLIC_KEY, label); /* of an earlier try */
    if (result == KH_OK) {
        result = create_carrier(session, label, offer, true, &carrier);
    }
    f->C_Logout(session->handle);
    return result;
}

static kh_result hand_over(kh_p11_session *session, const char *pool, const char *transfer_label,
                           kh_p11_transfer *transfer)
{
    char label[KH_P11_POOL_LABEL_MAX];
    CK_OBJECT_HANDLE pool_key = CK_INVALID_HANDLE, trusted = CK_INVALID_HANDLE;
    kh_result result = find_pool_key(session, pool, label, &pool_key);

    if (result == KH_OK) {
        result = kh_p11_find_labelled(session, CKO_PUBLIC_KEY, transfer_label, &trusted);
    }
    if (result == KH_OK) {
        result = wrap_pool_key(session, trusted, pool_key, transfer);
    }
    return result == KH_OK ? make_probe(session, pool_key, transfer) : result;
}

kh_result kh_p11_poolkey_hand_over(kh_p11 *p11, const uint8_t *so_pin, size_t so_pin_len, const char *pool,
                                   const kh_p11_offer *offer, kh_p11_transfer *transfer, char *error)
{
    char label[KH_P11_POOL_LABEL_MAX];
    kh_p11_session *session = NULL;
    kh_result result = kh_p11_session_new(p11, true, &session), destroyed = KH_OK;

    memset(transfer, 0, sizeof(*transfer));
    snprintf(error, KH_P11_ERROR_MAX, "%s", "C_OpenSession failed");
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_pool_label(session, TRANSFER_LABEL, pool, label);
    if (result == KH_OK) {
        result = trust(session, so_pin, so_pin_len, label, offer);
    }
    if (result == KH_OK) {
        result = kh_p11_login(p11);
        if (result == KH_OK) {
            result = hand_over(session, pool, label, transfer);
        } else {
            result = kh_p11_refuse(session, result, KH_HEAL_NONE, "C_Login: %s", kh_result_text((int)result));
        }
        snprintf(error, KH_P11_ERROR_MAX, "%s", session->error);
        destroyed = destroy_labelled(session, CKO_PUBLIC_KEY, label); /* nothing trusted stays behind */
    } else {
        snprintf(error, KH_P11_ERROR_MAX, "%s", session->error);
    }
    if (result == KH_OK && destroyed != KH_OK) {
        result = destroyed;
        snprintf(error, KH_P11_ERROR_MAX, "%s", session->error);
    }
    kh_p11_session_free(session);
    return result;
}

/* Whether this pool key unwraps what the other one wrapped. */
static kh_result try_probe(kh_p11_session *session, CK_OBJECT_HANDLE pool_key, CK_MECHANISM *mechanism,
                           const kh_p11_transfer *transfer)
{
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    kh_p11_template template = {0};
    kh_result result = KH_OK;

    kh_p11_put_type(&template, KH_KEY_P256);
    kh_p11_put_bool(&template, CKA_TOKEN, false);
    kh_p11_put_bool(&template, CKA_PRIVATE, true);
    kh_p11_put_bool(&template, CKA_SENSITIVE, true);
    kh_p11_put_bool(&template, CKA_EXTRACTABLE, false);
    result =
        kh_p11_unwrap(session, mechanism, pool_key, transfer->probe, transfer->probe_len, &template, &object);
    if (result == KH_OK) {
        session->p11->f->C_DestroyObject(session->handle, object);
    }
    return result;
}

kh_result kh_p11_poolkey_accept(kh_p11_session *session, const char *pool, const kh_p11_transfer *transfer)
{
    CK_OBJECT_HANDLE private_key = CK_INVALID_HANDLE, pool_key = CK_INVALID_HANDLE;
    char label[KH_P11_POOL_LABEL_MAX], transfer_label[KH_P11_POOL_LABEL_MAX];
    CK_RSA_PKCS_OAEP_PARAMS params;
    CK_MECHANISM mechanism;
    pool_template template;
    kh_result result = KH_OK;

    if ((transfer->hash != 1 && transfer->hash != 2) || transfer->probe_len > sizeof(transfer->probe)) {
        return kh_p11_refuse(session, KH_E_DAMAGED, KH_HEAL_NONE, "that is no transfer of a pool key");
    }
    result = expect_none(session, pool, label);
    if (result == KH_OK) {
        result = kh_p11_pool_label(session, TRANSFER_LABEL, pool, transfer_label);
    }
    if (result == KH_OK) {
        result = kh_p11_find_labelled(session, CKO_PRIVATE_KEY, transfer_label, &private_key);
    }
    if (result == KH_OK) {
        result = put_pool_key(session, label, &template);
    }
    if (result != KH_OK) {
        return result;
    }
    set_oaep(transfer->hash, &params, &mechanism);
    result = kh_p11_unwrap(session, &mechanism, private_key, transfer->wrapped, sizeof(transfer->wrapped),
                           &template.own, &pool_key);
    if (result != KH_OK) {
        return result;
    }
    result = judge(session, pool_key);
    if (result == KH_OK) {
        result = try_probe(session, pool_key, &template.mechanism, transfer);
    }
    if (result != KH_OK) {
        session->p11->f->C_DestroyObject(session->handle, pool_key);
        return result;
    }
    return forget_transfer(session, pool, transfer_label);
}

kh_result kh_p11_poolkey_forget(kh_p11_session *session, const char *pool)
{
    char label[KH_P11_POOL_LABEL_MAX];
    kh_result result = forget_transfer(session, pool, label);

    if (result == KH_OK) {
        result = kh_p11_pool_label(session, POOL_LABEL, pool, label);
    }
    return result == KH_OK ? destroy_labelled(session, CKO_SECRET_KEY, label) : result;
}

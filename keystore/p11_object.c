/* SPDX-License-Identifier: Apache-2.0 */
/* Objects of a token: templates, finding, attributes, and public keys as the rest of Keyhold knows them. */
#include "p11_internal.h"

#include <keyhold/client.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <string.h>

#define MODULUS_MAX 512
#define EXPONENT_MAX 8
#define POINT_MAX (2 + 1 + 1 + 2 * 66) /* in its OCTET STRING */
#define DER_OCTET_STRING 0x04
#define DESTROY_PASSES 8

/* SoftHSM takes Ed25519 by the OID of RFC 8410, PKCS#11 3.0 by its name in RFC 7748. */
static const kh_p11_curve curves[] = {
    {KH_KEY_P256, 256, "P-256", 32, {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, 10},
    {KH_KEY_P384, 384, "P-384", 48, {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}, 7},
    {KH_KEY_P521, 521, "P-521", 66, {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23}, 7},
    {KH_KEY_ED25519, 256, NULL, 32, {0x06, 0x03, 0x2b, 0x65, 0x70}, 5},
    {KH_KEY_ED25519,
     256,
     NULL,
     32,
     {0x13, 0x0c, 'e', 'd', 'w', 'a', 'r', 'd', 's', '2', '5', '5', '1', '9'},
     14},
    {KH_KEY_ED25519, 256, NULL, 32, {0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01}, 11},
};

const kh_p11_curve *kh_p11_curve_of(uint32_t type, size_t nth)
{
    for (size_t i = 0; i < sizeof(curves) / sizeof(curves[0]); i++) {
        if (curves[i].type == type && nth-- == 0) {
            return &curves[i];
        }
    }
    return NULL;
}

static const kh_p11_curve *curve_by_params(const uint8_t *params, size_t len)
{
    for (size_t i = 0; i < sizeof(curves) / sizeof(curves[0]); i++) {
        if (curves[i].params_len == len && memcmp(curves[i].params, params, len) == 0) {
            return &curves[i];
        }
    }
    return NULL;
}

/* ---- Templates ---- */

void kh_p11_put(kh_p11_template *template, CK_ATTRIBUTE_TYPE type, const void *value, size_t len)
{
    if (template->count < KH_P11_TEMPLATE_MAX) {
        template->attributes[template->count++] =
            (CK_ATTRIBUTE){.type = type, .pValue = (void *)(uintptr_t)value, .ulValueLen = len};
    }
}

void kh_p11_drop(kh_p11_template *template, CK_ATTRIBUTE_TYPE type)
{
    CK_ULONG kept = 0;

    for (CK_ULONG i = 0; i < template->count; i++) {
        if (template->attributes[i].type != type) {
            template->attributes[kept++] = template->attributes[i];
        }
    }
    template->count = kept;
}

void kh_p11_put_bool(kh_p11_template *template, CK_ATTRIBUTE_TYPE type, bool value)
{
    static const CK_BBOOL booleans[] = {CK_FALSE, CK_TRUE};

    kh_p11_put(template, type, &booleans[value], sizeof(booleans[0]));
}

void kh_p11_put_ulong(kh_p11_template *template, CK_ATTRIBUTE_TYPE type, const CK_ULONG *value)
{
    kh_p11_put(template, type, value, sizeof(*value));
}

void kh_p11_put_names(kh_p11_template *template, const kh_p11_locator *locator)
{
    if (locator->id_len > 0) {
        kh_p11_put(template, CKA_ID, locator->id, locator->id_len);
    }
    if (locator->label[0] != '\0') {
        kh_p11_put(template, CKA_LABEL, locator->label, strlen(locator->label));
    }
}

/* The one name that an object is found by. */
static kh_result put_search(kh_p11_session *session, kh_p11_template *template, const CK_ULONG *class,
                            const kh_p11_locator *locator)
{
    if (locator->id_len > sizeof(locator->id) || (locator->id_len == 0 && locator->label[0] == '\0')) {
        return kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE,
                             "a key is found by an id or a label: there is neither");
    }
    kh_p11_put_bool(template, CKA_TOKEN, true);
    if (class != NULL) {
        kh_p11_put_ulong(template, CKA_CLASS, class);
    }
    if (locator->id_len > 0) {
        kh_p11_put(template, CKA_ID, locator->id, locator->id_len);
    } else {
        kh_p11_put(template, CKA_LABEL, locator->label, strlen(locator->label));
    }
    return KH_OK;
}

/* ---- Finding ---- */

kh_result kh_p11_find_all(kh_p11_session *session, const kh_p11_template *template, CK_OBJECT_HANDLE *objects,
                          size_t max, size_t *count)
{
    CK_FUNCTION_LIST *f = session->p11->f;
    CK_ULONG found = 0;
    CK_RV rv = f->C_FindObjectsInit(session->handle, (CK_ATTRIBUTE *)(uintptr_t) template->attributes,
                                    template->count);
    kh_result result = kh_p11_check(session, "C_FindObjectsInit", rv);

    *count = 0;
    if (result != KH_OK) {
        return result;
    }
    rv = f->C_FindObjects(session->handle, objects, max, &found);
    result = kh_p11_check(session, "C_FindObjects", rv);
    rv = f->C_FindObjectsFinal(session->handle); /* in any case: the session would stay busy */
    if (result != KH_OK) {
        return result;
    }
    if (found > max) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION,
                             "C_FindObjects: answered %lu objects, asked for %zu", (unsigned long)found, max);
    }
    *count = found;
    result = kh_p11_check(session, "C_FindObjectsFinal", rv);
    return result == KH_OK && found == 0 ? kh_p11_alive(session) : result;
}

/* Exactly one object of that class. */
static kh_result find_one(kh_p11_session *session, CK_ULONG class, const kh_p11_locator *locator,
                          CK_OBJECT_HANDLE *object)
{
    kh_p11_template template = {0};
    CK_OBJECT_HANDLE found[2];
    size_t count = 0;
    kh_result result = put_search(session, &template, &class, locator);

    if (result == KH_OK) {
        result = kh_p11_find_all(session, &template, found, 2, &count);
    }
    if (result != KH_OK) {
        return result;
    }
    if (count != 1) {
        return kh_p11_refuse(session, count == 0 ? KH_E_NOT_FOUND : KH_E_INVALID, KH_HEAL_NONE,
                             count == 0 ? "the token has no such key"
                                        : "the token has several keys with that id or label");
    }
    *object = found[0];
    return KH_OK;
}

/* ---- Attributes ---- */

kh_result kh_p11_attribute(kh_p11_session *session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_TYPE type,
                           void *value, size_t cap, size_t *len)
{
    CK_ATTRIBUTE attribute = {.type = type, .pValue = value, .ulValueLen = cap};
    CK_RV rv = session->p11->f->C_GetAttributeValue(session->handle, object, &attribute, 1);

    *len = 0;
    if (rv == CKR_ATTRIBUTE_TYPE_INVALID ||
        (rv == CKR_OK && attribute.ulValueLen == CK_UNAVAILABLE_INFORMATION)) {
        return kh_p11_refuse(session, KH_E_NOT_FOUND, KH_HEAL_NONE, "the object has no attribute 0x%lx",
                             (unsigned long)type);
    }
    if (rv == CKR_OK && attribute.ulValueLen > cap) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION,
                             "C_GetAttributeValue: answered %lu bytes of attribute 0x%lx, room was for %zu",
                             (unsigned long)attribute.ulValueLen, (unsigned long)type, cap);
    }
    *len = rv == CKR_OK ? attribute.ulValueLen : 0;
    return kh_p11_check(session, "C_GetAttributeValue", rv);
}

static kh_result key_type(kh_p11_session *session, CK_OBJECT_HANDLE object, CK_KEY_TYPE *type)
{
    size_t len = 0;
    kh_result result = kh_p11_attribute(session, object, CKA_KEY_TYPE, type, sizeof(*type), &len);

    if (result == KH_OK && len != sizeof(*type)) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION, "CKA_KEY_TYPE has %zu bytes", len);
    }
    return result;
}

static kh_result read_curve(kh_p11_session *session, CK_OBJECT_HANDLE object, const kh_p11_curve **curve)
{
    uint8_t params[64];
    size_t len = 0;
    kh_result result = kh_p11_attribute(session, object, CKA_EC_PARAMS, params, sizeof(params), &len);

    if (result != KH_OK) {
        return result;
    }
    *curve = curve_by_params(params, len);
    return *curve != NULL ? KH_OK
                          : kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                                          "the key is on a curve that Keyhold does not know");
}

static kh_result read_modulus(kh_p11_session *session, CK_OBJECT_HANDLE object, BIGNUM **modulus)
{
    uint8_t bytes[MODULUS_MAX + 1];
    size_t len = 0;
    kh_result result = kh_p11_attribute(session, object, CKA_MODULUS, bytes, sizeof(bytes), &len);

    *modulus = NULL;
    if (result != KH_OK) {
        return result;
    }
    *modulus = BN_bin2bn(bytes, (int)len, NULL);
    return *modulus != NULL ? KH_OK : KH_E_MEMORY;
}

/* ---- Keys ---- */

kh_result kh_p11_find(kh_p11_session *session, const kh_p11_locator *locator, kh_p11_key *key)
{
    const kh_p11_curve *curve = NULL;
    CK_KEY_TYPE type = 0;
    BIGNUM *modulus = NULL;
    CK_OBJECT_HANDLE object = 0;
    kh_result result = find_one(session, CKO_PRIVATE_KEY, locator, &object);

    memset(key, 0, sizeof(*key));
    if (result == KH_OK) {
        result = key_type(session, object, &type);
    }
    if (result != KH_OK) {
        return result;
    }
    if (type == CKK_RSA) {
        result = read_modulus(session, object, &modulus);
        key->type = KH_KEY_RSA;
        key->bits = modulus != NULL ? (uint32_t)BN_num_bits(modulus) : 0;
        BN_free(modulus);
        if (result == KH_OK && (key->bits < 1024 || key->bits > 8 * KH_SIGNATURE_MAX)) {
            return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE, "an RSA key of %u bits",
                                 (unsigned)key->bits);
        }
    } else if (type == CKK_EC || type == CKK_EC_EDWARDS) {
        result = read_curve(session, object, &curve);
        key->type = curve != NULL ? curve->type : 0;
        key->bits = curve != NULL ? curve->bits : 0;
    } else {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE, "a key of type 0x%lx",
                             (unsigned long)type);
    }
    key->handle = object;
    return result;
}

static EVP_PKEY *from_params(const char *type, OSSL_PARAM_BLD *build)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, type, NULL);
    OSSL_PARAM *params = OSSL_PARAM_BLD_to_param(build);
    EVP_PKEY *pkey = NULL;

    if (ctx == NULL || params == NULL || EVP_PKEY_fromdata_init(ctx) != 1 ||
        EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_PUBLIC_KEY, params) != 1) {
        pkey = NULL;
    }
    OSSL_PARAM_free(params);
    EVP_PKEY_CTX_free(ctx);
    return pkey;
}

static kh_result public_rsa(kh_p11_session *session, CK_OBJECT_HANDLE object, EVP_PKEY **pkey)
{
    uint8_t exponent[EXPONENT_MAX];
    size_t len = 0;
    BIGNUM *n = NULL, *e = NULL;
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    kh_result result = read_modulus(session, object, &n);

    if (result == KH_OK) {
        result = kh_p11_attribute(session, object, CKA_PUBLIC_EXPONENT, exponent, sizeof(exponent), &len);
    }
    if (result != KH_OK) {
        goto done;
    }
    e = BN_bin2bn(exponent, (int)len, NULL);
    result = KH_E_MEMORY;
    if (build != NULL && e != NULL && OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_N, n) == 1 &&
        OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_E, e) == 1) {
        *pkey = from_params("RSA", build);
        result = KH_OK;
    }
done:
    OSSL_PARAM_BLD_free(build);
    BN_free(n);
    BN_free(e);
    return result;
}

static kh_result public_ec(kh_p11_session *session, CK_OBJECT_HANDLE object, EVP_PKEY **pkey)
{
    const kh_p11_curve *curve = NULL;
    uint8_t bytes[POINT_MAX], *point = bytes;
    size_t len = 0, want = 0;
    OSSL_PARAM_BLD *build = NULL;
    kh_result result = read_curve(session, object, &curve);

    if (result == KH_OK) {
        result = kh_p11_attribute(session, object, CKA_EC_POINT, bytes, sizeof(bytes), &len);
    }
    if (result != KH_OK) {
        return result;
    }
    want = curve->group != NULL ? 1 + 2 * curve->field_len : curve->field_len;
    if (len > want && point[0] == DER_OCTET_STRING &&
        point[1] < 0x80) { /* the standard; some give the bare point */
        point += 2;
        len -= 2;
    } else if (len > want && point[0] == DER_OCTET_STRING && point[1] == 0x81) {
        point += 3;
        len -= 3;
    }
    if (len != want) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE, "CKA_EC_POINT has %zu bytes, not %zu",
                             len, want);
    }
    if (curve->group == NULL) {
        *pkey = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, point, len);
        return KH_OK;
    }
    build = OSSL_PARAM_BLD_new();
    result = KH_E_MEMORY;
    if (build != NULL &&
        OSSL_PARAM_BLD_push_utf8_string(build, OSSL_PKEY_PARAM_GROUP_NAME, curve->group, 0) == 1 &&
        OSSL_PARAM_BLD_push_octet_string(build, OSSL_PKEY_PARAM_PUB_KEY, point, len) == 1) {
        *pkey = from_params("EC", build);
        result = KH_OK;
    }
    OSSL_PARAM_BLD_free(build);
    return result;
}

kh_result kh_p11_spki_of(kh_p11_session *session, CK_OBJECT_HANDLE object, uint8_t *spki, size_t *spki_len)
{
    CK_KEY_TYPE type = 0;
    EVP_PKEY *pkey = NULL;
    kh_result result = key_type(session, object, &type);

    if (result != KH_OK) {
        return result;
    }
    result = type == CKK_RSA                            ? public_rsa(session, object, &pkey)
             : type == CKK_EC || type == CKK_EC_EDWARDS ? public_ec(session, object, &pkey)
                                                        : KH_E_UNSUPPORTED;
    if (result == KH_OK) {
        result = pkey != NULL
                     ? kh_key_id(pkey, NULL, spki, spki_len, NULL, NULL)
                     : kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE, "the token's public key is none");
    }
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

kh_result kh_p11_public(kh_p11_session *session, const kh_p11_locator *locator, uint8_t *spki,
                        size_t *spki_len)
{
    CK_OBJECT_HANDLE object = 0;
    kh_result result = find_one(session, CKO_PUBLIC_KEY, locator, &object);

    /* No public object: RSA's private one has both numbers, and some tokens' EC ones have the point. */
    if (result == KH_E_NOT_FOUND) {
        result = find_one(session, CKO_PRIVATE_KEY, locator, &object);
    }
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_spki_of(session, object, spki, spki_len);
    if (result == KH_E_NOT_FOUND) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                             "the token has the private key without a public key object beside it");
    }
    return result;
}

static kh_result destroy_class(kh_p11_session *session, CK_ULONG class, const kh_p11_locator *locator)
{
    kh_p11_template template = {0};
    CK_OBJECT_HANDLE objects[16];
    size_t count = 1;
    kh_result result = put_search(session, &template, &class, locator);

    for (int pass = 0; result == KH_OK && count > 0; pass++) {
        if (pass == DESTROY_PASSES) {
            return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_NONE,
                                 "the token destroys objects that stay");
        }
        result = kh_p11_find_all(session, &template, objects, sizeof(objects) / sizeof(objects[0]), &count);
        for (size_t i = 0; result == KH_OK && i < count; i++) {
            CK_RV rv = session->p11->f->C_DestroyObject(session->handle, objects[i]);

            /* One that is gone already is well; whether it is, the next pass sees. */
            result = kh_p11_check(session, "C_DestroyObject", rv == CKR_OBJECT_HANDLE_INVALID ? CKR_OK : rv);
        }
    }
    return result;
}

kh_result kh_p11_destroy(kh_p11_session *session, const kh_p11_locator *locator)
{
    kh_result result = KH_OK;

    if (locator->id_len == 0) { /* by a label others' objects would go along */
        return kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE,
                             "objects are destroyed by their CKA_ID only");
    }
    result = destroy_class(session, CKO_PRIVATE_KEY, locator);
    return result == KH_OK ? destroy_class(session, CKO_PUBLIC_KEY, locator) : result;
}

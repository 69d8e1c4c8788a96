/* SPDX-License-Identifier: Apache-2.0 */
/* The key-encryption key of the software tier, wrapped by an AES key in a token. */
#include "kek_token.h"
#include "p11_internal.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#define LABEL "keyhold-kek"
#define IV_LEN 12
#define TAG_LEN 16
#define GCM_LEN (IV_LEN + KH_KEK_LEN + TAG_LEN)
#define KWP_LEN (KH_KEK_LEN + 8)
#define ANSWER_MAX 256
#define AAD_MAX (32 + KH_PLACE_MAX + KH_P11_ID_LEN)

static const CK_ULONG class_secret = CKO_SECRET_KEY, type_aes = CKK_AES, type_generic = CKK_GENERIC_SECRET;
static const CK_ULONG aes_bytes = 32, kek_bytes = KH_KEK_LEN;

/* How this token is to do it; 0: it cannot. */
static kh_kek_how how_of(const kh_p11 *p11)
{
    CK_MECHANISM wrap;

    if (kh_p11_has(p11, CKM_AES_GCM, CKF_ENCRYPT | CKF_DECRYPT)) {
        return KH_KEK_GCM;
    }
    return kh_p11_wrap_mechanism(p11, &wrap) ? KH_KEK_KWP : 0;
}

static kh_result find_key(kh_p11_session *session, const kh_kek_token *t, CK_OBJECT_HANDLE *key)
{
    kh_p11_template template = {0};
    size_t count = 0;
    kh_result result = KH_OK;

    kh_p11_put_bool(&template, CKA_TOKEN, true);
    kh_p11_put_ulong(&template, CKA_CLASS, &class_secret);
    kh_p11_put(&template, CKA_ID, t->id, sizeof(t->id));
    result = kh_p11_find_all(session, &template, key, 1, &count);
    if (result == KH_OK && count == 0) {
        return kh_p11_refuse(session, KH_E_NOT_FOUND, KH_HEAL_NONE,
                             "the token has not the AES key that wrapped the KEK");
    }
    return result;
}

/* Decrypting only with GCM, unwrapping only without: a key does one thing. */
static kh_result make_key(kh_p11_session *session, kh_kek_how how, const kh_kek_token *t,
                          CK_OBJECT_HANDLE *key)
{
    CK_MECHANISM mechanism = {.mechanism = CKM_AES_KEY_GEN};
    kh_p11_template template = {0};
    kh_result result = KH_OK;

    kh_p11_put_ulong(&template, CKA_CLASS, &class_secret);
    kh_p11_put_ulong(&template, CKA_KEY_TYPE, &type_aes);
    kh_p11_put_ulong(&template, CKA_VALUE_LEN, &aes_bytes);
    kh_p11_put(&template, CKA_ID, t->id, sizeof(t->id));
    kh_p11_put(&template, CKA_LABEL, LABEL, strlen(LABEL));
    kh_p11_put_bool(&template, CKA_TOKEN, true);
    kh_p11_put_bool(&template, CKA_PRIVATE, true);
    kh_p11_put_bool(&template, CKA_SENSITIVE, true);
    kh_p11_put_bool(&template, CKA_EXTRACTABLE, false);
    kh_p11_put_bool(&template, CKA_ENCRYPT, how == KH_KEK_GCM);
    kh_p11_put_bool(&template, CKA_DECRYPT, how == KH_KEK_GCM);
    kh_p11_put_bool(&template, CKA_WRAP, how == KH_KEK_KWP);
    kh_p11_put_bool(&template, CKA_UNWRAP, how == KH_KEK_KWP);
    kh_p11_put_bool(&template, CKA_MODIFIABLE, false);
    result = kh_p11_check(session, "C_GenerateKey",
                          session->p11->f->C_GenerateKey(session->handle, &mechanism, template.attributes,
                                                         template.count, key));
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_is_kept(session, *key);
    if (result != KH_OK) {
        session->p11->f->C_DestroyObject(session->handle, *key);
    }
    return result;
}

/* ---- AES-GCM ---- */

static size_t make_aad(const kh_kek_token *t, uint8_t aad[AAD_MAX])
{
    size_t len = (size_t)snprintf((char *)aad, AAD_MAX - KH_P11_ID_LEN, "keyhold-kek-token-1 %s ", t->token);

    memcpy(aad + len, t->id, KH_P11_ID_LEN);
    return len + KH_P11_ID_LEN;
}

static void set_gcm(const uint8_t *iv, const uint8_t *aad, size_t aad_len, CK_GCM_PARAMS *params,
                    CK_MECHANISM *mechanism)
{
    *params = (CK_GCM_PARAMS){.pIv = (CK_BYTE *)(uintptr_t)iv,
                              .ulIvLen = IV_LEN,
                              .ulIvBits = 8 * IV_LEN,
                              .pAAD = (CK_BYTE *)(uintptr_t)aad,
                              .ulAADLen = aad_len,
                              .ulTagBits = 8 * TAG_LEN};
    *mechanism = (CK_MECHANISM){CKM_AES_GCM, params, sizeof(*params)};
}

static kh_result wrap_gcm(kh_p11_session *session, CK_OBJECT_HANDLE key, kh_kek_token *t, const uint8_t *kek)
{
    CK_FUNCTION_LIST *f = session->p11->f;
    uint8_t aad[AAD_MAX], answer[ANSWER_MAX];
    CK_ULONG len = sizeof(answer);
    CK_GCM_PARAMS params;
    CK_MECHANISM mechanism;
    kh_result result = KH_OK;

    if (RAND_bytes(t->wrapped, IV_LEN) != 1) {
        return KH_E_CRYPTO;
    }
    set_gcm(t->wrapped, aad, make_aad(t, aad), &params, &mechanism);
    result = kh_p11_check(session, "C_EncryptInit", f->C_EncryptInit(session->handle, &mechanism, key));
    if (result == KH_OK) {
        result =
            kh_p11_check(session, "C_Encrypt",
                         f->C_Encrypt(session->handle, (CK_BYTE *)(uintptr_t)kek, KH_KEK_LEN, answer, &len));
    }
    if (result == KH_OK && len != KH_KEK_LEN + TAG_LEN) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION, "C_Encrypt: answered %lu bytes",
                             (unsigned long)len);
    }
    if (result == KH_OK) {
        memcpy(t->wrapped + IV_LEN, answer, len);
        t->wrapped_len = GCM_LEN;
    }
    return result;
}

static kh_result unwrap_gcm(kh_p11_session *session, CK_OBJECT_HANDLE key, const kh_kek_token *t,
                            uint8_t *kek)
{
    CK_FUNCTION_LIST *f = session->p11->f;
    uint8_t aad[AAD_MAX], answer[ANSWER_MAX] = {0};
    CK_ULONG len = sizeof(answer);
    CK_GCM_PARAMS params;
    CK_MECHANISM mechanism;
    CK_RV rv = CKR_OK;
    kh_result result = KH_OK;

    set_gcm(t->wrapped, aad, make_aad(t, aad), &params, &mechanism);
    result = kh_p11_check(session, "C_DecryptInit", f->C_DecryptInit(session->handle, &mechanism, key));
    if (result != KH_OK) {
        return result;
    }
    rv = f->C_Decrypt(session->handle, (CK_BYTE *)(uintptr_t)t->wrapped + IV_LEN, GCM_LEN - IV_LEN, answer,
                      &len);
    result = kh_p11_check(session, "C_Decrypt", rv);
    if (result == KH_OK && len == KH_KEK_LEN) {
        memcpy(kek, answer, KH_KEK_LEN);
    } else if (result == KH_OK || rv == CKR_GENERAL_ERROR || rv == CKR_FUNCTION_FAILED ||
               rv == CKR_DATA_INVALID) {
        result = KH_E_DAMAGED; /* what libraries say of a tag that is wrong */
    }
    OPENSSL_cleanse(answer, sizeof(answer));
    return result;
}

/* ---- RFC 5649: the KEK is an object for a moment ---- */

static void put_passing_kek(kh_p11_template *template)
{
    kh_p11_put_ulong(template, CKA_CLASS, &class_secret);
    kh_p11_put_ulong(template, CKA_KEY_TYPE, &type_generic);
    kh_p11_put_bool(template, CKA_TOKEN, false);
    kh_p11_put_bool(template, CKA_SENSITIVE, false);
    kh_p11_put_bool(template, CKA_EXTRACTABLE, true);
}

static kh_result wrap_kwp(kh_p11_session *session, CK_OBJECT_HANDLE key, kh_kek_token *t, const uint8_t *kek)
{
    kh_p11_template template = {0};
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    kh_result result = KH_OK;

    put_passing_kek(&template);
    kh_p11_put(&template, CKA_VALUE, kek, KH_KEK_LEN);
    result = kh_p11_create(session, &template, &object);
    if (result == KH_OK) {
        result = kh_p11_wrap(session, key, object, t->wrapped, KWP_LEN, &t->wrapped_len);
        session->p11->f->C_DestroyObject(session->handle, object);
    }
    return result;
}

static kh_result unwrap_kwp(kh_p11_session *session, CK_OBJECT_HANDLE key, const kh_kek_token *t,
                            uint8_t *kek)
{
    kh_p11_template template = {0};
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    CK_MECHANISM mechanism;
    size_t len = 0;
    kh_result result = KH_OK;

    if (!kh_p11_wrap_mechanism(session->p11, &mechanism)) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                             "the token has no AES key wrap any more");
    }
    put_passing_kek(&template);
    result = kh_p11_unwrap(session, &mechanism, key, t->wrapped, t->wrapped_len, &template, &object);
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_attribute(session, object, CKA_VALUE, kek, KH_KEK_LEN, &len);
    if (result == KH_OK && len != kek_bytes) {
        result = kh_p11_refuse(session, KH_E_DAMAGED, KH_HEAL_NONE, "the KEK has %zu bytes", len);
    }
    session->p11->f->C_DestroyObject(session->handle, object);
    return result;
}

/* ---- */

kh_result kh_kek_token_wrap(kh_p11_session *session, kh_kek_token *t, const uint8_t kek[KH_KEK_LEN])
{
    CK_OBJECT_HANDLE key = CK_INVALID_HANDLE;
    kh_result result = find_key(session, t, &key);

    if (result != KH_OK) {
        return result;
    }
    return t->how == KH_KEK_GCM ? wrap_gcm(session, key, t, kek) : wrap_kwp(session, key, t, kek);
}

kh_result kh_kek_token_create(kh_p11_session *session, const char *token, kh_kek_token *t,
                              uint8_t kek[KH_KEK_LEN])
{
    CK_OBJECT_HANDLE key = CK_INVALID_HANDLE;
    kh_result result = KH_OK;

    memset(t, 0, sizeof(*t));
    t->how = how_of(session->p11);
    if (!kh_name_valid(token, strlen(token)) || strlen(token) > KH_PLACE_MAX) {
        return kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE, "that is no name of a token");
    }
    if (t->how == 0 || !kh_p11_has(session->p11, CKM_AES_KEY_GEN, CKF_GENERATE)) {
        return kh_p11_refuse(
            session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
            "the token has neither AES-GCM nor AES key wrap with padding: it cannot keep a KEK");
    }
    strcpy(t->token, token);
    if (RAND_bytes(t->id, sizeof(t->id)) != 1 || RAND_priv_bytes(kek, KH_KEK_LEN) != 1) {
        return KH_E_CRYPTO;
    }
    result = make_key(session, t->how, t, &key);
    if (result == KH_OK) {
        result = t->how == KH_KEK_GCM ? wrap_gcm(session, key, t, kek) : wrap_kwp(session, key, t, kek);
        if (result != KH_OK) {
            session->p11->f->C_DestroyObject(session->handle, key);
        }
    }
    if (result != KH_OK) {
        OPENSSL_cleanse(kek, KH_KEK_LEN);
    }
    return result;
}

kh_result kh_kek_token_unwrap(kh_p11_session *session, const kh_kek_token *t, uint8_t kek[KH_KEK_LEN])
{
    CK_OBJECT_HANDLE key = CK_INVALID_HANDLE;
    kh_result result = KH_OK;

    if ((t->how != KH_KEK_GCM && t->how != KH_KEK_KWP) ||
        t->wrapped_len != (t->how == KH_KEK_GCM ? GCM_LEN : KWP_LEN)) {
        return kh_p11_refuse(session, KH_E_DAMAGED, KH_HEAL_NONE, "a wrapped KEK has not %zu bytes",
                             t->wrapped_len);
    }
    result = find_key(session, t, &key);
    if (result == KH_OK) {
        result = t->how == KH_KEK_GCM ? unwrap_gcm(session, key, t, kek) : unwrap_kwp(session, key, t, kek);
    }
    if (result != KH_OK) {
        OPENSSL_cleanse(kek, KH_KEK_LEN);
    }
    return result;
}

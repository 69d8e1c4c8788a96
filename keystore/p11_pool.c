/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys that are the same in all partitions of a pool: made or brought in as passing objects of a session,
 * wrapped under the pool key, and unwrapped from that blob in every partition, the first included. Whoever
 * has a blob has nothing without a token.
 */
#include "p11_internal.h"

#include <keyhold/client.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>

#define WRAP_BLOCK 8 /* bytes: RFC 5649's blobs are made of these */
#define WRAP_MIN 24  /* of a key that is worth wrapping */
#define ANSWER_MAX                                                                                           \
    4096 /* more than any blob, so that a library that writes more than it may does no harm                  \
          */

kh_result kh_p11_pool_label(kh_p11_session *session, const char *prefix, const char *pool,
                            char label[KH_P11_POOL_LABEL_MAX])
{
    size_t len = strnlen(pool, KH_PLACE_MAX + 1);

    if (len > KH_PLACE_MAX || !kh_name_valid(pool, len)) {
        return kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE, "that is no name of a pool");
    }
    snprintf(label, KH_P11_POOL_LABEL_MAX, "%s %s", prefix, pool);
    return KH_OK;
}

kh_result kh_p11_find_labelled(kh_p11_session *session, CK_ULONG class, const char *label,
                               CK_OBJECT_HANDLE *object)
{
    kh_p11_template template = {0};
    CK_OBJECT_HANDLE found[2];
    size_t count = 0;
    kh_result result = KH_OK;

    kh_p11_put_bool(&template, CKA_TOKEN, true);
    kh_p11_put_ulong(&template, CKA_CLASS, &class);
    kh_p11_put(&template, CKA_LABEL, label, strlen(label));
    result = kh_p11_find_all(session, &template, found, 2, &count);
    if (result == KH_OK && count != 1) {
        result =
            kh_p11_refuse(session, count == 0 ? KH_E_NOT_FOUND : KH_E_INVALID, KH_HEAL_NONE,
                          count == 0 ? "the token has no \"%s\"" : "the token has several \"%s\"", label);
    }
    *object = found[0];
    return result;
}

static kh_result find_pool_key(kh_p11_session *session, const char *pool, CK_OBJECT_HANDLE *object)
{
    char label[KH_P11_POOL_LABEL_MAX];
    kh_result result = kh_p11_pool_label(session, "keyhold-pool", pool, label);

    return result == KH_OK ? kh_p11_find_labelled(session, CKO_SECRET_KEY, label, object) : result;
}

bool kh_p11_wrap_mechanism(const kh_p11 *p11, CK_MECHANISM *mechanism)
{
    static const CK_MECHANISM_TYPE names[] = {KH_CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD};

    memset(mechanism, 0, sizeof(*mechanism));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (kh_p11_has(p11, names[i], CKF_WRAP | CKF_UNWRAP)) {
            mechanism->mechanism = names[i];
            return true;
        }
    }
    return false;
}

static kh_result mechanism_of(kh_p11_session *session, CK_MECHANISM *mechanism)
{
    return kh_p11_wrap_mechanism(session->p11, mechanism)
               ? KH_OK
               : kh_p11_refuse(
                     session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                     "the token has no AES key wrap with padding (RFC 5649): it cannot be in a pool");
}

/* ---- Wrapping ---- */

kh_result kh_p11_wrap(kh_p11_session *session, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key, uint8_t *blob,
                      size_t cap, size_t *blob_len)
{
    uint8_t answer[ANSWER_MAX];
    CK_ULONG len = sizeof(answer);
    CK_MECHANISM mechanism;
    kh_result result = mechanism_of(session, &mechanism);

    *blob_len = 0;
    if (result == KH_OK) {
        result = kh_p11_check(
            session, "C_WrapKey",
            session->p11->f->C_WrapKey(session->handle, &mechanism, wrapping, key, answer, &len));
    }
    if (result == KH_OK && (len > cap || len < WRAP_MIN || len % WRAP_BLOCK != 0)) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION, "C_WrapKey: answered %lu bytes",
                             (unsigned long)len);
    }
    if (result == KH_OK) {
        memcpy(blob, answer, len);
        *blob_len = len;
    }
    return result;
}

/* What is wrapped is an object of the session, gone with it at the latest. */
static void put_passing(kh_p11_template *template)
{
    kh_p11_put_bool(template, CKA_TOKEN, false);
    kh_p11_put_bool(template, CKA_PRIVATE, true);
    kh_p11_put_bool(template, CKA_SENSITIVE, true);
    kh_p11_put_bool(template, CKA_EXTRACTABLE, true);
    kh_p11_put_bool(template, CKA_SIGN, true);
}

kh_result kh_p11_passing_pair(kh_p11_session *session, uint32_t type, uint32_t bits,
                              CK_OBJECT_HANDLE handles[2])
{
    kh_p11_template public_ = {0}, private_ = {0};

    kh_p11_put_bool(&public_, CKA_TOKEN, false);
    kh_p11_put_bool(&public_, CKA_VERIFY, true);
    put_passing(&private_);
    return kh_p11_pair_make(session, type, bits, &public_, &private_, handles);
}

/* SoftHSM wraps no Ed25519 keys, and says only afterwards so. */
static kh_result wrappable(kh_p11_session *session, uint32_t type)
{
    return type != KH_KEY_ED25519 ? KH_OK
                                  : kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                                                  "Ed25519 keys cannot be wrapped: not in a pool");
}

kh_result kh_p11_pool_generate(kh_p11_session *session, const char *pool, uint32_t type, uint32_t bits,
                               uint8_t *spki, size_t *spki_len, uint8_t *blob, size_t *blob_len)
{
    CK_OBJECT_HANDLE pool_key = CK_INVALID_HANDLE, pair[2] = {CK_INVALID_HANDLE, CK_INVALID_HANDLE};
    CK_FUNCTION_LIST *f = session->p11->f;
    kh_result result = wrappable(session, type);

    if (result == KH_OK) {
        result = find_pool_key(session, pool, &pool_key);
    }
    if (result == KH_OK) {
        result = kh_p11_passing_pair(session, type, bits, pair);
    }
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_spki_of(session, pair[0], spki, spki_len);
    if (result == KH_OK) {
        result = kh_p11_wrap(session, pool_key, pair[1], blob, KH_P11_BLOB_MAX, blob_len);
    }
    f->C_DestroyObject(session->handle, pair[0]);
    f->C_DestroyObject(session->handle, pair[1]);
    return result;
}

/* A kh_p11_make_fn; ctx: where the handle goes. */
static kh_result make_passing(kh_p11_session *session, kh_p11_template *template, void *object)
{
    return kh_p11_create(session, template, object);
}

kh_result kh_p11_pool_wrap(kh_p11_session *session, const char *pool, const uint8_t *pkcs8, size_t pkcs8_len,
                           uint8_t *blob, size_t *blob_len)
{
    CK_OBJECT_HANDLE pool_key = CK_INVALID_HANDLE, object = CK_INVALID_HANDLE;
    kh_p11_template template = {0};
    kh_key_type type = KH_KEY_NONE;
    EVP_PKEY *pkey = NULL;
    kh_result result = kh_p11_read_pkcs8(session, pkcs8, pkcs8_len, &pkey, &type, NULL, NULL);

    if (result == KH_OK) {
        result = wrappable(session, type);
    }
    if (result == KH_OK) {
        result = find_pool_key(session, pool, &pool_key);
    }
    if (result == KH_OK) {
        put_passing(&template);
        result = kh_p11_with_secret(session, pkey, type, &template, make_passing, &object);
    }
    if (result == KH_OK) {
        result = kh_p11_wrap(session, pool_key, object, blob, KH_P11_BLOB_MAX, blob_len);
        session->p11->f->C_DestroyObject(session->handle, object);
    }
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

/* ---- Unwrapping ---- */

kh_result kh_p11_unwrap(kh_p11_session *session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,
                        const uint8_t *blob, size_t blob_len, const kh_p11_template *template,
                        CK_OBJECT_HANDLE *object)
{
    CK_RV rv = session->p11->f->C_UnwrapKey(session->handle, mechanism, wrapping, (CK_BYTE *)(uintptr_t)blob,
                                            blob_len, (CK_ATTRIBUTE *)(uintptr_t) template->attributes,
                                            template->count, object);
    kh_result result = kh_p11_check(session, "C_UnwrapKey", rv);

    /* SoftHSM has GENERAL_ERROR for it, others FUNCTION_FAILED or what they say of data. */
    if (rv == CKR_GENERAL_ERROR || rv == CKR_FUNCTION_FAILED || rv == CKR_DATA_INVALID ||
        rv == CKR_DATA_LEN_RANGE || rv == CKR_ARGUMENTS_BAD) {
        session->heal = KH_HEAL_NONE;
        result = KH_E_DAMAGED;
    }
    return result;
}

/* A message that no protocol has. */
static const uint8_t probe[] = "keyhold: is this the private key of that public key?";

static bool verifies(EVP_PKEY *pkey, const EVP_MD *digest, const uint8_t *signature, size_t len)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = ctx != NULL && EVP_DigestVerifyInit(ctx, NULL, digest, NULL, pkey) == 1 &&
                EVP_DigestVerify(ctx, signature, len, probe, sizeof(probe)) == 1;

    EVP_MD_CTX_free(ctx);
    return good;
}

/* Signs with the key, and verifies with the public key: a key that is another one than it should be is worse
 * than none. */
static kh_result try_key(kh_p11_session *session, const kh_p11_key *key, EVP_PKEY *pkey)
{
    uint8_t signature[KH_SIGNATURE_MAX];
    size_t len = 0;
    kh_key_type type = KH_KEY_NONE;
    unsigned bits = 0;
    kh_result result = kh_key_id(pkey, NULL, NULL, NULL, &type, &bits);
    bool same = result == KH_OK && key->type == type && key->bits == bits;

    if (same) {
        result = kh_p11_sign(session, key,
                             type == KH_KEY_RSA       ? KH_RSA_PKCS1_SHA256
                             : type == KH_KEY_ED25519 ? KH_ED25519
                                                      : KH_ECDSA_SHA256,
                             false, probe, sizeof(probe), signature, &len);
    }
    if (result == KH_OK &&
        (!same || !verifies(pkey, type == KH_KEY_ED25519 ? NULL : EVP_sha256(), signature, len))) {
        return kh_p11_refuse(session, KH_E_MISMATCH, KH_HEAL_NONE,
                             "the private key does not belong to its public key");
    }
    return result;
}

kh_result kh_p11_prove(kh_p11_session *session, const kh_p11_key *key, const uint8_t *spki, size_t spki_len)
{
    const uint8_t *at = spki;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)spki_len);
    kh_result result = KH_E_DAMAGED;

    if (pkey != NULL) {
        result = try_key(session, key, pkey);
    }
    EVP_PKEY_free(pkey);
    return result;
}

static void put_key_type_of(kh_p11_template *template, const EVP_PKEY *pkey)
{
    kh_p11_put_type(template,
                    EVP_PKEY_is_a(pkey, "RSA") ? KH_KEY_RSA : KH_KEY_P256); /* CKK_EC of any curve */
}

static kh_result unwrap_private(kh_p11_session *session, CK_OBJECT_HANDLE pool_key, const uint8_t *blob,
                                size_t blob_len, const kh_p11_locator *locator, uint32_t usage,
                                const EVP_PKEY *pkey, CK_OBJECT_HANDLE *object)
{
    kh_p11_template template = {0};
    CK_MECHANISM mechanism;
    kh_result result = mechanism_of(session, &mechanism);

    if (result != KH_OK) {
        return result;
    }
    put_key_type_of(&template, pkey);
    kh_p11_put_private(&template, usage, EVP_PKEY_is_a(pkey, "RSA") ? KH_KEY_RSA : KH_KEY_P256);
    kh_p11_put_names(&template, locator);
    kh_p11_put_bool(&template, CKA_MODIFIABLE, false);
    result = kh_p11_unwrap(session, &mechanism, pool_key, blob, blob_len, &template, object);
    if (result == KH_E_UNSUPPORTED) {
        kh_p11_drop(&template, CKA_MODIFIABLE);
        result = kh_p11_unwrap(session, &mechanism, pool_key, blob, blob_len, &template, object);
    }
    return result;
}

/*
 * KH_OK: the key with that CKA_ID is there, belongs to the public key, and stays in the token. *unfit: it is known to be another
 * one, one of several, one that could leave the token, or half of one (a process that was killed while it was made), so that
 * another in its place makes good. A token that refuses to sign (a policy, an approval that is missing) says nothing about the key.
 */
static kh_result judge(kh_p11_session *session, const kh_p11_locator *locator, EVP_PKEY *pkey, bool *unfit)
{
    kh_p11_key key;
    kh_result result = kh_p11_find(session, locator, &key);

    *unfit = result == KH_E_INVALID || result == KH_E_UNSUPPORTED || result == KH_E_NOT_FOUND;
    if (result == KH_OK) {
        result = kh_p11_is_kept(session, key.handle);
        *unfit = result == KH_E_FORBIDDEN;
    }
    if (result == KH_OK) {
        result = try_key(session, &key, pkey);
        *unfit = result == KH_E_MISMATCH;
    }
    return result;
}

static kh_result place(kh_p11_session *session, const char *pool, const uint8_t *blob, size_t blob_len,
                       const kh_p11_locator *locator, uint32_t usage, EVP_PKEY *pkey)
{
    CK_OBJECT_HANDLE pool_key = CK_INVALID_HANDLE, object = CK_INVALID_HANDLE;
    bool unfit = false;
    kh_result result = find_pool_key(session, pool, &pool_key);

    if (result == KH_OK) {
        result = unwrap_private(session, pool_key, blob, blob_len, locator, usage, pkey, &object);
    }
    if (result != KH_OK) {
        return result;
    }
    result = judge(session, locator, pkey, &unfit);
    if (result != KH_OK) {
        session->p11->f->C_DestroyObject(session->handle, object);
    }
    return result;
}

kh_result kh_p11_pool_unwrap(kh_p11_session *session, const char *pool, const uint8_t *blob, size_t blob_len,
                             const kh_p11_locator *locator, uint32_t usage, const uint8_t *spki,
                             size_t spki_len)
{
    const uint8_t *at = spki;
    uint8_t there[KH_SPKI_MAX];
    size_t there_len = 0;
    CK_OBJECT_HANDLE pool_key = CK_INVALID_HANDLE;
    bool unfit = false;
    EVP_PKEY *pkey = NULL;
    kh_result result = KH_E_DAMAGED;

    if (blob_len > KH_P11_BLOB_MAX || blob_len < WRAP_MIN || blob_len % WRAP_BLOCK != 0) {
        return kh_p11_refuse(session, KH_E_DAMAGED, KH_HEAL_NONE, "%zu bytes are no wrapped key", blob_len);
    }
    if (locator->id_len == 0) {
        return kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE, "a key of a pool has a CKA_ID");
    }
    pkey = d2i_PUBKEY(NULL, &at, (long)spki_len);
    if (pkey == NULL || (!EVP_PKEY_is_a(pkey, "RSA") && !EVP_PKEY_is_a(pkey, "EC"))) {
        result = kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE, "that is no public key of a pool");
        goto done;
    }
    result = judge(session, locator, pkey, &unfit);
    if (unfit && (result = find_pool_key(session, pool, &pool_key)) == KH_OK) { /* else there is nothing to put in its place */
        result = kh_p11_destroy(session, locator); /* whatever there is: half a key may not count as found */
        result = result == KH_OK ? KH_E_NOT_FOUND : result;
    }
    if (result == KH_E_NOT_FOUND) {
        result = place(session, pool, blob, blob_len, locator, usage, pkey);
    }
    if (result != KH_OK) {
        goto done;
    }
    /* The public object may be missing after a kill. */
    if (kh_p11_public(session, locator, there, &there_len) != KH_OK || there_len != spki_len ||
        memcmp(there, spki, spki_len) != 0) {
        result = kh_p11_public_create(session, locator, spki, spki_len);
    }
done:
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

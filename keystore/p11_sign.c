/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signing and raw RSA in a token. What the token does not do itself is done outside where nothing secret is
 * needed for it: hashing, DigestInfo, the encoding of PSS, and DER of ECDSA. No length that a library answers
 * is believed: a signature has exactly as many bytes as its key demands, or the session is made anew.
 */
#include "p11_internal.h"

#include "algorithms.h"
#include "p11_encode.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

#define ANSWER_MAX 1024 /* twice the longest, so that a library that writes more than it may does no harm */

/* What the token is given, from the nearest to the bare key on. */
typedef enum kh_p11_input {
    INPUT_MESSAGE, /* the token hashes */
    INPUT_DIGEST,  /* the hash, cut to the curve's size */
    INPUT_INFO,    /* DigestInfo (RFC 8017, section 9.2) */
    INPUT_PKCS1,   /* EMSA-PKCS1-v1_5, as long as the modulus */
    INPUT_PSS,     /* EMSA-PSS, as long as the modulus */
} kh_p11_input;

typedef struct kh_p11_way {
    uint32_t scheme;
    CK_MECHANISM_TYPE mechanism;
    kh_p11_input input;
    CK_MECHANISM_TYPE hash; /* PSS: the parameter; 0: no parameter */
    CK_RSA_PKCS_MGF_TYPE mgf;
} kh_p11_way;

#define RSA_WAYS(bits)                                                                                       \
    {KH_RSA_PKCS1_SHA##bits, CKM_RSA_PKCS, INPUT_INFO, 0, 0},                                                \
        {KH_RSA_PKCS1_SHA##bits, CKM_SHA##bits##_RSA_PKCS, INPUT_MESSAGE, 0, 0},                             \
        {KH_RSA_PKCS1_SHA##bits, CKM_RSA_X_509, INPUT_PKCS1, 0, 0},                                          \
        {KH_RSA_PSS_RSAE_SHA##bits, CKM_RSA_PKCS_PSS, INPUT_DIGEST, CKM_SHA##bits, CKG_MGF1_SHA##bits},      \
        {KH_RSA_PSS_RSAE_SHA##bits, CKM_SHA##bits##_RSA_PKCS_PSS, INPUT_MESSAGE, CKM_SHA##bits,              \
         CKG_MGF1_SHA##bits},                                                                                \
    {                                                                                                        \
        KH_RSA_PSS_RSAE_SHA##bits, CKM_RSA_X_509, INPUT_PSS, 0, 0                                            \
    }
#define EC_WAYS(bits)                                                                                        \
    {KH_ECDSA_SHA##bits, CKM_ECDSA, INPUT_DIGEST, 0, 0},                                                     \
    {                                                                                                        \
        KH_ECDSA_SHA##bits, CKM_ECDSA_SHA##bits, INPUT_MESSAGE, 0, 0                                         \
    }

#ifndef CKM_SHA256
#define CKM_SHA256 0x250UL
#endif

/* Of each scheme the best way first: hashing here costs a token nothing. */
static const kh_p11_way ways[] = {
    RSA_WAYS(256),
    RSA_WAYS(384),
    RSA_WAYS(512),
    EC_WAYS(256),
    EC_WAYS(384),
    EC_WAYS(512),
    {KH_ED25519, CKM_EDDSA, INPUT_MESSAGE, 0, 0},
};

/* The first way that the token has; with a digest the token must not hash. */
static const kh_p11_way *way_of(const kh_p11 *p11, uint32_t type, uint32_t bits, uint32_t scheme,
                                bool is_digest)
{
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (ways[i].scheme == scheme && !(is_digest && ways[i].input == INPUT_MESSAGE) &&
            kh_p11_has_for(p11, ways[i].mechanism, CKF_SIGN, type == KH_KEY_RSA ? bits : 0)) {
            return &ways[i];
        }
    }
    return NULL;
}

bool kh_p11_can(const kh_p11 *p11, uint32_t key_type, uint32_t bits, uint32_t scheme)
{
    return kh_scheme_fits((int)scheme, (int)key_type) && way_of(p11, key_type, bits, scheme, false) != NULL;
}

static size_t modulus_len(const kh_p11_key *key)
{
    return (key->bits + 7) / 8;
}

/* How many bytes the token must answer. */
static size_t answer_len(const kh_p11_key *key)
{
    return key->type == KH_KEY_RSA ? modulus_len(key) : 2 * kh_p11_curve_of(key->type, 0)->field_len;
}

/* What the token is to sign; block: KH_SIGNATURE_MAX bytes for what is made here. */
static kh_result prepare(const kh_p11_way *way, const kh_p11_key *key, bool is_digest, const uint8_t **data,
                         size_t *len, uint8_t *block)
{
    size_t hash_len = kh_scheme_hash_len((int)way->scheme);
    uint8_t digest[EVP_MAX_MD_SIZE];

    if (way->input == INPUT_MESSAGE) {
        return KH_OK;
    }
    if (is_digest) {
        if (*len != hash_len) {
            return KH_E_INVALID;
        }
        memcpy(digest, *data, hash_len);
    } else if (EVP_Digest(*data, *len, digest, NULL, kh_algorithms_md(hash_len), NULL) != 1) {
        return KH_E_CRYPTO;
    }
    *data = block;
    *len = modulus_len(key);
    switch (way->input) {
    case INPUT_DIGEST:
        /* SEC 1, 4.1.3: of a longer hash the leftmost bits; not every token cuts for itself. */
        *len = key->type != KH_KEY_RSA && hash_len * 8 > key->bits ? key->bits / 8 : hash_len;
        memcpy(block, digest, *len);
        return KH_OK;
    case INPUT_INFO:
        *len = kh_encode_digest_info(digest, hash_len, block);
        return KH_OK;
    case INPUT_PKCS1:
        return kh_encode_pkcs1(digest, hash_len, block, *len);
    case INPUT_PSS:
        return kh_encode_pss(digest, hash_len, key->bits, block);
    default:
        return KH_E_INTERNAL;
    }
}

/* C_SignInit and C_Sign into answer, of which exactly want bytes are expected. */
static kh_result ask(kh_p11_session *session, CK_MECHANISM *mechanism, const kh_p11_key *key,
                     const uint8_t *data, size_t len, uint8_t answer[ANSWER_MAX], size_t want)
{
    CK_FUNCTION_LIST *f = session->p11->f;
    CK_ULONG got = ANSWER_MAX;
    kh_result result =
        kh_p11_check(session, "C_SignInit", f->C_SignInit(session->handle, mechanism, key->handle));

    if (result == KH_OK) {
        result = kh_p11_check(session, "C_Sign",
                              f->C_Sign(session->handle, (CK_BYTE *)(uintptr_t)data, len, answer, &got));
    }
    if (result == KH_OK && got != want) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION,
                             "C_Sign: answered %lu bytes instead of %zu", (unsigned long)got, want);
    }
    if (result == KH_OK) {
        session->object_lost = false;
    }
    return result;
}

static kh_result finish(kh_p11_session *session, const kh_p11_key *key, const uint8_t *answer, size_t len,
                        uint8_t *out, size_t *out_len)
{
    if (key->type == KH_KEY_RSA || key->type == KH_KEY_ED25519) {
        memcpy(out, answer, len);
        *out_len = len;
        return KH_OK;
    }
    *out_len = kh_encode_ecdsa(answer, len / 2, out);
    return *out_len > 0 ? KH_OK
                        : kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION,
                                        "C_Sign: answered a signature with a zero in it");
}

kh_result kh_p11_sign(kh_p11_session *session, const kh_p11_key *key, uint32_t scheme, bool is_digest,
                      const uint8_t *data, size_t len, uint8_t *out, size_t *out_len)
{
    uint8_t block[KH_SIGNATURE_MAX], answer[ANSWER_MAX];
    CK_RSA_PKCS_PSS_PARAMS pss = {0};
    CK_MECHANISM mechanism = {0};
    const kh_p11_way *way = NULL;
    size_t want = 0;
    kh_result result = KH_OK;

    *out_len = 0;
    if (!kh_scheme_fits((int)scheme, (int)key->type)) {
        return kh_p11_refuse(session, KH_E_SCHEME, KH_HEAL_NONE, "%s does not fit the key",
                             kh_scheme_name((int)scheme));
    }
    way = way_of(session->p11, key->type, key->bits, scheme, is_digest);
    if (way == NULL || (is_digest && kh_scheme_hash_len((int)scheme) == 0)) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE, "the token cannot do %s",
                             kh_scheme_name((int)scheme));
    }
    result = prepare(way, key, is_digest, &data, &len, block);
    if (result != KH_OK) {
        return kh_p11_refuse(session, result, KH_HEAL_NONE, "what is to be signed does not fit %s",
                             kh_scheme_name((int)scheme));
    }
    mechanism.mechanism = way->mechanism;
    if (way->hash != 0) {
        pss = (CK_RSA_PKCS_PSS_PARAMS){
            .hashAlg = way->hash, .mgf = way->mgf, .sLen = kh_scheme_hash_len((int)scheme)};
        mechanism.pParameter = &pss;
        mechanism.ulParameterLen = sizeof(pss);
    }
    want = answer_len(key);
    result = ask(session, &mechanism, key, data, len, answer, want);
    return result == KH_OK ? finish(session, key, answer, want, out, out_len) : result;
}

kh_result kh_p11_rsa_raw(kh_p11_session *session, const kh_p11_key *key, const uint8_t *data, size_t len,
                         uint8_t *out, size_t *out_len)
{
    CK_FUNCTION_LIST *f = session->p11->f;
    CK_MECHANISM mechanism = {.mechanism = CKM_RSA_X_509};
    uint8_t answer[ANSWER_MAX];
    CK_ULONG got = sizeof(answer);
    kh_result result = KH_OK;

    *out_len = 0;
    if (key->type != KH_KEY_RSA || !kh_p11_has_for(session->p11, CKM_RSA_X_509, CKF_DECRYPT, key->bits)) {
        return kh_p11_refuse(session, KH_E_UNSUPPORTED, KH_HEAL_NONE,
                             "the token has no raw RSA, and its own unpadding would be an oracle");
    }
    if (len != modulus_len(key)) {
        return kh_p11_refuse(session, KH_E_INVALID, KH_HEAL_NONE, "%zu bytes to decrypt, not %zu", len,
                             modulus_len(key));
    }
    result =
        kh_p11_check(session, "C_DecryptInit", f->C_DecryptInit(session->handle, &mechanism, key->handle));
    if (result != KH_OK) {
        return result;
    }
    result = kh_p11_check(session, "C_Decrypt",
                          f->C_Decrypt(session->handle, (CK_BYTE *)(uintptr_t)data, len, answer, &got));
    if (result != KH_OK && session->heal == KH_HEAL_NONE) {
        result = KH_E_CRYPTO; /* of this block, and no more is said */
    }
    if (result == KH_OK && got > len) {
        result = kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_SESSION,
                               "C_Decrypt: answered %lu bytes instead of %zu", (unsigned long)got, len);
    }
    if (result == KH_OK) {
        session->object_lost = false;
        /* Some leave out zeros in front: an error of these would tell well padded blocks, which begin with
         * one, from others. */
        memset(out, 0, len - got);
        memcpy(out + len - got, answer, got);
        *out_len = len;
    }
    OPENSSL_cleanse(answer, sizeof(answer));
    return result;
}

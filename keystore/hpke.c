/* SPDX-License-Identifier: Apache-2.0 */
/* HPKE base mode, single shot (RFC 9180). */
#include "hpke.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <limits.h>
#include <string.h>

#define HASH_LEN 32
#define LABELED_MAX                                                                                          \
    256 /* of what is labeled here: longest are psk_id_hash || info_hash and the KEM's context */

const kh_hpke_suite kh_hpke_aes128 = {1, "AES-128-GCM", 16};
const kh_hpke_suite kh_hpke_aes256 = {2, "AES-256-GCM", 32};

static const uint8_t kem_suite_id[5] = {'K', 'E', 'M', 0x00, 0x20};

typedef struct text {
    uint8_t bytes[LABELED_MAX];
    size_t len;
} text;

static bool append(text *t, const void *bytes, size_t len)
{
    if (len > sizeof(t->bytes) - t->len) {
        return false;
    }
    if (len > 0) {
        memcpy(t->bytes + t->len, bytes, len);
    }
    t->len += len;
    return true;
}

static bool hmac(const uint8_t *key, size_t key_len, const text *t, uint8_t out[HASH_LEN])
{
    return HMAC(EVP_sha256(), key, (int)key_len, t->bytes, t->len, out, NULL) != NULL;
}

/* RFC 9180, 4: LabeledExtract(salt, label, ikm). No salt stands for zeros, which HMAC makes of an empty key.
 */
static bool labeled_extract(const uint8_t *suite_id, size_t suite_id_len, const char *label,
                            const uint8_t *ikm, size_t ikm_len, const uint8_t *salt, size_t salt_len,
                            uint8_t out[HASH_LEN])
{
    static const uint8_t no_salt[1] = {0};
    text t = {.len = 0};
    bool good = append(&t, "HPKE-v1", 7) && append(&t, suite_id, suite_id_len) &&
                append(&t, label, strlen(label)) && append(&t, ikm, ikm_len) &&
                hmac(salt != NULL ? salt : no_salt, salt_len, &t, out);

    OPENSSL_cleanse(&t, sizeof(t));
    return good;
}

/* RFC 9180, 4: LabeledExpand(prk, label, info, len) for len up to one hash: a single block of HKDF-Expand. */
static bool labeled_expand(const uint8_t prk[HASH_LEN], const uint8_t *suite_id, size_t suite_id_len,
                           const char *label, const uint8_t *info, size_t info_len, uint8_t *out, size_t len)
{
    const uint8_t length[2] = {0, (uint8_t)len}, one = 1;
    uint8_t block[HASH_LEN];
    text t = {.len = 0};
    bool good = len <= HASH_LEN && append(&t, length, 2) && append(&t, "HPKE-v1", 7) &&
                append(&t, suite_id, suite_id_len) && append(&t, label, strlen(label)) &&
                append(&t, info, info_len) && append(&t, &one, 1) && hmac(prk, HASH_LEN, &t, block);

    if (good) {
        memcpy(out, block, len);
    }
    OPENSSL_cleanse(block, sizeof(block));
    OPENSSL_cleanse(&t, sizeof(t));
    return good;
}

/* RFC 9180, 4.1: the shared secret of Encap and Decap. A low-order public key makes the derivation fail. */
static bool kem_secret(EVP_PKEY *own, const uint8_t peer_public[32], const uint8_t enc[32],
                       const uint8_t recipient[32], uint8_t secret[32])
{
    EVP_PKEY *peer = EVP_PKEY_new_raw_public_key_ex(NULL, "X25519", NULL, peer_public, 32);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, own, NULL);
    uint8_t dh[32] = {0}, prk[HASH_LEN] = {0}, context[64];
    size_t dh_len = sizeof(dh);
    bool good = false;

    memcpy(context, enc, 32);
    memcpy(context + 32, recipient, 32);
    good = peer != NULL && ctx != NULL && EVP_PKEY_derive_init(ctx) == 1 &&
           EVP_PKEY_derive_set_peer(ctx, peer) == 1 && EVP_PKEY_derive(ctx, dh, &dh_len) == 1 &&
           dh_len == sizeof(dh) &&
           labeled_extract(kem_suite_id, sizeof(kem_suite_id), "eae_prk", dh, sizeof(dh), NULL, 0, prk) &&
           labeled_expand(prk, kem_suite_id, sizeof(kem_suite_id), "shared_secret", context, sizeof(context),
                          secret, 32);
    OPENSSL_cleanse(dh, sizeof(dh));
    OPENSSL_cleanse(prk, sizeof(prk));
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(peer);
    return good;
}

/* RFC 9180, 5.1: the key schedule of base mode. */
static bool key_schedule(const kh_hpke_suite *suite, const uint8_t *info, size_t info_len,
                         kh_hpke_context *context)
{
    const uint8_t id[10] = {'H', 'P', 'K', 'E', 0x00, 0x20, 0x00, 0x01, 0x00, (uint8_t)suite->aead_id};
    uint8_t ks[1 + 2 * HASH_LEN] = {0}, secret[HASH_LEN];
    bool good = labeled_extract(id, sizeof(id), "psk_id_hash", NULL, 0, NULL, 0, ks + 1) &&
                labeled_extract(id, sizeof(id), "info_hash", info, info_len, NULL, 0, ks + 1 + HASH_LEN) &&
                labeled_extract(id, sizeof(id), "secret", NULL, 0, context->shared_secret, 32, secret) &&
                labeled_expand(secret, id, sizeof(id), "key", ks, sizeof(ks), context->key, suite->key_len) &&
                labeled_expand(secret, id, sizeof(id), "base_nonce", ks, sizeof(ks), context->base_nonce, 12);

    OPENSSL_cleanse(secret, sizeof(secret));
    return good;
}

static bool aead(const kh_hpke_suite *suite, const kh_hpke_context *context, bool encrypt, const uint8_t *aad,
                 size_t aad_len, const uint8_t *in, size_t len, uint8_t *out, uint8_t tag[KH_HPKE_TAG_LEN])
{
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, suite->cipher, NULL);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int n = 0, end = 0;
    bool good = cipher != NULL && ctx != NULL && len <= INT_MAX && aad_len <= INT_MAX &&
                EVP_CipherInit_ex2(ctx, cipher, context->key, context->base_nonce, encrypt, NULL) == 1 &&
                (encrypt || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, KH_HPKE_TAG_LEN, tag) == 1) &&
                EVP_CipherUpdate(ctx, NULL, &n, aad, (int)aad_len) == 1 &&
                EVP_CipherUpdate(ctx, out, &n, in, (int)len) == 1 &&
                EVP_CipherFinal_ex(ctx, out + n, &end) == 1 &&
                (!encrypt || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, KH_HPKE_TAG_LEN, tag) == 1);

    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER_free(cipher);
    return good;
}

kh_result kh_hpke_seal(const kh_hpke_suite *suite, const uint8_t public_key[32],
                       const uint8_t *ephemeral_private, const uint8_t *info, size_t info_len,
                       const uint8_t *aad, size_t aad_len, const uint8_t *plain, size_t len, uint8_t *out,
                       kh_hpke_context *wanted)
{
    kh_hpke_context context = {{0}, {0}, {0}};
    size_t enc_len = KH_HPKE_ENC_LEN;
    EVP_PKEY *own = ephemeral_private != NULL
                        ? EVP_PKEY_new_raw_private_key_ex(NULL, "X25519", NULL, ephemeral_private, 32)
                        : EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    bool good = own != NULL && EVP_PKEY_get_raw_public_key(own, out, &enc_len) == 1 &&
                kem_secret(own, public_key, out, public_key, context.shared_secret) &&
                key_schedule(suite, info, info_len, &context) &&
                aead(suite, &context, true, aad, aad_len, plain, len, out + KH_HPKE_ENC_LEN,
                     out + KH_HPKE_ENC_LEN + len);

    if (wanted != NULL) {
        *wanted = context;
    }
    OPENSSL_cleanse(&context, sizeof(context));
    EVP_PKEY_free(own);
    return good ? KH_OK : KH_E_CRYPTO;
}

kh_result kh_hpke_open(const kh_hpke_suite *suite, const uint8_t private_key[32], const uint8_t *info,
                       size_t info_len, const uint8_t *aad, size_t aad_len, const uint8_t *sealed,
                       size_t sealed_len, uint8_t *plain)
{
    kh_hpke_context context = {{0}, {0}, {0}};
    uint8_t public_key[32], tag[KH_HPKE_TAG_LEN];
    size_t public_len = sizeof(public_key), len = 0;
    EVP_PKEY *own = NULL;
    bool good = false;

    if (sealed_len < KH_HPKE_ENC_LEN + KH_HPKE_TAG_LEN) {
        return KH_E_CRYPTO;
    }
    len = sealed_len - KH_HPKE_ENC_LEN - KH_HPKE_TAG_LEN;
    memcpy(tag, sealed + KH_HPKE_ENC_LEN + len, sizeof(tag));
    own = EVP_PKEY_new_raw_private_key_ex(NULL, "X25519", NULL, private_key, 32);
    good = own != NULL && EVP_PKEY_get_raw_public_key(own, public_key, &public_len) == 1 &&
           kem_secret(own, sealed, sealed, public_key, context.shared_secret) &&
           key_schedule(suite, info, info_len, &context) &&
           aead(suite, &context, false, aad, aad_len, sealed + KH_HPKE_ENC_LEN, len, plain, tag);
    if (!good) {
        OPENSSL_cleanse(plain, len);
    }
    OPENSSL_cleanse(&context, sizeof(context));
    EVP_PKEY_free(own);
    return good ? KH_OK : KH_E_CRYPTO;
}

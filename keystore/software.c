/* SPDX-License-Identifier: Apache-2.0 */
/* The software tier: by the batch kernels where that is faster, else by OpenSSL one by one. */
#include "software.h"
#include "algorithms.h"
#include "multibuffer.h"
#include "rsakx.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <stdlib.h>
#include <string.h>

#define HASHES 3

struct kh_software {
    EVP_MD_CTX *hash[HASHES]; /* SHA-256, -384, -512 */
    kh_multibuffer *multibuffer;
};

kh_result kh_software_new(kh_software **out)
{
    kh_software *software = calloc(1, sizeof(*software));
    kh_result result = kh_algorithms_init();

    *out = NULL;
    if (software == NULL) {
        return KH_E_MEMORY;
    }
    for (int i = 0; i < HASHES && result == KH_OK; i++) {
        software->hash[i] = EVP_MD_CTX_new();
        if (software->hash[i] == NULL) {
            result = KH_E_MEMORY;
        }
    }
    if (result == KH_OK) {
        result = kh_multibuffer_new(&software->multibuffer);
    }
    if (result != KH_OK) {
        kh_software_free(software);
        return result;
    }
    *out = software;
    return KH_OK;
}

void kh_software_free(kh_software *software)
{
    if (software == NULL) {
        return;
    }
    for (int i = 0; i < HASHES; i++) {
        EVP_MD_CTX_free(software->hash[i]);
    }
    kh_multibuffer_free(software->multibuffer);
    free(software);
}

/* A kh_digest_fn. */
static bool hash(void *ctx_, const kh_tier_op *op, size_t hash_len, uint8_t digest[64])
{
    kh_software *software = ctx_;
    EVP_MD_CTX *ctx = software->hash[hash_len / 16 - 2];

    return EVP_DigestInit_ex2(ctx, kh_algorithms_md(hash_len), NULL) == 1 &&
           EVP_DigestUpdate(ctx, op->data, op->len) == 1 && EVP_DigestFinal_ex(ctx, digest, NULL) == 1;
}

static kh_result sign_ed25519(kh_tier_op *op)
{
    kh_key_context local = {0}, *context = NULL;
    size_t len = KH_SIGNATURE_MAX;
    kh_result result = kh_key_context_take(op->key, KH_ED25519, &local, &context);

    if (result != KH_OK) {
        return result;
    }
    result = EVP_DigestSign(context->md_ctx, op->out, &len, op->data, op->len) == 1 ? KH_OK : KH_E_CRYPTO;
#ifdef EVP_MD_CTX_FLAG_FINALISED
    /* Newer versions of OpenSSL mark the context as used up; the one-shot signature keeps no state in it. */
    EVP_MD_CTX_clear_flags(context->md_ctx, EVP_MD_CTX_FLAG_FINALISED);
#endif
    kh_key_context_return(context, result != KH_OK);
    op->out_len = result == KH_OK ? len : 0;
    return result;
}

static kh_result sign(kh_software *software, kh_tier_op *op)
{
    kh_key_context local = {0}, *context = NULL;
    size_t hash_len = kh_scheme_hash_len((int)op->scheme), len = KH_SIGNATURE_MAX;
    uint8_t digest[64];
    const uint8_t *hashed = op->data;
    kh_result result = KH_OK;

    if (hash_len == 0) {
        return sign_ed25519(op);
    }
    if (!op->is_digest) {
        if (!hash(software, op, hash_len, digest)) {
            return KH_E_CRYPTO;
        }
        hashed = digest;
    }
    result = kh_key_context_take(op->key, op->scheme, &local, &context);
    if (result != KH_OK) {
        return result;
    }
    result = EVP_PKEY_sign(context->pkey_ctx, op->out, &len, hashed, hash_len) == 1 ? KH_OK : KH_E_CRYPTO;
    kh_key_context_return(context, result != KH_OK);
    op->out_len = result == KH_OK ? len : 0;
    return result;
}

/* The bare RSA operation, blinded by OpenSSL. block and out: modulus_len bytes. */
static bool raw_rsa(kh_key *key, const uint8_t *block, uint8_t *out)
{
    kh_key_context local = {0}, *context = NULL;
    size_t len = KH_SIGNATURE_MAX;
    bool good = false;

    if (kh_key_context_take(key, 0, &local, &context) != KH_OK) {
        return false;
    }
    good = EVP_PKEY_decrypt(context->pkey_ctx, out, &len, block, key->modulus_len) == 1 &&
           len == key->modulus_len;
    kh_key_context_return(context, !good);
    return good;
}

static kh_result tls_rsa_kx(kh_tier_op *op)
{
    uint8_t block[KH_SIGNATURE_MAX], plain[KH_SIGNATURE_MAX];
    kh_key *key = op->key;
    kh_result result = KH_OK;
    bool usable = false;

    memset(plain, 0, sizeof(plain));
    usable = kh_rsakx_block(op->data, op->len, key->modulus, key->modulus_len, block);
    /* Not &&: the private operation is done for the stand-in too. */
    usable &= raw_rsa(key, block, plain);
    result = kh_rsakx_answer(key->kx_secret, (uint16_t)op->arg, op->data, op->len, plain, key->modulus_len,
                             usable, op->out);
    op->out_len = result == KH_OK ? KH_PREMASTER_LEN : 0;
    OPENSSL_cleanse(plain, sizeof(plain));
    return result;
}

static bool set_oaep(EVP_PKEY_CTX *ctx, const EVP_MD *md, const uint8_t *label, size_t label_len)
{
    void *copy = NULL;

    if (EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) != 1 ||
        EVP_PKEY_CTX_set_rsa_oaep_md(ctx, md) != 1 || EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, md) != 1) {
        return false;
    }
    if (label_len == 0) {
        return true;
    }
    copy = OPENSSL_memdup(label, label_len);
    if (copy == NULL || EVP_PKEY_CTX_set0_rsa_oaep_label(ctx, copy, (int)label_len) != 1) {
        OPENSSL_free(copy);
        return false;
    }
    return true; /* the label is the context's now */
}

static kh_result decrypt(kh_tier_op *op)
{
    const EVP_MD *md = kh_algorithms_oaep(op->scheme);
    size_t label_len = op->arg, len = KH_SIGNATURE_MAX;
    const uint8_t *ciphertext = NULL;
    EVP_PKEY_CTX *ctx = NULL;
    kh_result result = KH_E_CRYPTO;

    if (label_len > op->len || (md == NULL && label_len != 0) ||
        op->len - label_len != op->key->modulus_len) {
        return KH_E_INVALID;
    }
    ciphertext = op->data + label_len;
    if (op->scheme == KH_PADDING_RAW) {
        if (memcmp(ciphertext, op->key->modulus, op->key->modulus_len) >= 0) {
            return KH_E_INVALID;
        }
        op->out_len = op->key->modulus_len;
        return raw_rsa(op->key, ciphertext, op->out) ? KH_OK : KH_E_CRYPTO;
    }
    if (md == NULL && op->scheme != KH_PADDING_PKCS1) {
        return KH_E_UNSUPPORTED;
    }
    ctx = EVP_PKEY_CTX_new_from_pkey(NULL, op->key->pkey, NULL);
    if (ctx != NULL && EVP_PKEY_decrypt_init(ctx) == 1 &&
        (md != NULL ? set_oaep(ctx, md, op->data, label_len)
                    : EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) == 1) &&
        EVP_PKEY_decrypt(ctx, op->out, &len, ciphertext, op->key->modulus_len) == 1) {
        op->out_len = len;
        result = KH_OK;
    }
    EVP_PKEY_CTX_free(ctx);
    return result;
}

void kh_software_batch(kh_software *software, kh_tier_op *const ops[], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ops[i]->out_len = 0;
        ops[i]->by_kernel = false;
    }
    kh_multibuffer_batch(software->multibuffer, ops, n, hash, software);
    for (size_t i = 0; i < n; i++) {
        kh_tier_op *op = ops[i];

        if (op->by_kernel) {
            continue;
        }
        switch (op->kind) {
        case KH_TIER_SIGN:
            op->result = sign(software, op);
            break;
        case KH_TIER_TLS_RSA_KX:
            op->result = tls_rsa_kx(op);
            break;
        case KH_TIER_DECRYPT:
            op->result = decrypt(op);
            break;
        default:
            op->result = KH_E_INTERNAL;
            break;
        }
        if (op->result != KH_OK) {
            op->out_len = 0;
            ERR_clear_error();
        }
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Prepared keys and the OpenSSL contexts that are kept with them. */
#include "key.h"
#include "algorithms.h"
#include "kernels/kernels.h"
#include "material.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <stdlib.h>

kh_result kh_key_new(const kh_key_info *info, const uint8_t *pkcs8, size_t pkcs8_len, kh_key **out)
{
    kh_key *key = calloc(1, sizeof(*key));
    BIGNUM *modulus = NULL;
    kh_result result = KH_E_MEMORY;

    *out = NULL;
    if (key == NULL) {
        goto done;
    }
    atomic_init(&key->refs, 1);
    key->info = *info;
    key->lane = kh_lane_of((int)info->type, info->bits);
    result = kh_pkcs8_parse_as((kh_key_type)info->type, pkcs8, pkcs8_len, &key->pkey);
    if (result != KH_OK) {
        goto done;
    }
    if (info->type == KH_KEY_RSA) {
        key->modulus_len = (info->bits + 7) / 8;
        if (key->modulus_len > sizeof(key->modulus) ||
            EVP_PKEY_get_bn_param(key->pkey, OSSL_PKEY_PARAM_RSA_N, &modulus) != 1 ||
            BN_bn2binpad(modulus, key->modulus, (int)key->modulus_len) < 0) {
            result = KH_E_CRYPTO;
            goto done;
        }
        result = kh_rsakx_secret(pkcs8, pkcs8_len, key->kx_secret);
        if (result != KH_OK) {
            goto done;
        }
    }
    if (kh_kernels_selected() != KH_BACKEND_OPENSSL && kh_kernel_key_new(key->pkey, &key->kernel) != KH_OK) {
        key->kernel = NULL; /* OpenSSL does every key */
    }
    *out = key;
    key = NULL;
done:
    BN_free(modulus);
    kh_key_release(key);
    return result;
}

kh_key *kh_key_ref(kh_key *key)
{
    atomic_fetch_add_explicit(&key->refs, 1, memory_order_relaxed);
    return key;
}

static void context_clear(kh_key_context *context)
{
    EVP_PKEY_CTX_free(context->pkey_ctx);
    EVP_MD_CTX_free(context->md_ctx);
    context->pkey_ctx = NULL;
    context->md_ctx = NULL;
}

void kh_key_release(kh_key *key)
{
    if (key == NULL || atomic_fetch_sub_explicit(&key->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (int i = 0; i < KH_KEY_CONTEXTS; i++) {
        context_clear(&key->context[i]);
    }
    kh_kernel_key_free(key->kernel);
    EVP_PKEY_free(key->pkey);
    OPENSSL_cleanse(key, sizeof(*key));
    free(key);
}

static bool set_up_rsa(EVP_PKEY_CTX *ctx, uint32_t scheme)
{
    bool pss = scheme == KH_RSA_PSS_RSAE_SHA256 || scheme == KH_RSA_PSS_RSAE_SHA384 ||
               scheme == KH_RSA_PSS_RSAE_SHA512;
    const EVP_MD *md = kh_algorithms_md(kh_scheme_hash_len((int)scheme));

    return EVP_PKEY_CTX_set_rsa_padding(ctx, pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING) == 1 &&
           EVP_PKEY_CTX_set_signature_md(ctx, md) == 1 &&
           (!pss || EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, RSA_PSS_SALTLEN_DIGEST) == 1);
}

static bool set_up(kh_key *key, kh_key_context *context)
{
    if (key->info.type == KH_KEY_ED25519) {
        context->md_ctx = EVP_MD_CTX_new();
        return context->md_ctx != NULL &&
               EVP_DigestSignInit_ex(context->md_ctx, NULL, NULL, NULL, NULL, key->pkey, NULL) == 1;
    }
    context->pkey_ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);
    if (context->pkey_ctx == NULL) {
        return false;
    }
    if (context->code == 0) {
        return EVP_PKEY_decrypt_init(context->pkey_ctx) == 1 &&
               EVP_PKEY_CTX_set_rsa_padding(context->pkey_ctx, RSA_NO_PADDING) == 1;
    }
    if (EVP_PKEY_sign_init(context->pkey_ctx) != 1) {
        return false;
    }
    if (key->info.type == KH_KEY_RSA) {
        return set_up_rsa(context->pkey_ctx, context->code);
    }
    return EVP_PKEY_CTX_set_signature_md(context->pkey_ctx,
                                         kh_algorithms_md(kh_scheme_hash_len((int)context->code))) == 1;
}

static bool is_set_up(const kh_key_context *context)
{
    return context->pkey_ctx != NULL || context->md_ctx != NULL;
}

/* A free context with that code; else a free one that may be set up anew, an unused one before a used one. */
static kh_key_context *find(kh_key *key, uint32_t code)
{
    for (int pass = 0; pass < 3; pass++) {
        for (int i = 0; i < KH_KEY_CONTEXTS; i++) {
            kh_key_context *context = &key->context[i];

            if (atomic_exchange_explicit(&context->busy, true, memory_order_acquire)) {
                continue;
            }
            if (pass == 0   ? is_set_up(context) && context->code == code
                : pass == 1 ? !is_set_up(context)
                            : true) {
                return context;
            }
            atomic_store_explicit(&context->busy, false, memory_order_release);
        }
    }
    return NULL;
}

kh_result kh_key_context_take(kh_key *key, uint32_t code, kh_key_context *local, kh_key_context **out)
{
    kh_key_context *context = find(key, code);

    if (context == NULL) {
        context = local;
        context->spare = true;
        context->pkey_ctx = NULL;
        context->md_ctx = NULL;
    }
    *out = context;
    if (is_set_up(context) && context->code == code) {
        return KH_OK;
    }
    context_clear(context);
    context->code = code;
    if (!set_up(key, context)) {
        kh_key_context_return(context, true);
        *out = NULL;
        return KH_E_CRYPTO;
    }
    return KH_OK;
}

void kh_key_context_return(kh_key_context *context, bool failed)
{
    if (failed || context->spare) {
        context_clear(context);
    }
    if (!context->spare) {
        atomic_store_explicit(&context->busy, false, memory_order_release);
    }
}

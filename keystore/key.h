/* SPDX-License-Identifier: Apache-2.0 */
/* A prepared key: what a signing thread needs of one key version. Immutable but for its contexts;
 * reference-counted. */
#ifndef KEYHOLD_KEYSTORE_KEY_H
#define KEYHOLD_KEYSTORE_KEY_H

#include "rsakx.h"

#include <keyhold/keystore.h>
#include <openssl/types.h>
#include <stdatomic.h>

#define KH_KEY_CONTEXTS 4

/*
 * An OpenSSL context that is set up for one scheme and used again: setting one up costs more than a P-256
 * signature. `code` is a kh_scheme, or 0 for raw decryption.
 */
typedef struct kh_key_context {
    atomic_bool busy;
    bool spare; /* not one of the key's: freed after use */
    uint32_t code;
    EVP_PKEY_CTX *pkey_ctx;
    EVP_MD_CTX *md_ctx; /* Ed25519 */
} kh_key_context;

typedef struct kh_key {
    atomic_uint refs;
    kh_key_info info;
    kh_lane lane;
    EVP_PKEY *pkey;
    struct kh_kernel_key
        *kernel; /* for the batch kernels; NULL: a key that they do not do, or they are off */
    uint8_t modulus[KH_SIGNATURE_MAX]; /* RSA: big-endian, modulus_len bytes */
    size_t modulus_len;
    uint8_t kx_secret[KH_RSAKX_SECRET_LEN]; /* RSA */
    kh_key_context context[KH_KEY_CONTEXTS];
    /* The cache's, under its lock. */
    struct kh_key *hash_next, *newer, *older;
} kh_key;

/* Takes PKCS#8; the caller keeps and wipes it. One reference for the caller. KH_E_CRYPTO, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_key_new(const kh_key_info *info, const uint8_t *pkcs8, size_t pkcs8_len,
                                 kh_key **key);
kh_key *kh_key_ref(kh_key *key);
/* The last release wipes and frees. NULL is fine. Any thread. */
void kh_key_release(kh_key *key);

/* A context for that code, made if need be, into *context: hand it back. `local` serves when all are in use.
 */
KH_MUST_USE kh_result kh_key_context_take(kh_key *key, uint32_t code, kh_key_context *local,
                                          kh_key_context **context);
/* failed: the context is not used again. */
void kh_key_context_return(kh_key_context *context, bool failed);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the provider core: its context, its keys, and how it reports errors.
 */
#ifndef KH_PROVIDER_CORE_H
#define KH_PROVIDER_CORE_H

#include "provider.h"

#include <keyhold/client.h>
#include <openssl/core_dispatch.h>
#include <openssl/evp.h>
#include <stdatomic.h>
#include <stdbool.h>

#define KH_PROV_NAME "keyhold"
#define KH_PROV_STRUCTURE "keyhold-reference" /* data structure between our two decoders */
#define KH_PROV_REFERENCE_MAX 1024            /* bytes of the longest DER reference */

/* One instance of the provider in one library context. */
typedef struct kh_prov {
    const OSSL_CORE_HANDLE *handle;
    OSSL_LIB_CTX *libctx; /* private: public-key work here never comes back to ourselves */
    OSSL_FUNC_core_new_error_fn *new_error;
    OSSL_FUNC_core_set_error_debug_fn *set_error_debug;
    OSSL_FUNC_core_vset_error_fn *vset_error;
} kh_prov;

/* A key: its public half and how the agent knows it. Counted, since operations keep theirs. */
struct kh_prov_key {
    atomic_uint refs;
    kh_prov *prov;
    EVP_PKEY *pub; /* in prov->libctx */
    kh_key_type type;
    unsigned bits;
    uint8_t id[KH_KEY_ID_LEN];
    char name[KH_NAME_MAX + 12]; /* "name", "name/version", or "" for the id */
};

extern const kh_provider_host *kh_prov_host; /* never NULL; without a host every request fails */

extern const OSSL_ALGORITHM kh_prov_keymgmts[];
extern const OSSL_ALGORITHM kh_prov_signatures[];
extern const OSSL_ALGORITHM kh_prov_ciphers[];
extern const OSSL_ALGORITHM kh_prov_decoders[];

/* OpenSSL's name for our key type: "RSA", "EC", "ED25519". */
const char *kh_prov_type_name(kh_key_type type);

/* From a DER key reference. NULL: not one, or of an unknown type; nothing is reported then. One reference is yours. */
kh_prov_key *kh_prov_key_new(kh_prov *prov, const uint8_t *der, size_t len);
kh_prov_key *kh_prov_key_ref(kh_prov_key *key);
void kh_prov_key_free(kh_prov_key *key);
/* Names the key in a request. */
void kh_prov_key_name(const kh_prov_key *key, kh_request *req);
/* The longest signature or plaintext of this key in bytes. */
size_t kh_prov_key_out_max(const kh_prov_key *key);

/* Asks the host. Returns 1, or 0 with an error in OpenSSL's queue. */
int kh_prov_perform(const kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap, size_t *len);

/* Puts an error into OpenSSL's queue: the result, and what was being done. */
void kh_prov_raise(const kh_prov *prov, kh_result why, const char *func, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif

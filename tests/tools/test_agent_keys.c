/* SPDX-License-Identifier: Apache-2.0 */
/* The keys of kh-test-agent: see test_agent_keys.h. */
#include "test_agent_keys.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <string.h>

enum { KEYS_MAX = 64, TLS_SECRET_LEN = 48 };

static test_key keys[KEYS_MAX];
static size_t key_count;

bool test_keys_load(const char *path)
{
    const char *base = strrchr(path, '/');
    test_key *key = &keys[key_count];
    FILE *file = fopen(path, "r");

    if (file == NULL || key_count == KEYS_MAX) {
        if (file != NULL) {
            fclose(file);
        }
        return false;
    }
    key->pkey = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    fclose(file);
    base = base != NULL ? base + 1 : path;
    snprintf(key->name, sizeof(key->name), "%.*s", (int)strcspn(base, "."), base);
    if (key->pkey == NULL ||
        kh_key_id(key->pkey, key->id, key->spki, &key->spki_len, &key->type, &key->bits) != KH_OK) {
        errno = EINVAL;
        return false;
    }
    key_count++;
    return true;
}

const test_key *test_keys_find(const kh_request *req)
{
    for (size_t i = 0; i < key_count; i++) {
        if (req->key_is_id ? memcmp(keys[i].id, req->key.data, KH_KEY_ID_LEN) == 0
                           : strlen(keys[i].name) == req->key.len &&
                                 memcmp(keys[i].name, req->key.data, req->key.len) == 0) {
            return &keys[i];
        }
    }
    return NULL;
}

static const EVP_MD *scheme_md(uint32_t scheme)
{
    switch (kh_scheme_hash_len((int)scheme)) {
    case 32:
        return EVP_sha256();
    case 48:
        return EVP_sha384();
    case 64:
        return EVP_sha512();
    default:
        return NULL;
    }
}

static bool scheme_pss(uint32_t scheme)
{
    return scheme >= KH_RSA_PSS_RSAE_SHA256 && scheme <= KH_RSA_PSS_RSAE_SHA512;
}

static kh_result set_padding(EVP_PKEY_CTX *pctx, const test_key *key, const kh_request *req)
{
    if (key->type == KH_KEY_RSA && scheme_pss(req->scheme) &&
        (EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) <= 0 ||
         EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) <= 0)) {
        return KH_E_CRYPTO;
    }
    return KH_OK;
}

static kh_result sign_digest(const test_key *key, const kh_request *req, uint8_t *out, size_t *len)
{
    EVP_PKEY_CTX *pctx = EVP_PKEY_CTX_new(key->pkey, NULL);
    kh_result rc = KH_E_CRYPTO;

    if (pctx != NULL && EVP_PKEY_sign_init(pctx) > 0 && set_padding(pctx, key, req) == KH_OK &&
        EVP_PKEY_CTX_set_signature_md(pctx, scheme_md(req->scheme)) > 0 &&
        EVP_PKEY_sign(pctx, out, len, req->data.data, req->data.len) > 0) {
        rc = KH_OK;
    }
    EVP_PKEY_CTX_free(pctx);
    return rc;
}

kh_result test_key_sign(const test_key *key, const kh_request *req, uint8_t *out, size_t *len)
{
    EVP_MD_CTX *ctx = NULL;
    EVP_PKEY_CTX *pctx = NULL;
    kh_result rc = KH_E_CRYPTO;

    *len = KH_SIGNATURE_MAX;
    if (!kh_scheme_fits((int)req->scheme, (int)key->type)) {
        return KH_E_SCHEME;
    }
    if ((req->flags & KH_SIGN_PREHASHED) != 0) {
        return sign_digest(key, req, out, len);
    }
    ctx = EVP_MD_CTX_new();
    if (ctx != NULL && EVP_DigestSignInit(ctx, &pctx, scheme_md(req->scheme), NULL, key->pkey) > 0 &&
        set_padding(pctx, key, req) == KH_OK &&
        EVP_DigestSign(ctx, out, len, req->data.data, req->data.len) > 0) {
        rc = KH_OK;
    }
    EVP_MD_CTX_free(ctx);
    return rc;
}

static const EVP_MD *oaep_md(uint32_t padding)
{
    switch (padding) {
    case KH_PADDING_OAEP_SHA1:
        return EVP_sha1();
    case KH_PADDING_OAEP_SHA256:
        return EVP_sha256();
    case KH_PADDING_OAEP_SHA384:
        return EVP_sha384();
    case KH_PADDING_OAEP_SHA512:
        return EVP_sha512();
    default:
        return NULL;
    }
}

kh_result test_key_decrypt(const test_key *key, const kh_request *req, uint8_t *out, size_t *len)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(key->pkey, NULL);
    kh_result rc = KH_E_CRYPTO;
    int padding = RSA_PKCS1_OAEP_PADDING;

    *len = KH_SIGNATURE_MAX;
    if (req->op == KH_OP_TLS_RSA_DECRYPT || req->arg == KH_PADDING_PKCS1) {
        padding = RSA_PKCS1_PADDING;
    } else if (req->arg == KH_PADDING_RAW) {
        padding = RSA_NO_PADDING;
    }
    if (ctx != NULL && EVP_PKEY_decrypt_init(ctx) > 0 && EVP_PKEY_CTX_set_rsa_padding(ctx, padding) > 0 &&
        (padding != RSA_PKCS1_OAEP_PADDING || EVP_PKEY_CTX_set_rsa_oaep_md(ctx, oaep_md(req->arg)) > 0) &&
        EVP_PKEY_decrypt(ctx, out, len, req->data.data, req->data.len) > 0) {
        rc = KH_OK;
    }
    EVP_PKEY_CTX_free(ctx);
    if (req->op == KH_OP_TLS_RSA_DECRYPT && (rc != KH_OK || *len != TLS_SECRET_LEN)) {
        /* good enough for a test: the real keeper does this in constant time */
        *len = TLS_SECRET_LEN;
        rc = RAND_bytes(out, TLS_SECRET_LEN) == 1 ? KH_OK : KH_E_CRYPTO;
    }
    return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether what an agent answered is what was asked for, before a program uses it: its form, which costs nothing, and the
 * signature itself, for hosts that want to know.
 */
#include "core.h"
#include "scheme.h"

#include <openssl/rsa.h>

enum { TLS_SECRET_LEN = 48, DER_SEQUENCE = 0x30, DER_INTEGER = 0x02 };

/* One positive INTEGER of at most `most` bytes, minimal. Returns its length with header; 0: it is not one. */
static size_t der_positive(const uint8_t *der, size_t len, size_t most)
{
    size_t value_len = len >= 3 ? der[1] : 0;

    if (value_len == 0 || value_len > most + 1 || value_len > len - 2 || der[0] != DER_INTEGER ||
        (der[2] & 0x80) != 0 || (value_len == most + 1 && der[2] != 0)) {
        return 0;
    }
    if (der[2] == 0 && (value_len == 1 || (der[3] & 0x80) == 0)) {
        return 0; /* zero, or with a byte too many */
    }
    return value_len + 2;
}

/* Ecdsa-Sig-Value (RFC 3279, 2.2.3). */
static bool ecdsa_shape(const uint8_t *der, size_t len, unsigned bits)
{
    size_t most = (bits + 7) / 8;
    size_t header = len > 2 && der[1] == 0x81 ? 3 : 2;
    size_t first = 0;

    if (len < 8 || len > UINT8_MAX + 3 || der[0] != DER_SEQUENCE || der[header - 1] != len - header ||
        (header == 2) != (len - header < 0x80)) {
        return false;
    }
    first = der_positive(der + header, len - header, most);
    return first > 0 && first < len - header &&
           der_positive(der + header + first, len - header - first, most) == len - header - first;
}

bool kh_provider_reply_shape(const kh_prov_key *key, const kh_request *req, const uint8_t *data, size_t len)
{
    if (req->op == KH_OP_TLS_RSA_DECRYPT) {
        return len == TLS_SECRET_LEN;
    }
    if (req->op != KH_OP_SIGN) {
        return len <= kh_prov_key_out_max(key);
    }
    switch (key->type) {
    case KH_KEY_RSA:
    case KH_KEY_ED25519:
        return len == kh_prov_key_out_max(key);
    case KH_KEY_P256:
    case KH_KEY_P384:
    case KH_KEY_P521:
        return ecdsa_shape(data, len, key->bits);
    default:
        return false;
    }
}

static bool set_padding(EVP_PKEY_CTX *pctx, const kh_request *req)
{
    if (req->scheme < KH_RSA_PSS_RSAE_SHA256 || req->scheme > KH_RSA_PSS_RSAE_SHA512) {
        return true;
    }
    return EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0 &&
           EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) > 0;
}

static bool verify_digest(const kh_prov_key *key, const kh_request *req, const char *digest, const uint8_t *sig,
                          size_t len)
{
    EVP_PKEY_CTX *pctx = EVP_PKEY_CTX_new_from_pkey(key->prov->libctx, key->pub, NULL);
    EVP_MD *md = EVP_MD_fetch(key->prov->libctx, digest, NULL);
    bool ok = pctx != NULL && md != NULL && EVP_PKEY_verify_init(pctx) > 0 && set_padding(pctx, req) &&
              EVP_PKEY_CTX_set_signature_md(pctx, md) > 0 &&
              EVP_PKEY_verify(pctx, sig, len, req->data.data, req->data.len) == 1;

    EVP_MD_free(md);
    EVP_PKEY_CTX_free(pctx);
    return ok;
}

bool kh_provider_signature_good(const kh_prov_key *key, const kh_request *req, const uint8_t *sig, size_t len)
{
    const char *digest = kh_prov_digest_name(kh_scheme_hash_len((int)req->scheme));
    EVP_MD_CTX *ctx = NULL;
    EVP_PKEY_CTX *pctx = NULL;
    bool ok = false;

    if ((req->flags & KH_SIGN_PREHASHED) != 0) {
        return verify_digest(key, req, digest, sig, len);
    }
    ctx = EVP_MD_CTX_new();
    ok = ctx != NULL &&
         EVP_DigestVerifyInit_ex(ctx, &pctx, digest, key->prov->libctx, NULL, key->pub, NULL) > 0 &&
         set_padding(pctx, req) && EVP_DigestVerify(ctx, sig, len, req->data.data, req->data.len) == 1;
    EVP_MD_CTX_free(ctx);
    return ok;
}

kh_key_type kh_provider_key_type(const kh_prov_key *key)
{
    return key->type;
}

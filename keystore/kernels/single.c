/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One operation by OpenSSL: the way for fills at which it is faster, and for a lane that failed its check.
 * An RSA block is encoded as for the lanes, so that both ways share it; blinding and check are OpenSSL's.
 */
#include <string.h>

#include <openssl/evp.h>
#include <openssl/rsa.h>

#include "private.h"

static kh_result rsa_raw(kh_lane *lane, size_t *out_len)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(lane->key->pkey, NULL);
    kh_result rc = KH_E_CRYPTO;

    *out_len = sizeof(lane->out);
    if (ctx != NULL && EVP_PKEY_decrypt_init(ctx) == 1 &&
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_NO_PADDING) == 1 &&
        EVP_PKEY_decrypt(ctx, lane->out, out_len, lane->in, lane->in_len) == 1)
        rc = KH_OK;
    EVP_PKEY_CTX_free(ctx);
    return rc;
}

/* OpenSSL gives DER, which goes out as it is. */
static kh_result ecdsa(kh_lane *lane, size_t *out_len)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(lane->key->pkey, NULL);
    kh_result rc = KH_E_CRYPTO;

    *out_len = sizeof(lane->out);
    if (ctx != NULL && EVP_PKEY_sign_init(ctx) == 1 &&
        EVP_PKEY_sign(ctx, lane->out, out_len, lane->in, lane->in_len) == 1)
        rc = KH_OK;
    EVP_PKEY_CTX_free(ctx);
    return rc;
}

static kh_result ed25519(kh_lane *lane, size_t *out_len)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    kh_result rc = KH_E_CRYPTO;

    *out_len = sizeof(lane->out);
    if (ctx != NULL && EVP_DigestSignInit(ctx, NULL, NULL, NULL, lane->key->pkey) == 1 &&
        EVP_DigestSign(ctx, lane->out, out_len, lane->in, lane->in_len) == 1)
        rc = KH_OK;
    EVP_MD_CTX_free(ctx);
    return rc;
}

kh_result kh_single_lane(kh_lane *lane)
{
    kh_kernel_op *op = lane->op;
    size_t len = 0;
    kh_result rc = KH_E_CRYPTO;

    switch (lane->key->kind) {
    case KH_KERNEL_RSA2048:
    case KH_KERNEL_RSA3072:
    case KH_KERNEL_RSA4096:
        rc = rsa_raw(lane, &len);
        break;
    case KH_KERNEL_P256:
    case KH_KERNEL_P384:
        rc = ecdsa(lane, &len);
        break;
    case KH_KERNEL_ED25519:
        rc = ed25519(lane, &len);
        break;
    case KH_KERNEL_KIND_COUNT:
        break;
    }
    if (rc == KH_OK && len > op->out_size)
        rc = KH_E_CRYPTO;
    if (rc == KH_OK) {
        memcpy(op->out, lane->out, len);
        op->out_len = len;
    }
    op->result = rc;
    return rc;
}

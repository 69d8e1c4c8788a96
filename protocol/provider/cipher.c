/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RSA decryption: the TLS key exchange (an operation of its own, checked in the keeper), and PKCS#1 and OAEP under the
 * usage `decrypt`.
 */
#include "core.h"
#include "scheme.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <string.h>
#include <strings.h>

enum { LABEL_MAX = 256 };

typedef struct cipher_ctx {
    kh_prov *prov;
    kh_prov_key *key;
    int pad_mode;
    unsigned tls_client_version;
    size_t oaep_digest_len; /* 20: SHA-1, OpenSSL's default */
    size_t mgf1_digest_len; /* 0: as OAEP's */
    uint8_t label[LABEL_MAX];
    size_t label_len;
} cipher_ctx;

static void *cipher_newctx(void *provctx)
{
    cipher_ctx *ctx = OPENSSL_zalloc(sizeof(*ctx));

    if (ctx != NULL) {
        ctx->prov = provctx;
        ctx->pad_mode = RSA_PKCS1_PADDING;
        ctx->oaep_digest_len = 20;
    }
    return ctx;
}

static void cipher_freectx(void *vctx)
{
    cipher_ctx *ctx = vctx;

    if (ctx != NULL) {
        kh_prov_key_free(ctx->key);
        OPENSSL_free(ctx);
    }
}

static void *cipher_dupctx(void *vctx)
{
    const cipher_ctx *ctx = vctx;
    cipher_ctx *dup = OPENSSL_memdup(ctx, sizeof(*ctx));

    if (dup != NULL && dup->key != NULL) {
        (void)kh_prov_key_ref(dup->key);
    }
    return dup;
}

static const struct {
    const char *name;
    int mode;
} pad_modes[] = {
    {OSSL_PKEY_RSA_PAD_MODE_PKCSV15, RSA_PKCS1_PADDING},
    {OSSL_PKEY_RSA_PAD_MODE_OAEP, RSA_PKCS1_OAEP_PADDING},
    {"oeap", RSA_PKCS1_OAEP_PADDING}, /* OpenSSL's own old misspelling */
    {OSSL_PKEY_RSA_PAD_MODE_NONE, RSA_NO_PADDING},
};

static int cipher_set_padding(cipher_ctx *ctx, const OSSL_PARAM *p)
{
    int mode = 0;

    if (p->data_type == OSSL_PARAM_UTF8_STRING) {
        for (size_t i = 0; i < sizeof(pad_modes) / sizeof(pad_modes[0]); i++) {
            if (strcmp(p->data, pad_modes[i].name) == 0) {
                mode = pad_modes[i].mode;
            }
        }
    } else if (!OSSL_PARAM_get_int(p, &mode)) {
        return 0;
    }
    if (mode != RSA_PKCS1_PADDING && mode != RSA_PKCS1_OAEP_PADDING && mode != RSA_NO_PADDING &&
        mode != RSA_PKCS1_WITH_TLS_PADDING) {
        kh_prov_raise(ctx->prov, KH_E_UNSUPPORTED, __func__, "RSA padding %d for decryption", mode);
        return 0;
    }
    ctx->pad_mode = mode;
    return 1;
}

static size_t oaep_digest_len(const char *name)
{
    if (strcasecmp(name, "SHA1") == 0 || strcasecmp(name, "SHA-1") == 0) {
        return 20;
    }
    return kh_prov_digest_len(name);
}

static int cipher_set_digest(cipher_ctx *ctx, const OSSL_PARAM *p, size_t *len)
{
    *len = p->data_type == OSSL_PARAM_UTF8_STRING ? oaep_digest_len(p->data) : 0;
    if (*len == 0) {
        kh_prov_raise(ctx->prov, KH_E_UNSUPPORTED, __func__, "OAEP digest");
        return 0;
    }
    return 1;
}

static int cipher_set_ctx_params(void *vctx, const OSSL_PARAM params[])
{
    cipher_ctx *ctx = vctx;
    void *label = ctx->label;
    const OSSL_PARAM *p;

    if (params == NULL) {
        return 1;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_OAEP_DIGEST);
    if (p != NULL && !cipher_set_digest(ctx, p, &ctx->oaep_digest_len)) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_MGF1_DIGEST);
    if (p != NULL && !cipher_set_digest(ctx, p, &ctx->mgf1_digest_len)) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_PAD_MODE);
    if (p != NULL && !cipher_set_padding(ctx, p)) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_OAEP_LABEL);
    if (p != NULL && !OSSL_PARAM_get_octet_string(p, &label, sizeof(ctx->label), &ctx->label_len)) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION);
    return p == NULL || OSSL_PARAM_get_uint(p, &ctx->tls_client_version);
}

static const OSSL_PARAM *cipher_settable_ctx_params(void *vctx, void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_utf8_string(OSSL_ASYM_CIPHER_PARAM_OAEP_DIGEST, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_ASYM_CIPHER_PARAM_MGF1_DIGEST, NULL, 0),
        OSSL_PARAM_octet_string(OSSL_ASYM_CIPHER_PARAM_OAEP_LABEL, NULL, 0),
        OSSL_PARAM_uint(OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION, NULL),
        OSSL_PARAM_uint(OSSL_ASYM_CIPHER_PARAM_TLS_NEGOTIATED_VERSION, NULL),
        OSSL_PARAM_END,
    };

    (void)vctx, (void)provctx;
    return params;
}

static int cipher_get_ctx_params(void *vctx, OSSL_PARAM params[])
{
    const cipher_ctx *ctx = vctx;
    OSSL_PARAM *p = OSSL_PARAM_locate(params, OSSL_ASYM_CIPHER_PARAM_PAD_MODE);

    if (p == NULL) {
        return 1;
    }
    if (p->data_type == OSSL_PARAM_INTEGER) {
        return OSSL_PARAM_set_int(p, ctx->pad_mode);
    }
    for (size_t i = 0; i < sizeof(pad_modes) / sizeof(pad_modes[0]); i++) {
        if (pad_modes[i].mode == ctx->pad_mode) {
            return OSSL_PARAM_set_utf8_string(p, pad_modes[i].name);
        }
    }
    return 0;
}

static const OSSL_PARAM *cipher_gettable_ctx_params(void *vctx, void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_utf8_string(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)vctx, (void)provctx;
    return params;
}

static int cipher_decrypt_init(void *vctx, void *provkey, const OSSL_PARAM params[])
{
    cipher_ctx *ctx = vctx;
    kh_prov_key *old = ctx->key;

    if (provkey != NULL) {
        ctx->key = kh_prov_key_ref(provkey);
        kh_prov_key_free(old);
    }
    return ctx->key != NULL && cipher_set_ctx_params(ctx, params);
}

static kh_padding cipher_wire_padding(const cipher_ctx *ctx)
{
    if (ctx->pad_mode == RSA_PKCS1_PADDING) {
        return KH_PADDING_PKCS1;
    }
    if (ctx->pad_mode == RSA_NO_PADDING) {
        return KH_PADDING_RAW;
    }
    if (ctx->mgf1_digest_len != 0 && ctx->mgf1_digest_len != ctx->oaep_digest_len) {
        return KH_PADDING_NONE;
    }
    switch (ctx->oaep_digest_len) {
    case 20:
        return KH_PADDING_OAEP_SHA1;
    case 32:
        return KH_PADDING_OAEP_SHA256;
    case 48:
        return KH_PADDING_OAEP_SHA384;
    case 64:
        return KH_PADDING_OAEP_SHA512;
    default:
        return KH_PADDING_NONE;
    }
}

static int cipher_decrypt(void *vctx, unsigned char *out, size_t *outlen, size_t outsize, const unsigned char *in,
                          size_t inlen)
{
    cipher_ctx *ctx = vctx;
    kh_request req = {.op = KH_OP_DECRYPT, .data = {in, inlen}};
    uint8_t plain[KH_SIGNATURE_MAX];
    size_t len = 0;
    int ok = 0;

    const bool tls = ctx->pad_mode == RSA_PKCS1_WITH_TLS_PADDING;

    if (out == NULL) {
        *outlen = tls ? SSL_MAX_MASTER_KEY_LENGTH : kh_prov_key_out_max(ctx->key);
        return 1;
    }
    if (tls) {
        if (ctx->tls_client_version == 0 || outsize < SSL_MAX_MASTER_KEY_LENGTH) {
            kh_prov_raise(ctx->prov, KH_E_INVALID, __func__, "TLS decryption without the client's version");
            return 0;
        }
        req.op = KH_OP_TLS_RSA_DECRYPT;
        req.arg = ctx->tls_client_version;
    } else {
        req.arg = (uint32_t)cipher_wire_padding(ctx);
        req.label = (kh_bytes){ctx->label, ctx->label_len};
        if (req.arg == KH_PADDING_NONE) {
            kh_prov_raise(ctx->prov, KH_E_UNSUPPORTED, __func__, "padding");
            return 0;
        }
    }
    /* Through a buffer of our own: what does not fit must not be half written. */
    if (kh_prov_perform(ctx->key, &req, plain, sizeof(plain), &len)) {
        if (len > outsize || (tls && len != SSL_MAX_MASTER_KEY_LENGTH)) {
            kh_prov_raise(ctx->prov, KH_E_TOO_LARGE, __func__, "plaintext of %zu bytes", len);
        } else {
            memcpy(out, plain, len);
            *outlen = len;
            ok = 1;
        }
    }
    OPENSSL_cleanse(plain, sizeof(plain));
    return ok;
}

static const OSSL_DISPATCH cipher_dispatch[] = {
    {OSSL_FUNC_ASYM_CIPHER_NEWCTX, (void (*)(void))cipher_newctx},
    {OSSL_FUNC_ASYM_CIPHER_FREECTX, (void (*)(void))cipher_freectx},
    {OSSL_FUNC_ASYM_CIPHER_DUPCTX, (void (*)(void))cipher_dupctx},
    {OSSL_FUNC_ASYM_CIPHER_DECRYPT_INIT, (void (*)(void))cipher_decrypt_init},
    {OSSL_FUNC_ASYM_CIPHER_DECRYPT, (void (*)(void))cipher_decrypt},
    {OSSL_FUNC_ASYM_CIPHER_GET_CTX_PARAMS, (void (*)(void))cipher_get_ctx_params},
    {OSSL_FUNC_ASYM_CIPHER_GETTABLE_CTX_PARAMS, (void (*)(void))cipher_gettable_ctx_params},
    {OSSL_FUNC_ASYM_CIPHER_SET_CTX_PARAMS, (void (*)(void))cipher_set_ctx_params},
    {OSSL_FUNC_ASYM_CIPHER_SETTABLE_CTX_PARAMS, (void (*)(void))cipher_settable_ctx_params},
    {0, NULL},
};

const OSSL_ALGORITHM kh_prov_ciphers[] = {
    {"RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=" KH_PROV_NAME, cipher_dispatch, "Keyhold RSA"},
    {NULL, NULL, NULL, NULL},
};

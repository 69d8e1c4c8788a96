/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signatures. The whole message goes to the agent, whose keeper decides on its bytes whether the key may sign them; only
 * where a program gives a digest, or a message beyond KH_MESSAGE_MAX, is a digest sent (for keys with usage `sign`).
 *
 * libssl asks twice: initialises once more as a probe, and wants to know the size with a null buffer. Neither asks the
 * agent.
 */
#include "core.h"
#include "scheme.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <stdlib.h>
#include <string.h>

enum { DIGEST_NAME_MAX = 32, ALGORITHM_ID_MAX = 72 };

typedef struct sig_ctx {
    kh_prov *prov;
    kh_prov_key *key;
    size_t digest_len; /* 0: none chosen yet */
    bool pss;
    bool salt_wrong; /* a salt length other than the digest's was asked for */
    uint8_t *message; /* of update/final, KH_MESSAGE_MAX bytes */
    size_t message_len;
    EVP_MD_CTX *long_digest; /* when the message outgrew that */
} sig_ctx;

static void *sig_newctx(void *provctx, const char *propq)
{
    sig_ctx *ctx = OPENSSL_zalloc(sizeof(*ctx));

    (void)propq;
    if (ctx != NULL) {
        ctx->prov = provctx;
    }
    return ctx;
}

static void sig_forget_message(sig_ctx *ctx)
{
    OPENSSL_free(ctx->message);
    ctx->message = NULL;
    ctx->message_len = 0;
    EVP_MD_CTX_free(ctx->long_digest);
    ctx->long_digest = NULL;
}

static void sig_freectx(void *vctx)
{
    sig_ctx *ctx = vctx;

    if (ctx != NULL) {
        sig_forget_message(ctx);
        kh_prov_key_free(ctx->key);
        OPENSSL_free(ctx);
    }
}

static void *sig_dupctx(void *vctx)
{
    const sig_ctx *ctx = vctx;
    sig_ctx *dup = OPENSSL_zalloc(sizeof(*dup));

    if (dup == NULL) {
        return NULL;
    }
    *dup = *ctx;
    dup->message = NULL;
    dup->long_digest = NULL;
    if (dup->key != NULL) {
        (void)kh_prov_key_ref(dup->key);
    }
    if (ctx->message != NULL) {
        dup->message = OPENSSL_malloc(KH_MESSAGE_MAX);
        if (dup->message == NULL) {
            goto failed;
        }
        memcpy(dup->message, ctx->message, ctx->message_len);
    }
    if (ctx->long_digest != NULL) {
        dup->long_digest = EVP_MD_CTX_new();
        if (dup->long_digest == NULL || !EVP_MD_CTX_copy_ex(dup->long_digest, ctx->long_digest)) {
            goto failed;
        }
    }
    return dup;

failed:
    sig_freectx(dup);
    return NULL;
}

/* ---- parameters ------------------------------------------------------------------------------------------------- */

static int sig_set_digest(sig_ctx *ctx, const char *name)
{
    const size_t len = kh_prov_digest_len(name);

    if (name == NULL || name[0] == '\0') {
        return 1;
    }
    if (len == 0) {
        kh_prov_raise(ctx->prov, KH_E_UNSUPPORTED, __func__,
                      "digest %s: only SHA-256, SHA-384 and SHA-512 are signed, and so not TLS 1.0 and 1.1", name);
        return 0;
    }
    if (ctx->key != NULL && ctx->key->type == KH_KEY_ED25519) {
        kh_prov_raise(ctx->prov, KH_E_SCHEME, __func__, "digest %s", name);
        return 0;
    }
    ctx->digest_len = len;
    return 1;
}

static int sig_set_padding(sig_ctx *ctx, const OSSL_PARAM *p)
{
    int mode = 0;

    if (p->data_type == OSSL_PARAM_UTF8_STRING) {
        if (strcmp(p->data, OSSL_PKEY_RSA_PAD_MODE_PSS) == 0) {
            mode = RSA_PKCS1_PSS_PADDING;
        } else if (strcmp(p->data, OSSL_PKEY_RSA_PAD_MODE_PKCSV15) == 0) {
            mode = RSA_PKCS1_PADDING;
        }
    } else if (!OSSL_PARAM_get_int(p, &mode)) {
        return 0;
    }
    if (mode != RSA_PKCS1_PSS_PADDING && mode != RSA_PKCS1_PADDING) {
        kh_prov_raise(ctx->prov, KH_E_UNSUPPORTED, __func__, "RSA padding %d for a signature", mode);
        return 0;
    }
    ctx->pss = mode == RSA_PKCS1_PSS_PADDING;
    return 1;
}

/* The agent makes salts as long as the digest, as TLS wants them. Which digest may be known only later. */
static int sig_set_salt(sig_ctx *ctx, const OSSL_PARAM *p)
{
    int len = 0;

    if (p->data_type == OSSL_PARAM_UTF8_STRING) {
        if (strcmp(p->data, OSSL_PKEY_RSA_PSS_SALT_LEN_DIGEST) == 0) {
            len = RSA_PSS_SALTLEN_DIGEST;
        } else if (strcmp(p->data, OSSL_PKEY_RSA_PSS_SALT_LEN_AUTO) == 0) {
            len = RSA_PSS_SALTLEN_AUTO;
        } else if (strcmp(p->data, "auto-digestmax") == 0) {
            len = RSA_PSS_SALTLEN_DIGEST;
        } else if (strcmp(p->data, OSSL_PKEY_RSA_PSS_SALT_LEN_MAX) == 0) {
            len = RSA_PSS_SALTLEN_MAX;
        } else {
            len = atoi(p->data);
        }
    } else if (!OSSL_PARAM_get_int(p, &len)) {
        return 0;
    }
    ctx->salt_wrong = len != RSA_PSS_SALTLEN_DIGEST && len != RSA_PSS_SALTLEN_AUTO && len != -4 &&
                      (len < 0 || (size_t)len != ctx->digest_len);
    return 1;
}

static int sig_set_ctx_params(void *vctx, const OSSL_PARAM params[])
{
    sig_ctx *ctx = vctx;
    const OSSL_PARAM *p;

    if (params == NULL) {
        return 1;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_DIGEST);
    if (p != NULL && (p->data_type != OSSL_PARAM_UTF8_STRING || !sig_set_digest(ctx, p->data))) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_PAD_MODE);
    if (p != NULL && !sig_set_padding(ctx, p)) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_PSS_SALTLEN);
    if (p != NULL && !sig_set_salt(ctx, p)) {
        return 0;
    }
    p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_MGF1_DIGEST);
    if (p != NULL && (p->data_type != OSSL_PARAM_UTF8_STRING ||
                      (ctx->digest_len != 0 && kh_prov_digest_len(p->data) != ctx->digest_len))) {
        kh_prov_raise(ctx->prov, KH_E_UNSUPPORTED, __func__, "MGF1 digest other than the signature's");
        return 0;
    }
    return 1;
}

static const OSSL_PARAM *sig_settable_ctx_params(void *vctx, void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PROPERTIES, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PAD_MODE, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_DIGEST, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_PROPERTIES, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)vctx, (void)provctx;
    return params;
}

static kh_scheme sig_scheme(const sig_ctx *ctx)
{
    if (ctx->key == NULL || (ctx->pss && ctx->salt_wrong)) {
        return KH_SCHEME_NONE;
    }
    return kh_prov_scheme(ctx->key->type, ctx->digest_len, ctx->pss);
}

static int sig_get_ctx_params(void *vctx, OSSL_PARAM params[])
{
    sig_ctx *ctx = vctx;
    uint8_t der[ALGORITHM_ID_MAX];
    size_t len = 0;
    const char *digest = kh_prov_digest_name(ctx->digest_len);
    OSSL_PARAM *p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_ALGORITHM_ID);

    if (p != NULL) {
        len = kh_prov_algorithm_id(sig_scheme(ctx), der, sizeof(der));
        if (len == 0 || !OSSL_PARAM_set_octet_string(p, der, len)) {
            return 0;
        }
    }
    p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_DIGEST);
    if (p != NULL && !OSSL_PARAM_set_utf8_string(p, digest != NULL ? digest : "")) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_MGF1_DIGEST);
    if (p != NULL && !OSSL_PARAM_set_utf8_string(p, digest != NULL ? digest : "")) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_PAD_MODE);
    if (p != NULL) {
        if (p->data_type == OSSL_PARAM_UTF8_STRING) {
            if (!OSSL_PARAM_set_utf8_string(p, ctx->pss ? OSSL_PKEY_RSA_PAD_MODE_PSS
                                                        : OSSL_PKEY_RSA_PAD_MODE_PKCSV15)) {
                return 0;
            }
        } else if (!OSSL_PARAM_set_int(p, ctx->pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING)) {
            return 0;
        }
    }
    p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_PSS_SALTLEN);
    if (p != NULL) {
        if (p->data_type == OSSL_PARAM_UTF8_STRING) {
            return OSSL_PARAM_set_utf8_string(p, OSSL_PKEY_RSA_PSS_SALT_LEN_DIGEST);
        }
        return OSSL_PARAM_set_int(p, RSA_PSS_SALTLEN_DIGEST);
    }
    return 1;
}

static const OSSL_PARAM *sig_gettable_ctx_params(void *vctx, void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_octet_string(OSSL_SIGNATURE_PARAM_ALGORITHM_ID, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PAD_MODE, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_DIGEST, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)vctx, (void)provctx;
    return params;
}

/* ---- signing ---------------------------------------------------------------------------------------------------- */

static int sig_set_key(sig_ctx *ctx, void *provkey)
{
    if (provkey != NULL) {
        kh_prov_key *old = ctx->key;

        ctx->key = kh_prov_key_ref(provkey);
        kh_prov_key_free(old);
    }
    sig_forget_message(ctx);
    return ctx->key != NULL;
}

static int sig_digest_sign_init(void *vctx, const char *mdname, void *provkey, const OSSL_PARAM params[])
{
    sig_ctx *ctx = vctx;

    if (!sig_set_key(ctx, provkey)) {
        return 0;
    }
    if ((mdname == NULL || mdname[0] == '\0') && ctx->key->type != KH_KEY_ED25519 && ctx->digest_len == 0) {
        mdname = "SHA256";
    }
    return sig_set_digest(ctx, mdname) && sig_set_ctx_params(ctx, params);
}

/* Sends the message, or its digest, and gives the signature. */
static int sig_request(sig_ctx *ctx, const uint8_t *data, size_t len, uint32_t flags, unsigned char *sig,
                       size_t *siglen, size_t sigsize)
{
    const size_t most = ctx->key != NULL ? kh_prov_key_out_max(ctx->key) : 0;
    kh_request req = {.op = KH_OP_SIGN, .flags = flags, .data = {data, len}};

    if (most == 0) {
        return 0;
    }
    if (sig == NULL) {
        *siglen = most;
        return 1;
    }
    req.scheme = (uint32_t)sig_scheme(ctx);
    if (req.scheme == KH_SCHEME_NONE) {
        kh_prov_raise(ctx->prov, KH_E_SCHEME, __func__, "digest of %zu bytes%s", ctx->digest_len,
                      ctx->pss && ctx->salt_wrong ? ", PSS with a salt of another length" : "");
        return 0;
    }
    if (len > KH_MESSAGE_MAX) {
        kh_prov_raise(ctx->prov, KH_E_TOO_LARGE, __func__, "message of %zu bytes", len);
        return 0;
    }
    return kh_prov_perform(ctx->key, &req, sig, sigsize, siglen);
}

static int sig_digest_sign_update(void *vctx, const unsigned char *data, size_t len)
{
    sig_ctx *ctx = vctx;
    EVP_MD *md = NULL;
    int ok = 0;

    if (ctx->key == NULL || ctx->key->type == KH_KEY_ED25519) {
        return 0;
    }
    if (ctx->long_digest != NULL) {
        return EVP_DigestUpdate(ctx->long_digest, data, len);
    }
    if (ctx->message == NULL) {
        ctx->message = OPENSSL_malloc(KH_MESSAGE_MAX);
        if (ctx->message == NULL) {
            return 0;
        }
    }
    if (len <= KH_MESSAGE_MAX - ctx->message_len) {
        memcpy(ctx->message + ctx->message_len, data, len);
        ctx->message_len += len;
        return 1;
    }
    md = EVP_MD_fetch(ctx->prov->libctx, kh_prov_digest_name(ctx->digest_len), NULL);
    ctx->long_digest = EVP_MD_CTX_new();
    ok = md != NULL && ctx->long_digest != NULL && EVP_DigestInit_ex2(ctx->long_digest, md, NULL) &&
         EVP_DigestUpdate(ctx->long_digest, ctx->message, ctx->message_len) &&
         EVP_DigestUpdate(ctx->long_digest, data, len);
    EVP_MD_free(md);
    return ok;
}

static int sig_digest_sign_final(void *vctx, unsigned char *sig, size_t *siglen, size_t sigsize)
{
    sig_ctx *ctx = vctx;
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned digest_len = 0;

    if (ctx->long_digest == NULL || sig == NULL) {
        return sig_request(ctx, ctx->message, ctx->message_len, 0, sig, siglen, sigsize);
    }
    if (!EVP_DigestFinal_ex(ctx->long_digest, digest, &digest_len)) {
        return 0;
    }
    return sig_request(ctx, digest, digest_len, KH_SIGN_PREHASHED, sig, siglen, sigsize);
}

static int sig_digest_sign(void *vctx, unsigned char *sig, size_t *siglen, size_t sigsize, const unsigned char *tbs,
                           size_t tbslen)
{
    sig_ctx *ctx = vctx;

    if (sig != NULL && tbslen > KH_MESSAGE_MAX && ctx->key != NULL && ctx->key->type != KH_KEY_ED25519) {
        return sig_digest_sign_update(ctx, tbs, tbslen) && sig_digest_sign_final(ctx, sig, siglen, sigsize);
    }
    return sig_request(ctx, tbs, tbslen, 0, sig, siglen, sigsize);
}

static int sig_sign_init(void *vctx, void *provkey, const OSSL_PARAM params[])
{
    sig_ctx *ctx = vctx;

    return sig_set_key(ctx, provkey) && ctx->key->type != KH_KEY_ED25519 && sig_set_ctx_params(ctx, params);
}

/* What is signed here is a digest already; which, the program said, or its length tells. */
static int sig_sign(void *vctx, unsigned char *sig, size_t *siglen, size_t sigsize, const unsigned char *tbs,
                    size_t tbslen)
{
    sig_ctx *ctx = vctx;

    if (ctx->digest_len == 0 && kh_prov_digest_name(tbslen) != NULL) {
        ctx->digest_len = tbslen;
    }
    if (sig != NULL && tbslen != ctx->digest_len) {
        kh_prov_raise(ctx->prov, KH_E_INVALID, __func__, "digest of %zu bytes where %zu were announced", tbslen,
                      ctx->digest_len);
        return 0;
    }
    return sig_request(ctx, tbs, tbslen, KH_SIGN_PREHASHED, sig, siglen, sigsize);
}

/* One-shot only for Ed25519: without update and final OpenSSL takes the message in one piece. */
static const OSSL_DISPATCH sig_dispatch_oneshot[] = {
    {OSSL_FUNC_SIGNATURE_NEWCTX, (void (*)(void))sig_newctx},
    {OSSL_FUNC_SIGNATURE_FREECTX, (void (*)(void))sig_freectx},
    {OSSL_FUNC_SIGNATURE_DUPCTX, (void (*)(void))sig_dupctx},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_INIT, (void (*)(void))sig_digest_sign_init},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN, (void (*)(void))sig_digest_sign},
    {OSSL_FUNC_SIGNATURE_GET_CTX_PARAMS, (void (*)(void))sig_get_ctx_params},
    {OSSL_FUNC_SIGNATURE_GETTABLE_CTX_PARAMS, (void (*)(void))sig_gettable_ctx_params},
    {0, NULL},
};

static const OSSL_DISPATCH sig_dispatch_hashed[] = {
    {OSSL_FUNC_SIGNATURE_NEWCTX, (void (*)(void))sig_newctx},
    {OSSL_FUNC_SIGNATURE_FREECTX, (void (*)(void))sig_freectx},
    {OSSL_FUNC_SIGNATURE_DUPCTX, (void (*)(void))sig_dupctx},
    {OSSL_FUNC_SIGNATURE_SIGN_INIT, (void (*)(void))sig_sign_init},
    {OSSL_FUNC_SIGNATURE_SIGN, (void (*)(void))sig_sign},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_INIT, (void (*)(void))sig_digest_sign_init},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_UPDATE, (void (*)(void))sig_digest_sign_update},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_FINAL, (void (*)(void))sig_digest_sign_final},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN, (void (*)(void))sig_digest_sign},
    {OSSL_FUNC_SIGNATURE_GET_CTX_PARAMS, (void (*)(void))sig_get_ctx_params},
    {OSSL_FUNC_SIGNATURE_GETTABLE_CTX_PARAMS, (void (*)(void))sig_gettable_ctx_params},
    {OSSL_FUNC_SIGNATURE_SET_CTX_PARAMS, (void (*)(void))sig_set_ctx_params},
    {OSSL_FUNC_SIGNATURE_SETTABLE_CTX_PARAMS, (void (*)(void))sig_settable_ctx_params},
    {0, NULL},
};

const OSSL_ALGORITHM kh_prov_signatures[] = {
    {"RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=" KH_PROV_NAME, sig_dispatch_hashed, "Keyhold RSA"},
    {"ECDSA", "provider=" KH_PROV_NAME, sig_dispatch_hashed, "Keyhold ECDSA"},
    {"ED25519:1.3.101.112", "provider=" KH_PROV_NAME, sig_dispatch_oneshot, "Keyhold Ed25519"},
    {NULL, NULL, NULL, NULL},
};

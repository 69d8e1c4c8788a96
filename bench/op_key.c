/* SPDX-License-Identifier: Apache-2.0 */
/* The private key that `op` measures with: what a TLS 1.3 server would sign with it, here and by the agent. */
#include "op_key.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <string.h>

/* The scheme that a TLS 1.3 server uses with each type of key. */
static const struct {
    kh_key_type type;
    kh_scheme scheme;
    const EVP_MD *(*digest)(void);
    bool pss;
} schemes[] = {{KH_KEY_RSA, KH_RSA_PSS_RSAE_SHA256, EVP_sha256, true},
               {KH_KEY_P256, KH_ECDSA_SHA256, EVP_sha256, false},
               {KH_KEY_P384, KH_ECDSA_SHA384, EVP_sha384, false},
               {KH_KEY_P521, KH_ECDSA_SHA512, EVP_sha512, false},
               {KH_KEY_ED25519, KH_ED25519, NULL, false}};

static bool choose_scheme(kh_op_key *key)
{
    kh_key_type type = KH_KEY_NONE;
    unsigned bits = 0;
    size_t i;

    if (kh_key_id(key->pkey, key->id, NULL, NULL, &type, &bits) != KH_OK) {
        return false;
    }
    for (i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (schemes[i].type == type) {
            key->scheme = schemes[i].scheme;
            key->digest = schemes[i].digest != NULL ? schemes[i].digest() : NULL;
            key->pss = schemes[i].pss;
            return true;
        }
    }
    return false;
}

bool kh_op_key_load(const char *path, kh_op_key *key)
{
    FILE *file = fopen(path, "r");

    memset(key, 0, sizeof(*key));
    key->pkey = file != NULL ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    if (file != NULL) {
        fclose(file);
    }
    if (key->pkey == NULL || !choose_scheme(key)) {
        fprintf(stderr, "keyhold-bench op: %s: not a private key that Keyhold knows\n", path);
        kh_op_key_free(key);
        return false;
    }
    return true;
}

void kh_op_key_free(kh_op_key *key)
{
    EVP_PKEY_free(key->pkey);
    key->pkey = NULL;
}

/* RFC 8446, section 4.4.3, with a transcript hash of fresh random bytes. */
bool kh_op_key_next(kh_op_key *key)
{
    memset(key->message, ' ', 64);
    memcpy(key->message + 64, "TLS 1.3, server CertificateVerify", 34); /* with its zero byte */
    key->message_len = KH_OP_MESSAGE_MAX;
    return RAND_bytes(key->message + KH_OP_PROLOGUE_LEN, KH_OP_MESSAGE_MAX - KH_OP_PROLOGUE_LEN) == 1;
}

static bool set_padding(const kh_op_key *key, EVP_PKEY_CTX *ctx)
{
    return !key->pss || (EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING) == 1 &&
                         EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, RSA_PSS_SALTLEN_DIGEST) == 1);
}

bool kh_op_key_sign(const kh_op_key *key)
{
    uint8_t signature[KH_SIGNATURE_MAX];
    size_t len = sizeof(signature);
    EVP_PKEY_CTX *pctx = NULL; /* belongs to ctx */
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx != NULL && EVP_DigestSignInit(ctx, &pctx, key->digest, NULL, key->pkey) == 1 && set_padding(key, pctx) &&
              EVP_DigestSign(ctx, signature, &len, key->message, key->message_len) == 1;

    EVP_MD_CTX_free(ctx);
    return ok;
}

bool kh_op_key_verify(const kh_op_key *key, kh_bytes signature)
{
    EVP_PKEY_CTX *pctx = NULL; /* belongs to ctx */
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx != NULL && EVP_DigestVerifyInit(ctx, &pctx, key->digest, NULL, key->pkey) == 1 &&
              set_padding(key, pctx) &&
              EVP_DigestVerify(ctx, signature.data, signature.len, key->message, key->message_len) == 1;

    EVP_MD_CTX_free(ctx);
    return ok;
}

kh_request kh_op_key_request(const kh_op_key *key, uint32_t deadline_ms)
{
    return (kh_request){.op = KH_OP_SIGN,
                        .deadline_ms = deadline_ms,
                        .key_is_id = true,
                        .key = {key->id, sizeof(key->id)},
                        .scheme = key->scheme,
                        .data = {key->message, key->message_len}};
}

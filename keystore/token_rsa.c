/* SPDX-License-Identifier: Apache-2.0 */
/* RSA decryption with a key in a token: see token_rsa.h. */
#define OPENSSL_SUPPRESS_DEPRECATED /* the checks of padding by themselves have no newer name */
#include "token_rsa.h"
#include "algorithms.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <string.h>

static kh_result raw(kh_token_worker *worker, const kh_p11_key *object, const uint8_t *block, size_t len, uint8_t *out)
{
    size_t out_len = 0;
    kh_result result = KH_OK;

    kh_token_enter(worker->token, &worker->watch, 0);
    result = kh_p11_rsa_raw(worker->session, object, block, len, out, &out_len);
    kh_token_leave(&worker->watch);
    return result == KH_OK && out_len != len ? KH_E_CRYPTO : result;
}

static kh_result take_modulus(kh_token_key *key, uint8_t *modulus, size_t *len)
{
    const uint8_t *at = key->info.spki;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)key->info.spki_len);
    BIGNUM *n = NULL;
    kh_result result = KH_E_CRYPTO;

    if (pkey != NULL && EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &n) == 1 && BN_num_bytes(n) >= 64 &&
        BN_num_bytes(n) <= KH_SIGNATURE_MAX) {
        *len = (size_t)BN_num_bytes(n);
        BN_bn2bin(n, modulus);
        result = KH_OK;
    }
    BN_free(n);
    EVP_PKEY_free(pkey);
    return result;
}

/*
 * What answers to faulty questions are made of (rsakx.h). The private key's bytes are not to be had, so it is made of what only the
 * key can compute: the bare operation on a block that no signature and no ciphertext of a decent padding looks like. So it is the
 * same in every process, and in every partition.
 */
static kh_result take_secret(kh_token_worker *worker, kh_token_key *key, const kh_p11_key *object)
{
    static const char text[] = "keyhold tls-rsa-kx in a token 1 ";
    uint8_t block[KH_SIGNATURE_MAX], out[KH_SIGNATURE_MAX], secret[KH_RSAKX_SECRET_LEN], modulus[KH_SIGNATURE_MAX];
    size_t len = 0;
    kh_result result = take_modulus(key, modulus, &len);

    if (result != KH_OK) {
        return result;
    }
    for (size_t i = 1; i < len; i++) {
        block[i] = (uint8_t)text[i % (sizeof(text) - 1)];
    }
    block[0] = 0;
    result = raw(worker, object, block, len, out);
    if (result == KH_OK) {
        result = kh_rsakx_secret(out, len, secret);
    }
    if (result == KH_OK) {
        pthread_mutex_lock(&worker->token->lock);
        if (!key->kx_ready) { /* others have come to the same meanwhile */
            memcpy(key->kx_secret, secret, sizeof(secret));
            memcpy(key->modulus, modulus, len);
            key->modulus_len = len;
            key->kx_ready = true;
        }
        pthread_mutex_unlock(&worker->token->lock);
    }
    OPENSSL_cleanse(out, sizeof(out));
    OPENSSL_cleanse(secret, sizeof(secret));
    return result;
}

kh_result kh_token_rsa_kx(kh_token_worker *worker, kh_token_key *key, const kh_p11_key *object, kh_token_op *op)
{
    uint8_t block[KH_SIGNATURE_MAX], plain[KH_SIGNATURE_MAX] = {0};
    bool ready = false, usable = false;
    kh_result result = KH_OK;

    pthread_mutex_lock(&worker->token->lock);
    ready = key->kx_ready;
    pthread_mutex_unlock(&worker->token->lock);
    if (!ready && (result = take_secret(worker, key, object)) != KH_OK) {
        return result;
    }
    usable = kh_rsakx_block(op->record.data, op->record.data_len, key->modulus, key->modulus_len, block);
    result = raw(worker, object, block, key->modulus_len, plain);
    if (result != KH_OK && result != KH_E_CRYPTO) {
        return result; /* the token's fault, whatever the block */
    }
    usable &= result == KH_OK;
    result = kh_rsakx_answer(key->kx_secret, (uint16_t)op->record.arg, op->record.data, op->record.data_len, plain,
                             key->modulus_len, usable, op->out);
    op->out_len = result == KH_OK ? KH_PREMASTER_LEN : 0;
    OPENSSL_cleanse(plain, sizeof(plain));
    return result;
}

kh_result kh_token_rsa_decrypt(kh_token_worker *worker, const kh_p11_key *object, kh_token_op *op)
{
    const EVP_MD *md = kh_algorithms_oaep(op->record.scheme);
    size_t label_len = op->record.arg, len = 0;
    const uint8_t *label = op->record.data, *ciphertext = NULL;
    uint8_t block[KH_SIGNATURE_MAX];
    kh_result result = KH_OK;
    int got = -1;

    if (label_len > op->record.data_len || (md == NULL && label_len != 0) ||
        op->record.data_len - label_len != (object->bits + 7) / 8) {
        return KH_E_INVALID;
    }
    if (md == NULL && op->record.scheme != KH_PADDING_PKCS1 && op->record.scheme != KH_PADDING_RAW) {
        return KH_E_UNSUPPORTED;
    }
    ciphertext = op->record.data + label_len;
    len = op->record.data_len - label_len;
    result = raw(worker, object, ciphertext, len, block);
    if (result != KH_OK) {
        return result;
    }
    if (op->record.scheme == KH_PADDING_RAW) {
        memcpy(op->out, block, len);
        got = (int)len;
    } else if (md != NULL) {
        got = RSA_padding_check_PKCS1_OAEP_mgf1(op->out, sizeof(op->out), block, (int)len, (int)len, label, (int)label_len,
                                                md, md);
    } else {
        got = RSA_padding_check_PKCS1_type_2(op->out, sizeof(op->out), block, (int)len, (int)len);
    }
    op->out_len = got >= 0 ? (size_t)got : 0;
    OPENSSL_cleanse(block, sizeof(block));
    return got >= 0 ? KH_OK : KH_E_CRYPTO;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing with AES-256-GCM. */
#include "seal.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <limits.h>
#include <stdlib.h>

#define NONCE_LEN 12
#define TAG_LEN 16

struct kh_sealer {
    EVP_CIPHER *cipher;
    EVP_CIPHER_CTX *encrypt, *decrypt;
};

kh_result kh_sealer_new(const uint8_t key[KH_SEAL_KEY_LEN], kh_sealer **out)
{
    kh_sealer *sealer = calloc(1, sizeof(*sealer));
    kh_result result = KH_E_MEMORY;

    *out = NULL;
    if (sealer == NULL) {
        goto done;
    }
    sealer->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    sealer->encrypt = EVP_CIPHER_CTX_new();
    sealer->decrypt = EVP_CIPHER_CTX_new();
    if (sealer->cipher == NULL || sealer->encrypt == NULL || sealer->decrypt == NULL) {
        goto done;
    }
    if (EVP_EncryptInit_ex2(sealer->encrypt, sealer->cipher, key, NULL, NULL) != 1 ||
        EVP_DecryptInit_ex2(sealer->decrypt, sealer->cipher, key, NULL, NULL) != 1) {
        result = KH_E_CRYPTO;
        goto done;
    }
    *out = sealer;
    sealer = NULL;
    result = KH_OK;
done:
    kh_sealer_free(sealer);
    return result;
}

void kh_sealer_free(kh_sealer *sealer)
{
    if (sealer == NULL) {
        return;
    }
    EVP_CIPHER_CTX_free(sealer->encrypt);
    EVP_CIPHER_CTX_free(sealer->decrypt);
    EVP_CIPHER_free(sealer->cipher);
    free(sealer);
}

kh_result kh_seal(kh_sealer *sealer, const uint8_t *aad, size_t aad_len, const uint8_t *plain, size_t len,
                  uint8_t *sealed)
{
    uint8_t *nonce = sealed, *text = sealed + NONCE_LEN, *tag = text + len;
    int n = 0;

    if (len > INT_MAX - KH_SEAL_OVERHEAD || aad_len > INT_MAX) {
        return KH_E_TOO_LARGE;
    }
    if (RAND_bytes(nonce, NONCE_LEN) != 1 ||
        EVP_EncryptInit_ex2(sealer->encrypt, NULL, NULL, nonce, NULL) != 1 ||
        EVP_EncryptUpdate(sealer->encrypt, NULL, &n, aad, (int)aad_len) != 1 ||
        EVP_EncryptUpdate(sealer->encrypt, text, &n, plain, (int)len) != 1 || n != (int)len ||
        EVP_EncryptFinal_ex(sealer->encrypt, tag, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(sealer->encrypt, EVP_CTRL_AEAD_GET_TAG, TAG_LEN, tag) != 1) {
        return KH_E_CRYPTO;
    }
    return KH_OK;
}

kh_result kh_unseal(kh_sealer *sealer, const uint8_t *aad, size_t aad_len, const uint8_t *sealed,
                    size_t sealed_len, uint8_t *plain)
{
    const uint8_t *text = sealed + NONCE_LEN;
    size_t len = sealed_len - KH_SEAL_OVERHEAD;
    uint8_t tag[TAG_LEN], end[16];
    int n = 0;

    if (sealed_len < KH_SEAL_OVERHEAD || sealed_len > INT_MAX || aad_len > INT_MAX) {
        return KH_E_DAMAGED;
    }
    for (size_t i = 0; i < TAG_LEN; i++) {
        tag[i] = text[len + i];
    }
    if (EVP_DecryptInit_ex2(sealer->decrypt, NULL, NULL, sealed, NULL) != 1 ||
        EVP_DecryptUpdate(sealer->decrypt, NULL, &n, aad, (int)aad_len) != 1 ||
        EVP_DecryptUpdate(sealer->decrypt, plain, &n, text, (int)len) != 1 || n != (int)len ||
        EVP_CIPHER_CTX_ctrl(sealer->decrypt, EVP_CTRL_AEAD_SET_TAG, TAG_LEN, tag) != 1 ||
        EVP_DecryptFinal_ex(sealer->decrypt, end, &n) != 1) {
        OPENSSL_cleanse(plain, len);
        return KH_E_DAMAGED;
    }
    return KH_OK;
}

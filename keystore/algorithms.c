/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL's algorithms, fetched once. */
#include "algorithms.h"
#include "material.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static kh_result once_result = KH_E_CRYPTO;
static EVP_MD *sha1, *sha256, *sha384, *sha512;
static EVP_MAC *hmac;

/* One signature by a key of that type: loads what OpenSSL loads at first use. */
static bool warm_up(const char *type, const char *group, bool hashes)
{
    EVP_PKEY *pkey =
        group != NULL ? EVP_PKEY_Q_keygen(NULL, NULL, type, group) : EVP_PKEY_Q_keygen(NULL, NULL, type);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    uint8_t signature[KH_SIGNATURE_MAX];
    size_t len = sizeof(signature);
    bool good = pkey != NULL && ctx != NULL &&
                EVP_DigestSignInit_ex(ctx, NULL, hashes ? "SHA256" : NULL, NULL, NULL, pkey, NULL) == 1 &&
                EVP_DigestSign(ctx, signature, &len, (const uint8_t *)"warm", 4) == 1;

    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(pkey);
    return good;
}

static void init(void)
{
    uint8_t byte = 0;

    sha1 = EVP_MD_fetch(NULL, "SHA1", NULL); /* of OAEP alone: one that has it no more does all else */
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    sha384 = EVP_MD_fetch(NULL, "SHA384", NULL);
    sha512 = EVP_MD_fetch(NULL, "SHA512", NULL);
    hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    if (sha256 == NULL || sha384 == NULL || sha512 == NULL || hmac == NULL || RAND_bytes(&byte, 1) != 1 ||
        RAND_priv_bytes(&byte, 1) != 1 || !warm_up("EC", "P-256", true) || !warm_up("ED25519", NULL, false)) {
        return;
    }
    once_result = KH_OK;
}

kh_result kh_algorithms_init(void)
{
    pthread_once(&once, init);
    return once_result;
}

const EVP_MD *kh_algorithms_md(size_t hash_len)
{
    return hash_len == 32 ? sha256 : hash_len == 48 ? sha384 : hash_len == 64 ? sha512 : NULL;
}

const EVP_MD *kh_algorithms_oaep(uint32_t padding)
{
    switch (padding) {
    case KH_PADDING_OAEP_SHA1:
        return sha1;
    case KH_PADDING_OAEP_SHA256:
        return sha256;
    case KH_PADDING_OAEP_SHA384:
        return sha384;
    case KH_PADDING_OAEP_SHA512:
        return sha512;
    default:
        return NULL;
    }
}

EVP_MAC *kh_algorithms_hmac(void)
{
    return hmac;
}

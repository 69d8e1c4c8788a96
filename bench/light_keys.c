/* SPDX-License-Identifier: Apache-2.0 */
#include "light_keys.h"

#include <openssl/core_names.h>
#include <openssl/params.h>
#include <string.h>

#define LABEL_MAX 16
#define TLS12_BYTES 3, 3 /* legacy_record_version */

/* ---- HKDF (RFC 5869) ------------------------------------------------------------------------------------------------ */

static bool hmac(kh_light_crypto *crypto, const uint8_t *key, const uint8_t *data, size_t len, uint8_t *out)
{
    return EVP_MAC_init(crypto->hmac, key, KH_LIGHT_HASH_LEN, NULL) == 1 &&
           EVP_MAC_update(crypto->hmac, data, len) == 1 &&
           EVP_MAC_final(crypto->hmac, out, NULL, KH_LIGHT_HASH_LEN) == 1;
}

/* HKDF-Expand-Label (RFC 8446, section 7.1) for at most one block of output; hash: NULL for an empty context. */
static bool expand_label(kh_light_crypto *crypto, const uint8_t *secret, const char *label, const uint8_t *hash, uint8_t *out,
                         size_t len)
{
    uint8_t info[4 + 6 + LABEL_MAX + KH_LIGHT_HASH_LEN + 1];
    uint8_t block[KH_LIGHT_HASH_LEN];
    size_t label_len = strlen(label);
    size_t used = 0;

    info[used++] = 0;
    info[used++] = (uint8_t)len;
    info[used++] = (uint8_t)(6 + label_len);
    memcpy(info + used, "tls13 ", 6);
    memcpy(info + used + 6, label, label_len);
    used += 6 + label_len;
    info[used++] = hash != NULL ? KH_LIGHT_HASH_LEN : 0;
    if (hash != NULL) {
        memcpy(info + used, hash, KH_LIGHT_HASH_LEN);
        used += KH_LIGHT_HASH_LEN;
    }
    info[used++] = 1; /* the first block's number */
    if (!hmac(crypto, secret, info, used, block)) {
        return false;
    }
    memcpy(out, block, len);
    return true;
}

/* ---- Set-up ---------------------------------------------------------------------------------------------------------- */

static bool fetch_hmac(kh_light_crypto *crypto, OSSL_LIB_CTX *lib)
{
    char digest[] = "SHA256";
    OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0), OSSL_PARAM_construct_end()};
    EVP_MAC *mac = EVP_MAC_fetch(lib, "HMAC", NULL);

    crypto->hmac = mac != NULL ? EVP_MAC_CTX_new(mac) : NULL;
    EVP_MAC_free(mac);
    return crypto->hmac != NULL && EVP_MAC_CTX_set_params(crypto->hmac, params) == 1;
}

static bool fetch_gcm(kh_light_crypto *crypto, OSSL_LIB_CTX *lib)
{
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(lib, "AES-128-GCM", NULL);
    bool ok = cipher != NULL;
    int seal;

    for (seal = 0; seal < 2 && ok; seal++) {
        crypto->gcm[seal] = EVP_CIPHER_CTX_new();
        ok = crypto->gcm[seal] != NULL && EVP_CipherInit_ex2(crypto->gcm[seal], cipher, NULL, NULL, seal, NULL) == 1;
    }
    EVP_CIPHER_free(cipher);
    return ok;
}

/* The peer's key is one object, too, which gets another value for each connection. */
static bool make_key_pair(kh_light_crypto *crypto, OSSL_LIB_CTX *lib)
{
    size_t len = sizeof(crypto->share);

    crypto->own = EVP_PKEY_Q_keygen(lib, NULL, "X25519");
    if (crypto->own == NULL || EVP_PKEY_get_raw_public_key(crypto->own, crypto->share, &len) != 1) {
        return false;
    }
    crypto->peer = EVP_PKEY_new_raw_public_key_ex(lib, "X25519", NULL, crypto->share, len);
    crypto->exchange = EVP_PKEY_CTX_new_from_pkey(lib, crypto->own, NULL);
    return crypto->peer != NULL && crypto->exchange != NULL && EVP_PKEY_derive_init(crypto->exchange) == 1;
}

bool kh_light_crypto_init(kh_light_crypto *crypto, OSSL_LIB_CTX *lib)
{
    static const uint8_t zero[KH_LIGHT_HASH_LEN];
    uint8_t early[KH_LIGHT_HASH_LEN];

    memset(crypto, 0, sizeof(*crypto));
    crypto->sha256 = EVP_MD_fetch(lib, "SHA256", NULL);
    crypto->md = EVP_MD_CTX_new();
    return crypto->sha256 != NULL && crypto->md != NULL && fetch_hmac(crypto, lib) && fetch_gcm(crypto, lib) &&
           make_key_pair(crypto, lib) &&
           EVP_Digest(NULL, 0, crypto->empty_hash, NULL, crypto->sha256, NULL) == 1 &&
           hmac(crypto, zero, zero, sizeof(zero), early) &&
           expand_label(crypto, early, "derived", crypto->empty_hash, crypto->early_derived, KH_LIGHT_HASH_LEN);
}

void kh_light_crypto_free(kh_light_crypto *crypto)
{
    EVP_PKEY_CTX_free(crypto->exchange);
    EVP_PKEY_free(crypto->peer);
    EVP_PKEY_free(crypto->own);
    EVP_CIPHER_CTX_free(crypto->gcm[0]);
    EVP_CIPHER_CTX_free(crypto->gcm[1]);
    EVP_MAC_CTX_free(crypto->hmac);
    EVP_MD_CTX_free(crypto->md);
    EVP_MD_free(crypto->sha256);
}

/* ---- Key schedule ----------------------------------------------------------------------------------------------------- */

bool kh_light_handshake_secret(kh_light_crypto *crypto, const uint8_t share[32], uint8_t *secret)
{
    uint8_t shared[32];
    size_t len = sizeof(shared);

    return EVP_PKEY_set1_encoded_public_key(crypto->peer, share, 32) == 1 &&
           EVP_PKEY_derive_set_peer_ex(crypto->exchange, crypto->peer, 0) == 1 &&
           EVP_PKEY_derive(crypto->exchange, shared, &len) == 1 && len == sizeof(shared) &&
           hmac(crypto, crypto->early_derived, shared, sizeof(shared), secret);
}

bool kh_light_master_secret(kh_light_crypto *crypto, const uint8_t *handshake_secret, uint8_t *master)
{
    static const uint8_t zero[KH_LIGHT_HASH_LEN];
    uint8_t derived[KH_LIGHT_HASH_LEN];

    return expand_label(crypto, handshake_secret, "derived", crypto->empty_hash, derived, sizeof(derived)) &&
           hmac(crypto, derived, zero, sizeof(zero), master);
}

bool kh_light_traffic_keys(kh_light_crypto *crypto, kh_light_traffic *traffic)
{
    traffic->sequence = 0;
    return expand_label(crypto, traffic->secret, "key", NULL, traffic->key, sizeof(traffic->key)) &&
           expand_label(crypto, traffic->secret, "iv", NULL, traffic->iv, sizeof(traffic->iv));
}

bool kh_light_traffic_init(kh_light_crypto *crypto, kh_light_traffic *traffic, const uint8_t *secret, const char *label,
                           const uint8_t *hash)
{
    return expand_label(crypto, secret, label, hash, traffic->secret, sizeof(traffic->secret)) &&
           kh_light_traffic_keys(crypto, traffic);
}

bool kh_light_verify_data(kh_light_crypto *crypto, const kh_light_traffic *traffic, const uint8_t *hash, uint8_t *out)
{
    uint8_t key[KH_LIGHT_HASH_LEN];

    return expand_label(crypto, traffic->secret, "finished", NULL, key, sizeof(key)) &&
           hmac(crypto, key, hash, KH_LIGHT_HASH_LEN, out);
}

bool kh_light_hash(kh_light_crypto *crypto, const EVP_MD_CTX *transcript, uint8_t *hash)
{
    return EVP_MD_CTX_copy_ex(crypto->md, transcript) == 1 && EVP_DigestFinal_ex(crypto->md, hash, NULL) == 1;
}

/* ---- Records ----------------------------------------------------------------------------------------------------------- */

/* Begins a record: its key, its nonce (section 5.3), and its header, which is authenticated too. */
static bool begin_record(kh_light_crypto *crypto, kh_light_traffic *traffic, int seal, const uint8_t *header)
{
    uint8_t nonce[sizeof(traffic->iv)];
    int len = 0;
    int i;

    memcpy(nonce, traffic->iv, sizeof(nonce));
    for (i = 0; i < 8; i++) {
        nonce[11 - i] ^= (uint8_t)(traffic->sequence >> (8 * i));
    }
    traffic->sequence++;
    return EVP_CipherInit_ex2(crypto->gcm[seal], NULL, traffic->key, nonce, seal, NULL) == 1 &&
           EVP_CipherUpdate(crypto->gcm[seal], NULL, &len, header, KH_LIGHT_RECORD_HEADER) == 1;
}

bool kh_light_open_record(kh_light_crypto *crypto, kh_light_traffic *traffic, uint8_t *record, size_t len)
{
    EVP_CIPHER_CTX *gcm = crypto->gcm[0];
    uint8_t *body = record + KH_LIGHT_RECORD_HEADER;
    uint8_t *tag = body + len - KH_LIGHT_TAG_LEN;
    uint8_t rest[16];
    int out = 0;

    return begin_record(crypto, traffic, 0, record) &&
           EVP_CipherUpdate(gcm, body, &out, body, (int)(len - KH_LIGHT_TAG_LEN)) == 1 &&
           EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_SET_TAG, KH_LIGHT_TAG_LEN, tag) == 1 &&
           EVP_CipherFinal_ex(gcm, rest, &out) == 1;
}

size_t kh_light_seal_record(kh_light_crypto *crypto, kh_light_traffic *traffic, uint8_t type, const uint8_t *content,
                            size_t len, uint8_t *out)
{
    EVP_CIPHER_CTX *gcm = crypto->gcm[1];
    size_t sealed = len + 1 + KH_LIGHT_TAG_LEN;
    const uint8_t header[] = {23, TLS12_BYTES, (uint8_t)(sealed >> 8), (uint8_t)sealed};
    uint8_t *body = out + sizeof(header);
    uint8_t rest[16];
    int done = 0;

    memcpy(out, header, sizeof(header));
    memcpy(body, content, len);
    body[len] = type;
    if (!begin_record(crypto, traffic, 1, header) ||
        EVP_CipherUpdate(gcm, body, &done, body, (int)len + 1) != 1 || EVP_CipherFinal_ex(gcm, rest, &done) != 1 ||
        EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_GET_TAG, KH_LIGHT_TAG_LEN, body + len + 1) != 1) {
        return 0;
    }
    return sizeof(header) + sealed;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The light client's use of libcrypto: X25519, the key schedule of SHA-256, records under AES-128-GCM. Everything is fetched once. */
#ifndef KH_BENCH_LIGHT_KEYS_H
#define KH_BENCH_LIGHT_KEYS_H

#include <openssl/evp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KH_LIGHT_HASH_LEN 32
#define KH_LIGHT_TAG_LEN 16
#define KH_LIGHT_RECORD_HEADER 5

typedef struct kh_light_crypto {
    EVP_MD *sha256;
    EVP_MD_CTX *md;         /* for the hash of a transcript so far */
    EVP_MAC_CTX *hmac;
    EVP_CIPHER_CTX *gcm[2]; /* to open, to seal */
    EVP_PKEY *own, *peer;
    EVP_PKEY_CTX *exchange;
    uint8_t share[32];      /* our public key */
    uint8_t empty_hash[KH_LIGHT_HASH_LEN];
    uint8_t early_derived[KH_LIGHT_HASH_LEN]; /* Derive-Secret(Early Secret, "derived", ""), the same for all without a PSK */
} kh_light_crypto;

/* One direction's protection. */
typedef struct kh_light_traffic {
    uint8_t secret[KH_LIGHT_HASH_LEN];
    uint8_t key[16];
    uint8_t iv[12];
    uint64_t sequence;
} kh_light_traffic;

/* False: libcrypto refuses; kh_light_crypto_free is due in either case. */
bool kh_light_crypto_init(kh_light_crypto *crypto, OSSL_LIB_CTX *lib);
void kh_light_crypto_free(kh_light_crypto *crypto);

/* Key schedule (RFC 8446, section 7.1). All secrets and hashes have KH_LIGHT_HASH_LEN bytes. */
/* The Handshake Secret, by X25519 with the server's share. False: libcrypto refuses it (a share of small order). */
bool kh_light_handshake_secret(kh_light_crypto *crypto, const uint8_t share[32], uint8_t *secret);
bool kh_light_master_secret(kh_light_crypto *crypto, const uint8_t *handshake_secret, uint8_t *master);
/* traffic->secret is Derive-Secret(secret, label, hash); and its keys. */
bool kh_light_traffic_init(kh_light_crypto *crypto, kh_light_traffic *traffic, const uint8_t *secret, const char *label,
                           const uint8_t *hash);
/* The keys of traffic->secret, from record 0 on. */
bool kh_light_traffic_keys(kh_light_crypto *crypto, kh_light_traffic *traffic);
/* verify_data of a Finished (section 4.4.4). */
bool kh_light_verify_data(kh_light_crypto *crypto, const kh_light_traffic *traffic, const uint8_t *hash, uint8_t *out);
/* The hash of what `transcript` has had so far. */
bool kh_light_hash(kh_light_crypto *crypto, const EVP_MD_CTX *transcript, uint8_t *hash);

/*
 * Records (section 5.2). kh_light_open_record: `record` is the header and `len` bytes, at least KH_LIGHT_TAG_LEN, which are
 * decrypted in place; false: not authentic.
 */
bool kh_light_open_record(kh_light_crypto *crypto, kh_light_traffic *traffic, uint8_t *record, size_t len);
/* Writes a record with the `len` bytes of `content`; its length, or 0. It needs len + 22 bytes. */
size_t kh_light_seal_record(kh_light_crypto *crypto, kh_light_traffic *traffic, uint8_t type, const uint8_t *content,
                            size_t len, uint8_t *out);

#endif

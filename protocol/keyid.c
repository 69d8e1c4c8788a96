/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The id of a key: SHA-256 of its canonical SubjectPublicKeyInfo. The encoding is written here from the key's
 * numbers and not taken from OpenSSL, which keeps explicit curve parameters and compressed points as it found
 * them.
 */
#include <keyhold/client.h>

#include "der.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/objects.h>
#include <string.h>

#define KH_EXPONENT_MAX 8    /* bytes of an RSA public exponent */
#define KH_MODULUS_MAX 512   /* bytes of an RSA modulus */
#define KH_COORDINATE_MAX 66 /* bytes of a coordinate on P-521 */

/* AlgorithmIdentifiers, complete. */
static const uint8_t kh_alg_rsa[] = {0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86,
                                     0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00};
static const uint8_t kh_alg_p256[] = {0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
                                      0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
static const uint8_t kh_alg_p384[] = {0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d,
                                      0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22};
static const uint8_t kh_alg_p521[] = {0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d,
                                      0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23};
static const uint8_t kh_alg_ed25519[] = {0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70};

typedef struct kh_curve {
    int nid;
    kh_key_type type;
    unsigned bits;
    size_t coordinate_len;
    const uint8_t *algorithm;
    size_t algorithm_len;
} kh_curve;

static const kh_curve kh_curves[] = {
    {NID_X9_62_prime256v1, KH_KEY_P256, 256, 32, kh_alg_p256, sizeof(kh_alg_p256)},
    {NID_secp384r1, KH_KEY_P384, 384, 48, kh_alg_p384, sizeof(kh_alg_p384)},
    {NID_secp521r1, KH_KEY_P521, 521, 66, kh_alg_p521, sizeof(kh_alg_p521)},
};

/* SubjectPublicKeyInfo ::= SEQUENCE { algorithm, BIT STRING of what was written since the buffer's end }. */
static void kh_spki_wrap(kh_der_writer *writer, const uint8_t *algorithm, size_t algorithm_len)
{
    static const uint8_t no_unused_bits = 0;

    kh_der_raw(writer, &no_unused_bits, 1);
    kh_der_wrap(writer, KH_DER_BIT_STRING, writer->cap);
    kh_der_raw(writer, algorithm, algorithm_len);
    kh_der_wrap(writer, KH_DER_SEQUENCE, writer->cap);
}

/* A positive INTEGER in front of what is there. */
static kh_result kh_der_bn(kh_der_writer *writer, const BIGNUM *number, size_t most)
{
    uint8_t bytes[KH_MODULUS_MAX + 1] = {0};
    size_t len = (size_t)BN_num_bytes(number);
    size_t end = writer->at;
    size_t sign = 0;

    if (len == 0 || len > most || BN_is_negative(number)) {
        return KH_E_UNSUPPORTED;
    }
    BN_bn2bin(number, bytes + 1);
    sign = bytes[1] >= 0x80; /* the first bit says negative: a zero byte before it says it is not */
    kh_der_raw(writer, bytes + 1 - sign, len + sign);
    kh_der_wrap(writer, KH_DER_INTEGER, end);
    return KH_OK;
}

static kh_result kh_spki_rsa(const EVP_PKEY *pkey, kh_der_writer *writer, kh_key_type *type, unsigned *bits)
{
    BIGNUM *modulus = NULL;
    BIGNUM *exponent = NULL;
    kh_result result = KH_E_UNSUPPORTED;

    if (!EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &modulus) ||
        !EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &exponent)) {
        result = KH_E_CRYPTO;
        goto done;
    }
    result = kh_der_bn(writer, exponent, KH_EXPONENT_MAX);
    if (result != KH_OK) {
        goto done;
    }
    result = kh_der_bn(writer, modulus, KH_MODULUS_MAX);
    if (result != KH_OK) {
        goto done;
    }
    kh_der_wrap(writer, KH_DER_SEQUENCE, writer->cap);
    kh_spki_wrap(writer, kh_alg_rsa, sizeof(kh_alg_rsa));
    *type = KH_KEY_RSA;
    *bits = (unsigned)BN_num_bits(modulus);
done:
    BN_free(modulus);
    BN_free(exponent);
    return result;
}

static const kh_curve *kh_curve_of(const EVP_PKEY *pkey)
{
    char name[80] = "";
    size_t len = 0;
    int nid = NID_undef;

    if (!EVP_PKEY_get_group_name(pkey, name, sizeof(name), &len)) {
        return NULL;
    }
    nid = EC_curve_nist2nid(name);
    if (nid == NID_undef) {
        nid = OBJ_txt2nid(name);
    }
    for (size_t i = 0; i < sizeof(kh_curves) / sizeof(kh_curves[0]); i++) {
        if (kh_curves[i].nid == nid) {
            return &kh_curves[i];
        }
    }
    return NULL;
}

/* The uncompressed point: from the coordinates, or, where a provider has none, from the encoded public key.
 */
static kh_result kh_ec_point(const EVP_PKEY *pkey, const kh_curve *curve, uint8_t *point, size_t cap)
{
    size_t len = 1 + 2 * curve->coordinate_len;
    BIGNUM *x = NULL;
    BIGNUM *y = NULL;
    size_t got = 0;
    kh_result result = KH_E_CRYPTO;

    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_X, &x) &&
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_Y, &y)) {
        int width = (int)curve->coordinate_len;

        point[0] = 0x04;
        if (BN_bn2binpad(x, point + 1, width) == width &&
            BN_bn2binpad(y, point + 1 + width, width) == width) {
            result = KH_OK;
        }
    } else if (EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_ENCODED_PUBLIC_KEY, point, cap, &got) ||
               EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_PUB_KEY, point, cap, &got)) {
        result = got == len && point[0] == 0x04 ? KH_OK : KH_E_UNSUPPORTED;
    }
    BN_free(x);
    BN_free(y);
    return result;
}

static kh_result kh_spki_ec(const EVP_PKEY *pkey, kh_der_writer *writer, kh_key_type *type, unsigned *bits)
{
    uint8_t point[1 + 2 * KH_COORDINATE_MAX];
    const kh_curve *curve = kh_curve_of(pkey);
    kh_result result = KH_OK;

    if (curve == NULL) {
        return KH_E_UNSUPPORTED;
    }
    result = kh_ec_point(pkey, curve, point, sizeof(point));
    if (result != KH_OK) {
        return result;
    }
    kh_der_raw(writer, point, 1 + 2 * curve->coordinate_len);
    kh_spki_wrap(writer, curve->algorithm, curve->algorithm_len);
    *type = curve->type;
    *bits = curve->bits;
    return KH_OK;
}

static kh_result kh_spki_ed25519(const EVP_PKEY *pkey, kh_der_writer *writer, kh_key_type *type,
                                 unsigned *bits)
{
    uint8_t raw[32];
    size_t len = 0;

    if (!EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_PUB_KEY, raw, sizeof(raw), &len) ||
        len != sizeof(raw)) {
        return KH_E_CRYPTO;
    }
    kh_der_raw(writer, raw, sizeof(raw));
    kh_spki_wrap(writer, kh_alg_ed25519, sizeof(kh_alg_ed25519));
    *type = KH_KEY_ED25519;
    *bits = 256;
    return KH_OK;
}

static kh_result kh_spki(const EVP_PKEY *pkey, kh_der_writer *writer, kh_key_type *type, unsigned *bits)
{
    if (EVP_PKEY_is_a(pkey, "RSA")) {
        return kh_spki_rsa(pkey, writer, type, bits);
    }
    if (EVP_PKEY_is_a(pkey, "EC")) {
        return kh_spki_ec(pkey, writer, type, bits);
    }
    if (EVP_PKEY_is_a(pkey, "ED25519")) {
        return kh_spki_ed25519(pkey, writer, type, bits);
    }
    return KH_E_UNSUPPORTED;
}

kh_result kh_key_id(const EVP_PKEY *pkey, uint8_t *id, uint8_t *spki, size_t *spki_len, kh_key_type *type,
                    unsigned *bits)
{
    uint8_t buf[KH_SPKI_MAX];
    kh_der_writer writer;
    kh_key_type found_type = KH_KEY_NONE;
    unsigned found_bits = 0;
    kh_result result = KH_OK;

    kh_der_init(&writer, buf, sizeof(buf));
    ERR_set_mark(); /* a parameter that a provider does not have is not the caller's error */
    result = kh_spki(pkey, &writer, &found_type, &found_bits);
    ERR_pop_to_mark();
    if (result != KH_OK) {
        return result;
    }
    if (writer.failed) {
        return KH_E_UNSUPPORTED;
    }
    if (id != NULL && !EVP_Digest(buf + writer.at, writer.cap - writer.at, id, NULL, EVP_sha256(), NULL)) {
        return KH_E_CRYPTO;
    }
    if (spki != NULL) {
        memcpy(spki, buf + writer.at, writer.cap - writer.at);
    }
    if (spki_len != NULL) {
        *spki_len = writer.cap - writer.at;
    }
    if (type != NULL) {
        *type = found_type;
    }
    if (bits != NULL) {
        *bits = found_bits;
    }
    return KH_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Private keys in every form that people have; passphrases right, wrong and missing; weak, unknown and
 * damaged keys. */
#include "keyfile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include <cmocka.h>

static const char passphrase[] = "correct horse";
static const char *offered; /* what the callback answers; NULL: it fails */
static unsigned asked;

static kh_result answer(void *ctx, ctl_secret *secret, ctl_error *error)
{
    (void)ctx;
    asked++;
    if (offered == NULL) {
        return ctl_fail(error, KH_E_PASSPHRASE, "nobody is there to ask");
    }
    assert_int_equal(ctl_secret_new(CTL_PASSPHRASE_MAX, secret), KH_OK);
    secret->len = strlen(offered);
    memcpy(secret->data, offered, secret->len);
    return KH_OK;
}

static EVP_PKEY *make(const char *kind)
{
    if (strncmp(kind, "RSA", 3) == 0) {
        return EVP_RSA_gen((unsigned)atoi(kind + 3));
    }
    if (strcmp(kind, "ED25519") == 0 || strcmp(kind, "ED448") == 0 || strcmp(kind, "X25519") == 0) {
        return EVP_PKEY_Q_keygen(NULL, NULL, kind);
    }
    return EVP_EC_gen(kind);
}

typedef enum form {
    PEM_PLAIN,
    PEM_SEALED,
    PEM_OLD,
    PEM_OLD_SEALED,
    DER_PLAIN,
    DER_SEALED,
    DER_OLD,
    P12,
    P12_EMPTY,
    FORMS
} form;

static bool is_sealed(form f)
{
    return f == PEM_SEALED || f == PEM_OLD_SEALED || f == DER_SEALED || f == P12;
}

static X509 *certificate_of(EVP_PKEY *pkey)
{
    X509 *cert = X509_new();
    X509_NAME *name = X509_get_subject_name(cert);

    X509_set_version(cert, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"t", -1, -1, 0);
    X509_set_issuer_name(cert, name);
    X509_set_pubkey(cert, pkey);
    assert_true(X509_sign(cert, pkey, EVP_PKEY_is_a(pkey, "ED25519") ? NULL : EVP_sha256()) > 0);
    return cert;
}

static BIO *write_as(EVP_PKEY *pkey, form f)
{
    BIO *bio = BIO_new(BIO_s_mem());
    PKCS12 *p12 = NULL;
    X509 *cert = NULL;
    int ok = 0;
    char *pass = (char *)passphrase;

    switch (f) {
    case PEM_PLAIN:
        ok = PEM_write_bio_PKCS8PrivateKey(bio, pkey, NULL, NULL, 0, NULL, NULL);
        break;
    case PEM_SEALED:
        ok = PEM_write_bio_PKCS8PrivateKey(bio, pkey, EVP_aes_256_cbc(), pass, (int)strlen(pass), NULL, NULL);
        break;
    case PEM_OLD:
        ok = PEM_write_bio_PrivateKey_traditional(bio, pkey, NULL, NULL, 0, NULL, NULL);
        break;
    case PEM_OLD_SEALED:
        ok = PEM_write_bio_PrivateKey_traditional(bio, pkey, EVP_aes_128_cbc(), (unsigned char *)pass,
                                                  (int)strlen(pass), NULL, NULL);
        break;
    case DER_PLAIN:
        ok = i2d_PKCS8PrivateKey_bio(bio, pkey, NULL, NULL, 0, NULL, NULL);
        break;
    case DER_SEALED:
        ok = i2d_PKCS8PrivateKey_bio(bio, pkey, EVP_aes_256_cbc(), pass, (int)strlen(pass), NULL, NULL);
        break;
    case DER_OLD:
        ok = i2d_PrivateKey_bio(bio, pkey);
        break;
    case P12:
    case P12_EMPTY:
        cert = certificate_of(pkey);
        p12 = PKCS12_create(f == P12 ? passphrase : "", "name", pkey, cert, NULL, 0, 0, 0, 0, 0);
        ok = i2d_PKCS12_bio(bio, p12);
        break;
    default:
        break;
    }
    PKCS12_free(p12);
    X509_free(cert);
    assert_true(ok);
    return bio;
}

static kh_result load_bio(BIO *bio, keyfile *key, ctl_error *error)
{
    char *data = NULL;
    long len = BIO_get_mem_data(bio, &data);
    /* An exact allocation, so that a sanitizer sees a read past the end. */
    uint8_t *copy = malloc((size_t)len);
    kh_result result = KH_OK;

    memcpy(copy, data, (size_t)len);
    memset(error, 0, sizeof(*error));
    asked = 0;
    result = keyfile_load(copy, (size_t)len, "site.key", answer, NULL, key, error);
    free(copy);
    return result;
}

static void test_forms(void **state)
{
    static const struct {
        const char *kind;
        kh_key_type type;
        unsigned bits;
    } kinds[] = {{"RSA2048", KH_KEY_RSA, 2048},
                 {"P-256", KH_KEY_P256, 256},
                 {"P-384", KH_KEY_P384, 384},
                 {"P-521", KH_KEY_P521, 521},
                 {"ED25519", KH_KEY_ED25519, 256}};

    (void)state;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        EVP_PKEY *pkey = make(kinds[k].kind);

        for (form f = 0; f < FORMS; f++) {
            bool edwards = strcmp(kinds[k].kind, "ED25519") == 0;
            keyfile key = {0};
            ctl_error error;
            BIO *bio = NULL;
            const uint8_t *at = NULL;
            PKCS8_PRIV_KEY_INFO *info = NULL;

            if (edwards && (f == PEM_OLD || f == PEM_OLD_SEALED || f == DER_OLD)) {
                continue; /* there is no traditional form of these */
            }
            bio = write_as(pkey, f);
            offered = passphrase;
            assert_int_equal(load_bio(bio, &key, &error), KH_OK);
            assert_int_equal(key.type, kinds[k].type);
            assert_int_equal(key.bits, kinds[k].bits);
            assert_int_equal(EVP_PKEY_eq(key.pkey, pkey), 1);
            assert_int_equal(asked, is_sealed(f));
            at = key.pkcs8.data;
            info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &at, (long)key.pkcs8.len);
            assert_non_null(info);
            assert_ptr_equal(at, key.pkcs8.data + key.pkcs8.len);
            PKCS8_PRIV_KEY_INFO_free(info);
            keyfile_free(&key);
            if (is_sealed(f)) {
                offered = "wrong";
                assert_int_equal(load_bio(bio, &key, &error), KH_E_PASSPHRASE);
                assert_non_null(strstr(error.text, "site.key is wrong"));
                assert_null(strstr(error.text, "wrong;wrong")); /* the passphrase itself is in no message */
                assert_null(key.pkey);
                offered = NULL;
                assert_int_equal(load_bio(bio, &key, &error), KH_E_PASSPHRASE);
                assert_string_equal(error.text, "nobody is there to ask");
            }
            BIO_free(bio);
        }
        EVP_PKEY_free(pkey);
    }
}

/* One wrong passphrase in 256 leaves padding that looks right, and then no key: it is a wrong passphrase like the others. */
static void test_wrong_by_chance(void **state)
{
    EVP_PKEY *pkey = make("P-256");
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(pkey);
    X509_SIG *sealed = PKCS8_encrypt(-1, EVP_aes_256_cbc(), passphrase, (int)strlen(passphrase), NULL, 0, 1, info);
    BIO *bios[] = {write_as(pkey, PEM_OLD_SEALED), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem())};

    (void)state;
    assert_true(PEM_write_bio_PKCS8(bios[1], sealed));
    assert_true(i2d_PKCS8_bio(bios[2], sealed));
    for (size_t i = 0; i < sizeof(bios) / sizeof(bios[0]); i++) {
        for (unsigned n = 0; n < 1500; n++) {
            char wrong[16];
            keyfile key = {0};
            ctl_error error;

            snprintf(wrong, sizeof(wrong), "wrong%u", n);
            offered = wrong;
            assert_int_equal(load_bio(bios[i], &key, &error), KH_E_PASSPHRASE);
        }
        BIO_free(bios[i]);
    }
    X509_SIG_free(sealed);
    PKCS8_PRIV_KEY_INFO_free(info);
    EVP_PKEY_free(pkey);
}

static void test_no_way_to_ask(void **state)
{
    EVP_PKEY *pkey = make("P-256");
    BIO *bio = write_as(pkey, PEM_SEALED);
    char *data = NULL;
    long len = BIO_get_mem_data(bio, &data);
    keyfile key = {0};
    ctl_error error = {0};

    (void)state;
    assert_int_equal(keyfile_load((uint8_t *)data, (size_t)len, "k", NULL, NULL, &key, &error),
                     KH_E_PASSPHRASE);
    assert_non_null(strstr(error.text, "encrypted"));
    BIO_free(bio);
    EVP_PKEY_free(pkey);
}

static void refuse(const char *kind, kh_result expected, const char *text)
{
    EVP_PKEY *pkey = make(kind);
    BIO *bio = NULL;
    keyfile key = {0};
    ctl_error error;

    assert_non_null(pkey);
    bio = write_as(pkey, PEM_PLAIN);
    assert_int_equal(load_bio(bio, &key, &error), expected);
    if (strstr(error.text, text) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", text, error.text);
    }
    BIO_free(bio);
    EVP_PKEY_free(pkey);
}

static void test_refused_keys(void **state)
{
    (void)state;
    refuse("RSA1024", KH_E_WEAK, "weak: RSA with 1024 bits");
    refuse("RSA2040", KH_E_WEAK, "weak: RSA with 2040 bits");
    refuse("prime192v1", KH_E_WEAK, "weak");
    refuse("secp256k1", KH_E_UNSUPPORTED, "EC secp256k1");
    refuse("brainpoolP256r1", KH_E_UNSUPPORTED, "EC brainpoolP256r1");
    refuse("ED448", KH_E_UNSUPPORTED, "ED448");
    refuse("X25519", KH_E_UNSUPPORTED, "X25519");
}

/* A private key put together from the halves of two. */
static void test_damaged_key(void **state)
{
    EVP_PKEY *a = make("P-256");
    EVP_PKEY *b = make("P-256");
    EVP_PKEY *mixed = NULL;
    BIGNUM *secret = NULL;
    unsigned char point[133];
    size_t point_len = 0;
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    BIO *bio = NULL;
    keyfile key = {0};
    ctl_error error;

    (void)state;
    assert_int_equal(EVP_PKEY_get_bn_param(a, OSSL_PKEY_PARAM_PRIV_KEY, &secret), 1);
    assert_int_equal(
        EVP_PKEY_get_octet_string_param(b, OSSL_PKEY_PARAM_PUB_KEY, point, sizeof(point), &point_len), 1);
    assert_true(OSSL_PARAM_BLD_push_utf8_string(build, OSSL_PKEY_PARAM_GROUP_NAME, "prime256v1", 0));
    assert_true(OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_PRIV_KEY, secret));
    assert_true(OSSL_PARAM_BLD_push_octet_string(build, OSSL_PKEY_PARAM_PUB_KEY, point, point_len));
    params = OSSL_PARAM_BLD_to_param(build);
    assert_int_equal(EVP_PKEY_fromdata_init(ctx), 1);
    assert_int_equal(EVP_PKEY_fromdata(ctx, &mixed, EVP_PKEY_KEYPAIR, params), 1);
    bio = write_as(mixed, PEM_PLAIN);
    assert_int_equal(load_bio(bio, &key, &error), KH_E_DAMAGED);
    assert_non_null(strstr(error.text, "does not fit"));
    BIO_free(bio);
    EVP_PKEY_CTX_free(ctx);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(build);
    BN_clear_free(secret);
    EVP_PKEY_free(mixed);
    EVP_PKEY_free(a);
    EVP_PKEY_free(b);
}

static void test_other_files(void **state)
{
    static const char *const texts[] = {"",
                                        "hello",
                                        "-----BEGIN ",
                                        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                                        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                                        "0\x82",
                                        "\x30\x03\x02\x01\x00"};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        keyfile key = {0};
        ctl_error error = {0};

        offered = passphrase;
        assert_int_equal(
            keyfile_load((const uint8_t *)texts[i], strlen(texts[i]), "k", answer, NULL, &key, &error),
            KH_E_MALFORMED);
        assert_non_null(strstr(error.text, "no private key"));
    }
}

/* Every cut and every flipped byte of a DER key is an error or a key, never worse. */
static void test_mutated(void **state)
{
    EVP_PKEY *pkey = make("P-256");
    static const form forms[] = {DER_PLAIN, DER_OLD, PEM_PLAIN};

    (void)state;
    for (size_t f = 0; f < sizeof(forms) / sizeof(forms[0]); f++) {
        BIO *bio = write_as(pkey, forms[f]);
        char *data = NULL;
        long len = BIO_get_mem_data(bio, &data);

        for (long i = 0; i < len; i++) {
            keyfile key = {0};
            ctl_error error = {0};
            uint8_t *copy = malloc((size_t)len);

            offered = NULL;
            memcpy(copy, data, (size_t)len);
            copy[i] ^= 0x55;
            if (keyfile_load(copy, (size_t)len, "k", answer, NULL, &key, &error) != KH_OK) {
                assert_true(error.text[0] != '\0');
            }
            keyfile_free(&key);
            memset(&error, 0, sizeof(error));
            memcpy(copy, data, (size_t)len);
            if (keyfile_load(copy, (size_t)i, "k", answer, NULL, &key, &error) != KH_OK) {
                assert_true(error.text[0] != '\0');
            }
            keyfile_free(&key);
            free(copy);
        }
        BIO_free(bio);
    }
    EVP_PKEY_free(pkey);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),        cmocka_unit_test(test_wrong_by_chance),
        cmocka_unit_test(test_no_way_to_ask),
        cmocka_unit_test(test_refused_keys), cmocka_unit_test(test_damaged_key),
        cmocka_unit_test(test_other_files),  cmocka_unit_test(test_mutated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

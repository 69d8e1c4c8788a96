/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates and requests around a signature from elsewhere: here from a key of the test's own. */
#include "certbuild.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <keyhold/client.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cmocka.h>

#define START 1700000000

static EVP_PKEY *pkey;
static kh_key_info info;
static ctl_error error;

static void use_key(EVP_PKEY *fresh, uint32_t usage)
{
    kh_key_type type = KH_KEY_NONE;
    unsigned bits = 0;
    size_t len = 0;

    EVP_PKEY_free(pkey);
    pkey = fresh;
    memset(&info, 0, sizeof(info));
    assert_int_equal(kh_key_id(pkey, info.id, info.spki, &len, &type, &bits), KH_OK);
    info.spki_len = (uint32_t)len;
    info.type = type;
    info.bits = bits;
    info.usage = usage;
}

static size_t sign(const certbuild *build, uint8_t signature[KH_SIGNATURE_MAX])
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    size_t tbs_len = 0;
    const uint8_t *tbs = certbuild_tbs(build, &tbs_len);
    size_t len = KH_SIGNATURE_MAX;
    size_t hash = kh_scheme_hash_len(certbuild_scheme(build));
    const EVP_MD *md = hash == 32   ? EVP_sha256()
                       : hash == 48 ? EVP_sha384()
                       : hash == 64 ? EVP_sha512()
                                    : NULL;

    assert_int_equal(EVP_DigestSignInit(ctx, NULL, md, NULL, pkey), 1);
    assert_int_equal(EVP_DigestSign(ctx, signature, &len, tbs, tbs_len), 1);
    EVP_MD_CTX_free(ctx);
    return len;
}

/* Builds, signs, finishes; the PEM is the caller's. */
static char *make(const certbuild_wish *wish)
{
    certbuild *build = NULL;
    uint8_t signature[KH_SIGNATURE_MAX];
    char *pem = NULL;

    memset(&error, 0, sizeof(error));
    if (certbuild_new(&info, wish, &build, &error) != KH_OK) {
        fail_msg("%s", error.text);
    }
    assert_int_equal(certbuild_finish(build, signature, sign(build, signature), &pem, &error), KH_OK);
    certbuild_free(build);
    return pem;
}

static X509 *read_certificate(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);

    BIO_free(bio);
    assert_non_null(cert);
    return cert;
}

static void test_every_type(void **state)
{
    certbuild_wish wish = {.subject = "/C=DE/O=Site/CN=www.example", .not_before = START, .days = 30};
    EVP_PKEY *keys[] = {EVP_RSA_gen(2048), EVP_EC_gen("P-256"), EVP_EC_gen("P-384"), EVP_EC_gen("P-521"),
                        EVP_PKEY_Q_keygen(NULL, NULL, "ED25519")};

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char *pem = NULL;
        X509 *cert = NULL;
        X509_REQ *req = NULL;
        BIO *bio = NULL;

        use_key(keys[i], KH_USAGE_TLS_SERVER);
        wish.request = false;
        pem = make(&wish);
        cert = read_certificate(pem);
        assert_int_equal(X509_verify(cert, pkey), 1);
        assert_int_equal(X509_check_host(cert, "www.example", 0, 0, NULL), 1);
        assert_int_equal(X509_get_version(cert), X509_VERSION_3);
        assert_int_equal(X509_check_ca(cert), 0);
        assert_int_equal(X509_check_purpose(cert, X509_PURPOSE_SSL_SERVER, 0), 1);
        assert_int_equal(X509_check_purpose(cert, X509_PURPOSE_SSL_CLIENT, 0), 0);
        X509_free(cert);
        free(pem);
        wish.request = true;
        pem = make(&wish);
        bio = BIO_new_mem_buf(pem, -1);
        req = PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL);
        assert_non_null(req);
        assert_int_equal(X509_REQ_verify(req, pkey), 1);
        X509_REQ_free(req);
        BIO_free(bio);
        free(pem);
    }
}

static void test_names(void **state)
{
    certbuild_wish wish = {.subject = "/CN=not a host\\/name/O=\xc3\x84",
                           .san = "DNS:a.example, DNS:*.b.example,IP:192.0.2.1,IP:2001:db8::1,email:x@y.z",
                           .not_before = START,
                           .days = 1};
    char cn[64];
    char *pem = NULL;
    X509 *cert = NULL;

    (void)state;
    use_key(EVP_EC_gen("P-256"), KH_USAGE_TLS_SERVER | KH_USAGE_TLS_CLIENT);
    pem = make(&wish);
    cert = read_certificate(pem);
    assert_true(X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, cn, sizeof(cn)) > 0);
    assert_string_equal(cn, "not a host/name");
    assert_int_equal(X509_check_host(cert, "a.example", 0, 0, NULL), 1);
    assert_int_equal(X509_check_host(cert, "x.b.example", 0, 0, NULL), 1);
    assert_int_equal(X509_check_host(cert, "c.example", 0, 0, NULL), 0);
    assert_int_equal(X509_check_ip_asc(cert, "192.0.2.1", 0), 1);
    assert_int_equal(X509_check_ip_asc(cert, "2001:db8::1", 0), 1);
    assert_int_equal(X509_check_purpose(cert, X509_PURPOSE_SSL_CLIENT, 0), 1);
    X509_free(cert);
    free(pem);
    wish.san = NULL; /* the CN is no host name: then there is no SAN at all */
    pem = make(&wish);
    cert = read_certificate(pem);
    assert_true(X509_get_ext_by_NID(cert, NID_subject_alt_name, -1) < 0);
    X509_free(cert);
    free(pem);
}

static void refuse(const char *subject, const char *san, const char *text)
{
    certbuild_wish wish = {.subject = subject, .san = san, .not_before = START, .days = 1};
    certbuild *build = NULL;

    memset(&error, 0, sizeof(error));
    assert_int_equal(certbuild_new(&info, &wish, &build, &error), KH_E_INVALID);
    assert_null(build);
    assert_int_equal(error.exit_code, CTL_USAGE);
    if (strstr(error.text, text) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", text, error.text);
    }
}

static void test_refused(void **state)
{
    (void)state;
    use_key(EVP_EC_gen("P-256"), KH_USAGE_TLS_SERVER);
    refuse("CN=x", NULL, "does not begin");
    refuse("/", NULL, "does not begin");
    refuse("/CN", NULL, "NAME=value");
    refuse("/=x", NULL, "NAME=value");
    refuse("/CN=", NULL, "empty");
    refuse("/XY=z", NULL, "not a known attribute");
    refuse("/C=Germany", NULL, "not allowed");
    refuse("/CN=x", "a.example", "write DNS:name");
    refuse("/CN=x", "DNS:", "not a host name");
    refuse("/CN=x", "DNS:a b", "not a host name");
    refuse("/CN=x", "IP:1.2.3", "not a value");
    refuse("/CN=x", "email:", "not a value");
}

static void test_wrong_signature(void **state)
{
    certbuild_wish wish = {.subject = "/CN=x", .not_before = START, .days = 1};
    certbuild *build = NULL;
    uint8_t signature[KH_SIGNATURE_MAX];
    size_t len = 0;
    char *pem = NULL;

    (void)state;
    use_key(EVP_EC_gen("P-256"), KH_USAGE_TLS_SERVER);
    for (int request = 0; request < 2; request++) {
        wish.request = request;
        assert_int_equal(certbuild_new(&info, &wish, &build, &error), KH_OK);
        len = sign(build, signature);
        signature[len - 1] ^= 1;
        assert_int_equal(certbuild_finish(build, signature, len, &pem, &error), KH_E_CRYPTO);
        assert_null(pem);
        assert_int_equal(certbuild_finish(build, signature, 0, &pem, &error), KH_E_CRYPTO);
        certbuild_free(build);
    }
}

static int forget(void **state)
{
    (void)state;
    EVP_PKEY_free(pkey);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_wrong_signature),
    };

    return cmocka_run_group_tests(tests, NULL, forget);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provider's core (protocol/provider/) through OpenSSL's own interfaces, with a host that has the keys itself: what
 * it is asked, and that the answers come out of EVP as they went in. Loaded into a library context of its own, after the
 * default provider, as nginx does.
 */
#include "provider.h"

#include <keyhold/client.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <string.h>

enum { TLS_SECRET_LEN = 48 };

/* The host: one local key, what was last asked, and what to answer instead. */
static struct {
    EVP_PKEY *local;
    kh_request last;
    uint8_t last_key[KH_NAME_MAX + 1];
    unsigned calls;
    kh_result fail;
    unsigned loaded;
    char loaded_name[KH_NAME_MAX + 1];
} host;

static OSSL_LIB_CTX *libctx;
static OSSL_PROVIDER *provider;

static kh_result host_sign(const kh_request *req, uint8_t *out, size_t cap, size_t *len)
{
    static const char *digests[] = {[32] = "SHA256", [48] = "SHA384", [64] = "SHA512"};
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *pctx = NULL;
    const size_t hash_len = kh_scheme_hash_len((int)req->scheme);

    *len = cap;
    if ((req->flags & KH_SIGN_PREHASHED) != 0) {
        pctx = EVP_PKEY_CTX_new(host.local, NULL);
        assert_true(EVP_PKEY_sign_init(pctx) > 0);
        assert_true(EVP_PKEY_CTX_set_signature_md(pctx, EVP_get_digestbyname(digests[hash_len])) > 0);
        assert_true(EVP_PKEY_sign(pctx, out, len, req->data.data, req->data.len) > 0);
        EVP_PKEY_CTX_free(pctx);
    } else {
        assert_int_equal(EVP_DigestSignInit_ex(ctx, &pctx, digests[hash_len], NULL, NULL, host.local, NULL), 1);
        if (strstr(kh_scheme_name((int)req->scheme), "pss") != NULL) {
            assert_true(EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0);
            assert_true(EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) > 0);
        }
        assert_int_equal(EVP_DigestSign(ctx, out, len, req->data.data, req->data.len), 1);
    }
    EVP_MD_CTX_free(ctx);
    return KH_OK;
}

/* What a host can ask about a reply, of a good one and of bad ones. */
static void check_checks(const kh_prov_key *key, const kh_request *req, const uint8_t *sig, size_t len)
{
    uint8_t bad[KH_SIGNATURE_MAX + 1];

    assert_true(kh_provider_reply_shape(key, req, sig, len));
    assert_true(kh_provider_signature_good(key, req, sig, len));
    memcpy(bad, sig, len);
    bad[len] = 0;
    assert_false(kh_provider_reply_shape(key, req, bad, len + 1));
    assert_false(kh_provider_reply_shape(key, req, bad, len - 1));
    assert_false(kh_provider_reply_shape(key, req, bad, 0));
    bad[len / 3] ^= 1;
    assert_false(kh_provider_signature_good(key, req, bad, len));
    bad[len / 3] ^= 1;
    if (kh_provider_key_type(key) == KH_KEY_P256) {
        bad[0] ^= 1;
        assert_false(kh_provider_reply_shape(key, req, bad, len));
        bad[0] ^= 1;
        bad[4] |= 0x80; /* a negative number, or one with a byte too many */
        assert_false(kh_provider_reply_shape(key, req, bad, len));
    }
    ERR_clear_error();
}

static kh_result host_perform(void *ctx, const kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap, size_t *len)
{
    (void)ctx;
    host.calls++;
    host.last = *req;
    memset(host.last_key, 0, sizeof(host.last_key));
    memcpy(host.last_key, req->key.data, req->key.len);
    if (host.fail != KH_OK) {
        return host.fail;
    }
    if (req->op == KH_OP_SIGN) {
        host_sign(req, out, cap, len);
        check_checks(key, req, out, *len);
        return KH_OK;
    }
    *len = req->op == KH_OP_TLS_RSA_DECRYPT ? TLS_SECRET_LEN : 5;
    memset(out, 0x5a, *len);
    return KH_OK;
}

static void host_key_loaded(void *ctx, const kh_provider_key_info *info)
{
    (void)ctx;
    host.loaded++;
    snprintf(host.loaded_name, sizeof(host.loaded_name), "%s", info->name);
}

static int load_provider(void **state)
{
    static const kh_provider_host callbacks = {host_perform, host_key_loaded, NULL};

    (void)state;
    kh_provider_set_host(&callbacks);
    libctx = OSSL_LIB_CTX_new();
    EVP_MD_free(EVP_MD_fetch(libctx, "SHA256", NULL));
    if (!OSSL_PROVIDER_add_builtin(libctx, "keyhold-test", kh_provider_init)) {
        return -1;
    }
    provider = OSSL_PROVIDER_try_load(libctx, "keyhold-test", 1);
    return provider != NULL ? 0 : -1;
}

static int unload(void **state)
{
    (void)state;
    OSSL_PROVIDER_unload(provider);
    OSSL_LIB_CTX_free(libctx);
    return 0;
}

static void reference_of(EVP_PKEY *pkey, const char *name, char *pem, size_t cap)
{
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len = 0;
    size_t len = 0;

    assert_int_equal(kh_key_id(pkey, NULL, spki, &spki_len, NULL, NULL), KH_OK);
    assert_int_equal(kh_reference_encode(name, (kh_bytes){spki, spki_len}, pem, cap, &len), KH_OK);
}

static EVP_PKEY *read_pem(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *pkey = PEM_read_bio_PrivateKey_ex(bio, NULL, NULL, NULL, libctx, NULL);

    BIO_free(bio);
    return pkey;
}

/* The host gets a new local key; the caller a reference to it, read back through OpenSSL's decoders. */
static EVP_PKEY *remote_key(EVP_PKEY *local, const char *name)
{
    char pem[2 * KH_SPKI_MAX];
    EVP_PKEY *remote = NULL;

    assert_non_null(local);
    EVP_PKEY_free(host.local);
    memset(&host, 0, sizeof(host));
    host.local = local;
    reference_of(local, name, pem, sizeof(pem));
    remote = read_pem(pem);
    assert_non_null(remote);
    assert_int_equal(ERR_peek_error(), 0);
    assert_int_equal(host.loaded, 1);
    assert_string_equal(host.loaded_name, name);
    return remote;
}

/* Signs as libssl does (the probe, the size, the signature) and verifies with the local key. */
static void sign_as_tls(EVP_PKEY *remote, const char *digest, bool pss, kh_scheme scheme)
{
    static const uint8_t message[146] = "what a TLS 1.3 server signs is 146 bytes long";
    uint8_t sig[KH_SIGNATURE_MAX];
    size_t len = 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *pctx = NULL;

    host.calls = 0;
    for (int probe = 0; probe < 2; probe++) {
        EVP_MD_CTX_reset(ctx);
        assert_int_equal(EVP_DigestSignInit_ex(ctx, &pctx, digest, libctx, NULL, remote, NULL), 1);
    }
    if (pss) {
        assert_true(EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0);
        assert_true(EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) > 0);
    }
    assert_int_equal(EVP_DigestSign(ctx, NULL, &len, message, sizeof(message)), 1);
    assert_int_equal(host.calls, 0); /* neither the probe nor the size asks the agent */
    assert_true(len <= sizeof(sig));
    assert_int_equal(EVP_DigestSign(ctx, sig, &len, message, sizeof(message)), 1);
    assert_int_equal(host.calls, 1);
    assert_int_equal(host.last.op, KH_OP_SIGN);
    assert_int_equal(host.last.scheme, scheme);
    assert_int_equal(host.last.flags, 0);
    assert_int_equal(host.last.data.len, sizeof(message)); /* the message, not its digest */
    EVP_MD_CTX_free(ctx);

    ctx = EVP_MD_CTX_new();
    assert_int_equal(EVP_DigestVerifyInit_ex(ctx, &pctx, digest, NULL, NULL, host.local, NULL), 1);
    if (pss) {
        assert_true(EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0);
    }
    assert_int_equal(EVP_DigestVerify(ctx, sig, len, message, sizeof(message)), 1);
    EVP_MD_CTX_free(ctx);
}

static void rsa_signs(void **state)
{
    EVP_PKEY *remote = remote_key(EVP_RSA_gen(2048), "site");

    (void)state;
    assert_int_equal(EVP_PKEY_get_bits(remote), 2048);
    assert_int_equal(EVP_PKEY_get_size(remote), 256);
    sign_as_tls(remote, "SHA256", false, KH_RSA_PKCS1_SHA256);
    sign_as_tls(remote, "SHA2-384", false, KH_RSA_PKCS1_SHA384);
    sign_as_tls(remote, "sha512", false, KH_RSA_PKCS1_SHA512);
    sign_as_tls(remote, "SHA256", true, KH_RSA_PSS_RSAE_SHA256);
    sign_as_tls(remote, "SHA384", true, KH_RSA_PSS_RSAE_SHA384);
    sign_as_tls(remote, "SHA512", true, KH_RSA_PSS_RSAE_SHA512);
    assert_false(host.last.key_is_id);
    assert_string_equal((char *)host.last_key, "site");
    EVP_PKEY_free(remote);
}

static void ec_signs(void **state)
{
    static const char *curves[] = {"P-256", "P-384", "P-521"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        EVP_PKEY *remote = remote_key(EVP_EC_gen(curves[i]), "site/3");

        sign_as_tls(remote, "SHA256", false, KH_ECDSA_SHA256);
        sign_as_tls(remote, "SHA384", false, KH_ECDSA_SHA384);
        assert_string_equal((char *)host.last_key, "site/3");
        EVP_PKEY_free(remote);
    }
}

static void ed25519_signs(void **state)
{
    EVP_PKEY *remote = remote_key(EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), "");
    uint8_t id[KH_KEY_ID_LEN];

    (void)state;
    sign_as_tls(remote, NULL, false, KH_ED25519);
    assert_int_equal(kh_key_id(host.local, id, NULL, NULL, NULL, NULL), KH_OK);
    assert_true(host.last.key_is_id); /* a reference without a name asks by id */
    assert_memory_equal(host.last_key, id, sizeof(id));
    EVP_PKEY_free(remote);
}

static void long_messages_are_hashed_here(void **state)
{
    static uint8_t message[KH_MESSAGE_MAX + 1];
    EVP_PKEY *remote = remote_key(EVP_EC_gen("P-256"), "site");
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    uint8_t sig[KH_SIGNATURE_MAX];
    size_t len = 0;

    (void)state;
    for (size_t size = KH_MESSAGE_MAX; size <= sizeof(message); size++) {
        for (size_t step = 1000; step < 40000; step += 20000) {
            EVP_MD_CTX_reset(ctx);
            assert_int_equal(EVP_DigestSignInit_ex(ctx, NULL, "SHA256", libctx, NULL, remote, NULL), 1);
            for (size_t at = 0; at < size; at += step) {
                assert_int_equal(EVP_DigestSignUpdate(ctx, message + at, size - at < step ? size - at : step), 1);
            }
            len = sizeof(sig);
            assert_int_equal(EVP_DigestSignFinal(ctx, sig, &len), 1);
            assert_int_equal(host.last.flags, size > KH_MESSAGE_MAX ? KH_SIGN_PREHASHED : 0);
            EVP_MD_CTX_reset(ctx);
            assert_int_equal(EVP_DigestVerifyInit_ex(ctx, NULL, "SHA256", NULL, NULL, host.local, NULL), 1);
            assert_int_equal(EVP_DigestVerify(ctx, sig, len, message, size), 1);
        }
    }
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(remote);
}

static void requests_of_certificates(void **state)
{
    EVP_PKEY *remote = remote_key(EVP_RSA_gen(2048), "site");
    X509_REQ *req = X509_REQ_new_ex(libctx, NULL);
    EVP_MD *md = EVP_MD_fetch(libctx, "SHA256", NULL);

    (void)state;
    assert_int_equal(X509_REQ_set_pubkey(req, remote), 1);
    assert_true(X509_REQ_sign(req, remote, md) > 0);
    assert_int_equal(X509_REQ_verify(req, host.local), 1);
    EVP_MD_free(md);
    X509_REQ_free(req);
    EVP_PKEY_free(remote);
}

static void what_is_refused(void **state)
{
    EVP_PKEY *remote = remote_key(EVP_RSA_gen(2048), "site");
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *pctx = NULL;
    uint8_t sig[KH_SIGNATURE_MAX];
    const char *says = NULL;
    size_t len = sizeof(sig);

    (void)state;
    assert_int_not_equal(EVP_DigestSignInit_ex(ctx, NULL, "SHA1", libctx, NULL, remote, NULL), 1);
    EVP_MD_CTX_reset(ctx);
    ERR_clear_error();
    assert_int_not_equal(EVP_DigestSignInit_ex(ctx, NULL, "MD5-SHA1", libctx, NULL, remote, NULL), 1);
    assert_true(ERR_peek_error_all(NULL, NULL, NULL, &says, NULL) != 0);
    assert_non_null(strstr(says, "digest MD5-SHA1: only SHA-256"));
    assert_non_null(strstr(says, "TLS 1.0 and 1.1"));
    /* a salt that the agent would not make is an error, not another signature */
    EVP_MD_CTX_reset(ctx);
    assert_int_equal(EVP_DigestSignInit_ex(ctx, &pctx, "SHA256", libctx, NULL, remote, NULL), 1);
    assert_true(EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0);
    assert_true(EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, 20) > 0);
    assert_int_not_equal(EVP_DigestSign(ctx, sig, &len, (const uint8_t *)"x", 1), 1);
    assert_int_equal(host.calls, 0);
    /* the agent's reason is in the error queue */
    ERR_clear_error();
    EVP_MD_CTX_reset(ctx);
    host.fail = KH_E_USAGE;
    assert_int_equal(EVP_DigestSignInit_ex(ctx, &pctx, "SHA256", libctx, NULL, remote, NULL), 1);
    len = sizeof(sig);
    assert_int_not_equal(EVP_DigestSign(ctx, sig, &len, (const uint8_t *)"x", 1), 1);
    assert_int_equal(ERR_GET_REASON(ERR_peek_error()), KH_E_USAGE);
    ERR_clear_error();
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(remote);
}

static void no_private_part_comes_out(void **state)
{
    EVP_PKEY *remote = remote_key(EVP_EC_gen("P-256"), "site");
    BIGNUM *secret = NULL;
    OSSL_PARAM *params = NULL;
    BIO *out = BIO_new(BIO_s_mem());

    (void)state;
    assert_int_equal(EVP_PKEY_get_bn_param(remote, OSSL_PKEY_PARAM_PRIV_KEY, &secret), 0);
    assert_int_equal(EVP_PKEY_todata(remote, EVP_PKEY_KEYPAIR, &params), 0);
    assert_int_equal(PEM_write_bio_PrivateKey(out, remote, NULL, NULL, 0, NULL, NULL), 0);
    ERR_clear_error();
    assert_int_equal(EVP_PKEY_todata(remote, EVP_PKEY_PUBLIC_KEY, &params), 1);
    OSSL_PARAM_free(params);
    assert_int_equal(PEM_write_bio_PUBKEY(out, remote), 1);
    assert_int_equal(EVP_PKEY_eq(host.local, remote), 1); /* how libssl compares key and certificate */
    BIO_free(out);
    EVP_PKEY_free(remote);
    ERR_clear_error();
}

static void tls_key_exchange(void **state)
{
    EVP_PKEY *remote = remote_key(EVP_RSA_gen(2048), "site");
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(libctx, remote, NULL);
    unsigned version = 0x0303;
    OSSL_PARAM params[2] = {OSSL_PARAM_uint(OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION, &version), OSSL_PARAM_END};
    uint8_t secret[TLS_SECRET_LEN];
    uint8_t cipher[256] = {1};
    size_t len = sizeof(secret);

    (void)state;
    assert_int_equal(EVP_PKEY_decrypt_init(ctx), 1);
    assert_true(EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_WITH_TLS_PADDING) > 0);
    assert_int_not_equal(EVP_PKEY_decrypt(ctx, secret, &len, cipher, sizeof(cipher)), 1); /* which version? */
    assert_int_equal(host.calls, 0);
    assert_int_equal(EVP_PKEY_CTX_set_params(ctx, params), 1);
    len = sizeof(secret);
    assert_int_equal(EVP_PKEY_decrypt(ctx, secret, &len, cipher, sizeof(cipher)), 1);
    assert_int_equal(len, TLS_SECRET_LEN);
    assert_int_equal(host.last.op, KH_OP_TLS_RSA_DECRYPT);
    assert_int_equal(host.last.arg, 0x0303);
    assert_int_equal(secret[47], 0x5a);
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(remote);
    ERR_clear_error();
}

static void decryption(void **state)
{
    static const struct {
        int padding;
        const char *digest;
        kh_padding wire;
    } cases[] = {
        {RSA_PKCS1_PADDING, NULL, KH_PADDING_PKCS1},
        {RSA_NO_PADDING, NULL, KH_PADDING_RAW},
        {RSA_PKCS1_OAEP_PADDING, NULL, KH_PADDING_OAEP_SHA1},
        {RSA_PKCS1_OAEP_PADDING, "SHA256", KH_PADDING_OAEP_SHA256},
        {RSA_PKCS1_OAEP_PADDING, "SHA512", KH_PADDING_OAEP_SHA512},
    };
    EVP_PKEY *remote = remote_key(EVP_RSA_gen(2048), "site");
    uint8_t plain[256];
    uint8_t cipher[256] = {1};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(libctx, remote, NULL);
        size_t len = sizeof(plain);

        assert_int_equal(EVP_PKEY_decrypt_init(ctx), 1);
        assert_true(EVP_PKEY_CTX_set_rsa_padding(ctx, cases[i].padding) > 0);
        if (cases[i].digest != NULL) {
            assert_true(EVP_PKEY_CTX_set_rsa_oaep_md_name(ctx, cases[i].digest, NULL) > 0);
        }
        assert_int_equal(EVP_PKEY_decrypt(ctx, plain, &len, cipher, sizeof(cipher)), 1);
        assert_int_equal(len, 5);
        assert_int_equal(host.last.op, KH_OP_DECRYPT);
        assert_int_equal(host.last.arg, cases[i].wire);
        EVP_PKEY_CTX_free(ctx);
    }
    EVP_PKEY_free(remote);
}

/* What is no reference is nobody's error of ours, and no other key is taken for one. */
static void decoders_leave_others_alone(void **state)
{
    char pem[2 * KH_SPKI_MAX];
    EVP_PKEY *local = EVP_EC_gen("P-256");
    EVP_PKEY *read = NULL;
    BIO *bio = BIO_new(BIO_s_mem());

    (void)state;
    assert_int_equal(PEM_write_bio_PrivateKey(bio, local, NULL, NULL, 0, NULL, NULL), 1);
    read = PEM_read_bio_PrivateKey_ex(bio, NULL, NULL, NULL, libctx, NULL);
    assert_non_null(read);
    assert_string_equal(OSSL_PROVIDER_get0_name(EVP_PKEY_get0_provider(read)), "default");
    EVP_PKEY_free(read);
    BIO_free(bio);
    reference_of(local, "site", pem, sizeof(pem));
    for (char *at = strchr(pem, '\n') + 1; *at != '-'; at++) { /* each letter of the body changed: no crash, no leak */
        const char old = *at;

        if (old != '\n') {
            *at = old == 'A' ? 'B' : 'A';
            EVP_PKEY_free(read_pem(pem));
            ERR_clear_error();
            *at = old;
        }
    }
    for (size_t len = 0; len < strlen(pem); len++) {
        BIO *cut = BIO_new_mem_buf(pem, (int)len);

        EVP_PKEY_free(PEM_read_bio_PrivateKey_ex(cut, NULL, NULL, NULL, libctx, NULL));
        BIO_free(cut);
        ERR_clear_error();
    }
    EVP_PKEY_free(local);
}

static int forget(void **state)
{
    (void)state;
    EVP_PKEY_free(host.local);
    memset(&host, 0, sizeof(host));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(rsa_signs, forget),
        cmocka_unit_test_teardown(ec_signs, forget),
        cmocka_unit_test_teardown(ed25519_signs, forget),
        cmocka_unit_test_teardown(long_messages_are_hashed_here, forget),
        cmocka_unit_test_teardown(requests_of_certificates, forget),
        cmocka_unit_test_teardown(what_is_refused, forget),
        cmocka_unit_test_teardown(no_private_part_comes_out, forget),
        cmocka_unit_test_teardown(tls_key_exchange, forget),
        cmocka_unit_test_teardown(decryption, forget),
        cmocka_unit_test_teardown(decoders_leave_others_alone, forget),
    };

    return cmocka_run_group_tests(tests, load_provider, unload);
}

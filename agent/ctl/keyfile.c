/* SPDX-License-Identifier: Apache-2.0 */
/* Private keys and certificates from the files that people have. See keyfile.h. */
#include "keyfile.h"

#include <keyhold/client.h>
#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/x509.h>
#include <string.h>

/* One load: the passphrase is asked for when the first encrypted thing is met, and used for all. */
typedef struct load {
    const uint8_t *data;
    size_t len;
    const char *name;
    keyfile_ask_fn ask;
    void *ask_ctx;
    ctl_secret passphrase;
    bool asked;
    ctl_error *error;
} load;

static kh_result need_passphrase(load *l)
{
    if (l->asked) {
        return l->passphrase.data != NULL ? KH_OK : KH_E_PASSPHRASE;
    }
    l->asked = true;
    if (l->ask == NULL) {
        return ctl_fail(l->error, KH_E_PASSPHRASE,
                        "%s is encrypted; give its passphrase with --passphrase-file", l->name);
    }
    return l->ask(l->ask_ctx, &l->passphrase, l->error);
}

static int pem_passphrase(char *buf, int size, int writing, void *ctx)
{
    load *l = ctx;

    (void)writing;
    if (need_passphrase(l) != KH_OK || size < 0 || l->passphrase.len > (size_t)size) {
        return -1;
    }
    memcpy(buf, l->passphrase.data, l->passphrase.len);
    return (int)l->passphrase.len;
}

static kh_result wrong_passphrase(load *l)
{
    if (l->error->text[0] != '\0') {
        return l->error->result; /* asking already failed, with words of its own */
    }
    return ctl_fail(l->error, KH_E_PASSPHRASE,
                    "the passphrase of %s is wrong; give the right one with --passphrase-file", l->name);
}

/*
 * Whether OpenSSL's queue says that an algorithm of the file is not there: RC2-40 of old PKCS#12 files, above
 * all. Reasons are numbers of their library's; and what a wrong passphrase made of the file, when its padding
 * is right by chance, is "unsupported" too, to the decoder.
 */
static bool is_unsupported_algorithm(void)
{
    unsigned long code = 0;
    bool found = false;

    while ((code = ERR_get_error()) != 0) {
        int reason = ERR_GET_REASON(code);

        found = found || (ERR_GET_LIB(code) == ERR_LIB_EVP &&
                          (reason == ERR_R_UNSUPPORTED || reason == EVP_R_UNSUPPORTED_ALGORITHM ||
                           reason == EVP_R_UNKNOWN_PBE_ALGORITHM));
    }
    return found;
}

static kh_result unsupported_encryption(load *l)
{
    return ctl_fail(
        l->error, KH_E_UNSUPPORTED,
        "%s is encrypted with an algorithm that OpenSSL no longer offers; convert it with \"openssl pkcs12 "
        "-legacy\" or \"openssl pkcs8\"",
        l->name);
}

static kh_result no_key(load *l)
{
    return ctl_fail(l->error, KH_E_MALFORMED,
                    "%s holds no private key that can be read (PEM, DER, PKCS#8 or PKCS#12); is it "
                    "the right file?",
                    l->name);
}

static bool has_pem(const load *l)
{
    return memmem(l->data, l->len, "-----BEGIN ", 11) != NULL;
}

static kh_result load_pem(load *l, EVP_PKEY **pkey)
{
    BIO *bio = BIO_new_mem_buf(l->data, (int)l->len);

    if (bio == NULL) {
        return ctl_fail(l->error, KH_E_MEMORY, "cannot read %s: out of memory", l->name);
    }
    *pkey = PEM_read_bio_PrivateKey(bio, NULL, pem_passphrase, l);
    BIO_free(bio);
    if (*pkey != NULL) {
        return KH_OK;
    }
    if (!l->asked) {
        return no_key(l);
    }
    return l->passphrase.data != NULL && is_unsupported_algorithm() ? unsupported_encryption(l)
                                                                    : wrong_passphrase(l);
}

static kh_result load_pkcs12(load *l, PKCS12 *p12, EVP_PKEY **pkey)
{
    kh_result result = KH_OK;
    X509 *cert = NULL;
    const char *passphrase = NULL;
    char empty[1] = "";

    /* Files without a passphrase come in two forms: none at all, and an empty one. */
    if (PKCS12_verify_mac(p12, NULL, 0)) {
        passphrase = NULL;
    } else if (PKCS12_verify_mac(p12, empty, 0)) {
        passphrase = empty;
    } else {
        result = need_passphrase(l);
        if (result != KH_OK) {
            return wrong_passphrase(l);
        }
        passphrase = (const char *)l->passphrase.data;
        ERR_clear_error();
        if (!PKCS12_verify_mac(p12, passphrase, -1)) {
            return is_unsupported_algorithm() ? unsupported_encryption(l) : wrong_passphrase(l);
        }
    }
    ERR_clear_error();
    if (!PKCS12_parse(p12, passphrase, pkey, &cert, NULL)) {
        result = is_unsupported_algorithm() ? unsupported_encryption(l) : no_key(l);
    } else if (*pkey == NULL) {
        result = no_key(l);
    }
    X509_free(cert);
    return result;
}

static kh_result load_encrypted_pkcs8(load *l, X509_SIG *sealed, EVP_PKEY **pkey)
{
    PKCS8_PRIV_KEY_INFO *info = NULL;

    if (need_passphrase(l) != KH_OK) {
        return wrong_passphrase(l);
    }
    ERR_clear_error();
    info = PKCS8_decrypt(sealed, (const char *)l->passphrase.data, (int)l->passphrase.len);
    if (info == NULL) {
        return is_unsupported_algorithm() ? unsupported_encryption(l) : wrong_passphrase(l);
    }
    *pkey = EVP_PKCS82PKEY(info);
    PKCS8_PRIV_KEY_INFO_free(info);
    return *pkey != NULL ? KH_OK : no_key(l);
}

/* DER says nothing of what it is: the most specific structure is tried first. */
static kh_result load_der(load *l, EVP_PKEY **pkey)
{
    kh_result result = KH_OK;
    const uint8_t *at = l->data;
    PKCS12 *p12 = d2i_PKCS12(NULL, &at, (long)l->len);
    X509_SIG *sealed = NULL;

    if (p12 != NULL) {
        result = load_pkcs12(l, p12, pkey);
        goto done;
    }
    at = l->data;
    sealed = d2i_X509_SIG(NULL, &at, (long)l->len);
    if (sealed != NULL) {
        result = load_encrypted_pkcs8(l, sealed, pkey);
        goto done;
    }
    at = l->data;
    *pkey = d2i_AutoPrivateKey(NULL, &at, (long)l->len);
    result = *pkey != NULL ? KH_OK : no_key(l);
done:
    PKCS12_free(p12);
    X509_SIG_free(sealed);
    return result;
}

/* Of a key that Keyhold does not take: why, and what to use instead. */
static kh_result refuse_type(load *l, const EVP_PKEY *pkey)
{
    char group[64] = "";
    const char *type = EVP_PKEY_get0_type_name(pkey);

    if (EVP_PKEY_is_a(pkey, "EC")) {
        (void)EVP_PKEY_get_utf8_string_param(pkey, OSSL_PKEY_PARAM_GROUP_NAME, group, sizeof(group), NULL);
    }
    return ctl_fail(l->error, KH_E_UNSUPPORTED,
                    "%s is a key of a kind that is not supported (%s%s%s); use rsa2048 to rsa4096, p256, "
                    "p384, p521 or ed25519",
                    l->name, type != NULL ? type : "unknown", group[0] != '\0' ? " " : "", group);
}

static kh_result check_key(load *l, keyfile *key)
{
    EVP_PKEY_CTX *ctx = NULL;
    kh_result result = KH_OK;
    int bits = EVP_PKEY_get_bits(key->pkey);

    if (EVP_PKEY_is_a(key->pkey, "RSA") && bits < 2048) {
        return ctl_fail(l->error, KH_E_WEAK,
                        "the key in %s is weak: RSA with %d bits; make one with at least 2048", l->name,
                        bits);
    }
    if (EVP_PKEY_get_security_bits(key->pkey) < 112) {
        return ctl_fail(l->error, KH_E_WEAK,
                        "the key in %s is weak: %d bits of security; make one with at least 112 (rsa2048, "
                        "p256)",
                        l->name, EVP_PKEY_get_security_bits(key->pkey));
    }
    if (kh_key_id(key->pkey, key->id, NULL, NULL, &key->type, &key->bits) != KH_OK) {
        return refuse_type(l, key->pkey);
    }
    /* A key that was cut, or put together from two, would make signatures that give it away. */
    ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);
    if (ctx == NULL) {
        return ctl_fail(l->error, KH_E_MEMORY, "cannot check %s: out of memory", l->name);
    }
    if (key->type != KH_KEY_ED25519 && EVP_PKEY_pairwise_check(ctx) != 1) {
        result = ctl_fail(l->error, KH_E_DAMAGED,
                          "the key in %s is damaged: its private part does not fit its public part; use "
                          "another copy",
                          l->name);
    }
    EVP_PKEY_CTX_free(ctx);
    return result;
}

static kh_result to_pkcs8(load *l, keyfile *key)
{
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(key->pkey);
    int len = info != NULL ? i2d_PKCS8_PRIV_KEY_INFO(info, NULL) : -1;
    kh_result result = KH_E_CRYPTO;
    uint8_t *at = NULL;

    if (len > 0) {
        result = ctl_secret_new((size_t)len, &key->pkcs8);
    }
    if (result == KH_OK) {
        at = key->pkcs8.data;
        key->pkcs8.len = (size_t)i2d_PKCS8_PRIV_KEY_INFO(info, &at);
    } else {
        ctl_fail(l->error, result, "cannot encode the key in %s: %s", l->name, kh_result_text(result));
    }
    PKCS8_PRIV_KEY_INFO_free(info);
    return result;
}

kh_result keyfile_load(const uint8_t *data, size_t len, const char *name, keyfile_ask_fn ask, void *ask_ctx,
                       keyfile *key, ctl_error *error)
{
    load l = {.data = data, .len = len, .name = name, .ask = ask, .ask_ctx = ask_ctx, .error = error};
    kh_result result = KH_OK;

    memset(key, 0, sizeof(*key));
    if (len == 0 || len > KEYFILE_MAX) {
        result = no_key(&l);
        goto done;
    }
    result = has_pem(&l) ? load_pem(&l, &key->pkey) : load_der(&l, &key->pkey);
    if (result == KH_OK) {
        result = check_key(&l, key);
    }
    if (result == KH_OK) {
        result = to_pkcs8(&l, key);
    }
done:
    ERR_clear_error();
    ctl_secret_free(&l.passphrase);
    if (result != KH_OK) {
        keyfile_free(key);
    }
    return result;
}

void keyfile_free(keyfile *key)
{
    ctl_secret_free(&key->pkcs8);
    EVP_PKEY_free(key->pkey);
    memset(key, 0, sizeof(*key));
}

kh_result keyfile_load_certificate(const char *path, X509 **cert, ctl_error *error)
{
    ctl_secret file = {0};
    BIO *bio = NULL;
    const uint8_t *at = NULL;
    /* Read like a secret: people give the wrong file, and then it is the key. */
    kh_result result = ctl_secret_read_file(path, KEYFILE_MAX, &file, error);

    *cert = NULL;
    if (result != KH_OK) {
        goto done;
    }
    bio = BIO_new_mem_buf(file.data, (int)file.len);
    if (bio != NULL) {
        *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    }
    if (*cert == NULL) {
        at = file.data;
        *cert = d2i_X509(NULL, &at, (long)file.len);
    }
    if (*cert == NULL) {
        result =
            ctl_fail(error, KH_E_MALFORMED,
                     "%s holds no certificate that can be read (PEM or DER); is it the right file?", path);
    }
done:
    ERR_clear_error();
    BIO_free(bio);
    ctl_secret_free(&file);
    return result;
}

kh_result keyfile_certificate_id(const X509 *cert, uint8_t id[KH_KEY_ID_LEN], kh_key_type *type,
                                 unsigned *bits)
{
    const EVP_PKEY *pkey = X509_get0_pubkey(cert);
    kh_result result = pkey != NULL ? kh_key_id(pkey, id, NULL, NULL, type, bits) : KH_E_UNSUPPORTED;

    ERR_clear_error();
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two decoders make a PEM key reference a private key for any OpenSSL 3 program: the first takes the PEM armour off,
 * the second turns the DER reference into one of our keys.
 */
#include "core.h"

#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/core_object.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/pem.h>
#include <string.h>

static void *dec_newctx(void *provctx)
{
    return provctx; /* no state of their own */
}

static void dec_freectx(void *ctx)
{
    (void)ctx;
}

/* References are asked for where a private key is, or where anything will do. */
static int dec_does_selection(void *provctx, int selection)
{
    (void)provctx;
    return selection == 0 || (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0;
}

/* PEM to DER. One block is read; one with another label, or none, is no error: somebody else may know it. */
static int dec_pem(void *ctx, OSSL_CORE_BIO *core_bio, int selection, OSSL_CALLBACK *data_cb, void *data_arg,
                   OSSL_PASSPHRASE_CALLBACK *pw_cb, void *pw_arg)
{
    kh_prov *prov = ctx;
    kh_prov_key *key = NULL;
    BIO *bio = NULL;
    char *label = NULL;
    char *header = NULL;
    unsigned char *der = NULL;
    long len = 0;
    int ok = 1;
    OSSL_PARAM params[4];

    (void)pw_cb, (void)pw_arg;
    if (!dec_does_selection(prov, selection)) {
        return 1;
    }
    bio = BIO_new_from_core_bio(prov->libctx, core_bio);
    if (bio == NULL) {
        return 0;
    }
    ERR_set_mark();
    if (PEM_read_bio(bio, &label, &header, &der, &len) == 1 && strcmp(label, KH_REFERENCE_LABEL) == 0) {
        key = kh_prov_key_new(prov, der, (size_t)len);
    }
    ERR_pop_to_mark();
    if (key != NULL) {
        params[0] = OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_TYPE,
                                                     (char *)(uintptr_t)kh_prov_type_name(key->type), 0);
        params[1] = OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_STRUCTURE,
                                                     (char *)(uintptr_t)KH_PROV_STRUCTURE, 0);
        params[2] = OSSL_PARAM_construct_octet_string(OSSL_OBJECT_PARAM_DATA, der, (size_t)len);
        params[3] = OSSL_PARAM_construct_end();
        ok = data_cb(params, data_arg);
    }
    kh_prov_key_free(key);
    OPENSSL_free(label);
    OPENSSL_free(header);
    OPENSSL_free(der);
    BIO_free(bio);
    return ok;
}

static int dec_der(kh_prov *prov, OSSL_CORE_BIO *core_bio, const char *type, OSSL_CALLBACK *data_cb, void *data_arg)
{
    uint8_t der[KH_PROV_REFERENCE_MAX + 1];
    size_t len = 0;
    size_t got = 0;
    kh_prov_key *key = NULL;
    int object_type = OSSL_OBJECT_PKEY;
    int ok = 1;
    OSSL_PARAM params[4];
    kh_provider_key_info info;
    BIO *bio = BIO_new_from_core_bio(prov->libctx, core_bio);

    if (bio == NULL) {
        return 0;
    }
    while (len < sizeof(der) && BIO_read_ex(bio, der + len, sizeof(der) - len, &got) && got > 0) {
        len += got;
    }
    BIO_free(bio);
    if (len > KH_PROV_REFERENCE_MAX) {
        return 1;
    }
    ERR_set_mark();
    key = kh_prov_key_new(prov, der, len);
    ERR_pop_to_mark();
    if (key == NULL || strcmp(kh_prov_type_name(key->type), type) != 0) {
        kh_prov_key_free(key);
        return 1;
    }
    if (kh_prov_host->key_loaded != NULL) {
        info = (kh_provider_key_info){.name = key->name, .id = key->id, .type = key->type, .bits = key->bits};
        kh_prov_host->key_loaded(kh_prov_host->ctx, &info);
    }
    params[0] = OSSL_PARAM_construct_int(OSSL_OBJECT_PARAM_TYPE, &object_type);
    params[1] = OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_TYPE, (char *)(uintptr_t)type, 0);
    params[2] = OSSL_PARAM_construct_octet_string(OSSL_OBJECT_PARAM_REFERENCE, &key, sizeof(key));
    params[3] = OSSL_PARAM_construct_end();
    ok = data_cb(params, data_arg);
    kh_prov_key_free(key); /* NULL when km_load took it */
    return ok;
}

#define DEC_DER(suffix, type)                                                                               \
    static int dec_der_##suffix(void *ctx, OSSL_CORE_BIO *in, int selection, OSSL_CALLBACK *data_cb,        \
                                void *data_arg, OSSL_PASSPHRASE_CALLBACK *pw_cb, void *pw_arg)              \
    {                                                                                                       \
        (void)selection, (void)pw_cb, (void)pw_arg;                                                         \
        return dec_der(ctx, in, type, data_cb, data_arg);                                                   \
    }                                                                                                       \
    static const OSSL_DISPATCH dec_dispatch_##suffix[] = {                                                  \
        {OSSL_FUNC_DECODER_NEWCTX, (void (*)(void))dec_newctx},                                             \
        {OSSL_FUNC_DECODER_FREECTX, (void (*)(void))dec_freectx},                                           \
        {OSSL_FUNC_DECODER_DOES_SELECTION, (void (*)(void))dec_does_selection},                             \
        {OSSL_FUNC_DECODER_DECODE, (void (*)(void))dec_der_##suffix},                                       \
        {0, NULL},                                                                                          \
    }

DEC_DER(rsa, "RSA");
DEC_DER(ec, "EC");
DEC_DER(ed25519, "ED25519");

static const OSSL_DISPATCH dec_dispatch_pem[] = {
    {OSSL_FUNC_DECODER_NEWCTX, (void (*)(void))dec_newctx},
    {OSSL_FUNC_DECODER_FREECTX, (void (*)(void))dec_freectx},
    {OSSL_FUNC_DECODER_DOES_SELECTION, (void (*)(void))dec_does_selection},
    {OSSL_FUNC_DECODER_DECODE, (void (*)(void))dec_pem},
    {0, NULL},
};

#define DEC_FROM_DER "provider=" KH_PROV_NAME ",input=der,structure=" KH_PROV_STRUCTURE

const OSSL_ALGORITHM kh_prov_decoders[] = {
    {"DER", "provider=" KH_PROV_NAME ",input=pem", dec_dispatch_pem, "Keyhold key reference in PEM"},
    {"RSA:rsaEncryption:1.2.840.113549.1.1.1", DEC_FROM_DER, dec_dispatch_rsa, "Keyhold key reference"},
    {"EC:id-ecPublicKey:1.2.840.10045.2.1", DEC_FROM_DER, dec_dispatch_ec, "Keyhold key reference"},
    {"ED25519:1.3.101.112", DEC_FROM_DER, dec_dispatch_ed25519, "Keyhold key reference"},
    {NULL, NULL, NULL, NULL},
};

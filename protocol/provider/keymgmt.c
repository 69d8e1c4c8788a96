/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Key management: keys come from references alone, give their public half to whoever asks, and never a private one.
 */
#include "core.h"

#include <openssl/core_names.h>
#include <openssl/params.h>

static void *km_load(const void *reference, size_t reference_sz)
{
    kh_prov_key *key = NULL;

    if (reference_sz != sizeof(key)) {
        return NULL;
    }
    key = *(kh_prov_key *const *)reference;
    *(kh_prov_key **)(uintptr_t)reference = NULL; /* it is OpenSSL's from here on */
    return key;
}

static void km_free(void *keydata)
{
    kh_prov_key_free(keydata);
}

/* Both halves are "there": the private one can be used, if not seen. */
static int km_has(const void *keydata, int selection)
{
    (void)selection;
    return keydata != NULL;
}

static const OSSL_PARAM *km_gettable_rsa(void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_int(OSSL_PKEY_PARAM_BITS, NULL),
        OSSL_PARAM_int(OSSL_PKEY_PARAM_SECURITY_BITS, NULL),
        OSSL_PARAM_int(OSSL_PKEY_PARAM_MAX_SIZE, NULL),
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_DEFAULT_DIGEST, NULL, 0),
        OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_N, NULL, 0),
        OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_E, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)provctx;
    return params;
}

static const OSSL_PARAM *km_gettable_ec(void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_int(OSSL_PKEY_PARAM_BITS, NULL),
        OSSL_PARAM_int(OSSL_PKEY_PARAM_SECURITY_BITS, NULL),
        OSSL_PARAM_int(OSSL_PKEY_PARAM_MAX_SIZE, NULL),
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_DEFAULT_DIGEST, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, NULL, 0),
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_EC_ENCODING, NULL, 0),
        OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
        OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_ENCODED_PUBLIC_KEY, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)provctx;
    return params;
}

static const OSSL_PARAM *km_gettable_ed25519(void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_int(OSSL_PKEY_PARAM_BITS, NULL),
        OSSL_PARAM_int(OSSL_PKEY_PARAM_SECURITY_BITS, NULL),
        OSSL_PARAM_int(OSSL_PKEY_PARAM_MAX_SIZE, NULL),
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_MANDATORY_DIGEST, NULL, 0),
        OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)provctx;
    return params;
}

static int km_get_params(void *keydata, OSSL_PARAM params[])
{
    const kh_prov_key *key = keydata;
    OSSL_PARAM *p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_MANDATORY_DIGEST);

    if (!EVP_PKEY_get_params(key->pub, params)) {
        return 0;
    }
    /* Ed25519 hashes itself: tools must not choose a digest for it. */
    return p == NULL || key->type != KH_KEY_ED25519 || OSSL_PARAM_set_utf8_string(p, "");
}

static int km_export(void *keydata, int selection, OSSL_CALLBACK *callback, void *arg)
{
    const kh_prov_key *key = keydata;
    OSSL_PARAM *params = NULL;
    int ok = 0;

    if ((selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0) {
        return 0; /* what makes OpenSSL sign here and not elsewhere */
    }
    if (!EVP_PKEY_todata(key->pub, selection, &params)) {
        return 0;
    }
    ok = callback(params, arg);
    OSSL_PARAM_free(params);
    return ok;
}

static const OSSL_PARAM *km_export_types_rsa(int selection)
{
    static const OSSL_PARAM types[] = {
        OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_N, NULL, 0),
        OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_E, NULL, 0),
        OSSL_PARAM_END,
    };

    return (selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY) != 0 ? types : NULL;
}

static const OSSL_PARAM *km_export_types_ec(int selection)
{
    static const OSSL_PARAM types[] = {
        OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, NULL, 0),
        OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
        OSSL_PARAM_END,
    };

    return (selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY) != 0 ? types : NULL;
}

static const OSSL_PARAM *km_export_types_ed25519(int selection)
{
    static const OSSL_PARAM types[] = {
        OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
        OSSL_PARAM_END,
    };

    return (selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY) != 0 ? types : NULL;
}

static const char *km_ec_operation(int operation_id)
{
    return operation_id == OSSL_OP_SIGNATURE ? "ECDSA" : NULL;
}

/* No new, no gen, no import, and so no match: a key is loaded from a reference or not at all. */
#define KM_DISPATCH(suffix, ...)                                                                            \
    static const OSSL_DISPATCH km_dispatch_##suffix[] = {                                                   \
        {OSSL_FUNC_KEYMGMT_LOAD, (void (*)(void))km_load},                                                  \
        {OSSL_FUNC_KEYMGMT_FREE, (void (*)(void))km_free},                                                  \
        {OSSL_FUNC_KEYMGMT_HAS, (void (*)(void))km_has},                                                    \
        {OSSL_FUNC_KEYMGMT_GET_PARAMS, (void (*)(void))km_get_params},                                      \
        {OSSL_FUNC_KEYMGMT_GETTABLE_PARAMS, (void (*)(void))km_gettable_##suffix},                          \
        {OSSL_FUNC_KEYMGMT_EXPORT, (void (*)(void))km_export},                                              \
        {OSSL_FUNC_KEYMGMT_EXPORT_TYPES, (void (*)(void))km_export_types_##suffix},                         \
        __VA_ARGS__{0, NULL},                                                                               \
    }

#define KM_NOTHING
KM_DISPATCH(rsa, KM_NOTHING);
KM_DISPATCH(ec, {OSSL_FUNC_KEYMGMT_QUERY_OPERATION_NAME, (void (*)(void))km_ec_operation}, );
KM_DISPATCH(ed25519, KM_NOTHING);

const OSSL_ALGORITHM kh_prov_keymgmts[] = {
    {"RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=" KH_PROV_NAME, km_dispatch_rsa, "Keyhold RSA key"},
    {"EC:id-ecPublicKey:1.2.840.10045.2.1", "provider=" KH_PROV_NAME, km_dispatch_ec, "Keyhold EC key"},
    {"ED25519:1.3.101.112", "provider=" KH_PROV_NAME, km_dispatch_ed25519, "Keyhold Ed25519 key"},
    {NULL, NULL, NULL, NULL},
};

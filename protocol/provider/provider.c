/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provider's entry point: finds OpenSSL's upcalls, makes the private library context, and hands out the tables of
 * algorithms.
 */
#include "core.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <stdarg.h>
#include <string.h>

static kh_result no_host(void *ctx, const kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap, size_t *len)
{
    (void)ctx, (void)key, (void)req, (void)out, (void)cap;
    *len = 0;
    return KH_E_UNAVAILABLE;
}

static kh_provider_host host = {.perform = no_host};
const kh_provider_host *kh_prov_host = &host;

void kh_provider_set_host(const kh_provider_host *new_host)
{
    host = *new_host;
}

void kh_prov_raise(const kh_prov *prov, kh_result why, const char *func, const char *fmt, ...)
{
    va_list args;

    if (prov->new_error == NULL || prov->vset_error == NULL) {
        return;
    }
    prov->new_error(prov->handle);
    if (prov->set_error_debug != NULL) {
        prov->set_error_debug(prov->handle, "keyhold", 0, func);
    }
    va_start(args, fmt);
    prov->vset_error(prov->handle, (uint32_t)why, fmt, args);
    va_end(args);
}

/* The reasons of the errors above: the table of results. */
static const OSSL_ITEM *get_reason_strings(void *provctx)
{
#define KH_X(constant, number, name, retryable, text) {number, (void *)(uintptr_t)text},
    static const OSSL_ITEM reasons[] = {KH_RESULTS(KH_X){0, NULL}};
#undef KH_X

    (void)provctx;
    return reasons + 1; /* without KH_OK, whose number ends such a table */
}

static const OSSL_PARAM *gettable_params(void *provctx)
{
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_DEFN(OSSL_PROV_PARAM_NAME, OSSL_PARAM_UTF8_PTR, NULL, 0),
        OSSL_PARAM_DEFN(OSSL_PROV_PARAM_VERSION, OSSL_PARAM_UTF8_PTR, NULL, 0),
        OSSL_PARAM_DEFN(OSSL_PROV_PARAM_BUILDINFO, OSSL_PARAM_UTF8_PTR, NULL, 0),
        OSSL_PARAM_DEFN(OSSL_PROV_PARAM_STATUS, OSSL_PARAM_INTEGER, NULL, 0),
        OSSL_PARAM_END,
    };

    (void)provctx;
    return params;
}

static int get_params(void *provctx, OSSL_PARAM params[])
{
    OSSL_PARAM *p;

    (void)provctx;
    p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_NAME);
    if (p != NULL && !OSSL_PARAM_set_utf8_ptr(p, "Keyhold provider")) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_VERSION);
    if (p != NULL && !OSSL_PARAM_set_utf8_ptr(p, KH_VERSION)) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_BUILDINFO);
    if (p != NULL && !OSSL_PARAM_set_utf8_ptr(p, KH_VERSION)) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_STATUS);
    return p == NULL || OSSL_PARAM_set_int(p, 1);
}

static const OSSL_ALGORITHM *query_operation(void *provctx, int operation_id, int *no_cache)
{
    (void)provctx;
    *no_cache = 0;
    switch (operation_id) {
    case OSSL_OP_KEYMGMT:
        return kh_prov_keymgmts;
    case OSSL_OP_SIGNATURE:
        return kh_prov_signatures;
    case OSSL_OP_ASYM_CIPHER:
        return kh_prov_ciphers;
    case OSSL_OP_DECODER:
        return kh_prov_decoders;
    default:
        return NULL;
    }
}

static void teardown(void *provctx)
{
    kh_prov *prov = provctx;

    if (prov != NULL) {
        OSSL_LIB_CTX_free(prov->libctx);
        OPENSSL_free(prov);
    }
}

static const OSSL_DISPATCH dispatch[] = {
    {OSSL_FUNC_PROVIDER_TEARDOWN, (void (*)(void))teardown},
    {OSSL_FUNC_PROVIDER_GETTABLE_PARAMS, (void (*)(void))gettable_params},
    {OSSL_FUNC_PROVIDER_GET_PARAMS, (void (*)(void))get_params},
    {OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query_operation},
    {OSSL_FUNC_PROVIDER_GET_REASON_STRINGS, (void (*)(void))get_reason_strings},
    {0, NULL},
};

int kh_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                     void **provctx)
{
    kh_prov *prov = OPENSSL_zalloc(sizeof(*prov));

    if (prov == NULL) {
        return 0;
    }
    prov->handle = handle;
    prov->libctx = OSSL_LIB_CTX_new_from_dispatch(handle, in);
    if (prov->libctx == NULL) {
        OPENSSL_free(prov);
        return 0;
    }
    for (; in->function_id != 0; in++) {
        switch (in->function_id) {
        case OSSL_FUNC_CORE_NEW_ERROR:
            prov->new_error = OSSL_FUNC_core_new_error(in);
            break;
        case OSSL_FUNC_CORE_SET_ERROR_DEBUG:
            prov->set_error_debug = OSSL_FUNC_core_set_error_debug(in);
            break;
        case OSSL_FUNC_CORE_VSET_ERROR:
            prov->vset_error = OSSL_FUNC_core_vset_error(in);
            break;
        default:
            break;
        }
    }
    *provctx = prov;
    *out = dispatch;
    return 1;
}

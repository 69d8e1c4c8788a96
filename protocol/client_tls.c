/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a caller of an agent behind TCP needs of OpenSSL. All of it is in a library context of its own: inside the
 * provider keyhold.so the default one may find our own key management for the very keys that TLS is made with, and its
 * locks may be held.
 */
#include "tls/files.h"
#include "tls/stream.h"

#include <keyhold/client.h>

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static OSSL_LIB_CTX *libctx;
static pthread_once_t libctx_once = PTHREAD_ONCE_INIT;

static void make_libctx(void)
{
    libctx = OSSL_LIB_CTX_new();
}

static kh_result say(char *detail, size_t cap, const char *path, kh_result why)
{
    if (detail != NULL && cap > 0) {
        snprintf(detail, cap, "%s: %s", path, kh_tls_file_text(why));
    }
    return why;
}

typedef kh_result (*use_fn)(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem);

static kh_result use_key(SSL_CTX *ctx, OSSL_LIB_CTX *context, kh_bytes pem)
{
    EVP_PKEY *key = NULL;
    kh_result result = kh_tls_key_parse(pem, context, &key);

    if (result == KH_OK) {
        result = kh_tls_use_key(ctx, key);
    }
    EVP_PKEY_free(key);
    return result;
}

/* Reads each file and puts what is in it into ctx. */
static kh_result use_files(SSL_CTX *ctx, const kh_client_tls *tls, char *detail, size_t cap)
{
    const struct {
        const char *path, *what;
        use_fn use;
        bool is_key;
    } table[] = {
        {tls->ca_file, "the CA of the agents' certificates", kh_tls_use_ca, false},
        {tls->certificate_file, "our certificate", kh_tls_use_certificate, false},
        {tls->key_file, "the key of our certificate", use_key, true},
    };
    kh_result result = KH_OK;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]) && result == KH_OK; i++) {
        kh_tls_file file = {0};

        if (table[i].path == NULL) {
            if (detail != NULL && cap > 0) {
                snprintf(detail, cap, "%s is not given", table[i].what);
            }
            return KH_E_INVALID;
        }
        result = kh_tls_file_read(table[i].path, table[i].is_key, &file);
        if (result == KH_OK) {
            result = table[i].use(ctx, libctx, kh_tls_file_bytes(&file));
        }
        if (result != KH_OK) {
            say(detail, cap, table[i].path, result);
        }
        kh_tls_file_free(&file);
    }
    return result;
}

kh_result kh_client_tls_context(const kh_client_tls *tls, SSL_CTX **out, char *detail, size_t detail_cap)
{
    SSL_CTX *ctx = NULL;
    kh_result result = KH_E_MEMORY;

    *out = NULL;
    if (detail != NULL && detail_cap > 0) {
        detail[0] = '\0';
    }
    pthread_once(&libctx_once, make_libctx);
    if (libctx != NULL) {
        ctx = SSL_CTX_new_ex(libctx, NULL, TLS_client_method());
    }
    if (ctx != NULL) {
        result = kh_tls_common(ctx);
    }
    if (result == KH_OK && SSL_CTX_set_alpn_protos(ctx, (const uint8_t *)KH_TLS_ALPN, KH_TLS_ALPN_LEN) != 0) {
        result = KH_E_MEMORY;
    }
    if (result == KH_OK) {
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        result = use_files(ctx, tls, detail, detail_cap);
    }
    ERR_clear_error();
    if (result != KH_OK) {
        SSL_CTX_free(ctx);
        ctx = NULL;
    }
    *out = ctx;
    return result;
}

kh_result kh_client_tls_prepare(SSL *ssl, const char *server_name)
{
    uint8_t address[16];
    bool is_address = inet_pton(AF_INET, server_name, address) == 1 || inet_pton(AF_INET6, server_name, address) == 1;
    bool done = false;

    if (server_name[0] == '\0') { /* would switch the check off */
        return KH_E_INVALID;
    }
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    done = is_address ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), server_name) == 1
                      : SSL_set1_host(ssl, server_name) == 1 && SSL_set_tlsext_host_name(ssl, server_name) == 1;
    SSL_set_connect_state(ssl);
    ERR_clear_error();
    return done ? KH_OK : KH_E_INVALID;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's end of TLS. */
#include "tls.h"
#include "../protocol/tls/files.h"
#include "../protocol/tls/stream.h"
#include "config.h"
#include "san.h"
#include <arpa/inet.h>
#include <openssl/asn1.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SESSION_S 3600 /* how long a caller may resume: its certificate is not verified again meanwhile */
#define VERIFIED_LEN 8 /* bytes in a ticket: when that was */

struct kh_tls_server {
    SSL_CTX *ctx;
    uint8_t parts[SHA256_DIGEST_LENGTH]; /* of all of them */
    uint8_t trust[SHA256_DIGEST_LENGTH]; /* of ca and crl */
};

/* ---- Making one ---- */

static int choose_protocol(SSL *ssl, const uint8_t **chosen, uint8_t *chosen_len, const uint8_t *offered, unsigned len,
                           void *ctx)
{
    (void)ssl;
    (void)ctx;
    return SSL_select_next_proto((uint8_t **)(uintptr_t)chosen, chosen_len, (const uint8_t *)KH_TLS_ALPN,
                                 KH_TLS_ALPN_LEN, offered, len) == OPENSSL_NPN_NEGOTIATED
               ? SSL_TLSEXT_ERR_OK
               : SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* A caller that offers no protocol at all is none of ours; choose_protocol would not be asked. */
static int check_hello(SSL *ssl, int *alert, void *ctx)
{
    const uint8_t *extension = NULL;
    size_t len = 0;

    (void)ctx;
    if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &extension, &len) == 1) {
        return SSL_CLIENT_HELLO_SUCCESS;
    }
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    return SSL_CLIENT_HELLO_ERROR;
}

/*
 * With each connection OpenSSL gives out a ticket that is good for another SESSION_S. So that a caller that keeps resuming
 * is verified again nevertheless, each ticket tells of the handshake in which it was.
 */
static int note_verified(SSL *ssl, void *ctx)
{
    uint64_t now = (uint64_t)time(NULL);
    uint8_t bytes[VERIFIED_LEN];

    (void)ctx;
    if (SSL_session_reused(ssl) == 1) {
        return 1; /* the session has it from the ticket that was resumed */
    }
    memcpy(bytes, &now, sizeof bytes);
    return SSL_SESSION_set1_ticket_appdata(SSL_get_session(ssl), bytes, sizeof bytes);
}

/* What is too old is passed over: a full handshake follows. */
static SSL_TICKET_RETURN judge_ticket(SSL *ssl, SSL_SESSION *session, const unsigned char *key_name, size_t key_name_len,
                                      SSL_TICKET_STATUS status, void *ctx)
{
    uint64_t verified = 0, now = (uint64_t)time(NULL);
    void *bytes = NULL;
    size_t len = 0;

    (void)ssl;
    (void)key_name;
    (void)key_name_len;
    (void)ctx;
    if ((status != SSL_TICKET_SUCCESS && status != SSL_TICKET_SUCCESS_RENEW) ||
        SSL_SESSION_get0_ticket_appdata(session, &bytes, &len) != 1 || len != VERIFIED_LEN) {
        return SSL_TICKET_RETURN_IGNORE_RENEW;
    }
    memcpy(&verified, bytes, sizeof verified);
    return verified <= now && now - verified < SESSION_S ? SSL_TICKET_RETURN_USE_RENEW : SSL_TICKET_RETURN_IGNORE_RENEW;
}

static kh_result use_key(SSL_CTX *ctx, kh_bytes der)
{
    const uint8_t *at = der.data;
    EVP_PKEY *key = d2i_AutoPrivateKey(NULL, &at, (long)der.len);
    kh_result result = key != NULL ? kh_tls_use_key(ctx, key) : KH_E_MALFORMED;

    EVP_PKEY_free(key);
    return result;
}

static kh_result use_parts(SSL_CTX *ctx, const kh_tls_parts *parts, const char **part)
{
    kh_result result = KH_OK;

    *part = "certificate";
    result = kh_tls_use_certificate(ctx, NULL, parts->certificate);
    if (result == KH_OK) {
        *part = "certificate_key";
        result = use_key(ctx, parts->key);
    }
    if (result == KH_OK) {
        *part = "client_ca";
        result = kh_tls_use_ca(ctx, NULL, parts->ca);
    }
    if (result == KH_OK && parts->crl.data != NULL) {
        *part = "client_crl";
        result = kh_tls_use_crl(ctx, NULL, parts->crl);
    }
    return result;
}

static bool digest(const kh_bytes *parts, size_t count, uint8_t *out)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool done = ctx != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;

    for (size_t i = 0; i < count && done; i++) {
        done = EVP_DigestUpdate(ctx, &parts[i].len, sizeof parts[i].len) == 1 &&
               (parts[i].len == 0 || EVP_DigestUpdate(ctx, parts[i].data, parts[i].len) == 1);
    }
    done = done && EVP_DigestFinal_ex(ctx, out, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    return done;
}

static kh_result set_up(kh_tls_server *server, const kh_tls_parts *parts, const char **part)
{
    const kh_bytes all[] = {parts->ca, parts->crl, parts->certificate, parts->key};
    kh_result result = KH_OK;

    *part = "certificate";
    if (!digest(all, 4, server->parts) || !digest(all, 2, server->trust)) {
        return KH_E_CRYPTO;
    }
    server->ctx = SSL_CTX_new(TLS_server_method());
    if (server->ctx == NULL) {
        return KH_E_MEMORY;
    }
    result = kh_tls_common(server->ctx);
    if (result != KH_OK) {
        return result;
    }
    SSL_CTX_set_alpn_select_cb(server->ctx, choose_protocol, NULL);
    SSL_CTX_set_client_hello_cb(server->ctx, check_hello, NULL);
    SSL_CTX_set_verify(server->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    /* Resumption by tickets alone: nothing is kept for a caller, and a session of another server is not taken. */
    SSL_CTX_set_session_cache_mode(server->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_timeout(server->ctx, SESSION_S);
    if (SSL_CTX_set_num_tickets(server->ctx, 1) != 1 ||
        SSL_CTX_set_session_ticket_cb(server->ctx, note_verified, judge_ticket, NULL) != 1 ||
        SSL_CTX_set_session_id_context(server->ctx, server->parts, sizeof server->parts) != 1) {
        return KH_E_CRYPTO;
    }
    return use_parts(server->ctx, parts, part);
}

kh_result kh_tls_server_new(const kh_tls_parts *parts, kh_tls_server **out, const char **part)
{
    kh_tls_server *server = calloc(1, sizeof *server);
    const char *unused = NULL;
    kh_result result = server != NULL ? set_up(server, parts, part != NULL ? part : &unused) : KH_E_MEMORY;

    *out = NULL;
    if (result != KH_OK) {
        kh_tls_server_free(server);
        return result;
    }
    *out = server;
    return KH_OK;
}

void kh_tls_server_free(kh_tls_server *server)
{
    if (server != NULL) {
        SSL_CTX_free(server->ctx);
        OPENSSL_cleanse(server, sizeof *server);
        free(server);
    }
}

bool kh_tls_server_same(const kh_tls_server *a, const kh_tls_server *b)
{
    return memcmp(a->parts, b->parts, sizeof a->parts) == 0;
}

bool kh_tls_server_same_trust(const kh_tls_server *a, const kh_tls_server *b)
{
    return memcmp(a->trust, b->trust, sizeof a->trust) == 0;
}

/* Unix time; 0: none, or it is not one. */
static time_t time_of(const ASN1_TIME *time)
{
    struct tm parts = {0};

    return time != NULL && ASN1_TIME_to_tm(time, &parts) == 1 ? timegm(&parts) : 0;
}

void kh_tls_server_dates(const kh_tls_server *server, time_t *not_before, time_t *not_after, time_t *crl_until)
{
    const X509 *certificate = SSL_CTX_get0_certificate(server->ctx);
    STACK_OF(X509_OBJECT) *objects = X509_STORE_get0_objects(SSL_CTX_get_cert_store(server->ctx));

    *not_before = time_of(X509_get0_notBefore(certificate));
    *not_after = time_of(X509_get0_notAfter(certificate));
    *crl_until = 0;
    for (int i = 0; i < sk_X509_OBJECT_num(objects); i++) {
        const X509_CRL *crl = X509_OBJECT_get0_X509_CRL(sk_X509_OBJECT_value(objects, i));
        time_t until = crl != NULL ? time_of(X509_CRL_get0_nextUpdate(crl)) : 0;

        *crl_until = until != 0 && (*crl_until == 0 || until < *crl_until) ? until : *crl_until;
    }
}

/* ---- Connections ---- */

SSL *kh_tls_server_accept(const kh_tls_server *server)
{
    SSL *ssl = SSL_new(server->ctx);

    if (ssl != NULL) {
        SSL_set_accept_state(ssl);
    }
    return ssl;
}

/* "KIND:" and the bytes, canonical. False: it cannot be one of our names. */
static bool spell(const char *kind, const uint8_t *data, size_t len, char san[KH_SAN_MAX + 1])
{
    char text[KH_SAN_MAX + 1];
    size_t kind_len = strlen(kind);

    if (len > KH_SAN_MAX - kind_len) {
        return false;
    }
    memcpy(text, kind, kind_len);
    memcpy(text + kind_len, data, len);
    return kh_san_canonical(text, kind_len + len, san) == KH_OK;
}

static bool spell_name(const GENERAL_NAME *general, char san[KH_SAN_MAX + 1])
{
    char address[INET6_ADDRSTRLEN];
    int type = 0;
    const ASN1_STRING *value = GENERAL_NAME_get0_value(general, &type);

    switch (type) {
    case GEN_DNS:
        return spell("dns:", ASN1_STRING_get0_data(value), (size_t)ASN1_STRING_length(value), san);
    case GEN_URI:
        return spell("uri:", ASN1_STRING_get0_data(value), (size_t)ASN1_STRING_length(value), san);
    case GEN_EMAIL:
        return spell("email:", ASN1_STRING_get0_data(value), (size_t)ASN1_STRING_length(value), san);
    case GEN_IPADD:
        if (ASN1_STRING_length(value) != 4 && ASN1_STRING_length(value) != 16) {
            return false;
        }
        inet_ntop(ASN1_STRING_length(value) == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(value), address,
                  sizeof address);
        return spell("ip:", (const uint8_t *)address, strlen(address), san);
    default:
        return false;
    }
}

bool kh_tls_peer_names(SSL *ssl, void (*name)(void *ctx, const char *san), void *ctx)
{
    const X509 *certificate = SSL_get0_peer_certificate(ssl);
    GENERAL_NAMES *names = NULL;
    char san[KH_SAN_MAX + 1];

    if (certificate == NULL || SSL_get_verify_result(ssl) != X509_V_OK ||
        X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0) {
        return false;
    }
    names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(names) && i < KH_SANS_MAX; i++) {
        if (spell_name(sk_GENERAL_NAME_value(names, i), san)) {
            name(ctx, san);
        }
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    return true;
}

bool kh_tls_server_believes(const kh_tls_server *server, SSL *ssl)
{
    X509 *certificate = SSL_get0_peer_certificate(ssl);
    X509_STORE_CTX *verify = X509_STORE_CTX_new();
    bool believes = verify != NULL && certificate != NULL &&
                    X509_STORE_CTX_init(verify, SSL_CTX_get_cert_store(server->ctx), certificate,
                                        SSL_get_peer_cert_chain(ssl)) == 1 &&
                    X509_STORE_CTX_set_default(verify, "ssl_client") == 1 && X509_verify_cert(verify) == 1;

    X509_STORE_CTX_free(verify);
    ERR_clear_error();
    return believes;
}

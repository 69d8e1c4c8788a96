/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the load engine needs before its first connection: libssl's context with what the user chose, or the light client, the
 * address, the request, the clients.
 */
#include "load.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static bool set_alpn(SSL_CTX *ctx, const char *list)
{
    unsigned char wire[256];
    size_t used = 0;
    size_t len;

    while (*list != '\0') {
        len = strcspn(list, ",");
        if (len == 0 || used + 1 + len > sizeof(wire)) {
            return false;
        }
        wire[used++] = (unsigned char)len;
        memcpy(wire + used, list, len);
        used += len;
        list += len + (list[len] == ',');
    }
    return SSL_CTX_set_alpn_protos(ctx, wire, (unsigned)used) == 0;
}

static bool set_version(SSL_CTX *ctx, const char *tls)
{
    int version = tls == NULL ? 0 : strcmp(tls, "1.2") == 0 ? TLS1_2_VERSION
                : strcmp(tls, "1.3") == 0 ? TLS1_3_VERSION : -1;

    return version == 0 || (version > 0 && SSL_CTX_set_min_proto_version(ctx, version) == 1 &&
                            SSL_CTX_set_max_proto_version(ctx, version) == 1);
}

/* Without authorities there is nothing to verify a chain with; libssl would build one all the same, for nothing. */
static int take_any_chain(X509_STORE_CTX *chain, void *unused)
{
    (void)unused;
    X509_STORE_CTX_set_error(chain, X509_V_OK);
    return 1;
}

static bool set_verify(kh_load_engine *e)
{
    const kh_load_config *config = e->config;
    FILE *file;

    if (config->pin != NULL) {
        file = fopen(config->pin, "r");
        e->pin = file != NULL ? PEM_read_X509(file, NULL, NULL, NULL) : NULL;
        if (file != NULL) {
            fclose(file);
        }
        if (e->pin == NULL) {
            return false;
        }
    }
    if (config->cafile != NULL) {
        SSL_CTX_set_verify(e->ctx, SSL_VERIFY_PEER, NULL);
        return SSL_CTX_load_verify_locations(e->ctx, config->cafile, NULL) == 1 &&
               (config->sni == NULL ||
                X509_VERIFY_PARAM_set1_host(SSL_CTX_get0_param(e->ctx), config->sni, 0) == 1);
    }
    SSL_CTX_set_cert_verify_callback(e->ctx, take_any_chain, NULL);
    return true;
}

/* The first setting that OpenSSL refuses, or NULL. */
static const char *set_up_ssl(kh_load_engine *e)
{
    const kh_load_config *config = e->config;

    e->way = &kh_load_way_ssl;
    e->ctx = e->lib != NULL ? SSL_CTX_new_ex(e->lib, NULL, TLS_client_method()) : NULL;
    if (e->ctx == NULL) {
        return "no context";
    }
    SSL_CTX_set_session_cache_mode(e->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(e->ctx, SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_COMPRESSION);
    if (!set_version(e->ctx, config->tls)) {
        return "--tls";
    }
    if (config->ciphers != NULL && SSL_CTX_set_cipher_list(e->ctx, config->ciphers) != 1) {
        return "--ciphers";
    }
    if (config->ciphersuites != NULL && SSL_CTX_set_ciphersuites(e->ctx, config->ciphersuites) != 1) {
        return "--ciphersuites";
    }
    if (config->groups != NULL && SSL_CTX_set1_groups_list(e->ctx, config->groups) != 1) {
        return "--groups";
    }
    if (config->sigalgs != NULL && SSL_CTX_set1_sigalgs_list(e->ctx, config->sigalgs) != 1) {
        return "--sigalgs";
    }
    if (config->alpn != NULL && !set_alpn(e->ctx, config->alpn)) {
        return "--alpn";
    }
    return set_verify(e) ? NULL : "--cafile or --pin";
}

static const char *set_up_light(kh_load_engine *e)
{
    e->way = &kh_load_way_light;
    e->light = e->lib != NULL ? kh_light_new(e->lib, e->config->sni) : NULL;
    return e->light != NULL ? NULL : "--light, or its --sni";
}

static bool set_up_clients(kh_load_engine *e)
{
    const kh_load_config *config = e->config;
    unsigned i;

    e->clients = calloc(config->clients, sizeof(*e->clients));
    for (i = 0; e->clients != NULL && i < config->clients; i++) {
        kh_load_client *c = &e->clients[i];

        c->fd = -1;
        c->answer = config->request != NULL ? malloc(KH_LOAD_ANSWER_MAX) : NULL;
        c->light = config->light ? kh_light_conn_new(e->light) : NULL;
        if ((config->request != NULL && c->answer == NULL) || (config->light && c->light == NULL)) {
            return false;
        }
    }
    return e->clients != NULL;
}

bool kh_load_set_up(kh_load_engine *e)
{
    const kh_load_config *config = e->config;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    const char *refused;
    int found;

    e->lib = OSSL_LIB_CTX_new();
    refused = config->light ? set_up_light(e) : set_up_ssl(e);
    if (refused != NULL) {
        fprintf(stderr, "keyhold-bench: OpenSSL refuses %s\n", refused);
        return false;
    }
    found = getaddrinfo(config->host, config->port, &hints, &e->address);
    if (found != 0) {
        fprintf(stderr, "keyhold-bench: %s:%s: %s\n", config->host, config->port, gai_strerror(found));
        return false;
    }
    if (config->request != NULL) {
        found = asprintf(&e->request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", config->request,
                         config->sni != NULL ? config->sni : config->host);
        if (found < 0) {
            e->request = NULL;
            return false;
        }
        e->request_len = (size_t)found;
    }
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    return e->epoll >= 0 && set_up_clients(e);
}

void kh_load_tear_down(kh_load_engine *e)
{
    unsigned i;

    for (i = 0; e->clients != NULL && i < e->config->clients; i++) {
        if (e->clients[i].phase != IDLE) {
            kh_load_drop(e, &e->clients[i]);
        }
        free(e->clients[i].answer);
        kh_light_conn_free(e->clients[i].light);
    }
    free(e->clients);
    free(e->request);
    if (e->epoll >= 0) {
        close(e->epoll);
    }
    if (e->address != NULL) {
        freeaddrinfo(e->address);
    }
    X509_free(e->pin);
    kh_light_free(e->light);
    SSL_CTX_free(e->ctx);
    OSSL_LIB_CTX_free(e->lib);
}

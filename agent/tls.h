/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's end of TLS: what a TCP listener shows and whom it believes, and the names of a caller. Knows no
 * configuration, no files and no descriptors. One thread at a time.
 */
#ifndef KH_AGENT_TLS_H
#define KH_AGENT_TLS_H

#include <keyhold/protocol.h>
#include <openssl/types.h>
#include <time.h>

/* What a listener is made of. */
typedef struct kh_tls_parts {
    kh_bytes certificate; /* PEM: our own, then its chain */
    kh_bytes key;         /* DER PKCS#8, unencrypted */
    kh_bytes ca;          /* PEM: who signs the callers' certificates */
    kh_bytes crl;         /* PEM; data NULL: none */
} kh_tls_parts;

typedef struct kh_tls_server kh_tls_server;

/*
 * KH_E_MALFORMED, KH_E_MISMATCH (key and certificate), KH_E_MEMORY, KH_E_CRYPTO; then *part (may be NULL) is the
 * option whose value is to blame: "certificate", "certificate_key", "client_ca", "client_crl". Each server has
 * ticket keys of its own: what one of them issued no other takes.
 */
KH_MUST_USE kh_result kh_tls_server_new(const kh_tls_parts *parts, kh_tls_server **server, const char **part);
/* Connections of before keep what they need. NULL is fine. */
void kh_tls_server_free(kh_tls_server *server);
/* Whether they are made of the same parts. */
bool kh_tls_server_same(const kh_tls_server *a, const kh_tls_server *b);
/* Whether they believe the same callers: client_ca and client_crl are the same. */
bool kh_tls_server_same_trust(const kh_tls_server *a, const kh_tls_server *b);
/* When our own certificate begins and ends to be valid, and when the first of the revocation lists is out of date (0:
 * there is none, or it says nothing). */
void kh_tls_server_dates(const kh_tls_server *server, time_t *not_before, time_t *not_after, time_t *crl_until);

/* For one connection, in accept state. NULL: no memory. */
SSL *kh_tls_server_accept(const kh_tls_server *server);

/*
 * Calls name(ctx, san) for the names of the caller's certificate: canonical (san.h), KH_SANS_MAX of them at most; names
 * that have no such form are left out. False: there is no certificate, or it is not valid now (a resumed session may be
 * older than its end).
 */
bool kh_tls_peer_names(SSL *ssl, void (*name)(void *ctx, const char *san), void *ctx);
/* Whether a connection of another server would be accepted by this one now: after a reload. */
bool kh_tls_server_believes(const kh_tls_server *server, SSL *ssl);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The callers' side of libkeyhold-protocol (needs OpenSSL): credentials, key ids, key references, and a blocking
 * client over a socket. An event-driven caller uses kh_session (protocol.h) with its own sockets and kh_credential_prove.
 */
#ifndef KEYHOLD_CLIENT_H
#define KEYHOLD_CLIENT_H

#include <keyhold/protocol.h>
#include <openssl/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KH_TOKEN_SECRET_LEN 32

/*
 * A token: who the caller is, and the secret that proves it. The file holds one line
 *   keyhold-token-1 NAME HEX(32 bytes)
 * and must not be readable by others (mode & 077 refused with KH_E_FORBIDDEN, by whoever loads it).
 */
typedef struct kh_credential {
    char identity[KH_NAME_MAX + 1];
    uint8_t secret[KH_TOKEN_SECRET_LEN]; /* wipe with kh_credential_wipe */
} kh_credential;

/* KH_E_IO: cannot be read. KH_E_MALFORMED: not such a line. KH_E_FORBIDDEN: mode. */
KH_MUST_USE kh_result kh_credential_load(const char *path, kh_credential *cred);
/* The same from memory. */
KH_MUST_USE kh_result kh_credential_parse(const char *text, size_t len, kh_credential *cred);
void kh_credential_wipe(kh_credential *cred);
/* A kh_prove_fn; ctx is a const kh_credential *. */
bool kh_credential_prove(void *cred, const char *label, const uint8_t *nonce_client, const uint8_t *nonce_agent,
                         uint8_t *proof);

/*
 * The canonical SubjectPublicKeyInfo of a public or private key (RFC 5280: rsaEncryption with NULL; RFC 5480: named curve,
 * uncompressed point; RFC 8410) and its SHA-256, the key's id. spki: at least KH_SPKI_MAX bytes, *spki_len set; either of
 * spki and id may be NULL. KH_E_UNSUPPORTED: a key type that Keyhold does not know. (In keyhold-keyid, for all rooms.)
 */
KH_MUST_USE kh_result kh_key_id(const EVP_PKEY *pkey, uint8_t *id, uint8_t *spki, size_t *spki_len, kh_key_type *type,
                                unsigned *bits);

/*
 * Key references: a PEM block "KEYHOLD KEY REFERENCE" that holds the key's name and public key and no secret, DER
 *   SEQUENCE { marker UTF8String "keyhold-reference-1", name UTF8String, spki SubjectPublicKeyInfo }
 * An empty name means: whatever key has this public key (it is then asked for by its id).
 * encode: PEM text, zero-terminated, into buf. decode: from DER; the views point into der.
 */
#define KH_REFERENCE_LABEL "KEYHOLD KEY REFERENCE"
KH_MUST_USE kh_result kh_reference_encode(const char *name, kh_bytes spki, char *buf, size_t cap, size_t *len);
KH_MUST_USE kh_result kh_reference_decode(const uint8_t *der, size_t len, kh_bytes *name, kh_bytes *spki);

/* A blocking client: one connection, one request at a time; for tools and simple programs. One thread. */
typedef struct kh_client kh_client;

/*
 * address: "unix:/path". cred: NULL to be known by the peer's uid; copied. Connects and does hello and auth within timeout_ms.
 * (An agent behind "tcp:HOST:PORT" is opened with kh_client_open_tls; here that is KH_E_INVALID.)
 * On failure *detail (may be NULL) points at static or client-owned text for people.
 */
KH_MUST_USE kh_result kh_client_open(const char *address, const kh_credential *cred, const char *client_name,
                                     uint32_t timeout_ms, kh_client **client, char *detail, size_t detail_cap);
/*
 * What a caller of an agent behind TCP has: PEM files, all of them needed. TLS 1.3 only, with certificates on both sides; the
 * agent must show one for server_name (a DNS name or an IP address), and knows the caller by a SAN of its certificate.
 */
typedef struct kh_client_tls {
    const char *ca_file;          /* who signs the agents' certificates; nobody else is trusted */
    const char *certificate_file; /* the caller's own, with what lies between it and the CA that the agent knows */
    const char *key_file;         /* its private key, unencrypted; mode & 007 is refused with KH_E_FORBIDDEN */
    const char *server_name;      /* NULL: HOST of the address */
    SSL_CTX *context;             /* of kh_client_tls_context, instead of the files; NULL: the files. For this client alone */
} kh_client_tls;

/*
 * address: "tcp:HOST:PORT", "tcp:[IPV6]:PORT". tls: copied; its files are read now, and again for each new connection, so that
 * renewed certificates are taken up. As kh_client_open; besides KH_E_UNAUTHENTICATED: one side does not accept the other's
 * certificate. A new connection of the same client resumes the TLS session of the one before. A HOST that is a name is
 * resolved by the system's resolver, which has time limits of its own.
 */
KH_MUST_USE kh_result kh_client_open_tls(const char *address, const kh_client_tls *tls, const char *client_name,
                                         uint32_t timeout_ms, kh_client **client, char *detail, size_t detail_cap);
void kh_client_close(kh_client *client);
/* Who the agent takes this client for. Valid as long as the client. */
const char *kh_client_identity(const kh_client *client);
/*
 * Sends and waits for the reply, at most req->deadline_ms. KH_OK: a reply came; its status says how the operation went.
 * KH_E_DEADLINE, KH_E_CLOSED, KH_E_IO, KH_E_MALFORMED: none came. Views of *reply hold until the next call.
 * A connection that is found dead before anything was sent on it is opened anew once.
 */
KH_MUST_USE kh_result kh_client_call(kh_client *client, const kh_request *req, kh_reply *reply);

/*
 * For event-driven callers with sockets of their own: an SSL_CTX for the files, and an SSL of it made ready for an agent (SNI,
 * verification of its certificate, connect state). TLS 1.3, ALPN "keyhold/1", our certificate, nobody trusted but ca_file. It
 * lives in a library context of its own, so that a program's providers and openssl.cnf have no part in it. Failures fill
 * detail (may be NULL). KH_E_IO, KH_E_FORBIDDEN, KH_E_MALFORMED, KH_E_MISMATCH (key and certificate), KH_E_MEMORY.
 */
KH_MUST_USE kh_result kh_client_tls_context(const kh_client_tls *tls, SSL_CTX **ctx, char *detail, size_t detail_cap);
/*
 * server_name: a DNS name or an IP address, without brackets. KH_E_INVALID, KH_E_MEMORY. (Who resumes sessions: call
 * SSL_set_shutdown before SSL_free, or OpenSSL marks the session as not resumable.)
 */
KH_MUST_USE kh_result kh_client_tls_prepare(SSL *ssl, const char *server_name);

#ifdef __cplusplus
}
#endif
#endif

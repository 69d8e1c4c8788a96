/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Certificates and keys for TLS: from PEM files into memory, and from memory into an SSL_CTX. Both ends of a
 * connection over TCP use them; the agent's two steps are in two processes. Private to Keyhold.
 */
#ifndef KH_TLS_FILES_H
#define KH_TLS_FILES_H

#include <keyhold/protocol.h>
#include <openssl/types.h>

#define KH_TLS_FILE_MAX (1 << 20) /* bytes of the longest file */

/* A file's bytes, owned. Zero-initialise. */
typedef struct kh_tls_file {
    uint8_t *data;
    size_t len;
} kh_tls_file;

/*
 * Reads a file whole. KH_E_IO: errno says why. KH_E_TOO_LARGE. is_key: KH_E_FORBIDDEN when everybody may read or write
 * it (mode & 007).
 */
KH_MUST_USE kh_result kh_tls_file_read(const char *path, bool is_key, kh_tls_file *file);
/* Wipes and frees. */
void kh_tls_file_free(kh_tls_file *file);
kh_bytes kh_tls_file_bytes(const kh_tls_file *file);

/* The first private key of a PEM text. KH_E_MALFORMED: there is none. KH_E_PASSPHRASE: it is encrypted. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_tls_key_parse(kh_bytes pem, OSSL_LIB_CTX *libctx, EVP_PKEY **key);

/* libctx: the one that ctx was made with, NULL for the default one; it has no getter. */

/* Our own certificate, first in the PEM text, and the chain after it. KH_E_MALFORMED: there is none, or it is damaged. */
KH_MUST_USE kh_result kh_tls_use_certificate(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem);
/* Our own key. KH_E_MISMATCH: it does not belong to the certificate, which has to be there already. */
KH_MUST_USE kh_result kh_tls_use_key(SSL_CTX *ctx, EVP_PKEY *key);
/* Whom to believe: the certificates of the PEM text and nobody else. KH_E_MALFORMED: there is none. */
KH_MUST_USE kh_result kh_tls_use_ca(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem);
/* Revocation lists: from now on the peer's own certificate must be covered by one. KH_E_MALFORMED: there is none. */
KH_MUST_USE kh_result kh_tls_use_crl(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem);

/* What one of these results means for a file, for people. */
const char *kh_tls_file_text(kh_result result);

#endif

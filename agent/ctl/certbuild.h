/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Certificates and certificate requests whose key is elsewhere: what is to be signed is built here with
 * OpenSSL, signed by whoever has the key, and put together and verified here. No private key, no descriptor,
 * no clock.
 */
#ifndef KEYHOLD_CTL_CERTBUILD_H
#define KEYHOLD_CTL_CERTBUILD_H

#include "ctl.h"

#include <keyhold/keystore.h>
#include <openssl/types.h>
#include <time.h>

typedef struct certbuild certbuild;

typedef struct certbuild_wish {
    const char *subject; /* "/C=DE/O=Site/CN=www.example"; "\/" is a slash in a value */
    const char *san;     /* "DNS:a,DNS:b,IP:192.0.2.1,email:…,URI:…"; NULL: the CN if it is a host name */
    bool request;        /* a PKCS#10 request instead of a self-signed certificate */
    time_t not_before;   /* certificates only */
    long days;
} certbuild_wish;

/*
 * Builds the part that is to be signed for the key of `info` (type, usage, spki). KH_E_INVALID with a usage
 * error for a bad subject or SAN, KH_E_CRYPTO, KH_E_MEMORY. Free with certbuild_free (NULL is fine).
 */
KH_MUST_USE kh_result certbuild_new(const kh_key_info *info, const certbuild_wish *wish, certbuild **build,
                                    ctl_error *error);
void certbuild_free(certbuild *build);
/* What is to be signed, DER; owned by build. */
const uint8_t *certbuild_tbs(const certbuild *build, size_t *len);
/* With which scheme: RSA PKCS#1 with SHA-256, ECDSA with the hash of its size, Ed25519. */
kh_scheme certbuild_scheme(const certbuild *build);
/* Puts the signature in, verifies it, and gives the PEM (from malloc). KH_E_CRYPTO: it does not verify. */
KH_MUST_USE kh_result certbuild_finish(certbuild *build, const uint8_t *signature, size_t len, char **pem,
                                       ctl_error *error);

#endif

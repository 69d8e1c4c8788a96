/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates for the tests of TLS, made in the process, as files in a directory of their own. A failure ends the test. */
#ifndef KH_TLS_RIG_H
#define KH_TLS_RIG_H

#include <openssl/types.h>

typedef struct tls_rig_party {
    EVP_PKEY *key;
    X509 *certificate;
    char certificate_file[128], key_file[128];
} tls_rig_party;

typedef struct tls_rig {
    char dir[64];
    unsigned serial;
    tls_rig_party ca;
} tls_rig;

/* A directory below /tmp and an authority. */
void tls_rig_make(tls_rig *rig);
/* Removes all of it. */
void tls_rig_end(tls_rig *rig);
/* An authority besides the rig's own. */
void tls_rig_authority(tls_rig *rig, const char *name, tls_rig_party *ca);
/* A certificate that `ca` issues: san as OpenSSL writes it ("DNS:a,IP:127.0.0.1"; NULL: none), valid from .. to seconds from now. */
void tls_rig_issue(tls_rig *rig, const tls_rig_party *ca, const char *name, const char *san, long from, long to,
                   tls_rig_party *party);
/* A revocation list of `ca`, with one certificate on it (NULL: none), good for so many seconds. */
void tls_rig_crl(const tls_rig *rig, const tls_rig_party *ca, const tls_rig_party *revoked, long seconds, char file[128]);
void tls_rig_free(tls_rig_party *party);

#endif

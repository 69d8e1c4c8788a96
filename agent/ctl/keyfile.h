/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private keys from the files that people have: PEM and DER; PKCS#8 plain and encrypted, the traditional
 * forms, PKCS#12. In: the file's bytes. Out: PKCS#8 DER in locked memory, and what kind of key it is.
 */
#ifndef KEYHOLD_CTL_KEYFILE_H
#define KEYHOLD_CTL_KEYFILE_H

#include "secret.h"

#include <openssl/types.h>

#define KEYFILE_MAX (256u * 1024) /* bytes of a key file; a PKCS#12 file may carry a long chain */

/*
 * Asked for a passphrase when the file turns out to need one. Fills `passphrase` (freed by the caller of
 * keyfile_load) or sets the error. Called at most once.
 */
typedef kh_result (*keyfile_ask_fn)(void *ctx, ctl_secret *passphrase, ctl_error *error);

typedef struct keyfile {
    ctl_secret pkcs8; /* PrivateKeyInfo, DER */
    EVP_PKEY *pkey;   /* owned; its private part is wiped when it is freed (ctl_secret_harden) */
    kh_key_type type;
    unsigned bits;
    uint8_t id[KH_KEY_ID_LEN];
} keyfile;

/*
 * Loads the first private key of `data` and checks that it is whole, of a known type and not weak. `name` is
 * for messages. KH_E_PASSPHRASE: needed and not given, or wrong. KH_E_WEAK, KH_E_UNSUPPORTED, KH_E_MALFORMED,
 * KH_E_DAMAGED, KH_E_MEMORY.
 */
KH_MUST_USE kh_result keyfile_load(const uint8_t *data, size_t len, const char *name, keyfile_ask_fn ask,
                                   void *ask_ctx, keyfile *key, ctl_error *error);
/* Fine for a zero-initialised one. */
void keyfile_free(keyfile *key);

/*
 * Certificates: the first one of a PEM or DER file. *cert is the caller's. KH_E_IO, KH_E_FORBIDDEN,
 * KH_E_MALFORMED.
 */
KH_MUST_USE kh_result keyfile_load_certificate(const char *path, X509 **cert, ctl_error *error);
/* The id of a certificate's key. KH_E_UNSUPPORTED: a key type that Keyhold does not know. */
KH_MUST_USE kh_result keyfile_certificate_id(const X509 *cert, uint8_t id[KH_KEY_ID_LEN], kh_key_type *type,
                                             unsigned *bits);

#endif

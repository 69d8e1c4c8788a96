/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secrets in keyholdctl: private keys and passphrases live in pages of their own that are locked, not dumped
 * and wiped before they are given back. They come from a file, a variable of the environment or a terminal,
 * never from argv.
 */
#ifndef KEYHOLD_CTL_SECRET_H
#define KEYHOLD_CTL_SECRET_H

#include "ctl.h"

/* Owned bytes; free with ctl_secret_free. Zero-initialise. Never grows: a bigger one is a new one. */
typedef struct ctl_secret {
    uint8_t *data;
    size_t len; /* bytes in use; data[len] is always 0, so that text can be read as a string */
    size_t cap; /* bytes of room, without that zero */
} ctl_secret;

/*
 * For main(), before anything is allocated: no core, not dumpable or traceable, memory locked as far as the
 * limit allows, OpenSSL's allocations wiped when they are freed.
 */
void ctl_secret_harden(void);

/* KH_E_MEMORY. */
KH_MUST_USE kh_result ctl_secret_new(size_t cap, ctl_secret *secret);
/* Wipes and gives back; fine for a zero-initialised one, and twice. */
void ctl_secret_free(ctl_secret *secret);

/* A whole file of at most max bytes. KH_E_IO, KH_E_FORBIDDEN, KH_E_TOO_LARGE, KH_E_MEMORY, with an error set.
 */
KH_MUST_USE kh_result ctl_secret_read_file(const char *path, size_t max, ctl_secret *secret,
                                           ctl_error *error);

#define CTL_PASSPHRASE_MAX 1023 /* bytes; keyholdd takes no longer one */

/* Where a passphrase comes from; all NULL: a prompt on the terminal. */
typedef struct ctl_passphrase_source {
    const char *file;        /* first line of this file; "-": prompt */
    const char *environment; /* name of a variable, which is removed from the environment after it was read */
    const char *prompt;      /* "Passphrase of site.key" */
    const char *option;      /* that names a file instead; NULL: --passphrase-file */
    bool twice;              /* a prompt asks again, for a passphrase that is being made */
} ctl_passphrase_source;

/* KH_E_PASSPHRASE: none to be had (no terminal, empty, too long, not the same twice), with an error set. */
KH_MUST_USE kh_result ctl_secret_passphrase(const ctl_passphrase_source *source, ctl_secret *secret,
                                            ctl_error *error);

#endif

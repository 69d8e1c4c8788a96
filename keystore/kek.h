/* SPDX-License-Identifier: Apache-2.0 */
/* The key-encryption key: from a file's 32 bytes or from a passphrase. */
#ifndef KEYHOLD_KEYSTORE_KEK_H
#define KEYHOLD_KEYSTORE_KEK_H

#include <keyhold/keystore.h>

#define KH_KEK_LEN 32
/* How a passphrase becomes a KEK, as kept in the store: log2 N, r, p (one byte each) and a salt. Zeros for a
 * file. */
#define KH_KEK_PARAMS_LEN 19

/* Kind and parameters: all that leads from a secret to its KEK. */
#define KH_KEK_RECIPE_LEN (1 + KH_KEK_PARAMS_LEN)

/* What KH_STORE_KEK takes to begin a change. A secret: wipe it. */
typedef struct kh_kek_change {
    uint8_t kek[KH_KEK_LEN]; /* opens the store now */
    uint8_t recipe[KH_KEK_RECIPE_LEN], next[KH_KEK_LEN];
} kh_kek_change;

/* Fresh parameters for that kind. */
KH_MUST_USE kh_result kh_kek_params_new(kh_kek_kind kind, uint8_t params[KH_KEK_PARAMS_LEN]);
/* Whether a store may have that recipe: a known kind, its parameters in range. */
bool kh_kek_recipe_good(const uint8_t recipe[KH_KEK_RECIPE_LEN]);
/* KH_E_INVALID: a secret of the wrong length. KH_E_DAMAGED: parameters out of range. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_kek_derive(kh_kek_kind kind, const uint8_t *secret, size_t secret_len,
                                    const uint8_t params[KH_KEK_PARAMS_LEN], uint8_t kek[KH_KEK_LEN]);

/* What seals the keys of export files: derived from a KEK, the same for all stores that have it. KH_E_CRYPTO.
 */
KH_MUST_USE kh_result kh_kek_transfer_key(const uint8_t kek[KH_KEK_LEN], uint8_t key[32]);

/* ---- Files of one line (kek.c, kek_token.c): mode 0600, never overwritten ---- */

/* KH_E_EXISTS, KH_E_IO. */
KH_MUST_USE kh_result kh_kek_line_create(const char *path, const char *line, size_t len);
/* Up to cap bytes; *len without the newline at the end. KH_E_IO; KH_E_FORBIDDEN: others than its owner may read it. */
KH_MUST_USE kh_result kh_kek_line_load(const char *path, char *line, size_t cap, size_t *len);
/* 2 len digits, without a zero behind. */
void kh_kek_hex(const uint8_t *data, size_t len, char *text);
/* Of one lower-case digit; -1: none. */
int kh_kek_hex_value(char c);

#endif

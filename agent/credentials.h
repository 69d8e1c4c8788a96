/* SPDX-License-Identifier: Apache-2.0 */
/* The secrets that the supervisor reads at its start and hands on: the key-encryption key and the tokens. */
#ifndef KH_AGENT_CREDENTIALS_H
#define KH_AGENT_CREDENTIALS_H

#include "config.h"
#include <keyhold/client.h>

#define KH_PASSPHRASE_MAX 1024 /* bytes */
#define KH_PIN_MAX 256

typedef struct kh_kek {
    kh_kek_kind kind;
    uint8_t *secret; /* KH_PASSPHRASE_MAX bytes of kh_secret_alloc */
    size_t len;
} kh_kek;

/* A token's PIN. */
typedef struct kh_pin {
    bool present; /* false: nobody logs in */
    size_t len;
    uint8_t text[KH_PIN_MAX];
} kh_pin;

/*
 * The path itself, or that of the systemd credential that it names ("credential:NAME"). False: there are none, or it is
 * too long.
 */
bool kh_credential_resolve(const char *path, char *out, size_t cap);
/* `kek_file` or `kek_passphrase_file`: the configuration has one of them, and it is the configuration's. */
const char *kh_kek_source(const kh_config *config);
/* Both write a message (KH_CONFIG_ERROR_MAX bytes) on failure, naming file and line where there is one. */
KH_MUST_USE kh_result kh_kek_load(const kh_config *config, kh_kek *kek, char *error);
void kh_kek_free(kh_kek *kek);
/* pins: one for each token of the configuration, in locked memory. */
KH_MUST_USE kh_result kh_pins_load(const kh_config *config, kh_pin *pins, char *error);
/*
 * credentials: one for each identity of the configuration, in locked memory; those without a token stay zero.
 * A token's file must name the identity it is used for.
 */
KH_MUST_USE kh_result kh_tokens_load(const kh_config *config, kh_credential *credentials, char *error);

#endif

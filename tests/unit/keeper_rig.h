/* SPDX-License-Identifier: Apache-2.0 */
/* A real keeper process and a test program as its front, over a real ring. */
#ifndef KEYHOLD_TESTS_KEEPER_RIG_H
#define KEYHOLD_TESTS_KEEPER_RIG_H

#include <keyhold/keystore.h>
#include <openssl/evp.h>
#include <sys/types.h>

typedef struct keeper_rig {
    char dir[256];
    char store[300];
    char kek_file[300];
    char admin[300];
    char log[300];
    uint8_t kek[32];
    uint8_t import_public[32];
    uint32_t workers, slots, cache_keys, batch_window_us;
    int control;
    pid_t pid;
    kh_keystore *keystore;
    uint64_t cookie;
} keeper_rig;

/* What an operation gave. */
typedef struct rig_answer {
    kh_result result;
    uint32_t len, batch;
    uint8_t data[KH_RECORD_DATA_MAX];
} rig_answer;

/* Makes a directory with an empty store. parent: NULL for $TMPDIR. */
void rig_init(keeper_rig *rig, const char *parent);
/* Starts the keeper and waits until it is ready; KH_OK, or what kh_keeper_run returned. */
kh_result rig_start(keeper_rig *rig);
/* Gives the keeper a new ring and attaches to it. */
void rig_new_ring(keeper_rig *rig);
/* Stops it as the supervisor does; returns what kh_keeper_run returned. */
kh_result rig_stop(keeper_rig *rig);
void rig_kill(keeper_rig *rig);
/* Waits for it to end by itself. */
kh_result rig_reap(keeper_rig *rig);
/* Removes the directory. */
void rig_clean(keeper_rig *rig);

/* One operation, waited for. Aborts the test after 60 s. The answer is static. */
const rig_answer *rig_call(keeper_rig *rig, const kh_record *record);
const rig_answer *rig_admin(keeper_rig *rig, const kh_record *record);
/* Waits for one completion of those submitted; copies it to the static answer. */
const rig_answer *rig_wait(keeper_rig *rig, uint64_t *cookie);

kh_result rig_create(keeper_rig *rig, const char *name, kh_key_type type, unsigned bits, uint32_t usage,
                     uint32_t flags, kh_key_info *info);
kh_result rig_import(keeper_rig *rig, const char *name, EVP_PKEY *pkey, uint32_t usage, uint32_t flags,
                     kh_key_info *info);
/* The sealed part of an import. */
void rig_wrap(keeper_rig *rig, const char *name, EVP_PKEY *pkey, uint32_t usage, uint32_t flags,
              uint8_t *sealed, size_t cap, size_t *sealed_len);
kh_result rig_set_state(keeper_rig *rig, const char *name, uint32_t version, uint32_t state,
                        kh_key_info *info);
kh_result rig_lookup(keeper_rig *rig, const char *name, kh_key_info *info);
kh_result rig_sign(keeper_rig *rig, const kh_key_info *key, uint32_t scheme, uint32_t flags, const void *data,
                   size_t len);
/* Whether the signature is one by the key of `spki` over the message (or digest). */
bool rig_verify(const uint8_t *spki, size_t spki_len, uint32_t scheme, bool is_digest, const void *data,
                size_t len, const uint8_t *signature, size_t signature_len);
EVP_PKEY *rig_public(const kh_key_info *info);
/* Whether a line of the keeper's log contains both. */
bool rig_logged(keeper_rig *rig, const char *what, const char *name);

/* A TLS 1.3 server's message to sign, with a hash of 32 or 48 bytes. Returns its length. */
size_t rig_tls13_message(uint8_t *message, const char *side, size_t hash_len);

#endif

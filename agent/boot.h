/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the supervisor hands to its children: the payloads of channel.h's messages. Same program on both
 * sides.
 */
#ifndef KH_AGENT_BOOT_H
#define KH_AGENT_BOOT_H

#include <keyhold/client.h>
#include <keyhold/keystore.h>
#include <sys/types.h>

/* The descriptor that a role finds its channel at, and argv[0] of the roles. */
#define KH_BOOT_FD 3
#define KH_ROLE_FRONT "keyholdd: front"
#define KH_ROLE_KEEPER "keyholdd: keeper"
#define KH_ROLE_KEK "keyholdd: kek"
#define KH_ROLE_TOKEN "keyholdd: token " /* and the name of the token */

/* Followed by the absolute path of the configuration file, without zero. */
typedef struct kh_boot_config {
    uint32_t workers;      /* resolved: at least 1 */
    uint32_t delay_ms;     /* --delay-ms, or the configuration's debug_delay_ms */
    uint32_t operator_uid; /* besides 0: the agent's own user when it runs unprivileged */
} kh_boot_config;

typedef struct kh_boot_token {
    uint32_t identity; /* index in the configuration */
    uint8_t secret[KH_TOKEN_SECRET_LEN];
} kh_boot_token;

#define KH_BOOT_TOKENS 128 /* in one message */

/* Followed by the key, DER. */
typedef struct kh_boot_tls {
    uint32_t listener; /* index in the configuration */
    uint32_t has_crl;
} kh_boot_tls;

/* Followed by the secret, then by the absolute path of the store, without zero. */
typedef struct kh_boot_keeper {
    uint32_t kek_kind;
    uint32_t kek_len;
    uint32_t workers;
    uint32_t cache_keys;
    uint32_t batch_window_us;
    uint32_t use_kernels;
    uint32_t log_level;
    uint32_t log_json;
} kh_boot_keeper;

/*
 * Followed by zero-terminated strings: its name in the configuration, module, label, serial (these two may be empty: any), then
 * path_count paths that the library reads and writes and read_count that it reads; then by the PIN, pin_len bytes.
 */
typedef struct kh_boot_token_keeper {
    uint32_t sessions;
    uint32_t call_timeout_ms;
    uint32_t confine_strict;
    uint32_t log_level;
    uint32_t log_json;
    uint32_t path_count;
    uint32_t read_count;
    uint32_t has_pin;
    uint32_t new_pin;
    uint32_t pin_len;
} kh_boot_token_keeper;

typedef struct kh_boot_process {
    int32_t pid;
    uint32_t starts; /* of this role, since the supervisor runs */
    char role[16];
} kh_boot_process;

/* Of KH_MSG_RING and KH_MSG_KEEPER_DOWN: which keeper. */
typedef struct kh_boot_ring {
    char token[KH_PLACE_MAX + 1]; /* the token's name in the configuration; empty: the store's keeper */
} kh_boot_ring;

#define KH_BOOT_PROCESSES 32

#define KH_ALIVE_S 2 /* how often a child says that it is alive */

/* Exit codes of roles: what the supervisor makes of them. */
#define KH_EXIT_OK 0
#define KH_EXIT_BUG 1     /* worth another try */
#define KH_EXIT_REFUSED 2 /* it will not be better next time: passphrase, version, damaged store */
/* Of a token's keeper. */
#define KH_EXIT_PIN 3   /* the PIN was tried once and is wrong, or locked: not again with the same */
#define KH_EXIT_HUNG 4  /* a call of the library does not come back */
#define KH_EXIT_TOKEN 5 /* the library has lost the token: a new process may find it */

#endif

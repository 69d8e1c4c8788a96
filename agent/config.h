/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's configuration file: its values, and reading them with libconfuse. Shared by keyholdd (all
 * roles) and keyholdctl. One thread; nothing here keeps state between calls.
 *
 * Every value is range-checked while it is parsed, so errors name the line. Unknown options are refused.
 */
#ifndef KH_AGENT_CONFIG_H
#define KH_AGENT_CONFIG_H

#include <netinet/in.h>
#include <sys/types.h>
#include <keyhold/protocol.h>
#include <keyhold/keystore.h>

#define KH_CONFIG_ERROR_MAX 512      /* bytes of an error message, with its zero */
#define KH_CONFIG_TEXT_MAX (1 << 20) /* longest configuration file in bytes */
#define KH_LISTENERS_MAX 64
#define KH_IDENTITIES_MAX 1024
#define KH_METRICS_MAX 4 /* `metrics` blocks */
#define KH_SANS_MAX 64 /* names of one identity, and of one certificate that are looked at */

/*
 * Whole numbers of the top level. X(field and option, default, least, most, what it is). The unit is in the
 * name; counts have none.
 */
#define KH_CONFIG_NUMBERS(X)                                                                                 \
    X(workers, 0, 0, 256, "signing threads; 0: one per CPU")                                                 \
    X(batch_window_us, 0, 0, 100000, "how long a free worker waits for company")                             \
    X(cache_keys, 10000, 1, 10000000, "private keys that stay in memory")                                    \
    X(directory_entries, 20000, 64, 1000000, "key names and ids that the front remembers")                   \
    X(max_connections, 4096, 1, 500000, "connections at the same time")                                      \
    X(credit, 1024, 1, 16384, "outstanding requests per connection")                                         \
    X(queue_max, 8192, 1, 1000000, "waiting operations per identity")                                        \
    X(queue_total, 65536, 1, 1000000, "waiting operations of all")                                           \
    X(queue_bytes, 67108864, 65536, 1L << 32, "memory of waiting operations of all")                         \
    X(frame_max, KH_FRAME_MAX, KH_FRAME_MIN_CAP, 1 << 20, "bytes of the longest frame")                      \
    X(idle_timeout_s, 3600, 0, 604800, "connection without a request; 0: never")                             \
    X(handshake_timeout_ms, 5000, 10, 600000, "connection that has not said who it is")                      \
    X(stall_timeout_ms, 30000, 100, 600000, "connection that does not take its replies")                     \
    X(drain_timeout_ms, 30000, 0, 3600000, "how long SIGTERM lets queued operations finish")                 \
    X(debug_delay_ms, 0, 0, 60000, "holds each reply to a private-key operation: simulates a slow HSM")

/* One `allow` block: these operations on keys whose name one of these globs matches. */
typedef struct kh_allow {
    char **keys;
    size_t key_count;
    uint32_t operations; /* set of 1 << kh_op */
} kh_allow;

typedef struct kh_config_identity {
    char name[KH_NAME_MAX + 1];
    char *token;        /* absolute path of its token file; NULL: it has none */
    int64_t uid;        /* -1: not known by that */
    char **sans;        /* over TCP, any of these: canonical (san.h) */
    size_t san_count;
    uint32_t queue_max; /* 0: the top level's */
    uint32_t max_connections; /* 0: three quarters of the top level's */
    uint32_t weight;    /* 1 to 1000: its share of a contended lane */
    unsigned line;
    kh_allow *allows;
    size_t allow_count;
} kh_config_identity;

/* A numeric address and port. */
typedef union kh_tcp_address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
} kh_tcp_address;

typedef struct kh_config_listener {
    char *address;    /* "unix:/ABSOLUTE/PATH" or "tcp:ADDRESS:PORT" in one spelling: it names the listener */
    const char *path; /* in address; NULL: TCP */
    unsigned line;
    /* a Unix socket's */
    mode_t mode;
    char *owner; /* NULL: unchanged */
    char *group; /* NULL: unchanged */
    /* TCP's: absolute paths of PEM files */
    kh_tcp_address tcp;
    char *certificate, *certificate_key, *client_ca;
    char *client_crl;    /* NULL: none */
    bool administration; /* keys may be managed through it */
} kh_config_listener;

/* Where the metrics are served. */
typedef struct kh_config_metrics {
    char *address; /* as written: "unix:PATH" or "tcp:ADDRESS:PORT"; names the listener */
    char *path;    /* absolute; NULL: TCP */
    kh_tcp_address tcp; /* when path is NULL */
    mode_t mode;
    char *owner, *group; /* NULL: unchanged */
    bool is_public;      /* `public = true`: an address that is not loopback is meant */
    unsigned line;
} kh_config_metrics;
/* Who has a name; see kh_config_find_san. */
typedef struct kh_config_san {
    const char *text;
    size_t identity;
} kh_config_san;

#define KH_TOKENS_MAX 16
#define KH_POOLS_MAX 8
#define KH_PARTITIONS_MAX 16 /* of one pool */
#define KH_TOKEN_ENV_MAX 16   /* variables of one token */
#define KH_TOKEN_PATHS_MAX 16

/* A PKCS#11 token, or a partition of a pool: its keeper's business. */
typedef struct kh_config_token {
    char *name;   /* at most KH_PLACE_MAX bytes, as a key's name is made */
    char *module; /* absolute path */
    char *label, *serial; /* which token; NULL: any. A pkcs11: URI (RFC 7512) fills the same */
    char *pin_file;       /* a path, "credential:NAME" or "env:NAME" (the supervisor's environment); NULL: no login */
    char *user;           /* the keeper's user; NULL: keeper_user */
    bool confine_strict;  /* confine = strict; else vendor */
    long sessions;        /* 1 to 64: operations at a time */
    long call_timeout_ms; /* a call of the library that takes longer counts as hung */
    char **env;           /* "NAME=VALUE": all that the library finds in its environment */
    size_t env_count;
    char **paths; /* absolute: what the library reads and writes; with confine = vendor and none, all that its user may */
    size_t path_count;
    unsigned line;
} kh_config_token;

typedef struct kh_config_pool {
    char *name;
    size_t partitions[KH_PARTITIONS_MAX]; /* indices of tokens */
    size_t partition_count;
    long quorum; /* partitions that must have a new key before it is acknowledged */
    unsigned line;
} kh_config_pool;

typedef enum kh_config_format { KH_FORMAT_TEXT, KH_FORMAT_JSON } kh_config_format;

/*
 * Owned by whoever loaded it; read-only afterwards. All paths are absolute. Strings are NULL where they are
 * optional.
 */
typedef struct kh_config {
    char *path; /* of the file itself */
    char *dir;  /* its directory */
    char *text; /* the file as it was read, zero-terminated */
    size_t text_len;
    char *store;
    char *kek_file;                 /* one of these two: a path, */
    char *kek_passphrase_file;      /* or "credential:NAME", or (passphrase only) "-" for the terminal */
    char *admin_socket;             /* NULL: none */
    char *front_user, *keeper_user; /* NULL: not said */
    bool kernels;                   /* false: kernels = "openssl" */
    bool cpu_affinity;              /* false: cpu_affinity = "leave" */
    kh_log_level log_level;
    kh_config_format log_format;
#define KH_X(field, initial, least, most, what) long field;
    KH_CONFIG_NUMBERS(KH_X)
#undef KH_X
    kh_config_listener *listeners;
    size_t listener_count;
    kh_config_identity *identities;
    size_t identity_count;
    kh_config_metrics *metrics;
    size_t metrics_count;
    kh_config_token *tokens;
    size_t token_count;
    kh_config_pool *pools;
    size_t pool_count;
    kh_config_san *sans; /* of all identities, in order */
    size_t san_count;
} kh_config;

/*
 * Reads and checks a file. On failure *config is NULL and `error` (KH_CONFIG_ERROR_MAX bytes) holds
 * "FILE:LINE: what" or "FILE: what". KH_E_IO: cannot be read. KH_E_INVALID: a mistake in it. KH_E_MEMORY.
 */
KH_MUST_USE kh_result kh_config_load(const char *path, kh_config **config, char *error);
/* The same from memory; `path` (absolute) names the file in messages and gives the directory. */
KH_MUST_USE kh_result kh_config_parse(const char *text, size_t len, const char *path, kh_config **config,
                                      char *error);
void kh_config_free(kh_config *config); /* NULL is fine */
/* The identity that has this canonical name (san.h); NULL: none. */
const kh_config_identity *kh_config_find_san(const kh_config *config, const char *san);

/* A user of the configuration: a name, or "uid:gid" in decimal. */
typedef struct kh_user {
    uid_t uid;
    gid_t gid;
} kh_user;

/* Whose the store is when the configuration does not say keeper_user, and root runs the agent. */
#define KH_KEEPER_USER_DEFAULT "keyhold-keeper"

/* KH_E_INVALID: there is no such user. Reads the user database. */
KH_MUST_USE kh_result kh_config_user(const char *text, kh_user *user);
/* The same for the owner of a file: a name or a decimal uid, or "uid:gid", whose gid does not count. */
KH_MUST_USE kh_result kh_config_owner(const char *text, uid_t *uid);
/* The same for a group: a name or a decimal gid. */
KH_MUST_USE kh_result kh_config_group(const char *text, gid_t *gid);
/* Index of the token of that name, or -1. */
int kh_config_find_token(const kh_config *config, const char *name);

/* Operations that an `allow` block may name, as a set of 1 << kh_op. */
#define KH_CONFIG_OPERATIONS                                                                                 \
    (1u << KH_OP_SIGN | 1u << KH_OP_TLS_RSA_DECRYPT | 1u << KH_OP_DECRYPT | 1u << KH_OP_PUBLIC_KEY |         \
     1u << KH_OP_LIST | 1u << KH_OP_STATUS | 1u << KH_OP_IMPORT_KEY | 1u << KH_OP_CREATE |                   \
     1u << KH_OP_IMPORT | 1u << KH_OP_SET_STATE)

#endif

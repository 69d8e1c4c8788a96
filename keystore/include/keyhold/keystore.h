/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libkeyhold-keystore: the keeper (the process that holds keys and signs) and the front's way to it.
 *
 * Front and keeper share one ring in memory (a sealed-size memfd). The front writes records and collects completions;
 * the keeper's workers take records, copy them into private memory before checking anything, form batches by lane group,
 * and write completions. Nothing in the shared memory is trusted by the keeper beyond being bytes of bounded size.
 *
 * Everything is asynchronous on both sides: submit, flush, collect. The keystore knows no msgpack and no event library.
 */
#ifndef KEYHOLD_KEYSTORE_H
#define KEYHOLD_KEYSTORE_H

#include <keyhold/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Records ---------------------------------------------------------------------------------------------------- */

/* X(constant, number, name, admin socket only) */
#define KH_STORE_OPS(X)                                                                                     \
    X(KH_STORE_SIGN, 1, "sign", 0)                                                                          \
    X(KH_STORE_TLS_RSA_KX, 2, "tls-rsa-decrypt", 0)                                                         \
    X(KH_STORE_DECRYPT, 3, "decrypt", 0)                                                                    \
    X(KH_STORE_LOOKUP, 4, "lookup", 0)                                                                      \
    X(KH_STORE_LIST, 5, "list", 0)                                                                          \
    X(KH_STORE_IMPORT_KEY, 6, "import-key", 0)                                                              \
    X(KH_STORE_CREATE, 7, "create", 0)                                                                      \
    X(KH_STORE_IMPORT, 8, "import", 0)                                                                      \
    X(KH_STORE_SET_STATE, 9, "set-state", 0)                                                                \
    X(KH_STORE_RECOVER, 32, "recover", 1)                                                                   \
    X(KH_STORE_PURGE, 33, "purge", 1)                                                                       \
    X(KH_STORE_CERTIFY, 34, "certify", 1)                                                                   \
    X(KH_STORE_CHECK, 35, "check", 1)                                                                       \
    X(KH_STORE_BACKUP, 36, "backup", 1)                                                                     \
    X(KH_STORE_BACKED_UP, 37, "backed-up", 1)                                                               \
    X(KH_STORE_EXPORT, 38, "export", 1)                                                                     \
    X(KH_STORE_IMPORT_ALL, 39, "import-all", 1)                                                             \
    X(KH_STORE_POLICY, 40, "policy", 1)                                                                     \
    X(KH_STORE_SET, 41, "set", 1)                                                                           \
    X(KH_STORE_MOVE, 42, "move", 1)                                                                         \
    X(KH_STORE_ADOPT, 43, "adopt", 1)                                                                       \
    X(KH_STORE_REPAIR, 45, "repair", 1)                                                                     \
    X(KH_STORE_KEK, 46, "kek", 1)                                                                           \
    X(KH_STORE_ORDERS, 47, "orders", 1)                                                                     \
    X(KH_STORE_LEAVE, 48, "leave", 1)

typedef enum kh_store_op {
#define KH_X(constant, number, name, admin) constant = number,
    KH_STORE_OPS(KH_X)
#undef KH_X
} kh_store_op;

#define KH_RECORD_DATA_MAX (KH_MESSAGE_MAX + 2048)

/*
 * What the store says of one key version, and what create, import and lookup exchange. Fixed layout, same machine and same
 * build on both sides; copied with memcpy, never cast from shared memory.
 */
typedef struct kh_key_info {
    uint64_t ref;     /* names this version in records; never reused, not 0 */
    uint64_t created; /* Unix time, seconds */
    uint32_t version; /* 1, 2, … */
    uint32_t type;    /* kh_key_type */
    uint32_t bits;
    uint32_t usage;   /* set of kh_usage */
    uint32_t state;   /* 1 enabled, 2 disabled, 3 deleted (kh_key_state of the protocol) */
    uint32_t flags;   /* requests: KH_KEY_NEW_VERSION, KH_KEY_ALLOW_DUPLICATE */
    uint32_t spki_len;
    uint32_t tier;       /* kh_tier; 0 in a request: software */
    uint64_t not_before; /* Unix time, seconds; 0: none. Before it the key does nothing */
    uint64_t expires;    /* the same; from it on the key does nothing. 0: never */
    uint8_t id[KH_KEY_ID_LEN];
    char name[KH_NAME_MAX + 1];   /* zero-terminated */
    char place[KH_PLACE_MAX + 1]; /* the token or pool, as the configuration names it; empty: software, or the only one */
    uint8_t spki[KH_SPKI_MAX];
} kh_key_info;

#define KH_KEY_ALLOW_DUPLICATE 0x1u
#define KH_KEY_NEW_VERSION 0x2u
#define KH_SIGN_IS_DIGEST 0x1u /* flags of KH_STORE_SIGN: data is the digest; needs usage `sign` */

/*
 * One operation for the keeper. The fields that an operation uses:
 *   sign         key_ref, scheme, flags, data = message (or digest)                → signature (ECDSA: DER)
 *   tls-rsa-kx   key_ref, arg = client_hello legacy_version, data = ciphertext     → always 48 bytes; needs usage tls-rsa-kx
 *   decrypt      key_ref, scheme = kh_padding, arg = label bytes, data = label || ciphertext → plaintext
 *   lookup       data = "name", "name/version" (flags 0) or 32 bytes of id (flags 1)
 *                → 1 to KH_LOOKUP_MAX kh_key_info, enabled ones first, newest version first
 *   list         data = last "name/version" of the page before or empty, arg = most entries, 1 to KH_LIST_PAGE
 *                → up to that many kh_key_info without spki (spki_len 0); empty at the end. Glob filtering is the caller's.
 *   import-key   → 32 bytes, X25519 public key
 *   create       data = kh_key_info (name, type, bits, usage, flags)               → kh_key_info
 *   import       data = kh_key_info (name, usage, flags) || HPKE-sealed PKCS#8     → kh_key_info
 *                KH_E_FORBIDDEN over the ring: the key was purged once, or is there deleted or disabled by root
 *   set-state    data = kh_key_info (name; version or 0; state)                    → kh_key_info of the newest
 *                version 0: disabled and deleted concern all versions, enabled the newest that is not deleted
 *                deleted is final here: only recover (admin) undoes it
 *                what was disabled over the admin socket is enabled only there: KH_E_FORBIDDEN over the ring
 *   recover, purge (admin) data = kh_key_info (name)                               → nothing
 *                   purge: KH_E_ORDER: it is not deleted. KH_E_FORBIDDEN: it was deleted too lately for its retention
 *   certify (admin) key_ref, scheme, data = TBSCertificate or CertificationRequestInfo → signature, whatever the usage
 *   policy (admin)  data = a name, or nothing: the store                         → kh_name_policy (zeros: none)
 *   set (admin)     data = kh_key_change                                         → kh_key_info of the version
 *                   KH_E_FORBIDDEN: retention would be lowered
 *   move (admin)    data = kh_key_info (name, version or 0, tier, place)         → kh_key_info, of a key that is in a token now
 *                   KH_E_ORDER: it is in one already, or deleted
 *   adopt (admin)   data = kh_key_adoption                                       → kh_key_info
 *                   KH_E_NOT_FOUND: no such token, or key in it
 * Keys of tokens: KH_E_UNAVAILABLE while the token, or the pool's quorum, is not there.
 *   repair (admin) data = name of a pool: its keys are looked for in all its partitions, and placed → nothing, at once
 *   leave (admin) data = kh_pool_leave: the token gets no key of the pool any more, and what it has of them is destroyed, until
 *                a repair of the pool → kh_left. KH_E_NOT_FOUND, KH_E_UNAVAILABLE: there is no such token, or it is not there
 *   orders (admin) → kh_order for each token that has something to be destroyed
 *   kek (admin) → kind and parameters (kek.h, 20 bytes) by which the KEK comes from its secret, and the next one during a change
 *                data = the KEK, kind and parameters of the next one, the next one: from then on either opens the store → nothing
 *                data = a KEK, 32 bytes: only it opens the store any more → nothing. KH_E_PASSPHRASE: it did not before
 * The following go in slices, and others are served between them; they end when the asker hangs up:
 *   check (admin) → text: one line per finding, "ok N keys" or "damaged: good are N keys; N findings" at the end
 *   backup (admin) a descriptor of an empty file                                    → kh_store_report; the file is a store
 *   backed-up (admin): the backup is where it should be                            → nothing
 *   export (admin) a descriptor of an empty file; data = globs of names, each with its zero; none: all → kh_store_report
 *   import-all (admin) a descriptor of an export; data = transfer key (32 bytes) or nothing; flags: KH_IMPORT_PURGED
 *                → kh_store_report; after a failure a text that names the key. Nothing is stored unless all of it may be.
 */
typedef struct kh_record {
    uint64_t cookie;      /* the caller's; comes back with the completion */
    uint64_t key_ref;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: none. Past it the operation is answered KH_E_DEADLINE, not computed */
    uint32_t op;          /* kh_store_op */
    uint32_t scheme;
    uint32_t flags;
    uint32_t arg;
    const uint8_t *data;  /* borrowed during submit */
    uint32_t data_len;    /* at most KH_RECORD_DATA_MAX */
} kh_record;

/* ---- What is said of a name, and of a key beside its bytes ----------------------------------------------------- */

#define KH_TAGS_MAX 1024      /* bytes of all tags of a name: "KEY=VALUE\n" each */
#define KH_TAG_KEY_MAX 64     /* as a key's name is made */
#define KH_DAYS_MAX 3660      /* of rotation and retention */

/* Whether it is lines "KEY=VALUE\n" as a change of tags has them: keys as names are, values UTF-8 without control characters. */
bool kh_tags_valid(const char *tags);

/* All of a name's versions have it. The name "" is the whole store's: only retain_days counts, for every key. */
typedef struct kh_name_policy {
    char name[KH_NAME_MAX + 1];
    uint32_t rotate_days; /* the keeper makes a new version when the newest is so old; 0: never */
    uint32_t retain_days; /* a deleted key is not purged before; 0: at once. Can be raised, never lowered */
    char tags[KH_TAGS_MAX + 1];
} kh_name_policy;

/* A key that somebody else made in a token. Found by CKA_ID, else by label; info: name, usage, flags, place, validity. */
typedef struct kh_key_adoption {
    kh_key_info info;
    uint32_t id_len; /* at most 64; 0: by label alone */
    uint8_t id[64];
    char label[KH_NAME_MAX + 1];
} kh_key_adoption;

#define KH_CHANGE_NOT_BEFORE 0x1u
#define KH_CHANGE_EXPIRES 0x2u
#define KH_CHANGE_ROTATE 0x4u
#define KH_CHANGE_RETAIN 0x8u
#define KH_CHANGE_TAGS 0x10u
#define KH_CHANGE_ALL 0x1fu

/* What KH_STORE_SET changes. Validity is a version's (0: the newest), the rest is the name's. */
typedef struct kh_key_change {
    uint32_t what; /* set of KH_CHANGE_ */
    uint32_t version;
    uint64_t not_before, expires;
    kh_name_policy policy; /* tags: "KEY=VALUE\n" sets one, "KEY=\n" removes it, others stay */
} kh_key_change;

#define KH_IMPORT_PURGED 0x1u /* keys that were purged here may come back */

/* What an export, an import or a backup did. */
typedef struct kh_store_report {
    uint64_t keys;    /* in the file */
    uint64_t stored;  /* of them, by this import */
    uint64_t present; /* of them, there before */
} kh_store_report;

/* Objects of keys that are no more, which a token still has: it was away, or did not destroy them. They are tried again. */
typedef struct kh_order {
    char token[KH_PLACE_MAX + 1];
    uint64_t objects;
} kh_order;

/* A token that is no partition of that pool any more. */
typedef struct kh_pool_leave {
    char pool[KH_PLACE_MAX + 1];
    char token[KH_PLACE_MAX + 1];
} kh_pool_leave;

/* Keys of the pool: destroyed there, or not there; and those that the token would not destroy. */
typedef struct kh_left {
    uint64_t gone, kept;
} kh_left;

#define KH_LOOKUP_MAX 8
#define KH_LIST_PAGE 16

typedef struct kh_completion {
    uint64_t cookie;
    kh_result result;
    const uint8_t *data;  /* points into the ring; valid until kh_keystore_release of this completion's slot */
    uint32_t data_len;
    uint32_t slot;        /* give back with kh_keystore_release */
    uint32_t batch;       /* operations in the batch it was computed in; 0: not computed in a batch */
} kh_completion;

/* ---- Usage ------------------------------------------------------------------------------------------------------- */

/*
 * The usages (a set of kh_usage) of which each by itself lets a key of that type sign these bytes; 0: none does. The
 * keeper decides for itself, whatever the front makes of it: this is for choosing among duplicates of a key.
 */
uint32_t kh_usages_to_sign(uint32_t key_type, uint32_t scheme, bool is_digest, const uint8_t *data, size_t len);

/* ---- Lane groups: what may share a batch ------------------------------------------------------------------------ */

/* X(constant, number, name) */
#define KH_LANES(X)                                                                                         \
    X(KH_LANE_STORE, 0, "store")                                                                            \
    X(KH_LANE_RSA2048, 1, "rsa2048")                                                                        \
    X(KH_LANE_RSA3072, 2, "rsa3072")                                                                        \
    X(KH_LANE_RSA4096, 3, "rsa4096")                                                                        \
    X(KH_LANE_P256, 4, "p256")                                                                              \
    X(KH_LANE_P384, 5, "p384")                                                                              \
    X(KH_LANE_P521, 6, "p521")                                                                              \
    X(KH_LANE_ED25519, 7, "ed25519")

typedef enum kh_lane {
#define KH_X(constant, number, name) constant = number,
    KH_LANES(KH_X)
#undef KH_X
    KH_LANE_COUNT
} kh_lane;

const char *kh_lane_name(int lane);
/* RSA sizes round up to the next of the three; KH_LANE_STORE for an unknown type. */
kh_lane kh_lane_of(int key_type, unsigned bits);

#define KH_BATCH_MAX 8
#define KH_STORE_ID_LEN 16 /* random; names a store and its copies */

/* ---- The front's side ------------------------------------------------------------------------------------------- */

typedef struct kh_keystore kh_keystore;

/*
 * Makes the shared memory of a ring for `slots` records in flight (8 to 4096) and a pair of sockets (non-blocking,
 * close-on-exec). Called by the supervisor, which hands duplicates to front and keeper. The memfd's size is sealed.
 * fds[0] memory, fds[1] the front's end of the sockets (readable: completions), fds[2] the keeper's. Workers sleep on a futex
 * in the memory, which wakes exactly as many as there is work for, but for at most half a second: a hostile front can steal a
 * wake-up. A keeper process needs futex(2) and sendto(2), a front futex(2) and recvfrom(2).
 * A ring whose keeper died is not continued: make a new one for the next keeper and the front, and count what is outstanding
 * in the old one as failed.
 */
KH_MUST_USE kh_result kh_ring_create(uint32_t slots, int fds[3]);
/*
 * Attaches as the front; takes ownership of the three descriptors, also on failure. One thread uses the handle.
 * KH_E_VERSION: the memory was made by another build.
 */
KH_MUST_USE kh_result kh_keystore_attach(int fds[3], kh_keystore **keystore);
void kh_keystore_free(kh_keystore *keystore); /* NULL is fine. Outstanding operations are simply forgotten. */
/* Copies the record into a free slot. KH_E_OVERLOADED: no slot free. KH_E_TOO_LARGE. Does not wake the keeper. */
KH_MUST_USE kh_result kh_keystore_submit(kh_keystore *keystore, const kh_record *record);
/* Wakes sleeping workers, one for each batch of new work. Once per event loop turn. No system call if none sleeps. */
void kh_keystore_flush(kh_keystore *keystore);
/*
 * The calling thread, the front's, keeps to one CPU, the one on which it runs now or, if that is `avoid` (-1: none is), another;
 * the workers leave it to it from their next operation on, as far as each is allowed another (sched_setaffinity(2)). Returns
 * the CPU; -1: it cannot be (one CPU is allowed, or the call is not), and all may run anywhere.
 */
int kh_keystore_apart(kh_keystore *keystore, int avoid);
/* All may run where they might before; so it is too when the handle is freed. */
void kh_keystore_anywhere(kh_keystore *keystore);
/* Takes up to max completions; never blocks. Each slot must be released afterwards. */
size_t kh_keystore_collect(kh_keystore *keystore, kh_completion *completions, size_t max);
/* Wipes the result and frees the slot. */
void kh_keystore_release(kh_keystore *keystore, const kh_completion *completion);
/* Readable when there may be completions; kh_keystore_collect drains it and arms it again when it returns 0. */
int kh_keystore_event_fd(const kh_keystore *keystore);
uint32_t kh_keystore_free_slots(const kh_keystore *keystore);
/* Rises with every change of any key (create, import, state, purge): whoever caches lookups drops them then. */
uint64_t kh_keystore_generation(const kh_keystore *keystore);

/* Counters that the keeper keeps in the ring; read at any time (each value by itself is exact). */
typedef struct kh_lane_stats {
    uint64_t operations;           /* computed, successful or not */
    uint64_t errors;
    uint64_t expired;
    uint64_t batches[KH_BATCH_MAX + 1]; /* by fill */
    uint64_t by_openssl, by_kernel;     /* operations by the way taken */
    uint64_t kernel_faults;             /* lanes whose check failed; redone by OpenSSL */
    uint64_t busy_ns;                   /* time spent computing */
} kh_lane_stats;

typedef struct kh_keeper_stats {
    kh_lane_stats lanes[KH_LANE_COUNT];
    uint64_t keys_resident, keys_loaded, keys_evicted;
    uint64_t refused_usage;
    uint32_t workers, kernels; /* kernels: 0 openssl, 1 portable, 2 avx512-ifma */
    uint32_t running;          /* 1 while a keeper serves this ring */
    uint32_t kernels_failed;   /* 1: they failed their test at start, and OpenSSL computes all */
    uint64_t last_backup;      /* Unix time; 0: never */
    uint64_t orders;           /* objects in tokens that are to be destroyed and are not yet */
    uint8_t store_id[KH_STORE_ID_LEN];
} kh_keeper_stats;

void kh_keystore_stats(const kh_keystore *keystore, kh_keeper_stats *stats);

/* ---- The keeper's side ------------------------------------------------------------------------------------------ */

typedef enum kh_log_level { KH_LOG_ERROR = 0, KH_LOG_WARN, KH_LOG_NOTICE, KH_LOG_INFO, KH_LOG_DEBUG } kh_log_level;
/* One event: `text` without newline, no secrets. Thread-safe. */
typedef void (*kh_log_fn)(void *ctx, kh_log_level level, const char *text);

typedef enum kh_kek_kind { KH_KEK_FILE = 1, KH_KEK_PASSPHRASE = 2 } kh_kek_kind;

typedef struct kh_keeper_config {
    const char *store_path;    /* SQLite file; its directory must be writable by the keeper's user */
    kh_kek_kind kek_kind;
    uint8_t *kek_secret;       /* 32 bytes (file) or the passphrase; the keeper wipes it after use */
    size_t kek_secret_len;
    uint32_t workers;          /* signing threads; 0: one per CPU */
    uint32_t cache_keys;       /* most resident private keys; 0: 10000 */
    uint32_t batch_window_us;  /* 0: a free worker takes what is there */
    bool use_kernels;          /* false: kernels = openssl */
    int control_fd;            /* SOCK_SEQPACKET from the supervisor: kh_keeper_send_*; its end of file stops the keeper */
    int admin_fd;              /* listening SOCK_SEQPACKET Unix socket for kh_admin_call, or -1 */
    bool with_places;          /* kh_keeper_send_places follows: the admin socket waits for it */
    void (*confine)(void *ctx);   /* called when all files are open and all threads about to start; installs seccomp */
    void (*ready)(void *ctx);     /* called when it can serve */
    kh_log_fn log;
    void *ctx;
} kh_keeper_config;

/*
 * Makes all of OpenSSL's frees in this process wipe what they free. First thing in main(), before any use of OpenSSL:
 * later it has no effect, and the keeper says so in its log.
 */
void kh_secure_openssl(void);

/*
 * Runs the keeper in this process until told to stop or the control socket closes. Makes the process non-dumpable, locks
 * its memory (a warning if it may not), makes OpenSSL's frees wipe. KH_E_LOCKED: another agent has the store.
 * KH_E_PASSPHRASE: the KEK does not open it. KH_E_VERSION, KH_E_STORAGE, KH_E_DAMAGED: as named.
 */
KH_MUST_USE kh_result kh_keeper_run(const kh_keeper_config *config);
/* Gives the keeper a ring (duplicates of fds are sent); one that it had before is finished and unmapped. */
KH_MUST_USE kh_result kh_keeper_send_ring(int control_fd, const int fds[3]);
/* Asks it to finish what it has and exit. */
KH_MUST_USE kh_result kh_keeper_send_stop(int control_fd);

/* The tokens and pools of the configuration, as far as the store's keeper has to know them. Plain data; zeros: none. */
#define KH_PLACES_TOKENS 16
#define KH_PLACES_POOLS 8
typedef struct kh_keeper_pool {
    char name[KH_PLACE_MAX + 1];
    uint32_t quorum;             /* partitions that must have a new key before it is acknowledged: 1 to partition_count */
    uint32_t partition_count;
    uint32_t partitions[KH_PLACES_TOKENS]; /* indices of tokens */
} kh_keeper_pool;
typedef struct kh_keeper_places {
    uint32_t token_count, pool_count;
    char tokens[KH_PLACES_TOKENS][KH_PLACE_MAX + 1]; /* zero-terminated names */
    kh_keeper_pool pools[KH_PLACES_POOLS];
} kh_keeper_places;

/* The store's keeper gets this before the first link, and again whenever the configuration changed. */
KH_MUST_USE kh_result kh_keeper_send_places(int control_fd, const kh_keeper_places *places);
/*
 * Gives the store's keeper its end of a new link (keystore/link.h) to that token's keeper: a duplicate is sent. One that it had
 * before to that token is closed. Sent again whenever either of the two is new.
 */
KH_MUST_USE kh_result kh_keeper_send_link(int control_fd, const char *token, int fd);

/* ---- A token's keeper -------------------------------------------------------------------------------------------- */

/* Why it ends. */
typedef enum kh_token_end {
    KH_TOKEN_STOPPED, /* it was told to, or its supervisor is gone */
    KH_TOKEN_PIN,     /* the PIN is wrong or locked, and was tried once: not to be tried again */
    KH_TOKEN_HUNG,    /* a call of the library does not come back */
    KH_TOKEN_GONE,    /* token, device or library failed: it takes a new process to open it again */
} kh_token_end;

typedef struct kh_token_config {
    const char *name;   /* in the configuration and the logs */
    const char *module; /* absolute path of the PKCS#11 library */
    const char *label, *serial; /* which token; NULL: any */
    const uint8_t *pin; /* locked memory that stays until the end: a token may want it again. NULL: no login */
    size_t pin_len;
    bool new_pin; /* never tried yet: tried also where one more wrong PIN would lock the token */
    uint32_t sessions;        /* 1 to 64: operations at a time */
    uint32_t call_timeout_ms; /* a call that takes longer counts as hung; what makes keys may take a minute */
    int control_fd;           /* as a keeper's: kh_keeper_send_ring, _link, _stop; its end of file stops it */
    void (*ready)(void *ctx); /* the token is open, or was found not to be there yet: it takes rings */
    void (*end)(void *ctx, kh_token_end why); /* ends the process with _exit: threads may be inside the library */
    kh_log_fn log;
    void *ctx;
} kh_token_config;

/*
 * Runs the keeper of one PKCS#11 token in this process, until config->end. A token that is not there is waited for, and
 * operations are answered KH_E_UNAVAILABLE meanwhile. Returns only if it cannot begin: KH_E_MEMORY, KH_E_CRYPTO.
 */
KH_MUST_USE kh_result kh_token_run(const kh_token_config *config);

/* ---- The admin socket: root's way past the front ---------------------------------------------------------------- */

/*
 * One record to the keeper over its admin socket (SOCK_SEQPACKET, one datagram each way) and its answer: result data in
 * out (cap bytes, *out_len set). All operations of kh_store_op are possible. The keeper accepts peers of uid 0 only
 * (or its own uid when the agent runs unprivileged). Blocks at most timeout_ms. KH_E_UNAVAILABLE: no keeper there.
 */
KH_MUST_USE kh_result kh_admin_call(const char *socket_path, const kh_record *record, uint8_t *out, size_t cap,
                                    size_t *out_len, uint32_t timeout_ms);

/* What came before the answer: a piece of it, or nothing but a sign of life. */
typedef void (*kh_admin_part_fn)(void *ctx, const uint8_t *data, size_t len);
/*
 * The same for operations that take long or need a file: a duplicate of fd (-1: none) goes along, and timeout_ms is what may
 * pass without a sign of life. part may be NULL. After a failure out may have a text that says why (*out_len > 0).
 */
KH_MUST_USE kh_result kh_admin_call_long(const char *socket_path, const kh_record *record, int fd, kh_admin_part_fn part,
                                         void *ctx, uint8_t *out, size_t cap, size_t *out_len, uint32_t timeout_ms);

/* ---- Making a store (keyholdctl init) --------------------------------------------------------------------------- */

/*
 * Creates an empty store at path (must not exist: KH_E_EXISTS) with a fresh store key sealed under the KEK and a fresh
 * import key pair; *import_public receives the import key. File mode 0600; the caller chowns.
 */
KH_MUST_USE kh_result kh_store_init(const char *path, kh_kek_kind kind, const uint8_t *kek_secret, size_t kek_secret_len,
                                    uint8_t import_public[32]);
/* KEK files hold one line "keyhold-kek-1 HEX(32 bytes)", mode 0600. Create: fresh random key; never overwrites. */
KH_MUST_USE kh_result kh_kek_file_create(const char *path);
/* KH_E_IO, KH_E_MALFORMED, KH_E_FORBIDDEN (mode & 077). */
KH_MUST_USE kh_result kh_kek_file_load(const char *path, uint8_t kek[32]);

#ifdef __cplusplus
}
#endif
#endif

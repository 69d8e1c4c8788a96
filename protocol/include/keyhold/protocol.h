/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire part of libkeyhold-protocol: messages, codec, and the two ends of a connection as sans-IO sessions
 * (protocol/SPEC.md). Bytes go in, bytes come out; nothing here opens a descriptor, reads a clock, or knows OpenSSL.
 *
 * Threads: an object is used by one thread at a time. Nothing is global.
 * Memory: decoding and encoding allocate nothing. A session allocates when it is made and when its buffers grow, which
 * they do only for bytes that have arrived or replies that were asked for, never for a number that a peer announced.
 */
#ifndef KEYHOLD_PROTOCOL_H
#define KEYHOLD_PROTOCOL_H

#include <keyhold/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KH_PROTOCOL_VERSION 1
#define KH_FRAME_PREFIX 4          /* bytes: payload length, big endian */
#define KH_FRAME_MAX 65536         /* bytes of payload, the default cap */
#define KH_FRAME_MIN_CAP 20480     /* no configuration may cap frames below this: KH_MESSAGE_MAX has to fit */
#define KH_NONCE_LEN 32
#define KH_PROOF_LEN 32            /* HMAC-SHA-256 */
#define KH_NEST_MAX 4              /* deepest array nesting in any message */

/* A borrowed run of bytes: never owned, valid as long as what it points into. {NULL, 0} is empty. */
typedef struct kh_bytes {
    const uint8_t *data;
    size_t len;
} kh_bytes;

/* Operations. X(constant, number, name, may be sent only to manage keys) */
#define KH_OPS(X)                                                                                           \
    X(KH_OP_HELLO, 0, "hello", 0)                                                                           \
    X(KH_OP_AUTH, 1, "auth", 0)                                                                             \
    X(KH_OP_PING, 2, "ping", 0)                                                                             \
    X(KH_OP_CANCEL, 3, "cancel", 0)                                                                         \
    X(KH_OP_SIGN, 4, "sign", 0)                                                                             \
    X(KH_OP_TLS_RSA_DECRYPT, 5, "tls-rsa-decrypt", 0)                                                       \
    X(KH_OP_DECRYPT, 6, "decrypt", 0)                                                                       \
    X(KH_OP_PUBLIC_KEY, 7, "public-key", 0)                                                                 \
    X(KH_OP_LIST, 8, "list", 0)                                                                             \
    X(KH_OP_STATUS, 9, "status", 0)                                                                         \
    X(KH_OP_DESCRIBE, 10, "describe", 0)                                                                    \
    X(KH_OP_IMPORT_KEY, 16, "import-key", 1)                                                                \
    X(KH_OP_CREATE, 17, "create", 1)                                                                        \
    X(KH_OP_IMPORT, 18, "import", 1)                                                                        \
    X(KH_OP_SET_STATE, 19, "set-state", 1)                                                                  \
    X(KH_OP_CREATE_PLACED, 20, "create-placed", 1)                                                          \
    X(KH_OP_IMPORT_PLACED, 21, "import-placed", 1)

typedef enum kh_op {
#define KH_X(constant, number, name, manage) constant = number,
    KH_OPS(KH_X)
#undef KH_X
} kh_op;

/* "sign", …; "unknown". Static storage. */
const char *kh_op_name(int op);
/* The operation of that name, or -1. */
int kh_op_parse(const char *name);

/* State of a key version. Wire format. */
typedef enum kh_key_state {
    KH_STATE_ENABLED = 1,
    KH_STATE_DISABLED = 2,
    KH_STATE_DELETED = 3, /* soft: refused for every use; recover and purge are the admin socket's */
} kh_key_state;

/* Flags of requests. */
#define KH_SIGN_PREHASHED 0x1u   /* data is the digest, not the message: only for keys with usage `sign` */
#define KH_IMPORT_ALLOW_DUPLICATE 0x1u /* the same key may already be stored under another name */
#define KH_CREATE_NEW_VERSION 0x2u     /* the name may exist: make its next version, usage inherited */

/*
 * A request, client to agent. Views point into the decoded frame. On the wire an array
 *   [op, id, deadline_ms, …]      with the fields that the operation has, in this order:
 *
 *   hello            version_min, version_max, max_frame, client_name (str), identity (str), nonce (bin 32)
 *                    (no id or deadline: [0, version_min, …])
 *   auth             proof (bin 32, or empty when identity is empty)                 ([1, proof])
 *   ping             –
 *   cancel           – (id names the request to cancel; has no reply of its own)     ([3, id])
 *   sign             key, scheme, flags, data
 *   tls-rsa-decrypt  key, arg = ClientHello.legacy_version (RFC 5246, 7.4.7.1), data = ciphertext
 *   decrypt          key, arg = kh_padding, label (bin), data = ciphertext
 *   public-key       key
 *   list             name = glob, after (str: last "name/version" of the page before, or ""), arg = most entries (1 to 64)
 *   status           –
 *   import-key       –
 *   create           name, key_type, bits, usage, flags
 *   import           name, usage, flags, data = HPKE-sealed PKCS#8 (keystore/include/keyhold/import.h)
 *   set-state        key (a name or name/version), arg = kh_key_state
 *   describe         key
 *   create-placed    name, key_type, bits, usage, flags, tier, place (str), not_before, expires
 *   import-placed    name, usage, flags, tier, place (str), not_before, expires, data as in import
 *
 * `key` is a str (name or name/version) or a bin of 32 bytes (the key's id): key_is_id tells which.
 */
typedef struct kh_request {
    kh_op op;
    uint32_t id;          /* chosen by the client, unique among its outstanding requests */
    uint32_t deadline_ms; /* milliseconds left when sent; 1 to KH_DEADLINE_MAX_MS */
    bool key_is_id;
    kh_bytes key;
    kh_bytes name;
    kh_bytes after;
    kh_bytes label;
    kh_bytes data;
    uint32_t scheme;
    uint32_t flags;
    uint32_t arg;
    uint32_t key_type;
    uint32_t bits;
    uint32_t usage;
    uint32_t tier;                /* kh_tier, or 0: where the version before lives, else in memory */
    kh_bytes place;               /* a token's or pool's name, or empty: the only one */
    uint64_t not_before, expires; /* Unix time in seconds; 0: none */
    /* hello and auth only */
    uint32_t version_min, version_max, max_frame;
    kh_bytes client_name, identity, nonce, proof;
} kh_request;

/* What `public-key`, `create`, `import`, `set-state` return once and `list` returns many of. */
typedef struct kh_key_entry {
    kh_bytes name;     /* without version */
    uint32_t version;
    uint32_t key_type; /* kh_key_type */
    uint32_t bits;
    uint32_t usage;    /* set of kh_usage */
    uint32_t state;    /* kh_key_state */
    uint64_t created;  /* Unix time in seconds */
    kh_bytes id;       /* KH_KEY_ID_LEN bytes */
    kh_bytes spki;     /* DER SubjectPublicKeyInfo, canonical; empty in `list` */
    /* Of a placed entry; else 0 and empty. */
    uint32_t tier;
    kh_bytes place;
    uint64_t not_before, expires;
} kh_key_entry;

#define KH_LIST_MAX 64 /* entries in one `list` reply */

/*
 * A reply, agent to client: [op, id, status, …]. With a status other than 0: [op, id, status, retry_after_ms, detail].
 * With status 0, by operation:
 *   hello            version, max_frame, credit, nonce (bin 32), proof (bin 32: the agent's)   ([0, 0, version, …])
 *   auth             identity (str): who the agent takes the caller for                        ([1, 0, identity])
 *                    (a refused hello or auth is [0|1, status, detail], after which the agent closes)
 *   ping             –
 *   sign, tls-rsa-decrypt, decrypt     data (bin)
 *   public-key, create, import, set-state   entry
 *   list             entries (array of entries), more (bool)
 *   status           data (str: a JSON document)
 *   import-key       data (bin 32: X25519 public key)
 *   describe, create-placed, import-placed   a placed entry
 * An entry is an array [name, version, key_type, bits, usage, state, created, id, spki]; a placed entry is one with tier, place,
 * not_before, expires behind it.
 */
typedef struct kh_reply {
    kh_op op;
    uint32_t id;
    kh_result status;
    uint32_t retry_after_ms; /* 0: no advice */
    kh_bytes detail;         /* text for people, at most 255 bytes, never a secret */
    kh_bytes data;
    kh_key_entry entry;
    const kh_key_entry *entries; /* encoding: caller's array; decoding: use kh_reply_entry() */
    uint32_t entry_count;
    kh_bytes entries_raw;        /* decoding: the undecoded entries */
    bool more;
    /* hello and auth only */
    uint32_t version, max_frame, credit;
    kh_bytes nonce, proof, identity;
} kh_reply;

/*
 * Encodes one frame, prefix included, into buf. KH_E_TOO_LARGE when cap does not suffice or a field exceeds its limit,
 * KH_E_INVALID when a field does not belong; then *len is 0. No allocation.
 */
KH_MUST_USE kh_result kh_request_encode(const kh_request *req, uint8_t *buf, size_t cap, size_t *len);
KH_MUST_USE kh_result kh_reply_encode(const kh_reply *reply, uint8_t *buf, size_t cap, size_t *len);
/*
 * Decodes one payload (without prefix), exactly `len` bytes. Views point into `payload`. KH_E_MALFORMED for anything that
 * is not exactly one message as above (trailing bytes, wrong types, non-minimal array sizes, over-long strings),
 * KH_E_UNSUPPORTED for a well-formed array whose operation is unknown (op and id are then set, so it can be answered),
 * KH_E_TOO_LARGE when a field is over its limit (op and id are set). No allocation.
 */
KH_MUST_USE kh_result kh_request_decode(const uint8_t *payload, size_t len, kh_request *req);
KH_MUST_USE kh_result kh_reply_decode(const uint8_t *payload, size_t len, kh_reply *reply);
/* Decodes entry `index` of a decoded list reply. KH_E_INVALID: no such entry. Linear in index. */
KH_MUST_USE kh_result kh_reply_entry(const kh_reply *reply, uint32_t index, kh_key_entry *entry);

/* ---- The agent's end of one connection ------------------------------------------------------------------------- */

typedef struct kh_server kh_server;

typedef struct kh_server_config {
    uint32_t max_frame; /* 0: KH_FRAME_MAX */
    uint32_t credit;    /* most outstanding requests of this connection; 0: 1024 */
} kh_server_config;

/* KH_E_MEMORY, KH_E_INVALID. Free with kh_server_free (NULL is fine). */
KH_MUST_USE kh_result kh_server_new(const kh_server_config *config, kh_server **server);
void kh_server_free(kh_server *server);

/*
 * Where the next bytes from the socket go: at least 1 byte of room, at most *cap. The buffer starts at 4 KiB and grows only
 * when a started frame needs it and its bytes really come. NULL: out of memory, or nothing may be read now
 * (kh_server_wants_read is false). Then tell how many came.
 */
uint8_t *kh_server_read_buffer(kh_server *server, size_t *cap);
void kh_server_fed(kh_server *server, size_t len);
/*
 * False while the peer's unread replies exceed the high-water mark, while the buffer is full of requests that were not
 * taken with kh_server_next, and after a fatal error.
 */
bool kh_server_wants_read(const kh_server *server);
/*
 * The next complete request. KH_OK: *req is filled; its views hold until the next call of next, read_buffer or free.
 * KH_AGAIN: more bytes are needed. KH_E_UNSUPPORTED and KH_E_TOO_LARGE: one request that the session has already answered
 * itself; call again. Any other: the connection is lost (a fatal reply may be in the output: flush, then close).
 * The session itself enforces the order hello, auth, others; the credit; unique outstanding ids. hello and auth are handed to
 * the caller, which answers them with kh_server_reply (nonces and proofs are its business, the session knows no HMAC).
 * KH_AGAIN can also mean that a `list` or `status` waits in the buffer until replies before it were read: call next again
 * after kh_server_sent. A cancel is handed out at most once, and only for a request that is outstanding.
 */
KH_MUST_USE kh_result kh_server_next(kh_server *server, kh_request *req);
/*
 * Queues a reply; each request but cancel gets exactly one, cancelled or not. KH_E_ORDER: no such request is outstanding.
 * KH_E_MEMORY: the connection is lost. KH_E_CLOSED: it was lost before, nothing is queued. In the reply to hello the session
 * itself fills in version, max_frame and credit. A reply that cannot be encoded or exceeds the peer's max_frame is replaced
 * by an error; a detail that is too long is cut.
 */
KH_MUST_USE kh_result kh_server_reply(kh_server *server, const kh_reply *reply);
/* What is to be written; then tell how much of it was. Empty: nothing. Valid until the next call on this session. */
kh_bytes kh_server_output(const kh_server *server);
void kh_server_sent(kh_server *server, size_t len);
/* Outstanding requests; whether the handshake is done. */
uint32_t kh_server_outstanding(const kh_server *server);
bool kh_server_ready(const kh_server *server);

/* ---- The caller's end of one connection ------------------------------------------------------------------------ */

typedef struct kh_session kh_session;

/*
 * HMAC-SHA-256 under the token's secret, supplied by the caller so that this part knows no OpenSSL:
 * proof = HMAC(secret, label || nonce_client || nonce_agent), label one of "keyhold-1 client", "keyhold-1 agent"
 * (16 and 15 bytes, no terminator). Writes KH_PROOF_LEN bytes. Returns false on failure.
 */
typedef bool (*kh_prove_fn)(void *ctx, const char *label, const uint8_t *nonce_client, const uint8_t *nonce_agent,
                            uint8_t *proof);

typedef struct kh_session_config {
    const char *client_name;     /* for the agent's log; copied */
    const char *identity;        /* token's name, or "" for the peer's uid; copied */
    uint8_t nonce[KH_NONCE_LEN]; /* fresh random bytes */
    kh_prove_fn prove;           /* may be NULL when identity is "" */
    void *prove_ctx;             /* must outlive the session */
    uint32_t max_inflight;       /* 0: what the agent's credit allows (before hello: 1024) */
} kh_session_config;

typedef enum kh_session_state {
    KH_SESSION_OPENING, /* hello and auth under way; requests may be submitted already, they go out when it is ready */
    KH_SESSION_READY,
    KH_SESSION_LOST, /* fatal error or kh_session_abort: only drain and free are left */
} kh_session_state;

KH_MUST_USE kh_result kh_session_new(const kh_session_config *config, kh_session **session);
/* Outstanding requests are dropped without a reply: drain them first. NULL is fine. */
void kh_session_free(kh_session *session);
kh_session_state kh_session_get_state(const kh_session *session);
/* Who the agent takes this caller for; "" before it said so. Valid as long as the session. */
const char *kh_session_identity(const kh_session *session);
/*
 * Queues a request (req->id is ignored and chosen). `user` comes back with its reply. deadline_ms counts from now_ms, a
 * monotonic clock in milliseconds of the caller's. KH_E_OVERLOADED: max_inflight or credit reached. KH_E_CLOSED: lost.
 * KH_E_TOO_LARGE, KH_E_INVALID: from encoding. Allocates only when the output buffer or the table of outstanding
 * requests has to grow.
 */
KH_MUST_USE kh_result kh_session_submit(kh_session *session, const kh_request *req, uint64_t now_ms, void *user,
                                        uint32_t *id);
/* Forgets the request (its reply, if it still comes, is swallowed) and tells the agent. No effect for an unknown id. */
void kh_session_cancel(kh_session *session, uint32_t id);
/* As with kh_server. */
kh_bytes kh_session_output(const kh_session *session);
void kh_session_sent(kh_session *session, size_t len);
uint8_t *kh_session_read_buffer(kh_session *session, size_t *cap);
void kh_session_fed(kh_session *session, size_t len);
/*
 * The next reply to a submitted request. KH_OK: *reply and *user are set; views hold until the next call of next,
 * read_buffer or free. KH_AGAIN: none. Else: the connection is lost for that reason; drain follows. A reply to an id
 * that is not outstanding, or of another operation, is a fatal KH_E_MALFORMED, unless it was cancelled before.
 */
KH_MUST_USE kh_result kh_session_next(kh_session *session, kh_reply *reply, void **user);
/* Marks the session lost for `why` (transport error, end of file). */
void kh_session_abort(kh_session *session, kh_result why);
/* After loss: takes the outstanding requests one by one (true: *user is set); they are to be failed with `why`. */
bool kh_session_drain(kh_session *session, void **user);
/* Takes one request whose deadline is at or before now_ms (true: *user is set), cancelling it at the agent. */
bool kh_session_expire(kh_session *session, uint64_t now_ms, void **user);
/* The earliest deadline in ms of the caller's clock; UINT64_MAX when nothing is outstanding. */
uint64_t kh_session_next_deadline(const kh_session *session);
uint32_t kh_session_outstanding(const kh_session *session);
/* Why the session is lost, KH_OK while it is not; the agent's words for it ("" if none). */
kh_result kh_session_why(const kh_session *session, const char **detail);

#ifdef __cplusplus
}
#endif
#endif

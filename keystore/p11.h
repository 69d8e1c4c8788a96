/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PKCS#11 token (2.40 or 3.0), as the token's keeper uses it: the module, one login, sessions, and the keys
 * in it. Nothing of the vendor's comes through this header: no CK_ type but handles, and one result that says
 * what to do.
 *
 * Threads: kh_p11_open and kh_p11_close by one; everything that takes a session by one thread at a time for
 * each session. Every call may hang for as long as the vendor's library does: whoever calls watches from
 * another thread.
 */
#ifndef KEYHOLD_KEYSTORE_P11_H
#define KEYHOLD_KEYSTORE_P11_H

#include <keyhold/keystore.h>

/* What a failed call means for the caller, beside the kh_result that the peer gets. */
typedef enum kh_p11_heal {
    KH_HEAL_NONE,    /* the operation's own fault, or nothing to be done */
    KH_HEAL_SESSION, /* this session is dead: kh_p11_session_renew, and once more */
    KH_HEAL_OBJECT,  /* the handle is dead: find the key again, and once more */
    KH_HEAL_LOGIN,   /* nobody is logged in any more: kh_p11_login, and once more */
    KH_HEAL_TOKEN,   /* token, device or library is gone: this process has to begin anew (C_Finalize is not
                        safe) */
} kh_p11_heal;

typedef struct kh_p11_config {
    const char *module; /* absolute path */
    const char *label;  /* of the token; NULL: any */
    const char *serial; /* NULL: any */
    const uint8_t *pin; /* copied by kh_p11_open (a token may lose its login), wiped by kh_p11_close; not
                           zero-terminated. NULL: no login, but with a token's own PIN pad */
    size_t pin_len;
    bool new_pin; /* it has never been tried: then also where the next wrong one locks the token */
    kh_log_fn log;
    void *log_ctx;
} kh_p11_config;

typedef struct kh_p11 kh_p11;
typedef struct kh_p11_session kh_p11_session;

#define KH_P11_ID_LEN 16 /* bytes of the CKA_ID of keys that are made here: random, and known to the store   \
                          */

/* How a key is found in the token: by CKA_ID (any length up to 64), else by label. Filled from a pkcs11: URI
 * or by us. */
typedef struct kh_p11_locator {
    uint8_t id[64];
    uint8_t id_len;              /* 0: not by id */
    char label[KH_NAME_MAX + 1]; /* empty: not by label */
} kh_p11_locator;

/*
 * Loads the module, initializes it (CKF_OS_LOCKING_OK), finds the one slot with that token (by label and
 * serial, never by slot number: a re-made token has another) and asks which mechanisms it has.
 * KH_E_NOT_FOUND: no such module or token, KH_E_INVALID: more than one token fits; KH_E_UNAVAILABLE: the
 * library or device fails.
 */
KH_MUST_USE kh_result kh_p11_open(const kh_p11_config *config, kh_p11 **p11);
void kh_p11_close(kh_p11 *p11); /* only when no thread is inside; else _exit. NULL is fine */
/*
 * Logs in as user, once for the token; the session that holds the login stays open. Tried once:
 * KH_E_PASSPHRASE (wrong PIN) is for the caller to remember, and the same handle never tries again.
 * KH_E_LOCKED: the PIN is locked. A token that needs no login: KH_OK. Any thread; called again it does
 * nothing while the login holds.
 */
KH_MUST_USE kh_result kh_p11_login(kh_p11 *p11);
/* One more session (read-write only where objects are made). KH_E_OVERLOADED: the token has no more. */
KH_MUST_USE kh_result kh_p11_session_new(kh_p11 *p11, bool read_write, kh_p11_session **session);
/* Closes it and opens another; makes the login again where the token lost it. */
KH_MUST_USE kh_result kh_p11_session_renew(kh_p11_session *session);
/* Whether the token is there, the same one, and the session alive; asks the token. */
KH_MUST_USE kh_result kh_p11_alive(kh_p11_session *session);
void kh_p11_session_free(kh_p11_session *session);
/* What the last failed call on it wants; KH_HEAL_NONE after a success. */
kh_p11_heal kh_p11_session_heal(const kh_p11_session *session);
/* The CKR_ name of the last failed call and the function it came from, for the log: "C_Sign:
 * CKR_DEVICE_ERROR". */
const char *kh_p11_session_error(const kh_p11_session *session);

/* Whether the token can do that scheme with keys of that type, by itself or with what is safely done outside.
 */
bool kh_p11_can(const kh_p11 *p11, uint32_t key_type, uint32_t bits, uint32_t scheme);

/* A private key's object, with what is needed to use it. The caller's; plain data; not a secret. */
typedef struct kh_p11_key {
    unsigned long handle; /* CK_OBJECT_HANDLE */
    uint32_t type, bits;
} kh_p11_key;

/* Finds the private key. KH_E_NOT_FOUND; KH_E_INVALID: several. */
KH_MUST_USE kh_result kh_p11_find(kh_p11_session *session, const kh_p11_locator *locator, kh_p11_key *key);
/* SubjectPublicKeyInfo of the public object with the locator's CKA_ID or label, canonical (keyid.h). spki:
 * KH_SPKI_MAX bytes. */
KH_MUST_USE kh_result kh_p11_public(kh_p11_session *session, const kh_p11_locator *locator, uint8_t *spki,
                                    size_t *spki_len);

/*
 * Whatever has the locator's CKA_ID (of KH_P11_ID_LEN bytes) is replaced: it is what an earlier try left. The same when importing.
 * Makes a pair: token objects, sensitive, never extractable, not modifiable where the token bears it; label
 * is the key's name. */
KH_MUST_USE kh_result kh_p11_generate(kh_p11_session *session, uint32_t type, uint32_t bits,
                                      const kh_p11_locator *locator, uint32_t usage, uint8_t *spki,
                                      size_t *spki_len);
/* Brings in a private key (PKCS#8; the caller wipes it). KH_E_UNSUPPORTED: the token takes none of that type.
 */
KH_MUST_USE kh_result kh_p11_import(kh_p11_session *session, const uint8_t *pkcs8, size_t pkcs8_len,
                                    const kh_p11_locator *locator, uint32_t usage);
/* Destroys every object with that CKA_ID (private and public). Nothing there: KH_OK. */
KH_MUST_USE kh_result kh_p11_destroy(kh_p11_session *session, const kh_p11_locator *locator);

/* out: KH_SIGNATURE_MAX bytes; ECDSA as DER. data is the message, or its digest. KH_E_UNSUPPORTED: the token
 * cannot. */
KH_MUST_USE kh_result kh_p11_sign(kh_p11_session *session, const kh_p11_key *key, uint32_t scheme,
                                  bool is_digest, const uint8_t *data, size_t len, uint8_t *out,
                                  size_t *out_len);
/*
 * Raw RSA: out gets as many bytes as the modulus has. Everything about padding is done outside, in constant
 * time (the token's own unpadding answers differently, and sooner, for bad padding).
 */
KH_MUST_USE kh_result kh_p11_rsa_raw(kh_p11_session *session, const kh_p11_key *key, const uint8_t *data,
                                     size_t len, uint8_t *out, size_t *out_len);

/*
 * Whether the private key belongs to that public key: signs with it, and verifies. KH_E_MISMATCH: it does not. Else as kh_p11_sign:
 * for keys that may sign.
 */
KH_MUST_USE kh_result kh_p11_prove(kh_p11_session *session, const kh_p11_key *key, const uint8_t *spki, size_t spki_len);

/* ---- Pools: keys that are the same in several tokens (p11_pool.c)
 * ------------------------------------------------ */

#define KH_P11_BLOB_MAX 2600 /* bytes: RFC 5649 of an RSA-4096 PKCS#8 */

/*
 * Makes a pair as extractable session objects, wraps the private key under the pool key (RFC 5649) into blob,
 * and forgets them. pool_key: by label "keyhold-pool NAME". KH_E_NOT_FOUND: this token has no pool key;
 * KH_E_UNSUPPORTED: the token does not make or wrap keys of that type (SoftHSM: Ed25519). The same of the
 * next two.
 */
KH_MUST_USE kh_result kh_p11_pool_generate(kh_p11_session *session, const char *pool, uint32_t type,
                                           uint32_t bits, uint8_t *spki, size_t *spki_len, uint8_t *blob,
                                           size_t *blob_len);
/* Wraps a private key that was brought in (PKCS#8) under the pool key. */
KH_MUST_USE kh_result kh_p11_pool_wrap(kh_p11_session *session, const char *pool, const uint8_t *pkcs8,
                                       size_t pkcs8_len, uint8_t *blob, size_t *blob_len);
/*
 * Unwraps a blob into a token object as kh_p11_generate makes them, tries it against spki, and makes the
 * public object. Where a key with that CKA_ID is there already and fits spki, nothing happens; one that does
 * not fit is replaced. KH_E_DAMAGED: the blob is not what this pool key wrapped, KH_E_MISMATCH: it is another
 * key; then nothing stays behind.
 */
KH_MUST_USE kh_result kh_p11_pool_unwrap(kh_p11_session *session, const char *pool, const uint8_t *blob,
                                         size_t blob_len, const kh_p11_locator *locator, uint32_t usage,
                                         const uint8_t *spki, size_t spki_len);

/* ---- The pool key (p11_poolkey.c): for keyholdctl pool
 * ----------------------------------------------------------- */

/*
 * The pool key is an AES-256 key in each partition. It only wraps and unwraps, by RFC 5649; what it unwraps
 * becomes sensitive and not extractable, whatever its caller asks for; it leaves its token only under a key
 * that the security officer trusts.
 *
 * Partitions get it in three steps, each of which may run in a process of its own:
 *   1. in each that gets it   kh_p11_poolkey_receive    makes an RSA pair → public key
 *   2. of a new pool: in one  kh_p11_poolkey_begin      makes the pool key, wraps it for each → transfers, and forgets it
 *      of one that exists     kh_p11_poolkey_hand_over  the officer trusts that public key; the pool key is wrapped → transfer
 *   3. in each that gets it   kh_p11_poolkey_accept     unwraps and tries it; the RSA pair is destroyed
 * Sessions are read-write and logged in.
 */
typedef struct kh_p11_offer {
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len;
} kh_p11_offer;

typedef struct kh_p11_transfer {
    uint8_t hash;         /* of OAEP: 1 SHA-256, 2 SHA-1 */
    uint8_t wrapped[384]; /* RSA-3072 */
    uint32_t probe_len;
    uint8_t probe[256]; /* something that the pool key wrapped */
} kh_p11_transfer;

/* KH_OK: it is there, and as it should be. KH_E_NOT_FOUND; KH_E_FORBIDDEN: it would give away what it
 * unwraps. */
KH_MUST_USE kh_result kh_p11_poolkey_check(kh_p11_session *session, const char *pool);
/* KH_E_EXISTS: it has the pool key. */
KH_MUST_USE kh_result kh_p11_poolkey_receive(kh_p11_session *session, const char *pool, kh_p11_offer *offer);
/* The key is an object of the session: where this is over, only those that accept have it. transfers: count of them. */
KH_MUST_USE kh_result kh_p11_poolkey_begin(kh_p11_session *session, const kh_p11_offer *offers, size_t count,
                                           kh_p11_transfer *transfers);
/*
 * p11 is open, not logged in and without sessions: officer and user log in one after the other. The officer's
 * PIN stays the caller's. error: KH_P11_ERROR_MAX bytes for what went wrong. KH_E_PASSPHRASE: one of the two
 * PINs is wrong.
 */
#define KH_P11_ERROR_MAX 128
KH_MUST_USE kh_result kh_p11_poolkey_hand_over(kh_p11 *p11, const uint8_t *so_pin, size_t so_pin_len,
                                               const char *pool, const kh_p11_offer *offer, kh_p11_transfer *transfer,
                                               char *error);
/* KH_E_DAMAGED: the transfer is not for this token, or not whole; nothing stays behind. KH_E_NOT_FOUND:
 * receive comes first. */
KH_MUST_USE kh_result kh_p11_poolkey_accept(kh_p11_session *session, const char *pool,
                                            const kh_p11_transfer *transfer);
/* Takes the pool key (and what an unfinished joining left) out of this token. Its keys stay. Nothing there:
 * KH_OK. */
KH_MUST_USE kh_result kh_p11_poolkey_forget(kh_p11_session *session, const char *pool);

#endif

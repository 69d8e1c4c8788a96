/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names and numbers that every room of Keyhold shares: results, key types, signature schemes,
 * usages. They appear on the wire (protocol/SPEC.md), in the ring between front and keeper, in the
 * store and in keyholdctl's output, and mean the same everywhere. Numbers are never reused.
 *
 * Depends on the C library alone. All functions here are pure, thread-safe and never fail otherwise
 * than documented.
 */
#ifndef KEYHOLD_TYPES_H
#define KEYHOLD_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KH_MUST_USE __attribute__((warn_unused_result))

/*
 * The one result enum. X(constant, number, wire name, retryable, text for people).
 * "Retryable" means: the same request may succeed later or at another agent; the others need a
 * change by somebody first.
 */
#define KH_RESULTS(X)                                                                                       \
    X(KH_OK, 0, "ok", 0, "success")                                                                         \
    X(KH_AGAIN, 1, "again", 1, "not yet: more bytes, or a later call, are needed")                          \
    X(KH_E_MALFORMED, 2, "malformed", 0, "the frame or record is not well-formed")                          \
    X(KH_E_UNSUPPORTED, 3, "unsupported", 0, "the operation, scheme or version is not supported")           \
    X(KH_E_UNAUTHENTICATED, 4, "unauthenticated", 0, "the caller has not proved who it is")                 \
    X(KH_E_NOT_FOUND, 5, "not_found", 0, "no such key, or the caller may not use it")                       \
    X(KH_E_USAGE, 6, "usage", 0, "the key's usage does not allow signing or decrypting these bytes")        \
    X(KH_E_SCHEME, 7, "scheme", 0, "the scheme does not fit the type of the key")                           \
    X(KH_E_DISABLED, 8, "disabled", 0, "the key is disabled or outside its validity")                       \
    X(KH_E_DAMAGED, 9, "damaged", 0, "the stored key fails its integrity check")                            \
    X(KH_E_EXISTS, 10, "exists", 0, "a key of that name exists already")                                    \
    X(KH_E_DUPLICATE, 11, "duplicate", 0, "the same key is already stored under another name")              \
    X(KH_E_WEAK, 12, "weak", 0, "the key is weaker than the policy allows")                                 \
    X(KH_E_MISMATCH, 13, "mismatch", 0, "the key and the certificate do not belong together")               \
    X(KH_E_PASSPHRASE, 14, "passphrase", 0, "the passphrase is wrong")                                      \
    X(KH_E_INVALID, 15, "invalid", 0, "an argument is out of range")                                        \
    X(KH_E_TOO_LARGE, 16, "too_large", 0, "the request exceeds a limit")                                    \
    X(KH_E_OVERLOADED, 17, "overloaded", 1, "the queue is full")                                            \
    X(KH_E_THROTTLED, 18, "throttled", 1, "the quota of the caller is used up")                             \
    X(KH_E_DEADLINE, 19, "deadline", 0, "the deadline passed before the operation was done")                \
    X(KH_E_CANCELLED, 20, "cancelled", 0, "the caller cancelled the operation")                             \
    X(KH_E_UNAVAILABLE, 21, "unavailable", 1, "the keeper or the agent is restarting or out of reach")      \
    X(KH_E_STORAGE, 22, "storage", 0, "the store cannot be read or written (is the disk full?)")            \
    X(KH_E_CRYPTO, 23, "crypto", 0, "the cryptographic operation failed")                                   \
    X(KH_E_MEMORY, 24, "memory", 1, "out of memory")                                                        \
    X(KH_E_ORDER, 25, "order", 0, "a call came out of its legal order")                                     \
    X(KH_E_IO, 26, "io", 1, "an input or output error on the transport")                                    \
    X(KH_E_CLOSED, 27, "closed", 1, "the peer closed the connection")                                       \
    X(KH_E_FORBIDDEN, 28, "forbidden", 0, "only the operator on the agent's host may do this")              \
    X(KH_E_VERSION, 29, "version", 0, "the peer or the store speaks another version")                       \
    X(KH_E_LOCKED, 30, "locked", 0, "another agent has the store open")                                     \
    X(KH_E_INTERNAL, 31, "internal", 0, "a bug in Keyhold: please report it")

typedef enum kh_result {
#define KH_X(constant, number, name, retryable, text) constant = number,
    KH_RESULTS(KH_X)
#undef KH_X
} kh_result;

/* The wire name ("not_found"); "unknown" for a number that is not in the table. Static storage. */
const char *kh_result_name(int result);
/* The text for people; never NULL. Static storage. */
const char *kh_result_text(int result);
/* Whether the same request may succeed later or elsewhere; false for unknown numbers. */
bool kh_result_retryable(int result);

/*
 * Key types. The number is wire format. `name` is what keyholdctl and the configuration say.
 * bits: modulus or field size. sig_max: longest signature in bytes (ECDSA: DER).
 */
#define KH_KEY_TYPES(X)                                                                                     \
    X(KH_KEY_RSA, 1, "rsa", 0, 512)                                                                         \
    X(KH_KEY_P256, 2, "p256", 256, 72)                                                                      \
    X(KH_KEY_P384, 3, "p384", 384, 104)                                                                     \
    X(KH_KEY_P521, 4, "p521", 521, 139)                                                                     \
    X(KH_KEY_ED25519, 5, "ed25519", 256, 64)

typedef enum kh_key_type {
    KH_KEY_NONE = 0,
#define KH_X(constant, number, name, bits, sig_max) constant = number,
    KH_KEY_TYPES(KH_X)
#undef KH_X
} kh_key_type;

/* "rsa", "p256", …; "unknown". Static storage. */
const char *kh_key_type_name(int type);
/*
 * Parses "rsa2048", "rsa-2048", "rsa3072", "rsa4096" (any even size of 2048 to 4096), "p256", "p-256", "p384",
 * "p521", "ed25519"; case is ignored. KH_E_INVALID for anything else; then nothing is written.
 */
KH_MUST_USE kh_result kh_key_type_parse(const char *text, kh_key_type *type, unsigned *bits);

/*
 * Signature schemes: the code points of TLS's SignatureScheme (RFC 8446, section 4.2.3). For TLS 1.2 and for
 * usage `sign` an ecdsa_* scheme gives the hash only; the curve is the key's. In TLS 1.3 both are bound.
 * X(constant, code point, name, key type or NONE for any EC, hash length in bytes (0: the scheme hashes itself))
 */
#define KH_SCHEMES(X)                                                                                       \
    X(KH_RSA_PKCS1_SHA256, 0x0401, "rsa_pkcs1_sha256", KH_KEY_RSA, 32)                                      \
    X(KH_RSA_PKCS1_SHA384, 0x0501, "rsa_pkcs1_sha384", KH_KEY_RSA, 48)                                      \
    X(KH_RSA_PKCS1_SHA512, 0x0601, "rsa_pkcs1_sha512", KH_KEY_RSA, 64)                                      \
    X(KH_ECDSA_SHA256, 0x0403, "ecdsa_secp256r1_sha256", KH_KEY_P256, 32)                                   \
    X(KH_ECDSA_SHA384, 0x0503, "ecdsa_secp384r1_sha384", KH_KEY_P384, 48)                                   \
    X(KH_ECDSA_SHA512, 0x0603, "ecdsa_secp521r1_sha512", KH_KEY_P521, 64)                                   \
    X(KH_RSA_PSS_RSAE_SHA256, 0x0804, "rsa_pss_rsae_sha256", KH_KEY_RSA, 32)                                \
    X(KH_RSA_PSS_RSAE_SHA384, 0x0805, "rsa_pss_rsae_sha384", KH_KEY_RSA, 48)                                \
    X(KH_RSA_PSS_RSAE_SHA512, 0x0806, "rsa_pss_rsae_sha512", KH_KEY_RSA, 64)                                \
    X(KH_ED25519, 0x0807, "ed25519", KH_KEY_ED25519, 0)

typedef enum kh_scheme {
    KH_SCHEME_NONE = 0,
#define KH_X(constant, number, name, type, hash_len) constant = number,
    KH_SCHEMES(KH_X)
#undef KH_X
} kh_scheme;

/* RFC 8446 name, or "unknown". Static storage. */
const char *kh_scheme_name(int scheme);
/* Key type that the scheme needs: for the ecdsa_* schemes the TLS 1.3 curve. KH_KEY_NONE: unknown scheme. */
kh_key_type kh_scheme_key_type(int scheme);
/* Length in bytes of the scheme's hash; 0 for ed25519 and for unknown schemes. */
size_t kh_scheme_hash_len(int scheme);
/* Whether a key of that type can make signatures of that scheme at all (ECDSA: any curve with any hash). */
bool kh_scheme_fits(int scheme, int type);

/* RSA decryption paddings (for the operation `decrypt`). X(constant, number, name). Numbers are wire format. */
#define KH_PADDINGS(X)                                                                                      \
    X(KH_PADDING_RAW, 1, "raw")                                                                             \
    X(KH_PADDING_PKCS1, 2, "pkcs1")                                                                         \
    X(KH_PADDING_OAEP_SHA1, 3, "oaep-sha1")                                                                 \
    X(KH_PADDING_OAEP_SHA256, 4, "oaep-sha256")                                                             \
    X(KH_PADDING_OAEP_SHA384, 5, "oaep-sha384")                                                             \
    X(KH_PADDING_OAEP_SHA512, 6, "oaep-sha512")

typedef enum kh_padding {
    KH_PADDING_NONE = 0,
#define KH_X(constant, number, name) constant = number,
    KH_PADDINGS(KH_X)
#undef KH_X
} kh_padding;

/* "pkcs1", …; "unknown". Static storage. */
const char *kh_padding_name(int padding);

/* What a key may be used for: a set of bits, fixed when the key is made. X(constant, bit, name). */
#define KH_USAGES(X)                                                                                        \
    X(KH_USAGE_TLS_SERVER, 0x01, "tls-server")                                                              \
    X(KH_USAGE_TLS_CLIENT, 0x02, "tls-client")                                                              \
    X(KH_USAGE_TLS_RSA_KX, 0x04, "tls-rsa-kx")                                                              \
    X(KH_USAGE_SIGN, 0x08, "sign")                                                                          \
    X(KH_USAGE_DECRYPT, 0x10, "decrypt")                                                                    \
    X(KH_USAGE_WRAP, 0x20, "wrap")                                                                          \
    X(KH_USAGE_TLS_DHE, 0x40, "tls-dhe")

typedef enum kh_usage {
#define KH_X(constant, bit, name) constant = bit,
    KH_USAGES(KH_X)
#undef KH_X
    KH_USAGE_ALL = 0x7f
} kh_usage;

/*
 * "tls-server,sign" to a set and back. Parsing: KH_E_INVALID for an empty list or an unknown word; then nothing is
 * written. Formatting: writes at most len bytes with the terminating zero and returns `buf`; 80 bytes always suffice.
 */
KH_MUST_USE kh_result kh_usage_parse(const char *text, unsigned *usage);
char *kh_usage_format(unsigned usage, char *buf, size_t len);

/* Limits that hold everywhere. */
#define KH_KEY_ID_LEN 32        /* SHA-256 of the canonical SubjectPublicKeyInfo */
/* Where a key's private operations run. X(constant, number, name) */
#define KH_TIERS(X)                                                                                          \
    X(KH_TIER_SOFTWARE, 1, "software")                                                                       \
    X(KH_TIER_HSM, 2, "hsm")                                                                                 \
    X(KH_TIER_HSM_POOL, 3, "hsm-pool")

typedef enum kh_tier {
#define KH_X(constant, number, name) constant = number,
    KH_TIERS(KH_X)
#undef KH_X
} kh_tier;

#define KH_PLACE_MAX 31         /* bytes of the name of a token or pool, as the agent's configuration has it; like a key's name */
#define KH_NAME_MAX 127         /* bytes of a key name, without version; [A-Za-z0-9][A-Za-z0-9._-]* */
#define KH_MESSAGE_MAX 16384    /* bytes to sign or decrypt in one operation */
#define KH_SIGNATURE_MAX 512    /* bytes of the longest signature (RSA-4096) or RSA block */
#define KH_SPKI_MAX 600         /* bytes of the longest SubjectPublicKeyInfo (RSA-4096: 550) */
#define KH_DEADLINE_MAX_MS 60000 /* longest deadline that a caller can ask for */

/* Whether `name` (len bytes, no terminating zero needed) is a legal key name. */
bool kh_name_valid(const char *name, size_t len);
/*
 * Splits "name" or "name/7". *name_len is the length of the name part; *version is 0 for "the current one".
 * KH_E_INVALID when the name is not legal or the version is not 1 to 2^31-1 in plain decimal.
 */
KH_MUST_USE kh_result kh_name_split(const char *text, size_t len, size_t *name_len, uint32_t *version);
/* Shell-style glob over key names: `*` any run, `?` one character; linear in len(pattern) x len(name), no recursion. */
bool kh_name_glob(const char *pattern, const char *name, size_t name_len);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The batch kernels: up to eight private-key operations of one kind side by side in the lanes of AVX-512
 * IFMA registers (or, for tests, in portable C). Depends on types.h and libcrypto alone.
 *
 * Use:
 *   kh_kernels_init() once; kh_kernel_key_new() once per key; kh_kernel_scratch_new() once per worker thread;
 *   then, for each group of n waiting operations of one kind:
 *       if (kh_kernels_choose(kind, n) == KH_WAY_KERNEL)
 *           rc = kh_kernel_batch(scratch, kind, ops, n);
 *       else
 *           each operation by OpenSSL: kh_kernel_single(&ops[i]), or the caller's own EVP calls.
 *
 * Every result is checked before it is written (rsa.c, ecdsa.h and ed25519.c say how); a lane that fails
 * the check is done again by OpenSSL and counted by kh_kernels_faults(). Nothing branches on a secret or
 * forms an address from one; scratch, stack and vector registers are wiped before a batch returns.
 */
#ifndef KEYHOLD_KERNELS_H
#define KEYHOLD_KERNELS_H

#include <openssl/evp.h>

#include "keyhold/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KH_KERNEL_LANES 8 /* operations in a full batch */

/*
 * The kinds: one per lane group. All operations of a batch are of one kind; keys, schemes and hashes may
 * differ. RSA keys of 2048 bits use the first, of up to 3072 the second, of up to 4096 the third; one whose
 * primes differ in length by more than 20 bits may use the next. kh_kernel_key_kind() says which.
 * X(constant, name)
 */
#define KH_KERNEL_KINDS(X)                                                                                   \
    X(KH_KERNEL_RSA2048, "rsa2048")                                                                          \
    X(KH_KERNEL_RSA3072, "rsa3072")                                                                          \
    X(KH_KERNEL_RSA4096, "rsa4096")                                                                          \
    X(KH_KERNEL_P256, "p256")                                                                                \
    X(KH_KERNEL_P384, "p384")                                                                                \
    X(KH_KERNEL_ED25519, "ed25519")

typedef enum kh_kernel_kind {
#define KH_X(constant, name) constant,
    KH_KERNEL_KINDS(KH_X)
#undef KH_X
        KH_KERNEL_KIND_COUNT
} kh_kernel_kind;

/* "rsa2048", …; "unknown". Static storage. */
const char *kh_kernel_kind_name(int kind);

/* What computes. OPENSSL: the kernels are off and kh_kernels_choose() always says so. */
typedef enum kh_kernel_backend {
    KH_BACKEND_OPENSSL,
    KH_BACKEND_PORTABLE, /* slow; for tests and checking */
    KH_BACKEND_IFMA
} kh_kernel_backend;

typedef enum kh_kernel_way { KH_WAY_OPENSSL, KH_WAY_KERNEL } kh_kernel_way;

/*
 * Selects the best backend (IFMA where there is it, else OpenSSL), builds its tables and tests each kernel by
 * known answers: about 13 ms. Call it once before anything else, from one thread. KH_E_CRYPTO: the test
 * failed, the kernels must not be used; KH_E_MEMORY. In both cases everything goes through OpenSSL.
 */
KH_MUST_USE kh_result kh_kernels_init(void);

/* Whether this CPU and operating system run the IFMA backend. Pure. */
bool kh_kernels_available(void);

/*
 * Selects another backend (`kernels = openssl`, tests). KH_E_UNSUPPORTED when the CPU lacks it; then
 * nothing changes. Not while a batch runs in another thread. Forgets what kh_kernels_measure() found.
 */
KH_MUST_USE kh_result kh_kernels_select(kh_kernel_backend backend);
kh_kernel_backend kh_kernels_selected(void);

/*
 * Measures for each kind and fill whether the kernel or OpenSSL is faster and keeps the table for
 * kh_kernels_choose(); at most budget_ms milliseconds in total (50 is enough; each kind gets its part, and
 * one whose time does not suffice keeps its built-in entry). Not while another thread calls
 * kh_kernels_choose(). Without it, and on KH_E_MEMORY or KH_E_CRYPTO, the built-in table holds.
 */
KH_MUST_USE kh_result kh_kernels_measure(unsigned budget_ms);

/* The faster way for that many operations (1 to 8) of that kind. Thread-safe, no system call. */
kh_kernel_way kh_kernels_choose(kh_kernel_kind kind, size_t fill);

/* Lanes whose result failed its check and was done again by OpenSSL, since the start. Thread-safe. */
uint64_t kh_kernels_faults(void);

/*
 * A prepared key: the private key with all constants of the kernels. Immutable, so any number of threads
 * may use one at the same time. Its memory is wiped when it is freed; locking it is the process's business
 * (mlockall).
 */
typedef struct kh_kernel_key kh_kernel_key;

/*
 * Takes its own reference to pkey; the caller owns *key and frees it. KH_E_UNSUPPORTED: a key that the
 * kernels do not do (multi-prime RSA, primes of very unequal length, e over 62 bits, other curves and
 * types, no private part): use OpenSSL for it. KH_E_CRYPTO, KH_E_MEMORY. On failure *key is NULL.
 */
KH_MUST_USE kh_result kh_kernel_key_new(EVP_PKEY *pkey, kh_kernel_key **key);
void kh_kernel_key_free(kh_kernel_key *key); /* NULL is allowed */
kh_kernel_kind kh_kernel_key_kind(const kh_kernel_key *key);
/* The key's own reference, valid as long as the key. */
EVP_PKEY *kh_kernel_key_pkey(const kh_kernel_key *key);
/* Longest output in bytes of one operation with the key: at most KH_SIGNATURE_MAX. */
size_t kh_kernel_key_out_max(const kh_kernel_key *key);

/* Memory of one worker thread, about 112 KiB; no batch allocates. One thread at a time. */
typedef struct kh_kernel_scratch kh_kernel_scratch;
KH_MUST_USE kh_result kh_kernel_scratch_new(kh_kernel_scratch **scratch); /* KH_E_MEMORY */
void kh_kernel_scratch_free(kh_kernel_scratch *scratch);                  /* NULL is allowed */

/*
 * One operation. The caller owns all memory; in and out may not overlap. What goes in and comes out:
 *
 * - RSA, KH_SCHEME_NONE: a block as long as the modulus and below it; the block to the power d (for
 *   decryption; the padding is still there)
 * - RSA, rsa_pkcs1_*: the digest, as long as the scheme says; the signature (RFC 8017, 8.2)
 * - RSA, rsa_pss_*: the digest; the signature (RFC 8017, 8.1; MGF1 with the same hash, salt as long)
 * - ECDSA, ecdsa_*: the digest; the signature in DER (any hash with any curve)
 * - Ed25519: the message, up to KH_MESSAGE_MAX bytes; 64 bytes (RFC 8032)
 */
typedef struct kh_kernel_op {
    const kh_kernel_key *key;
    kh_scheme scheme;
    const uint8_t *in;
    size_t in_len;
    uint8_t *out;
    size_t out_size; /* capacity: at least kh_kernel_key_out_max(key) */
    size_t out_len;  /* set by the operation: 0 unless result is KH_OK */
    kh_result result;
} kh_kernel_op;

/*
 * Does n operations (1 to 8) of one kind; each gets its own result, and none affects another:
 *
 * - KH_OK
 * - KH_E_SCHEME: the scheme does not fit the key
 * - KH_E_INVALID: wrong length of in, block >= n, out too small, no key or one of another kind
 * - KH_E_TOO_LARGE: message over KH_MESSAGE_MAX
 * - KH_E_CRYPTO: libcrypto failed (random numbers, or the second try of a lane that failed its check)
 *
 * Returns KH_OK when all slots have a result; KH_E_INVALID for n or kind out of range, KH_E_ORDER while no
 * backend is selected: then no slot is touched. Thread-safe with a scratch per thread.
 */
KH_MUST_USE kh_result kh_kernel_batch(kh_kernel_scratch *scratch, kh_kernel_kind kind, kh_kernel_op *ops,
                                      size_t n);

/*
 * The same operation by OpenSSL's EVP, with the same arguments and results; leaves op->result.
 * Allocates. Thread-safe.
 */
void kh_kernel_single(kh_kernel_op *op);

/*
 * ECDSA nonces by RFC 6979 (HMAC-DRBG over key and digest, with the hash of the scheme) instead of
 * SHA-512(key, 32 random bytes, digest): for test vectors. Per scratch; off at first.
 */
void kh_kernel_scratch_deterministic(kh_kernel_scratch *scratch, bool on);

#ifdef __cplusplus
}
#endif
#endif

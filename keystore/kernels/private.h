/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of this room share: the prepared key, the worker's scratch, the table of a backend, and
 * the hooks of the test build (KH_KERNELS_TEST): fault injection, wiping switched off, secrets marked for
 * valgrind. In the ordinary build the hooks are empty.
 */
#ifndef KH_KERNELS_PRIVATE_H
#define KH_KERNELS_PRIVATE_H

#include <openssl/evp.h>

#include "kernels.h"
#include "lanes.h"

#define KH_RSA_MAX 40 /* limbs of a prime (RSA-4096) */
#define KH_EC_MAX 8   /* limbs of a coordinate (P-384) */

/* One prime of an RSA key, in limbs. Modulo the prime; R = 2^(52 len). */
typedef struct kh_rsa_prime {
    uint64_t n[KH_RSA_MAX];
    uint64_t rr[KH_RSA_MAX];   /* R^2 */
    uint64_t rrr[KH_RSA_MAX];  /* R^3 */
    uint64_t qinv[KH_RSA_MAX]; /* with p: R / q modulo p; with q: -R / q modulo p */
    uint64_t exp[KH_RSA_MAX];  /* d - 1 modulo (prime - 1) */
    uint64_t k0;               /* -1 / prime modulo 2^52 */
} kh_rsa_prime;

typedef struct kh_rsa_key {
    unsigned len;         /* limbs of a prime: 20, 30 or 40; the modulus has twice as many */
    unsigned exp_bits;    /* length of the longer prime */
    unsigned bits, bytes; /* length of the modulus */
    uint64_t e;
    kh_rsa_prime prime[2]; /* p, q */
    uint64_t n[2 * KH_RSA_MAX];
    uint64_t n_rr[2 * KH_RSA_MAX];
    uint64_t n_k0;
} kh_rsa_key;

/* Keys of curves are held twice: the check of a result reads the second copy. */
typedef struct kh_ec_key {
    uint64_t d[KH_EC_MAX];          /* the private scalar times R modulo the order */
    uint8_t d_bytes[8 * KH_EC_MAX]; /* the same as bytes, for the nonce */
} kh_ec_key;

typedef struct kh_ed_key {
    uint64_t a[5];      /* the secret scalar times R modulo the order (RFC 8032, 5.1.5) */
    uint8_t prefix[32]; /* second half of the hashed seed */
    uint8_t pub[32];
} kh_ed_key;

struct kh_kernel_key {
    kh_kernel_kind kind;
    EVP_PKEY *pkey;
    size_t out_max;
    union {
        kh_rsa_key rsa;
        kh_ec_key ec[2];
        kh_ed_key ed[2];
    } u;
};

/* One lane's part of a batch, as the kernels see it: encoded input, raw output. */
typedef struct kh_lane {
    const kh_kernel_key *key;
    const uint8_t *in; /* RSA: block; ECDSA: digest; Ed25519: message */
    size_t in_len;
    kh_scheme scheme;
    uint8_t block[KH_SIGNATURE_MAX]; /* RSA: encoded message */
    uint8_t out[KH_SIGNATURE_MAX];   /* RSA: block; ECDSA: r and s, fixed length; Ed25519: signature */
    kh_kernel_op *op;
} kh_lane;

struct kh_kernel_scratch {
    kh_lane lane[KH_LANES];
    bool deterministic;
    size_t work_len;
    void *work; /* work_len bytes on a cache line, for the backend */
};

/*
 * A backend's function for one kind: does lanes 0..n-1 and returns a mask of those whose result may go out
 * (bit i: lane i). Lanes that are not in the mask, and all of them when libcrypto fails, are done again by
 * OpenSSL.
 */
typedef unsigned kh_kernel_fn(kh_kernel_scratch *scratch, size_t n);

/* Bytes of scratch that each kernel wants; in both backends alike. */
size_t kh_rsa_work_len(void);
size_t kh_p256_work_len(void);
size_t kh_p384_work_len(void);
size_t kh_ed25519_work_len(void);

typedef struct kh_backend_table {
    kh_result (*init)(void); /* builds the tables of the curves */
    kh_kernel_fn *run[KH_KERNEL_KIND_COUNT];
    void (*wipe_registers)(void); /* clears the vector registers */
} kh_backend_table;

extern const kh_backend_table kh_backend_portable;
extern const kh_backend_table kh_backend_ifma;

/* The RSA part of kh_kernel_key_new(). */
kh_result kh_rsa_key_prepare(EVP_PKEY *pkey, kh_kernel_key *key);

/* What a batch of one does by OpenSSL, for a lane whose input is encoded already (single.c). */
kh_result kh_single_lane(kh_lane *lane);
/* DER of r and s, each len bytes; returns its length, at most 2 len + 9 (der.c). */
size_t kh_der_signature(uint8_t *out, const uint8_t *rs, size_t len);

/* Forgets a measured table (ways.c). */
void kh_ways_reset(void);

/* A key of that kind that everybody knows (samples.c); the caller frees it. NULL when libcrypto fails. */
EVP_PKEY *kh_sample_key(kh_kernel_kind kind);

/* Known answers by the selected backend (selftest.c). KH_E_CRYPTO: do not use it. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_self_test(void);

/* RSA encodings (RFC 8017, 9.1 and 9.2) of a digest to a block of em_len bytes (rsa_encode.c). */
kh_result kh_rsa_encode(kh_scheme scheme, const uint8_t *digest, size_t mod_bits, uint8_t *block, size_t len);

/* The deterministic nonce of one lane (nonce.c): scalar_len bytes at the end of out, zeros before. */
kh_result kh_nonce_rfc6979(const kh_lane *lane, const uint8_t *order, size_t scalar_len, uint8_t out[64]);

/* Little-endian limbs and big-endian or little-endian bytes (limbs.c). len limbs are written in full. */
void kh_limbs_from_bytes(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len);
void kh_limbs_from_bytes_le(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len);
void kh_limbs_to_bytes(uint8_t *bytes, size_t bytes_len, const uint64_t *limbs, size_t len);
void kh_limbs_to_bytes_le(uint8_t *bytes, size_t bytes_len, const uint64_t *limbs, size_t len);
/* -1/n modulo 2^52, n odd. */
uint64_t kh_limbs_k0(uint64_t n);

#ifdef KH_KERNELS_TEST

/* The places where the test build can flip a bit of an intermediate value, kernel by kernel. */
/* clang-format off */
#define KH_FAULT_RSA_POINTS(X) \
    X(CONSTANT_P) X(CONSTANT_RR) X(REDUCED) X(RANDOM) X(BLINDED) X(TABLE) X(POWER) X(HALF) X(RECOMBINE) \
    X(RESULT)
#define KH_FAULT_EC_POINTS(X) \
    X(EC_DIGEST) X(EC_KEY) X(EC_NONCE) X(EC_RECODED) X(EC_WINDOW) X(EC_Z) X(EC_INVERSE) X(EC_AFFINE) X(EC_R) \
    X(EC_SUM) X(EC_S)
#define KH_FAULT_ED_POINTS(X) \
    X(HASH) X(ED_NONCE) X(ED_RECODED) X(ED_WINDOW) X(ED_AFFINE) X(ED_CHALLENGE) X(ED_KEY) X(ED_S)
/* clang-format on */

enum {
#define KH_X(name) KH_FAULT_##name,
    KH_FAULT_RSA_POINTS(KH_X) KH_FAULT_EC_POINTS(KH_X) KH_FAULT_ED_POINTS(KH_X)
#undef KH_X
        KH_FAULT_COUNT
};

typedef struct kh_test_hooks {
    bool fault_armed;     /* flip one bit at the next passage of the point, then disarm */
    unsigned fault_point; /* KH_FAULT_* */
    unsigned fault_skip;  /* passages of the point to let by first */
    unsigned fault_limb, fault_lane, fault_bit;
    unsigned fault_done;   /* faults injected */
    unsigned wrong_answer; /* kind + 1: spoil a result of the test at start before it is compared */
    bool wipe_off;
    bool valgrind; /* mark results public when they leave */
} kh_test_hooks;

extern kh_test_hooks kh_test;
void kh_test_fault(unsigned point, kh_vec *value, size_t len);
void kh_test_public(void *mem, size_t len); /* tells valgrind that the bytes may be known */

#define KH_FAULT(point, value, len) kh_test_fault(KH_FAULT_##point, value, len)
#define KH_PUBLIC(mem, len) kh_test_public(mem, len)
#define KH_WIPE_ON (!kh_test.wipe_off)
#define KH_SPOILED(kind) (kh_test.wrong_answer == (unsigned)(kind) + 1)
#else
#define KH_FAULT(point, value, len) ((void)0)
#define KH_PUBLIC(mem, len) ((void)0)
#define KH_WIPE_ON 1
#define KH_SPOILED(kind) 0
#endif

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The test at start: a known answer in every lane of each kernel, then hedged nonces that differ. About 8 ms,
 * most of it for RSA-4096. It finds a CPU, a compiler or a memory that computes wrong before a key is used;
 * what the kernels check of each result they check here too.
 */
#include <string.h>

#include <openssl/sha.h>

#include "private.h"

/* The digests of "sample" with SHA-256 and SHA-384. */
static const uint8_t sample[2][48] = {
    {0xaf, 0x2b, 0xdb, 0xe1, 0xaa, 0x9b, 0x6e, 0xc1, 0xe2, 0xad, 0xe1, 0xd6, 0x94, 0xf4, 0x1f, 0xc7,
     0x1a, 0x83, 0x1d, 0x02, 0x68, 0xe9, 0x89, 0x15, 0x62, 0x11, 0x3d, 0x8a, 0x62, 0xad, 0xd1, 0xbf},
    {0x9a, 0x90, 0x83, 0x50, 0x5b, 0xc9, 0x22, 0x76, 0xae, 0xc4, 0xbe, 0x31, 0x26, 0x96, 0xef, 0x7b,
     0xf3, 0xbf, 0x60, 0x3f, 0x4b, 0xbd, 0x38, 0x11, 0x96, 0xa0, 0x29, 0xf3, 0x40, 0x58, 0x53, 0x12,
     0x31, 0x3b, 0xca, 0x4a, 0x9b, 0x5b, 0x89, 0x0e, 0xfe, 0xe4, 0x2c, 0x77, 0xb1, 0xee, 0x25, 0xfe},
};
static const uint8_t message[] = {0xaf, 0x82};

/*
 * SHA-256 of the results. RSA: rsa_pkcs1_sha256 of "sample" with the keys of samples.c, by a plain power
 * modulo n; ECDSA: RFC 6979, A.2.5 (SHA-256) and A.2.6 (SHA-384), in DER; Ed25519: RFC 8032, 7.1, test 3.
 */
static const uint8_t answers[KH_KERNEL_KIND_COUNT][SHA256_DIGEST_LENGTH] = {
    [KH_KERNEL_RSA2048] = {0xe4, 0x37, 0x40, 0x62, 0x8e, 0xe6, 0x16, 0x72, 0x82, 0x1c, 0x2e,
                           0x18, 0x32, 0xc9, 0xfb, 0x02, 0x7a, 0xa1, 0x24, 0xaf, 0x8d, 0x24,
                           0x14, 0xd7, 0x0d, 0xe5, 0x3a, 0xc7, 0x32, 0xfa, 0x5c, 0xf5},
    [KH_KERNEL_RSA3072] = {0xe5, 0x14, 0xbd, 0xcc, 0x98, 0xfe, 0xec, 0x75, 0x47, 0x40, 0xbd,
                           0x0f, 0xaa, 0x0b, 0xb9, 0xdd, 0x94, 0xa7, 0x17, 0x1f, 0x11, 0x4e,
                           0xde, 0x27, 0x89, 0xd8, 0x64, 0xdd, 0x86, 0x7a, 0xe6, 0xea},
    [KH_KERNEL_RSA4096] = {0x71, 0x2b, 0x22, 0x2c, 0xe4, 0x9c, 0x9e, 0x7b, 0x98, 0x18, 0xa5,
                           0xa1, 0xe5, 0x36, 0x15, 0x11, 0xd1, 0x31, 0xdf, 0x4d, 0x03, 0x6c,
                           0xb8, 0x85, 0xe2, 0xfe, 0xfa, 0xff, 0xc8, 0x18, 0xf1, 0xbd},
    [KH_KERNEL_P256] = {0xc1, 0xd5, 0xba, 0x1d, 0xdc, 0x06, 0x8f, 0x6d, 0xc1, 0xad, 0x33,
                        0xce, 0x45, 0xa5, 0xa8, 0xe9, 0x37, 0x7f, 0x1b, 0x24, 0x63, 0x5a,
                        0xd3, 0x93, 0xa4, 0x48, 0x00, 0x8c, 0x37, 0xb5, 0x08, 0x68},
    [KH_KERNEL_P384] = {0x01, 0x8a, 0x08, 0x00, 0xe0, 0xc7, 0x2c, 0xd4, 0xa3, 0xb4, 0x1a,
                        0xbc, 0x53, 0x05, 0x9c, 0x11, 0x6e, 0x03, 0xa3, 0x0d, 0x01, 0x56,
                        0x09, 0x86, 0xdb, 0x0f, 0x38, 0x6e, 0x8c, 0xf3, 0x87, 0x58},
    [KH_KERNEL_ED25519] = {0xd9, 0xa9, 0x13, 0xbf, 0x16, 0x32, 0xc8, 0xc0, 0x01, 0x70, 0x5e,
                           0x3f, 0x13, 0xa0, 0xf6, 0x95, 0xe8, 0xc9, 0xf4, 0x4a, 0x00, 0xe3,
                           0xa8, 0x68, 0x5e, 0xa5, 0x6a, 0x81, 0x2e, 0x35, 0x97, 0x9f},
};

typedef struct job {
    kh_kernel_op ops[KH_KERNEL_LANES];
    uint8_t out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
} job;

static void prepare(job *j, const kh_kernel_key *key)
{
    kh_kernel_kind kind = kh_kernel_key_kind(key);
    kh_kernel_op op = {.key = key, .scheme = KH_RSA_PKCS1_SHA256, .in = sample[0], .in_len = 32};

    if (kind == KH_KERNEL_P256) {
        op.scheme = KH_ECDSA_SHA256;
    } else if (kind == KH_KERNEL_P384) {
        op.scheme = KH_ECDSA_SHA384;
        op.in = sample[1];
        op.in_len = 48;
    } else if (kind == KH_KERNEL_ED25519) {
        op.scheme = KH_ED25519;
        op.in = message;
        op.in_len = sizeof(message);
    }
    for (unsigned i = 0; i < KH_KERNEL_LANES; i++) {
        j->ops[i] = op;
        j->ops[i].out = j->out[i];
        j->ops[i].out_size = sizeof(j->out[i]);
    }
}

static bool known_answer(kh_kernel_scratch *scratch, job *j, kh_kernel_kind kind)
{
    /* Four RSA operations fill the lanes, p beside q; the way of eight is tested with 2048 bits. */
    size_t fill = kind == KH_KERNEL_RSA3072 || kind == KH_KERNEL_RSA4096 ? 4 : KH_KERNEL_LANES;
    bool ok = kh_kernel_batch(scratch, kind, j->ops, fill) == KH_OK;

    for (size_t i = 0; i < fill && ok; i++) {
        uint8_t digest[SHA256_DIGEST_LENGTH];

        j->out[i][i + 8] ^= KH_SPOILED(kind) && i == fill - 1;
        ok = j->ops[i].result == KH_OK && SHA256(j->out[i], j->ops[i].out_len, digest) != NULL &&
             memcmp(digest, answers[kind], sizeof(digest)) == 0;
    }
    return ok;
}

/* One key and one digest in all lanes: no nonce may be there twice, or be the deterministic one. */
static bool nonces_differ(kh_kernel_scratch *scratch, job *j, kh_kernel_kind kind)
{
    uint8_t known[16];
    bool ok = true;

    memcpy(known, j->out[0] + 8, sizeof(known)); /* inside of r, wherever DER begins it */
    ok = kh_kernel_batch(scratch, kind, j->ops, KH_KERNEL_LANES) == KH_OK;
    for (unsigned i = 0; i < KH_KERNEL_LANES && ok; i++) {
        ok = j->ops[i].result == KH_OK && memcmp(known, j->out[i] + 8, sizeof(known)) != 0;
        for (unsigned k = 0; k < i && ok; k++)
            ok = memcmp(j->out[k] + 8, j->out[i] + 8, sizeof(known)) != 0;
    }
    return ok;
}

static kh_result test_kind(kh_kernel_scratch *scratch, kh_kernel_kind kind)
{
    bool ecdsa = kind == KH_KERNEL_P256 || kind == KH_KERNEL_P384, ok = false;
    EVP_PKEY *pkey = kh_sample_key(kind);
    kh_kernel_key *key = NULL;
    kh_result rc = pkey == NULL ? KH_E_CRYPTO : kh_kernel_key_new(pkey, &key);
    job j;

    if (rc == KH_OK) {
        prepare(&j, key);
        kh_kernel_scratch_deterministic(scratch, true);
        ok = known_answer(scratch, &j, kind);
        kh_kernel_scratch_deterministic(scratch, false);
        ok = ok && (!ecdsa || nonces_differ(scratch, &j, kind));
        rc = ok ? KH_OK : KH_E_CRYPTO;
    }
    kh_kernel_key_free(key);
    EVP_PKEY_free(pkey);
    return rc;
}

kh_result kh_self_test(void)
{
    uint64_t faults = kh_kernels_faults();
    kh_kernel_scratch *scratch = NULL;
    kh_result rc = kh_kernel_scratch_new(&scratch);

    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT && rc == KH_OK; kind++)
        rc = test_kind(scratch, kind);
    kh_kernel_scratch_free(scratch);
    if (rc == KH_OK && kh_kernels_faults() != faults) /* OpenSSL made good what a kernel did wrong */
        rc = KH_E_CRYPTO;
    return rc;
}

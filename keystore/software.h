/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The software tier: private-key operations in this process. Its interface takes batches only, of one lane
 * group; one operation is a batch of one.
 */
#ifndef KEYHOLD_KEYSTORE_SOFTWARE_H
#define KEYHOLD_KEYSTORE_SOFTWARE_H

#include "key.h"

typedef enum kh_tier_kind { KH_TIER_SIGN = 1, KH_TIER_TLS_RSA_KX, KH_TIER_DECRYPT } kh_tier_kind;

/* One operation. The caller has checked the key's usage, and that key and scheme or padding fit. */
typedef struct kh_tier_op {
    kh_tier_kind kind;
    kh_key *key;
    uint32_t scheme; /* sign: kh_scheme; decrypt: kh_padding */
    uint32_t arg;    /* tls-rsa-kx: version; decrypt: bytes of label */
    bool is_digest;
    const uint8_t *data;
    size_t len;
    uint8_t *out; /* KH_SIGNATURE_MAX bytes; the caller wipes what is secret */
    size_t out_len;
    kh_result result;
    bool by_kernel;
} kh_tier_op;

/* What one worker thread keeps between batches. */
typedef struct kh_software kh_software;

KH_MUST_USE kh_result kh_software_new(kh_software **software);
void kh_software_free(kh_software *software);
/* n is 1 to KH_BATCH_MAX. Sets result, out_len and by_kernel of each. */
void kh_software_batch(kh_software *software, kh_tier_op *const ops[], size_t n);

#endif

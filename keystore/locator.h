/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is sealed in a row instead of a private key when the key lives in a token: where it is found, and of a pool's key
 * the copy that is wrapped under the pool key.
 *   "KHL1", length of the CKA_ID (1), CKA_ID, length of the label (1), label, length of the blob (2), blob
 */
#ifndef KEYHOLD_KEYSTORE_LOCATOR_H
#define KEYHOLD_KEYSTORE_LOCATOR_H

#include "p11.h"

#define KH_LOCATOR_MAX (4 + 1 + 64 + 1 + KH_NAME_MAX + 2 + KH_P11_BLOB_MAX)

/* out: KH_LOCATOR_MAX bytes. KH_E_INVALID: neither id nor label, or one is too long; KH_E_TOO_LARGE: the blob is. */
KH_MUST_USE kh_result kh_locator_encode(const kh_p11_locator *locator, const uint8_t *blob, size_t blob_len, uint8_t *out,
                                        size_t *out_len);
/* *blob points into the bytes; NULL when there is none. KH_E_DAMAGED: these bytes are none, to the last one. */
KH_MUST_USE kh_result kh_locator_parse(const uint8_t *bytes, size_t len, kh_p11_locator *locator, const uint8_t **blob,
                                       size_t *blob_len);

#endif

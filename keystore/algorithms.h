/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL's algorithms, fetched once: a fetch by name for each operation takes locks and microseconds. */
#ifndef KEYHOLD_KEYSTORE_ALGORITHMS_H
#define KEYHOLD_KEYSTORE_ALGORITHMS_H

#include <keyhold/types.h>
#include <openssl/types.h>

/*
 * Fetches all, once; later calls return the first one's result. Also runs each key type once, so that
 * whatever OpenSSL loads late is loaded before the process is confined. KH_E_CRYPTO.
 */
KH_MUST_USE kh_result kh_algorithms_init(void);
/* SHA-256, -384 or -512 by length in bytes; NULL for another length. After kh_algorithms_init. */
const EVP_MD *kh_algorithms_md(size_t hash_len);
/* OAEP's hash, and MGF1's, of a kh_padding; NULL: it is not OAEP, or this OpenSSL has not that hash. After kh_algorithms_init. */
const EVP_MD *kh_algorithms_oaep(uint32_t padding);
/* After kh_algorithms_init. */
EVP_MAC *kh_algorithms_hmac(void);

#endif

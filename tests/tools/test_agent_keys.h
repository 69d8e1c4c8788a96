/* SPDX-License-Identifier: Apache-2.0 */
/* The keys of kh-test-agent: from PEM files, in its own memory. One thread. */
#ifndef KH_TEST_AGENT_KEYS_H
#define KH_TEST_AGENT_KEYS_H

#include <keyhold/client.h>

typedef struct test_key {
    char name[KH_NAME_MAX + 1];
    EVP_PKEY *pkey;
    uint8_t id[KH_KEY_ID_LEN];
    uint8_t spki[KH_SPKI_MAX];
    size_t spki_len;
    kh_key_type type;
    unsigned bits;
} test_key;

/* Its name is the file's without directory and suffix. False, with errno: not a key, or too many. */
bool test_keys_load(const char *path);
/* NULL: none that the request means. */
const test_key *test_keys_find(const kh_request *req);
/* What the request asks of the key. out: KH_SIGNATURE_MAX bytes. Usage is not checked. */
KH_MUST_USE kh_result test_key_sign(const test_key *key, const kh_request *req, uint8_t *out, size_t *len);
KH_MUST_USE kh_result test_key_decrypt(const test_key *key, const kh_request *req, uint8_t *out, size_t *len);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Usage of a key: any message, usage, type and scheme. What is allowed must be allowed again, and never as a digest. */
#include "usage.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    kh_sign_question question = {0};

    if (len < 4 || kh_dh_groups_init() != KH_OK) {
        return 0;
    }
    question.usage = data[0] & KH_USAGE_ALL & ~(uint32_t)KH_USAGE_SIGN;
    question.key_type = data[1] % 7;
    question.scheme = (uint32_t)data[2] << 8 | data[3];
    question.data = data + 4;
    question.len = len - 4;
    if (kh_usage_may_sign(&question) == KH_OK) {
        if (kh_usage_may_sign(&question) != KH_OK) {
            abort();
        }
        question.is_digest = true;
        if (kh_usage_may_sign(&question) != KH_E_USAGE) {
            abort();
        }
        /* One byte less or more is another message: nothing but the two lengths of hash of TLS 1.3 are both good. */
        question.is_digest = false;
        question.len--;
        if (kh_usage_may_sign(&question) == KH_OK) {
            abort();
        }
    }
    return 0;
}

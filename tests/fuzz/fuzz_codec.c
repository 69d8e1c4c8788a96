/* SPDX-License-Identifier: Apache-2.0 */
/* One payload, decoded as request (first byte even) or reply. What is accepted encodes to the same bytes
 * again. */
#include <keyhold/protocol.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static uint8_t again[256 * 1024];

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

static void same(const uint8_t *payload, size_t len, kh_result encoded, size_t again_len)
{
    require(encoded == KH_OK && again_len == len + KH_FRAME_PREFIX);
    require(memcmp(again + KH_FRAME_PREFIX, payload, len) == 0);
}

static void try_request(const uint8_t *payload, size_t len)
{
    kh_request req;
    kh_result result = kh_request_decode(payload, len, &req);
    size_t again_len = 0;

    require(result == KH_OK || result == KH_E_MALFORMED || result == KH_E_UNSUPPORTED ||
            result == KH_E_TOO_LARGE);
    if (result == KH_OK) {
        result = kh_request_encode(&req, again, sizeof(again), &again_len);
        same(payload, len, result, again_len);
    }
}

static void try_reply(const uint8_t *payload, size_t len)
{
    static kh_key_entry entries[KH_LIST_MAX];
    kh_reply reply;
    kh_result result = kh_reply_decode(payload, len, &reply);
    size_t again_len = 0;

    require(result == KH_OK || result == KH_E_MALFORMED || result == KH_E_UNSUPPORTED ||
            result == KH_E_TOO_LARGE);
    if (result == KH_OK) {
        for (uint32_t i = 0; i < reply.entry_count; i++) {
            require(kh_reply_entry(&reply, i, &entries[i]) == KH_OK);
        }
        reply.entries = entries;
        result = kh_reply_encode(&reply, again, sizeof(again), &again_len);
        same(payload, len, result, again_len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 1 || len > sizeof(again) / 2) {
        return 0;
    }
    if (data[0] % 2 == 0) {
        try_request(data + 1, len - 1);
    } else {
        try_reply(data + 1, len - 1);
    }
    return 0;
}

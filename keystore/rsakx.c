/* SPDX-License-Identifier: Apache-2.0 */
/* The TLS RSA key exchange in constant time: see rsakx.h. */
#include "rsakx.h"

#include <string.h>

/* Keeps the compiler from learning that a value is a mask, and from making a branch of it. */
static inline uint32_t opaque(uint32_t value)
{
    __asm__ volatile("" : "+r"(value));
    return value;
}

/* All ones if value is 0, else 0; value below 2^31. */
static inline uint32_t mask_if_zero(uint32_t value)
{
    return opaque(0u - (opaque(value - 1) >> 31));
}

bool kh_rsakx_block(const uint8_t *ciphertext, size_t ciphertext_len, const uint8_t *modulus, size_t len,
                    uint8_t *block)
{
    if (ciphertext_len == len && memcmp(ciphertext, modulus, len) < 0) {
        memcpy(block, ciphertext, len);
        return true;
    }
    memset(block, 0x5a, len);
    block[0] = 0;
    return false;
}

void kh_rsakx_select(const uint8_t *block, size_t len, uint16_t version, bool usable,
                     const uint8_t random[KH_PREMASTER_LEN], uint8_t out[KH_PREMASTER_LEN])
{
    const uint8_t *secret = block + len - KH_PREMASTER_LEN;
    uint32_t bad = (uint32_t)usable ^ 1u;
    uint32_t keep = 0;

    bad |= block[0];
    bad |= block[1] ^ 2u;
    for (size_t i = 2; i < len - KH_PREMASTER_LEN - 1; i++) {
        bad |= mask_if_zero(block[i]) & 1u;
    }
    bad |= secret[-1];
    bad |= secret[0] ^ (uint32_t)(version >> 8);
    bad |= secret[1] ^ (uint32_t)(version & 0xff);
    keep = mask_if_zero(bad);
    for (size_t i = 0; i < KH_PREMASTER_LEN; i++) {
        out[i] = (uint8_t)((secret[i] & keep) | (random[i] & ~keep));
    }
}

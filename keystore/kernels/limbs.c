/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to limbs of 52 bits and back, one number at a time. Positions depend on lengths alone.
 */
#include "private.h"

static void put_byte(uint64_t *limbs, size_t len, size_t pos, uint8_t byte)
{
    size_t i = 8 * pos / KH_LIMB_BITS, off = 8 * pos % KH_LIMB_BITS;

    if (i < len)
        limbs[i] |= ((uint64_t)byte << off) & KH_LIMB_MASK;
    if (off > KH_LIMB_BITS - 8 && i + 1 < len)
        limbs[i + 1] |= (uint64_t)byte >> (KH_LIMB_BITS - off);
}

void kh_limbs_from_bytes(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len)
{
    for (size_t i = 0; i < len; i++)
        limbs[i] = 0;
    for (size_t i = 0; i < bytes_len; i++)
        put_byte(limbs, len, i, bytes[bytes_len - 1 - i]);
}

void kh_limbs_from_bytes_le(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len)
{
    for (size_t i = 0; i < len; i++)
        limbs[i] = 0;
    for (size_t i = 0; i < bytes_len; i++)
        put_byte(limbs, len, i, bytes[i]);
}

void kh_limbs_to_bytes(uint8_t *bytes, size_t bytes_len, const uint64_t *limbs, size_t len)
{
    for (size_t pos = 0; pos < bytes_len; pos++) {
        size_t i = 8 * pos / KH_LIMB_BITS, off = 8 * pos % KH_LIMB_BITS;
        uint64_t v = i < len ? limbs[i] >> off : 0;

        if (off > KH_LIMB_BITS - 8 && i + 1 < len)
            v |= limbs[i + 1] << (KH_LIMB_BITS - off);
        bytes[bytes_len - 1 - pos] = (uint8_t)v;
    }
}

/* Newton's iteration: each step doubles the number of right bits, from the 3 of x = n. */
uint64_t kh_limbs_k0(uint64_t n)
{
    uint64_t x = n;

    for (int i = 0; i < 5; i++)
        x *= 2 - n * x;
    return (0 - x) & KH_LIMB_MASK;
}

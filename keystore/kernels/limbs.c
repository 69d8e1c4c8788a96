/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to limbs of 52 bits and back, one number at a time. Positions depend on lengths alone.
 */
#include <string.h>

#include "private.h"

/* Between a word and eight bytes, lowest first or last. */
static uint64_t to_order(uint64_t word, bool little)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return little ? word : __builtin_bswap64(word);
#else
    return little ? __builtin_bswap64(word) : word;
#endif
}

/* Up to eight bytes of a number, from its byte `pos` on; byte 0 is the lowest, wherever it lies. */
static uint64_t get_word(const uint8_t *bytes, size_t len, size_t pos, bool little)
{
    uint64_t word = 0;
    size_t n = len - pos < 8 ? len - pos : 8;

    if (n == 8) {
        memcpy(&word, little ? bytes + pos : bytes + len - pos - 8, 8);
        return to_order(word, little);
    }
    for (size_t i = 0; i < n; i++)
        word |= (uint64_t)bytes[little ? pos + i : len - 1 - pos - i] << (8 * i);
    return word;
}

static void put_word(uint8_t *bytes, size_t len, size_t pos, bool little, uint64_t word)
{
    size_t n = len - pos < 8 ? len - pos : 8;

    if (n == 8) {
        word = to_order(word, little);
        memcpy(little ? bytes + pos : bytes + len - pos - 8, &word, 8);
        return;
    }
    for (size_t i = 0; i < n; i++)
        bytes[little ? pos + i : len - 1 - pos - i] = (uint8_t)(word >> (8 * i));
}

/* Words of 64 bits are laid over limbs of 52: a word touches two or three. */
static void from_bytes(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len, bool little)
{
    for (size_t i = 0; i < len; i++)
        limbs[i] = 0;
    for (size_t pos = 0; pos < bytes_len; pos += 8) {
        uint64_t word = get_word(bytes, bytes_len, pos, little);
        size_t i = 8 * pos / KH_LIMB_BITS, off = 8 * pos % KH_LIMB_BITS;

        if (i < len)
            limbs[i] |= word << off & KH_LIMB_MASK;
        if (i + 1 < len)
            limbs[i + 1] |= word >> (KH_LIMB_BITS - off) & KH_LIMB_MASK;
        if (off > 2 * KH_LIMB_BITS - 64 && i + 2 < len)
            limbs[i + 2] |= word >> (2 * KH_LIMB_BITS - off);
    }
}

void kh_limbs_from_bytes(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len)
{
    from_bytes(limbs, len, bytes, bytes_len, false);
}

void kh_limbs_from_bytes_le(uint64_t *limbs, size_t len, const uint8_t *bytes, size_t bytes_len)
{
    from_bytes(limbs, len, bytes, bytes_len, true);
}

static void to_bytes(uint8_t *bytes, size_t bytes_len, const uint64_t *limbs, size_t len, bool little)
{
    for (size_t pos = 0; pos < bytes_len; pos += 8) {
        size_t i = 8 * pos / KH_LIMB_BITS, off = 8 * pos % KH_LIMB_BITS;
        uint64_t word = i < len ? limbs[i] >> off : 0;

        if (i + 1 < len)
            word |= limbs[i + 1] << (KH_LIMB_BITS - off);
        if (off > 2 * KH_LIMB_BITS - 64 && i + 2 < len)
            word |= limbs[i + 2] << (2 * KH_LIMB_BITS - off);
        put_word(bytes, bytes_len, pos, little, word);
    }
}

void kh_limbs_to_bytes(uint8_t *bytes, size_t bytes_len, const uint64_t *limbs, size_t len)
{
    to_bytes(bytes, bytes_len, limbs, len, false);
}

void kh_limbs_to_bytes_le(uint8_t *bytes, size_t bytes_len, const uint64_t *limbs, size_t len)
{
    to_bytes(bytes, bytes_len, limbs, len, true);
}

/* Newton's iteration: each step doubles the number of right bits, from the 3 of x = n. */
uint64_t kh_limbs_k0(uint64_t n)
{
    uint64_t x = n;

    for (int i = 0; i < 5; i++)
        x *= 2 - n * x;
    return (0 - x) & KH_LIMB_MASK;
}

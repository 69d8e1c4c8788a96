/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-2-4, from the paper. */
#include "hash.h"
#include <string.h>
#include <sys/random.h>

typedef struct sip {
    uint64_t a, b, c, d;
} sip;

static uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static void rounds(sip *s, int count)
{
    while (count-- > 0) {
        s->a += s->b;
        s->b = rotate(s->b, 13) ^ s->a;
        s->a = rotate(s->a, 32);
        s->c += s->d;
        s->d = rotate(s->d, 16) ^ s->c;
        s->a += s->d;
        s->d = rotate(s->d, 21) ^ s->a;
        s->c += s->b;
        s->b = rotate(s->b, 17) ^ s->c;
        s->c = rotate(s->c, 32);
    }
}

kh_hash_key kh_hash_key_new(void)
{
    kh_hash_key key = {0, 0};
    ssize_t got = getrandom(&key, sizeof key, 0);

    (void)
        got; /* of 16 bytes it cannot fail once the system is up; a zero key would still be a correct hash */
    return key;
}

uint64_t kh_hash(kh_hash_key key, const void *data, size_t len)
{
    sip s = {key.k0 ^ UINT64_C(0x736f6d6570736575), key.k1 ^ UINT64_C(0x646f72616e646f6d),
             key.k0 ^ UINT64_C(0x6c7967656e657261), key.k1 ^ UINT64_C(0x7465646279746573)};
    const uint8_t *at = data, *end = at + len / 8 * 8;
    uint64_t word = 0;

    for (; at < end; at += 8) {
        memcpy(&word, at, 8);
        s.d ^= word;
        rounds(&s, 2);
        s.a ^= word;
    }
    word = (uint64_t)len << 56;
    for (size_t i = 0; i < len % 8; i++) {
        word |= (uint64_t)at[i] << 8 * i;
    }
    s.d ^= word;
    rounds(&s, 2);
    s.a ^= word;
    s.c ^= 0xff;
    rounds(&s, 4);
    return s.a ^ s.b ^ s.c ^ s.d;
}

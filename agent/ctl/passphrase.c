/* SPDX-License-Identifier: Apache-2.0 */
/* Passphrases that nobody should use. Each rule looks at all bytes, and branches only on what it found. See passphrase.h. */
#include "passphrase.h"

#include <stdbool.h>

#define LEN_MIN 12     /* bytes */
#define DIFFERENT_MIN 6
#define TURNS_MIN 4

/* How many different bytes there are. */
static unsigned different(const uint8_t *text, size_t len)
{
    unsigned count = 0;

    for (size_t i = 0; i < len; i++) {
        unsigned seen = 0;

        for (size_t j = 0; j < i; j++) {
            seen |= text[i] == text[j];
        }
        count += 1 - seen;
    }
    return count;
}

/* Whether less than LEN_MIN bytes are said again and again. */
static bool repeats(const uint8_t *text, size_t len)
{
    unsigned found = 0;

    for (size_t period = 1; period < LEN_MIN; period++) {
        unsigned differs = 0;

        for (size_t i = period; i < len; i++) {
            differs |= text[i] ^ text[i - period];
        }
        found |= differs == 0;
    }
    return found != 0;
}

/* How often the step from one byte to the next is another one than before: 123456 and aaaa have none. */
static unsigned turns(const uint8_t *text, size_t len)
{
    unsigned count = 0;

    for (size_t i = 2; i < len; i++) {
        count += text[i] - text[i - 1] != text[i - 1] - text[i - 2];
    }
    return count;
}

const char *ctl_passphrase_fault(const uint8_t *text, size_t len)
{
    if (len < LEN_MIN) {
        return "is shorter than 12 bytes";
    }
    if (repeats(text, len)) {
        return "says the same again and again";
    }
    if (different(text, len) < DIFFERENT_MIN) {
        return "has fewer than 6 different characters";
    }
    return turns(text, len) < TURNS_MIN ? "only counts" : NULL;
}

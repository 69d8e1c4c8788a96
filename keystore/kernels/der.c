/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DER of an ECDSA signature: SEQUENCE of the INTEGERs r and s (RFC 3279, 2.2.3). For scalars of up to 48
 * bytes, so that every length fits one byte.
 */
#include <string.h>

#include "private.h"

/* INTEGER: no leading zero bytes, but one where the number would be negative. The value is public. */
static size_t put_integer(uint8_t *out, const uint8_t *value, size_t len)
{
    size_t pad = 0;

    while (len > 1 && value[0] == 0) {
        value++;
        len--;
    }
    pad = value[0] >> 7;
    out[0] = 2;
    out[1] = (uint8_t)(len + pad);
    out[2] = 0;
    memcpy(out + 2 + pad, value, len);
    return 2 + pad + len;
}

size_t kh_der_signature(uint8_t *out, const uint8_t *rs, size_t len)
{
    size_t used = put_integer(out + 2, rs, len);

    used += put_integer(out + 2 + used, rs + len, len);
    out[0] = 0x30;
    out[1] = (uint8_t)used;
    return 2 + used;
}

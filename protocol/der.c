/* SPDX-License-Identifier: Apache-2.0 */
/* The little DER (der.h). */
#include "der.h"

#include <string.h>

void kh_der_init(kh_der_writer *writer, uint8_t *buf, size_t cap)
{
    *writer = (kh_der_writer){buf, cap, cap, false};
}

void kh_der_raw(kh_der_writer *writer, const void *data, size_t len)
{
    if (writer->failed || len > writer->at) {
        writer->failed = true;
        return;
    }
    writer->at -= len;
    memcpy(writer->buf + writer->at, data, len);
}

void kh_der_wrap(kh_der_writer *writer, uint8_t tag, size_t end)
{
    size_t len = end - writer->at;
    uint8_t header[4] = {tag};
    size_t used = 1;

    if (len > UINT16_MAX) {
        writer->failed = true;
        return;
    }
    if (len > UINT8_MAX) {
        header[used++] = 0x82;
        header[used++] = (uint8_t)(len >> 8);
    } else if (len > 0x7f) {
        header[used++] = 0x81;
    }
    header[used++] = (uint8_t)len;
    kh_der_raw(writer, header, used);
}

bool kh_der_take(kh_bytes *rest, uint8_t tag, kh_bytes *contents, kh_bytes *whole)
{
    const uint8_t *at = rest->data;
    size_t header = 2;
    size_t len = 0;

    if (rest->len < 2 || at[0] != tag) {
        return false;
    }
    len = at[1];
    if (len > 0x7f) {
        size_t octets = len & 0x7f;

        if (octets == 0 || octets > 2 || rest->len < 2 + octets || at[2] == 0) {
            return false;
        }
        len = octets == 1 ? at[2] : (size_t)at[2] << 8 | at[3];
        header += octets;
        if (len < 0x80) {
            return false;
        }
    }
    if (rest->len - header < len) {
        return false;
    }
    *contents = (kh_bytes){at + header, len};
    if (whole != NULL) {
        *whole = (kh_bytes){at, header + len};
    }
    *rest = (kh_bytes){at + header + len, rest->len - header - len};
    return true;
}

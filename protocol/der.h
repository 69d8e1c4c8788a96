/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The little DER that key ids and key references need: written from the end of a buffer to its front, so that
 * lengths are known when they are written, and read strictly. No allocation.
 */
#ifndef KH_DER_H
#define KH_DER_H

#include <keyhold/protocol.h>

#define KH_DER_INTEGER 0x02
#define KH_DER_BIT_STRING 0x03
#define KH_DER_UTF8_STRING 0x0c
#define KH_DER_SEQUENCE 0x30

/* What was written is buf[at..cap). `failed` stays set once something did not fit. */
typedef struct kh_der_writer {
    uint8_t *buf;
    size_t cap;
    size_t at;
    bool failed;
} kh_der_writer;

void kh_der_init(kh_der_writer *writer, uint8_t *buf, size_t cap);
/* Puts bytes in front of what is there. */
void kh_der_raw(kh_der_writer *writer, const void *data, size_t len);
/* Puts a tag and the length of everything since `end` (an earlier value of writer->at) in front. */
void kh_der_wrap(kh_der_writer *writer, uint8_t tag, size_t end);

/*
 * Takes the element with that tag from the front of *rest: its contents, and with `whole` (may be NULL) also
 * with header. False: another tag, a length that is indefinite, not shortest or beyond the end.
 */
bool kh_der_take(kh_bytes *rest, uint8_t tag, kh_bytes *contents, kh_bytes *whole);

#endif

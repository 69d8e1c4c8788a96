/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two buffers of a connection. Both own their memory, grow by allocate, copy and wipe (decrypted secrets
 * pass through them), and are zero-initialised. Shared by the server's and the client's session.
 */
#ifndef KH_BUFFER_H
#define KH_BUFFER_H

#include <keyhold/protocol.h>

#define KH_READ_START 4096 /* bytes of a new input buffer, and the most that is read beyond a started frame  \
                            */
#define KH_OUTPUT_START 4096        /* bytes of a new output buffer */
#define KH_OUTPUT_KEEP (512 * 1024) /* an emptied output buffer larger than this is freed */

/* Bytes that wait to be written: data[head..tail). */
typedef struct kh_output {
    uint8_t *data;
    size_t cap;
    size_t head;
    size_t tail;
    bool secret; /* a decrypted secret is in it: wipe when it is emptied */
} kh_output;

/* Room for len bytes at the end; NULL: out of memory. Then commit what was used of it. */
uint8_t *kh_output_reserve(kh_output *output, size_t len);
void kh_output_commit(kh_output *output, size_t len);
kh_bytes kh_output_pending(const kh_output *output);
/* The first len pending bytes were written. More than there are is a bug of the caller's and is cut. */
void kh_output_consume(kh_output *output, size_t len);
void kh_output_free(kh_output *output);

/* Bytes that were read and not yet taken: data[head..tail). */
typedef struct kh_input {
    uint8_t *data;
    size_t cap;
    size_t head;
    size_t tail;
} kh_input;

/*
 * Room for the next bytes: what the started frame still needs, or KH_READ_START. The buffer grows by doubling
 * and only when it is full of a started frame. NULL: out of memory. Frames that were peeked move: their views
 * end here.
 */
uint8_t *kh_input_room(kh_input *input, size_t max_frame, size_t *cap);
void kh_input_fed(kh_input *input, size_t len);
/* Whether the buffer holds nothing but complete frames that were not taken: then there is no room. */
bool kh_input_full(const kh_input *input, size_t max_frame);
/*
 * The payload of the first frame, which stays until kh_input_skip. KH_AGAIN: not complete. KH_E_MALFORMED:
 * its announced length is 0 or above max_frame, which is known from the prefix alone.
 */
KH_MUST_USE kh_result kh_input_peek(const kh_input *input, size_t max_frame, kh_bytes *payload);
/* Done with the frame that was peeked; its bytes stay readable until the next kh_input_room. */
void kh_input_skip(kh_input *input, kh_bytes payload);
void kh_input_free(kh_input *input);

#endif

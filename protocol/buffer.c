/* SPDX-License-Identifier: Apache-2.0 */
/* The buffers of a connection (buffer.h). */
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

static void kh_wipe_free(uint8_t *data, size_t cap)
{
    if (data != NULL) {
        explicit_bzero(data, cap);
        free(data);
    }
}

/* Moves what is between head and tail into a new buffer of `cap` bytes. False: out of memory, nothing has
 * changed. */
static bool kh_regrow(uint8_t **data, size_t *old_cap, size_t *head, size_t *tail, size_t cap)
{
    uint8_t *grown = malloc(cap);

    if (grown == NULL) {
        return false;
    }
    if (*tail > *head) {
        memcpy(grown, *data + *head, *tail - *head);
    }
    kh_wipe_free(*data, *old_cap);
    *data = grown;
    *old_cap = cap;
    *tail -= *head;
    *head = 0;
    return true;
}

static void kh_compact(uint8_t *data, size_t *head, size_t *tail)
{
    memmove(data, data + *head, *tail - *head);
    *tail -= *head;
    *head = 0;
}

uint8_t *kh_output_reserve(kh_output *output, size_t len)
{
    size_t pending = output->tail - output->head;
    size_t cap = output->cap > 0 ? output->cap * 2 : KH_OUTPUT_START;

    if (output->data != NULL && output->cap - output->tail >= len) {
        return output->data + output->tail;
    }
    /* Moving is paid for by what was written before, so that many small frames never cost a quadratic copy.
     */
    if (output->data != NULL && output->head >= pending && output->cap - pending >= len) {
        kh_compact(output->data, &output->head, &output->tail);
        return output->data + output->tail;
    }
    while (cap - pending < len) {
        if (cap > SIZE_MAX / 4) {
            return NULL;
        }
        cap *= 2;
    }
    if (!kh_regrow(&output->data, &output->cap, &output->head, &output->tail, cap)) {
        return NULL;
    }
    return output->data + output->tail;
}

void kh_output_commit(kh_output *output, size_t len)
{
    output->tail += len;
}

kh_bytes kh_output_pending(const kh_output *output)
{
    if (output->tail == output->head) {
        return (kh_bytes){0};
    }
    return (kh_bytes){output->data + output->head, output->tail - output->head};
}

void kh_output_consume(kh_output *output, size_t len)
{
    size_t pending = output->tail - output->head;

    if (len > pending) {
        len = pending;
    }
    output->head += len;
    if (output->head < output->tail) {
        return;
    }
    output->head = 0;
    output->tail = 0;
    if (output->secret) {
        explicit_bzero(output->data, output->cap); /* all of it: moving leaves copies behind */
        output->secret = false;
    }
    if (output->cap > KH_OUTPUT_KEEP) {
        kh_output_free(output);
    }
}

void kh_output_free(kh_output *output)
{
    kh_wipe_free(output->data, output->cap);
    *output = (kh_output){0};
}

/* Length of the first frame's payload; false while its prefix is incomplete. */
static bool kh_input_length(const kh_input *input, size_t *length)
{
    const uint8_t *at = input->data + input->head;

    if (input->tail - input->head < KH_FRAME_PREFIX) {
        return false;
    }
    *length = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | (size_t)at[3];
    return true;
}

/* What of the first frame is still to come; 0 when it is complete, or not started. */
static size_t kh_input_missing(const kh_input *input, size_t max_frame)
{
    size_t have = input->tail - input->head;
    size_t length = 0;

    if (have == 0) {
        return 0;
    }
    if (!kh_input_length(input, &length)) {
        return KH_FRAME_PREFIX - have;
    }
    if (length > max_frame || have >= KH_FRAME_PREFIX + length) {
        return 0;
    }
    return KH_FRAME_PREFIX + length - have;
}

bool kh_input_full(const kh_input *input, size_t max_frame)
{
    return input->data != NULL && input->head == 0 && input->tail == input->cap &&
           kh_input_missing(input, max_frame) == 0;
}

/* Makes room at the end when there is none: by moving, else by growing for the started frame. */
static bool kh_input_make_room(kh_input *input, size_t missing)
{
    size_t needed = input->tail - input->head + missing;
    size_t cap = input->cap * 2;

    if (input->data == NULL) {
        return kh_regrow(&input->data, &input->cap, &input->head, &input->tail, KH_READ_START);
    }
    if (input->head > 0) {
        kh_compact(input->data, &input->head, &input->tail);
        return true;
    }
    if (missing == 0) {
        return false; /* kh_input_full */
    }
    return kh_regrow(&input->data, &input->cap, &input->head, &input->tail, cap < needed ? cap : needed);
}

uint8_t *kh_input_room(kh_input *input, size_t max_frame, size_t *cap)
{
    size_t missing = 0;
    size_t room = 0;

    *cap = 0;
    if (input->head == input->tail) {
        input->head = 0;
        input->tail = 0;
    }
    missing = kh_input_missing(input, max_frame);
    if (input->tail == input->cap && !kh_input_make_room(input, missing)) {
        return NULL;
    }
    room = input->cap - input->tail;
    missing = missing > KH_READ_START ? missing : KH_READ_START;
    *cap = room < missing ? room : missing;
    return input->data + input->tail;
}

void kh_input_fed(kh_input *input, size_t len)
{
    size_t room = input->cap - input->tail;

    input->tail += len < room ? len : room;
}

kh_result kh_input_peek(const kh_input *input, size_t max_frame, kh_bytes *payload)
{
    size_t length = 0;

    if (input->data == NULL || !kh_input_length(input, &length)) {
        return KH_AGAIN;
    }
    if (length == 0 || length > max_frame) {
        return KH_E_MALFORMED;
    }
    if (input->tail - input->head < KH_FRAME_PREFIX + length) {
        return KH_AGAIN;
    }
    *payload = (kh_bytes){input->data + input->head + KH_FRAME_PREFIX, length};
    return KH_OK;
}

void kh_input_skip(kh_input *input, kh_bytes payload)
{
    input->head += KH_FRAME_PREFIX + payload.len;
}

void kh_input_free(kh_input *input)
{
    kh_wipe_free(input->data, input->cap);
    *input = (kh_input){0};
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An export file. The first byte says how the rest is taken: as a file, under a fixed key; or as one entry behind the seal,
 * which must come out again as it went in.
 */
#include "transfer.h"

#include <stdlib.h>
#include <string.h>

typedef struct input {
    const uint8_t *data;
    size_t len;
} input;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static bool read_input(void *ctx, uint64_t at, uint8_t *data, size_t len)
{
    const input *in = ctx;

    if (at > in->len || len > in->len - at) {
        abort(); /* beyond what it was told */
    }
    memcpy(data, in->data + at, len);
    return true;
}

static void as_file(const uint8_t *data, size_t len)
{
    static const uint8_t key[KH_SEAL_KEY_LEN];
    input in = {data, len};
    kh_transfer *transfer = NULL;
    kh_row row;

    if (kh_transfer_new_reader(read_input, &in, len, key, &transfer) == KH_OK) {
        while (kh_transfer_next(transfer, &row) == KH_OK) {
        }
    }
    kh_transfer_free(transfer);
}

static void as_entry(const uint8_t *data, size_t len)
{
    uint8_t again[KH_TRANSFER_PUBLIC_MAX];
    size_t public_len = 0;
    kh_row row;

    if (len <= KH_TRANSFER_ENTRY_MAX && kh_transfer_entry_parse(KH_TRANSFER_FORMAT, data, len, &row, &public_len) == KH_OK &&
        (kh_transfer_entry_encode(&row, again) != public_len || memcmp(again, data, public_len) != 0)) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len > 0) {
        (data[0] & 1 ? as_entry : as_file)(data + 1, len - 1);
    }
    return 0;
}

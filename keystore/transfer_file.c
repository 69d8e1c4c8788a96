/* SPDX-License-Identifier: Apache-2.0 */
/* Export files from the beginning to the end: the seals, reading and writing. See transfer.h. */
#include "transfer.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <stdlib.h>

#define FILE_KEY_LABEL "keyhold-export file key 1"
#define ENTRY_LABEL "keyhold-export key 1"
#define END_LABEL "keyhold-export end 1"

struct kh_transfer {
    kh_transfer_read_fn read;
    kh_transfer_write_fn write;
    void *ctx;
    uint64_t at, len, count;
    EVP_MD_CTX *hash;
    kh_sealer *sealer;
    char name[KH_NAME_MAX + 1]; /* of the entry before */
    uint32_t version;
    unsigned format; /* of a file that is read */
    bool ended;
    uint8_t buffer[4 + KH_TRANSFER_ENTRY_MAX];
};

/* ---- What the seals protect -----------------------------------------------------------------------------
 */

static size_t file_key_aad(const uint8_t *header, uint8_t aad[sizeof(FILE_KEY_LABEL) + KH_TRANSFER_SEALED_AT])
{
    uint8_t *at = kh_put_bytes(aad, FILE_KEY_LABEL, sizeof(FILE_KEY_LABEL));

    at = kh_put_bytes(at, header, KH_TRANSFER_SEALED_AT);
    return (size_t)(at - aad);
}

static kh_result seal_file_key(const uint8_t transfer_key[KH_SEAL_KEY_LEN], const uint8_t *header,
                               const uint8_t file_key[KH_SEAL_KEY_LEN], uint8_t *sealed)
{
    uint8_t aad[sizeof(FILE_KEY_LABEL) + KH_TRANSFER_SEALED_AT];
    kh_sealer *sealer = NULL;
    kh_result result = kh_sealer_new(transfer_key, &sealer);

    if (result == KH_OK) {
        result = kh_seal(sealer, aad, file_key_aad(header, aad), file_key, KH_SEAL_KEY_LEN, sealed);
    }
    kh_sealer_free(sealer);
    return result;
}

static kh_result open_file_key(const uint8_t transfer_key[KH_SEAL_KEY_LEN], const uint8_t *header,
                               uint8_t file_key[KH_SEAL_KEY_LEN])
{
    uint8_t aad[sizeof(FILE_KEY_LABEL) + KH_TRANSFER_SEALED_AT];
    kh_sealer *sealer = NULL;
    kh_result result = kh_sealer_new(transfer_key, &sealer);

    if (result == KH_OK) {
        result = kh_unseal(sealer, aad, file_key_aad(header, aad), header + KH_TRANSFER_SEALED_AT,
                           KH_SEAL_KEY_LEN + KH_SEAL_OVERHEAD, file_key);
    }
    kh_sealer_free(sealer);
    return result;
}

/* What the seal of an entry protects beside the key. */
static size_t entry_aad(uint64_t number, const uint8_t *entry, size_t public_len,
                        uint8_t aad[sizeof(ENTRY_LABEL) + 8 + KH_TRANSFER_PUBLIC_MAX])
{
    uint8_t *at = kh_put_bytes(aad, ENTRY_LABEL, sizeof(ENTRY_LABEL));

    at = kh_put_number(at, number, 8);
    at = kh_put_bytes(at, entry, public_len);
    return (size_t)(at - aad);
}

/* Of the end: the number of entries, and all that was before. The hash is used up. */
static kh_result end_aad(kh_transfer *transfer, uint8_t aad[sizeof(END_LABEL) + 8 + SHA256_DIGEST_LENGTH])
{
    uint8_t *at = kh_put_bytes(aad, END_LABEL, sizeof(END_LABEL));

    at = kh_put_number(at, transfer->count, 8);
    return EVP_DigestFinal_ex(transfer->hash, at, NULL) == 1 ? KH_OK : KH_E_CRYPTO;
}

/* ---- Both ---------------------------------------------------------------------------------------------- */

static kh_result new_transfer(void *ctx, kh_transfer **out)
{
    kh_transfer *transfer = calloc(1, sizeof(*transfer));

    *out = transfer;
    if (transfer == NULL || (transfer->hash = EVP_MD_CTX_new()) == NULL) {
        return KH_E_MEMORY;
    }
    transfer->ctx = ctx;
    return EVP_DigestInit_ex(transfer->hash, EVP_sha256(), NULL) == 1 ? KH_OK : KH_E_CRYPTO;
}

static kh_result passed(kh_transfer *transfer, const uint8_t *bytes, size_t len)
{
    transfer->at += len;
    return EVP_DigestUpdate(transfer->hash, bytes, len) == 1 ? KH_OK : KH_E_CRYPTO;
}

uint64_t kh_transfer_count(const kh_transfer *transfer)
{
    return transfer->count;
}

void kh_transfer_free(kh_transfer *transfer)
{
    if (transfer != NULL) {
        EVP_MD_CTX_free(transfer->hash);
        kh_sealer_free(transfer->sealer);
        free(transfer);
    }
}

/* ---- Writing ------------------------------------------------------------------------------------------- */

static kh_result write_on(kh_transfer *transfer, const uint8_t *bytes, size_t len)
{
    if (!transfer->write(transfer->ctx, transfer->at, bytes, len)) {
        return KH_E_IO;
    }
    return passed(transfer, bytes, len);
}

kh_result kh_transfer_new_writer(kh_transfer_write_fn write, void *ctx, const kh_transfer_header *header,
                                 const uint8_t transfer_key[KH_SEAL_KEY_LEN], kh_transfer **out)
{
    uint8_t file_key[KH_SEAL_KEY_LEN], bytes[KH_TRANSFER_HEADER_LEN];
    kh_transfer *transfer = NULL;
    kh_result result = new_transfer(ctx, &transfer);

    *out = NULL;
    if (result == KH_OK && RAND_priv_bytes(file_key, sizeof(file_key)) != 1) {
        result = KH_E_CRYPTO;
    }
    if (result != KH_OK) {
        goto done;
    }
    transfer->write = write;
    kh_transfer_header_encode(header, bytes);
    if ((result = seal_file_key(transfer_key, bytes, file_key, bytes + KH_TRANSFER_SEALED_AT)) != KH_OK ||
        (result = kh_sealer_new(file_key, &transfer->sealer)) != KH_OK) {
        goto done;
    }
    kh_transfer_header_sum(bytes);
    result = write_on(transfer, bytes, sizeof(bytes));
done:
    OPENSSL_cleanse(file_key, sizeof(file_key));
    if (result == KH_OK) {
        *out = transfer;
        transfer = NULL;
    }
    kh_transfer_free(transfer);
    return result;
}

kh_result kh_transfer_put(kh_transfer *transfer, const kh_row *row)
{
    uint8_t aad[sizeof(ENTRY_LABEL) + 8 + KH_TRANSFER_PUBLIC_MAX], *entry = transfer->buffer + 4;
    size_t public_len = kh_transfer_entry_encode(row, entry);
    size_t len = public_len + row->pkcs8_len + KH_SEAL_OVERHEAD;
    kh_result result = kh_seal(transfer->sealer, aad, entry_aad(transfer->count, entry, public_len, aad),
                               row->pkcs8, row->pkcs8_len, entry + public_len);

    kh_put_number(transfer->buffer, len, 4);
    if (result == KH_OK) {
        result = write_on(transfer, transfer->buffer, 4 + len);
    }
    transfer->count += result == KH_OK;
    return result;
}

kh_result kh_transfer_put_end(kh_transfer *transfer)
{
    uint8_t aad[sizeof(END_LABEL) + 8 + SHA256_DIGEST_LENGTH], bytes[KH_TRANSFER_END_LEN];
    kh_result result = end_aad(transfer, aad);

    kh_put_number(kh_put_number(bytes, 0, 4), transfer->count, 8);
    if (result == KH_OK) {
        result = kh_seal(transfer->sealer, aad, sizeof(aad), bytes, 0, bytes + 12);
    }
    if (result == KH_OK && !transfer->write(transfer->ctx, transfer->at, bytes, sizeof(bytes))) {
        result = KH_E_IO;
    }
    return result;
}

/* ---- Reading ------------------------------------------------------------------------------------------- */

/* KH_E_DAMAGED: the file has no such bytes. */
static kh_result read_at(kh_transfer *transfer, uint64_t at, uint8_t *bytes, size_t len)
{
    if (transfer->len < at || transfer->len - at < len) {
        return KH_E_DAMAGED;
    }
    return transfer->read(transfer->ctx, at, bytes, len) ? KH_OK : KH_E_IO;
}

kh_result kh_transfer_new_reader(kh_transfer_read_fn read, void *ctx, uint64_t len,
                                 const uint8_t transfer_key[KH_SEAL_KEY_LEN], kh_transfer **out)
{
    uint8_t file_key[KH_SEAL_KEY_LEN], bytes[KH_TRANSFER_HEADER_LEN];
    kh_transfer_header header;
    kh_transfer *transfer = NULL;
    kh_result result = new_transfer(ctx, &transfer);

    *out = NULL;
    if (result != KH_OK) {
        goto done;
    }
    transfer->read = read;
    transfer->len = len;
    if ((result = read_at(transfer, 0, bytes, sizeof(bytes))) != KH_OK ||
        (result = kh_transfer_header_parse(bytes, &header)) != KH_OK) {
        goto done;
    }
    transfer->format = header.format;
    /* The sum is right: what does not open it is the key. */
    result = open_file_key(transfer_key, bytes, file_key);
    result = result == KH_E_DAMAGED ? KH_E_PASSPHRASE : result;
    if (result == KH_OK) {
        result = kh_sealer_new(file_key, &transfer->sealer);
    }
    if (result == KH_OK) {
        result = passed(transfer, bytes, sizeof(bytes));
    }
done:
    OPENSSL_cleanse(file_key, sizeof(file_key));
    if (result == KH_OK) {
        *out = transfer;
        transfer = NULL;
    }
    kh_transfer_free(transfer);
    return result;
}

/* The end, and nothing behind it. */
static kh_result read_end(kh_transfer *transfer)
{
    uint8_t aad[sizeof(END_LABEL) + 8 + SHA256_DIGEST_LENGTH], bytes[KH_TRANSFER_END_LEN], nothing[1];
    kh_result result = read_at(transfer, transfer->at, bytes, sizeof(bytes));

    if (result == KH_OK &&
        (transfer->len - transfer->at != sizeof(bytes) || kh_get_number(bytes + 4, 8) != transfer->count)) {
        result = KH_E_DAMAGED;
    }
    if (result == KH_OK) {
        result = end_aad(transfer, aad);
    }
    if (result == KH_OK) {
        result = kh_unseal(transfer->sealer, aad, sizeof(aad), bytes + 12, KH_SEAL_OVERHEAD, nothing);
    }
    transfer->ended = true;
    return result == KH_OK ? KH_E_NOT_FOUND : result;
}

static bool rises(const kh_transfer *transfer, const kh_key_info *info)
{
    int order = strcmp(info->name, transfer->name);

    return order > 0 || (order == 0 && info->version > transfer->version);
}

kh_result kh_transfer_next(kh_transfer *transfer, kh_row *row)
{
    uint8_t aad[sizeof(ENTRY_LABEL) + 8 + KH_TRANSFER_PUBLIC_MAX], *entry = transfer->buffer + 4;
    size_t len = 0, public_len = 0;
    kh_result result = transfer->ended ? KH_E_ORDER : read_at(transfer, transfer->at, transfer->buffer, 4);

    memset(row, 0, sizeof(*row));
    if (result != KH_OK) {
        return result;
    }
    len = (size_t)kh_get_number(transfer->buffer, 4);
    if (len == 0) {
        return read_end(transfer);
    }
    if (len > KH_TRANSFER_ENTRY_MAX) {
        return KH_E_DAMAGED;
    }
    if ((result = read_at(transfer, transfer->at + 4, entry, len)) != KH_OK ||
        (result = kh_transfer_entry_parse(transfer->format, entry, len, row, &public_len)) != KH_OK) {
        goto done;
    }
    row->pkcs8_len = len - public_len - KH_SEAL_OVERHEAD;
    result = kh_unseal(transfer->sealer, aad, entry_aad(transfer->count, entry, public_len, aad),
                       entry + public_len, len - public_len, row->pkcs8);
    if (result == KH_OK && !rises(transfer, &row->info)) {
        result = KH_E_DAMAGED;
    }
    if (result == KH_OK) {
        result = passed(transfer, transfer->buffer, 4 + len);
    }
    memcpy(transfer->name, row->info.name, sizeof(transfer->name));
    transfer->version = row->info.version;
    transfer->count += result == KH_OK;
done:
    if (result != KH_OK) {
        OPENSSL_cleanse(row, sizeof(*row));
    }
    return result;
}

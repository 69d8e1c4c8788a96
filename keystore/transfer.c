/* SPDX-License-Identifier: Apache-2.0 */
/* Export files: their bytes. See transfer.h. */
#include "transfer.h"
#include "material.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <stdlib.h>

#define NAME "keyhold-export"
#define NAME_LEN (sizeof(NAME) - 1)
#define KEK_AT KH_TRANSFER_PREFIX_LEN
#define CREATED_AT (KEK_AT + 1 + KH_KEK_PARAMS_LEN)
#define STORE_AT (CREATED_AT + 8)
#define SUM_AT (KH_TRANSFER_HEADER_LEN - SHA256_DIGEST_LENGTH)
#define FILE_KEY_LABEL "keyhold export file key 1"
#define ENTRY_LABEL "keyhold exported key 1"
#define END_LABEL "keyhold export end 1"

_Static_assert(STORE_AT + KH_STORE_ID_LEN == KH_TRANSFER_SEALED_AT, "the header has no gaps");

struct kh_transfer {
    kh_transfer_read_fn read;
    kh_transfer_write_fn write;
    void *ctx;
    uint64_t at, len, count;
    EVP_MD_CTX *hash;
    kh_sealer *sealer;
    char name[KH_NAME_MAX + 1]; /* of the entry before */
    uint32_t version;
    bool ended;
    uint8_t buffer[4 + KH_TRANSFER_ENTRY_MAX];
};

static uint64_t get_number(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;

    while (bytes-- > 0) {
        value = value << 8 | *at++;
    }
    return value;
}

/* ---- The header ---------------------------------------------------------------------------------------- */

kh_result kh_transfer_header_parse(const uint8_t bytes[KH_TRANSFER_HEADER_LEN], kh_transfer_header *header)
{
    uint8_t sum[SHA256_DIGEST_LENGTH];

    if (memcmp(bytes, NAME, NAME_LEN) != 0) {
        return KH_E_MALFORMED;
    }
    SHA256(bytes, SUM_AT, sum);
    if (memcmp(sum, bytes + SUM_AT, sizeof(sum)) != 0) {
        /* Of a newer format the sum may be elsewhere; but a changed number is no newer format. */
        return get_number(bytes + NAME_LEN, 2) > KH_TRANSFER_FORMAT ? KH_E_VERSION : KH_E_DAMAGED;
    }
    if (get_number(bytes + NAME_LEN, 2) != KH_TRANSFER_FORMAT) {
        return KH_E_VERSION;
    }
    memcpy(header->kek, bytes + KEK_AT, sizeof(header->kek));
    header->created = get_number(bytes + CREATED_AT, 8);
    memcpy(header->store_id, bytes + STORE_AT, sizeof(header->store_id));
    return KH_OK;
}

static kh_result seal_file_key(const uint8_t transfer_key[KH_SEAL_KEY_LEN], const uint8_t *header,
                               const uint8_t *file_key, const uint8_t *sealed, uint8_t *out)
{
    uint8_t aad[sizeof(FILE_KEY_LABEL) + KH_TRANSFER_SEALED_AT];
    kh_sealer *sealer = NULL;
    kh_result result = kh_sealer_new(transfer_key, &sealer);

    kh_put_bytes(kh_put_bytes(aad, FILE_KEY_LABEL, sizeof(FILE_KEY_LABEL)), header, KH_TRANSFER_SEALED_AT);
    if (result == KH_OK) {
        result = file_key != NULL
                     ? kh_seal(sealer, aad, sizeof(aad), file_key, KH_SEAL_KEY_LEN, out)
                     : kh_unseal(sealer, aad, sizeof(aad), sealed, KH_SEAL_KEY_LEN + KH_SEAL_OVERHEAD, out);
    }
    kh_sealer_free(sealer);
    return result;
}

/* ---- An entry ------------------------------------------------------------------------------------------ */

size_t kh_transfer_entry_encode(const kh_row *row, uint8_t entry[KH_TRANSFER_PUBLIC_MAX])
{
    const kh_key_info *info = &row->info;
    size_t name_len = strlen(info->name);
    uint8_t *at = kh_put_number(entry, info->created, 8);

    at = kh_put_number(at, info->version, 4);
    at = kh_put_number(at, info->type, 4);
    at = kh_put_number(at, info->bits, 4);
    at = kh_put_number(at, info->usage, 4);
    at = kh_put_number(at, info->state, 4);
    at = kh_put_number(at, row->policy, 4);
    at = kh_put_number(at, name_len, 2);
    at = kh_put_bytes(at, info->name, name_len);
    at = kh_put_bytes(at, info->id, KH_KEY_ID_LEN);
    at = kh_put_number(at, info->spki_len, 2);
    at = kh_put_bytes(at, info->spki, info->spki_len);
    return (size_t)(at - entry);
}

/* What every row of a store fulfils. */
static bool possible(const kh_row *row)
{
    const kh_key_info *info = &row->info;
    uint32_t bits = info->bits;

    return info->version >= 1 && info->created <= INT64_MAX && kh_material_possible(info->type, &bits) && bits == info->bits &&
           kh_usage_possible(info->usage, info->type) && info->state >= STATE_ENABLED &&
           info->state <= STATE_DELETED && (row->policy & ~KH_POLICY_ALL) == 0;
}

kh_result kh_transfer_entry_parse(const uint8_t *entry, size_t len, kh_row *row, size_t *public_len)
{
    const size_t fixed = 8 + 6 * 4 + 2, behind_name = KH_KEY_ID_LEN + 2;
    kh_key_info *info = &row->info;
    const uint8_t *at = entry;
    size_t name_len = 0, left = len;

    memset(row, 0, sizeof(*row));
    if (len < fixed) {
        return KH_E_DAMAGED;
    }
    at += fixed;
    left -= fixed;
    info->created = get_number(entry, 8);
    info->version = (uint32_t)get_number(entry + 8, 4);
    info->type = (uint32_t)get_number(entry + 12, 4);
    info->bits = (uint32_t)get_number(entry + 16, 4);
    info->usage = (uint32_t)get_number(entry + 20, 4);
    info->state = (uint32_t)get_number(entry + 24, 4);
    row->policy = (uint32_t)get_number(entry + 28, 4);
    name_len = (size_t)get_number(entry + 32, 2);
    if (name_len > KH_NAME_MAX || left < name_len + behind_name || !kh_name_valid((const char *)at, name_len)) {
        return KH_E_DAMAGED;
    }
    memcpy(info->name, at, name_len);
    memcpy(info->id, at + name_len, KH_KEY_ID_LEN);
    at += name_len + behind_name;
    left -= name_len + behind_name;
    info->spki_len = (uint32_t)get_number(at - 2, 2);
    if (info->spki_len > KH_SPKI_MAX || left < info->spki_len) {
        return KH_E_DAMAGED;
    }
    memcpy(info->spki, at, info->spki_len);
    left -= info->spki_len;
    *public_len = len - left;
    return left > KH_SEAL_OVERHEAD && left <= KH_IMPORT_PKCS8_MAX + KH_SEAL_OVERHEAD && possible(row) ? KH_OK
                                                                                                       : KH_E_DAMAGED;
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
    uint8_t file_key[KH_SEAL_KEY_LEN], bytes[KH_TRANSFER_HEADER_LEN], *at = bytes;
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
    at = kh_put_bytes(at, NAME, NAME_LEN);
    at = kh_put_number(at, KH_TRANSFER_FORMAT, 2);
    at = kh_put_bytes(at, header->kek, sizeof(header->kek));
    at = kh_put_number(at, header->created, 8);
    at = kh_put_bytes(at, header->store_id, KH_STORE_ID_LEN);
    if ((result = seal_file_key(transfer_key, bytes, file_key, NULL, at)) != KH_OK ||
        (result = kh_sealer_new(file_key, &transfer->sealer)) != KH_OK) {
        goto done;
    }
    SHA256(bytes, SUM_AT, bytes + SUM_AT);
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
    kh_result result = kh_seal(transfer->sealer, aad, entry_aad(transfer->count, entry, public_len, aad), row->pkcs8,
                               row->pkcs8_len, entry + public_len);

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
    /* The sum is right: what does not open it is the key. */
    result = seal_file_key(transfer_key, bytes, NULL, bytes + KH_TRANSFER_SEALED_AT, file_key);
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

    if (result == KH_OK && (transfer->len - transfer->at != sizeof(bytes) ||
                            get_number(bytes + 4, 8) != transfer->count)) {
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
    len = (size_t)get_number(transfer->buffer, 4);
    if (len == 0) {
        return read_end(transfer);
    }
    if (len > KH_TRANSFER_ENTRY_MAX) {
        return KH_E_DAMAGED;
    }
    if ((result = read_at(transfer, transfer->at + 4, entry, len)) != KH_OK ||
        (result = kh_transfer_entry_parse(entry, len, row, &public_len)) != KH_OK) {
        goto done;
    }
    row->pkcs8_len = len - public_len - KH_SEAL_OVERHEAD;
    result = kh_unseal(transfer->sealer, aad, entry_aad(transfer->count, entry, public_len, aad), entry + public_len,
                       len - public_len, row->pkcs8);
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

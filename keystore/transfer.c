/* SPDX-License-Identifier: Apache-2.0 */
/* Export files: their bytes, without the seals. See transfer.h. */
#include "transfer.h"
#include "material.h"

#include <openssl/sha.h>

#define NAME "keyhold-export"
#define NAME_LEN (sizeof(NAME) - 1)
#define KEK_AT KH_TRANSFER_PREFIX_LEN
#define CREATED_AT (KEK_AT + 1 + KH_KEK_PARAMS_LEN)
#define STORE_AT (CREATED_AT + 8)
#define SUM_AT (KH_TRANSFER_HEADER_LEN - SHA256_DIGEST_LENGTH)

_Static_assert(STORE_AT + KH_STORE_ID_LEN == KH_TRANSFER_SEALED_AT, "the header has no gaps");

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
        return kh_get_number(bytes + NAME_LEN, 2) > KH_TRANSFER_FORMAT ? KH_E_VERSION : KH_E_DAMAGED;
    }
    header->format = (unsigned)kh_get_number(bytes + NAME_LEN, 2);
    if (header->format < 1 || header->format > KH_TRANSFER_FORMAT) {
        return KH_E_VERSION;
    }
    memcpy(header->kek, bytes + KEK_AT, sizeof(header->kek));
    header->created = kh_get_number(bytes + CREATED_AT, 8);
    memcpy(header->store_id, bytes + STORE_AT, sizeof(header->store_id));
    return KH_OK;
}

void kh_transfer_header_encode(const kh_transfer_header *header, uint8_t bytes[KH_TRANSFER_SEALED_AT])
{
    uint8_t *at = kh_put_bytes(bytes, NAME, NAME_LEN);

    at = kh_put_number(at, KH_TRANSFER_FORMAT, 2);
    at = kh_put_bytes(at, header->kek, sizeof(header->kek));
    at = kh_put_number(at, header->created, 8);
    kh_put_bytes(at, header->store_id, KH_STORE_ID_LEN);
}

void kh_transfer_header_sum(uint8_t bytes[KH_TRANSFER_HEADER_LEN])
{
    SHA256(bytes, SUM_AT, bytes + SUM_AT);
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
    at = kh_put_number(at, info->tier, 4);
    at = kh_put_number(at, strlen(info->place), 1);
    at = kh_put_bytes(at, info->place, strlen(info->place));
    at = kh_put_number(at, info->not_before, 8);
    at = kh_put_number(at, info->expires, 8);
    at = kh_put_number(at, row->deleted, 8);
    return (size_t)(at - entry);
}

/* What every row of a store fulfils. */
static bool possible(const kh_row *row)
{
    const kh_key_info *info = &row->info;
    uint32_t bits = info->bits;

    return info->version >= 1 && info->created <= INT64_MAX && kh_material_possible(info->type, &bits) &&
           bits == info->bits && kh_usage_possible(info->usage, info->type) && info->state >= STATE_ENABLED &&
           info->state <= STATE_DELETED && (row->policy & ~KH_POLICY_ALL) == 0 && kh_info_possible(info) &&
           row->deleted <= INT64_MAX;
}

/* What format 2 added, from *at on; false: it is not there. */
static bool parse_2(const uint8_t **at, size_t *left, kh_row *row)
{
    kh_key_info *info = &row->info;
    size_t place_len = *left >= 5 ? (*at)[4] : 0, all = 5 + place_len + 3 * 8;

    if (place_len > KH_PLACE_MAX || *left < all) {
        return false;
    }
    info->tier = (uint32_t)kh_get_number(*at, 4);
    memcpy(info->place, *at + 5, place_len);
    if (memchr(info->place, '\0', place_len) != NULL) {
        return false;
    }
    info->not_before = kh_get_number(*at + 5 + place_len, 8);
    info->expires = kh_get_number(*at + 5 + place_len + 8, 8);
    row->deleted = kh_get_number(*at + 5 + place_len + 16, 8);
    *at += all;
    *left -= all;
    return true;
}

kh_result kh_transfer_entry_parse(unsigned format, const uint8_t *entry, size_t len, kh_row *row, size_t *public_len)
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
    info->created = kh_get_number(entry, 8);
    info->version = (uint32_t)kh_get_number(entry + 8, 4);
    info->type = (uint32_t)kh_get_number(entry + 12, 4);
    info->bits = (uint32_t)kh_get_number(entry + 16, 4);
    info->usage = (uint32_t)kh_get_number(entry + 20, 4);
    info->state = (uint32_t)kh_get_number(entry + 24, 4);
    row->policy = (uint32_t)kh_get_number(entry + 28, 4);
    name_len = (size_t)kh_get_number(entry + 32, 2);
    if (name_len > KH_NAME_MAX || left < name_len + behind_name ||
        !kh_name_valid((const char *)at, name_len)) {
        return KH_E_DAMAGED;
    }
    memcpy(info->name, at, name_len);
    memcpy(info->id, at + name_len, KH_KEY_ID_LEN);
    at += name_len + behind_name;
    left -= name_len + behind_name;
    info->spki_len = (uint32_t)kh_get_number(at - 2, 2);
    if (info->spki_len > KH_SPKI_MAX || left < info->spki_len) {
        return KH_E_DAMAGED;
    }
    memcpy(info->spki, at, info->spki_len);
    at += info->spki_len;
    left -= info->spki_len;
    info->tier = KH_TIER_SOFTWARE;
    if (format >= 2 && !parse_2(&at, &left, row)) {
        return KH_E_DAMAGED;
    }
    *public_len = len - left;
    return left > KH_SEAL_OVERHEAD && left <= KH_IMPORT_PKCS8_MAX + KH_SEAL_OVERHEAD && possible(row)
               ? KH_OK
               : KH_E_DAMAGED;
}

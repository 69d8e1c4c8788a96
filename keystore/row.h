/* SPDX-License-Identifier: Apache-2.0 */
/* One key version as the store and an export have it, with what each seal protects beside the private key. */
#ifndef KEYHOLD_KEYSTORE_ROW_H
#define KEYHOLD_KEYSTORE_ROW_H

#include <keyhold/import.h>
#include <keyhold/keystore.h>
#include <string.h>

/* One row, verified. Holds a secret while pkcs8_len > 0. */
typedef struct kh_row {
    kh_key_info info;
    uint32_t policy;
    uint64_t deleted; /* when it was deleted, Unix time; 0: it is not, or before anybody wrote it down */
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX]; /* of a key of a token: its locator (locator.h) */
    size_t pkcs8_len;
} kh_row;

#define STATE_ENABLED 1u
#define STATE_DISABLED 2u
#define STATE_DELETED 3u
#define KH_POLICY_WAS_DISABLED 0x1u /* state before it was deleted */
#define KH_POLICY_BY_ROOT 0x2u      /* root disabled it: only root enables it */
#define KH_POLICY_ADOPTED 0x4u      /* its object in the token was not made here, and is not destroyed from here */
#define KH_POLICY_ALL (KH_POLICY_WAS_DISABLED | KH_POLICY_BY_ROOT | KH_POLICY_ADOPTED)

static inline bool kh_row_in_token(const kh_row *row)
{
    return row->info.tier != KH_TIER_SOFTWARE;
}

/* Whether tier, place and validity fit together, of a row; and of a request, where tier may be 0 and the place empty. */
bool kh_info_possible(const kh_key_info *info);
bool kh_info_asked(const kh_key_info *info);

/* Whether a key of that type may have that usage; KH_KEY_NONE: of a type not known yet. */
bool kh_usage_possible(uint32_t usage, uint32_t type);
/*
 * Whether the private key is the one of the row's public key, id, type and size; of a key of a token, whether its locator
 * is one. KH_E_DAMAGED: it is not.
 */
KH_MUST_USE kh_result kh_row_sound(const kh_row *row);

/* Big-endian numbers and bytes, one after the other; each returns where the next goes. */
static inline uint8_t *kh_put_number(uint8_t *at, uint64_t value, unsigned bytes)
{
    while (bytes-- > 0) {
        *at++ = (uint8_t)(value >> (8 * bytes));
    }
    return at;
}

static inline uint8_t *kh_put_bytes(uint8_t *at, const void *bytes, size_t len)
{
    memcpy(at, bytes, len);
    return at + len;
}

static inline uint64_t kh_get_number(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;

    while (bytes-- > 0) {
        value = value << 8 | *at++;
    }
    return value;
}

#endif

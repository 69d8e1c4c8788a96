/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked of one key version wherever it comes from. */
#include "row.h"
#include "locator.h"
#include "material.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>

bool kh_usage_possible(uint32_t usage, uint32_t type)
{
    const uint32_t rsa_only = KH_USAGE_TLS_RSA_KX | KH_USAGE_DECRYPT | KH_USAGE_WRAP;

    return usage != 0 && (usage & ~(uint32_t)KH_USAGE_ALL) == 0 &&
           (type == KH_KEY_NONE || type == KH_KEY_RSA || (usage & rsa_only) == 0);
}

bool kh_info_asked(const kh_key_info *info)
{
    const char *end = memchr(info->place, '\0', sizeof(info->place));
    size_t place_len = end != NULL ? (size_t)(end - info->place) : 0;

    return end != NULL && info->tier <= KH_TIER_HSM_POOL &&
           (place_len == 0 || (info->tier > KH_TIER_SOFTWARE && kh_name_valid(info->place, place_len))) &&
           info->not_before <= INT64_MAX && info->expires <= INT64_MAX &&
           (info->expires == 0 || info->expires > info->not_before) &&
           (info->flags & ~(KH_KEY_ALLOW_DUPLICATE | KH_KEY_NEW_VERSION)) == 0;
}

bool kh_info_possible(const kh_key_info *info)
{
    return kh_info_asked(info) && info->tier != 0 && (info->tier == KH_TIER_SOFTWARE) == (info->place[0] == '\0');
}

/* The public key's own id, type and size. */
static kh_result public_sound(const kh_key_info *info)
{
    kh_material material;
    kh_result result = kh_material_public(info->spki, info->spki_len, &material);

    if (result == KH_OK && ((uint32_t)material.type != info->type || material.bits != info->bits ||
                            memcmp(material.id, info->id, KH_KEY_ID_LEN) != 0)) {
        result = KH_E_DAMAGED;
    }
    return result == KH_OK || result == KH_E_MEMORY ? result : KH_E_DAMAGED;
}

static kh_result locator_sound(const kh_row *row)
{
    kh_p11_locator locator;
    const uint8_t *blob = NULL;
    size_t blob_len = 0;
    kh_result result = kh_locator_parse(row->pkcs8, row->pkcs8_len, &locator, &blob, &blob_len);

    if (result == KH_OK && (blob_len > 0) != (row->info.tier == KH_TIER_HSM_POOL)) {
        result = KH_E_DAMAGED;
    }
    return result == KH_OK ? public_sound(&row->info) : result;
}

kh_result kh_row_sound(const kh_row *row)
{
    const kh_key_info *info = &row->info;
    kh_material material;
    EVP_PKEY *pkey = NULL;
    kh_result result = KH_OK;

    if (kh_row_in_token(row)) {
        return locator_sound(row);
    }
    result = kh_pkcs8_parse_as((kh_key_type)info->type, row->pkcs8, row->pkcs8_len, &pkey);

    if (result == KH_OK) {
        result = kh_material_encode(pkey, &material);
    }
    if (result != KH_OK) {
        result = result == KH_E_MEMORY ? result : KH_E_DAMAGED;
        goto done;
    }
    if ((uint32_t)material.type != info->type || material.bits != info->bits ||
        material.spki_len != info->spki_len || memcmp(material.spki, info->spki, info->spki_len) != 0 ||
        memcmp(material.id, info->id, KH_KEY_ID_LEN) != 0) {
        result = KH_E_DAMAGED;
    }
    kh_material_wipe(&material);
done:
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked of one key version wherever it comes from. */
#include "row.h"
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

kh_result kh_row_sound(const kh_row *row)
{
    const kh_key_info *info = &row->info;
    kh_material material;
    EVP_PKEY *pkey = NULL;
    kh_result result = kh_pkcs8_parse_as((kh_key_type)info->type, row->pkcs8, row->pkcs8_len, &pkey);

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

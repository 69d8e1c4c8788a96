/* SPDX-License-Identifier: Apache-2.0 */
/* May this operation be done with this key? See permit.h. */
#include "permit.h"
#include "usage.h"

#define STATE_ENABLED 1

static kh_result may_sign(const kh_record *record, const kh_key_info *info)
{
    const kh_sign_question question = {
        .usage = info->usage,
        .key_type = info->type,
        .scheme = record->scheme,
        .is_digest = (record->flags & KH_SIGN_IS_DIGEST) != 0,
        .data = record->data,
        .len = record->data_len,
    };

    if ((record->flags & ~KH_SIGN_IS_DIGEST) != 0) {
        return KH_E_INVALID;
    }
    return kh_usage_may_sign(&question);
}

static kh_result may_decrypt(const kh_record *record, const kh_key_info *info, uint32_t usage)
{
    if (info->type != KH_KEY_RSA) {
        return KH_E_SCHEME;
    }
    if ((info->usage & usage) == 0) {
        return KH_E_USAGE;
    }
    if (record->data_len > KH_MESSAGE_MAX) {
        return KH_E_TOO_LARGE;
    }
    /* TLS 1.2 is the oldest version that is served; a newer client's number is what it put into its hello. */
    if (usage == KH_USAGE_TLS_RSA_KX && (record->arg < 0x0303 || record->arg > 0xffff)) {
        return KH_E_UNSUPPORTED;
    }
    return KH_OK;
}

kh_result kh_permit(const kh_record *record, const kh_key_info *info)
{
    switch (record->op) {
    case KH_STORE_SIGN:
        return may_sign(record, info);
    case KH_STORE_TLS_RSA_KX:
        return may_decrypt(record, info, KH_USAGE_TLS_RSA_KX);
    case KH_STORE_DECRYPT:
        return may_decrypt(record, info, KH_USAGE_DECRYPT);
    case KH_STORE_CERTIFY:
        /* Whatever the usage: root asks, past the front. */
        return kh_scheme_fits((int)record->scheme, (int)info->type) ? KH_OK : KH_E_SCHEME;
    default:
        return KH_E_INTERNAL;
    }
}

kh_result kh_permit_now(const kh_key_info *info, uint64_t now_s)
{
    return info->state == STATE_ENABLED && now_s >= info->not_before &&
                   (info->expires == 0 || now_s < info->expires)
               ? KH_OK
               : KH_E_DISABLED;
}

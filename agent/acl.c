/* SPDX-License-Identifier: Apache-2.0 */
/* Who may do what. */
#include "acl.h"
#include <string.h>

/* What an `allow` block has to name: an operation that says more of a key is the same right. */
static unsigned right_for(kh_op op)
{
    switch (op) {
    case KH_OP_DESCRIBE:
        return 1u << KH_OP_PUBLIC_KEY;
    case KH_OP_CREATE_PLACED:
        return 1u << KH_OP_CREATE;
    case KH_OP_IMPORT_PLACED:
        return 1u << KH_OP_IMPORT;
    default:
        return 1u << op;
    }
}

bool kh_acl_allows(const kh_config_identity *identity, kh_op op, const char *name, size_t name_len)
{
    if (identity == NULL) {
        return true;
    }
    for (size_t i = 0; i < identity->allow_count; i++) {
        const kh_allow *allow = &identity->allows[i];

        if ((allow->operations & right_for(op)) == 0) {
            continue;
        }
        for (size_t j = 0; j < allow->key_count; j++) {
            if (kh_name_glob(allow->keys[j], name, name_len)) {
                return true;
            }
        }
    }
    return false;
}

bool kh_acl_allows_op(const kh_config_identity *identity, kh_op op)
{
    if (identity == NULL) {
        return true;
    }
    for (size_t i = 0; i < identity->allow_count; i++) {
        if ((identity->allows[i].operations & right_for(op)) != 0) {
            return true;
        }
    }
    return false;
}

static bool serves(const kh_key_info *info, uint64_t now_s)
{
    return info->state == KH_STATE_ENABLED && now_s >= info->not_before &&
           (info->expires == 0 || now_s < info->expires);
}

kh_result kh_acl_choose(const kh_config_identity *identity, kh_op op, uint32_t usages,
                        const kh_key_info *const infos[], size_t count, bool any_state, uint64_t now_s,
                        const kh_key_info **chosen)
{
    const kh_key_info *enabled = NULL, *disabled = NULL;

    *chosen = NULL;
    for (size_t i = 0; i < count; i++) {
        const kh_key_info *info = infos[i];
        bool enabled_now = serves(info, now_s);

        if (info->state == KH_STATE_DELETED || !kh_acl_allows(identity, op, info->name, strlen(info->name))) {
            continue;
        }
        if (enabled_now && (usages == 0 || (info->usage & usages) != 0)) {
            *chosen = info;
            return KH_OK;
        }
        if (enabled_now && enabled == NULL) {
            enabled = info;
        } else if (!enabled_now && disabled == NULL) {
            disabled = info;
        }
    }
    if (enabled != NULL || (disabled != NULL && any_state)) {
        *chosen = enabled != NULL ? enabled : disabled;
        return KH_OK;
    }
    return disabled != NULL ? KH_E_DISABLED : KH_E_NOT_FOUND;
}

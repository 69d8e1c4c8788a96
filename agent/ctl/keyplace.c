/* SPDX-License-Identifier: Apache-2.0 */
/* Where a key lives and how long it is valid, from the command line. See keyplace.h. */
#include "keyplace.h"

#include <p11-kit/uri.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static kh_result relative(const char *text, uint64_t now, uint64_t *result)
{
    char *end = NULL;
    unsigned long long count = strtoull(text, &end, 10);
    unsigned unit = end == text ? 0 : strcmp(end, "d") == 0 ? 86400 : strcmp(end, "h") == 0 ? 3600 : 0;

    if (unit == 0 || text[0] < '0' || text[0] > '9' || count > 100000) {
        return KH_E_INVALID;
    }
    *result = now + count * unit;
    return KH_OK;
}

kh_result keyplace_time(const char *text, uint64_t now, uint64_t *result)
{
    static const char *const formats[] = {"%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"};

    if (strcmp(text, "never") == 0) {
        *result = 0;
        return KH_OK;
    }
    if (text[0] == '+') {
        return relative(text + 1, now, result);
    }
    for (size_t i = 0; i < 2; i++) {
        struct tm tm = {0};
        const char *end = strptime(text, formats[i], &tm);
        time_t at = end != NULL && *end == '\0' ? timegm(&tm) : -1;

        if (at > 0) {
            *result = (uint64_t)at;
            return KH_OK;
        }
    }
    return KH_E_INVALID;
}

static kh_result take_time(ctl_run *ctl, const char *option, uint64_t *value)
{
    const char *text = ctl_args_value(&ctl->args, option);

    if (text == NULL || keyplace_time(text, (uint64_t)time(NULL), value) == KH_OK) {
        return KH_OK;
    }
    return ctl_fail_usage(&ctl->error,
                          "option --%s needs a time: 2027-01-31, 2027-01-31T12:00:00Z (UTC), +90d, or never; not \"%s\"",
                          option, text);
}

static kh_result take_tier(ctl_run *ctl, kh_key_info *wanted)
{
    const char *tier = ctl_args_value(&ctl->args, "tier"), *place = ctl_args_value(&ctl->args, "place");

    if (tier == NULL && place == NULL) {
        return KH_OK;
    }
    if (tier == NULL) {
        return ctl_fail_usage(&ctl->error, "--place says which token or pool; add --tier hsm or --tier hsm-pool");
    }
#define KH_X(constant, number, name) wanted->tier = strcmp(tier, name) == 0 ? (uint32_t)(constant) : wanted->tier;
    KH_TIERS(KH_X)
#undef KH_X
    if (wanted->tier == 0) {
        return ctl_fail_usage(&ctl->error, "tier \"%s\" is not known; use software, hsm or hsm-pool", tier);
    }
    if (place != NULL && (wanted->tier == KH_TIER_SOFTWARE || strlen(place) > KH_PLACE_MAX ||
                          !kh_name_valid(place, strlen(place)))) {
        return ctl_fail_usage(&ctl->error, "--place \"%s\": it is the name of a token or pool block of the agent's "
                                           "configuration, and only with --tier hsm or hsm-pool", place);
    }
    (void)snprintf(wanted->place, sizeof(wanted->place), "%s", place != NULL ? place : "");
    return KH_OK;
}

kh_result keyplace_take(ctl_run *ctl, kh_key_info *wanted)
{
    const char *list = ctl_args_value(&ctl->args, "tag");
    char tags[KH_TAGS_MAX + 1];
    kh_result result = take_tier(ctl, wanted);

    if (result == KH_OK) {
        result = take_time(ctl, "not-before", &wanted->not_before);
    }
    if (result == KH_OK) {
        result = take_time(ctl, "expires", &wanted->expires);
    }
    if (result == KH_OK && wanted->expires != 0 && wanted->expires <= wanted->not_before) {
        result = ctl_fail_usage(&ctl->error, "the key would expire before it begins; --expires must be after --not-before");
    }
    return result == KH_OK && list != NULL ? keyplace_tags(ctl, list, tags) : result; /* before a key is made */
}

kh_result keyplace_tags(ctl_run *ctl, const char *list, char tags[KH_TAGS_MAX + 1])
{
    size_t len = strlen(list);

    if (len == 0 || len + 1 > KH_TAGS_MAX || strpbrk(list, "\n\r") != NULL) {
        return ctl_fail_usage(&ctl->error, "option --tag needs KEY=VALUE, several separated by commas, of %d bytes at most",
                              KH_TAGS_MAX);
    }
    memcpy(tags, list, len);
    for (size_t i = 0; i < len; i++) {
        tags[i] = tags[i] == ',' ? '\n' : tags[i];
    }
    tags[len] = '\n';
    tags[len + 1] = '\0';
    if (!kh_tags_valid(tags)) {
        return ctl_fail_usage(&ctl->error, "option --tag needs KEY=VALUE, several separated by commas, KEY made as a key's name, VALUE "
                                           "in UTF-8 without control characters");
    }
    return KH_OK;
}

/* ---- A URI ---------------------------------------------------------------------------------------------- */

/* What of the URI concerns us; false: it does not fit. */
static bool take_fields(P11KitUri *uri, kh_key_adoption *adoption, char *token, size_t cap)
{
    const CK_ATTRIBUTE *label = p11_kit_uri_get_attribute(uri, CKA_LABEL), *id = p11_kit_uri_get_attribute(uri, CKA_ID);
    const CK_TOKEN_INFO *info = p11_kit_uri_get_token_info(uri);
    size_t len = info != NULL ? strnlen((const char *)info->label, sizeof(info->label)) : 0;

    if ((label != NULL && label->ulValueLen > KH_NAME_MAX) || (id != NULL && id->ulValueLen > sizeof(adoption->id)) ||
        len >= cap) {
        return false;
    }
    if (label != NULL && label->pValue != NULL) {
        memcpy(adoption->label, label->pValue, label->ulValueLen);
        adoption->label[label->ulValueLen] = '\0';
    }
    if (id != NULL && id->pValue != NULL) {
        memcpy(adoption->id, id->pValue, id->ulValueLen);
        adoption->id_len = (uint32_t)id->ulValueLen;
    }
    while (len > 0 && info->label[len - 1] == ' ') {
        len--;
    }
    if (len > 0) {
        memcpy(token, info->label, len);
    }
    token[len] = '\0';
    return strlen(adoption->label) + adoption->id_len > 0;
}

kh_result keyplace_uri(ctl_run *ctl, const char *text, kh_key_adoption *adoption, char *token, size_t cap)
{
    P11KitUri *uri = p11_kit_uri_new();
    bool fits = false;

    if (uri == NULL) {
        return ctl_fail(&ctl->error, KH_E_MEMORY, "cannot read the URI: out of memory");
    }
    fits = p11_kit_uri_parse(text, P11_KIT_URI_FOR_OBJECT_ON_TOKEN, uri) == P11_KIT_URI_OK &&
           p11_kit_uri_any_unrecognized(uri) == 0 && take_fields(uri, adoption, token, cap);
    p11_kit_uri_free(uri);
    return fits ? KH_OK
                : ctl_fail_usage(&ctl->error, "\"%s\" is not the pkcs11: URI of a key (RFC 7512), as "
                                              "'pkcs11:token=LABEL;object=NAME' or 'pkcs11:id=%%01%%02'", text);
}

/* ---- Failures ------------------------------------------------------------------------------------------- */

kh_result keyplace_explain(ctl_run *ctl, const kh_key_info *wanted, const char *what, kh_result result)
{
    const bool pool = wanted->tier == KH_TIER_HSM_POOL;
    const char *which = wanted->place[0] != '\0' ? wanted->place : pool ? "(the only one)" : "(the only one that is no pool's)";

    if (wanted->tier != KH_TIER_HSM && !pool) {
        return result;
    }
    switch (result) {
    case KH_E_UNAVAILABLE:
        return ctl_fail(&ctl->error, result,
                        "%s: %s %s is not there now, so nothing was made; see keyholdctl status and the agent's log", what,
                        pool ? "the quorum of pool" : "token", which);
    case KH_E_UNSUPPORTED:
        return pool && wanted->type == KH_KEY_ED25519
                   ? ctl_fail(&ctl->error, result,
                              "%s: a pool's keys go from token to token wrapped, and tokens wrap no Ed25519 keys. In a pool use p256 or "
                              "rsa3072; Ed25519 lives with --tier hsm in a single token, or in software", what)
                   : ctl_fail(&ctl->error, result,
                              "%s: the token cannot make, or take, a key of this type; choose another type or tier", what);
    case KH_E_NOT_FOUND:
        return ctl_fail(&ctl->error, result, "%s: the agent's configuration has no %s %s; see its token and pool blocks", what,
                        pool ? "pool" : "token", which);
    case KH_E_INVALID:
        return wanted->place[0] == '\0'
                   ? ctl_fail(&ctl->error, result, "%s: there are several %s; say which with --place", what,
                              pool ? "pools" : "tokens")
                   : result;
    default:
        return result;
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A key version as people and programs see it. See keyview.h. */
#include "keyview.h"
#include "keyplace.h"
#include "output.h"

#include <keyhold/protocol.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

keyview_validity keyview_when(const kh_key_info *info)
{
    uint64_t now = (uint64_t)time(NULL);

    return info->expires != 0 && now >= info->expires ? KEYVIEW_EXPIRED : now < info->not_before ? KEYVIEW_NOT_YET : KEYVIEW_VALID;
}

const char *keyview_condition(const kh_key_info *info)
{
    static const char *const words[] = {[KEYVIEW_VALID] = "enabled", [KEYVIEW_EXPIRED] = "expired", [KEYVIEW_NOT_YET] = "not yet valid"};

    return info->state == KH_STATE_ENABLED ? words[keyview_when(info)] : keyview_state(info->state);
}

const char *keyview_state(uint32_t state)
{
    switch (state) {
    case 1:
        return "enabled";
    case 2:
        return "disabled";
    case 3:
        return "deleted";
    default:
        return "unknown";
    }
}

const char *keyview_type(uint32_t type, uint32_t bits, char buf[16])
{
    if (type == KH_KEY_RSA) {
        (void)snprintf(buf, 16, "rsa%u", bits);
    } else {
        (void)snprintf(buf, 16, "%s", kh_key_type_name((int)type));
    }
    return buf;
}

static json_t *usage_json(uint32_t usage)
{
    json_t *list = json_array();

#define KH_X(constant, bit, name)                                                                            \
    if (list != NULL && (usage & (bit)) != 0 && json_array_append_new(list, json_string(name)) != 0) {       \
        json_decref(list);                                                                                   \
        list = NULL;                                                                                         \
    }
    KH_USAGES(KH_X)
#undef KH_X
    return list;
}

const char *keyview_tier(uint32_t tier)
{
    switch (tier) {
    case 0: /* an agent that knows no others */
#define KH_X(constant, number, name)                                                                         \
    case constant:                                                                                           \
        return name;
        KH_TIERS(KH_X)
#undef KH_X
    default:
        return "unknown";
    }
}

static json_t *time_json(uint64_t seconds)
{
    char text[32];

    return seconds != 0 ? json_string(output_time(seconds, text)) : json_null();
}

json_t *keyview_json(const kh_key_info *info)
{
    char type[16], id[2 * KH_KEY_ID_LEN + 1], created[32];

    return json_pack("{s:s, s:I, s:s, s:I, s:o, s:s, s:s, s:s, s:s, s:s, s:o, s:o}", "name", info->name, "version",
                     (json_int_t)info->version, "type", keyview_type(info->type, info->bits, type), "bits",
                     (json_int_t)info->bits, "usage", usage_json(info->usage), "state",
                     keyview_state(info->state), "created", output_time(info->created, created), "id",
                     output_hex(info->id, sizeof(info->id), id), "tier", keyview_tier(info->tier), "place",
                     info->place, "not_before", time_json(info->not_before), "expires", time_json(info->expires));
}

const char *keyview_where(const kh_key_info *info, char *where)
{
    (void)snprintf(where, KH_PLACE_MAX + 16, "%s%s%s", keyview_tier(info->tier), info->place[0] != '\0' ? " " : "",
                   info->place);
    return where;
}

static json_t *tags_json(const char *tags)
{
    json_t *object = json_object();

    for (const char *line = tags, *end = NULL; object != NULL && (end = strchr(line, '\n')) != NULL; line = end + 1) {
        const char *equals = memchr(line, '=', (size_t)(end - line));
        char key[KH_TAG_KEY_MAX + 1] = "";

        if (equals == NULL || (size_t)(equals - line) > KH_TAG_KEY_MAX) {
            continue;
        }
        memcpy(key, line, (size_t)(equals - line));
        if (json_object_set_new(object, key, json_stringn(equals + 1, (size_t)(end - equals) - 1)) != 0) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

json_t *keyview_json_with(const kh_key_info *info, const kh_name_policy *policy)
{
    json_t *view = keyview_json(info), *tags = tags_json(policy->tags);

    if (view == NULL || tags == NULL || json_object_set(view, "tags", tags) != 0 ||
        json_object_set_new(view, "rotate_days", json_integer(policy->rotate_days)) != 0 ||
        json_object_set_new(view, "retain_days", json_integer(policy->retain_days)) != 0) {
        json_decref(view);
        view = NULL;
    }
    json_decref(tags);
    return view;
}

void keyview_print_policy(const kh_name_policy *policy)
{
    if (policy->rotate_days != 0) {
        (void)printf("rotates  every %u days\n", policy->rotate_days);
    }
    if (policy->retain_days != 0) {
        (void)printf("retained %u days after it was deleted\n", policy->retain_days);
    }
    for (const char *line = policy->tags, *end = NULL; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        (void)printf("tag      %.*s\n", (int)(end - line), line);
    }
}

kh_result keyview_print(ctl_run *ctl, const kh_key_info *info)
{
    char type[16], usage[80], id[2 * KH_KEY_ID_LEN + 1], created[32];

    if (ctl->json) {
        return output_json(keyview_json(info), &ctl->error);
    }
    (void)printf("name     %s/%u\n", info->name, info->version);
    (void)printf("type     %s\n", keyview_type(info->type, info->bits, type));
    (void)printf("usage    %s\n", kh_usage_format(info->usage, usage, sizeof(usage)));
    (void)printf("state    %s\n", keyview_condition(info));
    if (info->tier > KH_TIER_SOFTWARE) {
        (void)printf("tier     %s %s\n", keyview_tier(info->tier), info->place);
    }
    (void)printf("created  %s\n", output_time(info->created, created));
    if (info->not_before != 0) {
        (void)printf("valid    from %s\n", output_time(info->not_before, created));
    }
    if (info->expires != 0) {
        (void)printf("expires  %s\n", output_time(info->expires, created));
    }
    (void)printf("id       %s\n", output_hex(info->id, sizeof(info->id), id));
    return KH_OK;
}

char *keyview_pem(const kh_key_info *info)
{
    BIO *bio = BIO_new(BIO_s_mem());
    char *data = NULL;
    char *pem = NULL;
    long len = 0;

    if (bio != NULL && info->spki_len > 0 && info->spki_len <= KH_SPKI_MAX &&
        PEM_write_bio(bio, PEM_STRING_PUBLIC, "", info->spki, (long)info->spki_len) > 0) {
        len = BIO_get_mem_data(bio, &data);
        pem = strndup(data, (size_t)len);
    }
    BIO_free(bio);
    return pem;
}

kh_result keyview_name(const char *text, bool version_allowed, kh_key_info *info, ctl_error *error)
{
    size_t name_len = 0;
    uint32_t version = 0;

    if (kh_name_split(text, strlen(text), &name_len, &version) != KH_OK ||
        (version != 0 && !version_allowed)) {
        return ctl_fail_usage(
            error,
            "\"%s\" is not a key name: 1 to %d letters, digits, '.', '_' and '-', beginning with a letter "
            "or digit%s; choose another",
            text, KH_NAME_MAX, version_allowed ? ", and perhaps /VERSION" : ", without a version here");
    }
    memcpy(info->name, text, name_len);
    info->name[name_len] = '\0';
    info->version = version;
    return KH_OK;
}

kh_result keyview_wanted(ctl_run *ctl, kh_key_info *wanted)
{
    const char *usage = ctl_args_value(&ctl->args, "usage");
    bool new_version = ctl_args_value(&ctl->args, "new-version") != NULL;
    unsigned parsed = new_version ? 0 : KH_USAGE_TLS_SERVER;

    if (new_version && usage != NULL) {
        return ctl_fail_usage(&ctl->error,
                              "a new version has the usage of the versions before it; leave out --usage");
    }
    if (usage != NULL && kh_usage_parse(usage, &parsed) != KH_OK) {
        return ctl_fail_usage(
            &ctl->error,
            "usage \"%s\" is not known; it is a list of tls-server, tls-client, tls-rsa-kx, sign, "
            "decrypt, wrap, tls-dhe",
            usage);
    }
    wanted->usage = parsed;
    wanted->flags = (ctl_args_value(&ctl->args, "allow-duplicate") != NULL ? KH_KEY_ALLOW_DUPLICATE : 0) |
                    (new_version ? KH_KEY_NEW_VERSION : 0);
    if (keyplace_take(ctl, wanted) != KH_OK) {
        return KH_E_INVALID;
    }
    return keyview_name(ctl->args.operands[0], false, wanted, &ctl->error);
}

kh_result keyview_fits(const kh_key_info *wanted, kh_key_type type, ctl_error *error)
{
    unsigned rsa_only = wanted->usage & (KH_USAGE_TLS_RSA_KX | KH_USAGE_DECRYPT | KH_USAGE_WRAP);
    char usage[80];

    if (type == KH_KEY_RSA || rsa_only == 0) {
        return KH_OK;
    }
    return ctl_fail_usage(error, "usage %s is for RSA keys and this is a %s key; leave it out",
                          kh_usage_format(rsa_only, usage, sizeof(usage)), kh_key_type_name((int)type));
}

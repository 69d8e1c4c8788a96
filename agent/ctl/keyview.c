/* SPDX-License-Identifier: Apache-2.0 */
/* A key version as people and programs see it. See keyview.h. */
#include "keyview.h"
#include "output.h"

#include <openssl/bio.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>

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

json_t *keyview_json(const kh_key_info *info)
{
    char type[16], id[2 * KH_KEY_ID_LEN + 1], created[32];

    return json_pack("{s:s, s:I, s:s, s:I, s:o, s:s, s:s, s:s}", "name", info->name, "version",
                     (json_int_t)info->version, "type", keyview_type(info->type, info->bits, type), "bits",
                     (json_int_t)info->bits, "usage", usage_json(info->usage), "state",
                     keyview_state(info->state), "created", output_time(info->created, created), "id",
                     output_hex(info->id, sizeof(info->id), id));
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
    (void)printf("state    %s\n", keyview_state(info->state));
    (void)printf("created  %s\n", output_time(info->created, created));
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

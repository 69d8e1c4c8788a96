/* SPDX-License-Identifier: Apache-2.0 */
/* The commands on the life of a key: its next version, what is said of it, into a token, and backups of one key. */
#include "agent.h"
#include "keyplace.h"
#include "keyview.h"
#include "output.h"
#include "store.h"

#include <stdlib.h>
#include <string.h>

/* One admin operation whose answer is one kh_key_info. */
static kh_result admin_info(ctl_run *ctl, ctl_agent *agent, kh_store_op op, const void *data, size_t len, const char *what,
                            kh_key_info *info)
{
    kh_record record = {.op = op, .data = data, .data_len = (uint32_t)len};
    size_t out_len = 0;
    kh_result result = ctl_agent_admin(agent, &record, what, (uint8_t *)info, sizeof(*info), &out_len);

    if (result == KH_OK && out_len != sizeof(*info)) {
        result = ctl_fail(&ctl->error, KH_E_VERSION, "%s: install the same version of keyholdctl and keyholdd", what);
    }
    return result;
}

/* ---- rotate --------------------------------------------------------------------------------------------- */

/* The newest version, whatever its state, by the admin socket's list of all; over the wire the one that serves. */
static kh_result newest_of(ctl_agent *agent, const char *name, kh_key_info *newest)
{
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    size_t count = 0;
    kh_result result = infos != NULL ? ctl_agent_lookup(agent, name, NULL, infos, KH_LOOKUP_MAX, &count) : KH_E_MEMORY;

    for (size_t i = 0; result == KH_OK && i < count; i++) {
        if (i == 0 || infos[i].version > newest->version) {
            *newest = infos[i];
        }
    }
    free(infos);
    return result;
}

kh_result ctl_cmd_key_rotate(ctl_run *ctl)
{
    const char *name = ctl->args.operands[0];
    char what[KH_NAME_MAX + 32];
    kh_key_info next = {0}, newest = {0}, made = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_name(name, false, &next, &ctl->error);

    if (result == KH_OK) {
        result = keyplace_take(ctl, &next);
    }
    if (ctl_args_value(&ctl->args, "timeout") == NULL) {
        ctl->timeout_ms = KH_DEADLINE_MAX_MS;
    }
    if (result == KH_OK && (result = ctl_agent_open(ctl, CTL_WAY_ANY, &agent)) == KH_OK) {
        result = newest_of(agent, name, &newest);
        if (result == KH_E_NOT_FOUND) {
            ctl_fail_no_key(agent, name);
        }
    }
    if (result != KH_OK) {
        goto done;
    }
    next.type = newest.type;
    next.bits = newest.bits;
    next.flags = KH_KEY_NEW_VERSION;
    (void)snprintf(what, sizeof(what), "cannot rotate %s", name);
    result = ctl_agent_create(agent, &next, &made);
    if (result != KH_OK) {
        next.tier = next.tier != 0 ? next.tier : newest.tier;
        keyplace_explain(ctl, &next, what, result);
    } else {
        result = keyview_print(ctl, &made);
    }
done:
    ctl_agent_close(agent);
    return result;
}

/* ---- set ------------------------------------------------------------------------------------------------ */

static kh_result take_days(ctl_run *ctl, const char *option, uint32_t flag, uint32_t *days, kh_key_change *change)
{
    long number = 0;
    kh_result result = ctl_args_number(&ctl->args, option, 0, KH_DAYS_MAX, 0, &number, &ctl->error);

    if (result == KH_OK && ctl_args_value(&ctl->args, option) != NULL) {
        change->what |= flag;
        *days = (uint32_t)number;
    }
    return result;
}

static kh_result take_change(ctl_run *ctl, kh_key_change *change)
{
    const char *tags = ctl_args_value(&ctl->args, "tag");
    kh_key_info times = {0};
    kh_result result = keyplace_take(ctl, &times);

    change->not_before = times.not_before;
    change->expires = times.expires;
    change->what |= ctl_args_value(&ctl->args, "not-before") != NULL ? KH_CHANGE_NOT_BEFORE : 0;
    change->what |= ctl_args_value(&ctl->args, "expires") != NULL ? KH_CHANGE_EXPIRES : 0;
    if (result == KH_OK && tags != NULL) {
        change->what |= KH_CHANGE_TAGS;
        result = keyplace_tags(ctl, tags, change->policy.tags);
    }
    if (result == KH_OK) {
        result = take_days(ctl, "rotate-every", KH_CHANGE_ROTATE, &change->policy.rotate_days, change);
    }
    if (result == KH_OK) {
        result = take_days(ctl, "retain", KH_CHANGE_RETAIN, &change->policy.retain_days, change);
    }
    return result;
}

static kh_result send_change(ctl_run *ctl, ctl_agent *agent, const kh_key_change *change, const char *name, kh_key_info *info)
{
    char what[KH_NAME_MAX + 32];
    kh_result result = KH_OK;

    (void)snprintf(what, sizeof(what), "cannot change %s", name);
    result = admin_info(ctl, agent, KH_STORE_SET, change, sizeof(*change), what, info);
    switch (result) {
    case KH_E_NOT_FOUND:
        return ctl_fail_no_key(agent, name);
    case KH_E_FORBIDDEN:
        return ctl_fail(&ctl->error, result,
                        "%s: retention can be raised, never lowered, and a deleted key does not change", what);
    case KH_E_INVALID:
        return ctl_fail(&ctl->error, result,
                        "%s: a tag is KEY=VALUE, its key made as a key's name, its value without control characters; and a key "
                        "expires after it begins (see keyholdctl key show)",
                        what);
    case KH_E_TOO_LARGE:
        return ctl_fail(&ctl->error, result, "%s: all tags of a name together have %d bytes at most", what, KH_TAGS_MAX);
    default:
        return result;
    }
}

kh_result ctl_cmd_key_set(ctl_run *ctl)
{
    const char *name = ctl->args.operands[0];
    kh_key_change change = {0};
    kh_key_info named = {0}, info = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_name(name, true, &named, &ctl->error);

    if (result == KH_OK) {
        result = take_change(ctl, &change);
    }
    if (result == KH_OK && change.what == 0) {
        result = ctl_fail_usage(&ctl->error, "nothing is to be changed; give --not-before, --expires, --rotate-every, --retain "
                                             "or --tag");
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        memcpy(change.policy.name, named.name, sizeof(change.policy.name));
        change.version = named.version;
        result = send_change(ctl, agent, &change, name, &info);
    }
    if (result == KH_OK) {
        result = keyview_print(ctl, &info);
    }
    ctl_agent_close(agent);
    return result;
}

kh_result keylife_tag(ctl_run *ctl, ctl_agent *agent, const char *name, const char *list)
{
    kh_key_change change = {.what = KH_CHANGE_TAGS};
    kh_key_info info;
    kh_result result = keyplace_tags(ctl, list, change.policy.tags);

    (void)snprintf(change.policy.name, sizeof(change.policy.name), "%s", name);
    return result == KH_OK ? send_change(ctl, agent, &change, name, &info) : result;
}

kh_result ctl_cmd_store_set(ctl_run *ctl)
{
    kh_key_change change = {0};
    kh_key_info info = {0};
    ctl_agent *agent = NULL;
    kh_result result = take_days(ctl, "retain", KH_CHANGE_RETAIN, &change.policy.retain_days, &change);

    if (result == KH_OK && change.what == 0) {
        result = ctl_fail_usage(&ctl->error, "nothing is to be changed; give --retain DAYS");
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        result = send_change(ctl, agent, &change, "the store", &info);
    }
    if (result == KH_OK && ctl->json) {
        result = output_json(json_pack("{s:I}", "retain_days", (json_int_t)change.policy.retain_days), &ctl->error);
    } else if (result == KH_OK) {
        (void)printf("deleted keys are kept for %u days\n", change.policy.retain_days);
    }
    ctl_agent_close(agent);
    return result;
}

/* ---- move, adopt ---------------------------------------------------------------------------------------- */

kh_result ctl_cmd_key_move(ctl_run *ctl)
{
    const char *name = ctl->args.operands[0];
    char what[KH_NAME_MAX + 32];
    kh_key_info wanted = {0}, moved = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_name(name, true, &wanted, &ctl->error);

    if (result == KH_OK) {
        result = keyplace_take(ctl, &wanted);
    }
    if (result == KH_OK && wanted.tier != KH_TIER_HSM && wanted.tier != KH_TIER_HSM_POOL) {
        result = ctl_fail_usage(&ctl->error, "give --tier hsm or --tier hsm-pool: a key moves into a token, and none comes out");
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result != KH_OK) {
        goto done;
    }
    (void)snprintf(what, sizeof(what), "cannot move %s", name);
    result = admin_info(ctl, agent, KH_STORE_MOVE, &wanted, sizeof(wanted), what, &moved);
    if (result == KH_E_ORDER) {
        ctl_fail(&ctl->error, result, "%s: it is in a token already, or deleted; see keyholdctl key show %s", what, name);
    } else if (result == KH_E_NOT_FOUND) {
        ctl_fail(&ctl->error, result, "%s: there is no such key, or no such token or pool; see keyholdctl key list, and the "
                                      "agent's configuration", what);
    } else if (result != KH_OK) {
        keyplace_explain(ctl, &wanted, what, result);
    } else {
        result = keyview_print(ctl, &moved);
    }
done:
    ctl_agent_close(agent);
    return result;
}

static kh_result take_id(ctl_run *ctl, const char *hex, kh_key_adoption *adoption)
{
    size_t len = strlen(hex);

    if (len == 0 || len % 2 != 0 || len / 2 > sizeof(adoption->id) || strspn(hex, "0123456789abcdefABCDEF") != len) {
        return ctl_fail_usage(&ctl->error, "option --id needs the CKA_ID in hexadecimal, as 01ab; not \"%s\"", hex);
    }
    for (size_t i = 0; i < len / 2; i++) {
        unsigned byte = 0;

        if (sscanf(hex + 2 * i, "%2x", &byte) == 1) {
            adoption->id[i] = (uint8_t)byte;
        }
    }
    adoption->id_len = (uint32_t)(len / 2);
    return KH_OK;
}

/* The name that the configuration gives to the token of that label. */
static kh_result place_of_label(ctl_run *ctl, const char *label, kh_key_info *info)
{
    kh_config *config = NULL;
    kh_result result = ctl_load_config(ctl, &config);

    for (size_t i = 0; result == KH_OK && i < config->token_count; i++) {
        if (config->tokens[i].label != NULL && strcmp(config->tokens[i].label, label) == 0) {
            (void)snprintf(info->place, sizeof(info->place), "%s", config->tokens[i].name);
        }
    }
    if (result == KH_OK && info->place[0] == '\0') {
        result = ctl_fail(&ctl->error, KH_E_NOT_FOUND, "the agent's configuration has no token with the label \"%s\"; give "
                                                       "--place NAME", label);
    }
    kh_config_free(config);
    return result;
}

/* How the key is found: by --id, --label, or a URI. */
static kh_result take_adoption(ctl_run *ctl, kh_key_adoption *adoption)
{
    const char *id = ctl_args_value(&ctl->args, "id"), *label = ctl_args_value(&ctl->args, "label");
    const char *uri = ctl->args.operand_count > 1 ? ctl->args.operands[1] : NULL;
    const char *place = ctl_args_value(&ctl->args, "place");
    char token[64] = "";
    kh_result result = KH_OK;

    if ((uri != NULL) == (id != NULL || label != NULL)) {
        return ctl_fail_usage(&ctl->error, "say which key of the token it is: a 'pkcs11:…' URI, or --label or --id");
    }
    if (label != NULL && strlen(label) > KH_NAME_MAX) {
        return ctl_fail_usage(&ctl->error, "option --label has %d bytes at most", KH_NAME_MAX);
    }
    if (uri != NULL) {
        result = keyplace_uri(ctl, uri, adoption, token, sizeof(token));
    } else {
        (void)snprintf(adoption->label, sizeof(adoption->label), "%s", label != NULL ? label : "");
        result = id != NULL ? take_id(ctl, id, adoption) : KH_OK;
    }
    adoption->info.tier = KH_TIER_HSM;
    if (result == KH_OK && place != NULL) {
        (void)snprintf(adoption->info.place, sizeof(adoption->info.place), "%s", place);
    } else if (result == KH_OK && token[0] != '\0') {
        result = place_of_label(ctl, token, &adoption->info);
    }
    return result;
}

kh_result ctl_cmd_key_adopt(ctl_run *ctl)
{
    char what[KH_NAME_MAX + 32];
    kh_key_adoption adoption = {0};
    kh_key_info made = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_wanted(ctl, &adoption.info);

    if (result == KH_OK) {
        result = take_adoption(ctl, &adoption);
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result != KH_OK) {
        goto done;
    }
    (void)snprintf(what, sizeof(what), "cannot adopt %s", adoption.info.name);
    result = admin_info(ctl, agent, KH_STORE_ADOPT, &adoption, sizeof(adoption), what, &made);
    if (result == KH_E_NOT_FOUND) {
        ctl_fail(&ctl->error, result, "%s: there is no such token, or no such key in it (its public key has to be there, too); "
                                      "look with pkcs11-tool --list-objects", what);
    } else if (result != KH_OK) {
        keyplace_explain(ctl, &adoption.info, what, result);
    } else {
        result = keyview_print(ctl, &made);
    }
done:
    ctl_agent_close(agent);
    return result;
}

/* ---- Backup of one key ---------------------------------------------------------------------------------- */

kh_result ctl_cmd_key_backup(ctl_run *ctl)
{
    const char *path = ctl_args_value(&ctl->args, "out");
    kh_key_info named = {0};
    kh_result result = keyview_name(ctl->args.operands[0], false, &named, &ctl->error);

    if (result == KH_OK && path == NULL) {
        result = ctl_fail_usage(&ctl->error, "say where to: --out FILE");
    }
    /* A name is a glob that only it matches. */
    return result == KH_OK ? store_export_to(ctl, path, named.name, strlen(named.name) + 1) : result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The commands on keys in the store: create, list, show, change their state, and their public halves. */
#include "agent.h"
#include "keyplace.h"
#include "keyview.h"
#include "output.h"

#include <stdlib.h>
#include <string.h>

/* The versions of the operand NAME[/V], and what is said of the name (NULL: not asked for); the agent is closed again. */
static kh_result look_up(ctl_run *ctl, kh_key_info *infos, size_t cap, size_t *count, kh_name_policy *policy)
{
    const char *name = ctl->args.operands[0];
    kh_key_info checked = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_name(name, true, &checked, &ctl->error);

    *count = 0;
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ANY, &agent);
    }
    if (result == KH_OK) {
        result = ctl_agent_lookup(agent, name, NULL, infos, cap, count);
        if (result == KH_E_NOT_FOUND) {
            ctl_fail_no_key(agent, name);
        }
    }
    if (result == KH_OK && policy != NULL) {
        result = ctl_agent_policy(agent, infos[0].name, policy);
    }
    ctl_agent_close(agent);
    return result;
}

/* A type that is known but weak deserves another answer than one that is not known. */
static kh_result parse_type(ctl_run *ctl, kh_key_info *wanted)
{
    static const char known[] = "rsa2048, rsa3072, rsa4096, p256, p384, p521 or ed25519";
    const char *type = ctl_args_value(&ctl->args, "type");
    kh_key_type key_type = KH_KEY_NONE;
    unsigned bits = 0;
    unsigned rsa = 0;

    if (type == NULL) {
        return ctl_fail_usage(&ctl->error, "the type of the key is missing; give --type %s", known);
    }
    if (kh_key_type_parse(type, &key_type, &bits) == KH_OK) {
        wanted->type = key_type;
        wanted->bits = bits;
        return keyview_fits(wanted, key_type, &ctl->error);
    }
    if (sscanf(type, "rsa%u", &rsa) == 1 || sscanf(type, "rsa-%u", &rsa) == 1) {
        return ctl_fail_usage(&ctl->error, "%s is %s; use an even size of 2048 to 4096 bits", type,
                              rsa < 2048 ? "a weak key" : "not supported");
    }
    return ctl_fail_usage(&ctl->error, "key type \"%s\" is not known; use %s", type, known);
}

kh_result ctl_cmd_key_create(ctl_run *ctl)
{
    const char *tags = ctl_args_value(&ctl->args, "tag");
    char what[KH_NAME_MAX + 32];
    kh_key_info wanted = {0};
    kh_key_info made = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_wanted(ctl, &wanted);

    if (result == KH_OK) {
        result = parse_type(ctl, &wanted);
    }
    if (ctl_args_value(&ctl->args, "timeout") == NULL) { /* primes are found by chance: seconds for rsa4096 */
        ctl->timeout_ms = KH_DEADLINE_MAX_MS;
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, tags != NULL ? CTL_WAY_ADMIN : CTL_WAY_ANY, &agent);
    }
    if (result == KH_OK) {
        (void)snprintf(what, sizeof(what), "cannot create %s", wanted.name);
        result = ctl_agent_create(agent, &wanted, &made);
        result = result != KH_OK ? keyplace_explain(ctl, &wanted, what, result) : KH_OK;
    }
    if (result == KH_OK && tags != NULL) {
        result = keylife_tag(ctl, agent, wanted.name, tags);
    }
    if (result == KH_OK) {
        result = keyview_print(ctl, &made);
    }
    ctl_agent_close(agent);
    return result;
}

/* ---- list ---- */

typedef struct listing {
    output_table *table;
    json_t *json;
} listing;

static kh_result list_one(void *ctx, const kh_key_info *info)
{
    listing *list = ctx;
    char version[16], type[16], usage[80], id[2 * KH_KEY_ID_LEN + 1], created[32], where[KH_PLACE_MAX + 16];

    if (list->json != NULL) {
        return json_array_append_new(list->json, keyview_json(info)) == 0 ? KH_OK : KH_E_MEMORY;
    }
    (void)snprintf(version, sizeof(version), "%u", info->version);
    output_table_row(list->table,
                     (const char *[]){info->name, version, keyview_type(info->type, info->bits, type),
                                      kh_usage_format(info->usage, usage, sizeof(usage)),
                                      keyview_condition(info), keyview_where(info, where), output_time(info->created, created),
                                      output_hex(info->id, 8, id)});
    return KH_OK;
}

kh_result ctl_cmd_key_list(ctl_run *ctl)
{
    static const char *const headings[] = {"NAME", "VERSION", "TYPE", "USAGE", "STATE", "TIER", "CREATED", "ID"};
    const char *glob = ctl->args.operand_count > 0 ? ctl->args.operands[0] : "*";
    ctl_agent *agent = NULL;
    listing list = {NULL, NULL};
    kh_result result = ctl_agent_open(ctl, CTL_WAY_ANY, &agent);

    if (result != KH_OK) {
        goto done;
    }
    list.table = output_table_new(headings, 8);
    list.json = ctl->json ? json_array() : NULL;
    if (list.table == NULL || (ctl->json && list.json == NULL)) {
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot list keys: out of memory");
        goto done;
    }
    result = ctl_agent_list(agent, glob, list_one, &list);
    if (result == KH_OK && ctl->json) {
        result = output_json(list.json, &ctl->error);
        list.json = NULL; /* output_json took it */
    } else if (result == KH_OK) {
        result = output_table_print(list.table, stdout);
    }
    if (result == KH_E_MEMORY && ctl->error.text[0] == '\0') {
        ctl_fail(&ctl->error, result, "cannot list keys: out of memory");
    }
done:
    json_decref(list.json);
    output_table_free(list.table);
    ctl_agent_close(agent);
    return result;
}

kh_result ctl_cmd_key_show(ctl_run *ctl)
{
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    kh_name_policy policy = {0};
    size_t count = 0;
    json_t *list = NULL;
    kh_result result = infos != NULL ? look_up(ctl, infos, KH_LOOKUP_MAX, &count, &policy)
                                     : ctl_fail(&ctl->error, KH_E_MEMORY, "cannot show a key: out of memory");

    if (result != KH_OK) {
        goto done;
    }
    if (ctl->json) {
        list = json_array();
        for (size_t i = 0; list != NULL && i < count; i++) {
            if (json_array_append_new(list, keyview_json_with(&infos[i], &policy)) != 0) {
                json_decref(list);
                list = NULL;
            }
        }
        result = output_json(list, &ctl->error);
        goto done;
    }
    for (size_t i = 0; i < count && result == KH_OK; i++) {
        (void)fputs(i > 0 ? "\n" : "", stdout);
        result = keyview_print(ctl, &infos[i]);
    }
    if (result == KH_OK) {
        keyview_print_policy(&policy);
    }
done:
    free(infos);
    return result;
}

/* ---- state ---- */

static kh_result set_state(ctl_run *ctl, uint32_t state)
{
    kh_key_info wanted = {.state = state};
    kh_key_info newest = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_name(ctl->args.operands[0], true, &wanted, &ctl->error);

    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ANY, &agent);
    }
    if (result == KH_OK) {
        result = ctl_agent_set_state(agent, &wanted, &newest);
        if (result == KH_E_NOT_FOUND) {
            ctl_fail_no_key(agent, ctl->args.operands[0]);
        }
    }
    if (result == KH_OK && ctl->json) {
        result = output_json(keyview_json(&newest), &ctl->error);
    } else if (result == KH_OK) {
        (void)printf("%s %s%s\n", ctl->args.operands[0], keyview_state(state),
                     state == 3 ? "; key recover brings it back, key purge removes it for good" : "");
    }
    ctl_agent_close(agent);
    return result;
}

kh_result ctl_cmd_key_enable(ctl_run *ctl)
{
    return set_state(ctl, KH_STATE_ENABLED);
}

kh_result ctl_cmd_key_disable(ctl_run *ctl)
{
    return set_state(ctl, KH_STATE_DISABLED);
}

kh_result ctl_cmd_key_delete(ctl_run *ctl)
{
    return set_state(ctl, KH_STATE_DELETED);
}

/* Whether the admin socket lets us do other things: then it is the key. The error stays as it was if not. */
static bool may_otherwise(ctl_run *ctl, ctl_agent *agent, const char *name)
{
    const ctl_error before = ctl->error;
    kh_name_policy policy;
    bool may = agent != NULL && ctl_agent_policy(agent, name, &policy) == KH_OK;

    ctl->error = before;
    return may;
}

/* What tokens have yet to destroy, of this key and perhaps of others: a purge is done, and not yet there. */
static kh_result take_orders(ctl_agent *agent, const char *what, json_t *left)
{
    const kh_record record = {.op = KH_STORE_ORDERS};
    kh_order orders[64];
    size_t len = 0;
    kh_result result = ctl_agent_admin(agent, &record, what, (uint8_t *)orders, sizeof(orders), &len);

    for (size_t i = 0; result == KH_OK && i < len / sizeof(orders[0]); i++) {
        orders[i].token[KH_PLACE_MAX] = '\0';
        (void)json_object_set_new(left, orders[i].token, json_integer((json_int_t)orders[i].objects));
    }
    return result;
}

static kh_result say_purged(ctl_run *ctl, ctl_agent *agent, const char *name)
{
    json_t *left = json_object(), *objects = NULL;
    const char *token = NULL;
    kh_result result = take_orders(agent, "cannot see what tokens have yet to destroy", left);

    if (result == KH_OK && ctl->json) {
        result = output_json(json_pack("{s:s, s:s, s:O}", "name", name, "state", "purged", "objects_left", left), &ctl->error);
    } else if (result == KH_OK) {
        (void)printf("%s purged\n", name);
        json_object_foreach(left, token, objects)
        {
            (void)printf("token %s still has %lld objects of purged keys; it is told again until it has destroyed them (keyholdctl "
                         "status shows how many are left, the agent's log why)\n",
                         token, (long long)json_integer_value(objects));
        }
    }
    json_decref(left);
    return result;
}

/* Recover and purge: only the admin socket has them. */
static kh_result admin_by_name(ctl_run *ctl, kh_store_op op, const char *verb, const char *done_word)
{
    const char *name = ctl->args.operands[0];
    kh_key_info wanted = {0};
    kh_record record = {.op = op, .data = (const uint8_t *)&wanted, .data_len = sizeof(wanted)};
    ctl_agent *agent = NULL;
    char what[KH_NAME_MAX + 64];
    uint8_t out[sizeof(kh_key_info)];
    size_t out_len = 0;
    kh_result result = keyview_name(name, false, &wanted, &ctl->error);

    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        (void)snprintf(what, sizeof(what), "cannot %s %s", verb, name);
        result = ctl_agent_admin(agent, &record, what, out, sizeof(out), &out_len);
    }
    if (result == KH_E_NOT_FOUND) {
        ctl_fail(&ctl->error, result,
                 "cannot %s %s: there is no deleted key of that name; see keyholdctl key list", verb, name);
    } else if (result == KH_E_ORDER && op == KH_STORE_PURGE) {
        ctl_fail(&ctl->error, result, "cannot purge %s: it is not deleted; keyholdctl key delete %s comes first", name, name);
    } else if (result == KH_E_FORBIDDEN && op == KH_STORE_PURGE && may_otherwise(ctl, agent, name)) {
        ctl_fail(&ctl->error, result,
                 "cannot purge %s: it was deleted too lately; deleted keys are retained for a time that key set %s --retain or "
                 "store set --retain said",
                 name, name);
    } else if (result == KH_OK && op == KH_STORE_PURGE) {
        result = say_purged(ctl, agent, name);
    } else if (result == KH_OK && ctl->json) {
        result = output_json(json_pack("{s:s, s:s}", "name", name, "state", done_word), &ctl->error);
    } else if (result == KH_OK) {
        (void)printf("%s %s\n", name, done_word);
    }
    ctl_agent_close(agent);
    return result;
}

kh_result ctl_cmd_key_recover(ctl_run *ctl)
{
    return admin_by_name(ctl, KH_STORE_RECOVER, "recover", "recovered");
}

kh_result ctl_cmd_key_purge(ctl_run *ctl)
{
    if (ctl_args_value(&ctl->args, "yes") == NULL) {
        return ctl_fail_usage(
            &ctl->error,
            "purging destroys %s and all its versions for good, nothing brings them back; add --yes if "
            "that is meant",
            ctl->args.operands[0]);
    }
    return admin_by_name(ctl, KH_STORE_PURGE, "purge", "purged");
}

/* ---- the public half ---- */

kh_result ctl_cmd_key_reference(ctl_run *ctl)
{
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    size_t count = 0;
    size_t len = 0;
    char pem[2048];
    kh_result result = infos != NULL
                           ? look_up(ctl, infos, KH_LOOKUP_MAX, &count, NULL)
                           : ctl_fail(&ctl->error, KH_E_MEMORY, "cannot make a reference: out of memory");

    if (result != KH_OK) {
        goto done;
    }
    result = kh_reference_encode(ctl->args.operands[0], (kh_bytes){infos[0].spki, infos[0].spki_len}, pem,
                                 sizeof(pem), &len);
    if (result != KH_OK) {
        ctl_fail(&ctl->error, result, "cannot make a reference to %s: %s; see the agent's log",
                 ctl->args.operands[0], kh_result_text(result));
        goto done;
    }
    result = output_text(ctl_args_value(&ctl->args, "out"), pem, &ctl->error);
done:
    free(infos);
    return result;
}

kh_result ctl_cmd_key_public(ctl_run *ctl)
{
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    size_t count = 0;
    char *pem = NULL;
    kh_result result = infos != NULL ? look_up(ctl, infos, KH_LOOKUP_MAX, &count, NULL)
                                     : ctl_fail(&ctl->error, KH_E_MEMORY, "cannot show a key: out of memory");

    if (result == KH_OK) {
        pem = keyview_pem(&infos[0]);
        result = pem != NULL ? output_text(ctl_args_value(&ctl->args, "out"), pem, &ctl->error)
                             : ctl_fail(&ctl->error, KH_E_MEMORY, "cannot show a key: out of memory");
    }
    free(pem);
    free(infos);
    return result;
}

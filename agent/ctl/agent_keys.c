/* SPDX-License-Identifier: Apache-2.0 */
/* The operations on keys, the same over the admin socket and over the wire. */
#include "agent_private.h"

#include <stdlib.h>
#include <string.h>

#define TIER_UNKNOWN UINT32_MAX

static kh_bytes bytes_of(const char *text)
{
    return (kh_bytes){(const uint8_t *)text, strlen(text)};
}

/* The agent's entry as the store would tell it. KH_E_MALFORMED: lengths that cannot be. */
static kh_result entry_to_info(const kh_key_entry *entry, kh_key_info *info)
{
    memset(info, 0, sizeof(*info));
    if (entry->name.len > KH_NAME_MAX || entry->id.len != KH_KEY_ID_LEN || entry->spki.len > KH_SPKI_MAX ||
        entry->place.len > KH_PLACE_MAX) {
        return KH_E_MALFORMED;
    }
    info->created = entry->created;
    info->version = entry->version;
    info->type = entry->key_type;
    info->bits = entry->bits;
    info->usage = entry->usage;
    info->state = entry->state;
    memcpy(info->id, entry->id.data, KH_KEY_ID_LEN);
    memcpy(info->name, entry->name.data, entry->name.len);
    if (entry->spki.len > 0) {
        memcpy(info->spki, entry->spki.data, entry->spki.len);
    }
    info->spki_len = (uint32_t)entry->spki.len;
    info->tier = entry->tier;
    info->not_before = entry->not_before;
    info->expires = entry->expires;
    if (entry->place.len > 0) {
        memcpy(info->place, entry->place.data, entry->place.len);
    }
    return KH_OK;
}

/* One request whose reply is one entry. */
static kh_result wire_entry(ctl_agent *agent, kh_request *request, const char *what, kh_key_info *info)
{
    kh_reply reply = {0};
    kh_result result = ctl_agent_wire(agent, request, what, &reply);

    return result == KH_OK ? entry_to_info(&reply.entry, info) : result;
}

/* One record whose answer is one kh_key_info. */
static kh_result admin_info(ctl_agent *agent, kh_store_op op, const void *data, size_t len, const char *what,
                            kh_key_info *info)
{
    kh_record record = {.op = op, .data = data, .data_len = (uint32_t)len};
    kh_key_info answer = {0};
    size_t out_len = 0;
    kh_result result = ctl_agent_admin(agent, &record, what, (uint8_t *)&answer, sizeof(answer), &out_len);

    if (result == KH_OK && out_len != sizeof(answer)) {
        result = ctl_fail(agent->error, KH_E_VERSION,
                          "%s: the agent is of another build; install the same version of both", what);
    }
    if (result == KH_OK) {
        answer.name[KH_NAME_MAX] = '\0';
        *info = answer;
    }
    return result;
}

static kh_result lookup_admin(ctl_agent *agent, const char *name, const uint8_t *id, const char *what,
                              kh_key_info *infos, size_t cap, size_t *count)
{
    kh_record record = {.op = KH_STORE_LOOKUP, .flags = name == NULL};
    uint8_t *out = malloc(KH_LOOKUP_MAX * sizeof(*infos));
    size_t len = 0;
    kh_result result = KH_E_MEMORY;

    record.data = name != NULL ? (const uint8_t *)name : id;
    record.data_len = name != NULL ? (uint32_t)strlen(name) : KH_KEY_ID_LEN;
    if (out != NULL) {
        result = ctl_agent_admin(agent, &record, what, out, KH_LOOKUP_MAX * sizeof(*infos), &len);
    }
    if (result == KH_OK) {
        *count = len / sizeof(*infos) < cap ? len / sizeof(*infos) : cap;
        memcpy(infos, out, *count * sizeof(*infos));
        result = *count > 0 ? KH_OK : KH_E_NOT_FOUND;
    }
    free(out);
    return result;
}

kh_result ctl_agent_lookup(ctl_agent *agent, const char *name, const uint8_t *id, kh_key_info *infos,
                           size_t cap, size_t *count)
{
    kh_request request = {.op = KH_OP_DESCRIBE, .key_is_id = name == NULL};
    char what[KH_NAME_MAX + 64] = "cannot look up the key of a certificate";
    kh_result result = KH_OK;
    uint32_t version = 0;
    size_t name_len = 0;

    *count = 0;
    if (name != NULL) {
        if (kh_name_split(name, strlen(name), &name_len, &version) != KH_OK) {
            return ctl_fail_usage(
                agent->error,
                "\"%s\" is not a key name; it is 1 to %d letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit, and perhaps /VERSION",
                name, KH_NAME_MAX);
        }
        (void)snprintf(what, sizeof(what), "cannot look up %s", name);
    }
    if (agent->client == NULL) {
        return lookup_admin(agent, name, id, what, infos, cap, count);
    }
    request.key = name != NULL ? bytes_of(name) : (kh_bytes){id, KH_KEY_ID_LEN};
    result = wire_entry(agent, &request, what, &infos[0]);
    if (result == KH_E_UNSUPPORTED) { /* an agent that knows no tiers */
        request.op = KH_OP_PUBLIC_KEY;
        result = wire_entry(agent, &request, what, &infos[0]);
    }
    *count = result == KH_OK ? 1 : 0;
    return result;
}

kh_result ctl_fail_no_key(const ctl_agent *agent, const char *name)
{
    return ctl_fail(agent->error, KH_E_NOT_FOUND, "there is no key \"%s\"%s; see keyholdctl key list", name,
                    agent->client != NULL ? ", or this caller may not use it" : "");
}

/* "name/version" of the last entry of a page, to ask for the next one. */
static void page_mark(const kh_key_info *info, char mark[KH_NAME_MAX + 16])
{
    (void)snprintf(mark, KH_NAME_MAX + 16, "%s/%u", info->name, info->version);
}

static kh_result list_admin(ctl_agent *agent, const char *glob,
                            kh_result (*each)(void *ctx, const kh_key_info *info), void *ctx)
{
    kh_key_info *page = calloc(KH_LIST_PAGE, sizeof(*page));
    char mark[KH_NAME_MAX + 16] = "";
    kh_result result =
        page != NULL ? KH_OK : ctl_fail(agent->error, KH_E_MEMORY, "cannot list keys: out of memory");
    size_t count = 1;

    while (result == KH_OK && count > 0) {
        kh_record record = {.op = KH_STORE_LIST,
                            .arg = KH_LIST_PAGE,
                            .data = (const uint8_t *)mark,
                            .data_len = (uint32_t)strlen(mark)};
        size_t len = 0;

        result = ctl_agent_admin(agent, &record, "cannot list keys", (uint8_t *)page,
                                 KH_LIST_PAGE * sizeof(*page), &len);
        count = result == KH_OK ? len / sizeof(*page) : 0;
        for (size_t i = 0; i < count && result == KH_OK; i++) {
            page[i].name[KH_NAME_MAX] = '\0';
            if (kh_name_glob(glob, page[i].name, strlen(page[i].name))) {
                result = each(ctx, &page[i]);
            }
            page_mark(&page[i], mark);
        }
    }
    free(page);
    return result;
}

/* What a list over the wire does not tell: where the key lives, and how long it is valid. An agent that knows no tiers: nothing. */
static void add_place(ctl_agent *agent, kh_key_info *info, bool *known)
{
    const ctl_error before = *agent->error;
    kh_request request = {.op = KH_OP_DESCRIBE};
    char mark[KH_NAME_MAX + 16];
    kh_key_info more = {0};
    kh_result result = KH_OK;

    if (!*known) {
        return;
    }
    if (info->state == KH_STATE_DELETED) { /* nobody is told of it */
        info->tier = TIER_UNKNOWN;
        return;
    }
    page_mark(info, mark);
    request.key = bytes_of(mark);
    result = wire_entry(agent, &request, "cannot list keys", &more);
    if (result == KH_OK && memcmp(more.id, info->id, sizeof(info->id)) == 0) {
        info->tier = more.tier;
        memcpy(info->place, more.place, sizeof(info->place));
        info->not_before = more.not_before;
        info->expires = more.expires;
    }
    *known = result != KH_E_UNSUPPORTED;
    *agent->error = before; /* it may be gone, or this caller may not look: what the list says stays */
}

/* One page. The reply is valid until the next request, so it is taken first. */
static kh_result take_page(ctl_agent *agent, const kh_reply *reply, kh_key_info *page)
{
    kh_result result = KH_OK;

    for (uint32_t i = 0; result == KH_OK && i < reply->entry_count; i++) {
        kh_key_entry entry = {0};

        result = kh_reply_entry(reply, i, &entry);
        if (result == KH_OK) {
            result = entry_to_info(&entry, &page[i]);
        }
    }
    return result == KH_OK
               ? result
               : ctl_fail(agent->error, result, "cannot list keys: the agent's answer is malformed; see its log");
}

static kh_result list_wire(ctl_agent *agent, const char *glob, kh_result (*each)(void *ctx, const kh_key_info *info), void *ctx)
{
    kh_key_info *page = calloc(KH_LIST_MAX, sizeof(*page));
    char mark[KH_NAME_MAX + 16] = "";
    kh_result result = page != NULL ? KH_OK : ctl_fail(agent->error, KH_E_MEMORY, "cannot list keys: out of memory");
    bool more = true, tiers = true;

    while (result == KH_OK && more) {
        kh_request request = {
            .op = KH_OP_LIST, .name = bytes_of(glob), .after = bytes_of(mark), .arg = KH_LIST_MAX};
        kh_reply reply = {0};

        result = ctl_agent_wire(agent, &request, "cannot list keys", &reply);
        more = result == KH_OK && reply.more && reply.entry_count > 0;
        if (result == KH_OK) {
            result = take_page(agent, &reply, page);
        }
        for (uint32_t i = 0, count = reply.entry_count; result == KH_OK && i < count; i++) {
            add_place(agent, &page[i], &tiers);
            result = each(ctx, &page[i]);
            page_mark(&page[i], mark);
        }
    }
    free(page);
    return result;
}

kh_result ctl_agent_list(ctl_agent *agent, const char *glob,
                         kh_result (*each)(void *ctx, const kh_key_info *info), void *ctx)
{
    return agent->client == NULL ? list_admin(agent, glob, each, ctx) : list_wire(agent, glob, each, ctx);
}

/* An older agent is asked as it knows it, as long as nothing is asked for that it does not know. */
static void ask_place(kh_request *request, const kh_key_info *wanted, kh_op op)
{
    if (wanted->tier != 0 || wanted->place[0] != '\0' || wanted->not_before != 0 || wanted->expires != 0) {
        request->op = op;
        request->tier = wanted->tier;
        request->place = bytes_of(wanted->place);
        request->not_before = wanted->not_before;
        request->expires = wanted->expires;
    }
}

kh_result ctl_agent_create(ctl_agent *agent, const kh_key_info *wanted, kh_key_info *made)
{
    kh_request request = {.op = KH_OP_CREATE,
                          .name = bytes_of(wanted->name),
                          .key_type = wanted->type,
                          .bits = wanted->bits,
                          .usage = wanted->usage,
                          .flags = wanted->flags};
    char what[KH_NAME_MAX + 64];

    (void)snprintf(what, sizeof(what), "cannot create %s", wanted->name);
    ask_place(&request, wanted, KH_OP_CREATE_PLACED);
    if (agent->client == NULL) {
        return admin_info(agent, KH_STORE_CREATE, wanted, sizeof(*wanted), what, made);
    }
    return wire_entry(agent, &request, what, made);
}

kh_result ctl_agent_import(ctl_agent *agent, const kh_key_info *wanted, const uint8_t *sealed, size_t len,
                           kh_key_info *made)
{
    kh_request request = {.op = KH_OP_IMPORT,
                          .name = bytes_of(wanted->name),
                          .usage = wanted->usage,
                          .flags = wanted->flags,
                          .data = {sealed, len}};
    char what[KH_NAME_MAX + 64];
    kh_result result = KH_E_MEMORY;
    uint8_t *both = NULL;

    (void)snprintf(what, sizeof(what), "cannot import %s", wanted->name);
    ask_place(&request, wanted, KH_OP_IMPORT_PLACED);
    if (agent->client != NULL) {
        return wire_entry(agent, &request, what, made);
    }
    both = malloc(sizeof(*wanted) + len);
    if (both == NULL) {
        return ctl_fail(agent->error, result, "%s: out of memory", what);
    }
    memcpy(both, wanted, sizeof(*wanted));
    memcpy(both + sizeof(*wanted), sealed, len);
    result = admin_info(agent, KH_STORE_IMPORT, both, sizeof(*wanted) + len, what, made);
    free(both);
    return result;
}

kh_result ctl_agent_set_state(ctl_agent *agent, const kh_key_info *wanted, kh_key_info *newest)
{
    kh_request request = {.op = KH_OP_SET_STATE, .arg = wanted->state};
    char name[KH_NAME_MAX + 16];
    char what[KH_NAME_MAX + 64];

    (void)snprintf(what, sizeof(what), "cannot change the state of %s", wanted->name);
    if (agent->client == NULL) {
        return admin_info(agent, KH_STORE_SET_STATE, wanted, sizeof(*wanted), what, newest);
    }
    page_mark(wanted, name);
    request.key = wanted->version != 0 ? bytes_of(name) : bytes_of(wanted->name);
    return wire_entry(agent, &request, what, newest);
}

kh_result ctl_agent_policy(ctl_agent *agent, const char *name, kh_name_policy *policy)
{
    const kh_record record = {.op = KH_STORE_POLICY, .data = (const uint8_t *)name, .data_len = (uint32_t)strlen(name)};
    size_t len = 0;
    kh_result result = KH_OK;

    memset(policy, 0, sizeof(*policy));
    if (agent->client != NULL) {
        return result;
    }
    result = ctl_agent_admin(agent, &record, "cannot show what is said of a key", (uint8_t *)policy, sizeof(*policy), &len);
    policy->tags[KH_TAGS_MAX] = '\0';
    return result;
}

kh_result ctl_agent_import_key(ctl_agent *agent, uint8_t import_public[32])
{
    kh_request request = {.op = KH_OP_IMPORT_KEY};
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    static const char what[] = "cannot fetch the store's import key";
    kh_reply reply = {0};
    uint8_t out[32];
    kh_bytes got = {NULL, 0};
    kh_result result = KH_OK;

    if (agent->client == NULL) {
        result = ctl_agent_admin(agent, &record, what, out, sizeof(out), &got.len);
        got.data = out;
    } else {
        result = ctl_agent_wire(agent, &request, what, &reply);
        got = reply.data;
    }
    if (result == KH_OK && got.len != 32) {
        result =
            ctl_fail(agent->error, KH_E_MALFORMED, "%s: the answer is malformed; see the agent's log", what);
    }
    if (result == KH_OK) {
        memcpy(import_public, got.data, 32);
    }
    return result;
}

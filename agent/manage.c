/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations that manage keys: each becomes one record for the keeper, `list` one for each page. They
 * share a small window in the ring and are answered by the keeper's store thread, so signing goes on beside
 * them.
 */
#include "front.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a `list` has gathered so far. */
typedef struct list_state {
    char glob[KH_NAME_MAX + 1];
    uint32_t want, count;
    kh_key_info infos[KH_LIST_MAX];
} list_state;

void kh_manage_drop(kh_job *job)
{
    if (job->extra != NULL) {
        ((kh_identity *)job->tenant)->lists--;
    }
    free(job->extra);
    job->extra = NULL;
}

/* detail NULL: the request names a key, and the caller does not learn whether there is one. */
static void refuse_forbidden(kh_conn *conn, const kh_request *req, const char *detail)
{
    uint32_t suppressed = 0;

    if (kh_log_allowed(&conn->identity->log_refused, kh_front_ms(conn->front), &suppressed)) {
        kh_log(KH_LOG_NOTICE, "refused", KH_LT("identity", conn->identity->name),
               KH_LT("operation", kh_op_name(req->op)), KH_LT("why", "forbidden"), KH_LOG_PEER(conn),
               KH_LN("suppressed", suppressed));
    }
    kh_refuse(conn, req->op, req->id, detail != NULL ? KH_E_FORBIDDEN : KH_E_NOT_FOUND, detail);
}

/* A job for the store with room for that much data; already refused if NULL. */
static kh_job *begin(kh_conn *conn, const kh_request *req, kh_store_op op, size_t data_len)
{
    kh_job *job = kh_operation_begin(conn, req, data_len);

    if (job != NULL) {
        job->store_op = op;
        job->lane = KH_LANE_STORE;
    }
    return job;
}

/* ---- list ---- */

static void admit_list(kh_conn *conn, const kh_request *req)
{
    list_state *state = NULL;
    kh_job *job = NULL;

    if (!kh_acl_allows_op(kh_identity_rights(conn->identity), req->op)) {
        refuse_forbidden(conn, req, "this identity may not do this");
        return;
    }
    if (req->name.len > KH_NAME_MAX || req->after.len > KH_DIRECTORY_KEY_MAX || req->arg == 0 ||
        req->arg > KH_LIST_MAX || (req->name.len > 0 && memchr(req->name.data, 0, req->name.len) != NULL)) {
        kh_refuse(conn, req->op, req->id, KH_E_INVALID, NULL);
        return;
    }
    if (conn->identity->lists >= KH_LISTS_MAX) {
        kh_refuse(conn, req->op, req->id, KH_E_OVERLOADED, NULL);
        return;
    }
    job = begin(conn, req, KH_STORE_LIST, KH_DIRECTORY_KEY_MAX);
    if (job == NULL) {
        return;
    }
    state = calloc(1, sizeof *state);
    if (state == NULL) {
        kh_operation_end(conn->front, job, KH_E_MEMORY, NULL, 0);
        return;
    }
    job->extra = state;
    conn->identity->lists++;
    job->arg = KH_LIST_PAGE;
    job->data_len = (uint32_t)req->after.len;
    if (req->after.len > 0) {
        memcpy(job->data, req->after.data, req->after.len);
    }
    state->want = req->arg;
    memcpy(state->glob, req->name.len > 0 ? (const char *)req->name.data : "*",
           req->name.len > 0 ? req->name.len : 1);
    kh_queue_push(&conn->front->queue, job);
}

static void answer_list(kh_front *front, kh_job *job, bool more)
{
    const list_state *state = job->extra;
    kh_key_entry entries[KH_LIST_MAX];
    kh_reply reply = {.status = KH_OK, .entries = entries, .entry_count = state->count, .more = more};

    for (uint32_t i = 0; i < state->count; i++) {
        kh_entry_from_info(&state->infos[i], false, &entries[i]);
    }
    kh_operation_reply(front, job, &reply);
}

/*
 * One page of the store. The caller sees only what it may see; a full reply or the end of the store ends the
 * job.
 */
static void list_done(kh_front *front, kh_job *job, const kh_completion *completion)
{
    list_state *state = job->extra;
    size_t count = completion->data_len / sizeof(kh_key_info);
    const kh_config_identity *rights = kh_identity_rights((kh_identity *)job->tenant);
    kh_key_info info;

    for (size_t i = 0; i < count && state->count < state->want; i++) {
        size_t name_len = 0;

        memcpy(&info, completion->data + i * sizeof info, sizeof info);
        info.name[KH_NAME_MAX] = '\0';
        name_len = strlen(info.name);
        if (kh_name_glob(state->glob, info.name, name_len) &&
            kh_acl_allows(rights, KH_OP_LIST, info.name, name_len)) {
            state->infos[state->count++] = info;
        }
        job->data_len =
            (uint32_t)snprintf((char *)job->data, KH_JOB_INLINE, "%s/%u", info.name, info.version);
    }
    if (count == 0 || state->count == state->want) {
        answer_list(front, job, count > 0);
        return;
    }
    kh_queue_return(&front->queue, job);
}

/* ---- create, import, set-state ---- */

static void admit_keyed(kh_conn *conn, const kh_request *req, kh_store_op op, const kh_key_info *info)
{
    size_t extra = op == KH_STORE_IMPORT ? req->data.len : 0;
    kh_job *job = NULL;

    if (!kh_acl_allows(kh_identity_rights(conn->identity), req->op, info->name, strlen(info->name))) {
        refuse_forbidden(conn, req, NULL);
        return;
    }
    job = begin(conn, req, op, sizeof *info + extra);
    if (job == NULL) {
        return;
    }
    memcpy(job->data, info, sizeof *info);
    if (extra > 0) {
        memcpy(job->data + sizeof *info, req->data.data, extra);
    }
    kh_log(KH_LOG_INFO, "manage", KH_LT("identity", conn->identity->name),
           KH_LT("operation", kh_op_name(req->op)), KH_LT("key", info->name), KH_LOG_PEER(conn));
    kh_queue_push(&conn->front->queue, job);
}

/* The key's name for a record. False: it is none. */
static bool take_name(kh_bytes name, kh_key_info *info)
{
    if (!kh_name_valid((const char *)name.data, name.len)) {
        return false;
    }
    memcpy(info->name, name.data, name.len);
    return true;
}

static void admit_new(kh_conn *conn, const kh_request *req, kh_store_op op)
{
    kh_key_info info = {.type = req->key_type,
                        .bits = req->bits,
                        .usage = req->usage,
                        .flags = req->flags,
                        .tier = req->tier,
                        .not_before = req->not_before,
                        .expires = req->expires};

    if (req->place.len > KH_PLACE_MAX ||
        (req->place.len > 0 && !kh_name_valid((const char *)req->place.data, req->place.len))) {
        kh_refuse(conn, req->op, req->id, KH_E_INVALID, "this is not the name of a token or pool");
        return;
    }
    if (req->place.len > 0) {
        memcpy(info.place, req->place.data, req->place.len);
    }
    if (!take_name(req->name, &info)) {
        kh_refuse(conn, req->op, req->id, KH_E_INVALID, "this is not a key name");
        return;
    }
    if ((req->flags & ~(KH_KEY_ALLOW_DUPLICATE | KH_KEY_NEW_VERSION)) != 0 ||
        (req->usage & ~(unsigned)KH_USAGE_ALL) != 0) {
        kh_refuse(conn, req->op, req->id, KH_E_INVALID, "unknown flags or usage");
        return;
    }
    admit_keyed(conn, req, op, &info);
}

static void admit_state(kh_conn *conn, const kh_request *req)
{
    kh_key_info info = {.state = req->arg};
    size_t name_len = 0;

    if (req->key_is_id || req->arg < KH_STATE_ENABLED || req->arg > KH_STATE_DELETED ||
        kh_name_split((const char *)req->key.data, req->key.len, &name_len, &info.version) != KH_OK ||
        !take_name((kh_bytes){req->key.data, name_len}, &info)) {
        kh_refuse(conn, req->op, req->id, KH_E_INVALID, "needs a name or name/version and a state");
        return;
    }
    admit_keyed(conn, req, KH_STORE_SET_STATE, &info);
}

static void admit_import_key(kh_conn *conn, const kh_request *req)
{
    kh_job *job = NULL;

    if (!kh_acl_allows_op(kh_identity_rights(conn->identity), req->op)) {
        refuse_forbidden(conn, req, "this identity may not do this");
        return;
    }
    job = begin(conn, req, KH_STORE_IMPORT_KEY, 0);
    if (job != NULL) {
        kh_queue_push(&conn->front->queue, job);
    }
}

/* Whether the operation is one of those that a TCP listener lets through only with `administration`. */
static bool manages(kh_op op)
{
#define KH_X(constant, number, name, manage) | (uint32_t)(manage) << (number)
    return ((0 KH_OPS(KH_X)) >> op & 1) != 0;
#undef KH_X
}

void kh_manage(kh_conn *conn, const kh_request *req)
{
    if (conn->listener->is_tcp && !conn->listener->administration && manages(req->op)) {
        refuse_forbidden(conn, req, "keys cannot be managed over this listener");
        return;
    }
    switch (req->op) {
    case KH_OP_LIST:
        admit_list(conn, req);
        break;
    case KH_OP_IMPORT_KEY:
        admit_import_key(conn, req);
        break;
    case KH_OP_CREATE:
    case KH_OP_CREATE_PLACED:
        admit_new(conn, req, KH_STORE_CREATE);
        break;
    case KH_OP_IMPORT:
    case KH_OP_IMPORT_PLACED:
        admit_new(conn, req, KH_STORE_IMPORT);
        break;
    case KH_OP_SET_STATE:
        admit_state(conn, req);
        break;
    default:
        kh_refuse(conn, req->op, req->id, KH_E_UNSUPPORTED, NULL);
        break;
    }
}

void kh_manage_done(kh_front *front, kh_job *job, const kh_completion *completion)
{
    kh_reply reply = {.status = completion->result};
    kh_key_info info;

    if (completion->result != KH_OK) {
        kh_operation_end(front, job, completion->result, NULL, 0);
    } else if (job->store_op == KH_STORE_LIST) {
        list_done(front, job, completion);
    } else if (job->store_op == KH_STORE_IMPORT_KEY) {
        kh_operation_end(front, job, KH_OK, completion->data, completion->data_len);
    } else if (completion->data_len < sizeof info) {
        kh_operation_end(front, job, KH_E_INTERNAL, NULL, 0);
    } else {
        memcpy(&info, completion->data, sizeof info);
        info.name[KH_NAME_MAX] = '\0';
        kh_entry_from_info(&info, true, &reply.entry);
        kh_operation_reply(front, job, &reply);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request of a known caller becomes a job in a fair queue, or is answered at once: who may do what is
 * decided here.
 */
#include "front.h"
#include <string.h>
#include <time.h>

void kh_entry_from_info(const kh_key_info *info, bool with_spki, kh_key_entry *entry)
{
    *entry = (kh_key_entry){
        .name = kh_text_bytes(info->name),
        .version = info->version,
        .key_type = info->type,
        .bits = info->bits,
        .usage = info->usage,
        .state = info->state,
        .created = info->created,
        .id = {info->id, KH_KEY_ID_LEN},
        .spki = {info->spki, with_spki && info->spki_len <= KH_SPKI_MAX ? info->spki_len : 0},
        .tier = info->tier,
        .place = kh_text_bytes(info->place),
        .not_before = info->not_before,
        .expires = info->expires,
    };
}

/* Unknown and forbidden look alike to the caller; the log tells them apart. */
static void log_refusal(kh_front *front, kh_identity *identity, kh_op op, const char *key, const char *why)
{
    uint32_t suppressed = 0;

    if (kh_log_allowed(&identity->log_refused, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_NOTICE, "refused", KH_LT("identity", identity->name),
               KH_LT("operation", kh_op_name(op)), KH_LT("key", key), KH_LT("why", why),
               KH_LN("suppressed", suppressed));
    }
}

static void key_text(const uint8_t *key, size_t len, bool is_id, char out[2 * KH_DIRECTORY_KEY_MAX + 1])
{
    len = len < KH_DIRECTORY_KEY_MAX ? len : KH_DIRECTORY_KEY_MAX;
    if (!is_id) {
        memcpy(out, key, len);
        out[len] = '\0';
        return;
    }
    for (size_t i = 0; i < len; i++) {
        static const char digits[] = "0123456789abcdef";

        out[2 * i] = digits[key[i] >> 4];
        out[2 * i + 1] = digits[key[i] & 15];
    }
    out[2 * len] = '\0';
}

/*
 * Whether the caller may go on to the directory: by name the acl decides already, by id only what the id
 * turns out to be.
 */
static bool may_ask(kh_conn *conn, const kh_request *req)
{
    const kh_config_identity *rights = kh_identity_rights(conn->identity);
    char text[2 * KH_DIRECTORY_KEY_MAX + 1];
    size_t name_len = 0;
    uint32_t version = 0;

    if (req->key_is_id
            ? req->key.len == KH_KEY_ID_LEN && kh_acl_allows_op(rights, req->op)
            : kh_name_split((const char *)req->key.data, req->key.len, &name_len, &version) == KH_OK &&
                  kh_acl_allows(rights, req->op, (const char *)req->key.data, name_len)) {
        return true;
    }
    key_text(req->key.data, req->key.len, req->key_is_id, text);
    log_refusal(conn->front, conn->identity, req->op, text, "forbidden");
    return false;
}

/*
 * The usages of which one is enough for this job; 0: which key is taken makes no difference to it. Versions of
 * a key have the same usage, so it is duplicates under several names that are asked for more.
 */
static uint32_t usages_for(const kh_job *job, const kh_key_info *const infos[], size_t count)
{
    bool differ = false;

    for (size_t i = 1; i < count; i++) {
        differ = differ || infos[i]->usage != infos[0]->usage;
    }
    switch (differ ? job->op : KH_OP_PING) {
    case KH_OP_SIGN:
        return kh_usages_to_sign(infos[0]->type, job->scheme, (job->flags & KH_SIGN_IS_DIGEST) != 0,
                                 job->data, job->data_len);
    case KH_OP_TLS_RSA_DECRYPT:
        return KH_USAGE_TLS_RSA_KX;
    case KH_OP_DECRYPT:
        return KH_USAGE_DECRYPT;
    default:
        return 0;
    }
}

/* Unix time. */
static uint64_t time_of_day(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec;
}

/* To the token or pool that has the key. */
static void to_place(kh_front *front, kh_job *job, const kh_key_info *info)
{
    kh_identity *identity = (kh_identity *)job->tenant;
    kh_place *place = kh_place_find(front, info->tier, info->place);
    uint32_t suppressed = 0;

    if (place != NULL) {
        kh_place_queue(front, place, job);
        return;
    }
    if (kh_log_allowed(&identity->log_place, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_ERROR, "place_unknown", KH_LT("key", info->name), KH_LT("place", info->place),
               KH_LT("do", "this key is in a token or pool that the configuration does not have"),
               KH_LN("suppressed", suppressed));
    }
    kh_operation_end(front, job, KH_E_UNAVAILABLE, NULL, 0); /* another agent may have it */
}

void kh_admit_found(kh_front *front, kh_job *job, const kh_key_info *const infos[], size_t count)
{
    kh_identity *identity = (kh_identity *)job->tenant;
    bool is_public = job->op == KH_OP_PUBLIC_KEY || job->op == KH_OP_DESCRIBE;
    const kh_entry *asked = job->found;
    const kh_key_info *info = NULL;
    kh_result result = kh_acl_choose(kh_identity_rights(identity), job->op, usages_for(job, infos, count),
                                     infos, count, is_public, time_of_day(), &info);

    if (result != KH_OK) {
        char text[2 * KH_DIRECTORY_KEY_MAX + 1];

        /* A key that nobody has is named as it was asked for: by its id, mostly, of a certificate in nginx. */
        if (count == 0) {
            key_text(asked->key, asked->key_len, asked->is_id, text);
        }
        log_refusal(front, identity, job->op, count > 0 ? infos[0]->name : text,
                    count == 0                ? "unknown"
                    : result == KH_E_DISABLED ? "disabled"
                                              : "forbidden");
        identity->refused++;
        kh_operation_end(front, job, result, NULL, 0);
        return;
    }
    if (is_public) {
        kh_reply reply = {.status = KH_OK};

        kh_entry_from_info(info, true, &reply.entry);
        kh_operation_reply(front, job, &reply);
        return;
    }
    job->key_ref = info->ref;
    job->lane = kh_lane_of((int)info->type, info->bits);
    if (job->lane == KH_LANE_STORE) {
        kh_operation_end(front, job, KH_E_INTERNAL, NULL, 0);
        return;
    }
    if (info->tier <= KH_TIER_SOFTWARE) {
        kh_queue_push(&front->queue, job);
    } else {
        to_place(front, job, info);
    }
}

static void find_key(kh_front *front, kh_job *job, const kh_request *req)
{
    kh_entry *entry = NULL;
    kh_result result = KH_OK;

    if (front->store.keystore != NULL) {
        kh_directory_generation(front->directory, kh_keystore_generation(front->store.keystore));
    }
    result = kh_directory_get(front->directory, req->key.data, req->key.len, req->key_is_id, &entry);
    if (result == KH_OK) {
        job->found = entry;
        kh_admit_found(front, job, entry->infos, entry->count);
    } else if (result == KH_AGAIN) {
        kh_directory_wait(entry, job);
    } else {
        kh_operation_end(front, job, result == KH_E_TOO_LARGE ? KH_E_NOT_FOUND : result, NULL, 0);
    }
}

static void admit_key(kh_conn *conn, const kh_request *req, kh_store_op store_op)
{
    size_t label_len = req->op == KH_OP_DECRYPT ? req->label.len : 0;
    kh_job *job = NULL;

    if (!may_ask(conn, req)) {
        kh_refuse(conn, req->op, req->id, KH_E_NOT_FOUND, NULL);
        return;
    }
    if (req->op == KH_OP_SIGN && (req->flags & ~KH_SIGN_PREHASHED) != 0) {
        kh_refuse(conn, req->op, req->id, KH_E_INVALID, "unknown flags");
        return;
    }
    job = kh_operation_begin(conn, req, label_len + req->data.len);
    if (job == NULL) {
        return;
    }
    job->store_op = store_op;
    job->scheme =
        req->op == KH_OP_DECRYPT ? req->arg : req->scheme; /* the keeper's decrypt: padding in scheme, */
    job->arg = req->op == KH_OP_DECRYPT ? (uint32_t)label_len : req->arg; /* label length in arg */
    job->flags = (req->flags & KH_SIGN_PREHASHED) != 0 ? KH_SIGN_IS_DIGEST : 0;
    if (label_len > 0) {
        memcpy(job->data, req->label.data, label_len);
    }
    if (req->data.len > 0) {
        memcpy(job->data + label_len, req->data.data, req->data.len);
    }
    find_key(conn->front, job, req);
}

void kh_admit(kh_conn *conn, const kh_request *req)
{
    kh_reply pong = {.op = KH_OP_PING, .id = req->id};

    switch (req->op) {
    case KH_OP_PING:
        kh_conn_reply(conn, &pong);
        break;
    case KH_OP_CANCEL:
        kh_operation_cancel(conn, req->id);
        break;
    case KH_OP_SIGN:
        admit_key(conn, req, KH_STORE_SIGN);
        break;
    case KH_OP_TLS_RSA_DECRYPT:
        admit_key(conn, req, KH_STORE_TLS_RSA_KX);
        break;
    case KH_OP_DECRYPT:
        admit_key(conn, req, KH_STORE_DECRYPT);
        break;
    case KH_OP_PUBLIC_KEY:
    case KH_OP_DESCRIBE:
        admit_key(conn, req, KH_STORE_LOOKUP);
        break;
    case KH_OP_STATUS:
        kh_status(conn, req);
        break;
    default:
        kh_manage(conn, req);
        break;
    }
}

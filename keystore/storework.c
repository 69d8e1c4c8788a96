/* SPDX-License-Identifier: Apache-2.0 */
/* The store thread: loads keys, looks up, creates, imports, changes; and signs what root asks for past the
 * front. */
#include "storelink.h"
#include "process.h"
#include "row.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STORE_WAITING_MAX (2 * KH_RING_SLOTS_MAX)
#define GENERATOR_WAITING_MAX 64
#define ORDERS_MAX 64 /* tokens, in one answer */

kh_store_asker kh_storework_asker(const kh_op *op)
{
    return op->ring == NULL ? KH_ASKER_ROOT : KH_ASKER_FRONT;
}

/* Root is not shut out by what a front has piled up. */
static uint32_t limit(const kh_op *op, uint32_t of_front)
{
    return op->ring == NULL ? UINT32_MAX : of_front;
}

/* ---- What is asked ------------------------------------------------------------------------------------- */

/* The kh_key_info at the start of the data, with a legal name. */
static bool take_info(const kh_op *op, bool alone, kh_key_info *info)
{
    const char *end = NULL;

    if (op->record.data_len < sizeof(*info) || (alone && op->record.data_len != sizeof(*info))) {
        return false;
    }
    memcpy(info, op->record.data, sizeof(*info));
    end = memchr(info->name, '\0', sizeof(info->name));
    return end != NULL && kh_name_valid(info->name, (size_t)(end - info->name));
}

kh_result kh_storework_give_infos(kh_op *op, const kh_key_info *infos, size_t count)
{
    uint8_t *out = kh_op_out(op, count * sizeof(*infos));

    if (out == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(out, infos, count * sizeof(*infos));
    op->out_len = count * sizeof(*infos);
    return KH_OK;
}

static kh_result lookup(kh_keeper *keeper, kh_op *op)
{
    kh_key_info infos[KH_LOOKUP_MAX];
    const char *text = (const char *)op->record.data;
    size_t count = 0, name_len = 0;
    uint32_t version = 0;
    kh_result result = KH_E_INVALID;

    if (op->record.flags == 1 && op->record.data_len == KH_KEY_ID_LEN) {
        result = kh_store_find_id(keeper->store, op->record.data, infos, KH_LOOKUP_MAX, &count);
    } else if (op->record.flags == 0) {
        result = kh_name_split(text, op->record.data_len, &name_len, &version);
        if (result == KH_OK) {
            result = kh_store_find_name(keeper->store, text, name_len, version, infos, KH_LOOKUP_MAX, &count);
        }
    }
    return result == KH_OK ? kh_storework_give_infos(op, infos, count) : result;
}

static kh_result list(kh_keeper *keeper, kh_op *op)
{
    kh_key_info infos[KH_LIST_PAGE];
    const char *text = (const char *)op->record.data;
    size_t count = 0, name_len = 0;
    uint32_t version = 0;
    kh_result result = KH_OK;

    if (op->record.arg < 1 || op->record.arg > KH_LIST_PAGE) {
        return KH_E_INVALID;
    }
    if (op->record.data_len > 0) {
        result = kh_name_split(text, op->record.data_len, &name_len, &version);
    }
    if (result == KH_OK) {
        result = kh_store_list(keeper->store, text, name_len, version, infos, op->record.arg, &count);
    }
    for (size_t i = 0; i < count; i++) {
        memset(infos[i].spki, 0, sizeof(infos[i].spki));
        infos[i].spki_len = 0;
    }
    return result == KH_OK ? kh_storework_give_infos(op, infos, count) : result;
}

static kh_result import_key(kh_keeper *keeper, kh_op *op)
{
    memcpy(op->out, kh_store_import_public(keeper->store), 32);
    op->out_len = 32;
    return KH_OK;
}

/* First part of create and import: refuse early, then on to the generator. KH_AGAIN: it has it now. */
static kh_result begin_insert(kh_keeper *keeper, kh_op *op)
{
    bool create = op->record.op == KH_STORE_CREATE;
    kh_key_info info;
    kh_result result = KH_OK;

    if (!take_info(op, create, &info) || !kh_info_asked(&info)) {
        return KH_E_INVALID;
    }
    if (create && !kh_material_possible(info.type, &info.bits)) {
        return KH_E_UNSUPPORTED;
    }
    info.type = create ? info.type : KH_KEY_NONE;
    result = kh_store_may_insert(keeper->store, kh_storework_asker(op), &info);
    if (result != KH_OK) {
        return result;
    }
    if (info.tier != KH_TIER_SOFTWARE && create) {
        return kh_make_insert(keeper, op, &info);
    }
    return kh_desk_push(&keeper->generator_desk, op->ring == NULL ? KH_DESK_ADMIN : KH_DESK_SLOW, op,
                        limit(op, GENERATOR_WAITING_MAX))
               ? KH_AGAIN
               : KH_E_OVERLOADED;
}

static kh_result end_insert(kh_keeper *keeper, kh_op *op)
{
    kh_key_info info;
    kh_result result = op->result;

    if (result != KH_OK) {
        return result;
    }
    memcpy(&info, op->record.data, sizeof(info));
    info.type = (uint32_t)op->material->type;
    result = kh_store_may_insert(keeper->store, kh_storework_asker(op), &info);
    if (result == KH_OK && info.tier != KH_TIER_SOFTWARE) {
        return kh_make_insert(keeper, op, &info);
    }
    if (result == KH_OK) {
        result = kh_store_insert(keeper->store, kh_storework_asker(op), &info, op->material);
    }
    if (result == KH_OK) {
        kh_keeper_changed(keeper);
        result = kh_storework_give_infos(op, &info, 1);
    }
    return result;
}

static kh_result insert(kh_keeper *keeper, kh_op *op)
{
    return op->generated ? end_insert(keeper, op) : begin_insert(keeper, op);
}

/* Tells who has to know of keys that are used no more, before the change is acknowledged, also if it is with
 * an error that came after it. */
void kh_storework_changed(kh_keeper *keeper)
{
    bool dropped = keeper->keys_dropped;

    keeper->keys_dropped = false;
    kh_keeper_changed(keeper);
    if (dropped) {
        kh_keeper_settle(keeper);
    }
}

/* As kh_links_settle. */
static kh_result settle(kh_keeper *keeper, kh_op *op, kh_result result, bool clean)
{
    if (keeper->keys_dropped) {
        kh_storework_changed(keeper);
    }
    return kh_links_settle(keeper, op, result, clean);
}

static kh_result set_state(kh_keeper *keeper, kh_op *op)
{
    kh_key_info info, newest;
    kh_result result = KH_E_INVALID;

    if (!take_info(op, true, &info)) {
        return result;
    }
    result = kh_store_set_state(keeper->store, kh_storework_asker(op), info.name, info.version, info.state, &newest);
    if (result == KH_OK) {
        result = kh_storework_give_infos(op, &newest, 1);
    }
    return settle(keeper, op, result, false);
}

static kh_result recover_or_purge(kh_keeper *keeper, kh_op *op)
{
    kh_key_info info;
    kh_result result = KH_E_INVALID;

    if (!take_info(op, true, &info)) {
        return result;
    }
    if (op->record.op == KH_STORE_RECOVER) {
        return settle(keeper, op, kh_store_recover(keeper->store, info.name), false);
    }
    result = kh_store_purge(keeper->store, info.name, &keeper->links->places, (uint64_t)time(NULL));
    return settle(keeper, op, result, true);
}

/* ---- What is said of names ------------------------------------------------------------------------------ */

static kh_result policy(kh_keeper *keeper, kh_op *op)
{
    char name[KH_NAME_MAX + 1] = "";
    kh_name_policy found;
    kh_result result = KH_E_INVALID;
    uint8_t *out = kh_op_out(op, sizeof(found));

    if (op->record.data_len > KH_NAME_MAX || out == NULL) {
        return out == NULL ? KH_E_MEMORY : result;
    }
    memcpy(name, op->record.data, op->record.data_len);
    result = kh_store_policy(keeper->store, name, &found);
    memcpy(out, &found, sizeof(found));
    op->out_len = sizeof(found);
    return result;
}

static kh_result set(kh_keeper *keeper, kh_op *op)
{
    kh_key_change change;
    kh_key_info info;
    kh_result result = KH_E_INVALID;

    if (op->record.data_len != sizeof(change)) {
        return result;
    }
    memcpy(&change, op->record.data, sizeof(change));
    result = kh_store_set(keeper->store, &change, &info);
    if (result == KH_OK) {
        kh_rotate_soon(keeper->links);
        result = kh_storework_give_infos(op, &info, 1);
    }
    return settle(keeper, op, result, false);
}

static kh_result move(kh_keeper *keeper, kh_op *op)
{
    kh_key_info info;

    return take_info(op, true, &info) && kh_info_asked(&info) ? kh_make_move(keeper, op) : KH_E_INVALID;
}

static kh_result adopt(kh_keeper *keeper, kh_op *op)
{
    return op->record.data_len == sizeof(kh_key_adoption) ? kh_links_adopt(keeper, op) : KH_E_INVALID;
}

static kh_result change_kek(kh_keeper *keeper, kh_op *op)
{
    uint8_t recipes[2][KH_KEK_RECIPE_LEN];
    kh_kek_change change;
    size_t count = 0;
    kh_result result = KH_E_INVALID;

    switch (op->record.data_len) {
    case 0:
        if ((result = kh_store_kek_recipes(keeper->store, recipes, &count)) == KH_OK) {
            op->out_len = count * KH_KEK_RECIPE_LEN;
            memcpy(op->out, recipes, op->out_len);
        }
        break;
    case sizeof(change):
        memcpy(&change, op->record.data, sizeof(change));
        result = kh_store_kek_next(keeper->store, &change);
        OPENSSL_cleanse(&change, sizeof(change));
        break;
    case KH_KEK_LEN:
        result = kh_store_kek_end(keeper->store, op->record.data);
        break;
    default:
        break;
    }
    return result;
}

static kh_result repair(kh_keeper *keeper, kh_op *op)
{
    char name[KH_PLACE_MAX + 1] = "";
    const kh_keeper_pool *pool = NULL;

    if (op->record.data_len > KH_PLACE_MAX) {
        return KH_E_INVALID;
    }
    memcpy(name, op->record.data, op->record.data_len);
    pool = kh_links_pool(keeper, name);
    for (uint32_t i = 0; pool != NULL && i < pool->partition_count; i++) {
        keeper->links->tokens[pool->partitions[i]]->left_pool[0] = '\0'; /* one that left is asked to be back */
        kh_links_repair(keeper, keeper->links->tokens[pool->partitions[i]]);
    }
    return pool != NULL ? KH_OK : KH_E_NOT_FOUND;
}

static kh_result orders(kh_keeper *keeper, kh_op *op)
{
    uint8_t *out = kh_op_out(op, ORDERS_MAX * sizeof(kh_order));
    kh_order *list = calloc(ORDERS_MAX, sizeof(*list));
    size_t count = 0;
    uint64_t all = 0;
    kh_result result = out != NULL && list != NULL ? kh_store_orders(keeper->store, list, ORDERS_MAX, &count, &all) : KH_E_MEMORY;

    if (result == KH_OK && count > 0) {
        memcpy(out, list, count * sizeof(*list));
        op->out_len = count * sizeof(*list);
    }
    free(list);
    return result;
}

/* ---- Keys ---------------------------------------------------------------------------------------------- */

static kh_result load(kh_keeper *keeper, kh_op *op)
{
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX];
    size_t pkcs8_len = 0;
    kh_key_info info;
    kh_result result = KH_OK;

    op->key = kh_cache_get(keeper->cache, op->record.key_ref);
    if (op->key != NULL) {
        return KH_OK; /* loaded for another operation meanwhile */
    }
    result = kh_store_get(keeper->store, op->record.key_ref, &info, pkcs8, &pkcs8_len);
    if (result == KH_OK && info.state != 1) {
        result = info.state == 2 ? KH_E_DISABLED : KH_E_NOT_FOUND;
    }
    if (result == KH_OK && info.tier != KH_TIER_SOFTWARE) {
        /* Over the ring: it moved into a token, and the asker will find it there. */
        result = op->ring == NULL ? kh_links_sign(keeper, op, &info) : KH_E_UNAVAILABLE;
    }
    if (result == KH_OK) {
        result = kh_key_new(&info, pkcs8, pkcs8_len, &op->key);
    }
    if (result == KH_OK) {
        kh_cache_put(keeper->cache, op->key);
        pthread_mutex_lock(&keeper->lock);
        kh_keeper_publish(keeper);
        pthread_mutex_unlock(&keeper->lock);
    }
    OPENSSL_cleanse(pkcs8, sizeof(pkcs8));
    return result;
}

/* A private operation of a key of this process: handed to a worker when the key is there, or done here for root. KH_AGAIN: handed on.
 */
static kh_result use_key(kh_keeper *keeper, kh_op *op)
{
    kh_tier_op tier, *tiers[1] = {&tier};
    kh_result result = load(keeper, op);

    if (result != KH_OK) {
        return result;
    }
    if (op->ring != NULL) {
        kh_worker_hand(keeper, op);
        return KH_AGAIN;
    }
    result = kh_op_usage(op);
    if (result == KH_OK) {
        kh_op_to_tier(op, &tier);
        kh_software_batch(keeper->store_tier, tiers, 1);
        op->out_len = tier.out_len;
        result = tier.result;
    }
    return result;
}

/* ---- The thread ---------------------------------------------------------------------------------------- */

typedef kh_result (*store_fn)(kh_keeper *keeper, kh_op *op);

static const struct {
    store_fn run;
    kh_desk_class class_;
    bool awaits; /* a token that is not there yet */
} table[] = {
    [KH_STORE_SIGN] = {use_key, KH_DESK_QUICK},
    [KH_STORE_TLS_RSA_KX] = {use_key, KH_DESK_QUICK},
    [KH_STORE_DECRYPT] = {use_key, KH_DESK_QUICK},
    [KH_STORE_LOOKUP] = {lookup, KH_DESK_QUICK},
    [KH_STORE_LIST] = {list, KH_DESK_SLOW},
    [KH_STORE_IMPORT_KEY] = {import_key, KH_DESK_QUICK},
    [KH_STORE_CREATE] = {insert, KH_DESK_SLOW, true},
    [KH_STORE_IMPORT] = {insert, KH_DESK_SLOW, true},
    [KH_STORE_SET_STATE] = {set_state, KH_DESK_SLOW},
    [KH_STORE_RECOVER] = {recover_or_purge, KH_DESK_ADMIN},
    [KH_STORE_PURGE] = {recover_or_purge, KH_DESK_ADMIN},
    [KH_STORE_CERTIFY] = {use_key, KH_DESK_ADMIN, true},
    [KH_STORE_CHECK] = {kh_task_check, KH_DESK_ADMIN},
    [KH_STORE_BACKUP] = {kh_task_backup, KH_DESK_ADMIN},
    [KH_STORE_BACKED_UP] = {kh_task_backed_up, KH_DESK_ADMIN},
    [KH_STORE_EXPORT] = {kh_task_export, KH_DESK_ADMIN},
    [KH_STORE_IMPORT_ALL] = {kh_task_import, KH_DESK_ADMIN},
    [KH_STORE_POLICY] = {policy, KH_DESK_ADMIN},
    [KH_STORE_SET] = {set, KH_DESK_ADMIN},
    [KH_STORE_MOVE] = {move, KH_DESK_ADMIN, true},
    [KH_STORE_ADOPT] = {adopt, KH_DESK_ADMIN, true},
    [KH_STORE_REPAIR] = {repair, KH_DESK_ADMIN, false},
    [KH_STORE_KEK] = {change_kek, KH_DESK_ADMIN, false},
    [KH_STORE_ORDERS] = {orders, KH_DESK_ADMIN, false},
    [KH_STORE_LEAVE] = {kh_links_leave, KH_DESK_ADMIN, false},
};

static bool known(uint32_t op)
{
    return op < sizeof(table) / sizeof(table[0]) && table[op].run != NULL;
}

void kh_storework_submit(kh_keeper *keeper, kh_op *op)
{
    kh_desk_class class_ = KH_DESK_ADMIN;

    if (!known(op->record.op)) {
        kh_keeper_complete_one(keeper, op, KH_E_UNSUPPORTED);
        return;
    }
    if (op->ring != NULL) {
        class_ = table[op->record.op].class_;
    }
    if (!kh_desk_push(&keeper->store_desk, class_, op, limit(op, STORE_WAITING_MAX))) {
        kh_keeper_complete_one(keeper, op, KH_E_OVERLOADED);
    }
}

kh_op *kh_storework_own(uint32_t op_, const void *data, size_t len, void (*answered)(kh_keeper *keeper, kh_op *op))
{
    kh_op *op = calloc(1, sizeof(*op));

    if (op == NULL || (op->long_data = malloc(len)) == NULL) {
        free(op);
        return NULL;
    }
    memcpy(op->long_data, data, len);
    op->record.op = op_;
    op->record.data = op->long_data;
    op->record.data_len = (uint32_t)len;
    op->admin_fd = op->file_fd = -1;
    op->answered = answered;
    op->arrived_ns = kh_now_ns();
    return op;
}

void kh_storework_start(kh_keeper *keeper, kh_op *op)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->in_flight++;
    pthread_mutex_unlock(&keeper->lock);
    kh_storework_submit(keeper, op);
}

void kh_storework_finish(kh_keeper *keeper, kh_op *op, kh_result result, uint64_t busy_ns)
{
    const bool expired = result == KH_E_DEADLINE;
    const kh_lane_stats stats = {
        .operations = !expired, .expired = expired, .errors = !expired && result != KH_OK, .busy_ns = busy_ns};

    pthread_mutex_lock(&keeper->lock);
    keeper->stats.refused_usage += result == KH_E_USAGE;
    kh_keeper_count(keeper, KH_LANE_STORE, &stats);
    pthread_mutex_unlock(&keeper->lock);
    kh_keeper_complete_one(keeper, op, result);
}

void *kh_storework_main(void *arg)
{
    kh_keeper *keeper = arg;
    kh_op *op = NULL;

    while ((op = kh_desk_pop(&keeper->store_desk)) != NULL) {
        uint64_t started_ns = kh_now_ns();
        kh_result result = KH_E_DEADLINE;

        if (op->run != NULL) {
            op->run(keeper, op);
            ERR_clear_error();
            continue;
        }
        if (!kh_op_expired(op, started_ns)) {
            result = table[op->record.op].run(keeper, op);
            ERR_clear_error();
        }
        if (result == KH_E_UNAVAILABLE && table[op->record.op].awaits && kh_links_await(keeper, op)) {
            continue;
        }
        if (result != KH_AGAIN) { /* else it is not ours any more */
            kh_storework_finish(keeper, op, result, kh_now_ns() - started_ns);
        }
    }
    return NULL;
}

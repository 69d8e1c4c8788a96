/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said of a name: its tags, how often its key is made anew, how long a deleted one is kept; and the changes of a
 * key's validity. Sealed as the rows are: a seal of nothing, which protects all of the row.
 */
#include "process.h"
#include "store_sql.h"

#include <openssl/crypto.h>

#define AAD_MAX (16 + 2 + KH_NAME_MAX + 4 + 4 + 2 + KH_TAGS_MAX)
#define DAY_S UINT64_C(86400)

static size_t encode_aad(const kh_name_policy *policy, uint8_t aad[AAD_MAX])
{
    size_t name_len = strlen(policy->name), tags_len = strlen(policy->tags);
    uint8_t *at = kh_put_bytes(aad, "keyhold name 1\0", 16);

    at = kh_put_number(at, name_len, 2);
    at = kh_put_bytes(at, policy->name, name_len);
    at = kh_put_number(at, policy->rotate_days, 4);
    at = kh_put_number(at, policy->retain_days, 4);
    at = kh_put_number(at, tags_len, 2);
    at = kh_put_bytes(at, policy->tags, tags_len);
    return (size_t)(at - aad);
}

static bool take(sqlite3_stmt *st, kh_name_policy *policy)
{
    const char *tags = (const char *)sqlite3_column_text(st, 2);
    int64_t rotate = sqlite3_column_int64(st, 0), retain = sqlite3_column_int64(st, 1);
    size_t len = (size_t)sqlite3_column_bytes(st, 2);

    if (rotate < 0 || rotate > KH_DAYS_MAX || retain < 0 || retain > KH_DAYS_MAX || tags == NULL ||
        len > KH_TAGS_MAX || memchr(tags, '\0', len) != NULL || sqlite3_column_bytes(st, 3) != KH_SEAL_OVERHEAD) {
        return false;
    }
    policy->rotate_days = (uint32_t)rotate;
    policy->retain_days = (uint32_t)retain;
    memcpy(policy->tags, tags, len);
    return true;
}

kh_result kh_store_policy(kh_store *store, const char *name, kh_name_policy *policy)
{
    sqlite3_stmt *st = store->statement[ST_NAMED];
    uint8_t aad[AAD_MAX], nothing[1];
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    memset(policy, 0, sizeof(*policy));
    memcpy(policy->name, name, strnlen(name, KH_NAME_MAX));
    if (st == NULL) {
        return KH_OK; /* a store that is only read, of a version before there were any */
    }
    sqlite3_bind_text(st, 1, name, -1, SQLITE_STATIC);
    code = sqlite3_step(st);
    result = kh_store_error(store, code, "reading what is said of a name");
    if (result == KH_OK && code == SQLITE_ROW) {
        result = take(st, policy) ? kh_unseal(store->sealer, aad, encode_aad(policy, aad), sqlite3_column_blob(st, 3),
                                              KH_SEAL_OVERHEAD, nothing)
                                  : KH_E_DAMAGED;
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    if (result == KH_E_DAMAGED) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
                "store: what is said of the name \"%s\" (tags, rotation, retention) is damaged and not used: set it anew",
                name);
    }
    return result;
}

/* ---- Changes ------------------------------------------------------------------------------------------- */

static kh_result write_policy(kh_store *store, const kh_name_policy *policy)
{
    sqlite3_stmt *st = store->statement[ST_NAME];
    uint8_t aad[AAD_MAX], sealed[KH_SEAL_OVERHEAD];
    kh_result result = kh_seal(store->sealer, aad, encode_aad(policy, aad), aad, 0, sealed);

    if (result != KH_OK) {
        return result;
    }
    sqlite3_bind_text(st, 1, policy->name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 2, policy->rotate_days);
    sqlite3_bind_int64(st, 3, policy->retain_days);
    sqlite3_bind_text(st, 4, policy->tags, -1, SQLITE_STATIC);
    sqlite3_bind_blob(st, 5, sealed, sizeof(sealed), SQLITE_STATIC);
    return kh_store_run(store, ST_NAME, "writing what is said of a name");
}

/* Bytes of the printable character there (RFC 3629, section 4), of len bytes that are left; 0: it is none. */
static size_t printable(const unsigned char *at, size_t len)
{
    size_t more = at[0] < 0x80 ? 0 : at[0] >= 0xf0 ? 3 : at[0] >= 0xe0 ? 2 : 1;
    uint32_t code = more == 0 ? at[0] : at[0] & (0x3fU >> more);
    static const uint32_t least[] = {' ', 0xa0, 0x800, 0x10000}; /* no control characters, no overlong forms */

    if ((at[0] >= 0x80 && at[0] < 0xc0) || at[0] > 0xf4 || more >= len) {
        return 0;
    }
    for (size_t i = 1; i <= more; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0;
        }
        code = code << 6 | (at[i] & 0x3f);
    }
    return code >= least[more] && code != 0x7f && (code < 0xd800 || code > 0xdfff) && code <= 0x10ffff ? more + 1 : 0;
}

/* One "KEY=VALUE" without its newline; *key_len: of the key. */
static bool legal_tag(const char *tag, size_t len, size_t *key_len)
{
    const char *equals = memchr(tag, '=', len);

    *key_len = equals != NULL ? (size_t)(equals - tag) : 0;
    if (*key_len > KH_TAG_KEY_MAX || !kh_name_valid(tag, *key_len)) {
        return false;
    }
    for (size_t i = *key_len + 1, step = 0; i < len; i += step) {
        if ((step = printable((const unsigned char *)tag + i, len - i)) == 0) {
            return false;
        }
    }
    return true;
}

bool kh_tags_valid(const char *tags)
{
    for (const char *line = tags, *end = NULL; *line != '\0'; line = end + 1) {
        size_t key_len = 0;

        end = strchr(line, '\n');
        if (end == NULL || !legal_tag(line, (size_t)(end - line), &key_len)) {
            return false;
        }
    }
    return true;
}

/* Takes a tag out, if it is there. */
static void remove_tag(char *tags, const char *key, size_t key_len)
{
    for (char *line = tags, *end = NULL; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        if ((size_t)(end - line) > key_len && memcmp(line, key, key_len) == 0 && line[key_len] == '=') {
            memmove(line, end + 1, strlen(end + 1) + 1);
            return;
        }
    }
}

static kh_result change_tags(char tags[KH_TAGS_MAX + 1], const char *changes)
{
    if (!kh_tags_valid(changes)) {
        return KH_E_INVALID;
    }
    for (const char *line = changes, *end = NULL; *line != '\0'; line = end + 1) {
        size_t key_len = strcspn(line, "="), len = 0, before = 0;

        end = strchr(line, '\n');
        len = (size_t)(end - line) + 1;
        remove_tag(tags, line, key_len);
        before = strlen(tags);
        if (len == key_len + 2) {
            continue; /* "KEY=": removed */
        }
        if (before + len > KH_TAGS_MAX) {
            return KH_E_TOO_LARGE;
        }
        memcpy(tags + before, line, len);
        tags[before + len] = '\0';
    }
    return KH_OK;
}

static kh_result change_policy(kh_store *store, const kh_key_change *change)
{
    kh_name_policy policy;
    kh_result result = kh_store_policy(store, change->policy.name, &policy);

    if (result == KH_E_DAMAGED) { /* set anew; what is not said now is gone */
        memset(&policy, 0, sizeof(policy));
        memcpy(policy.name, change->policy.name, sizeof(policy.name));
        result = KH_OK;
    }
    if (result != KH_OK || (change->what & (KH_CHANGE_ROTATE | KH_CHANGE_RETAIN | KH_CHANGE_TAGS)) == 0) {
        return result;
    }
    if ((change->what & KH_CHANGE_RETAIN) != 0) {
        if (change->policy.retain_days < policy.retain_days) {
            return KH_E_FORBIDDEN;
        }
        policy.retain_days = change->policy.retain_days;
    }
    if ((change->what & KH_CHANGE_ROTATE) != 0) {
        policy.rotate_days = change->policy.rotate_days;
    }
    if ((change->what & KH_CHANGE_TAGS) != 0) {
        result = change_tags(policy.tags, change->policy.tags);
    }
    return result == KH_OK ? write_policy(store, &policy) : result;
}

static kh_result change_validity(kh_store *store, const kh_key_change *change, const kh_key_info *of, kh_key_info *info)
{
    kh_row row;
    kh_result result = kh_row_read(store, of->ref, of->name, strlen(of->name), &row);

    if (result != KH_OK) {
        return result;
    }
    row.info.not_before = (change->what & KH_CHANGE_NOT_BEFORE) != 0 ? change->not_before : row.info.not_before;
    row.info.expires = (change->what & KH_CHANGE_EXPIRES) != 0 ? change->expires : row.info.expires;
    if (!kh_info_possible(&row.info)) {
        result = KH_E_INVALID;
    } else if (row.info.state == STATE_DELETED) {
        result = KH_E_FORBIDDEN;
    } else {
        *info = row.info;
        result = kh_row_reseal(store, &row);
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return result;
}

/* Which version is meant; of the store itself none. */
static kh_result find_meant(kh_store *store, const kh_key_change *change, kh_key_info *info)
{
    const char *name = change->policy.name;
    size_t count = 0;

    if (name[0] == '\0') {
        return change->what == KH_CHANGE_RETAIN ? KH_OK : KH_E_INVALID;
    }
    if (change->version == 0) {
        return kh_store_newest(store, name, true, info);
    }
    return kh_store_find_name(store, name, strlen(name), change->version, info, 1, &count);
}

static bool legal(const kh_key_change *change)
{
    const kh_name_policy *policy = &change->policy;
    const char *end = memchr(policy->name, '\0', sizeof(policy->name));

    return end != NULL && (end == policy->name || kh_name_valid(policy->name, (size_t)(end - policy->name))) &&
           memchr(policy->tags, '\0', sizeof(policy->tags)) != NULL && change->what != 0 &&
           (change->what & ~KH_CHANGE_ALL) == 0 && policy->rotate_days <= KH_DAYS_MAX &&
           policy->retain_days <= KH_DAYS_MAX;
}

kh_result kh_store_set(kh_store *store, const kh_key_change *change, kh_key_info *info)
{
    const bool validity = (change->what & (KH_CHANGE_NOT_BEFORE | KH_CHANGE_EXPIRES)) != 0;
    kh_key_info meant = {0};
    kh_touched touched = {0};
    kh_result result = legal(change) ? find_meant(store, change, &meant) : KH_E_INVALID;

    *info = meant;
    if (result != KH_OK || (result = kh_store_tx_begin(store)) != KH_OK) {
        return result;
    }
    result = change_policy(store, change);
    if (result == KH_OK && validity) {
        result = change_validity(store, change, &meant, info);
    }
    result = kh_store_tx_end(store, result);
    if (result == KH_OK && validity) {
        touched.ref = meant.ref;
        touched.tier = meant.tier;
        memcpy(touched.place, meant.place, sizeof(touched.place));
        kh_store_tell(store, &touched, 1);
    }
    return result;
}

kh_result kh_store_next_named(kh_store *store, char *name)
{
    sqlite3_stmt *st = store->statement[ST_NEXT_NAME];
    kh_result result = KH_OK;
    int code = SQLITE_OK;

    sqlite3_bind_text(st, 1, name, -1, SQLITE_TRANSIENT);
    code = sqlite3_step(st);
    result = kh_store_error(store, code, "reading what is said of names");
    if (result == KH_OK && code != SQLITE_ROW) {
        result = KH_E_NOT_FOUND;
    } else if (result == KH_OK && (sqlite3_column_bytes(st, 0) > KH_NAME_MAX || sqlite3_column_text(st, 0) == NULL ||
                                   strcmp((const char *)sqlite3_column_text(st, 0), name) <= 0)) {
        result = KH_E_DAMAGED;
    }
    if (result == KH_OK) {
        strcpy(name, (const char *)sqlite3_column_text(st, 0));
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return result;
}

/* ---- For purges ---------------------------------------------------------------------------------------- */

kh_result kh_names_forget(kh_store *store, const char *name)
{
    sqlite3_bind_text(store->statement[ST_UNNAME], 1, name, -1, SQLITE_STATIC);
    return kh_store_run(store, ST_UNNAME, "forgetting a name");
}

/* What is damaged protects nothing: it would for ever. */
kh_result kh_names_retained(kh_store *store, const char *name, uint64_t deleted, uint64_t *until)
{
    kh_name_policy of_name, of_store;
    kh_result result = kh_store_policy(store, name, &of_name), of_all = kh_store_policy(store, "", &of_store);
    uint32_t days = result == KH_OK ? of_name.retain_days : 0;

    result = result == KH_E_DAMAGED ? KH_OK : result;
    result = result == KH_OK && of_all != KH_E_DAMAGED ? of_all : result;
    if (of_all == KH_OK && of_store.retain_days > days) {
        days = of_store.retain_days;
    }
    *until = days > 0 ? deleted + days * DAY_S : 0;
    return result;
}

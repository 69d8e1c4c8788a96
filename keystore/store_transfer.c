/* SPDX-License-Identifier: Apache-2.0 */
/* Export and import of a store's keys, in slices. See store_transfer.h. */
#include "store_transfer.h"
#include "store_sql.h"

#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef kh_result (*slice_fn)(kh_store_transfer *transfer, unsigned most);

struct kh_store_transfer {
    kh_store *store;
    slice_fn slice; /* what is done now: export, or one of the two passes of an import */
    kh_transfer *file;
    kh_store_report report;
    char why[KH_TRANSFER_WHY_MAX];
    /* of an export */
    const char *globs;
    size_t globs_len;
    kh_index_place at;
    /* of an import */
    kh_transfer_read_fn read;
    void *ctx;
    uint64_t len;
    uint8_t transfer_key[KH_SEAL_KEY_LEN];
    bool allow_purged;
};

static kh_result fail(kh_store_transfer *transfer, kh_result result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static kh_result fail(kh_store_transfer *transfer, kh_result result, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(transfer->why, sizeof(transfer->why), format, args);
    va_end(args);
    return result;
}

static kh_result new_transfer(kh_store *store, slice_fn slice, kh_store_transfer **out)
{
    *out = calloc(1, sizeof(**out));
    if (*out == NULL) {
        return KH_E_MEMORY;
    }
    (*out)->store = store;
    (*out)->slice = slice;
    return KH_OK;
}

kh_result kh_store_transfer_step(kh_store_transfer *transfer, unsigned most)
{
    return transfer->slice(transfer, most);
}

void kh_store_transfer_report(const kh_store_transfer *transfer, kh_store_report *report)
{
    *report = transfer->report;
}

const char *kh_store_transfer_why(const kh_store_transfer *transfer)
{
    return transfer->why;
}

void kh_store_transfer_free(kh_store_transfer *transfer)
{
    if (transfer != NULL) {
        kh_transfer_free(transfer->file);
        OPENSSL_cleanse(transfer->transfer_key, sizeof(transfer->transfer_key));
        free(transfer);
    }
}

/* ---- Export -------------------------------------------------------------------------------------------- */

static bool wanted(const kh_store_transfer *transfer, const char *name, size_t name_len)
{
    const char *glob = transfer->globs, *end = transfer->globs + transfer->globs_len;

    for (; glob < end; glob += strlen(glob) + 1) {
        if (kh_name_glob(glob, name, name_len)) {
            return true;
        }
    }
    return transfer->globs_len == 0;
}

static kh_result export_one(kh_store_transfer *transfer)
{
    const kh_index_place *at = &transfer->at;
    kh_row row;
    kh_result result = kh_index_next(transfer->store, &transfer->at);

    if (result == KH_E_DAMAGED) {
        return fail(transfer, result, "the index of names is damaged; restore the store from a backup");
    }
    if (result != KH_OK || !wanted(transfer, at->name, at->name_len)) {
        return result;
    }
    result = kh_row_read(transfer->store, at->ref, at->name, at->name_len, &row);
    if (result == KH_OK && row.info.version != at->version) {
        result = KH_E_DAMAGED;
    }
    if (result == KH_OK) {
        result = kh_transfer_put(transfer->file, &row);
        transfer->report.keys += result == KH_OK;
    } else if (result == KH_E_DAMAGED) {
        result = fail(transfer, result, "%.*s/%lld is damaged; purge it, or restore the store from a backup",
                      (int)at->name_len, at->name, (long long)at->version);
    }
    OPENSSL_cleanse(&row, sizeof(row));
    return result;
}

static kh_result export_slice(kh_store_transfer *transfer, unsigned most)
{
    kh_result result = KH_OK;

    for (unsigned i = 0; result == KH_OK && i < most; i++) {
        result = export_one(transfer);
    }
    if (result == KH_E_NOT_FOUND) {
        return kh_transfer_put_end(transfer->file);
    }
    return result == KH_OK ? KH_AGAIN : result;
}

kh_result kh_store_export_new(kh_store *store, const char *globs, size_t len, kh_transfer_write_fn write,
                              void *ctx, kh_store_transfer **out)
{
    kh_transfer_header header = {.created = (uint64_t)time(NULL)};
    kh_store_transfer *transfer = NULL;
    kh_result result = KH_E_INVALID;

    *out = NULL;
    if (len > 0 && globs[len - 1] != '\0') {
        return result;
    }
    memcpy(header.kek, store->kek_params, sizeof(header.kek));
    memcpy(header.store_id, store->id, sizeof(header.store_id));
    result = new_transfer(store, export_slice, &transfer);
    if (result == KH_OK) {
        transfer->globs = globs;
        transfer->globs_len = len;
        result = kh_transfer_new_writer(write, ctx, &header, store->transfer_key, &transfer->file);
    }
    if (result == KH_OK) {
        *out = transfer;
        transfer = NULL;
    }
    kh_store_transfer_free(transfer);
    return result;
}

/* ---- Import: may it come? ------------------------------------------------------------------------------ */

/* The same version of that name. KH_AGAIN: it is there, the same. KH_OK: there is none. */
static kh_result compare_version(kh_store_transfer *transfer, const kh_row *row)
{
    sqlite3_stmt *st = transfer->store->statement[ST_BY_VERSION];
    const kh_key_info *info = &row->info;
    kh_row here;
    uint64_t ref = 0;
    int code = SQLITE_OK;
    kh_result result = KH_OK;

    sqlite3_bind_text(st, 1, info->name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 2, info->version);
    code = sqlite3_step(st);
    result = kh_store_error(transfer->store, code, "searching");
    ref = code == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(st, 0) : 0;
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    if (result != KH_OK || ref == 0) {
        return result;
    }
    result = kh_row_read(transfer->store, ref, info->name, strlen(info->name), &here);
    if (result == KH_E_DAMAGED) {
        return fail(transfer, result, "%s/%u is here, but damaged; see keyholdctl store fsck", info->name,
                    info->version);
    }
    if (result == KH_OK) {
        result = memcmp(here.info.id, info->id, KH_KEY_ID_LEN) == 0 && here.info.usage == info->usage
                     ? KH_AGAIN
                     : fail(transfer, KH_E_EXISTS,
                            "%s/%u is here already with another key or usage; purge the one that is wrong, "
                            "or leave it out "
                            "of the export (--keys)",
                            info->name, info->version);
    }
    OPENSSL_cleanse(&here, sizeof(here));
    return result;
}

/* All versions of a name have one usage for ever. */
static kh_result compare_usage(kh_store_transfer *transfer, const kh_row *row)
{
    const kh_key_info *info = &row->info;
    uint64_t *refs = NULL;
    size_t count = 0;
    kh_row here;
    kh_result result = kh_store_refs_of_name(transfer->store, info->name, strlen(info->name), &refs, &count);

    if (result != KH_OK) {
        return result == KH_E_NOT_FOUND ? KH_OK : result;
    }
    result = kh_row_read(transfer->store, refs[0], info->name, strlen(info->name), &here);
    if (result == KH_E_DAMAGED) {
        fail(transfer, result, "a version of %s that is here is damaged; see keyholdctl store fsck",
             info->name);
    } else if (result == KH_OK && here.info.usage != info->usage) {
        result = fail(transfer, KH_E_INVALID,
                      "%s is here for another usage, and all versions of a name have one; leave it out of "
                      "the export (--keys)",
                      info->name);
    }
    OPENSSL_cleanse(&here, sizeof(here));
    free(refs);
    return result;
}

/* KH_OK: it may come. KH_AGAIN: it is there. */
static kh_result judge(kh_store_transfer *transfer, const kh_row *row)
{
    kh_result result = compare_version(transfer, row);

    if (result == KH_OK) {
        result = compare_usage(transfer, row);
    }
    if (result == KH_OK && !transfer->allow_purged) {
        result = kh_store_never_purged(transfer->store, row->info.id);
        if (result == KH_E_FORBIDDEN) {
            fail(transfer, result,
                 "%s/%u is a key that was purged here; leave it out of the export (--keys), or bring it back "
                 "with --allow-purged",
                 row->info.name, row->info.version);
        }
    }
    return result;
}

/* ---- Import: two passes -------------------------------------------------------------------------------- */

static kh_result store_slice(kh_store_transfer *transfer, unsigned most);

/* Begins to read the file, anew for each pass. */
static kh_result open_file(kh_store_transfer *transfer)
{
    kh_result result = KH_OK;

    kh_transfer_free(transfer->file);
    result = kh_transfer_new_reader(transfer->read, transfer->ctx, transfer->len, transfer->transfer_key,
                                    &transfer->file);
    switch (result) {
    case KH_E_MALFORMED:
        return fail(transfer, result, "it is no export of a store");
    case KH_E_VERSION:
        return fail(transfer, result,
                    "it is an export of a newer Keyhold than this agent's; update the agent first");
    case KH_E_PASSPHRASE:
        return fail(transfer, result,
                    "it is sealed under another key-encryption key than the store's; give the one that it "
                    "was made with "
                    "(--kek-file or --passphrase-file)");
    case KH_E_DAMAGED:
        return fail(transfer, result, "it is damaged or cut in its header; export again");
    default:
        return result;
    }
}

static kh_result next_entry(kh_store_transfer *transfer, kh_row *row)
{
    kh_result result = kh_transfer_next(transfer->file, row);

    if (result == KH_E_DAMAGED) {
        fail(transfer, result, "it is damaged or cut after %llu keys; export again",
             (unsigned long long)kh_transfer_count(transfer->file));
    }
    return result;
}

static kh_result check_slice(kh_store_transfer *transfer, unsigned most)
{
    kh_row row;
    kh_result result = transfer->file == NULL ? open_file(transfer) : KH_OK;

    for (unsigned i = 0; result == KH_OK && i < most; i++) {
        result = next_entry(transfer, &row);
        if (result == KH_OK) {
            result = kh_row_sound(&row);
            if (result == KH_E_DAMAGED) {
                fail(transfer, result, "%s/%u has a private key that does not belong to its public key",
                     row.info.name, row.info.version);
            }
        }
        if (result == KH_OK) {
            result = judge(transfer, &row);
            result = result == KH_AGAIN ? KH_OK : result;
        }
    }
    OPENSSL_cleanse(&row, sizeof(row));
    if (result == KH_E_NOT_FOUND) {
        transfer->slice = store_slice;
        result = open_file(transfer);
    }
    return result == KH_OK ? KH_AGAIN : result;
}

static kh_result store_one(kh_store_transfer *transfer, kh_row *row, kh_store_report *slice)
{
    kh_result result = next_entry(transfer, row);

    if (result != KH_OK) {
        return result;
    }
    slice->keys++;
    result = judge(transfer, row);
    if (result == KH_AGAIN) {
        slice->present++;
        return KH_OK;
    }
    if (result == KH_OK) {
        result = kh_store_next_ref(transfer->store, &row->info.ref);
    }
    if (kh_row_in_token(row)) {
        row->policy |= KH_POLICY_ADOPTED; /* another store may have it too: it is not destroyed from here */
    }
    if (result == KH_OK) {
        result = kh_row_insert(transfer->store, row);
    }
    if (result == KH_OK) {
        result = kh_intents_fulfilled(transfer->store, row); /* an object that was to be destroyed is a key's again */
    }
    slice->stored += result == KH_OK;
    return result;
}

/* What the slice did counts when it is on the disk. */
static kh_result store_slice(kh_store_transfer *transfer, unsigned most)
{
    kh_store_report slice = {0};
    kh_row row;
    kh_result result = kh_store_tx_begin(transfer->store), ended = KH_OK;

    if (result != KH_OK) {
        return result;
    }
    for (unsigned i = 0; result == KH_OK && i < most; i++) {
        result = store_one(transfer, &row, &slice);
    }
    OPENSSL_cleanse(&row, sizeof(row));
    ended = kh_store_tx_end(transfer->store, result == KH_E_NOT_FOUND ? KH_OK : result);
    if (ended != KH_OK) {
        return ended;
    }
    transfer->store->changes += slice.stored;
    transfer->report.keys += slice.keys;
    transfer->report.stored += slice.stored;
    transfer->report.present += slice.present;
    return result == KH_OK ? KH_AGAIN : KH_OK;
}

kh_result kh_store_import_new(kh_store *store, kh_transfer_read_fn read, void *ctx, uint64_t len,
                              const uint8_t *transfer_key, bool allow_purged, kh_store_transfer **out)
{
    kh_result result = new_transfer(store, check_slice, out);

    if (result != KH_OK) {
        return result;
    }
    (*out)->read = read;
    (*out)->ctx = ctx;
    (*out)->len = len;
    (*out)->allow_purged = allow_purged;
    memcpy((*out)->transfer_key, transfer_key != NULL ? transfer_key : store->transfer_key, KH_SEAL_KEY_LEN);
    return KH_OK;
}

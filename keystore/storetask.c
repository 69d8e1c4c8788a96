/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What takes long with the store: check, backup, export, import. Each is done in slices of about a
 * millisecond on the store's thread; between them everybody else is served, and signing does not notice. All
 * come over the admin socket.
 */
#include "keeper.h"
#include "process.h"
#include "store_copy.h"
#include "store_transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHECK_ROWS 16
#define COPY_PAGES 64
#define TRANSFER_KEYS 16
#define TELL_NS UINT64_C(1000000000) /* between two signs of life */

/* After a slice: it lines up again behind all who waited. */
static kh_result again(kh_keeper *keeper, kh_op *op)
{
    uint64_t now_ns = kh_now_ns();

    if (kh_admin_gone(op->admin_fd)) {
        return KH_E_CANCELLED;
    }
    if (now_ns - op->told_ns >= TELL_NS) {
        op->told_ns = now_ns;
        (void)kh_admin_part(op->admin_fd, NULL, 0);
    }
    if (kh_keeper_closed(keeper) || !kh_desk_push(&keeper->store_desk, KH_DESK_SLOW, op, UINT32_MAX)) {
        return KH_E_UNAVAILABLE;
    }
    return KH_AGAIN;
}

static kh_result give_report(kh_op *op, const kh_store_report *report)
{
    memcpy(op->out, report, sizeof(*report));
    op->out_len = sizeof(*report);
    return KH_OK;
}

/* ---- Check --------------------------------------------------------------------------------------------- */

kh_result kh_task_check(kh_keeper *keeper, kh_op *op)
{
    uint8_t *out = kh_op_out(op, KH_RECORD_DATA_MAX);
    kh_result result = KH_OK;

    if (op->task == NULL) {
        op->task = calloc(1, sizeof(kh_store_checking));
        op->task_free = free;
    }
    if (out == NULL || op->task == NULL) {
        return KH_E_MEMORY;
    }
    result =
        kh_store_check(keeper->store, op->task, CHECK_ROWS, (char *)out, KH_RECORD_DATA_MAX, &op->out_len);
    if (result == KH_AGAIN) {
        return again(keeper, op);
    }
    op->out_len = result == KH_OK ? op->out_len : 0;
    return result;
}

/* ---- The file that came along -------------------------------------------------------------------------- */

/* A regular file that can be used so; to be written: empty. *len: its length. */
static bool fit_file(const kh_op *op, bool to_write, uint64_t *len)
{
    struct stat st;
    int flags = op->file_fd >= 0 ? fcntl(op->file_fd, F_GETFL) : -1;
    int mode = flags & O_ACCMODE;

    if (flags < 0 || fstat(op->file_fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return false;
    }
    *len = (uint64_t)st.st_size;
    return to_write ? mode == O_RDWR && (flags & O_APPEND) == 0 && st.st_size == 0 : mode != O_WRONLY;
}

static bool read_file(void *op, uint64_t at, uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = pread(((kh_op *)op)->file_fd, data, len, (off_t)at);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return true;
}

static bool write_file(void *op, uint64_t at, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = pwrite(((kh_op *)op)->file_fd, data, len, (off_t)at);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return true;
}

/* ---- Backup -------------------------------------------------------------------------------------------- */

static void free_copy(void *copy)
{
    kh_store_copy_free(copy);
}

static kh_result begin_copy(kh_keeper *keeper, kh_op *op)
{
    char name[24];
    uint64_t len = 0;
    kh_store_copy *copy = NULL;
    kh_result result = KH_E_INVALID;

    if (!fit_file(op, true, &len)) {
        return result;
    }
    snprintf(name, sizeof(name), "fd:%d", op->file_fd);
    result = kh_store_copy_new(keeper->store, name, KH_FDVFS, &copy);
    op->task = copy;
    op->task_free = free_copy;
    return result;
}

kh_result kh_task_backup(kh_keeper *keeper, kh_op *op)
{
    kh_store_report report = {0};
    kh_result result = op->task == NULL ? begin_copy(keeper, op) : KH_OK;

    if (result == KH_OK) {
        result = kh_store_copy_step(op->task, COPY_PAGES);
    }
    if (result == KH_AGAIN) {
        return again(keeper, op);
    }
    if (result == KH_OK) {
        result = kh_store_count(keeper->store, &report.keys);
    }
    return result == KH_OK ? give_report(op, &report) : result;
}

void kh_task_show_store(kh_keeper *keeper)
{
    uint64_t last_backup = kh_store_last_backup(keeper->store);

    pthread_mutex_lock(&keeper->lock);
    keeper->stats.last_backup = last_backup;
    memcpy(keeper->stats.store_id, kh_store_id(keeper->store), KH_STORE_ID_LEN);
    kh_keeper_publish(keeper);
    pthread_mutex_unlock(&keeper->lock);
}

kh_result kh_task_backed_up(kh_keeper *keeper, kh_op *op)
{
    kh_result result = kh_store_note_backup(keeper->store, (uint64_t)time(NULL));

    (void)op;
    kh_task_show_store(keeper);
    return result;
}

/* ---- Export and import --------------------------------------------------------------------------------- */

static void free_transfer(void *transfer)
{
    kh_store_transfer_free(transfer);
}

/* Done, or not: what was counted, or why not. */
static kh_result end_transfer(kh_op *op, kh_result result)
{
    const char *why = kh_store_transfer_why(op->task);
    kh_store_report report;

    kh_store_transfer_report(op->task, &report);
    if (result == KH_OK) {
        return give_report(op, &report);
    }
    op->out_len = (size_t)snprintf((char *)op->out, sizeof(op->out), "%s", why);
    if (report.stored > 0) {
        op->out_len += (size_t)snprintf((char *)op->out + op->out_len, sizeof(op->out) - op->out_len,
                                        "%s%llu keys were stored before that, and stay",
                                        op->out_len > 0 ? "; " : "", (unsigned long long)report.stored);
    }
    return result;
}

_Static_assert(KH_TRANSFER_WHY_MAX + 80 <= KH_SIGNATURE_MAX, "the reason fits an operation's own buffer");

kh_result kh_task_export(kh_keeper *keeper, kh_op *op)
{
    kh_store_transfer *transfer = op->task;
    uint64_t len = 0;
    kh_result result = KH_OK;

    if (transfer == NULL) {
        result = fit_file(op, true, &len)
                     ? kh_store_export_new(keeper->store, (const char *)op->record.data, op->record.data_len,
                                           write_file, op, &transfer)
                     : KH_E_INVALID;
        op->task = transfer;
        op->task_free = free_transfer;
    }
    if (result != KH_OK) {
        return result;
    }
    result = kh_store_transfer_step(transfer, TRANSFER_KEYS);
    return result == KH_AGAIN ? again(keeper, op) : end_transfer(op, result);
}

static kh_result begin_import(kh_keeper *keeper, kh_op *op)
{
    const bool own_key = op->record.data_len == 0;
    uint64_t len = 0;
    kh_store_transfer *transfer = NULL;
    kh_result result = KH_E_INVALID;

    if ((own_key || op->record.data_len == KH_SEAL_KEY_LEN) && (op->record.flags & ~KH_IMPORT_PURGED) == 0 &&
        fit_file(op, false, &len)) {
        result = kh_store_import_new(keeper->store, read_file, op, len, own_key ? NULL : op->record.data,
                                     (op->record.flags & KH_IMPORT_PURGED) != 0, &transfer);
    }
    op->task = transfer;
    op->task_free = free_transfer;
    return result;
}

/* Fronts look again for keys that they did not find: once for all that an import stored, and before it is
 * said. */
kh_result kh_task_import(kh_keeper *keeper, kh_op *op)
{
    kh_store_report report;
    kh_result result = op->task == NULL ? begin_import(keeper, op) : KH_OK;

    if (result != KH_OK) {
        return result;
    }
    result = kh_store_transfer_step(op->task, TRANSFER_KEYS);
    kh_store_transfer_report(op->task, &report);
    if (result == KH_AGAIN) {
        result = again(keeper, op);
        if (result == KH_AGAIN) {
            return result; /* it is no longer ours */
        }
    }
    if (report.stored > 0) {
        kh_keeper_changed(keeper);
    }
    return end_transfer(op, result);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite on one descriptor that somebody else has opened: the confined keeper opens no path, so who wants a
 * backup hands it the file. No locks and no syncs: the file is new, and who opened it syncs and closes it.
 */
#include "store_copy.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct fd_file {
    sqlite3_file base;
    int fd;
} fd_file;

static int close_nothing(sqlite3_file *file)
{
    (void)file;
    return SQLITE_OK;
}

static int read_at(sqlite3_file *file, void *data, int len, sqlite3_int64 offset)
{
    ssize_t n = 0;

    do {
        n = pread(((fd_file *)file)->fd, data, (size_t)len, offset);
    } while (n < 0 && errno == EINTR);
    if (n == len) {
        return SQLITE_OK;
    }
    if (n < 0) {
        return SQLITE_IOERR_READ;
    }
    memset((uint8_t *)data + n, 0, (size_t)(len - n));
    return SQLITE_IOERR_SHORT_READ;
}

static int write_at(sqlite3_file *file, const void *data, int len, sqlite3_int64 offset)
{
    const uint8_t *at = data;

    while (len > 0) {
        ssize_t n = pwrite(((fd_file *)file)->fd, at, (size_t)len, offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 || errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? SQLITE_FULL
                                                                                  : SQLITE_IOERR_WRITE;
        }
        at += n;
        len -= (int)n;
        offset += n;
    }
    return SQLITE_OK;
}

static int truncate_to(sqlite3_file *file, sqlite3_int64 size)
{
    return ftruncate(((fd_file *)file)->fd, size) == 0 ? SQLITE_OK : SQLITE_IOERR_TRUNCATE;
}

static int sync_nothing(sqlite3_file *file, int flags)
{
    (void)file;
    (void)flags;
    return SQLITE_OK;
}

static int size_of(sqlite3_file *file, sqlite3_int64 *size)
{
    struct stat st;

    if (fstat(((fd_file *)file)->fd, &st) != 0) {
        return SQLITE_IOERR_FSTAT;
    }
    *size = st.st_size;
    return SQLITE_OK;
}

static int lock_nothing(sqlite3_file *file, int level)
{
    (void)file;
    (void)level;
    return SQLITE_OK;
}

static int not_reserved(sqlite3_file *file, int *reserved)
{
    (void)file;
    *reserved = 0;
    return SQLITE_OK;
}

static int no_control(sqlite3_file *file, int op, void *arg)
{
    (void)file;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static int sector_size(sqlite3_file *file)
{
    (void)file;
    return 4096;
}

static int characteristics(sqlite3_file *file)
{
    (void)file;
    return 0;
}

static const sqlite3_io_methods methods = {
    .iVersion = 1,
    .xClose = close_nothing,
    .xRead = read_at,
    .xWrite = write_at,
    .xTruncate = truncate_to,
    .xSync = sync_nothing,
    .xFileSize = size_of,
    .xLock = lock_nothing,
    .xUnlock = lock_nothing,
    .xCheckReservedLock = not_reserved,
    .xFileControl = no_control,
    .xSectorSize = sector_size,
    .xDeviceCharacteristics = characteristics,
};

/* Only "fd:N", and only as a database: there is no journal that could be opened. */
static int open_fd(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *file, int flags, int *out_flags)
{
    fd_file *opened = (fd_file *)file;
    char *end = NULL;
    long fd = -1;

    (void)vfs;
    opened->base.pMethods = NULL;
    if (name == NULL || strncmp(name, "fd:", 3) != 0 || (flags & SQLITE_OPEN_MAIN_DB) == 0) {
        return SQLITE_CANTOPEN;
    }
    fd = strtol(name + 3, &end, 10);
    if (*end != '\0' || fd < 0) {
        return SQLITE_CANTOPEN;
    }
    opened->fd = (int)fd;
    opened->base.pMethods = &methods;
    if (out_flags != NULL) {
        *out_flags = flags;
    }
    return SQLITE_OK;
}

static int delete_nothing(sqlite3_vfs *vfs, const char *name, int sync)
{
    (void)vfs;
    (void)name;
    (void)sync;
    return SQLITE_OK;
}

static int nothing_there(sqlite3_vfs *vfs, const char *name, int flags, int *result)
{
    (void)vfs;
    (void)name;
    (void)flags;
    *result = 0;
    return SQLITE_OK;
}

static int same_name(sqlite3_vfs *vfs, const char *name, int len, char *out)
{
    (void)vfs;
    return sqlite3_snprintf(len, out, "%s", name) != NULL ? SQLITE_OK : SQLITE_CANTOPEN;
}

kh_result kh_fdvfs_register(void)
{
    static sqlite3_vfs vfs;
    const sqlite3_vfs *system = sqlite3_vfs_find(NULL);

    if (sqlite3_vfs_find(KH_FDVFS) != NULL) {
        return KH_OK;
    }
    if (system == NULL) {
        return KH_E_INTERNAL;
    }
    vfs = *system; /* time and randomness are the system's */
    vfs.szOsFile = sizeof(fd_file);
    vfs.pNext = NULL;
    vfs.zName = KH_FDVFS;
    vfs.xOpen = open_fd;
    vfs.xDelete = delete_nothing;
    vfs.xAccess = nothing_there;
    vfs.xFullPathname = same_name;
    return sqlite3_vfs_register(&vfs, 0) == SQLITE_OK ? KH_OK : KH_E_MEMORY;
}

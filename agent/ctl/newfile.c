/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are put in place when they are complete. See newfile.h. */
#include "newfile.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

/* What an interrupt removes. keyholdctl makes one such file at a time. */
static char *volatile unfinished;

static void remove_unfinished(int number)
{
    if (unfinished != NULL) {
        (void)unlink(unfinished);
    }
    _exit(128 + number);
}

/* Made and noted in one go: an interrupt comes before or after. */
static int make_partial(char *partial)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    sigset_t set, before;
    int fd = -1;

    (void)sigemptyset(&set);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        (void)sigaddset(&set, numbers[i]);
        (void)signal(numbers[i], remove_unfinished);
    }
    (void)sigprocmask(SIG_BLOCK, &set, &before);
    fd = mkostemp(partial, O_CLOEXEC); /* mode 0600 */
    unfinished = fd >= 0 ? partial : NULL;
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    return fd;
}

static bool on_network(int fd)
{
    static const unsigned long types[] = {
        0x6969 /* NFS */,      0x517b /* SMB */,      0xff534d42 /* CIFS */,
        0xfe534d42 /* SMB2 */, 0x00c36400 /* Ceph */, 0x5346414f /* AFS */,
    };
    struct statfs status;

    for (size_t i = 0; fstatfs(fd, &status) == 0 && i < sizeof(types) / sizeof(types[0]); i++) {
        if ((unsigned long)status.f_type == types[i]) {
            return true;
        }
    }
    return false;
}

/* What is there already may be replaced if it is an earlier one. */
static kh_result may_replace(const char *path, kh_file_kind kind, ctl_error *error)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    kh_file_kind found = KH_FILE_OTHER;

    if (fd < 0 && errno == ENOENT) {
        return KH_OK;
    }
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) {
        found = kh_file_kind_of(fd);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (found == kind || found == KH_FILE_EMPTY) {
        return KH_OK;
    }
    return ctl_fail(error, KH_E_EXISTS, "%s is there already and is no earlier %s; choose another name", path,
                    kind == KH_FILE_STORE ? "backup" : "export");
}

kh_result ctl_newfile_open(const char *path, kh_file_kind kind, ctl_newfile *file, ctl_error *error)
{
    kh_result result = may_replace(path, kind, error);

    file->fd = -1;
    file->partial = NULL;
    file->path = strdup(path);
    if (result != KH_OK) {
        goto done;
    }
    if (file->path == NULL || asprintf(&file->partial, "%s.partial-XXXXXX", path) < 0) {
        file->partial = NULL;
        result = ctl_fail(error, KH_E_MEMORY, "cannot make %s: out of memory", path);
        goto done;
    }
    file->fd = make_partial(file->partial);
    if (file->fd < 0) {
        free(file->partial);
        file->partial = NULL;
        result = ctl_fail(error, KH_E_IO, "cannot make %s: %s; check its directory", path, strerror(errno));
        goto done;
    }
    if (on_network(file->fd)) {
        result = ctl_fail(
            error, KH_E_UNSUPPORTED,
            "%s is on a network file system, which could keep the agent waiting; make it on a local one and "
            "copy it there",
            path);
    }
done:
    if (result != KH_OK) {
        ctl_newfile_abandon(file);
    }
    return result;
}

bool ctl_sync_directory_of(const char *path)
{
    char *copy = strdup(path);
    int fd = copy != NULL ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool synced = fd >= 0 && fsync(fd) == 0;

    if (fd >= 0) {
        close(fd);
    }
    free(copy);
    return synced;
}

kh_result ctl_newfile_commit(ctl_newfile *file, ctl_error *error)
{
    kh_result result = KH_OK;

    if (fsync(file->fd) != 0 || rename(file->partial, file->path) != 0) {
        result = ctl_fail(error, KH_E_IO, "cannot put %s in place: %s; what was there before stays",
                          file->path, strerror(errno));
    } else {
        unfinished = NULL;
        free(file->partial);
        file->partial = NULL;
        if (!ctl_sync_directory_of(file->path)) {
            result = ctl_fail(error, KH_E_IO,
                              "%s is in place, but its directory cannot be synced: %s; do it again",
                              file->path, strerror(errno));
        }
    }
    ctl_newfile_abandon(file);
    return result;
}

void ctl_newfile_abandon(ctl_newfile *file)
{
    if (file->partial != NULL) {
        (void)unlink(file->partial);
        unfinished = NULL;
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file->partial);
    free(file->path);
    file->path = file->partial = NULL;
    file->fd = -1;
}

bool ctl_newfile_full(const ctl_newfile *file)
{
    struct statvfs status;

    return file->fd >= 0 && fstatvfs(file->fd, &status) == 0 && status.f_bavail < 64;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that is made beside its place, and put there when it is complete: until then what was there before
 * stays, and so it does for ever when this fails or is interrupted.
 */
#ifndef KEYHOLD_CTL_NEWFILE_H
#define KEYHOLD_CTL_NEWFILE_H

#include "ctl.h"

#include <keyhold/storefile.h>

typedef struct ctl_newfile {
    char *path, *partial;
    int fd;
} ctl_newfile;

/*
 * Mode 0600, empty, open for reading and writing. Refuses to replace what is not a file of that kind, and a
 * network file system, which could keep the keeper waiting. End with commit or abandon.
 */
KH_MUST_USE kh_result ctl_newfile_open(const char *path, kh_file_kind kind, ctl_newfile *file,
                                       ctl_error *error);
/* On the disk and in its place. */
KH_MUST_USE kh_result ctl_newfile_commit(ctl_newfile *file, ctl_error *error);
/* Removes what there is of it. Fine after commit and for a zero-initialised one with fd -1. */
void ctl_newfile_abandon(ctl_newfile *file);
/* After a write failed: whether there is no room. */
bool ctl_newfile_full(const ctl_newfile *file);
/* Syncs the directory that a path lies in. */
bool ctl_sync_directory_of(const char *path);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the store commands share. */
#ifndef KEYHOLD_CTL_STORE_H
#define KEYHOLD_CTL_STORE_H

#include "agent.h"
#include "newfile.h"

/* Lets the agent write into the file; what: for the error. *report: what it did. */
KH_MUST_USE kh_result store_fill_file(ctl_run *ctl, ctl_agent *agent, const kh_record *record,
                                      const ctl_newfile *file, const char *what, kh_store_report *report);
/* A backup of the agent's store into a new file. */
KH_MUST_USE kh_result store_backup_into(ctl_run *ctl, ctl_agent *agent, const ctl_newfile *file,
                                        kh_store_report *report);

/* An export of the keys with these names into a new file; globs as KH_STORE_EXPORT wants them. Prints what it did. */
KH_MUST_USE kh_result store_export_to(ctl_run *ctl, const char *path, const char *globs, size_t len);

#define STORE_FINDING_MAX 256
/* A kh_finding_fn that keeps the first one in a text of that size, which began empty. */
void store_keep_first(void *text, const char *finding);

#endif

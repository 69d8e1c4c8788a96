/* SPDX-License-Identifier: Apache-2.0 */
/* Where keyholdctl init puts things, for whom, and the configuration that says so. */
#ifndef KEYHOLD_CTL_LAYOUT_H
#define KEYHOLD_CTL_LAYOUT_H

#include "ctl.h"

#include "../config.h"

/* All paths absolute, from malloc; free with layout_free. Zero-initialise. */
typedef struct layout {
    char *config_dir, *store_dir, *run_dir;
    char *config, *kek, *pin, *token, *store, *agent_socket, *admin_socket;
    char *passphrase_file;                /* NULL: a KEK file; "-": ask; else a path */
    bool single;                          /* --dir: everything in one directory */
    bool privileged;                      /* run by root: the agent's processes get users of their own */
    const char *front_user, *keeper_user; /* as the configuration says them; NULL when not privileged */
    kh_user front, keeper;
} layout;

/* From the options of init. Error set: a user that does not exist, not root without --dir, out of memory. */
KH_MUST_USE kh_result layout_from_args(ctl_run *ctl, layout *at);
void layout_free(layout *at);
/* That the agent's users can get to their directories: each directory above lets others through. Error set.
 */
KH_MUST_USE kh_result layout_check_parents(const layout *at, ctl_error *error);
/* keyhold.conf, from malloc; NULL: out of memory. */
char *layout_config_text(const layout *at);

#endif

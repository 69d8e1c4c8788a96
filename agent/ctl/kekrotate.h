/* SPDX-License-Identifier: Apache-2.0 */
/* What changing a key file and changing a passphrase have in common. */
#ifndef KEYHOLD_CTL_KEKROTATE_H
#define KEYHOLD_CTL_KEKROTATE_H

#include "agent.h"

#define KEK_PATH_LEN 4096

/* How errors begin. */
extern const char kek_what[];

/* A file that another one takes the place of. */
typedef struct kek_place {
    const char *path;        /* the configuration's */
    char next[KEK_PATH_LEN]; /* where the next one is made */
    char old[KEK_PATH_LEN];  /* where the one before is kept */
} kek_place;

/* KH_E_TOO_LARGE, with an error set. path: as long as the place. */
KH_MUST_USE kh_result kek_place_name(ctl_run *ctl, const char *path, kek_place *place);
/*
 * The one before stays under its other name, the next one takes its place, and belongs to whom that belonged. Whatever the result,
 * there is one of the two at the path. KH_E_IO, with an error set.
 */
KH_MUST_USE kh_result kek_place_put(ctl_run *ctl, kek_place *place);

/* Tells the agent's store (KH_STORE_KEK): a kh_kek_change, or the only KEK from now on. */
KH_MUST_USE kh_result kek_tell(ctl_agent *agent, const void *data, size_t len);

/* kekphrase.c: the rest of the command for a store that is sealed under a passphrase. */
KH_MUST_USE kh_result kek_rotate_passphrase(ctl_run *ctl, const kh_config *config, ctl_agent *agent);

#endif

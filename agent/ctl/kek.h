/* SPDX-License-Identifier: Apache-2.0 */
/* The key-encryption key, for what keyholdctl does with a store or an export without the agent. */
#ifndef KEYHOLD_CTL_KEK_H
#define KEYHOLD_CTL_KEK_H

#include "../config.h"
#include "secret.h"

/* Where --kek-file, --passphrase-file or the configuration (NULL: not asked) says. Free the secret. */
KH_MUST_USE kh_result ctl_kek_load(ctl_run *ctl, const kh_config *config, ctl_secret *secret,
                                   kh_kek_kind *kind);
/* Whether the command line names one. */
bool ctl_kek_given(const ctl_run *ctl);

#endif

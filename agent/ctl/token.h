/* SPDX-License-Identifier: Apache-2.0 */
/* Making tokens: the file by which a caller proves who it is. */
#ifndef KEYHOLD_CTL_TOKEN_H
#define KEYHOLD_CTL_TOKEN_H

#include "ctl.h"

/* Writes a new token file (mode 0600, never overwriting). KH_E_EXISTS, KH_E_IO, KH_E_FORBIDDEN, KH_E_CRYPTO;
 * error set. */
KH_MUST_USE kh_result token_write(const char *name, const char *path, ctl_error *error);

#endif

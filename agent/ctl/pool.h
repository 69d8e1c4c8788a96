/* SPDX-License-Identifier: Apache-2.0 */
/* What the pool commands have in common. */
#ifndef KH_AGENT_CTL_POOL_H
#define KH_AGENT_CTL_POOL_H

#include "tokenwork.h"

#define MAKE_MS 120000 /* an RSA-3072 pair is made, in a slow token */

/* The configuration, and the pool that the first operand names. */
KH_MUST_USE kh_result pool_take(ctl_run *ctl, kh_config **config, const kh_config_pool **pool);
const kh_config_token *pool_partition(const kh_config *config, const kh_config_pool *pool, size_t i);
/* A step in that token's process (tokenwork.h). */
KH_MUST_USE kh_result pool_step(ctl_run *ctl, const kh_config *config, const kh_config_token *token, const char *what,
                                ctl_token_fn step, const void *in, void *out, size_t out_len);
/* KH_OK: it has the pool key. KH_E_NOT_FOUND: it has none. */
KH_MUST_USE kh_result pool_check(ctl_run *ctl, const kh_config *config, const kh_config_token *token, const char *pool,
                                 const char *what);
/* A step: the token has no key of that pool afterwards, whether it had one or not. */
kh_result pool_forget_step(kh_p11 *p11, kh_p11_session *session, const void *pool, void *out, char *error);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Who may do what: pure functions over the configuration. */
#ifndef KH_AGENT_ACL_H
#define KH_AGENT_ACL_H

#include "config.h"

/*
 * Whether the identity may do `op` on the key of that name (without version). NULL is root, the operator:
 * everything. Nothing that no `allow` block grants is allowed.
 */
bool kh_acl_allows(const kh_config_identity *identity, kh_op op, const char *name, size_t name_len);
/* Whether any block grants `op` at all: for operations that name no key. */
bool kh_acl_allows_op(const kh_config_identity *identity, kh_op op);

/*
 * Of what a lookup found (versions and duplicates; enabled first, newest first) the one to use: the first that is
 * enabled, permitted, and has one of `usages` (a set of kh_usage; 0: any will do); else the first that is enabled
 * and permitted: the keeper then says that its usage is another. KH_E_DISABLED: only disabled ones are permitted.
 * KH_E_NOT_FOUND: none is. With any_state a disabled one will do. A key outside its validity at now_s (Unix time) is disabled.
 */
KH_MUST_USE kh_result kh_acl_choose(const kh_config_identity *identity, kh_op op, uint32_t usages,
                                    const kh_key_info *const infos[], size_t count, bool any_state,
                                    uint64_t now_s, const kh_key_info **chosen);

#endif

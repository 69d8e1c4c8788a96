/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration's grammar: options, their types and ranges, as libconfuse takes them. Private to the
 * configuration.
 */
#ifndef KH_AGENT_CONFIG_SYNTAX_H
#define KH_AGENT_CONFIG_SYNTAX_H

#include <confuse.h>
#include <keyhold/types.h>

/*
 * Parses text (zero-terminated, len bytes) into libconfuse's tree, to be freed with cfg_free. Every value of
 * the tree is within its range. KH_E_INVALID: `error` says where and why, and *cfg is NULL. Not for two
 * threads at a time.
 */
KH_MUST_USE kh_result kh_config_tree(const char *text, size_t len, const char *path, cfg_t **cfg,
                                     char *error);
/* The level of that name, or -1. */
int kh_config_log_level(const char *name);

#endif

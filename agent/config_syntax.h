/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration's grammar: options, their types and ranges, as libconfuse takes them. Private to the
 * configuration.
 */
#ifndef KH_AGENT_CONFIG_SYNTAX_H
#define KH_AGENT_CONFIG_SYNTAX_H

#include "config.h"
#include <confuse.h>

/*
 * Parses text (zero-terminated, len bytes) into libconfuse's tree, to be freed with cfg_free. Every value of
 * the tree is within its range. KH_E_INVALID: `error` says where and why, and *cfg is NULL. Not for two
 * threads at a time.
 */
KH_MUST_USE kh_result kh_config_tree(const char *text, size_t len, const char *path, cfg_t **cfg,
                                     char *error);
/* The level of that name, or -1. */
int kh_config_log_level(const char *name);

/* ---- What the files that take the tree apart share */
/* KH_E_INVALID, with "FILE:LINE: WHATNAME" in error; line 0: none. */
KH_MUST_USE kh_result kh_config_fail(const kh_config *config, unsigned line, char *error, const char *what,
                                     const char *name);
/*
 * The path below the file's directory unless it is absolute, or a word that stands for no path. NULL: no
 * memory.
 */
char *kh_config_absolute(const kh_config *config, const char *path);
/* "ADDRESS:PORT", "[ADDRESS]:PORT": numbers only, since nothing can be resolved where this is read. False: not so. */
bool kh_config_parse_tcp(const char *text, kh_tcp_address *tcp);
/* Takes the `metrics` blocks. KH_E_INVALID, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_config_take_metrics(kh_config *config, cfg_t *cfg, char *error);
void kh_config_free_metrics(kh_config *config);
/* Takes a path, which may be absent. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_config_take_path(const kh_config *config, cfg_t *cfg, const char *option, char **field);
/* Takes the `listen` blocks. KH_E_INVALID, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_config_take_listeners(kh_config *config, cfg_t *cfg, char *error);
void kh_config_free_listeners(kh_config *config);
/* Takes the `san` of an identity. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_config_take_sans(cfg_t *cfg, kh_config_identity *identity);
void kh_config_free_sans(kh_config_identity *identity);
/* Takes the `token` and `pool` blocks. KH_E_INVALID, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_config_take_tokens(kh_config *config, cfg_t *cfg, char *error);
void kh_config_free_tokens(kh_config *config);
/* Orders the names of all identities. KH_E_INVALID: two have the same. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_config_order_sans(kh_config *config, char *error);

#endif

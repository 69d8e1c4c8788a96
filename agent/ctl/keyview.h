/* SPDX-License-Identifier: Apache-2.0 */
/* A key version as people and programs see it. */
#ifndef KEYHOLD_CTL_KEYVIEW_H
#define KEYHOLD_CTL_KEYVIEW_H

#include "ctl.h"

#include <jansson.h>
#include <keyhold/keystore.h>

/* "enabled", "disabled", "deleted"; "unknown". Static storage. */
const char *keyview_state(uint32_t state);
typedef enum keyview_validity { KEYVIEW_VALID, KEYVIEW_EXPIRED, KEYVIEW_NOT_YET } keyview_validity;
/* By the clock of this machine. */
keyview_validity keyview_when(const kh_key_info *info);
/* For people: its state, but of an enabled key that does nothing "expired" or "not yet valid". */
const char *keyview_condition(const kh_key_info *info);
/* "rsa2048", "p256", …; buf of 16 bytes. */
const char *keyview_type(uint32_t type, uint32_t bits, char buf[16]);
/* "software", "hsm", "hsm-pool". */
const char *keyview_tier(uint32_t tier);
/* A new JSON object; NULL: out of memory. */
json_t *keyview_json(const kh_key_info *info);
/* The same with the tags and rules of its name. */
json_t *keyview_json_with(const kh_key_info *info, const kh_name_policy *policy);
/* The tags and rules of a name, line by line; nothing if there are none. */
void keyview_print_policy(const kh_name_policy *policy);
/* "hsm tokenA"; where: KH_PLACE_MAX + 16 bytes. */
const char *keyview_where(const kh_key_info *info, char *where);
/* One key version, line by line, or as JSON. */
KH_MUST_USE kh_result keyview_print(ctl_run *ctl, const kh_key_info *info);
/* The public key as PEM, from malloc; NULL: out of memory or no SPKI. */
char *keyview_pem(const kh_key_info *info);
/* KH_E_INVALID with a usage error unless text is NAME, or, where `version` is allowed, NAME/V. Fills info's
 * name, version. */
KH_MUST_USE kh_result keyview_name(const char *text, bool version_allowed, kh_key_info *info,
                                   ctl_error *error);

/*
 * What key create and key import ask for: name, usage (0, to be inherited, with --new-version) and flags,
 * from the command line. KH_E_INVALID with a usage error.
 */
KH_MUST_USE kh_result keyview_wanted(ctl_run *ctl, kh_key_info *wanted);
/* KH_E_INVALID with a usage error when a key of this type can have no use of wanted->usage. */
KH_MUST_USE kh_result keyview_fits(const kh_key_info *wanted, kh_key_type type, ctl_error *error);

#endif

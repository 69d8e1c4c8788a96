/* SPDX-License-Identifier: Apache-2.0 */
/* Where a key lives and how long it is valid, from the command line. */
#ifndef KEYHOLD_CTL_KEYPLACE_H
#define KEYHOLD_CTL_KEYPLACE_H

#include "ctl.h"

#include <keyhold/keystore.h>

/*
 * A time: "2027-01-31", "2027-01-31T12:00:00Z" (both UTC), "+90d" (also h; from now), or "never", which is 0.
 * KH_E_INVALID: it is none of these. Pure.
 */
KH_MUST_USE kh_result keyplace_time(const char *text, uint64_t now, uint64_t *time);
/* --tier, --place, --not-before, --expires; what is not given stays. KH_E_INVALID with a usage error. */
KH_MUST_USE kh_result keyplace_take(ctl_run *ctl, kh_key_info *wanted);
/* "team=edge,env=prod" as the store wants it: a line each. KH_E_INVALID with a usage error. */
KH_MUST_USE kh_result keyplace_tags(ctl_run *ctl, const char *list, char tags[KH_TAGS_MAX + 1]);
/* A PKCS#11 URI of a key (RFC 7512): its object and id, and the label of its token, "" if it says none. */
KH_MUST_USE kh_result keyplace_uri(ctl_run *ctl, const char *uri, kh_key_adoption *adoption, char *token, size_t cap);
/* What a failure means to whoever asked for a token. */
kh_result keyplace_explain(ctl_run *ctl, const kh_key_info *wanted, const char *what, kh_result result);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * May this operation be done with this key? What every keeper asks before it touches a key, wherever the key lives: decided on
 * the keeper's own copy of the bytes. Pure functions.
 */
#ifndef KEYHOLD_KEYSTORE_PERMIT_H
#define KEYHOLD_KEYSTORE_PERMIT_H

#include <keyhold/keystore.h>

/*
 * sign, tls-rsa-kx, decrypt and certify. KH_E_USAGE and what usage.h says; KH_E_SCHEME, KH_E_TOO_LARGE, KH_E_INVALID,
 * KH_E_UNSUPPORTED; KH_E_INTERNAL: another operation.
 */
KH_MUST_USE kh_result kh_permit(const kh_record *record, const kh_key_info *info);
/* now_s: Unix time. KH_E_DISABLED: not enabled, not yet valid or no longer. */
KH_MUST_USE kh_result kh_permit_now(const kh_key_info *info, uint64_t now_s);

#endif

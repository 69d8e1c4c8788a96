/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key-encryption key that is wrapped by a key inside a token (kek_token.h): a process of its own, which alone loads the
 * vendor's library, has it unwrapped, answers and ends. The supervisor never has the library in it.
 */
#ifndef KH_AGENT_KEKTOKEN_H
#define KH_AGENT_KEKTOKEN_H

#include "supervisor.h"
#include "../keystore/kek_token.h" /* the room's own, whose link.h would hide the system's on a search path */

/*
 * Has the token of that name unwrap the KEK: kek gets 32 bytes. Blocks, at most KH_KEK_TOKEN_S seconds. The PIN is tried once. On
 * failure a message (KH_CONFIG_ERROR_MAX bytes) says what to look at.
 */
#define KH_KEK_TOKEN_S 15
KH_MUST_USE kh_result kh_kek_from_token(const kh_supervisor *supervisor, const kh_kek_token *wrapped, uint8_t *kek, char *error);

/*
 * The key-encryption key of the configuration, wherever it is: kh_kek_load, or by the token. had: what was read before, which is
 * good as long as the file says the same of the token (NULL: none); then *kek is a copy. error: as above.
 */
KH_MUST_USE kh_result kh_kek_take(kh_supervisor *supervisor, const kh_kek *had, kh_kek *kek, char *error);

/* The role's main. Returns an exit code. */
int kh_kek_main(void);

#endif

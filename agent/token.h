/* SPDX-License-Identifier: Apache-2.0 */
/* The process of a token's keeper, as the agent starts it. */
#ifndef KH_AGENT_TOKEN_H
#define KH_AGENT_TOKEN_H

/* The role's main: takes its boot message from KH_BOOT_FD and runs the keystore. Returns an exit code. */
int kh_token_main(void);

#endif

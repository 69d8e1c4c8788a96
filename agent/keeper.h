/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's process, as the agent starts it. */
#ifndef KH_AGENT_KEEPER_H
#define KH_AGENT_KEEPER_H

/* The role's main: takes its boot message from KH_BOOT_FD and runs the keystore. Returns an exit code. */
int kh_keeper_main(void);

#endif

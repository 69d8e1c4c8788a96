/* SPDX-License-Identifier: Apache-2.0 */
/* A keeper's sign of life to the supervisor, from a thread of its own. */
#ifndef KH_AGENT_BEAT_H
#define KH_AGENT_BEAT_H

/* Starts it; a process that has no thread for it ends. */
void kh_beat_start(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* How a process of the agent shares a CPU with others. */
#ifndef KH_AGENT_TURNS_H
#define KH_AGENT_TURNS_H

/*
 * Asks the scheduler for short turns for this thread and those that it starts: a wake-up then takes the CPU from a
 * program that computes, instead of waiting for the end of its turn (up to 4 ms). The share of the CPU stays what it
 * was. Linux 6.12 and later heed it (sched_setattr(2), sched_runtime of SCHED_OTHER); before, nothing changes.
 */
void kh_turns_short(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* How a process of the agent shares a CPU with others. */
#ifndef KH_AGENT_TURNS_H
#define KH_AGENT_TURNS_H

#include <stdbool.h>

/*
 * Asks the scheduler for short turns for this thread and those that it starts: a wake-up then takes the CPU from a
 * program that computes, instead of waiting for the end of its turn (up to 4 ms). The share of the CPU stays what it
 * was. Linux 6.12 and later heed it (sched_setattr(2), sched_runtime of SCHED_OTHER); before, nothing changes. A policy
 * that the operator chose stays.
 */
void kh_turns_short(void);

/*
 * For this thread, after kh_turns_short. True: its wake-ups interrupt nobody (SCHED_BATCH), so what woke it, and has a CPU of
 * its own to itself no longer, goes on and brings more before this thread runs. False: as kh_turns_short made it. On a CPU
 * that is free neither makes a difference.
 */
void kh_turns_gather(bool gather);

#endif

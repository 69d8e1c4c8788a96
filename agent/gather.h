/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the front lets requests gather instead of interrupting others for each of them (kh_turns_gather). A caller with a
 * steady stream of operations, whose machine is full, loses by an agent that takes the CPU from it for each single one: the
 * same work costs everybody more turns, and the keeper gets batches of one. If the front runs when the caller has to
 * wait anyway, it finds several. With few operations, or one after the other, there is nothing to gather. And what one
 * caller sends must make no other wait: for a while after two had operations at the same time, the front is prompt for all.
 * All zero is a fresh one, which is prompt. One thread.
 */
#ifndef KH_AGENT_GATHER_H
#define KH_AGENT_GATHER_H

#include <stdbool.h>
#include <stdint.h>

#define KH_GATHER_WINDOW_NS 20000000u   /* what is looked at: a change, which is a system call, is rare */
#define KH_GATHER_STREAM 8              /* operations in a window, or 400 a second, are a stream */
#define KH_GATHER_PAUSE_NS 200000000u   /* a stream may pause so long */
#define KH_GATHER_PROMPT_NS 1000000000u /* after two callers had operations at the same time */

typedef struct kh_gather {
    bool on;
    bool together;  /* in this window several operations were under way at the same time */
    uint64_t begun; /* operations in this window */
    uint64_t since_ns, stream_until_ns, prompt_until_ns;
} kh_gather;

/* An operation began; `waiting` are under way with it. */
void kh_gather_count(kh_gather *gather, uint32_t waiting);
/* At the end of a turn: `callers` have operations under way. True: `on` has changed. */
bool kh_gather_turn(kh_gather *gather, uint64_t now_ns, uint32_t callers);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the front lets requests gather. A caller with a steady stream of operations, whose machine is full, loses by an
 * agent that interrupts it for each single one: the same work costs everybody more turns, and the keeper gets batches of
 * one. Then the front runs when the caller has to wait anyway, and finds several. With few operations, or one after the
 * other, there is nothing to gather. And what one caller sends must make no other wait: for a while after two had
 * operations at the same time, the front is prompt for all.
 */
#include "front.h"
#include "turns.h"

#define WINDOW_NS 20000000u   /* what is looked at; so a change, which is a system call, is rare */
#define STREAM 8              /* operations in a window: 400 a second */
#define STREAM_NS 200000000u  /* it may pause so long */
#define PROMPT_NS 1000000000u /* after several callers were seen at the same time */

static void change(kh_front *front, bool on)
{
    if (front->gather.on != on) {
        front->gather.on = on;
        kh_turns_gather(on);
    }
}

void kh_gather_count(kh_front *front)
{
    front->gather.begun++;
    front->gather.together = front->gather.together || front->waiting_jobs > 1;
}

void kh_gather(kh_front *front)
{
    kh_gathering *gather = &front->gather;
    uint64_t elapsed_ns = front->now_ns - gather->since_ns;

    if (front->waiting_identities > 1) {
        gather->prompt_until_ns = front->now_ns + PROMPT_NS;
        change(front, false);
    }
    if (elapsed_ns < WINDOW_NS) {
        return;
    }
    if (gather->together && gather->begun >= STREAM * (elapsed_ns / WINDOW_NS)) {
        gather->stream_until_ns = front->now_ns + STREAM_NS;
    }
    change(front, front->now_ns < gather->stream_until_ns && front->now_ns >= gather->prompt_until_ns);
    gather->since_ns = front->now_ns;
    gather->begun = 0;
    gather->together = false;
}

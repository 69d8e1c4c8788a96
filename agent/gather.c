/* SPDX-License-Identifier: Apache-2.0 */
#include "gather.h"

static bool change(kh_gather *gather, bool on)
{
    bool changed = gather->on != on;

    gather->on = on;
    return changed;
}

void kh_gather_count(kh_gather *gather, uint32_t waiting)
{
    gather->begun++;
    gather->together = gather->together || waiting > 1;
}

bool kh_gather_turn(kh_gather *gather, uint64_t now_ns, uint32_t callers)
{
    uint64_t windows = (now_ns - gather->since_ns) / KH_GATHER_WINDOW_NS;

    if (callers > 1) {
        gather->prompt_until_ns = now_ns + KH_GATHER_PROMPT_NS;
        return change(gather, false);
    }
    if (windows == 0) {
        return false;
    }
    if (gather->together && gather->begun / KH_GATHER_STREAM >= windows) {
        gather->stream_until_ns = now_ns + KH_GATHER_PAUSE_NS;
    }
    gather->since_ns = now_ns;
    gather->begun = 0;
    gather->together = false;
    return change(gather, now_ns < gather->stream_until_ns && now_ns >= gather->prompt_until_ns);
}

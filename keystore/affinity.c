/* SPDX-License-Identifier: Apache-2.0 */
#include "affinity.h"

/* Begins from what the thread may do when nothing is changed. */
static bool begin(kh_affinity *affinity, uint32_t cpu, cpu_set_t *allowed)
{
    kh_affinity_restore(affinity);
    return cpu < CPU_SETSIZE && sched_getaffinity(0, sizeof *allowed, allowed) == 0 && CPU_ISSET(cpu, allowed);
}

static bool change(kh_affinity *affinity, const cpu_set_t *before, const cpu_set_t *now)
{
    if (CPU_COUNT(now) == 0 || sched_setaffinity(0, sizeof *now, now) != 0) {
        return false;
    }
    affinity->before = *before;
    affinity->now = *now;
    affinity->changed = true;
    return true;
}

bool kh_affinity_only(kh_affinity *affinity, uint32_t cpu)
{
    cpu_set_t before, now;

    if (!begin(affinity, cpu, &before)) {
        return false;
    }
    CPU_ZERO(&now);
    CPU_SET(cpu, &now);
    return change(affinity, &before, &now);
}

bool kh_affinity_without(kh_affinity *affinity, uint32_t cpu)
{
    cpu_set_t before, now;

    if (!begin(affinity, cpu, &before)) {
        return false;
    }
    now = before;
    CPU_CLR(cpu, &now);
    return change(affinity, &before, &now);
}

void kh_affinity_restore(kh_affinity *affinity)
{
    cpu_set_t now;

    if (!affinity->changed) {
        return;
    }
    affinity->changed = false;
    if (sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &affinity->now)) {
        (void)!sched_setaffinity(0, sizeof affinity->before, &affinity->before);
    }
}

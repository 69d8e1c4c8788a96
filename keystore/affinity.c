/* SPDX-License-Identifier: Apache-2.0 */
#include "affinity.h"

#include <string.h>

static bool get(cpu_set_t *cpus)
{
    return sched_getaffinity(0, sizeof *cpus, cpus) == 0;
}

static bool set(const cpu_set_t *cpus)
{
    return sched_setaffinity(0, sizeof *cpus, cpus) == 0;
}

/*
 * Asks for what is in force now, and returns what that is: every CPU there is, where a cpuset alone decides, for a cpuset may
 * grow, and Linux remembers what was asked for.
 */
static cpu_set_t keep(const cpu_set_t *in_force)
{
    cpu_set_t all, most;

    memset(&all, 0xff, sizeof all);
    if (set(&all) && get(&most) && CPU_EQUAL(&most, in_force)) {
        return all;
    }
    (void)set(in_force);
    return *in_force;
}

static bool change(kh_affinity *affinity, uint32_t cpu, bool only)
{
    cpu_set_t in_force, before;

    kh_affinity_restore(affinity);
    if (cpu >= CPU_SETSIZE || !get(&in_force) || CPU_COUNT(&in_force) < 2 || !CPU_ISSET(cpu, &in_force)) {
        return false;
    }
    before = keep(&in_force);
    if (only) {
        CPU_ZERO(&in_force);
        CPU_SET(cpu, &in_force);
    } else {
        CPU_CLR(cpu, &in_force);
    }
    if (!set(&in_force)) {
        return false;
    }
    affinity->before = before;
    affinity->now = in_force;
    affinity->changed = true;
    return true;
}

bool kh_affinity_only(kh_affinity *affinity, uint32_t cpu)
{
    return change(affinity, cpu, true);
}

bool kh_affinity_without(kh_affinity *affinity, uint32_t cpu)
{
    return change(affinity, cpu, false);
}

int kh_affinity_next(uint32_t cpu)
{
    cpu_set_t allowed;

    if (!get(&allowed)) {
        return -1;
    }
    for (uint32_t i = 1; i <= CPU_SETSIZE; i++) {
        if (CPU_ISSET((cpu + i) % CPU_SETSIZE, &allowed)) {
            return (int)((cpu + i) % CPU_SETSIZE);
        }
    }
    return -1;
}

void kh_affinity_restore(kh_affinity *affinity)
{
    cpu_set_t in_force;

    if (!affinity->changed) {
        return;
    }
    affinity->changed = false;
    if (!get(&in_force)) {
        return;
    }
    if (CPU_EQUAL(&in_force, &affinity->now)) {
        (void)set(&affinity->before);
    } else { /* somebody else's doing; what was asked for here must not come back when a cpuset grows again */
        (void)keep(&in_force);
    }
}

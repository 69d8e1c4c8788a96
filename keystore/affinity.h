/* SPDX-License-Identifier: Apache-2.0 */
/*
 * On which CPUs a thread may run (sched_setaffinity(2)), changed for a while within what its operator allows. What the operator
 * changes meanwhile, with taskset(1) or a cpuset, stays, and a thread that follows its cpuset follows it again afterwards. All
 * zero: nothing was changed. Of the calling thread alone.
 */
#ifndef KEYHOLD_KEYSTORE_AFFINITY_H
#define KEYHOLD_KEYSTORE_AFFINITY_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct kh_affinity {
    cpu_set_t before, now; /* in force until the change, and by it */
    bool changed;
} kh_affinity;

/*
 * Only on that CPU, or on all the others that are allowed; an earlier change is undone first. false: it is not one of at least two
 * that are allowed, the kernel has more than CPU_SETSIZE, or the call is forbidden; then no change is in force.
 */
bool kh_affinity_only(kh_affinity *affinity, uint32_t cpu);
bool kh_affinity_without(kh_affinity *affinity, uint32_t cpu);
/* The CPU after that one, of those that are allowed, or that one itself; -1: unknown. */
int kh_affinity_next(uint32_t cpu);
/* As it was. */
void kh_affinity_restore(kh_affinity *affinity);

#endif

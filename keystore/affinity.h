/* SPDX-License-Identifier: Apache-2.0 */
/*
 * On which CPUs a thread may run (sched_setaffinity(2)), changed for a while within what its operator allows. What the operator
 * changes meanwhile, with taskset(1) or a cpuset, stays. All zero: nothing was changed. Of the calling thread alone.
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

/* Only on that CPU, or on all the others that were allowed. false: it may not be so, and nothing is changed. */
bool kh_affinity_only(kh_affinity *affinity, uint32_t cpu);
bool kh_affinity_without(kh_affinity *affinity, uint32_t cpu);
/* As it was. */
void kh_affinity_restore(kh_affinity *affinity);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The jobs by deadline: a binary heap of pointers, with each job knowing its place, so that any can leave. */
#ifndef KH_AGENT_DEADLINE_H
#define KH_AGENT_DEADLINE_H

#include "job.h"

typedef struct kh_deadlines {
    kh_job **heap;
    uint32_t count, room;
} kh_deadlines;

/* KH_E_MEMORY. job->deadline_ns must not change while it is in the heap. */
KH_MUST_USE kh_result kh_deadlines_add(kh_deadlines *deadlines, kh_job *job);
/* No effect when the job is not in it. */
void kh_deadlines_remove(kh_deadlines *deadlines, kh_job *job);
/* The job with the earliest deadline; NULL when empty. */
kh_job *kh_deadlines_first(const kh_deadlines *deadlines);
void kh_deadlines_clear(kh_deadlines *deadlines);

#endif

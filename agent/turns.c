/* SPDX-License-Identifier: Apache-2.0 */
#include "turns.h"

#include <linux/sched.h>
#include <linux/sched/types.h> /* and not <sched.h>, which some C libraries cannot have beside it */
#include <sys/syscall.h>
#include <unistd.h>

#define TURN_NS 100000 /* the least that Linux takes; ten P-256 operations */

static bool ours; /* the policy: the operator has not chosen one */

void kh_turns_short(void)
{
    struct sched_attr attr = {.size = sizeof attr};

    ours = syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0U) == 0 && attr.sched_policy == SCHED_NORMAL;
    if (ours) {
        attr.sched_runtime = TURN_NS; /* the rest stays what the operator made it */
        (void)!syscall(SYS_sched_setattr, 0, &attr, 0U);
    }
}

/*
 * With the old call, not with sched_setattr: that sets nice value and turn, too, and so would undo what an operator has changed since
 * (SCHED_FLAG_KEEP_PARAMS keeps the policy as well). This one leaves both, and a filter of system calls sees which policy it is.
 */
void kh_turns_gather(bool gather)
{
    const int priority = 0; /* struct sched_param */

    if (ours) {
        (void)!syscall(SYS_sched_setscheduler, 0, gather ? SCHED_BATCH : SCHED_NORMAL, &priority);
    }
}

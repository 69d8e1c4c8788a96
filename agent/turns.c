/* SPDX-License-Identifier: Apache-2.0 */
#include "turns.h"

#include <linux/sched.h>
#include <linux/sched/types.h> /* and not <sched.h>, which some C libraries cannot have beside it */
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TURN_NS 100000 /* the least that Linux takes; ten P-256 operations */

static struct sched_attr attr = {.size = sizeof attr}; /* as it was found, with short turns; size 0: leave it alone */

static void set(uint32_t policy)
{
    attr.sched_policy = policy;
    (void)!syscall(SYS_sched_setattr, 0, &attr, 0U);
}

void kh_turns_short(void)
{
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0U) != 0 || attr.sched_policy != SCHED_NORMAL) {
        attr.size = 0;
        return;
    }
    attr.sched_runtime = TURN_NS; /* the rest, and any other policy, stays what the operator made it */
    set(SCHED_NORMAL);
}

void kh_turns_gather(bool gather)
{
    if (attr.size != 0) {
        set(gather ? SCHED_BATCH : SCHED_NORMAL);
    }
}

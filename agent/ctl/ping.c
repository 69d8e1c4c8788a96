/* SPDX-License-Identifier: Apache-2.0 */
/* ping: does the agent answer, who does it take us for, and how long does a round trip take? Also store
 * check. */
#include "agent.h"
#include "output.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PINGS_MAX 1000000

static double now_us(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static kh_result print_times(ctl_run *ctl, const ctl_agent *agent, double *times_us, long count)
{
    double p50 = 0;
    double p99 = 0;

    qsort(times_us, (size_t)count, sizeof(*times_us), compare);
    p50 = times_us[count / 2];
    p99 = times_us[(count * 99) / 100];
    if (ctl->json) {
        return output_json(json_pack("{s:s, s:s, s:I, s:f, s:f, s:f, s:f}", "address",
                                     ctl_agent_address(agent), "identity", ctl_agent_identity(agent), "count",
                                     (json_int_t)count, "min_us", times_us[0], "p50_us", p50, "p99_us", p99,
                                     "max_us", times_us[count - 1]),
                           &ctl->error);
    }
    if (count == 1) {
        (void)printf("the agent at %s answers in %.0f µs; it takes us for \"%s\"\n", ctl_agent_address(agent),
                     p50, ctl_agent_identity(agent));
    } else {
        (void)printf("the agent at %s answered %ld times: min %.0f, p50 %.0f, p99 %.0f, max %.0f µs; it "
                     "takes us for \"%s\"\n",
                     ctl_agent_address(agent), count, times_us[0], p50, p99, times_us[count - 1],
                     ctl_agent_identity(agent));
    }
    return KH_OK;
}

kh_result ctl_cmd_ping(ctl_run *ctl)
{
    double *times_us = NULL;
    ctl_agent *agent = NULL;
    long count = 1;
    kh_result result = ctl_args_number(&ctl->args, "count", 1, PINGS_MAX, 1, &count, &ctl->error);

    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_WIRE, &agent);
    }
    if (result != KH_OK) {
        goto done;
    }
    times_us = calloc((size_t)count, sizeof(*times_us));
    if (times_us == NULL) {
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot ping: out of memory");
        goto done;
    }
    for (long i = 0; i < count && result == KH_OK; i++) {
        kh_request request = {.op = KH_OP_PING};
        kh_reply reply = {0};
        double began = now_us();

        result = ctl_agent_wire(agent, &request, "ping", &reply);
        times_us[i] = now_us() - began;
    }
    if (result == KH_OK) {
        result = print_times(ctl, agent, times_us, count);
    }
done:
    free(times_us);
    ctl_agent_close(agent);
    return result;
}

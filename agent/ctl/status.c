/* SPDX-License-Identifier: Apache-2.0 */
/* status: the agent's own document, as it is or as tables for people. */
#include "agent.h"
#include "output.h"

kh_result ctl_cmd_status(ctl_run *ctl)
{
    (void)ctl;
    return KH_OK;
}

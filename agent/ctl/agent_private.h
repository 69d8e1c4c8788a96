/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a ctl_agent, for agent.c and agent_keys.c alone. */
#ifndef KEYHOLD_CTL_AGENT_PRIVATE_H
#define KEYHOLD_CTL_AGENT_PRIVATE_H

#include "agent.h"

struct ctl_agent {
    char *address;     /* for messages */
    char *admin;       /* path of the admin socket; NULL: the wire */
    kh_client *client; /* the wire; NULL: the admin socket */
    ctl_error *error;
    uint32_t timeout_ms;
};

#endif

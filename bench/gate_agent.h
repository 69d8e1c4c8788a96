/* SPDX-License-Identifier: Apache-2.0 */
/* An agent of the gate's own, in a directory of its own. */
#ifndef KH_GATE_AGENT_H
#define KH_GATE_AGENT_H

#include "gate.h"
#include <keyhold/client.h>

typedef struct gate_agent {
    char dir[PATH_MAX], config[PATH_MAX + 16], address[PATH_MAX + 32], log[PATH_MAX + 16];
    char agent[PATH_MAX + 32], ctl[PATH_MAX + 32];
    pid_t pid; /* the supervisor; 0: not running */
    kh_client *client;
} gate_agent;

/* `keyholdctl init` in the directory of that name; nothing is started. */
bool gate_agent_init(gate *g, gate_agent *agent, const char *name);
/* From fork to the first answer, or (name not NULL) to the first signature with that P-256 key. */
bool gate_agent_start(gate_agent *agent, const char *until_signed, double *ms);
bool gate_agent_stop(gate_agent *agent);
/* A signature as a TLS 1.3 server's with that P-256 key; how long it took, and how it went. */
kh_result gate_agent_sign(gate_agent *agent, const char *key, double *ms);
/* One request; the worse of what the transport and the agent say. A failure is on standard error, with `what`. */
bool gate_agent_call(gate_agent *agent, const kh_request *request, kh_reply *reply, const char *what);
/* Resident memory in bytes of its processes whose command line begins with `role`; NULL: of all. */
double gate_agent_memory(const gate_agent *agent, const char *role);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keyholdctl's ways to the agent. There are two, and key commands do not care which: the admin socket (root
 * on the agent's host, straight to the store's keeper) and the wire (any caller, through the front and its
 * access rules). With neither --socket nor --token the admin socket is taken if it is there and may be used,
 * else the wire. All failures leave a line in the ctl_error.
 */
#ifndef KEYHOLD_CTL_AGENT_H
#define KEYHOLD_CTL_AGENT_H

#include "ctl.h"

#include "../config.h"
#include <keyhold/client.h>
#include <keyhold/keystore.h>

typedef struct ctl_agent ctl_agent;

typedef enum ctl_way {
    CTL_WAY_ANY,   /* as above */
    CTL_WAY_WIRE,  /* the front itself is asked for */
    CTL_WAY_ADMIN, /* only the admin socket can do it */
} ctl_way;

/* The configuration that --config names. *config is the caller's. */
KH_MUST_USE kh_result ctl_load_config(ctl_run *ctl, kh_config **config);

/* Opens a way to the agent; close with ctl_agent_close (NULL is fine). Errors go to ctl->error, also of later
 * calls. */
KH_MUST_USE kh_result ctl_agent_open(ctl_run *ctl, ctl_way way, ctl_agent **agent);
/* The wire to a given address with a given token file (NULL: known by uid); for check-nginx. */
KH_MUST_USE kh_result ctl_agent_open_at(ctl_run *ctl, const char *address, const char *token,
                                        ctl_agent **agent);
/* The same for "tcp:HOST:PORT". */
KH_MUST_USE kh_result ctl_agent_open_tls_at(ctl_run *ctl, const char *address, const kh_client_tls *tls, ctl_agent **agent);
void ctl_agent_close(ctl_agent *agent);
/* "unix:/run/keyhold/agent.sock" or "admin:/run/…": for messages. Valid as long as the agent. */
const char *ctl_agent_address(const ctl_agent *agent);
/* Who the agent takes us for; "root" over the admin socket. */
const char *ctl_agent_identity(const ctl_agent *agent);

/*
 * The versions of a key, by "name", "name/version" or (name NULL) by id; at least one on KH_OK. Over the wire
 * only the one that would be used. KH_E_NOT_FOUND is a result like any other here: the caller words it with
 * ctl_fail_no_key.
 */
KH_MUST_USE kh_result ctl_agent_lookup(ctl_agent *agent, const char *name, const uint8_t *id,
                                       kh_key_info *infos, size_t cap, size_t *count);
kh_result ctl_fail_no_key(const ctl_agent *agent, const char *name);
/* Calls each(info) for every key version whose name matches; infos have no SPKI. Stops when each fails. */
KH_MUST_USE kh_result ctl_agent_list(ctl_agent *agent, const char *glob,
                                     kh_result (*each)(void *ctx, const kh_key_info *info), void *ctx);
KH_MUST_USE kh_result ctl_agent_create(ctl_agent *agent, const kh_key_info *wanted, kh_key_info *made);
KH_MUST_USE kh_result ctl_agent_import(ctl_agent *agent, const kh_key_info *wanted, const uint8_t *sealed,
                                       size_t len, kh_key_info *made);
/* Tags of a name, "KEY=VALUE,…"; only over the admin socket. (keylife.c) */
KH_MUST_USE kh_result keylife_tag(ctl_run *ctl, ctl_agent *agent, const char *name, const char *list);
/* What is said of a name. Over the wire nothing is: zeros. */
KH_MUST_USE kh_result ctl_agent_policy(ctl_agent *agent, const char *name, kh_name_policy *policy);
/* info: name, version (0: all), state. */
KH_MUST_USE kh_result ctl_agent_set_state(ctl_agent *agent, const kh_key_info *wanted, kh_key_info *newest);
KH_MUST_USE kh_result ctl_agent_import_key(ctl_agent *agent, uint8_t import_public[32]);

/* One operation of the admin socket; `what` begins the error ("cannot purge www"). Only with CTL_WAY_ADMIN.
 */
KH_MUST_USE kh_result ctl_agent_admin(ctl_agent *agent, const kh_record *record, const char *what,
                                      uint8_t *out, size_t cap, size_t *out_len);
/* The same with a file that goes along, for what takes long; out may hold a text that says why, which goes
 * into the error. */
KH_MUST_USE kh_result ctl_agent_admin_file(ctl_agent *agent, const kh_record *record, int fd,
                                           const char *what, uint8_t *out, size_t cap, size_t *out_len);
/* One request over the wire. *reply is valid until the next call; its status is KH_OK when this returns
 * KH_OK. */
KH_MUST_USE kh_result ctl_agent_wire(ctl_agent *agent, kh_request *request, const char *what,
                                     kh_reply *reply);

#endif

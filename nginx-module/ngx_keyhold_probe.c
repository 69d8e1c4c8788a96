/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At start each worker asks each agent once for every key that the
 * configuration names, and logs what is missing or of no use, so that a wrong
 * deployment is seen before the first client is.  With several agents, what
 * one lacks is not asked of it for a while.
 */

#include "ngx_keyhold.h"


#define NGX_KEYHOLD_PROBES        32    /* at a time and agent */
#define NGX_KEYHOLD_PROBE_LINES   100   /* of the log, for an agent */

/* whether it is a server's key or a client's is not known here */

#define NGX_KEYHOLD_PROBE_USAGES                                              \
    (KH_USAGE_TLS_SERVER|KH_USAGE_TLS_CLIENT|KH_USAGE_TLS_RSA_KX              \
     |KH_USAGE_TLS_DHE|KH_USAGE_SIGN)


typedef struct {
    ngx_keyhold_op_t      op;
    kh_request            req;
    kh_key_entry          entry;
    ngx_keyhold_key_t    *key;
    ngx_keyhold_agent_t  *agent;
    unsigned              active:1;
} ngx_keyhold_probe_t;

typedef struct {
    ngx_keyhold_probe_t   probes[NGX_KEYHOLD_PROBES];
    ngx_uint_t            active;
} ngx_keyhold_probes_t;


static void ngx_keyhold_probe_next(ngx_keyhold_probe_t *probe);
static void ngx_keyhold_probe_handler(ngx_keyhold_op_t *op);
static const char *ngx_keyhold_probe_use(const kh_key_entry *entry);
static void ngx_keyhold_probe_say(ngx_keyhold_probe_t *probe,
    ngx_uint_t level, const char *why);
static void ngx_keyhold_probe_done(ngx_keyhold_agent_t *agent);
static void ngx_keyhold_probe_end(ngx_keyhold_agent_t *agent);


void
ngx_keyhold_probe_start(ngx_keyhold_agent_t *agent)
{
    ngx_uint_t             i;
    ngx_keyhold_probes_t  *probes;

    if (agent->probe != NULL
        || agent->probed == ngx_keyhold_conf->keys.nelts)
    {
        return;
    }

    probes = ngx_calloc(sizeof(ngx_keyhold_probes_t), agent->reconnect.log);
    if (probes == NULL) {
        return;
    }

    agent->probe = probes;

    /* held, so that an early end of the first does not free them all */

    probes->active = 1;

    for (i = 0; i < NGX_KEYHOLD_PROBES; i++) {
        probes->probes[i].agent = agent;
        ngx_keyhold_probe_next(&probes->probes[i]);
    }

    ngx_keyhold_probe_done(agent);
}


void
ngx_keyhold_probe_exit(void)
{
    ngx_uint_t             i;
    ngx_keyhold_agent_t  **agents;

    agents = ngx_keyhold_conf->agents.elts;

    for (i = 0; i < ngx_keyhold_conf->agents.nelts; i++) {
        ngx_keyhold_probe_end(agents[i]);
    }
}


static void
ngx_keyhold_probe_end(ngx_keyhold_agent_t *agent)
{
    ngx_uint_t             i;
    ngx_keyhold_probes_t  *probes;

    probes = agent->probe;

    if (probes == NULL) {
        return;
    }

    for (i = 0; i < NGX_KEYHOLD_PROBES; i++) {
        if (probes->probes[i].active) {
            ngx_keyhold_op_cancel(&probes->probes[i].op);
        }
    }

    ngx_free(probes);
    agent->probe = NULL;
}


static void
ngx_keyhold_probe_next(ngx_keyhold_probe_t *probe)
{
    ngx_keyhold_key_t     *keys;
    ngx_keyhold_agent_t   *agent;
    ngx_keyhold_probes_t  *probes;

    agent = probe->agent;
    probes = agent->probe;

    if (agent->probed == ngx_keyhold_conf->keys.nelts) {
        return;
    }

    keys = ngx_keyhold_conf->keys.elts;

    ngx_memzero(probe, sizeof(ngx_keyhold_probe_t));

    probe->agent = agent;
    probe->key = &keys[agent->probed++];
    probe->active = 1;

    probe->req.op = KH_OP_DESCRIBE;
    probe->req.key_is_id = (probe->key->name.len == 0);

    if (probe->req.key_is_id) {
        probe->req.key.data = probe->key->id;
        probe->req.key.len = KH_KEY_ID_LEN;

    } else {
        probe->req.key.data = probe->key->name.data;
        probe->req.key.len = probe->key->name.len;
    }

    probe->op.req = &probe->req;
    probe->op.entry = &probe->entry;
    probe->op.handler = ngx_keyhold_probe_handler;
    probe->op.data = probe;
    probe->op.only = agent;
    probe->op.unlimited = 1;

    probes->active++;

    (void) ngx_keyhold_op_start(&probe->op);
}


/* The entry's views into the reply hold during this call. */

static void
ngx_keyhold_probe_handler(ngx_keyhold_op_t *op)
{
    const char           *why;
    ngx_keyhold_key_t    *keys;
    ngx_keyhold_probe_t  *probe;

    probe = op->data;
    probe->active = 0;

    if (op->gone) {

        /* the agent has its own line: its next connection goes on from here */

        keys = ngx_keyhold_conf->keys.elts;
        probe->agent->probed = ngx_min(probe->agent->probed,
                                       (ngx_uint_t) (probe->key - keys));

        ngx_keyhold_probe_done(probe->agent);
        return;
    }

    if (op->result == KH_E_DEADLINE || kh_result_retryable(op->result)) {
        ngx_keyhold_probe_say(probe, NGX_LOG_WARN,
                              kh_result_text(op->result));

    } else if (op->result != KH_OK) {
        ngx_keyhold_probe_say(probe, NGX_LOG_ERR, kh_result_text(op->result));

    } else if (probe->entry.id.len != KH_KEY_ID_LEN
               || ngx_memcmp(probe->entry.id.data, probe->key->id,
                             KH_KEY_ID_LEN) != 0)
    {
        ngx_keyhold_probe_say(probe, NGX_LOG_ERR, "the agent's key of that "
                              "name has another public key");

    } else {
        why = ngx_keyhold_probe_use(&probe->entry);

        if (why != NULL) {
            ngx_keyhold_probe_say(probe, NGX_LOG_ERR, why);
        }
    }

    ngx_keyhold_probe_next(probe);

    ngx_keyhold_probe_done(probe->agent);
}


/* Why no handshake can use the key that is there; NULL: it can be used. */

static const char *
ngx_keyhold_probe_use(const kh_key_entry *entry)
{
    uint64_t  now;

    now = (uint64_t) ngx_time();

    if (entry->state != KH_STATE_ENABLED) {
        return "the key is not enabled";
    }

    if (now < entry->not_before) {
        return "the key is not valid yet";
    }

    if (entry->expires != 0 && now >= entry->expires) {
        return "the key has expired";
    }

    if (!(entry->usage & NGX_KEYHOLD_PROBE_USAGES)) {
        return "the key's usage is neither for TLS servers nor for clients";
    }

    return NULL;
}


static void
ngx_keyhold_probe_say(ngx_keyhold_probe_t *probe, ngx_uint_t level,
    const char *why)
{
    u_char               *p, text[KH_NAME_MAX + 80];
    ngx_keyhold_agent_t  *agent;

    agent = probe->agent;

    if (++agent->lacking > NGX_KEYHOLD_PROBE_LINES) {
        return;
    }

    p = ngx_keyhold_key_text(text, text + sizeof(text), &probe->req);

    ngx_log_error(level, agent->reconnect.log, 0,
                  "keyhold: key %*s, which the configuration needs, can "
                  "not be used at agent %V: %s%s%s",
                  p - text, text, &agent->name, why,
                  probe->op.detail[0] ? ": " : "", probe->op.detail);
}


static void
ngx_keyhold_probe_done(ngx_keyhold_agent_t *agent)
{
    ngx_keyhold_probes_t  *probes;

    probes = agent->probe;

    if (--probes->active) {
        return;
    }

    if (agent->lacking > NGX_KEYHOLD_PROBE_LINES) {
        ngx_log_error(NGX_LOG_ERR, agent->reconnect.log, 0,
                      "keyhold: %ui more keys can not be used at agent %V",
                      agent->lacking - NGX_KEYHOLD_PROBE_LINES, &agent->name);
    }

    ngx_keyhold_probe_end(agent);
}

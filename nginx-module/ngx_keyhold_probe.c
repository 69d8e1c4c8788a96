/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At start each worker asks the agent once for every key that the
 * configuration names, and logs what is missing, so that a wrong deployment is
 * seen before the first client is.
 */

#include "ngx_keyhold.h"


#define NGX_KEYHOLD_PROBES  32          /* at a time */


typedef struct {
    ngx_keyhold_op_t     op;
    kh_request           req;
    kh_key_entry         entry;
    ngx_keyhold_key_t   *key;
    unsigned             active:1;
} ngx_keyhold_probe_t;


static void ngx_keyhold_probe_next(ngx_keyhold_probe_t *probe);
static void ngx_keyhold_probe_handler(ngx_keyhold_op_t *op);


static ngx_keyhold_probe_t  *ngx_keyhold_probes;
static ngx_uint_t            ngx_keyhold_probe_n;      /* keys asked for */
static ngx_uint_t            ngx_keyhold_probe_active;
static ngx_log_t            *ngx_keyhold_probe_log;


void
ngx_keyhold_probe_start(ngx_log_t *log)
{
    ngx_uint_t  i;

    if (ngx_keyhold_probe_log != NULL || ngx_keyhold_conf->keys.nelts == 0) {
        return;
    }

    ngx_keyhold_probes = ngx_calloc(NGX_KEYHOLD_PROBES
                                    * sizeof(ngx_keyhold_probe_t), log);
    if (ngx_keyhold_probes == NULL) {
        return;
    }

    ngx_keyhold_probe_log = log;

    /* held, so that an early end of the first does not free them all */

    ngx_keyhold_probe_active = 1;

    for (i = 0; i < NGX_KEYHOLD_PROBES; i++) {
        ngx_keyhold_probe_next(&ngx_keyhold_probes[i]);
    }

    if (--ngx_keyhold_probe_active == 0) {
        ngx_keyhold_probe_exit();
    }
}


void
ngx_keyhold_probe_exit(void)
{
    ngx_uint_t  i;

    if (ngx_keyhold_probes == NULL) {
        return;
    }

    for (i = 0; i < NGX_KEYHOLD_PROBES; i++) {
        if (ngx_keyhold_probes[i].active) {
            ngx_keyhold_op_cancel(&ngx_keyhold_probes[i].op);
        }
    }

    ngx_free(ngx_keyhold_probes);
    ngx_keyhold_probes = NULL;
}


static void
ngx_keyhold_probe_next(ngx_keyhold_probe_t *probe)
{
    ngx_keyhold_key_t  *keys;

    if (ngx_keyhold_probe_n == ngx_keyhold_conf->keys.nelts) {
        return;
    }

    keys = ngx_keyhold_conf->keys.elts;

    ngx_memzero(probe, sizeof(ngx_keyhold_probe_t));

    probe->key = &keys[ngx_keyhold_probe_n++];
    probe->active = 1;

    probe->req.op = KH_OP_PUBLIC_KEY;
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
    probe->op.unlimited = 1;

    ngx_keyhold_probe_active++;

    (void) ngx_keyhold_op_start(&probe->op);
}


/* The entry's views into the reply hold during this call. */

static void
ngx_keyhold_probe_handler(ngx_keyhold_op_t *op)
{
    u_char                *p, text[KH_NAME_MAX + 80];
    ngx_uint_t             level;
    const char            *why;
    ngx_keyhold_agent_t   *agent, **agents;
    ngx_keyhold_probe_t   *probe;

    probe = op->data;
    probe->active = 0;

    agents = ngx_keyhold_conf->agents.elts;
    agent = op->agent ? op->agent : agents[0];

    why = NULL;
    level = NGX_LOG_ERR;

    if (op->result == KH_E_DEADLINE || kh_result_retryable(op->result)) {
        level = NGX_LOG_WARN;
    }

    if (op->result != KH_OK) {
        why = kh_result_text(op->result);

    } else if (probe->entry.id.len != KH_KEY_ID_LEN
               || ngx_memcmp(probe->entry.id.data, probe->key->id,
                             KH_KEY_ID_LEN) != 0)
    {
        why = "the agent's key of that name has another public key";

    } else if (probe->entry.state != KH_STATE_ENABLED) {
        why = "the key is not enabled";
    }

    if (why != NULL) {
        p = ngx_keyhold_key_text(text, text + sizeof(text), &probe->req);

        ngx_log_error(level, ngx_keyhold_probe_log, 0,
                      "keyhold: key %*s, which the configuration needs, can "
                      "not be used at agent %V: %s%s%s",
                      p - text, text, &agent->name, why,
                      op->detail[0] ? ": " : "", op->detail);
    }

    ngx_keyhold_probe_next(probe);

    if (--ngx_keyhold_probe_active == 0) {
        ngx_keyhold_probe_exit();
    }
}

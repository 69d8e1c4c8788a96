/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether an agent is to be believed.  libssl sends what it is given: a bad
 * signature would be noticed by the client alone.
 *
 * Each reply's form is looked at, and each RSA signature is verified, which
 * costs a thirtieth of what making it costs.  With curves a verification costs
 * more than the signature: there the first few of a connection are verified,
 * then one in 128 (with P-256 half a microsecond for each handshake), and some
 * more when a client has not accepted a signature of that agent.
 */

#include "ngx_keyhold.h"
#include "provider.h"


#define NGX_KEYHOLD_CHECK_FIRST   4
#define NGX_KEYHOLD_CHECK_CAUGHT  64     /* it has been wrong before */
#define NGX_KEYHOLD_CHECK_ALERT   8
#define NGX_KEYHOLD_CHECK_EVERY   128

/* clients can be wrong too, or mean to keep us busy */
#define NGX_KEYHOLD_ALERT_MSEC    1000


void
ngx_keyhold_check_closely(ngx_keyhold_agent_t *agent)
{
    agent->checks = agent->strikes ? NGX_KEYHOLD_CHECK_CAUGHT
                                   : NGX_KEYHOLD_CHECK_FIRST;
}


void
ngx_keyhold_check_alert(ngx_str_t *name)
{
    ngx_keyhold_agent_t  *agent;

    agent = ngx_queue_data(name, ngx_keyhold_agent_t, name);

    if (ngx_current_msec - agent->alerted < NGX_KEYHOLD_ALERT_MSEC) {
        return;
    }

    agent->alerted = ngx_current_msec;
    agent->checks = ngx_max(agent->checks, NGX_KEYHOLD_CHECK_ALERT);
}


static ngx_uint_t
ngx_keyhold_check_due(ngx_keyhold_agent_t *agent, kh_key_type type)
{
    if (agent->checks) {
        agent->checks--;
        return 1;
    }

    if (type == KH_KEY_RSA) {
        return 1;
    }

    if (++agent->unchecked < NGX_KEYHOLD_CHECK_EVERY) {
        return 0;
    }

    agent->unchecked = 0;

    return 1;
}


const char *
ngx_keyhold_check(ngx_keyhold_op_t *op, const kh_reply *reply)
{
    ngx_uint_t  good;

    if (reply->status != KH_OK || reply->op == KH_OP_DESCRIBE) {
        return NULL;
    }

    if (reply->data.len > op->cap) {
        return "a reply that is too long";
    }

    if (op->key == NULL) {
        return NULL;
    }

    if (!kh_provider_reply_shape(op->key, op->req, reply->data.data,
                                 reply->data.len))
    {
        return reply->op == KH_OP_SIGN ? "a signature that is none"
                                       : "a secret of another length";
    }

    if (reply->op != KH_OP_SIGN
        || !ngx_keyhold_check_due(op->agent, kh_provider_key_type(op->key)))
    {
        return NULL;
    }

    good = kh_provider_signature_good(op->key, op->req, reply->data.data,
                                      reply->data.len);

    if (!good) {

        /* nginx would take what is left there for its own */

        ERR_clear_error();
    }

    return good ? NULL : "a signature that does not verify";
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to ngx_keyhold_route.c, which sends operations to agents, and
 * ngx_keyhold_retry.c, which decides when one is sent once more.
 */

#ifndef _NGX_KEYHOLD_ROUTE_H_INCLUDED_
#define _NGX_KEYHOLD_ROUTE_H_INCLUDED_


#include "ngx_keyhold.h"


extern ngx_keyhold_agent_t  **ngx_keyhold_agents;
extern ngx_uint_t             ngx_keyhold_n;
extern ngx_keyhold_budget_t   ngx_keyhold_budget;


/*
 * To an agent that is not in that set.  NGX_OK: sent.  NGX_AGAIN: no agent can
 * take anything.  NGX_DECLINED: some can, but not this.  NGX_ERROR: it can never
 * be sent, op->result says why.
 */
ngx_int_t ngx_keyhold_route_to(ngx_keyhold_op_t *op, ngx_keyhold_set_t not);
/* It waits for certain agents. */
void ngx_keyhold_route_choosy(ngx_keyhold_op_t *op);
/*
 * Whether to wait is of no use: then the operation is delayed by nothing, with
 * its result.
 */
ngx_uint_t ngx_keyhold_route_hopeless(ngx_keyhold_op_t *op);
/* The agent lacks its key, or has failed at it: others go first for a while. */
void ngx_keyhold_route_lacks(ngx_keyhold_op_t *op, ngx_keyhold_agent_t *agent,
    ngx_uint_t failed);
/* Each has refused: once more, to any, after that or a little more. */
void ngx_keyhold_route_later(ngx_keyhold_op_t *op, ngx_msec_t msec);
/* Of an agent: something has been there for keyhold_try_timeout. */
void ngx_keyhold_route_overdue_handler(ngx_event_t *ev);


#endif /* _NGX_KEYHOLD_ROUTE_H_INCLUDED_ */

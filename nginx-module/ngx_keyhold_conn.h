/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to ngx_keyhold_conn.c, which has the session with an agent, and
 * ngx_keyhold_away.c, which says what becomes of the agent when it ends.
 */

#ifndef _NGX_KEYHOLD_CONN_H_INCLUDED_
#define _NGX_KEYHOLD_CONN_H_INCLUDED_


#include "ngx_keyhold.h"


#define NGX_KEYHOLD_BACKOFF_MIN  10
#define NGX_KEYHOLD_BACKOFF_MAX  500


/* Ends the session and the connection; its operations go elsewhere. */
void ngx_keyhold_conn_drop(ngx_keyhold_agent_t *agent, kh_result why);
/*
 * The connection could not be made, or is no more, which is dropped; detail may
 * be NULL.
 */
void ngx_keyhold_conn_lost(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text, const char *detail);
/* It answered what can not be the answer: nothing more it says is used. */
void ngx_keyhold_conn_wrong(ngx_keyhold_agent_t *agent, const char *text);
/* It may be relied on again. */
void ngx_keyhold_conn_back(ngx_keyhold_agent_t *agent);


#endif /* _NGX_KEYHOLD_CONN_H_INCLUDED_ */

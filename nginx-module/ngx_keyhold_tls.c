/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS to agents on TCP.
 */

#include "ngx_keyhold.h"


char *
ngx_keyhold_tls_context(ngx_cycle_t *cycle, ngx_keyhold_conf_t *conf)
{
    ngx_uint_t             i;
    ngx_keyhold_agent_t  **agents;

    agents = conf->agents.elts;

    for (i = 0; i < conf->agents.nelts; i++) {
        if (agents[i]->tls) {
            ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                          "agent \"%V\": this version knows agents on Unix "
                          "sockets only", &agents[i]->name);
            return NGX_CONF_ERROR;
        }
    }

    return NGX_CONF_OK;
}


ngx_int_t
ngx_keyhold_tls_start(ngx_keyhold_agent_t *agent)
{
    return NGX_ERROR;
}


void
ngx_keyhold_tls_end(ngx_keyhold_agent_t *agent)
{
}


ssize_t
ngx_keyhold_tls_recv(ngx_connection_t *c, u_char *buf, size_t size)
{
    return NGX_ERROR;
}


ssize_t
ngx_keyhold_tls_send(ngx_connection_t *c, u_char *buf, size_t size)
{
    return NGX_ERROR;
}


const char *
ngx_keyhold_tls_why(ngx_keyhold_agent_t *agent)
{
    return "";
}

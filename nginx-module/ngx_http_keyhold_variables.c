/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Variables for the access log: how the private-key operation of a connection
 * went ($keyhold_status), how long it took ($keyhold_time), and which agent did
 * it ($keyhold_agent).  Not found where no key of an agent's was needed.
 */

#include "ngx_http_keyhold.h"


static ngx_int_t ngx_http_keyhold_status_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_keyhold_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_keyhold_agent_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


static ngx_http_variable_t  ngx_http_keyhold_vars[] = {

    { ngx_string("keyhold_status"), NULL,
      ngx_http_keyhold_status_variable, 0, NGX_HTTP_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_time"), NULL,
      ngx_http_keyhold_time_variable, 0, NGX_HTTP_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_agent"), NULL,
      ngx_http_keyhold_agent_variable, 0, NGX_HTTP_VAR_CHANGEABLE, 0 },

      ngx_http_null_variable
};


ngx_int_t
ngx_http_keyhold_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_keyhold_vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static void
ngx_http_keyhold_value(ngx_http_variable_value_t *v, const void *data,
    size_t len)
{
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
    v->data = (u_char *) data;
    v->len = len;
}


static ngx_int_t
ngx_http_keyhold_status_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    const char             *name;
    ngx_keyhold_outcome_t  *outcome;

    outcome = ngx_keyhold_get_outcome(r->connection);

    if (outcome == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    name = kh_result_name(outcome->status);
    ngx_http_keyhold_value(v, name, ngx_strlen(name));

    return NGX_OK;
}


static ngx_int_t
ngx_http_keyhold_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char                 *p;
    ngx_keyhold_outcome_t  *outcome;

    outcome = ngx_keyhold_get_outcome(r->connection);

    if (outcome == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT_T_LEN + sizeof(".000000") - 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_http_keyhold_value(v, p,
                           ngx_sprintf(p, "%ui.%06ui", outcome->usec / 1000000,
                                       outcome->usec % 1000000) - p);

    return NGX_OK;
}


static ngx_int_t
ngx_http_keyhold_agent_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_keyhold_outcome_t  *outcome;

    outcome = ngx_keyhold_get_outcome(r->connection);

    if (outcome == NULL || outcome->agent == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    ngx_http_keyhold_value(v, outcome->agent->data, outcome->agent->len);

    return NGX_OK;
}

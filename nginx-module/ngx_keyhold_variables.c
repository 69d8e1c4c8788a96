/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values of the variables, for http and stream alike: how the private-key
 * operation of a connection went, how long it took, which agent did it.  Not
 * found where no key of an agent's was needed.
 */

#include "ngx_keyhold.h"


static void
ngx_keyhold_variable_value(ngx_variable_value_t *v, const void *data,
    size_t len)
{
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
    v->data = (u_char *) data;
    v->len = len;
}


ngx_int_t
ngx_keyhold_variable(ngx_connection_t *c, ngx_pool_t *pool,
    ngx_variable_value_t *v, uintptr_t what)
{
    u_char                 *p;
    const char             *name;
    ngx_keyhold_outcome_t  *outcome;

    outcome = ngx_keyhold_get_outcome(c);

    if (outcome == NULL
        || (what == NGX_KEYHOLD_VAR_AGENT && outcome->agent == NULL))
    {
        v->not_found = 1;
        return NGX_OK;
    }

    switch (what) {

    case NGX_KEYHOLD_VAR_STATUS:
        name = kh_result_name(outcome->status);
        ngx_keyhold_variable_value(v, name, ngx_strlen(name));
        break;

    case NGX_KEYHOLD_VAR_TIME:
        p = ngx_pnalloc(pool, NGX_INT_T_LEN + sizeof(".000000") - 1);
        if (p == NULL) {
            return NGX_ERROR;
        }

        ngx_keyhold_variable_value(v, p,
                                   ngx_sprintf(p, "%ui.%06ui",
                                               outcome->usec / 1000000,
                                               outcome->usec % 1000000)
                                   - p);
        break;

    case NGX_KEYHOLD_VAR_TRIES:
        p = ngx_pnalloc(pool, NGX_INT_T_LEN);
        if (p == NULL) {
            return NGX_ERROR;
        }

        ngx_keyhold_variable_value(v, p,
                                   ngx_sprintf(p, "%ui", outcome->tries) - p);
        break;

    default: /* NGX_KEYHOLD_VAR_AGENT */
        ngx_keyhold_variable_value(v, outcome->agent->data,
                                   outcome->agent->len);
        break;
    }

    return NGX_OK;
}

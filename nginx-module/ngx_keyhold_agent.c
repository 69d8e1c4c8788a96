/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directive keyhold_agent, and the check at the end that the settings go
 * together.
 */

#include "ngx_keyhold.h"


static char *ngx_keyhold_agent_unix(ngx_conf_t *cf,
    ngx_keyhold_agent_t *agent, ngx_str_t *path);
static char *ngx_keyhold_agent_tcp(ngx_conf_t *cf,
    ngx_keyhold_agent_t *agent, ngx_str_t *where);
static char *ngx_keyhold_agent_parameter(ngx_conf_t *cf,
    ngx_keyhold_agent_t *agent, ngx_str_t *value);
static ngx_uint_t ngx_keyhold_agent_prefix(ngx_str_t *value,
    const char *prefix, ngx_str_t *rest);


char *
ngx_keyhold_agent(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_keyhold_conf_t *kcf = conf;

    char                 *rv;
    ngx_str_t            *value, rest;
    ngx_uint_t            i;
    ngx_keyhold_agent_t  *agent, **slot, **agents;

    value = cf->args->elts;
    agents = kcf->agents.elts;

    for (i = 0; i < kcf->agents.nelts; i++) {
        if (agents[i]->name.len == value[1].len
            && ngx_strcmp(agents[i]->name.data, value[1].data) == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate agent \"%V\"", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    if (kcf->agents.nelts == NGX_KEYHOLD_AGENTS_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "more than %d \"keyhold_agent\"",
                           NGX_KEYHOLD_AGENTS_MAX);
        return NGX_CONF_ERROR;
    }

    agent = ngx_pcalloc(cf->pool, sizeof(ngx_keyhold_agent_t));
    if (agent == NULL) {
        return NGX_CONF_ERROR;
    }

    agent->name = value[1];
    agent->index = kcf->agents.nelts;
    agent->share.weight = 1;

    if (ngx_keyhold_agent_prefix(&value[1], "unix:", &rest)) {
        rv = ngx_keyhold_agent_unix(cf, agent, &rest);

    } else if (ngx_keyhold_agent_prefix(&value[1], "tcp:", &rest)) {
        rv = ngx_keyhold_agent_tcp(cf, agent, &rest);

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "agent \"%V\" is not of the form \"unix:PATH\" or "
                           "\"tcp:HOST:PORT\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    for (i = 2; i < cf->args->nelts; i++) {

        rv = ngx_keyhold_agent_parameter(cf, agent, &value[i]);

        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    slot = ngx_array_push(&kcf->agents);
    if (slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = agent;

    return NGX_CONF_OK;
}


/* 1: it begins with that, and *rest, which is not empty, follows. */

static ngx_uint_t
ngx_keyhold_agent_prefix(ngx_str_t *value, const char *prefix, ngx_str_t *rest)
{
    size_t  len;

    len = ngx_strlen(prefix);

    if (value->len <= len || ngx_strncmp(value->data, prefix, len) != 0) {
        return 0;
    }

    rest->data = value->data + len;
    rest->len = value->len - len;

    return 1;
}


static char *
ngx_keyhold_agent_unix(ngx_conf_t *cf, ngx_keyhold_agent_t *agent,
    ngx_str_t *path)
{
    struct sockaddr_un  *sun;

    if (path->len >= sizeof(sun->sun_path)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the path of agent \"%V\" is too long",
                           &agent->name);
        return NGX_CONF_ERROR;
    }

    agent->addrs = ngx_pcalloc(cf->pool, sizeof(ngx_addr_t));
    sun = ngx_pcalloc(cf->pool, sizeof(struct sockaddr_un));

    if (agent->addrs == NULL || sun == NULL) {
        return NGX_CONF_ERROR;
    }

    sun->sun_family = AF_UNIX;
    ngx_memcpy(sun->sun_path, path->data, path->len);

    agent->addrs->sockaddr = (struct sockaddr *) sun;
    agent->addrs->socklen = sizeof(struct sockaddr_un);
    agent->addrs->name = agent->name;
    agent->naddrs = 1;

    return NGX_CONF_OK;
}


static char *
ngx_keyhold_agent_tcp(ngx_conf_t *cf, ngx_keyhold_agent_t *agent,
    ngx_str_t *where)
{
    ngx_url_t  u;

    ngx_memzero(&u, sizeof(ngx_url_t));

    u.url = *where;

    if (ngx_parse_url(cf->pool, &u) != NGX_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "agent \"%V\": %s", &agent->name,
                           u.err ? u.err : "no such host");
        return NGX_CONF_ERROR;
    }

    if (u.no_port || u.port == 0 || u.uri.len || u.family == AF_UNIX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "agent \"%V\" is not of the form \"tcp:HOST:PORT\"",
                           &agent->name);
        return NGX_CONF_ERROR;
    }

    agent->tls = 1;
    agent->addrs = u.addrs;
    agent->naddrs = u.naddrs;

    /* an address in brackets is looked for without them */

    if (u.host.len > 2 && u.host.data[0] == '[') {
        u.host.data++;
        u.host.len -= 2;
    }

    agent->server_name.len = u.host.len;
    agent->server_name.data = ngx_pnalloc(cf->pool, u.host.len + 1);

    if (agent->server_name.data == NULL) {
        return NGX_CONF_ERROR;
    }

    (void) ngx_cpystrn(agent->server_name.data, u.host.data, u.host.len + 1);

    return NGX_CONF_OK;
}


static char *
ngx_keyhold_agent_parameter(ngx_conf_t *cf, ngx_keyhold_agent_t *agent,
    ngx_str_t *value)
{
    ngx_int_t  n;
    ngx_str_t  rest;

    if (ngx_strcmp(value->data, "backup") == 0) {
        agent->share.backup = 1;
        return NGX_CONF_OK;
    }

    if (ngx_keyhold_agent_prefix(value, "weight=", &rest)) {

        n = ngx_atoi(rest.data, rest.len);

        if (n < 1 || n > NGX_KEYHOLD_WEIGHT_MAX) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" must be 1 to %d", value,
                               NGX_KEYHOLD_WEIGHT_MAX);
            return NGX_CONF_ERROR;
        }

        agent->share.weight = n;
        return NGX_CONF_OK;
    }

    if (!agent->tls && ngx_keyhold_agent_prefix(value, "token=", &rest)) {
        return ngx_keyhold_token(cf, agent, &rest);
    }

    if (agent->tls && ngx_keyhold_agent_prefix(value, "name=", &rest)) {
        agent->server_name = rest;
        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "token=", 6) == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"token\" is for agents on Unix sockets: one on "
                           "TCP knows us by \"keyhold_certificate\"");
        return NGX_CONF_ERROR;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                       value);
    return NGX_CONF_ERROR;
}


char *
ngx_keyhold_agents_init(ngx_cycle_t *cycle, ngx_keyhold_conf_t *conf)
{
    ngx_uint_t             i, primaries;
    ngx_keyhold_agent_t  **agents;

    ngx_conf_init_msec_value(conf->try_timeout,
                             ngx_max(ngx_min(1000, conf->timeout / 2), 1));

    if (conf->try_timeout == 0) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "\"keyhold_try_timeout\" must not be 0");
        return NGX_CONF_ERROR;
    }

    if (conf->agents.nelts > 1 && conf->try_timeout >= conf->timeout) {
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                      "\"keyhold_try_timeout\" is not less than "
                      "\"keyhold_timeout\": what a silent agent has will fail "
                      "before another is asked");
    }

    agents = conf->agents.elts;
    primaries = 0;

    for (i = 0; i < conf->agents.nelts; i++) {
        primaries += !agents[i]->share.backup;
    }

    if (conf->agents.nelts && primaries == 0) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "each \"keyhold_agent\" is a \"backup\": one must not be");
        return NGX_CONF_ERROR;
    }

    return ngx_keyhold_tls_context(cycle, conf);
}

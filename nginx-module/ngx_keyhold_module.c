/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core module: the settings that http{} and stream{} share, and the life of
 * the module in master and workers.
 *
 * nginx makes a core module's configuration as soon as load_module is read.
 * So the provider is there for the keys of whichever block comes first.
 */

#include "ngx_keyhold.h"


static void *ngx_keyhold_create_conf(ngx_cycle_t *cycle);
static char *ngx_keyhold_init_conf(ngx_cycle_t *cycle, void *conf);
static void ngx_keyhold_conf_cleanup(void *data);

static ngx_int_t ngx_keyhold_init_module(ngx_cycle_t *cycle);
static ngx_int_t ngx_keyhold_init_process(ngx_cycle_t *cycle);
static void ngx_keyhold_exit_process(ngx_cycle_t *cycle);


ngx_keyhold_conf_t  *ngx_keyhold_conf;


static ngx_core_module_t  ngx_keyhold_module_ctx = {
    ngx_string("keyhold"),
    ngx_keyhold_create_conf,
    ngx_keyhold_init_conf
};


ngx_module_t  ngx_keyhold_module = {
    NGX_MODULE_V1,
    &ngx_keyhold_module_ctx,               /* module context */
    NULL,                                  /* module directives */
    NGX_CORE_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_keyhold_init_module,               /* init module */
    ngx_keyhold_init_process,              /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_keyhold_exit_process,              /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


/* ---- configuration ---- */


static void *
ngx_keyhold_create_conf(ngx_cycle_t *cycle)
{
    ngx_keyhold_conf_t  *kcf;
    ngx_pool_cleanup_t  *cln;

    kcf = ngx_pcalloc(cycle->pool, sizeof(ngx_keyhold_conf_t));
    if (kcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&kcf->agents, cycle->pool, 1,
                       sizeof(ngx_keyhold_agent_t *))
        != NGX_OK
        || ngx_array_init(&kcf->keys, cycle->pool, 8,
                          sizeof(ngx_keyhold_key_t))
           != NGX_OK)
    {
        return NULL;
    }

    kcf->pool = cycle->pool;
    kcf->timeout = NGX_CONF_UNSET_MSEC;
    kcf->try_timeout = NGX_CONF_UNSET_MSEC;
    kcf->connect_timeout = NGX_CONF_UNSET_MSEC;
    kcf->max_inflight = NGX_CONF_UNSET;

    cln = ngx_pool_cleanup_add(cycle->pool, 0);
    if (cln == NULL) {
        return NULL;
    }

    cln->handler = ngx_keyhold_conf_cleanup;

    /* keys are loaded by other modules while they are configured */

    if (ngx_keyhold_provider_load(cycle->log) != NGX_OK) {
        return NULL;
    }

    ngx_keyhold_provider_collect(kcf);

    return kcf;
}


static void
ngx_keyhold_conf_cleanup(void *data)
{
    ngx_keyhold_provider_collect(NULL);
}


/* All blocks have been read, and their keys are loaded. */

static char *
ngx_keyhold_init_conf(ngx_cycle_t *cycle, void *conf)
{
    ngx_keyhold_conf_t *kcf = conf;

    ngx_conf_init_msec_value(kcf->timeout, 5000);
    ngx_conf_init_msec_value(kcf->connect_timeout, 1000);
    ngx_conf_init_value(kcf->max_inflight, 10000);

    if (kcf->timeout == 0 || kcf->timeout > KH_DEADLINE_MAX_MS) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "\"keyhold_timeout\" must be 1ms to %ds",
                      KH_DEADLINE_MAX_MS / 1000);
        return NGX_CONF_ERROR;
    }

    if (kcf->connect_timeout == 0) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "\"keyhold_connect_timeout\" must not be 0");
        return NGX_CONF_ERROR;
    }

    ngx_keyhold_provider_collected(kcf);

    if (kcf->agents.nelts) {
        return ngx_keyhold_agents_init(cycle, kcf);
    }

    if (kcf->on) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "\"keyhold on\" needs a \"keyhold_agent\"");
        return NGX_CONF_ERROR;
    }

    if (kcf->keys.nelts) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "keyhold: a key reference is used as a key, but there "
                      "is no \"keyhold_agent\" that could have it");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* ---- master and workers ---- */


static ngx_int_t
ngx_keyhold_init_module(ngx_cycle_t *cycle)
{
    ngx_keyhold_conf_t  *kcf;

    kcf = (ngx_keyhold_conf_t *) ngx_get_conf(cycle->conf_ctx,
                                              ngx_keyhold_module);

    if (kcf->agents.nelts) {
        ngx_keyhold_coro_check(kcf->max_inflight, cycle->log);
    }

    /* no descriptor is opened here: agents may come and go after the fork */

    return ngx_keyhold_gate_init(cycle->log);
}


static ngx_int_t
ngx_keyhold_init_process(ngx_cycle_t *cycle)
{
    ngx_uint_t             i;
    ngx_keyhold_conf_t    *kcf;
    ngx_keyhold_agent_t  **agents;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    kcf = (ngx_keyhold_conf_t *) ngx_get_conf(cycle->conf_ctx,
                                              ngx_keyhold_module);

    if (kcf->agents.nelts == 0) {
        return NGX_OK;
    }

    if (ngx_keyhold_op_init(cycle) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_keyhold_handshake_init();

    ngx_keyhold_conf = kcf;

    ngx_keyhold_route_init(kcf, cycle->log);

    agents = kcf->agents.elts;

    for (i = 0; i < kcf->agents.nelts; i++) {
        if (ngx_keyhold_conn_init(agents[i], kcf, cycle->log) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static void
ngx_keyhold_exit_process(ngx_cycle_t *cycle)
{
    ngx_uint_t             i;
    ngx_keyhold_agent_t  **agents;

    if (ngx_keyhold_conf == NULL) {
        return;
    }

    ngx_keyhold_handshake_exit();
    ngx_keyhold_probe_exit();

    agents = ngx_keyhold_conf->agents.elts;

    for (i = 0; i < ngx_keyhold_conf->agents.nelts; i++) {
        ngx_keyhold_conn_close(agents[i]);
    }

    ngx_keyhold_provider_exit();
    ngx_keyhold_coro_cleanup();

    ngx_keyhold_conf = NULL;
}

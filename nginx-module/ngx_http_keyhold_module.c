/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directives, and the life of the module in master and workers.
 */

#include "ngx_http_keyhold.h"

#include <ngx_http_ssl_module.h>


typedef struct {
    ngx_flag_t                enable;
} ngx_http_keyhold_srv_conf_t;


static ngx_int_t ngx_http_keyhold_init(ngx_conf_t *cf);

static void *ngx_http_keyhold_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_keyhold_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_keyhold_create_srv_conf(ngx_conf_t *cf);
static char *ngx_http_keyhold_merge_srv_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_keyhold_references(ngx_conf_t *cf,
    ngx_keyhold_conf_t *kcf);

static void ngx_http_keyhold_conf_cleanup(void *data);

static ngx_int_t ngx_http_keyhold_init_module(ngx_cycle_t *cycle);
static ngx_int_t ngx_http_keyhold_init_process(ngx_cycle_t *cycle);
static void ngx_http_keyhold_exit_process(ngx_cycle_t *cycle);


ngx_keyhold_conf_t  *ngx_keyhold_conf;


static ngx_conf_num_bounds_t  ngx_http_keyhold_inflight_bounds = {
    ngx_conf_check_num_bounds, 1, 1000000
};


static ngx_command_t  ngx_http_keyhold_commands[] = {

    { ngx_string("keyhold_agent"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_keyhold_agent,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("keyhold"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_keyhold_srv_conf_t, enable),
      NULL },

    { ngx_string("keyhold_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, timeout),
      NULL },

    { ngx_string("keyhold_try_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, try_timeout),
      NULL },

    { ngx_string("keyhold_certificate"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, certificate),
      NULL },

    { ngx_string("keyhold_certificate_key"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, certificate_key),
      NULL },

    { ngx_string("keyhold_trusted_certificate"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, trusted_certificate),
      NULL },

    { ngx_string("keyhold_connect_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, connect_timeout),
      NULL },

    { ngx_string("keyhold_max_inflight"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_keyhold_conf_t, max_inflight),
      &ngx_http_keyhold_inflight_bounds },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_keyhold_module_ctx = {
    ngx_http_keyhold_add_variables,        /* preconfiguration */
    ngx_http_keyhold_init,                 /* postconfiguration */

    ngx_http_keyhold_create_main_conf,     /* create main configuration */
    ngx_http_keyhold_init_main_conf,       /* init main configuration */

    ngx_http_keyhold_create_srv_conf,      /* create server configuration */
    ngx_http_keyhold_merge_srv_conf,       /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_keyhold_module = {
    NGX_MODULE_V1,
    &ngx_http_keyhold_module_ctx,          /* module context */
    ngx_http_keyhold_commands,             /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_http_keyhold_init_module,          /* init module */
    ngx_http_keyhold_init_process,         /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_keyhold_exit_process,         /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


/* ---- configuration ---- */


static void *
ngx_http_keyhold_create_main_conf(ngx_conf_t *cf)
{
    ngx_keyhold_conf_t  *kcf;
    ngx_pool_cleanup_t  *cln;

    kcf = ngx_pcalloc(cf->pool, sizeof(ngx_keyhold_conf_t));
    if (kcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&kcf->agents, cf->pool, 1,
                       sizeof(ngx_keyhold_agent_t *))
        != NGX_OK
        || ngx_array_init(&kcf->keys, cf->pool, 8, sizeof(ngx_keyhold_key_t))
           != NGX_OK)
    {
        return NULL;
    }

    kcf->pool = cf->pool;
    kcf->timeout = NGX_CONF_UNSET_MSEC;
    kcf->try_timeout = NGX_CONF_UNSET_MSEC;
    kcf->connect_timeout = NGX_CONF_UNSET_MSEC;
    kcf->max_inflight = NGX_CONF_UNSET;

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL) {
        return NULL;
    }

    cln->handler = ngx_http_keyhold_conf_cleanup;

    /* keys are loaded by other modules while they are configured */

    if (ngx_keyhold_provider_load(cf->log) != NGX_OK) {
        return NULL;
    }

    ngx_keyhold_provider_collect(kcf);

    return kcf;
}


static void
ngx_http_keyhold_conf_cleanup(void *data)
{
    ngx_keyhold_provider_collect(NULL);
}


/*
 * Comes, with our merge_srv_conf, before the ssl module's: see the order of
 * modules in ngx_keyhold_modules.c.
 */

static char *
ngx_http_keyhold_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_keyhold_conf_t *kcf = conf;

    ngx_conf_init_msec_value(kcf->timeout, 5000);
    ngx_conf_init_msec_value(kcf->connect_timeout, 1000);
    ngx_conf_init_value(kcf->max_inflight, 10000);

    if (kcf->timeout == 0 || kcf->timeout > KH_DEADLINE_MAX_MS) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"keyhold_timeout\" must be 1ms to %ds",
                           KH_DEADLINE_MAX_MS / 1000);
        return NGX_CONF_ERROR;
    }

    if (kcf->connect_timeout == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"keyhold_connect_timeout\" must not be 0");
        return NGX_CONF_ERROR;
    }

    kcf->http_ssl = ngx_http_conf_get_module_srv_conf(cf, ngx_http_ssl_module);

    return ngx_keyhold_agents_init(cf->cycle, kcf);
}


static void *
ngx_http_keyhold_create_srv_conf(ngx_conf_t *cf)
{
    ngx_http_keyhold_srv_conf_t  *kscf;

    kscf = ngx_pcalloc(cf->pool, sizeof(ngx_http_keyhold_srv_conf_t));
    if (kscf == NULL) {
        return NULL;
    }

    kscf->enable = NGX_CONF_UNSET;

    return kscf;
}


static char *
ngx_http_keyhold_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_keyhold_srv_conf_t *prev = parent;
    ngx_http_keyhold_srv_conf_t *conf = child;

    ngx_uint_t                own;
    ngx_keyhold_conf_t       *kcf;
    ngx_http_ssl_srv_conf_t  *sscf;

    own = (conf->enable == 1);

    ngx_conf_merge_value(conf->enable, prev->enable, 0);

    if (!conf->enable) {
        return NGX_CONF_OK;
    }

    kcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_keyhold_module);

    if (kcf->agents.nelts == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"keyhold on\" needs a \"keyhold_agent\"");
        return NGX_CONF_ERROR;
    }

    sscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_ssl_module);

    if (sscf->certificate_keys != NGX_CONF_UNSET_PTR) {

        /* of this very server: a local key, or a reference */

        if (own) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"keyhold on\" and \"ssl_certificate_key\" in "
                               "the same server: use one of them");
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    return ngx_http_keyhold_references(cf, kcf);
}


/* The ssl module has not merged yet: its values are the server's or unset. */

static char *
ngx_http_keyhold_references(ngx_conf_t *cf, ngx_keyhold_conf_t *kcf)
{
    ngx_str_t                *cert, *ref;
    ngx_uint_t                i;
    ngx_array_t              *certs, *refs;
    ngx_http_ssl_srv_conf_t  *sscf, *http;

    sscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_ssl_module);
    http = kcf->http_ssl;

    certs = sscf->certificates;

    if (certs == NGX_CONF_UNSET_PTR) {
        certs = http->certificates;
    }

    if (certs == NGX_CONF_UNSET_PTR || certs == NULL) {
        return NGX_CONF_OK;
    }

    refs = ngx_array_create(cf->pool, certs->nelts, sizeof(ngx_str_t));
    if (refs == NULL) {
        return NGX_CONF_ERROR;
    }

    cert = certs->elts;

    for (i = 0; i < certs->nelts; i++) {

        if (ngx_http_script_variables_count(&cert[i])) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"keyhold on\" can not be used with variables "
                               "in \"ssl_certificate\" (\"%V\"): give key "
                               "reference files in \"ssl_certificate_key\" "
                               "(keyholdctl key reference)", &cert[i]);
            return NGX_CONF_ERROR;
        }

        ref = ngx_array_push(refs);
        if (ref == NULL) {
            return NGX_CONF_ERROR;
        }

        if (ngx_keyhold_reference(cf, &cert[i], ref) != NGX_CONF_OK) {
            return NGX_CONF_ERROR;
        }
    }

    sscf->certificate_keys = refs;

    return NGX_CONF_OK;
}


/* The ssl module has loaded its keys. */

static ngx_int_t
ngx_http_keyhold_init(ngx_conf_t *cf)
{
    ngx_keyhold_conf_t  *kcf;

    kcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_keyhold_module);

    if (kcf->keys.nelts && kcf->agents.nelts == 0) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "keyhold: a key reference is used as a key, but there "
                      "is no \"keyhold_agent\" that could have it");
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* ---- master and workers ---- */


static ngx_int_t
ngx_http_keyhold_init_module(ngx_cycle_t *cycle)
{
    ngx_keyhold_conf_t  *kcf;

    kcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_keyhold_module);

    ngx_keyhold_provider_collected(kcf);

    if (kcf != NULL && kcf->agents.nelts) {
        ngx_keyhold_coro_check(kcf->max_inflight, cycle->log);
    }

    /* no descriptor is opened here: agents may come and go after the fork */

    return ngx_keyhold_gate_init(cycle->log);
}


static ngx_int_t
ngx_http_keyhold_init_process(ngx_cycle_t *cycle)
{
    ngx_uint_t             i;
    ngx_keyhold_conf_t    *kcf;
    ngx_keyhold_agent_t  **agents;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    kcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_keyhold_module);

    if (kcf == NULL || kcf->agents.nelts == 0) {
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
ngx_http_keyhold_exit_process(ngx_cycle_t *cycle)
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

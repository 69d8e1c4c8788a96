/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The http part: directives in http{}, "keyhold on" for its servers, variables.
 */

#include "ngx_keyhold_settings.h"

#include <ngx_http.h>
#include <ngx_http_ssl_module.h>


typedef struct {
    ngx_flag_t                enable;
    ngx_http_ssl_srv_conf_t  *ssl;        /* at the http level */
} ngx_http_keyhold_srv_conf_t;


static ngx_int_t ngx_http_keyhold_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_keyhold_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);

static void *ngx_http_keyhold_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_keyhold_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_keyhold_create_srv_conf(ngx_conf_t *cf);
static char *ngx_http_keyhold_merge_srv_conf(ngx_conf_t *cf, void *parent,
    void *child);


static ngx_command_t  ngx_http_keyhold_commands[] = {

    { ngx_string("keyhold"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_keyhold_srv_conf_t, enable),
      NULL },

      ngx_keyhold_settings(NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET),

      ngx_null_command
};


static ngx_http_module_t  ngx_http_keyhold_module_ctx = {
    ngx_http_keyhold_add_variables,        /* preconfiguration */
    NULL,                                  /* postconfiguration */

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
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_variable_t  ngx_http_keyhold_vars[] = {

    { ngx_string("keyhold_status"), NULL, ngx_http_keyhold_variable,
      NGX_KEYHOLD_VAR_STATUS, NGX_HTTP_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_time"), NULL, ngx_http_keyhold_variable,
      NGX_KEYHOLD_VAR_TIME, NGX_HTTP_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_agent"), NULL, ngx_http_keyhold_variable,
      NGX_KEYHOLD_VAR_AGENT, NGX_HTTP_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_tries"), NULL, ngx_http_keyhold_variable,
      NGX_KEYHOLD_VAR_TRIES, NGX_HTTP_VAR_CHANGEABLE, 0 },

      ngx_http_null_variable
};


static ngx_int_t
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


static ngx_int_t
ngx_http_keyhold_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data)
{
    return ngx_keyhold_variable(r->connection, r->pool, v, data);
}


/* The settings are the core module's: where they stand does not matter. */

static void *
ngx_http_keyhold_create_main_conf(ngx_conf_t *cf)
{
    return ngx_get_conf(cf->cycle->conf_ctx, ngx_keyhold_module);
}


/*
 * Comes, with our merge_srv_conf, before the ssl module's: see the order of
 * modules in ngx_keyhold_modules.c.
 */

static char *
ngx_http_keyhold_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_keyhold_srv_conf_t  *kscf;

    kscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_keyhold_module);
    kscf->ssl = ngx_http_conf_get_module_srv_conf(cf, ngx_http_ssl_module);

    return NGX_CONF_OK;
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


/* The ssl module has not merged yet: its values are the server's or unset. */

static char *
ngx_http_keyhold_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_keyhold_srv_conf_t *prev = parent;
    ngx_http_keyhold_srv_conf_t *conf = child;

    ngx_uint_t                own;
    ngx_array_t              *certs;
    ngx_http_ssl_srv_conf_t  *sscf;

    own = (conf->enable == 1);

    ngx_conf_merge_value(conf->enable, prev->enable, 0);

    if (!conf->enable) {
        return NGX_CONF_OK;
    }

    sscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_ssl_module);

    certs = sscf->certificates;

    if (certs == NGX_CONF_UNSET_PTR) {
        certs = prev->ssl->certificates;
    }

    return ngx_keyhold_references(cf, own, certs, &sscf->certificate_keys);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream part, a module file of its own, since nginx's stream may be one
 * too: directives in stream{}, "keyhold on" for its servers, variables.
 *
 * What it needs of the core are symbols of ngx_http_keyhold_module.so.  They
 * are weak, so that this file can be loaded without that one, and say so.
 */

#include "ngx_keyhold_settings.h"

#include <ngx_stream.h>
#include <ngx_stream_ssl_module.h>


#pragma weak ngx_keyhold_module
#pragma weak ngx_keyhold_agent
#pragma weak ngx_keyhold_references
#pragma weak ngx_keyhold_variable


#if (nginx_version >= 1025005)
typedef ngx_stream_ssl_srv_conf_t  ngx_stream_keyhold_ssl_conf_t;
#else
typedef ngx_stream_ssl_conf_t      ngx_stream_keyhold_ssl_conf_t;
#endif


typedef struct {
    ngx_flag_t                      enable;
    ngx_stream_keyhold_ssl_conf_t  *ssl;      /* at the stream level */
} ngx_stream_keyhold_srv_conf_t;


static ngx_int_t ngx_stream_keyhold_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_stream_keyhold_variable(ngx_stream_session_t *s,
    ngx_stream_variable_value_t *v, uintptr_t data);

static void *ngx_stream_keyhold_create_main_conf(ngx_conf_t *cf);
static char *ngx_stream_keyhold_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_stream_keyhold_create_srv_conf(ngx_conf_t *cf);
static char *ngx_stream_keyhold_merge_srv_conf(ngx_conf_t *cf, void *parent,
    void *child);


static ngx_command_t  ngx_stream_keyhold_commands[] = {

    { ngx_string("keyhold"),
      NGX_STREAM_MAIN_CONF|NGX_STREAM_SRV_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_STREAM_SRV_CONF_OFFSET,
      offsetof(ngx_stream_keyhold_srv_conf_t, enable),
      NULL },

      ngx_keyhold_settings(NGX_STREAM_MAIN_CONF, NGX_STREAM_MAIN_CONF_OFFSET),

      ngx_null_command
};


static ngx_stream_module_t  ngx_stream_keyhold_module_ctx = {
    ngx_stream_keyhold_add_variables,      /* preconfiguration */
    NULL,                                  /* postconfiguration */

    ngx_stream_keyhold_create_main_conf,   /* create main configuration */
    ngx_stream_keyhold_init_main_conf,     /* init main configuration */

    ngx_stream_keyhold_create_srv_conf,    /* create server configuration */
    ngx_stream_keyhold_merge_srv_conf      /* merge server configuration */
};


ngx_module_t  ngx_stream_keyhold_module = {
    NGX_MODULE_V1,
    &ngx_stream_keyhold_module_ctx,        /* module context */
    ngx_stream_keyhold_commands,           /* module directives */
    NGX_STREAM_MODULE,                     /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_stream_variable_t  ngx_stream_keyhold_vars[] = {

    { ngx_string("keyhold_status"), NULL, ngx_stream_keyhold_variable,
      NGX_KEYHOLD_VAR_STATUS, NGX_STREAM_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_time"), NULL, ngx_stream_keyhold_variable,
      NGX_KEYHOLD_VAR_TIME, NGX_STREAM_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_agent"), NULL, ngx_stream_keyhold_variable,
      NGX_KEYHOLD_VAR_AGENT, NGX_STREAM_VAR_CHANGEABLE, 0 },

    { ngx_string("keyhold_tries"), NULL, ngx_stream_keyhold_variable,
      NGX_KEYHOLD_VAR_TRIES, NGX_STREAM_VAR_CHANGEABLE, 0 },

      ngx_stream_null_variable
};


static ngx_int_t
ngx_stream_keyhold_add_variables(ngx_conf_t *cf)
{
    ngx_stream_variable_t  *var, *v;

    for (v = ngx_stream_keyhold_vars; v->name.len; v++) {
        var = ngx_stream_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_stream_keyhold_variable(ngx_stream_session_t *s,
    ngx_stream_variable_value_t *v, uintptr_t data)
{
    return ngx_keyhold_variable(s->connection, s->connection->pool, v, data);
}


/* The settings are the core module's: where they stand does not matter. */

static void *
ngx_stream_keyhold_create_main_conf(ngx_conf_t *cf)
{
    void  *kcf;

    /* no symbol, or one of a module that a reload left out of nginx's list */

    kcf = NULL;

    if (&ngx_keyhold_module != NULL) {
        kcf = ngx_get_conf(cf->cycle->conf_ctx, ngx_keyhold_module);
    }

    if (kcf == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "ngx_stream_keyhold_module.so needs "
                           "ngx_http_keyhold_module.so: load that one first");
    }

    return kcf;
}


/*
 * Comes, with our merge_srv_conf, before the ssl module's: see the order of
 * modules in ngx_stream_keyhold_modules.c.
 */

static char *
ngx_stream_keyhold_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_stream_keyhold_srv_conf_t  *kscf;

    kscf = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_keyhold_module);
    kscf->ssl = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_ssl_module);

    return NGX_CONF_OK;
}


static void *
ngx_stream_keyhold_create_srv_conf(ngx_conf_t *cf)
{
    ngx_stream_keyhold_srv_conf_t  *kscf;

    kscf = ngx_pcalloc(cf->pool, sizeof(ngx_stream_keyhold_srv_conf_t));
    if (kscf == NULL) {
        return NULL;
    }

    kscf->enable = NGX_CONF_UNSET;

    return kscf;
}


/* The ssl module has not merged yet: its values are the server's or unset. */

static char *
ngx_stream_keyhold_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_stream_keyhold_srv_conf_t *prev = parent;
    ngx_stream_keyhold_srv_conf_t *conf = child;

    ngx_uint_t                      own;
    ngx_array_t                    *certs;
    ngx_stream_keyhold_ssl_conf_t  *sscf;

    own = (conf->enable == 1);

    ngx_conf_merge_value(conf->enable, prev->enable, 0);

    if (!conf->enable) {
        return NGX_CONF_OK;
    }

    sscf = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_ssl_module);

    certs = sscf->certificates;

    if (certs == NGX_CONF_UNSET_PTR) {
        certs = prev->ssl->certificates;
    }

    return ngx_keyhold_references(cf, own, certs, &sscf->certificate_keys);
}

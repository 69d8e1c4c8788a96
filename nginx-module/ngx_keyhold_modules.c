/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nginx looks for in a dynamic module: which modules are in it, their
 * names, and the order among nginx's own.  nginx's build would generate this.
 *
 * The order puts the http part before the ssl module, so that "keyhold on" has
 * given its references when that loads keys.  The core part comes last: workers
 * start it when the event module is there.
 */

#include <ngx_config.h>
#include <ngx_core.h>


extern ngx_module_t  ngx_keyhold_module;
extern ngx_module_t  ngx_http_keyhold_module;

#pragma GCC visibility push(default)

extern ngx_module_t  *ngx_modules[];
extern char          *ngx_module_names[];
extern char          *ngx_module_order[];

#pragma GCC visibility pop


ngx_module_t *ngx_modules[] = {
    &ngx_keyhold_module,
    &ngx_http_keyhold_module,
    NULL
};

char *ngx_module_names[] = {
    "ngx_keyhold_module",
    "ngx_http_keyhold_module",
    NULL
};

char *ngx_module_order[] = {
    "ngx_http_keyhold_module",
    "ngx_http_ssl_module",
    NULL
};

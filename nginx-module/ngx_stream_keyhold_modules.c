/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nginx looks for in ngx_stream_keyhold_module.so; see
 * ngx_keyhold_modules.c.
 */

#include <ngx_config.h>
#include <ngx_core.h>


extern ngx_module_t  ngx_stream_keyhold_module;

#pragma GCC visibility push(default)

extern ngx_module_t  *ngx_modules[];
extern char          *ngx_module_names[];
extern char          *ngx_module_order[];

#pragma GCC visibility pop


ngx_module_t *ngx_modules[] = {
    &ngx_stream_keyhold_module,
    NULL
};

char *ngx_module_names[] = {
    "ngx_stream_keyhold_module",
    NULL
};

char *ngx_module_order[] = {
    "ngx_stream_keyhold_module",
    "ngx_stream_ssl_module",
    NULL
};

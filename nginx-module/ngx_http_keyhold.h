/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the http part of the module: its variables. */

#ifndef _NGX_HTTP_KEYHOLD_H_INCLUDED_
#define _NGX_HTTP_KEYHOLD_H_INCLUDED_


#include "ngx_keyhold.h"

#include <ngx_http.h>


/* Before the configuration is read. */
ngx_int_t ngx_http_keyhold_add_variables(ngx_conf_t *cf);


#endif /* _NGX_HTTP_KEYHOLD_H_INCLUDED_ */

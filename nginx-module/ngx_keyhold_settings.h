/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directives of the settings that http{} and stream{} share, for the
 * command tables of both.  The main configuration of both modules is the core
 * module's ngx_keyhold_conf_t, so a setting that is given in both is a
 * duplicate.
 */

#ifndef _NGX_KEYHOLD_SETTINGS_H_INCLUDED_
#define _NGX_KEYHOLD_SETTINGS_H_INCLUDED_


#include "ngx_keyhold.h"


static ngx_conf_num_bounds_t  ngx_keyhold_inflight_bounds = {
    ngx_conf_check_num_bounds, 1, 1000000
};


#define ngx_keyhold_settings(context, conf_offset)                            \
                                                                              \
    { ngx_string("keyhold_agent"),                                            \
      (context)|NGX_CONF_1MORE,                                               \
      ngx_keyhold_agent,                                                      \
      conf_offset,                                                            \
      0,                                                                      \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_timeout"),                                          \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_msec_slot,                                                 \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, timeout),                                  \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_try_timeout"),                                      \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_msec_slot,                                                 \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, try_timeout),                              \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_certificate"),                                      \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_str_slot,                                                  \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, certificate),                              \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_certificate_key"),                                  \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_str_slot,                                                  \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, certificate_key),                          \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_trusted_certificate"),                              \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_str_slot,                                                  \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, trusted_certificate),                      \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_connect_timeout"),                                  \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_msec_slot,                                                 \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, connect_timeout),                          \
      NULL },                                                                 \
                                                                              \
    { ngx_string("keyhold_max_inflight"),                                     \
      (context)|NGX_CONF_TAKE1,                                               \
      ngx_conf_set_num_slot,                                                  \
      conf_offset,                                                            \
      offsetof(ngx_keyhold_conf_t, max_inflight),                             \
      &ngx_keyhold_inflight_bounds }


#endif /* _NGX_KEYHOLD_SETTINGS_H_INCLUDED_ */

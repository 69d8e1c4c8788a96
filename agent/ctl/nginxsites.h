/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What check-nginx wants to know of an nginx configuration: each certificate that a TLS server of it uses, or
 * nginx as a client of proxied servers, with nginx's inheritance applied. Pure: works on the tree of
 * nginxconf.h and opens nothing.
 */
#ifndef KEYHOLD_CTL_NGINXSITES_H
#define KEYHOLD_CTL_NGINXSITES_H

#include "nginxconf.h"

/* One certificate of one server, or for proxied servers. All strings are borrowed from the tree. */
typedef struct nginxsite {
    const char *file; /* of the certificate's directive */
    unsigned line;
    const char *directive;   /* ssl_certificate, proxy_ssl_certificate, … */
    bool client;             /* nginx shows it to others: the key must have the usage tls-client */
    const char *server_name; /* the first name; "" when there is none */
    unsigned more_names;
    const char *certificate; /* as written */
    const char *key;         /* the …_key at the same place in its list; NULL: none */
    bool keyhold;            /* "keyhold on" is in effect */
    const nginxconf_directive
        *agents; /* the first keyhold_agent in effect; NULL: none. Its siblings follow. */
} nginxsite;

/* *sites from malloc, the caller frees it; in the order of the configuration. KH_E_MEMORY. */
KH_MUST_USE kh_result nginxsites_find(const nginxconf *conf, nginxsite **sites, size_t *count);
/* The next keyhold_agent of the same level; NULL: it was the last. */
const nginxconf_directive *nginxsites_next_agent(const nginxconf_directive *agent);
/* The value of a directive that is all of nginx's, wherever it stands in http or stream; NULL: it is not there. */
const char *nginxsites_setting(const nginxconf *conf, const char *name);
/* The value of "name=value" among a directive's words; NULL: not there. */
const char *nginxsites_parameter(const nginxconf_directive *directive, const char *name);

#endif

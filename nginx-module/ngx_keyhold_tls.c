/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS to agents on TCP: 1.3 with certificates on both sides.  What is agreed on,
 * and the bytes in and out, are the client library's (protocol/tls); here it
 * meets nginx's events.
 *
 * The master reads the files, which it alone needs to be able to.  All of it
 * lives in a library context without our provider, so our own key can not be a
 * key of an agent's; and the gate, which looks for nginx's connections, does not
 * find one.
 */

#include "ngx_keyhold.h"

#include "tls/stream.h"


/* so many records without data in a row are a flood */
#define NGX_KEYHOLD_TLS_IDLE_RECORDS  100


struct ngx_keyhold_tls_s {
    kh_tls_stream         stream;
    ngx_keyhold_agent_t  *agent;
    u_char                why[KH_TLS_WHY_MAX];
};


static ngx_int_t ngx_keyhold_tls_file(ngx_cycle_t *cycle, ngx_str_t *file,
    const char *directive);
static ngx_int_t ngx_keyhold_tls_make(ngx_cycle_t *cycle,
    ngx_keyhold_conf_t *conf, SSL_CTX **ctx);
static void ngx_keyhold_tls_cleanup(void *data);
static int ngx_keyhold_tls_session(SSL *ssl, SSL_SESSION *session);
static void ngx_keyhold_tls_failed(ngx_connection_t *c);


char *
ngx_keyhold_tls_context(ngx_cycle_t *cycle, ngx_keyhold_conf_t *conf)
{
    ngx_uint_t             i;
    ngx_pool_cleanup_t    *cln;
    ngx_keyhold_agent_t   *tcp, **agents;

    tcp = NULL;
    agents = conf->agents.elts;

    for (i = 0; i < conf->agents.nelts; i++) {
        if (agents[i]->tls) {
            tcp = agents[i];
            break;
        }
    }

    if (tcp == NULL) {
        return NGX_CONF_OK;
    }

    if (conf->certificate.len == 0 || conf->certificate_key.len == 0
        || conf->trusted_certificate.len == 0)
    {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "agent \"%V\" needs \"keyhold_certificate\", "
                      "\"keyhold_certificate_key\" and "
                      "\"keyhold_trusted_certificate\"", &tcp->name);
        return NGX_CONF_ERROR;
    }

    if (ngx_keyhold_tls_file(cycle, &conf->certificate,
                             "keyhold_certificate") != NGX_OK
        || ngx_keyhold_tls_file(cycle, &conf->certificate_key,
                                "keyhold_certificate_key") != NGX_OK
        || ngx_keyhold_tls_file(cycle, &conf->trusted_certificate,
                                "keyhold_trusted_certificate") != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    cln = ngx_pool_cleanup_add(conf->pool, 0);
    if (cln == NULL) {
        return NGX_CONF_ERROR;
    }

    cln->handler = ngx_keyhold_tls_cleanup;
    cln->data = conf;

    if (ngx_keyhold_tls_make(cycle, conf, &conf->ssl_ctx) != NGX_OK
        || ngx_keyhold_tls_make(cycle, conf, &conf->sync_ctx) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    SSL_CTX_sess_set_new_cb(conf->ssl_ctx, ngx_keyhold_tls_session);

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_keyhold_tls_file(ngx_cycle_t *cycle, ngx_str_t *file,
    const char *directive)
{
    ngx_file_info_t  fi;

    if (ngx_conf_full_name(cycle, file, 1) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_file_info(file->data, &fi) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, ngx_errno,
                      "\"%s\": \"%V\" can not be read", directive, file);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_keyhold_tls_make(ngx_cycle_t *cycle, ngx_keyhold_conf_t *conf,
    SSL_CTX **ctx)
{
    char           detail[NGX_KEYHOLD_DETAIL_LEN];
    kh_result      rc;
    kh_client_tls  tls;

    ngx_memzero(&tls, sizeof(kh_client_tls));

    tls.ca_file = (char *) conf->trusted_certificate.data;
    tls.certificate_file = (char *) conf->certificate.data;
    tls.key_file = (char *) conf->certificate_key.data;

    rc = kh_client_tls_context(&tls, ctx, detail, sizeof(detail));

    if (rc != KH_OK) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "keyhold: TLS to agents can not be prepared: %s",
                      detail[0] ? detail : kh_result_text(rc));
        return NGX_ERROR;
    }

    return NGX_OK;
}


static void
ngx_keyhold_tls_cleanup(void *data)
{
    ngx_keyhold_conf_t  *conf = data;

    SSL_CTX_free(conf->ssl_ctx);
    SSL_CTX_free(conf->sync_ctx);
}


ngx_int_t
ngx_keyhold_tls_start(ngx_keyhold_agent_t *agent)
{
    SSL                *ssl;
    ngx_keyhold_tls_t  *tls;

    tls = ngx_calloc(sizeof(ngx_keyhold_tls_t), agent->reconnect.log);
    if (tls == NULL) {
        return NGX_ERROR;
    }

    ssl = SSL_new(agent->conf->ssl_ctx);

    if (ssl == NULL
        || kh_client_tls_prepare(ssl, (char *) agent->server_name.data)
           != KH_OK)
    {
        goto failed;
    }

    SSL_set_app_data(ssl, tls);

    if (agent->resume != NULL) {

        /* it is used once: if it is of no use, the next connection is made anew */

        (void) SSL_set_session(ssl, agent->resume);
        SSL_SESSION_free(agent->resume);
        agent->resume = NULL;
    }

    tls->agent = agent;
    agent->stream = tls;

    if (kh_tls_stream_start(&tls->stream, ssl, agent->connection->fd)
        != KH_OK)
    {
        agent->stream = NULL;
        ngx_free(tls);
        return NGX_ERROR;
    }

    return NGX_OK;

failed:

    SSL_free(ssl);
    ngx_free(tls);
    ERR_clear_error();

    return NGX_ERROR;
}


void
ngx_keyhold_tls_end(ngx_keyhold_agent_t *agent)
{
    if (agent->stream == NULL) {
        return;
    }

    kh_tls_stream_end(&agent->stream->stream, !agent->connecting);

    ngx_free(agent->stream);
    agent->stream = NULL;
}


/* A session came that the next connection can resume. */

static int
ngx_keyhold_tls_session(SSL *ssl, SSL_SESSION *session)
{
    ngx_keyhold_tls_t  *tls;

    tls = SSL_get_app_data(ssl);

    if (tls->agent->resume != NULL) {
        SSL_SESSION_free(tls->agent->resume);
    }

    tls->agent->resume = session;

    return 1;
}


ssize_t
ngx_keyhold_tls_recv(ngx_connection_t *c, u_char *buf, size_t size)
{
    size_t                got;
    kh_result             rc;
    ngx_uint_t            n;
    kh_tls_stream        *stream;
    ngx_keyhold_agent_t  *agent;

    agent = c->data;
    stream = &agent->stream->stream;

    for (n = 0; n < NGX_KEYHOLD_TLS_IDLE_RECORDS; n++) {

        rc = kh_tls_stream_read(stream, buf, size, &got);

        if (rc == KH_OK) {
            c->read->ready = 1;
            return (ssize_t) got;
        }

        if (rc != KH_AGAIN) {
            ngx_keyhold_tls_failed(c);
            return rc == KH_E_CLOSED ? 0 : NGX_ERROR;
        }

        /* one record is read at a time: was it the socket that had no more? */

        if (stream->wants_write || BIO_should_read(SSL_get_rbio(stream->ssl)))
        {
            c->read->ready = 0;

            if (stream->wants_write) {
                c->write->ready = 0;
            }

            return NGX_AGAIN;
        }
    }

    ngx_cpystrn(agent->stream->why, (u_char *) "a flood of empty records",
                KH_TLS_WHY_MAX);

    return NGX_ERROR;
}


ssize_t
ngx_keyhold_tls_send(ngx_connection_t *c, u_char *buf, size_t size)
{
    size_t                sent;
    kh_result             rc;
    ngx_keyhold_agent_t  *agent;

    agent = c->data;

    rc = kh_tls_stream_write(&agent->stream->stream, buf, size, &sent);

    if (rc == KH_OK) {
        return (ssize_t) sent;
    }

    if (rc == KH_AGAIN) {

        /* in the handshake it may be the agent's turn: reading goes on with it */

        if (agent->stream->stream.wants_write) {
            c->write->ready = 0;
        }

        return NGX_AGAIN;
    }

    ngx_keyhold_tls_failed(c);

    return NGX_ERROR;
}


static void
ngx_keyhold_tls_failed(ngx_connection_t *c)
{
    ngx_keyhold_agent_t  *agent;

    agent = c->data;

    kh_tls_stream_why(&agent->stream->stream, (char *) agent->stream->why);
}


const char *
ngx_keyhold_tls_why(ngx_keyhold_agent_t *agent)
{
    return agent->stream != NULL ? (const char *) agent->stream->why : "";
}

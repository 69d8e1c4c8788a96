/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where nothing can be parked: a private-key operation over a connection of its
 * own, for which the worker waits.  Each agent is tried in turn, the one that
 * served last first, backups at the end.
 */

#include "ngx_keyhold.h"


static kh_result ngx_keyhold_sync_try(ngx_keyhold_agent_t *agent,
    kh_request *req, uint8_t *out, size_t cap, size_t *len, char *detail);
static kh_result ngx_keyhold_sync_call(ngx_keyhold_agent_t *agent,
    kh_request *req, uint8_t *out, size_t cap, size_t *len, char *detail);
static ngx_uint_t ngx_keyhold_sync_elsewhere(kh_result rc);


static kh_client   *ngx_keyhold_sync_clients[NGX_KEYHOLD_AGENTS_MAX];
static ngx_uint_t   ngx_keyhold_sync_last;


kh_result
ngx_keyhold_perform_sync(kh_request *req, uint8_t *out, size_t cap, size_t *len)
{
    u_char                *p, key[KH_NAME_MAX + 80];
    char                   detail[NGX_KEYHOLD_DETAIL_LEN];
    kh_result              rc;
    ngx_log_t             *log;
    ngx_connection_t      *c;
    ngx_uint_t             i, n, backups, index;
    ngx_keyhold_agent_t   *agent, **agents;
    static ngx_uint_t      warned;

    c = ngx_keyhold_gate_unsuspended();
    log = c ? c->log : ngx_cycle->log;
    *len = 0;

    if (ngx_keyhold_conf == NULL) {
        ngx_log_error(NGX_LOG_ERR, log, 0,
                      "keyhold: a key reference is used, but there is no "
                      "\"keyhold_agent\", or no worker yet");
        return KH_E_UNAVAILABLE;
    }

    if (!warned) {
        warned = 1;
        ngx_log_error(NGX_LOG_WARN, log, 0,
                      "keyhold: a key is used in %s, where the worker can not "
                      "go on meanwhile: it waits for the agent",
                      c == NULL ? "no handshake of nginx's"
                      : c->type == SOCK_DGRAM ? "a QUIC (HTTP/3) handshake"
                      : "a handshake that could not be suspended");
    }

    agents = ngx_keyhold_conf->agents.elts;
    n = ngx_keyhold_conf->agents.nelts;
    rc = KH_E_UNAVAILABLE;

    for (backups = 0; backups < 2; backups++) {

        for (i = 0; i < n; i++) {

            index = (ngx_keyhold_sync_last + i) % n;
            agent = agents[index];

            if (agent->share.backup != backups) {
                continue;
            }

            detail[0] = '\0';

            rc = ngx_keyhold_sync_try(agent, req, out, cap, len, detail);

            if (rc == KH_OK) {
                ngx_keyhold_sync_last = index;
                return KH_OK;
            }

            p = ngx_keyhold_key_text(key, key + sizeof(key), req);

            ngx_log_error(NGX_LOG_ERR, log, 0,
                          "keyhold: %s with key %*s at agent %V failed: "
                          "%s%s%s", kh_op_name(req->op), p - key, key,
                          &agent->name, kh_result_text(rc),
                          detail[0] ? ": " : "", detail);

            if (!ngx_keyhold_sync_elsewhere(rc)) {
                return rc;
            }
        }
    }

    return rc;
}


void
ngx_keyhold_sync_exit(void)
{
    ngx_uint_t  i;

    for (i = 0; i < NGX_KEYHOLD_AGENTS_MAX; i++) {
        kh_client_close(ngx_keyhold_sync_clients[i]);
        ngx_keyhold_sync_clients[i] = NULL;
    }
}


static ngx_uint_t
ngx_keyhold_sync_elsewhere(kh_result rc)
{
    return kh_result_retryable(rc) || rc == KH_E_NOT_FOUND
           || rc == KH_E_DEADLINE || rc == KH_E_MALFORMED
           || rc == KH_E_UNAUTHENTICATED || rc == KH_E_CRYPTO;
}


static kh_result
ngx_keyhold_sync_try(ngx_keyhold_agent_t *agent, kh_request *req, uint8_t *out,
    size_t cap, size_t *len, char *detail)
{
    char           *address;
    kh_result       rc;
    kh_client     **client;
    kh_client_tls   tls;

    client = &ngx_keyhold_sync_clients[agent->index];
    address = (char *) agent->name.data;

    if (*client != NULL) {
        rc = KH_OK;

    } else if (agent->tls) {
        ngx_memzero(&tls, sizeof(kh_client_tls));

        tls.context = ngx_keyhold_conf->sync_ctx;
        tls.server_name = (char *) agent->server_name.data;

        rc = kh_client_open_tls(address, &tls, "nginx",
                                ngx_keyhold_conf->connect_timeout, client,
                                detail, NGX_KEYHOLD_DETAIL_LEN);

    } else {
        rc = kh_client_open(address, agent->cred, "nginx",
                            ngx_keyhold_conf->connect_timeout, client, detail,
                            NGX_KEYHOLD_DETAIL_LEN);
    }

    if (rc != KH_OK) {
        *client = NULL;
        return rc;
    }

    return ngx_keyhold_sync_call(agent, req, out, cap, len, detail);
}


static kh_result
ngx_keyhold_sync_call(ngx_keyhold_agent_t *agent, kh_request *req, uint8_t *out,
    size_t cap, size_t *len, char *detail)
{
    kh_reply     reply;
    kh_result    rc;
    ngx_msec_t   msec;
    kh_client  **client;

    client = &ngx_keyhold_sync_clients[agent->index];

    /* the worker stands still: with others there, not for all of the time */

    msec = ngx_keyhold_conf->agents.nelts > 1 ? ngx_keyhold_conf->try_timeout
                                              : ngx_keyhold_conf->timeout;

    req->deadline_ms = ngx_min(msec, KH_DEADLINE_MAX_MS);

    rc = kh_client_call(*client, req, &reply);

    if (rc != KH_OK) {
        kh_client_close(*client);
        *client = NULL;
        return rc;
    }

    if (reply.status != KH_OK) {
        ngx_keyhold_detail((u_char *) detail, reply.status, reply.detail);
        return reply.status;
    }

    if (reply.data.len > cap) {
        return KH_E_TOO_LARGE;
    }

    ngx_memcpy(out, reply.data.data, reply.data.len);
    *len = reply.data.len;

    return KH_OK;
}

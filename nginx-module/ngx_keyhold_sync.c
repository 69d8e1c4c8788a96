/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where nothing can be parked: a private-key operation over a connection of its
 * own, for which the worker waits.  Each agent is tried in turn, the one that
 * served last first, then backups.  Those that seem not to be there, which may
 * cost a time-out, come at the end, and those that are known to be gone are not
 * tried.
 */

#include "ngx_keyhold.h"
#include "provider.h"


/* one that let the worker wait in vain */
#define NGX_KEYHOLD_SYNC_AVOID_MSEC  5000


static ngx_uint_t ngx_keyhold_sync_rank(ngx_keyhold_agent_t *agent);
static kh_result ngx_keyhold_sync_try(ngx_keyhold_agent_t *agent,
    const struct kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap,
    size_t *len, char *detail);
static kh_result ngx_keyhold_sync_open(ngx_keyhold_agent_t *agent,
    char *detail);
static void ngx_keyhold_sync_close(ngx_keyhold_agent_t *agent);
static ngx_uint_t ngx_keyhold_sync_elsewhere(kh_result rc);
static void ngx_keyhold_sync_failed(ngx_log_t *log,
    ngx_keyhold_agent_t *agent, kh_request *req, kh_result rc,
    const char *detail);


static kh_client   *ngx_keyhold_sync_clients[NGX_KEYHOLD_AGENTS_MAX];
static time_t       ngx_keyhold_sync_said[NGX_KEYHOLD_AGENTS_MAX];
static ngx_uint_t   ngx_keyhold_sync_last;


kh_result
ngx_keyhold_perform_sync(const struct kh_prov_key *key, kh_request *req,
    uint8_t *out, size_t cap, size_t *len)
{
    char                   detail[NGX_KEYHOLD_DETAIL_LEN];
    kh_result              rc;
    ngx_log_t             *log;
    ngx_connection_t      *c;
    ngx_uint_t             i, n, rank, index;
    ngx_keyhold_set_t      tried;
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
    tried = 0;

    for (rank = 0; rank < 4; rank++) {

        for (i = 0; i < n; i++) {

            index = (ngx_keyhold_sync_last + i) % n;
            agent = agents[index];

            if ((tried & ngx_keyhold_bit(index))
                || ngx_keyhold_sync_rank(agent) != rank)
            {
                continue;
            }

            tried |= ngx_keyhold_bit(index);
            detail[0] = '\0';

            rc = ngx_keyhold_sync_try(agent, key, req, out, cap, len, detail);

            if (rc == KH_OK) {
                ngx_keyhold_sync_last = index;
                return KH_OK;
            }

            ngx_keyhold_sync_failed(log, agent, req, rc, detail);

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
ngx_keyhold_sync_rank(ngx_keyhold_agent_t *agent)
{
    ngx_uint_t  doubtful;

    doubtful = !agent->ready
               || ngx_keyhold_share_reluctant(&agent->share, ngx_current_msec);

    return agent->share.backup + (doubtful ? 2 : 0);
}


/* That an agent is gone is said once a second, as with other handshakes. */

static void
ngx_keyhold_sync_failed(ngx_log_t *log, ngx_keyhold_agent_t *agent,
    kh_request *req, kh_result rc, const char *detail)
{
    u_char  *p, key[KH_NAME_MAX + 80];

    if (ngx_keyhold_agent_gone(agent)) {

        if (ngx_keyhold_sync_said[agent->index] == ngx_time()) {
            return;
        }

        ngx_keyhold_sync_said[agent->index] = ngx_time();
    }

    p = ngx_keyhold_key_text(key, key + sizeof(key), req);

    ngx_log_error(NGX_LOG_ERR, log, 0,
                  "keyhold: %s with key %*s at agent %V failed: %s%s%s",
                  kh_op_name(req->op), p - key, key, &agent->name,
                  kh_result_text(rc), detail[0] ? ": " : "", detail);
}


static ngx_uint_t
ngx_keyhold_sync_elsewhere(kh_result rc)
{
    switch (rc) {

    case KH_E_NOT_FOUND:
    case KH_E_DEADLINE:
    case KH_E_MALFORMED:
    case KH_E_UNAUTHENTICATED:
    case KH_E_CRYPTO:
    case KH_E_DAMAGED:
    case KH_E_STORAGE:
    case KH_E_UNSUPPORTED:
    case KH_E_INTERNAL:
        return 1;

    default:
        return kh_result_retryable(rc);
    }
}


static kh_result
ngx_keyhold_sync_try(ngx_keyhold_agent_t *agent, const struct kh_prov_key *key,
    kh_request *req, uint8_t *out, size_t cap, size_t *len, char *detail)
{
    kh_reply    reply;
    kh_result   rc;
    ngx_msec_t  msec;

    rc = ngx_keyhold_sync_open(agent, detail);

    if (rc != KH_OK) {
        return rc;
    }

    /* the worker stands still: with others there, not for all of the time */

    msec = ngx_keyhold_conf->agents.nelts > 1 ? ngx_keyhold_conf->try_timeout
                                              : ngx_keyhold_conf->timeout;

    req->deadline_ms = ngx_min(msec, KH_DEADLINE_MAX_MS);

    rc = kh_client_call(ngx_keyhold_sync_clients[agent->index], req, &reply);

    if (rc != KH_OK) {
        ngx_keyhold_sync_close(agent);
        return rc;
    }

    if (reply.status != KH_OK) {
        ngx_keyhold_detail((u_char *) detail, reply.status, reply.detail);
        return reply.status;
    }

    if (reply.data.len > cap) {
        return KH_E_TOO_LARGE;
    }

    if (!kh_provider_reply_shape(key, req, reply.data.data, reply.data.len)
        || (req->op == KH_OP_SIGN
            && !kh_provider_signature_good(key, req, reply.data.data,
                                           reply.data.len)))
    {
        ERR_clear_error();
        ngx_keyhold_sync_close(agent);
        ngx_cpystrn((u_char *) detail, (u_char *) "it answers wrongly",
                    NGX_KEYHOLD_DETAIL_LEN);
        return KH_E_MALFORMED;
    }

    ngx_memcpy(out, reply.data.data, reply.data.len);
    *len = reply.data.len;

    return KH_OK;
}


static kh_result
ngx_keyhold_sync_open(ngx_keyhold_agent_t *agent, char *detail)
{
    char           *address;
    kh_result       rc;
    kh_client     **client;
    kh_client_tls   tls;

    client = &ngx_keyhold_sync_clients[agent->index];
    address = (char *) agent->name.data;

    if (ngx_keyhold_agent_gone(agent)) {

        /* the event loop finds out when it is back */

        kh_client_close(*client);
        *client = NULL;

        ngx_cpystrn((u_char *) detail, agent->why, NGX_KEYHOLD_DETAIL_LEN);
        return KH_E_UNAVAILABLE;
    }

    if (*client != NULL) {
        return KH_OK;
    }

    if (agent->tls) {
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
    }

    return rc;
}


/* It was of no use: others are asked first, for a while. */

static void
ngx_keyhold_sync_close(ngx_keyhold_agent_t *agent)
{
    kh_client_close(ngx_keyhold_sync_clients[agent->index]);
    ngx_keyhold_sync_clients[agent->index] = NULL;

    agent->share.avoided = 1;
    agent->share.avoid = ngx_current_msec + NGX_KEYHOLD_SYNC_AVOID_MSEC;
}

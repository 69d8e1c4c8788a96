/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The OpenSSL provider inside nginx: how it is loaded, and how it waits.
 *
 * On a coroutine a request is given to the event loop and the handshake is
 * parked.  Elsewhere (QUIC, or a handshake that could not be taken over) there
 * is nothing to switch to: the worker waits, and says so once.
 */

#include "ngx_keyhold.h"
#include "provider.h"

#include <openssl/provider.h>


#define NGX_KEYHOLD_PROVIDER  "keyhold-nginx"


static kh_result ngx_keyhold_perform(void *ctx, const kh_prov_key *key,
    kh_request *req, uint8_t *out, size_t cap, size_t *len);
static void ngx_keyhold_log_failure(ngx_log_t *log, ngx_keyhold_op_t *op,
    kh_result rc, ngx_uint_t usec);
static ngx_uint_t ngx_keyhold_usec(void);
static void ngx_keyhold_key_loaded(void *ctx,
    const kh_provider_key_info *info);
static int ngx_libc_cdecl ngx_keyhold_key_cmp(const void *one,
    const void *two);


static ngx_keyhold_conf_t  *ngx_keyhold_collecting;
static OSSL_PROVIDER       *ngx_keyhold_loaded;

static const kh_provider_host  ngx_keyhold_host = {
    ngx_keyhold_perform,
    ngx_keyhold_key_loaded,
    NULL
};


/*
 * The order matters: were ours there before the default provider, OpenSSL
 * would look for ECDHE's keys with us, and were ours alone there, it would
 * have no ciphers.  So the default provider is made to load itself first, by
 * any fetch, and stays as a fallback.
 *
 * The provider is loaded once per process and stays: keys of an older
 * configuration may still be in use.
 */

ngx_int_t
ngx_keyhold_provider_load(ngx_log_t *log)
{
    EVP_MD  *md;

    if (ngx_keyhold_loaded != NULL) {
        return NGX_OK;
    }

    if (OSSL_PROVIDER_available(NULL, "keyhold")) {
        ngx_log_error(NGX_LOG_WARN, log, 0,
                      "keyhold: the provider \"keyhold\" of openssl.cnf is "
                      "active in nginx too, and may block workers: leave it "
                      "out of the configuration that nginx reads");
    }

    if (OSSL_PROVIDER_available(NULL, NGX_KEYHOLD_PROVIDER)) {

        /*
         * The module from another file, after a reload: what libcrypto knows
         * is the first one's functions, which stay for good, and whose worker
         * side nobody starts any more.
         */

        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "keyhold: this nginx has loaded the module from another "
                      "file already: restart or upgrade it, a reload is not "
                      "enough");
        return NGX_ERROR;
    }

    kh_provider_set_host(&ngx_keyhold_host);

    md = EVP_MD_fetch(NULL, "SHA256", NULL);
    EVP_MD_free(md);

    if (md == NULL
        || OSSL_PROVIDER_add_builtin(NULL, NGX_KEYHOLD_PROVIDER,
                                     kh_provider_init) != 1)
    {
        ngx_ssl_error(NGX_LOG_EMERG, log, 0,
                      "keyhold: OSSL_PROVIDER_add_builtin() failed");
        return NGX_ERROR;
    }

    ngx_keyhold_loaded = OSSL_PROVIDER_try_load(NULL, NGX_KEYHOLD_PROVIDER, 1);

    if (ngx_keyhold_loaded == NULL) {
        ngx_ssl_error(NGX_LOG_EMERG, log, 0,
                      "keyhold: OSSL_PROVIDER_try_load() failed");
        return NGX_ERROR;
    }

    return NGX_OK;
}


void
ngx_keyhold_provider_exit(void)
{
    ngx_keyhold_sync_exit();
}


void
ngx_keyhold_provider_collect(ngx_keyhold_conf_t *conf)
{
    ngx_keyhold_collecting = conf;
}


/* Many servers may share a key: each is kept once. */

void
ngx_keyhold_provider_collected(ngx_keyhold_conf_t *conf)
{
    ngx_uint_t          i, n;
    ngx_keyhold_key_t  *keys;

    ngx_keyhold_collecting = NULL;

    if (conf == NULL || conf->keys.nelts == 0) {
        return;
    }

    keys = conf->keys.elts;

    ngx_qsort(keys, conf->keys.nelts, sizeof(ngx_keyhold_key_t),
              ngx_keyhold_key_cmp);

    for (i = 1, n = 1; i < conf->keys.nelts; i++) {
        if (ngx_keyhold_key_cmp(&keys[n - 1], &keys[i]) != 0) {
            keys[n++] = keys[i];
        }
    }

    conf->keys.nelts = n;
}


static int ngx_libc_cdecl
ngx_keyhold_key_cmp(const void *one, const void *two)
{
    int                       rc;
    const ngx_keyhold_key_t  *a = one;
    const ngx_keyhold_key_t  *b = two;

    rc = ngx_memcmp(a->id, b->id, KH_KEY_ID_LEN);

    return rc ? rc : ngx_strcmp(a->name.data, b->name.data);
}


/* Only while the configuration is read: a worker's variables are not noted. */

static void
ngx_keyhold_key_loaded(void *ctx, const kh_provider_key_info *info)
{
    size_t               len;
    ngx_keyhold_key_t   *key;
    ngx_keyhold_conf_t  *conf;

    conf = ngx_keyhold_collecting;

    if (conf == NULL) {
        return;
    }

    len = ngx_strlen(info->name);

    key = ngx_array_push(&conf->keys);
    if (key == NULL) {
        return;
    }

    key->type = info->type;
    key->name.len = len;
    key->name.data = ngx_pnalloc(conf->pool, len + 1);

    if (key->name.data == NULL) {
        conf->keys.nelts--;
        return;
    }

    ngx_memcpy(key->name.data, info->name, len + 1);
    ngx_memcpy(key->id, info->id, KH_KEY_ID_LEN);
}


void
ngx_keyhold_detail(u_char *buf, kh_result result, kh_bytes detail)
{
    size_t  i, len;

    len = ngx_min(detail.len, NGX_KEYHOLD_DETAIL_LEN - 1);

    for (i = 0; i < len; i++) {

        /* nothing that a terminal, or who reads lines, could obey */

        buf[i] = (detail.data[i] < 0x20 || detail.data[i] == 0x7f)
                 ? '?' : detail.data[i];
    }

    buf[len] = '\0';

    if (ngx_strcmp(buf, kh_result_text(result)) == 0) {
        buf[0] = '\0';
    }
}


u_char *
ngx_keyhold_key_text(u_char *buf, u_char *last, const kh_request *req)
{
    size_t  i;

    if (!req->key_is_id) {
        return ngx_snprintf(buf, last - buf, "\"%*s\"", req->key.len,
                            req->key.data);
    }

    buf = ngx_snprintf(buf, last - buf, "id ");

    for (i = 0; i < req->key.len; i++) {
        buf = ngx_snprintf(buf, last - buf, "%02xd",
                           (ngx_int_t) req->key.data[i]);
    }

    return buf;
}


static ngx_uint_t
ngx_keyhold_usec(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (ngx_uint_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}


static kh_result
ngx_keyhold_perform(void *ctx, const kh_prov_key *key, kh_request *req,
    uint8_t *out, size_t cap, size_t *len)
{
    kh_result                 rc;
    ngx_err_t                 err;
    ngx_uint_t                start;
    ngx_keyhold_op_t          op;
    ngx_keyhold_handshake_t  *hs;

    hs = ngx_keyhold_handshake_current();

    if (hs == NULL) {
        return ngx_keyhold_perform_sync(key, req, out, cap, len);
    }

    start = ngx_keyhold_usec();

    ngx_memzero(&op, offsetof(ngx_keyhold_op_t, detail));
    op.state = NGX_KEYHOLD_OP_IDLE;
    op.req = req;
    op.out = out;
    op.cap = cap;
    op.key = key;
    op.handler = ngx_keyhold_handshake_wake;
    op.data = hs;

    rc = ngx_keyhold_op_start(&op);

    if (rc == KH_OK) {

        if (ngx_keyhold_handshake_park(hs, &op) == NGX_ABORT) {

            /* not the agent's fault, and nginx logs it its own way */

            return KH_E_CANCELLED;
        }

        rc = op.result;
    }

    start = ngx_keyhold_usec() - start;

    ngx_keyhold_handshake_outcome(hs, &op, rc, start);

    if (rc != KH_OK) {
        ngx_keyhold_log_failure(ngx_keyhold_handshake_connection(hs)->log, &op,
                                rc, start);

        err = (rc == KH_E_DEADLINE) ? NGX_ETIMEDOUT : NGX_ECONNRESET;
        ngx_keyhold_handshake_failed(hs, err);
    }

    *len = op.len;

    return rc;
}


/* The one line: what, with which key, at which agent, why, after how long. */

static void
ngx_keyhold_log_failure(ngx_log_t *log, ngx_keyhold_op_t *op, kh_result rc,
    ngx_uint_t usec)
{
    u_char               *p, key[KH_NAME_MAX + 80], others[80];
    ngx_keyhold_agent_t  *agent, **agents;
    static time_t         silenced_since;
    static ngx_uint_t     silenced;

    p = ngx_keyhold_key_text(key, key + sizeof(key), op->req);

    agent = op->agent;

    if (agent == NULL) {
        agents = ngx_keyhold_conf->agents.elts;
        agent = agents[0];
    }

    if (rc == KH_E_OVERLOADED && op->agent == NULL) {
        ngx_log_error(NGX_LOG_ERR, log, 0,
                      "keyhold: handshake refused: keyhold_max_inflight (%i) "
                      "reached, %s with key %*s at agent %V",
                      ngx_keyhold_conf->max_inflight,
                      kh_op_name(op->req->op), p - key, key, &agent->name);
        return;
    }

    if (op->detail[0] == '\0' && !agent->ready) {
        ngx_cpystrn(op->detail, agent->why, NGX_KEYHOLD_DETAIL_LEN);
    }

    others[0] = '\0';

    if (op->gone) {

        /* there may be thousands of them, and they all say the same */

        if (silenced_since == ngx_time()) {
            silenced++;
            return;
        }

        silenced_since = ngx_time();

        if (silenced) {
            ngx_sprintf(others, " (and %ui handshakes before)%Z", silenced);
            silenced = 0;
        }
    }

    ngx_log_error(NGX_LOG_ERR, log, 0,
                  "keyhold: handshake failed: %s with key %*s at agent %V: "
                  "%s%s%s, after %uA.%03uA s%s",
                  kh_op_name(op->req->op), p - key, key, &agent->name,
                  kh_result_text(rc), op->detail[0] ? ": " : "", op->detail,
                  (ngx_atomic_uint_t) usec / 1000000,
                  (ngx_atomic_uint_t) usec / 1000 % 1000, others);
}

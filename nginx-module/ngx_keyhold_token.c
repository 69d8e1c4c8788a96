/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The token by which an agent knows us.  It is read by whoever reads the
 * configuration, the master, into a page that no core dump has, and that is
 * wiped with the configuration.  A worker has a copy of its own, which it wipes
 * when it ends.
 */

#include "ngx_keyhold.h"

#include <sys/mman.h>


static void ngx_keyhold_token_cleanup(void *data);


char *
ngx_keyhold_token(ngx_conf_t *cf, ngx_keyhold_agent_t *agent,
    ngx_str_t *file)
{
    kh_result            rc;
    kh_credential       *cred;
    ngx_file_info_t      fi;
    ngx_pool_cleanup_t  *cln;

    if (ngx_conf_full_name(cf->cycle, file, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (ngx_file_info(file->data, &fi) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "token file \"%V\" can not be read", file);
        return NGX_CONF_ERROR;
    }

    if (fi.st_uid != 0 && fi.st_uid != geteuid()) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "token file \"%V\" must belong to root", file);
        return NGX_CONF_ERROR;
    }

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL) {
        return NGX_CONF_ERROR;
    }

    cred = mmap(NULL, ngx_pagesize, PROT_READ|PROT_WRITE,
                MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);

    if (cred == MAP_FAILED) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "memory for the token failed");
        return NGX_CONF_ERROR;
    }

    cln->handler = ngx_keyhold_token_cleanup;
    cln->data = cred;

    (void) madvise(cred, ngx_pagesize, MADV_DONTDUMP);
    (void) mlock(cred, ngx_pagesize);

    rc = kh_credential_load((char *) file->data, cred);

    switch (rc) {

    case KH_OK:
        break;

    case KH_E_FORBIDDEN:
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "token file \"%V\": others may read it, it must be "
                           "0600 or 0400", file);
        return NGX_CONF_ERROR;

    case KH_E_MALFORMED:
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "token file \"%V\" holds no token "
                           "(keyholdctl token create)", file);
        return NGX_CONF_ERROR;

    default:
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "token file \"%V\": %s", file, kh_result_text(rc));
        return NGX_CONF_ERROR;
    }

    agent->cred = cred;

    return NGX_CONF_OK;
}


static void
ngx_keyhold_token_cleanup(void *data)
{
    kh_credential  *cred = data;

    kh_credential_wipe(cred);
    (void) munmap(cred, ngx_pagesize);
}


/* A lock is not inherited by the worker's copy.  Not allowed is not fatal. */

void
ngx_keyhold_token_lock(ngx_keyhold_agent_t *agent)
{
    if (agent->cred != NULL) {
        (void) mlock(agent->cred, ngx_pagesize);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "keyhold on": for a certificate, a key reference with its public key and no
 * name, as a "data:" value for ssl_certificate_key.  The agent finds the key by
 * the public key's id.
 */

#include "ngx_keyhold.h"


static char *ngx_keyhold_reference(ngx_conf_t *cf, ngx_str_t *cert,
    ngx_str_t *ref);


char *
ngx_keyhold_references(ngx_conf_t *cf, ngx_uint_t own, ngx_array_t *certs,
    ngx_array_t **keys)
{
    ngx_str_t           *cert, *ref;
    ngx_uint_t           i;
    ngx_array_t         *refs;
    ngx_keyhold_conf_t  *kcf;

    kcf = (ngx_keyhold_conf_t *) ngx_get_conf(cf->cycle->conf_ctx,
                                              ngx_keyhold_module);
    kcf->on = 1;

    if (*keys != NGX_CONF_UNSET_PTR) {

        /* of this very server: a local key, or a reference */

        if (own) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"keyhold on\" and \"ssl_certificate_key\" in "
                               "the same server: use one of them");
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    if (certs == NGX_CONF_UNSET_PTR || certs == NULL) {
        return NGX_CONF_OK;
    }

    refs = ngx_array_create(cf->pool, certs->nelts, sizeof(ngx_str_t));
    if (refs == NULL) {
        return NGX_CONF_ERROR;
    }

    cert = certs->elts;

    for (i = 0; i < certs->nelts; i++) {

        if (ngx_strlchr(cert[i].data, cert[i].data + cert[i].len, '$')) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"keyhold on\" can not be used with variables "
                               "in \"ssl_certificate\" (\"%V\"): give key "
                               "reference files in \"ssl_certificate_key\" "
                               "(keyholdctl key reference)", &cert[i]);
            return NGX_CONF_ERROR;
        }

        ref = ngx_array_push(refs);
        if (ref == NULL) {
            return NGX_CONF_ERROR;
        }

        if (ngx_keyhold_reference(cf, &cert[i], ref) != NGX_CONF_OK) {
            return NGX_CONF_ERROR;
        }
    }

    *keys = refs;

    return NGX_CONF_OK;
}


static char *
ngx_keyhold_certificate_spki(ngx_str_t *cert, u_char *spki, size_t *len)
{
    BIO      *bio;
    X509     *x509;
    char     *err;
    EVP_PKEY *pkey;

    if (ngx_strncmp(cert->data, "data:", sizeof("data:") - 1) == 0) {
        bio = BIO_new_mem_buf(cert->data + sizeof("data:") - 1,
                              cert->len - (sizeof("data:") - 1));
    } else {
        bio = BIO_new_file((char *) cert->data, "r");
    }

    if (bio == NULL) {
        return "cannot be opened";
    }

    err = NULL;

    x509 = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL);
    pkey = x509 ? X509_get0_pubkey(x509) : NULL;

    if (x509 == NULL) {
        err = "holds no certificate";

    } else if (pkey == NULL
               || kh_key_id(pkey, NULL, spki, len, NULL, NULL) != KH_OK)
    {
        err = "has a key of a type that Keyhold does not know";
    }

    X509_free(x509);
    BIO_free(bio);

    return err;
}


static char *
ngx_keyhold_reference(ngx_conf_t *cf, ngx_str_t *cert, ngx_str_t *ref)
{
    char       *err;
    size_t      len;
    u_char     *p, spki[KH_SPKI_MAX], pem[2 * KH_SPKI_MAX];
    kh_bytes    view;
    ngx_str_t   name;

    name = *cert;

    if (ngx_strncmp(name.data, "data:", sizeof("data:") - 1) != 0
        && ngx_conf_full_name(cf->cycle, &name, 1) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    err = ngx_keyhold_certificate_spki(&name, spki, &len);

    if (err != NULL) {
        ngx_ssl_error(NGX_LOG_EMERG, cf->log, 0,
                      "keyhold: certificate \"%s\" %s", name.data, err);
        return NGX_CONF_ERROR;
    }

    view.data = spki;
    view.len = len;

    if (kh_reference_encode("", view, (char *) pem, sizeof(pem), &len)
        != KH_OK)
    {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "keyhold: no key reference for certificate \"%s\"",
                      name.data);
        return NGX_CONF_ERROR;
    }

    p = ngx_pnalloc(cf->pool, sizeof("data:") + len);
    if (p == NULL) {
        return NGX_CONF_ERROR;
    }

    ref->data = p;

    p = ngx_cpymem(p, "data:", sizeof("data:") - 1);
    p = ngx_cpymem(p, pem, len);
    *p = '\0';

    ref->len = p - ref->data;

    return NGX_CONF_OK;
}

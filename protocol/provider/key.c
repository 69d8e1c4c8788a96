/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provider's key: a public key and the name under which the agent keeps the private one.
 */
#include "core.h"

#include <openssl/crypto.h>
#include <openssl/x509.h>
#include <string.h>

const char *kh_prov_type_name(kh_key_type type)
{
    switch (type) {
    case KH_KEY_RSA:
        return "RSA";
    case KH_KEY_P256:
    case KH_KEY_P384:
    case KH_KEY_P521:
        return "EC";
    case KH_KEY_ED25519:
        return "ED25519";
    default:
        return NULL;
    }
}

kh_prov_key *kh_prov_key_new(kh_prov *prov, const uint8_t *der, size_t len)
{
    kh_prov_key *key = NULL;
    kh_bytes name = {NULL, 0};
    kh_bytes spki = {NULL, 0};
    const unsigned char *p = NULL;

    if (kh_reference_decode(der, len, &name, &spki) != KH_OK) {
        return NULL;
    }
    key = OPENSSL_zalloc(sizeof(*key));
    if (key == NULL || name.len >= sizeof(key->name)) {
        goto failed;
    }
    atomic_init(&key->refs, 1);
    key->prov = prov;
    if (name.len > 0) {
        memcpy(key->name, name.data, name.len);
    }
    p = spki.data;
    key->pub = d2i_PUBKEY_ex(NULL, &p, (long)spki.len, prov->libctx, NULL);
    if (key->pub == NULL || p != spki.data + spki.len) {
        goto failed;
    }
    if (kh_key_id(key->pub, key->id, NULL, NULL, &key->type, &key->bits) != KH_OK) {
        goto failed;
    }
    return key;

failed:
    kh_prov_key_free(key);
    return NULL;
}

kh_prov_key *kh_prov_key_ref(kh_prov_key *key)
{
    atomic_fetch_add_explicit(&key->refs, 1, memory_order_relaxed);
    return key;
}

void kh_prov_key_free(kh_prov_key *key)
{
    if (key == NULL || atomic_fetch_sub_explicit(&key->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    EVP_PKEY_free(key->pub);
    OPENSSL_free(key);
}

void kh_prov_key_name(const kh_prov_key *key, kh_request *req)
{
    if (key->name[0] != '\0') {
        req->key_is_id = false;
        req->key = (kh_bytes){(const uint8_t *)key->name, strlen(key->name)};
    } else {
        req->key_is_id = true;
        req->key = (kh_bytes){key->id, sizeof(key->id)};
    }
}

size_t kh_prov_key_out_max(const kh_prov_key *key)
{
    int size = EVP_PKEY_get_size(key->pub);

    return size > 0 ? (size_t)size : 0;
}

int kh_prov_perform(const kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap, size_t *len)
{
    kh_result rc = KH_OK;

    kh_prov_key_name(key, req);
    *len = 0;
    rc = kh_prov_host->perform(kh_prov_host->ctx, key, req, out, cap, len);
    if (rc == KH_OK && *len <= cap) {
        return 1;
    }
    *len = 0;
    kh_prov_raise(key->prov, rc == KH_OK ? KH_E_TOO_LARGE : rc, __func__, "%s with key %s", kh_op_name((int)req->op),
                  key->name[0] != '\0' ? key->name : "(by id)");
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The finite-field groups that TLS 1.2 DHE may use: their primes come from OpenSSL, once. */
#include "usage.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <pthread.h>
#include <string.h>

#define PRIME_MAX 1024

typedef struct dh_group {
    const char *name;
    size_t p_len;
    uint8_t p[PRIME_MAX];
} dh_group;

/* All with g = 2. */
static dh_group groups[] = {
    {.name = "ffdhe2048"}, {.name = "ffdhe3072"}, {.name = "ffdhe4096"}, {.name = "ffdhe6144"},
    {.name = "ffdhe8192"}, {.name = "modp_2048"}, {.name = "modp_3072"}, {.name = "modp_4096"},
    {.name = "modp_6144"}, {.name = "modp_8192"},
};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static kh_result once_result = KH_E_CRYPTO;

static bool load_group(dh_group *group)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "DH", NULL);
    EVP_PKEY *pkey = NULL;
    BIGNUM *p = NULL, *g = NULL;
    bool good = false;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, (char *)(uintptr_t)group->name, 0),
        OSSL_PARAM_construct_end(),
    };

    if (ctx != NULL && EVP_PKEY_fromdata_init(ctx) == 1 &&
        EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_KEY_PARAMETERS, params) == 1 &&
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_FFC_P, &p) == 1 &&
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_FFC_G, &g) == 1 && BN_is_word(g, 2) &&
        BN_num_bytes(p) <= PRIME_MAX && BN_num_bits(p) >= 2048) {
        group->p_len = (size_t)BN_bn2bin(p, group->p);
        good = true;
    }
    BN_free(p);
    BN_free(g);
    EVP_PKEY_free(pkey);
    EVP_PKEY_CTX_free(ctx);
    return good;
}

static void load_groups(void)
{
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if (!load_group(&groups[i])) {
            return;
        }
    }
    once_result = KH_OK;
}

kh_result kh_dh_groups_init(void)
{
    pthread_once(&once, load_groups);
    return once_result;
}

bool kh_dh_group_known(const uint8_t *p, size_t p_len, const uint8_t *g, size_t g_len)
{
    if (g_len != 1 || g[0] != 2) {
        return false;
    }
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if (groups[i].p_len != 0 && groups[i].p_len == p_len && memcmp(groups[i].p, p, p_len) == 0) {
            return true;
        }
    }
    return false;
}

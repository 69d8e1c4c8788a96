/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in for p11_pool.c until that is there: no pools. */
#include "p11.h"

__attribute__((weak)) kh_result kh_p11_pool_generate(kh_p11_session *session, const char *pool, uint32_t type, uint32_t bits,
                                                     uint8_t *spki, size_t *spki_len, uint8_t *blob, size_t *blob_len)
{
    (void)session, (void)pool, (void)type, (void)bits, (void)spki, (void)spki_len, (void)blob, (void)blob_len;
    return KH_E_UNSUPPORTED;
}

__attribute__((weak)) kh_result kh_p11_pool_wrap(kh_p11_session *session, const char *pool, const uint8_t *pkcs8,
                                                 size_t pkcs8_len, uint8_t *blob, size_t *blob_len)
{
    (void)session, (void)pool, (void)pkcs8, (void)pkcs8_len, (void)blob, (void)blob_len;
    return KH_E_UNSUPPORTED;
}

__attribute__((weak)) kh_result kh_p11_pool_unwrap(kh_p11_session *session, const char *pool, const uint8_t *blob,
                                                   size_t blob_len, const kh_p11_locator *locator, uint32_t usage,
                                                   const uint8_t *spki, size_t spki_len)
{
    (void)session, (void)pool, (void)blob, (void)blob_len, (void)locator, (void)usage, (void)spki, (void)spki_len;
    return KH_E_UNSUPPORTED;
}

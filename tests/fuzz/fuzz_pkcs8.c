/* SPDX-License-Identifier: Apache-2.0 */
/* An imported key: PKCS#8 of any form. What is taken has a canonical form that is taken again and is the same key. */
#include "material.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static kh_material first, second;
    EVP_PKEY *pkey = NULL, *again = NULL;

    if (kh_pkcs8_parse(data, len, &pkey) == KH_OK && EVP_PKEY_get_bits(pkey) <= 4096
        && kh_material_encode(pkey, &first) == KH_OK) {
        if (kh_pkcs8_parse(first.pkcs8, first.pkcs8_len, &again) != KH_OK || kh_material_encode(again, &second) != KH_OK
            || memcmp(first.id, second.id, sizeof(first.id)) != 0) {
            abort();
        }
    }
    EVP_PKEY_free(pkey);
    EVP_PKEY_free(again);
    ERR_clear_error();
    return 0;
}

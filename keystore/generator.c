/* SPDX-License-Identifier: Apache-2.0 */
/* The generator: makes keys and judges imported ones, which may take seconds, so that nothing waits for it.
 */
#include "keeper.h"

#include <keyhold/import.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

static kh_result import(kh_keeper *keeper, const kh_op *op, kh_material *material)
{
    const uint8_t *sealed = op->record.data + sizeof(kh_key_info);
    size_t sealed_len = op->record.data_len - sizeof(kh_key_info), len = 0;
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX + KH_IMPORT_OVERHEAD];
    kh_key_info info;
    kh_import_terms terms;
    EVP_PKEY *pkey = NULL;
    kh_result result = KH_E_TOO_LARGE;

    if (sealed_len > sizeof(pkcs8)) {
        return result;
    }
    memcpy(&info, op->record.data, sizeof(info));
    terms = (kh_import_terms){.name = info.name,
                              .usage = info.usage,
                              .flags = info.flags,
                              .tier = info.tier,
                              .place = info.place,
                              .not_before = info.not_before,
                              .expires = info.expires};
    result = kh_import_open_as(kh_store_import_private(keeper->store), &terms, sealed, sealed_len, pkcs8, sizeof(pkcs8), &len);
    if (result == KH_OK) {
        result = kh_pkcs8_parse(pkcs8, len, &pkey);
    }
    if (result == KH_OK) {
        result = kh_material_judge(pkey);
    }
    if (result == KH_OK) {
        result = kh_material_encode(pkey, material);
    }
    EVP_PKEY_free(pkey);
    OPENSSL_cleanse(pkcs8, sizeof(pkcs8));
    return result;
}

static kh_result create(const kh_op *op, kh_material *material)
{
    kh_key_info info;

    memcpy(&info, op->record.data, sizeof(info));
    if (!kh_material_possible(info.type, &info.bits)) {
        return KH_E_UNSUPPORTED;
    }
    return kh_material_generate((kh_key_type)info.type, info.bits, material);
}

void *kh_generator_main(void *arg)
{
    kh_keeper *keeper = arg;
    kh_op *op = NULL;

    while ((op = kh_desk_pop(&keeper->generator_desk)) != NULL) {
        op->generated = true;
        if (kh_keeper_closed(keeper)) {
            kh_keeper_complete_one(keeper, op, KH_E_UNAVAILABLE);
            continue;
        }
        op->material = calloc(1, sizeof(*op->material));
        if (op->material == NULL) {
            op->result = KH_E_MEMORY;
        } else {
            op->result = op->record.op == KH_STORE_IMPORT ? import(keeper, op, op->material)
                                                          : create(op, op->material);
        }
        ERR_clear_error();
        kh_storework_submit(keeper, op);
    }
    return NULL;
}

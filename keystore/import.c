/* SPDX-License-Identifier: Apache-2.0 */
/* Wrapping a private key for import: HPKE with the name, the usage and the flags bound to it. */
#include "hpke.h"

#include <keyhold/import.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

static const uint8_t hpke_info[] = "keyhold import 1";
#define HPKE_INFO_LEN (sizeof(hpke_info) - 1)
#define AAD_MAX (KH_NAME_MAX + 32 + KH_PLACE_MAX + 64)

/* 0: the name is not one, or the place. */
static size_t make_aad(char aad[AAD_MAX], const kh_import_terms *terms)
{
    const char *place = terms->place != NULL ? terms->place : "";
    size_t len = 0;

    if (!kh_name_valid(terms->name, strlen(terms->name)) || strlen(place) > KH_PLACE_MAX || strchr(place, '\n') != NULL) {
        return 0;
    }
    len = (size_t)snprintf(aad, AAD_MAX, "%s\n%u\n%u", terms->name, terms->usage, terms->flags);
    if (terms->tier != 0 || place[0] != '\0' || terms->not_before != 0 || terms->expires != 0) {
        len += (size_t)snprintf(aad + len, AAD_MAX - len, "\n%u\n%s\n%llu\n%llu", terms->tier, place,
                                (unsigned long long)terms->not_before, (unsigned long long)terms->expires);
    }
    return len;
}

kh_result kh_import_seal(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], const char *name, uint32_t usage,
                         uint32_t flags, const uint8_t *pkcs8, size_t pkcs8_len, uint8_t *sealed, size_t cap,
                         size_t *sealed_len)
{
    const kh_import_terms terms = {.name = name, .usage = usage, .flags = flags};

    return kh_import_seal_as(import_public, &terms, pkcs8, pkcs8_len, sealed, cap, sealed_len);
}

kh_result kh_import_seal_as(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], const kh_import_terms *terms,
                            const uint8_t *pkcs8, size_t pkcs8_len, uint8_t *sealed, size_t cap, size_t *sealed_len)
{
    char aad[AAD_MAX];
    size_t aad_len = make_aad(aad, terms);
    kh_result result = KH_OK;

    *sealed_len = 0;
    if (pkcs8_len > KH_IMPORT_PKCS8_MAX || cap < pkcs8_len + KH_IMPORT_OVERHEAD) {
        return KH_E_TOO_LARGE;
    }
    if (aad_len == 0) {
        return KH_E_INVALID;
    }
    result = kh_hpke_seal(&kh_hpke_aes256, import_public, NULL, hpke_info, HPKE_INFO_LEN,
                          (const uint8_t *)aad, aad_len, pkcs8, pkcs8_len, sealed, NULL);
    if (result == KH_OK) {
        *sealed_len = pkcs8_len + KH_IMPORT_OVERHEAD;
    }
    return result;
}

kh_result kh_import_open(const uint8_t import_private[32], const char *name, uint32_t usage, uint32_t flags,
                         const uint8_t *sealed, size_t sealed_len, uint8_t *pkcs8, size_t cap,
                         size_t *pkcs8_len)
{
    const kh_import_terms terms = {.name = name, .usage = usage, .flags = flags};

    return kh_import_open_as(import_private, &terms, sealed, sealed_len, pkcs8, cap, pkcs8_len);
}

kh_result kh_import_open_as(const uint8_t import_private[32], const kh_import_terms *terms, const uint8_t *sealed,
                            size_t sealed_len, uint8_t *pkcs8, size_t cap, size_t *pkcs8_len)
{
    char aad[AAD_MAX];
    size_t aad_len = make_aad(aad, terms);
    kh_result result = KH_OK;

    *pkcs8_len = 0;
    if (aad_len == 0 || sealed_len < KH_IMPORT_OVERHEAD || cap < sealed_len) {
        return KH_E_CRYPTO;
    }
    result = kh_hpke_open(&kh_hpke_aes256, import_private, hpke_info, HPKE_INFO_LEN, (const uint8_t *)aad,
                          aad_len, sealed, sealed_len, pkcs8);
    if (result == KH_OK) {
        *pkcs8_len = sealed_len - KH_IMPORT_OVERHEAD;
    }
    return result;
}

void kh_import_fingerprint(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], char out[52])
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    uint8_t base64[48];

    SHA256(import_public, KH_IMPORT_PUBLIC_LEN, hash);
    EVP_EncodeBlock(base64, hash, sizeof(hash));
    memcpy(out, "SHA256:", 7);
    memcpy(out + 7, base64, 43);
    out[50] = '\0';
}

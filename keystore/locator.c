/* SPDX-License-Identifier: Apache-2.0 */
/* Locators of keys in tokens as bytes. See locator.h. */
#include "locator.h"
#include "row.h"

#define MAGIC "KHL1"

kh_result kh_locator_encode(const kh_p11_locator *locator, const uint8_t *blob, size_t blob_len, uint8_t *out,
                            size_t *out_len)
{
    size_t label_len = strnlen(locator->label, sizeof(locator->label));
    uint8_t *at = out;

    *out_len = 0;
    if (locator->id_len > sizeof(locator->id) || label_len > KH_NAME_MAX || locator->id_len + label_len == 0) {
        return KH_E_INVALID;
    }
    if (blob_len > KH_P11_BLOB_MAX) {
        return KH_E_TOO_LARGE;
    }
    at = kh_put_bytes(at, MAGIC, 4);
    at = kh_put_number(at, locator->id_len, 1);
    at = kh_put_bytes(at, locator->id, locator->id_len);
    at = kh_put_number(at, label_len, 1);
    at = kh_put_bytes(at, locator->label, label_len);
    at = kh_put_number(at, blob_len, 2);
    if (blob_len > 0) {
        at = kh_put_bytes(at, blob, blob_len);
    }
    *out_len = (size_t)(at - out);
    return KH_OK;
}

/* The part of the bytes that follows its length; false: it is not there, or longer than it may be. */
static bool take(const uint8_t **at, const uint8_t *end, unsigned width, size_t most, const uint8_t **part, size_t *len)
{
    if ((size_t)(end - *at) < width) {
        return false;
    }
    *len = (size_t)kh_get_number(*at, width);
    *part = *at + width;
    if (*len > most || (size_t)(end - *part) < *len) {
        return false;
    }
    *at = *part + *len;
    return true;
}

kh_result kh_locator_parse(const uint8_t *bytes, size_t len, kh_p11_locator *locator, const uint8_t **blob,
                           size_t *blob_len)
{
    const uint8_t *at = bytes + 4, *end = bytes + len, *id = NULL, *label = NULL;
    size_t id_len = 0, label_len = 0;

    memset(locator, 0, sizeof(*locator));
    *blob = NULL;
    *blob_len = 0;
    if (len < 4 || memcmp(bytes, MAGIC, 4) != 0 || !take(&at, end, 1, sizeof(locator->id), &id, &id_len) ||
        !take(&at, end, 1, KH_NAME_MAX, &label, &label_len) || !take(&at, end, 2, KH_P11_BLOB_MAX, blob, blob_len) ||
        at != end || id_len + label_len == 0 || memchr(label, '\0', label_len) != NULL) {
        *blob = NULL;
        *blob_len = 0;
        return KH_E_DAMAGED;
    }
    memcpy(locator->id, id, id_len);
    locator->id_len = (uint8_t)id_len;
    memcpy(locator->label, label, label_len);
    *blob = *blob_len > 0 ? *blob : NULL;
    return KH_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Key references: a key's name and public key in PEM form, for programs that read a private key file. */
#include <keyhold/client.h>

#include "der.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define KH_REFERENCE_MARKER "keyhold-reference-1"
#define KH_REFERENCE_DER_MAX (KH_SPKI_MAX + KH_NAME_MAX + 64)
#define KH_PEM_LINE 48 /* bytes in a line of 64 characters */

/* Appends text to buf; false: does not fit with a terminating zero. */
static bool kh_append(char *buf, size_t cap, size_t *len, const char *text, size_t text_len)
{
    if (cap - *len <= text_len) {
        return false;
    }
    memcpy(buf + *len, text, text_len);
    *len += text_len;
    buf[*len] = '\0';
    return true;
}

static kh_result kh_pem_write(kh_bytes der, char *buf, size_t cap, size_t *len)
{
    static const char begin[] = "-----BEGIN " KH_REFERENCE_LABEL "-----\n";
    static const char end[] = "-----END " KH_REFERENCE_LABEL "-----\n";
    bool fits = cap > 0 && kh_append(buf, cap, len, begin, sizeof(begin) - 1);

    while (fits && der.len > 0) {
        char line[KH_PEM_LINE / 3 * 4 + 2];
        size_t part = der.len < KH_PEM_LINE ? der.len : KH_PEM_LINE;
        int chars = EVP_EncodeBlock((unsigned char *)line, der.data, (int)part);

        line[chars] = '\n';
        fits = kh_append(buf, cap, len, line, (size_t)chars + 1);
        der = (kh_bytes){der.data + part, der.len - part};
    }
    return fits && kh_append(buf, cap, len, end, sizeof(end) - 1) ? KH_OK : KH_E_TOO_LARGE;
}

/* Whether the bytes are one SEQUENCE and nothing else; what is in it is for whoever uses the key. */
static bool kh_spki_plausible(kh_bytes spki)
{
    kh_bytes contents = {0};

    return spki.len <= KH_SPKI_MAX && kh_der_take(&spki, KH_DER_SEQUENCE, &contents, NULL) && spki.len == 0 &&
           contents.len > 0;
}

/* An empty name: the key is known by the id of its public key alone ("keyhold on" in nginx). */
static bool kh_reference_name_valid(kh_bytes name)
{
    size_t name_len = 0;
    uint32_t version = 0;

    return name.len == 0 || kh_name_split((const char *)name.data, name.len, &name_len, &version) == KH_OK;
}

kh_result kh_reference_encode(const char *name, kh_bytes spki, char *buf, size_t cap, size_t *len)
{
    uint8_t der[KH_REFERENCE_DER_MAX];
    kh_der_writer writer;
    kh_bytes name_bytes = {(const uint8_t *)name, strlen(name)};
    size_t end = 0;
    kh_result result = KH_OK;

    *len = 0;
    if (!kh_reference_name_valid(name_bytes) || !kh_spki_plausible(spki)) {
        return KH_E_INVALID;
    }
    kh_der_init(&writer, der, sizeof(der));
    kh_der_raw(&writer, spki.data, spki.len);
    end = writer.at;
    kh_der_raw(&writer, name_bytes.data, name_bytes.len);
    kh_der_wrap(&writer, KH_DER_UTF8_STRING, end);
    end = writer.at;
    kh_der_raw(&writer, KH_REFERENCE_MARKER, sizeof(KH_REFERENCE_MARKER) - 1);
    kh_der_wrap(&writer, KH_DER_UTF8_STRING, end);
    kh_der_wrap(&writer, KH_DER_SEQUENCE, writer.cap);
    if (writer.failed) {
        return KH_E_INTERNAL;
    }
    result = kh_pem_write((kh_bytes){der + writer.at, writer.cap - writer.at}, buf, cap, len);
    if (result != KH_OK) {
        *len = 0;
    }
    return result;
}

kh_result kh_reference_decode(const uint8_t *der, size_t len, kh_bytes *name, kh_bytes *spki)
{
    kh_bytes rest = {der, len};
    kh_bytes body = {0};
    kh_bytes marker = {0};
    kh_bytes found_name = {0};
    kh_bytes contents = {0};
    kh_bytes found_spki = {0};

    *name = (kh_bytes){0};
    *spki = (kh_bytes){0};
    if (!kh_der_take(&rest, KH_DER_SEQUENCE, &body, NULL) || rest.len != 0 ||
        !kh_der_take(&body, KH_DER_UTF8_STRING, &marker, NULL) ||
        !kh_der_take(&body, KH_DER_UTF8_STRING, &found_name, NULL) ||
        !kh_der_take(&body, KH_DER_SEQUENCE, &contents, &found_spki) || body.len != 0) {
        return KH_E_MALFORMED;
    }
    if (marker.len != sizeof(KH_REFERENCE_MARKER) - 1 ||
        memcmp(marker.data, KH_REFERENCE_MARKER, marker.len) != 0) {
        return KH_E_UNSUPPORTED;
    }
    if (!kh_reference_name_valid(found_name) || !kh_spki_plausible(found_spki)) {
        return KH_E_MALFORMED;
    }
    *name = found_name;
    *spki = found_spki;
    return KH_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Subject alternative names as text. */
#include "san.h"
#include <arpa/inet.h>
#include <string.h>

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* Visible ASCII, so that a name can be logged and no two look the same. */
static bool visible(const char *value, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (value[i] < 0x21 || value[i] > 0x7e) {
            return false;
        }
    }
    return len > 0;
}

static bool take_dns(const char *value, size_t len, char *out)
{
    for (size_t i = 0; i < len; i++) {
        char c = lower(value[i]);

        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.')) {
            return false;
        }
        out[i] = c;
    }
    return len > 0 && len <= 253 && value[0] != '.' && value[len - 1] != '.';
}

static bool take_uri(const char *value, size_t len, char *out)
{
    const char *colon = memchr(value, ':', len);

    memcpy(out, value, len);
    return visible(value, len) && colon != NULL && colon > value;
}

static bool take_ip(const char *value, size_t len, char *out)
{
    char text[INET6_ADDRSTRLEN] = "";
    uint8_t address[16];
    int family = memchr(value, ':', len) != NULL ? AF_INET6 : AF_INET;

    if (len >= sizeof text) {
        return false;
    }
    memcpy(text, value, len);
    return inet_pton(family, text, address) == 1 && inet_ntop(family, address, out, INET6_ADDRSTRLEN) != NULL;
}

static bool take_email(const char *value, size_t len, char *out)
{
    const char *at = memrchr(value, '@', len);
    size_t local = at != NULL ? (size_t)(at - value) + 1 : 0;

    memcpy(out, value, local);
    return local > 1 && visible(value, len) && take_dns(value + local, len - local, out + local);
}

kh_result kh_san_canonical(const char *text, size_t len, char out[KH_SAN_MAX + 1])
{
    static const struct {
        const char *kind;
        bool (*take)(const char *value, size_t len, char *out); /* out is zeroed */
    } table[] = {{"dns:", take_dns}, {"uri:", take_uri}, {"ip:", take_ip}, {"email:", take_email}};

    memset(out, 0, KH_SAN_MAX + 1);
    for (size_t i = 0; i < sizeof table / sizeof *table && len <= KH_SAN_MAX; i++) {
        size_t kind_len = strlen(table[i].kind);

        if (len > kind_len && memcmp(text, table[i].kind, kind_len) == 0) {
            memcpy(out, table[i].kind, kind_len);
            return table[i].take(text + kind_len, len - kind_len, out + kind_len) ? KH_OK : KH_E_INVALID;
        }
    }
    return KH_E_INVALID;
}

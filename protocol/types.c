/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of types.h as functions, and the parsers for names, usages and key types. */
#include <keyhold/types.h>

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define KH_RSA_BITS_MIN 2048
#define KH_RSA_BITS_MAX 4096

typedef struct kh_result_row {
    const char *name;
    const char *text;
    bool retryable;
} kh_result_row;

static const kh_result_row kh_result_rows[] = {
#define KH_X(constant, number, name, retryable, text) [number] = {name, text, retryable},
    KH_RESULTS(KH_X)
#undef KH_X
};

static const kh_result_row *kh_result_find(int result)
{
    static const kh_result_row unknown = {"unknown", "an unknown result", false};

    if (result < 0 || (size_t)result >= sizeof(kh_result_rows) / sizeof(kh_result_rows[0]) ||
        kh_result_rows[result].name == NULL) {
        return &unknown;
    }
    return &kh_result_rows[result];
}

const char *kh_result_name(int result)
{
    return kh_result_find(result)->name;
}

const char *kh_result_text(int result)
{
    return kh_result_find(result)->text;
}

bool kh_result_retryable(int result)
{
    return kh_result_find(result)->retryable;
}

const char *kh_key_type_name(int type)
{
    switch (type) {
#define KH_X(constant, number, name, bits, sig_max)                                                          \
    case number:                                                                                             \
        return name;
        KH_KEY_TYPES(KH_X)
#undef KH_X
    default:
        return "unknown";
    }
}

/* "2048" of "rsa2048" or "rsa-2048"; 0 when it is not an even size that Keyhold makes. */
static unsigned kh_rsa_bits_parse(const char *digits)
{
    unsigned bits = 0;

    if (strlen(digits) != 4) {
        return 0;
    }
    for (; *digits != '\0'; digits++) {
        if (*digits < '0' || *digits > '9') {
            return 0;
        }
        bits = bits * 10 + (unsigned)(*digits - '0');
    }
    return bits >= KH_RSA_BITS_MIN && bits <= KH_RSA_BITS_MAX && bits % 2 == 0 ? bits : 0;
}

kh_result kh_key_type_parse(const char *text, kh_key_type *type, unsigned *bits)
{
    static const struct {
        const char *word;
        kh_key_type type;
        unsigned bits;
    } words[] = {
        {"p256", KH_KEY_P256, 256},       {"p-256", KH_KEY_P256, 256}, {"p384", KH_KEY_P384, 384},
        {"p-384", KH_KEY_P384, 384},      {"p521", KH_KEY_P521, 521},  {"p-521", KH_KEY_P521, 521},
        {"ed25519", KH_KEY_ED25519, 256},
    };
    unsigned rsa_bits;

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcasecmp(text, words[i].word) == 0) {
            *type = words[i].type;
            *bits = words[i].bits;
            return KH_OK;
        }
    }
    if (strncasecmp(text, "rsa", 3) != 0) {
        return KH_E_INVALID;
    }
    rsa_bits = kh_rsa_bits_parse(text + (text[3] == '-' ? 4 : 3));
    if (rsa_bits == 0) {
        return KH_E_INVALID;
    }
    *type = KH_KEY_RSA;
    *bits = rsa_bits;
    return KH_OK;
}

const char *kh_scheme_name(int scheme)
{
    switch (scheme) {
#define KH_X(constant, number, name, type, hash_len)                                                         \
    case number:                                                                                             \
        return name;
        KH_SCHEMES(KH_X)
#undef KH_X
    default:
        return "unknown";
    }
}

kh_key_type kh_scheme_key_type(int scheme)
{
    switch (scheme) {
#define KH_X(constant, number, name, type, hash_len)                                                         \
    case number:                                                                                             \
        return type;
        KH_SCHEMES(KH_X)
#undef KH_X
    default:
        return KH_KEY_NONE;
    }
}

size_t kh_scheme_hash_len(int scheme)
{
    switch (scheme) {
#define KH_X(constant, number, name, type, hash_len)                                                         \
    case number:                                                                                             \
        return hash_len;
        KH_SCHEMES(KH_X)
#undef KH_X
    default:
        return 0;
    }
}

static bool kh_key_type_is_ec(int type)
{
    return type == KH_KEY_P256 || type == KH_KEY_P384 || type == KH_KEY_P521;
}

bool kh_scheme_fits(int scheme, int type)
{
    kh_key_type needed = kh_scheme_key_type(scheme);

    if (needed == KH_KEY_NONE) {
        return false;
    }
    return kh_key_type_is_ec(needed) ? kh_key_type_is_ec(type) : (int)needed == type;
}

const char *kh_padding_name(int padding)
{
    switch (padding) {
#define KH_X(constant, number, name)                                                                         \
    case number:                                                                                             \
        return name;
        KH_PADDINGS(KH_X)
#undef KH_X
    default:
        return "unknown";
    }
}

static const struct {
    const char *name;
    unsigned bit;
} kh_usage_rows[] = {
#define KH_X(constant, bit, name) {name, bit},
    KH_USAGES(KH_X)
#undef KH_X
};

#define KH_USAGE_ROWS (sizeof(kh_usage_rows) / sizeof(kh_usage_rows[0]))

/* The bit of one word; 0 when there is no such usage. */
static unsigned kh_usage_bit(const char *word, size_t len)
{
    for (size_t i = 0; i < KH_USAGE_ROWS; i++) {
        if (strlen(kh_usage_rows[i].name) == len && memcmp(kh_usage_rows[i].name, word, len) == 0) {
            return kh_usage_rows[i].bit;
        }
    }
    return 0;
}

kh_result kh_usage_parse(const char *text, unsigned *usage)
{
    unsigned set = 0;

    for (;;) {
        size_t len = strcspn(text, ",");
        unsigned bit = kh_usage_bit(text, len);

        if (bit == 0) {
            return KH_E_INVALID;
        }
        set |= bit;
        if (text[len] == '\0') {
            break;
        }
        text += len + 1;
    }
    *usage = set;
    return KH_OK;
}

char *kh_usage_format(unsigned usage, char *buf, size_t len)
{
    size_t used = 0;

    if (len > 0) {
        buf[0] = '\0';
    }
    for (size_t i = 0; i < KH_USAGE_ROWS && used < len; i++) {
        if ((usage & kh_usage_rows[i].bit) != 0) {
            used +=
                (size_t)snprintf(buf + used, len - used, "%s%s", used > 0 ? "," : "", kh_usage_rows[i].name);
        }
    }
    return buf;
}

static bool kh_name_char(char c, bool first)
{
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
        return true;
    }
    return !first && (c == '.' || c == '_' || c == '-');
}

bool kh_name_valid(const char *name, size_t len)
{
    if (len == 0 || len > KH_NAME_MAX) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (!kh_name_char(name[i], i == 0)) {
            return false;
        }
    }
    return true;
}

kh_result kh_name_split(const char *text, size_t len, size_t *name_len, uint32_t *version)
{
    const char *slash = len > 0 ? memchr(text, '/', len) : NULL;
    size_t head = slash != NULL ? (size_t)(slash - text) : len;
    uint64_t number = 0;

    if (!kh_name_valid(text, head)) {
        return KH_E_INVALID;
    }
    if (slash != NULL) {
        size_t digits = len - head - 1;

        if (digits == 0 || digits > 10 || slash[1] == '0') {
            return KH_E_INVALID;
        }
        for (size_t i = 1; i <= digits; i++) {
            if (slash[i] < '0' || slash[i] > '9') {
                return KH_E_INVALID;
            }
            number = number * 10 + (uint64_t)(slash[i] - '0');
        }
        if (number > INT32_MAX) {
            return KH_E_INVALID;
        }
    }
    *name_len = head;
    *version = (uint32_t)number;
    return KH_OK;
}

bool kh_name_glob(const char *pattern, const char *name, size_t name_len)
{
    const char *star = NULL; /* the last `*` seen: when a later character fails, it swallows one more */
    size_t at = 0;
    size_t star_at = 0;

    while (at < name_len) {
        if (*pattern == '*') {
            star = pattern++;
            star_at = at;
        } else if (*pattern != '\0' && (*pattern == '?' || *pattern == name[at])) {
            pattern++;
            at++;
        } else if (star != NULL) {
            pattern = star + 1;
            at = ++star_at;
        } else {
            return false;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return *pattern == '\0';
}

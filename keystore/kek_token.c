/* SPDX-License-Identifier: Apache-2.0 */
/* KEK files of a key-encryption key that a token opens. */
#include "kek_token.h"

#include <stdio.h>
#include <string.h>

#define FILE_MAGIC "keyhold-kek-token-1"
#define LINE_MAX_LEN (sizeof(FILE_MAGIC) + KH_PLACE_MAX + 16 + 2 * KH_P11_ID_LEN + 2 * KH_KEK_WRAPPED_MAX + 8)
#define WORDS 5

static const char *const hows[] = {
#define KH_X(constant, number, name) [number] = name,
    KH_KEK_HOWS(KH_X)
#undef KH_X
};

kh_result kh_kek_token_file_create(const char *path, const kh_kek_token *t)
{
    char line[LINE_MAX_LEN + 2], id[2 * KH_P11_ID_LEN], wrapped[2 * KH_KEK_WRAPPED_MAX];
    int len = 0;

    if (t->how < KH_KEK_GCM || t->how > KH_KEK_KWP || t->wrapped_len > sizeof(t->wrapped)) {
        return KH_E_INVALID;
    }
    kh_kek_hex(t->id, sizeof(t->id), id);
    kh_kek_hex(t->wrapped, t->wrapped_len, wrapped);
    len = snprintf(line, sizeof(line), FILE_MAGIC " %s %s %.*s %.*s\n", t->token, hows[t->how],
                   (int)sizeof(id), id, (int)(2 * t->wrapped_len), wrapped);
    return kh_kek_line_create(path, line, (size_t)len);
}

/* Exactly the bytes that the digits are; false: no digits, an odd number, or more than cap bytes. */
static bool unhex(const char *text, uint8_t *out, size_t cap, size_t *len)
{
    size_t digits = strlen(text);

    if (digits % 2 != 0 || digits / 2 > cap) {
        return false;
    }
    for (size_t i = 0; i < digits / 2; i++) {
        int high = kh_kek_hex_value(text[2 * i]), low = kh_kek_hex_value(text[2 * i + 1]);

        if (high < 0 || low < 0) {
            return false;
        }
        out[i] = (uint8_t)(high << 4 | low);
    }
    *len = digits / 2;
    return true;
}

/* Words that are separated by exactly one space. line is cut into pieces. */
static bool parse(char *line, kh_kek_token *t)
{
    char *words[WORDS] = {line};
    size_t count = 1, len = 0;

    for (char *at = line; (at = strchr(at, ' ')) != NULL; count++) {
        if (count == WORDS) {
            return false;
        }
        *at++ = '\0';
        words[count] = at;
    }
    if (count != WORDS || strcmp(words[0], FILE_MAGIC) != 0 || strlen(words[1]) > KH_PLACE_MAX ||
        !kh_name_valid(words[1], strlen(words[1]))) {
        return false;
    }
    strcpy(t->token, words[1]);
    for (size_t i = 1; i < sizeof(hows) / sizeof(hows[0]); i++) {
        t->how = strcmp(words[2], hows[i]) == 0 ? (kh_kek_how)i : t->how;
    }
    return t->how != 0 && unhex(words[3], t->id, sizeof(t->id), &len) && len == sizeof(t->id) &&
           unhex(words[4], t->wrapped, sizeof(t->wrapped), &t->wrapped_len) && t->wrapped_len > KH_KEK_LEN;
}

kh_result kh_kek_token_file_load(const char *path, kh_kek_token *t)
{
    char line[LINE_MAX_LEN + 1];
    size_t len = 0;
    kh_result result = kh_kek_line_load(path, line, LINE_MAX_LEN, &len);

    memset(t, 0, sizeof(*t));
    if (result != KH_OK) {
        return result;
    }
    line[len] = '\0';
    if (strlen(line) != len || !parse(line, t)) {
        memset(t, 0, sizeof(*t));
        return KH_E_MALFORMED;
    }
    return KH_OK;
}

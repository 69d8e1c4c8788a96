/* SPDX-License-Identifier: Apache-2.0 */
/* The words of nginx configurations: white space, comments, quotes, escapes, "${name}"; and the bodies of Lua
 * blocks. */
#include "nginxconf_private.h"

#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static int peek(const nginxconf_reader *r)
{
    return r->pos < r->len ? (unsigned char)r->text[r->pos] : -1;
}

static void advance(nginxconf_reader *r)
{
    if (r->text[r->pos] == '\n') {
        r->line++;
    }
    r->pos++;
}

/* nginx begins a comment only where a word could begin. */
static void skip_space_and_comments(nginxconf_reader *r)
{
    while (r->pos < r->len) {
        if (is_space(r->text[r->pos])) {
            advance(r);
        } else if (r->text[r->pos] == '#') {
            while (r->pos < r->len && r->text[r->pos] != '\n') {
                r->pos++;
            }
        } else {
            return;
        }
    }
}

/* Copies text[from, to) with nginx's escapes resolved: a backslash before a quote, itself, t, r or n. */
static const char *unescape(nginxconf_reader *r, size_t from, size_t to)
{
    char *word = nginxconf_alloc(r->parser->conf, to - from + 1);
    size_t len = 0;

    if (word == NULL) {
        return NULL;
    }
    for (size_t i = from; i < to; i++) {
        char c = r->text[i];

        if (c == '\\' && i + 1 < to) {
            switch (r->text[i + 1]) {
            case '"':
            case '\'':
            case '\\':
                c = r->text[++i];
                break;
            case 't':
                c = '\t';
                i++;
                break;
            case 'r':
                c = '\r';
                i++;
                break;
            case 'n':
                c = '\n';
                i++;
                break;
            default:
                break;
            }
        }
        word[len++] = c;
    }
    word[len] = '\0';
    return word;
}

/* A quoted word; the nginxconf_reader stands behind the opening quote. */
static kh_result read_quoted(nginxconf_reader *r, char quote, const char **word)
{
    unsigned line = r->line;
    size_t from = r->pos;

    while (r->pos < r->len && r->text[r->pos] != quote) {
        if (r->text[r->pos] == '\\' && r->pos + 1 < r->len) {
            advance(r);
        }
        advance(r);
    }
    if (r->pos >= r->len) {
        return nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, line,
                              "the quote that opens here is never closed");
    }
    *word = unescape(r, from, r->pos);
    advance(r);
    if (*word == NULL) {
        return KH_E_MEMORY;
    }
    if (r->pos < r->len && !is_space(r->text[r->pos]) && strchr(";{)", r->text[r->pos]) == NULL) {
        return nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, r->line,
                              "unexpected \"%c\" right after a closing quote", r->text[r->pos]);
    }
    /* "if ("…")": nginx lets a closing parenthesis follow a quote, and makes it a word of its own. */
    return KH_OK;
}

static kh_result read_bare(nginxconf_reader *r, const char **word)
{
    size_t from = r->pos;

    while (r->pos < r->len) {
        char c = r->text[r->pos];

        if (c == '\\' && r->pos + 1 < r->len) {
            advance(r);
        } else if (c == '$' && r->pos + 1 < r->len && r->text[r->pos + 1] == '{') {
            r->pos++; /* the brace belongs to the word */
        } else if (is_space(c) || c == ';' || c == '{') {
            break;
        }
        advance(r);
    }
    *word = unescape(r, from, r->pos);
    return *word != NULL ? KH_OK : KH_E_MEMORY;
}

/* Reads the words of one directive, up to and with its ";" or "{", or a "}" or the end where a directive
 * could begin. */
kh_result nginxconf_read_words(nginxconf_reader *r, words *w, stop *stopped)
{
    kh_result result = KH_OK;

    w->count = 0;
    while (result == KH_OK) {
        int c = 0;

        skip_space_and_comments(r);
        c = peek(r);
        if (w->count == 0) {
            w->line = r->line;
        }
        if (c < 0) {
            *stopped = STOP_END;
            return w->count == 0 ? KH_OK
                                 : nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, w->line,
                                                  "\"%s\" ends with neither \";\" nor a block", w->list[0]);
        }
        if (c == ';' || c == '{') {
            advance(r);
            *stopped = c == ';' ? STOP_SEMICOLON : STOP_OPEN;
            return w->count > 0
                       ? KH_OK
                       : nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, r->line, "unexpected \"%c\"", c);
        }
        if (c == '}' && w->count == 0) {
            advance(r);
            *stopped = STOP_CLOSE;
            return KH_OK;
        }
        if (c == '}') {
            return nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, r->line,
                                  "unexpected \"}\": is a \";\" missing after \"%s\"?", w->list[0]);
        }
        if (w->count == WORDS_MAX) {
            return nginxconf_fail(r->parser, KH_E_TOO_LARGE, r->file, w->line,
                                  "a directive of more than %d words", WORDS_MAX);
        }
        if (c == '"' || c == '\'') {
            advance(r);
            result = read_quoted(r, (char)c, &w->list[w->count++]);
        } else {
            result = read_bare(r, &w->list[w->count++]);
        }
    }
    return result;
}

/* The length of a Lua long bracket "[[" or "[=[" that begins here; 0: none. */
static size_t lua_bracket(const nginxconf_reader *r, size_t pos, char bracket)
{
    size_t i = pos;

    if (i >= r->len || r->text[i] != bracket) {
        return 0;
    }
    i++;
    while (i < r->len && r->text[i] == '=') {
        i++;
    }
    return i < r->len && r->text[i] == bracket ? i + 1 - pos : 0;
}

static void skip_lua_long(nginxconf_reader *r, size_t open_len)
{
    for (size_t i = 0; i < open_len; i++) {
        advance(r);
    }
    while (r->pos < r->len && lua_bracket(r, r->pos, ']') != open_len) {
        advance(r);
    }
    for (size_t i = 0; i < open_len && r->pos < r->len; i++) {
        advance(r);
    }
}

/* The body of a Lua block: braces count unless they stand in a Lua string or comment. Stands behind the "{".
 */
kh_result nginxconf_skip_lua(nginxconf_reader *r, unsigned line)
{
    unsigned depth = 1;

    while (r->pos < r->len) {
        char c = r->text[r->pos];
        size_t bracket = lua_bracket(r, r->pos, '[');

        if (bracket > 0) {
            skip_lua_long(r, bracket);
            continue;
        }
        advance(r);
        if (c == '{') {
            depth++;
        } else if (c == '}' && --depth == 0) {
            return KH_OK;
        } else if (c == '"' || c == '\'') {
            while (r->pos < r->len && r->text[r->pos] != c && r->text[r->pos] != '\n') {
                if (r->text[r->pos] == '\\' && r->pos + 1 < r->len) {
                    advance(r);
                }
                advance(r);
            }
            if (r->pos < r->len) {
                advance(r);
            }
        } else if (c == '-' && peek(r) == '-') {
            bracket = lua_bracket(r, r->pos + 1, '[');
            if (bracket > 0) {
                advance(r);
                skip_lua_long(r, bracket);
                continue;
            }
            while (r->pos < r->len && r->text[r->pos] != '\n') {
                r->pos++;
            }
        }
    }
    return nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, line,
                          "the Lua block that opens here is never closed");
}

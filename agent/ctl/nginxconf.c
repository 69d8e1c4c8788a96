/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of nginx configurations: words, directives, blocks, includes. See nginxconf.h. */
#include "nginxconf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_BLOCK 65536
#define WORDS_MAX 4096 /* words of one directive */

typedef struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    _Alignas(max_align_t) char data[];
} arena_block;

struct nginxconf {
    arena_block *arena;
    char *prefix;
    nginxconf_directive *top;
};

/* The state of one parse; `conf` is what will be handed out. */
typedef struct parser {
    const nginxconf_source *source;
    nginxconf *conf;
    unsigned includes, files, directives;
    size_t bytes;
    char *error;
    size_t error_cap;
} parser;

/* One file being read. */
typedef struct reader {
    parser *parser;
    const char *file;
    const char *text;
    size_t len, pos;
    unsigned line;
} reader;

/* Where the next directive is linked in. */
typedef struct place {
    nginxconf_directive *parent;
    nginxconf_directive **tail;
    unsigned depth;
} place;

typedef enum stop { STOP_SEMICOLON, STOP_OPEN, STOP_CLOSE, STOP_END } stop;

/* The words of one directive while they are read. */
typedef struct words {
    const char *list[WORDS_MAX];
    unsigned count;
    unsigned line; /* of the first */
} words;

static void *arena_alloc(nginxconf *conf, size_t len)
{
    arena_block *block = conf->arena;
    void *data = NULL;

    len = (len + _Alignof(max_align_t) - 1) & ~(_Alignof(max_align_t) - 1);
    if (block == NULL || block->cap - block->used < len) {
        size_t cap = len > ARENA_BLOCK ? len : ARENA_BLOCK;

        block = malloc(sizeof(*block) + cap);
        if (block == NULL) {
            return NULL;
        }
        block->next = conf->arena;
        block->used = 0;
        block->cap = cap;
        conf->arena = block;
    }
    data = block->data + block->used;
    block->used += len;
    return data;
}

static kh_result fail_at(parser *p, kh_result result, const char *file, unsigned line, const char *format,
                         ...) __attribute__((format(printf, 5, 6)));

static kh_result fail_at(parser *p, kh_result result, const char *file, unsigned line, const char *format,
                         ...)
{
    va_list args;
    int len = snprintf(p->error, p->error_cap, "%s:%u: ", file, line);

    va_start(args, format);
    if (len >= 0 && (size_t)len < p->error_cap) {
        (void)vsnprintf(p->error + len, p->error_cap - (size_t)len, format, args);
    }
    va_end(args);
    return result;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static int peek(const reader *r)
{
    return r->pos < r->len ? (unsigned char)r->text[r->pos] : -1;
}

static void advance(reader *r)
{
    if (r->text[r->pos] == '\n') {
        r->line++;
    }
    r->pos++;
}

/* nginx begins a comment only where a word could begin. */
static void skip_space_and_comments(reader *r)
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
static const char *unescape(reader *r, size_t from, size_t to)
{
    char *word = arena_alloc(r->parser->conf, to - from + 1);
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

/* A quoted word; the reader stands behind the opening quote. */
static kh_result read_quoted(reader *r, char quote, const char **word)
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
        return fail_at(r->parser, KH_E_MALFORMED, r->file, line, "the quote that opens here is never closed");
    }
    *word = unescape(r, from, r->pos);
    advance(r);
    if (*word == NULL) {
        return KH_E_MEMORY;
    }
    if (r->pos < r->len && !is_space(r->text[r->pos]) && strchr(";{)", r->text[r->pos]) == NULL) {
        return fail_at(r->parser, KH_E_MALFORMED, r->file, r->line,
                       "unexpected \"%c\" right after a closing quote", r->text[r->pos]);
    }
    /* "if ("…")": nginx lets a closing parenthesis follow a quote, and makes it a word of its own. */
    return KH_OK;
}

static kh_result read_bare(reader *r, const char **word)
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
static kh_result read_words(reader *r, words *w, stop *stopped)
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
                                 : fail_at(r->parser, KH_E_MALFORMED, r->file, w->line,
                                           "\"%s\" ends with neither \";\" nor a block", w->list[0]);
        }
        if (c == ';' || c == '{') {
            advance(r);
            *stopped = c == ';' ? STOP_SEMICOLON : STOP_OPEN;
            return w->count > 0
                       ? KH_OK
                       : fail_at(r->parser, KH_E_MALFORMED, r->file, r->line, "unexpected \"%c\"", c);
        }
        if (c == '}' && w->count == 0) {
            advance(r);
            *stopped = STOP_CLOSE;
            return KH_OK;
        }
        if (c == '}') {
            return fail_at(r->parser, KH_E_MALFORMED, r->file, r->line,
                           "unexpected \"}\": is a \";\" missing after \"%s\"?", w->list[0]);
        }
        if (w->count == WORDS_MAX) {
            return fail_at(r->parser, KH_E_TOO_LARGE, r->file, w->line, "a directive of more than %d words",
                           WORDS_MAX);
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
static size_t lua_bracket(const reader *r, size_t pos, char bracket)
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

static void skip_lua_long(reader *r, size_t open_len)
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
static kh_result skip_lua(reader *r, unsigned line)
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
    return fail_at(r->parser, KH_E_MALFORMED, r->file, line, "the Lua block that opens here is never closed");
}

static bool is_lua_block(const char *name)
{
    static const char suffix[] = "_by_lua_block";
    size_t len = strlen(name);

    return len > sizeof(suffix) - 1 && strcmp(name + len - (sizeof(suffix) - 1), suffix) == 0;
}

static kh_result add_directive(reader *r, const words *w, bool block, place *where,
                               nginxconf_directive **added)
{
    nginxconf *conf = r->parser->conf;
    nginxconf_directive *directive = NULL;
    const char **argv = NULL;

    if (++r->parser->directives > NGINXCONF_DIRECTIVES_MAX) {
        return fail_at(r->parser, KH_E_TOO_LARGE, r->file, w->line, "more than %d directives",
                       NGINXCONF_DIRECTIVES_MAX);
    }
    directive = arena_alloc(conf, sizeof(*directive));
    argv = arena_alloc(conf, w->count * sizeof(*argv));
    if (directive == NULL || argv == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(argv, w->list, w->count * sizeof(*argv));
    *directive = (nginxconf_directive){.file = r->file,
                                       .line = w->line,
                                       .argc = w->count,
                                       .argv = argv,
                                       .block = block,
                                       .parent = where->parent};
    *where->tail = directive;
    where->tail = &directive->next;
    *added = directive;
    return KH_OK;
}

static kh_result parse_file(parser *p, const char *path, const char *from_file, unsigned from_line,
                            place *where);

/* What the callback of glob needs. */
typedef struct include_ctx {
    parser *parser;
    const char *file;
    unsigned line;
    place *where;
} include_ctx;

static kh_result include_one(void *ctx, const char *path)
{
    const include_ctx *include = ctx;

    return parse_file(include->parser, path, include->file, include->line, include->where);
}

static kh_result parse_include(reader *r, const words *w, place *where)
{
    include_ctx ctx = {r->parser, r->file, w->line, where};
    kh_result result = KH_OK;
    const char *path = NULL;

    if (w->count != 2) {
        return fail_at(r->parser, KH_E_MALFORMED, r->file, w->line, "include takes one file name");
    }
    path = nginxconf_path(r->parser->conf, w->list[1]);
    if (path == NULL) {
        return KH_E_MEMORY;
    }
    if (r->parser->includes >= NGINXCONF_INCLUDE_MAX) {
        return fail_at(r->parser, KH_E_TOO_LARGE, r->file, w->line,
                       "includes nested deeper than %d: does a file include itself?", NGINXCONF_INCLUDE_MAX);
    }
    r->parser->includes++;
    if (strpbrk(path, "*?[") == NULL) {
        result = include_one(&ctx, path);
    } else {
        result = r->parser->source->glob(r->parser->source->ctx, path, include_one, &ctx);
        if (result != KH_OK && r->parser->error[0] == '\0') {
            fail_at(r->parser, result, r->file, w->line, "cannot list %s: %s", path, kh_result_text(result));
        }
    }
    r->parser->includes--;
    return result;
}

/* Reads directives up to the end of the file or the "}" that closes the block at `where`. */
static kh_result parse_block(reader *r, place *where, bool in_block, words *w)
{
    kh_result result = KH_OK;
    unsigned opened = r->line;

    while (result == KH_OK) {
        nginxconf_directive *directive = NULL;
        stop stopped = STOP_END;

        result = read_words(r, w, &stopped);
        if (result != KH_OK) {
            break;
        }
        if (stopped == STOP_CLOSE) {
            return in_block ? KH_OK
                            : fail_at(r->parser, KH_E_MALFORMED, r->file, r->line, "unexpected \"}\"");
        }
        if (stopped == STOP_END) {
            return !in_block ? KH_OK
                             : fail_at(r->parser, KH_E_MALFORMED, r->file, opened,
                                       "the block that opens here is never closed");
        }
        if (stopped == STOP_SEMICOLON && strcmp(w->list[0], "include") == 0) {
            result = parse_include(r, w, where);
            continue;
        }
        result = add_directive(r, w, stopped == STOP_OPEN, where, &directive);
        if (result == KH_OK && stopped == STOP_OPEN) {
            place inside = {directive, &directive->children, where->depth + 1};

            if (is_lua_block(directive->argv[0])) {
                result = skip_lua(r, directive->line);
            } else if (inside.depth > NGINXCONF_DEPTH_MAX) {
                result = fail_at(r->parser, KH_E_TOO_LARGE, r->file, directive->line,
                                 "blocks nested deeper than %d", NGINXCONF_DEPTH_MAX);
            } else {
                result = parse_block(r, &inside, true, w);
            }
        }
    }
    return result;
}

static const char *copy_text(nginxconf *conf, const char *text)
{
    size_t len = strlen(text) + 1;
    char *copy = arena_alloc(conf, len);

    return copy != NULL ? memcpy(copy, text, len) : NULL;
}

static kh_result parse_file(parser *p, const char *path, const char *from_file, unsigned from_line,
                            place *where)
{
    reader r = {.parser = p, .line = 1};
    kh_result result = KH_OK;
    char *text = NULL;
    words *w = NULL;

    result = p->source->read(p->source->ctx, path, &text, &r.len);
    if (result != KH_OK) {
        fail_at(p, result, from_file, from_line, "cannot read %s: %s", path,
                result == KH_E_IO          ? "no such file"
                : result == KH_E_FORBIDDEN ? "permission denied"
                                           : kh_result_text(result));
        goto done;
    }
    p->bytes += r.len;
    if (++p->files > NGINXCONF_FILES_MAX || p->bytes > NGINXCONF_BYTES_MAX) {
        result = fail_at(p, KH_E_TOO_LARGE, path, 1, "the configuration has more than %d files or %u MiB",
                         NGINXCONF_FILES_MAX, NGINXCONF_BYTES_MAX >> 20);
        goto done;
    }
    r.text = text;
    r.file = copy_text(p->conf, path);
    w = malloc(sizeof(*w));
    if (r.file == NULL || w == NULL) {
        result = KH_E_MEMORY;
        goto done;
    }
    result = parse_block(&r, where, false, w);
done:
    free(w);
    free(text);
    return result;
}

kh_result nginxconf_parse(const nginxconf_source *source, const char *path, const char *prefix,
                          nginxconf **conf, char *error, size_t error_cap)
{
    parser p = {.source = source, .error = error, .error_cap = error_cap};
    place where = {NULL, NULL, 0};
    kh_result result = KH_E_MEMORY;

    *conf = NULL;
    error[0] = '\0';
    p.conf = calloc(1, sizeof(*p.conf));
    if (p.conf == NULL) {
        goto done;
    }
    p.conf->prefix = strdup(prefix);
    if (p.conf->prefix == NULL) {
        goto done;
    }
    where.tail = &p.conf->top;
    result = parse_file(&p, path, path, 1, &where);
    if (result == KH_OK) {
        *conf = p.conf;
        p.conf = NULL; /* the caller's now */
    }
done:
    if (result == KH_E_MEMORY && error[0] == '\0') {
        (void)snprintf(error, error_cap, "%s: out of memory", path);
    }
    nginxconf_free(p.conf);
    return result;
}

void nginxconf_free(nginxconf *conf)
{
    if (conf == NULL) {
        return;
    }
    while (conf->arena != NULL) {
        arena_block *next = conf->arena->next;

        free(conf->arena);
        conf->arena = next;
    }
    free(conf->prefix);
    free(conf);
}

const nginxconf_directive *nginxconf_top(const nginxconf *conf)
{
    return conf->top;
}

const char *nginxconf_path(nginxconf *conf, const char *name)
{
    size_t cap = strlen(conf->prefix) + strlen(name) + 2;
    char *path = NULL;

    if (name[0] == '/') {
        return name;
    }
    path = arena_alloc(conf, cap);
    if (path != NULL) {
        (void)snprintf(path, cap, "%s/%s", conf->prefix, name);
    }
    return path;
}

bool nginxconf_has_variable(const char *word)
{
    return strchr(word, '$') != NULL;
}

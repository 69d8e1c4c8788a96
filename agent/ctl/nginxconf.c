/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of nginx configurations: directives, blocks, includes. See nginxconf.h. */
#include "nginxconf_private.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_BLOCK 65536

/* Where the next directive is linked in. */
typedef struct place {
    nginxconf_directive *parent;
    nginxconf_directive **tail;
    unsigned depth;
} place;

void *nginxconf_alloc(nginxconf *conf, size_t len)
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

kh_result nginxconf_fail(nginxconf_parser *p, kh_result result, const char *file, unsigned line,
                         const char *format, ...)
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

static bool is_lua_block(const char *name)
{
    static const char suffix[] = "_by_lua_block";
    size_t len = strlen(name);

    return len > sizeof(suffix) - 1 && strcmp(name + len - (sizeof(suffix) - 1), suffix) == 0;
}

static kh_result add_directive(nginxconf_reader *r, const words *w, bool block, place *where,
                               nginxconf_directive **added)
{
    nginxconf *conf = r->parser->conf;
    nginxconf_directive *directive = NULL;
    const char **argv = NULL;

    if (++r->parser->directives > NGINXCONF_DIRECTIVES_MAX) {
        return nginxconf_fail(r->parser, KH_E_TOO_LARGE, r->file, w->line, "more than %d directives",
                              NGINXCONF_DIRECTIVES_MAX);
    }
    directive = nginxconf_alloc(conf, sizeof(*directive));
    argv = nginxconf_alloc(conf, w->count * sizeof(*argv));
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

static kh_result parse_file(nginxconf_parser *p, const char *path, const char *from_file, unsigned from_line,
                            place *where);

/* What the callback of glob needs. */
typedef struct include_ctx {
    nginxconf_parser *parser;
    const char *file;
    unsigned line;
    place *where;
} include_ctx;

static kh_result include_one(void *ctx, const char *path)
{
    const include_ctx *include = ctx;

    return parse_file(include->parser, path, include->file, include->line, include->where);
}

static kh_result parse_include(nginxconf_reader *r, const words *w, place *where)
{
    include_ctx ctx = {r->parser, r->file, w->line, where};
    kh_result result = KH_OK;
    const char *path = NULL;

    if (w->count != 2) {
        return nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, w->line, "include takes one file name");
    }
    path = nginxconf_path(r->parser->conf, w->list[1]);
    if (path == NULL) {
        return KH_E_MEMORY;
    }
    if (r->parser->includes >= NGINXCONF_INCLUDE_MAX) {
        return nginxconf_fail(r->parser, KH_E_TOO_LARGE, r->file, w->line,
                              "includes nested deeper than %d: does a file include itself?",
                              NGINXCONF_INCLUDE_MAX);
    }
    r->parser->includes++;
    if (strpbrk(path, "*?[") == NULL) {
        result = include_one(&ctx, path);
    } else {
        result = r->parser->source->glob(r->parser->source->ctx, path, include_one, &ctx);
        if (result != KH_OK && r->parser->error[0] == '\0') {
            nginxconf_fail(r->parser, result, r->file, w->line, "cannot list %s: %s", path,
                           kh_result_text(result));
        }
    }
    r->parser->includes--;
    return result;
}

/* Reads directives up to the end of the file or the "}" that closes the block at `where`. */
static kh_result parse_block(nginxconf_reader *r, place *where, bool in_block, words *w)
{
    kh_result result = KH_OK;
    unsigned opened = r->line;

    while (result == KH_OK) {
        nginxconf_directive *directive = NULL;
        stop stopped = STOP_END;

        result = nginxconf_read_words(r, w, &stopped);
        if (result != KH_OK) {
            break;
        }
        if (stopped == STOP_CLOSE) {
            return in_block ? KH_OK
                            : nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, r->line, "unexpected \"}\"");
        }
        if (stopped == STOP_END) {
            return !in_block ? KH_OK
                             : nginxconf_fail(r->parser, KH_E_MALFORMED, r->file, opened,
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
                result = nginxconf_skip_lua(r, directive->line);
            } else if (inside.depth > NGINXCONF_DEPTH_MAX) {
                result = nginxconf_fail(r->parser, KH_E_TOO_LARGE, r->file, directive->line,
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
    char *copy = nginxconf_alloc(conf, len);

    return copy != NULL ? memcpy(copy, text, len) : NULL;
}

static kh_result parse_file(nginxconf_parser *p, const char *path, const char *from_file, unsigned from_line,
                            place *where)
{
    nginxconf_reader r = {.parser = p, .line = 1};
    kh_result result = KH_OK;
    char *text = NULL;
    words *w = NULL;

    result = p->source->read(p->source->ctx, path, &text, &r.len);
    if (result != KH_OK) {
        nginxconf_fail(p, result, from_file, from_line, "cannot read %s: %s", path,
                       result == KH_E_IO          ? "no such file"
                       : result == KH_E_FORBIDDEN ? "permission denied"
                                                  : kh_result_text(result));
        goto done;
    }
    p->bytes += r.len;
    if (++p->files > NGINXCONF_FILES_MAX || p->bytes > NGINXCONF_BYTES_MAX) {
        result =
            nginxconf_fail(p, KH_E_TOO_LARGE, path, 1, "the configuration has more than %d files or %u MiB",
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
    nginxconf_parser p = {.source = source, .error = error, .error_cap = error_cap};
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
    path = nginxconf_alloc(conf, cap);
    if (path != NULL) {
        (void)snprintf(path, cap, "%s/%s", conf->prefix, name);
    }
    return path;
}

bool nginxconf_has_variable(const char *word)
{
    return strchr(word, '$') != NULL;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of the nginx configuration reader: nginxconf.c makes the tree, nginxlex.c reads the words. */
#ifndef KEYHOLD_CTL_NGINXCONF_PRIVATE_H
#define KEYHOLD_CTL_NGINXCONF_PRIVATE_H

#include "nginxconf.h"

#include <stddef.h>

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
typedef struct nginxconf_parser {
    const nginxconf_source *source;
    nginxconf *conf;
    unsigned includes, files, directives;
    size_t bytes;
    char *error;
    size_t error_cap;
} nginxconf_parser;

/* One file being read. */
typedef struct nginxconf_reader {
    nginxconf_parser *parser;
    const char *file;
    const char *text;
    size_t len, pos;
    unsigned line;
} nginxconf_reader;

/* What ended the words. */
typedef enum stop { STOP_SEMICOLON, STOP_OPEN, STOP_CLOSE, STOP_END } stop;

/* The words of one directive while they are read. */
typedef struct words {
    const char *list[WORDS_MAX];
    unsigned count;
    unsigned line; /* of the first */
} words;

/* Memory that lives as long as conf; NULL: none left. */
void *nginxconf_alloc(nginxconf *conf, size_t len);
/* Writes "file:line: what" into the parse's error and returns `result`. */
kh_result nginxconf_fail(nginxconf_parser *p, kh_result result, const char *file, unsigned line,
                         const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Reads the words of one directive, up to and with its ";" or "{", or a "}" or the end where a directive
 * could begin. */
KH_MUST_USE kh_result nginxconf_read_words(nginxconf_reader *r, words *w, stop *stopped);
/* The body of a Lua block: braces count unless they stand in a Lua string or comment. Stands behind the "{".
 */
KH_MUST_USE kh_result nginxconf_skip_lua(nginxconf_reader *r, unsigned line);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reader of nginx configurations: text in, a tree of directives out. Pure: files come through callbacks, so
 * that tests and the fuzzer need none. It follows nginx's own rules for words, quotes, escapes, comments,
 * "${name}", blocks and include, and skips the bodies of Lua blocks, which are not nginx's language.
 *
 * A configuration is its owner's input, but may be huge or go in circles: nesting, includes, files,
 * directives and bytes are bounded, and exceeding a bound is a named error.
 */
#ifndef KEYHOLD_CTL_NGINXCONF_H
#define KEYHOLD_CTL_NGINXCONF_H

#include <keyhold/types.h>

#define NGINXCONF_DEPTH_MAX 64    /* nested blocks */
#define NGINXCONF_INCLUDE_MAX 32  /* nested includes */
#define NGINXCONF_FILES_MAX 20000 /* files read, each as often as it is included */
#define NGINXCONF_DIRECTIVES_MAX 2000000
#define NGINXCONF_FILE_MAX (16u << 20)   /* bytes of one file */
#define NGINXCONF_BYTES_MAX (256u << 20) /* bytes of all files */

typedef struct nginxconf_directive {
    const char *file;  /* as included, made absolute with the prefix */
    unsigned line;     /* of the directive's first word */
    unsigned argc;     /* at least 1: argv[0] is the name */
    const char **argv; /* unquoted, escapes resolved; "$name" is left as it stands */
    bool block;
    struct nginxconf_directive *parent;   /* NULL at the top level */
    struct nginxconf_directive *children; /* of a block, in order, includes resolved in place */
    struct nginxconf_directive *next;
} nginxconf_directive;

/* Where files come from. Both return KH_E_IO when there is no such file, KH_E_FORBIDDEN when it may not be
 * read. */
typedef struct nginxconf_source {
    void *ctx;
    /* *text: from malloc, the parser frees it. KH_E_TOO_LARGE above NGINXCONF_FILE_MAX. */
    kh_result (*read)(void *ctx, const char *path, char **text, size_t *len);
    /* Calls each(match) for the paths that match, sorted, until one call fails; no match is KH_OK. */
    kh_result (*glob)(void *ctx, const char *pattern, kh_result (*each)(void *match_ctx, const char *path),
                      void *match_ctx);
} nginxconf_source;

typedef struct nginxconf nginxconf;

/*
 * Reads `path`. Relative names in include are taken from `prefix` (nginx: the directory of the main file).
 * On failure error holds "file:line: what": KH_E_MALFORMED, KH_E_TOO_LARGE (a bound), KH_E_IO,
 * KH_E_FORBIDDEN, KH_E_MEMORY. The result owns all directives and their text; free with nginxconf_free (NULL
 * is fine).
 */
KH_MUST_USE kh_result nginxconf_parse(const nginxconf_source *source, const char *path, const char *prefix,
                                      nginxconf **conf, char *error, size_t error_cap);
void nginxconf_free(nginxconf *conf);
/* The first directive of the top level; NULL for an empty configuration. */
const nginxconf_directive *nginxconf_top(const nginxconf *conf);
/* `name` made absolute: itself, or prefix/name. Owned by conf; NULL: out of memory. */
const char *nginxconf_path(nginxconf *conf, const char *name);
/* Whether nginx would take the word for one with variables. */
bool nginxconf_has_variable(const char *word);

/* The real files. */
extern const nginxconf_source nginxconf_files;

#endif

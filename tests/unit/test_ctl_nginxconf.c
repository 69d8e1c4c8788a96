/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of nginx configurations: words, quotes, comments, blocks, includes, bounds, and where an error
 * is. */
#include "nginxconf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Files in memory; a NULL text is one that may not be read. */
typedef struct file {
    const char *path, *text;
} file;

static kh_result read_memory(void *ctx, const char *path, char **text, size_t *len)
{
    for (const file *f = ctx; f->path != NULL; f++) {
        if (strcmp(f->path, path) == 0) {
            if (f->text == NULL) {
                return KH_E_FORBIDDEN;
            }
            *len = strlen(f->text);
            *text = malloc(*len > 0 ? *len : 1);
            memcpy(*text, f->text, *len);
            return KH_OK;
        }
    }
    return KH_E_IO;
}

/* Only "prefix*". */
static kh_result glob_memory(void *ctx, const char *pattern,
                             kh_result (*each)(void *match_ctx, const char *path), void *match_ctx)
{
    kh_result result = KH_OK;

    for (const file *f = ctx; f->path != NULL && result == KH_OK; f++) {
        if (strncmp(f->path, pattern, strlen(pattern) - 1) == 0) {
            result = each(match_ctx, f->path);
        }
    }
    return result;
}

static nginxconf *conf;
static char error[256];

static kh_result parse_files(const file *files)
{
    nginxconf_source source = {(void *)files, read_memory, glob_memory};

    nginxconf_free(conf);
    return nginxconf_parse(&source, "/e/nginx.conf", "/e", &conf, error, sizeof(error));
}

static kh_result parse(const char *text)
{
    return parse_files((file[]){{"/e/nginx.conf", text}, {NULL, NULL}});
}

static const nginxconf_directive *first(const char *text)
{
    assert_int_equal(parse(text), KH_OK);
    assert_non_null(nginxconf_top(conf));
    return nginxconf_top(conf);
}

static void assert_error(kh_result result, kh_result expected, const char *text)
{
    assert_int_equal(result, expected);
    assert_null(conf);
    if (strstr(error, text) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", text, error);
    }
}

static void test_words(void **state)
{
    static const struct {
        const char *text, *word;
    } table[] = {
        {"a b;", "b"},
        {"a\tb ;", "b"},
        {"a \"b c\";", "b c"},
        {"a 'b;c';", "b;c"},
        {"a 'b\"c';", "b\"c"},
        {"a \"b\\\"c\";", "b\"c"},
        {"a 'b\\'c';", "b'c"},
        {"a b\\;c;", "b\\;c"}, /* nginx keeps a backslash that escapes nothing it knows */
        {"a b\\ c;", "b\\ c"},
        {"a \"\\t\\n\\r\\\\\";", "\t\n\r\\"},
        {"a \"\\x\";", "\\x"},
        {"a \"\";", ""},
        {"a b#c;", "b#c"},
        {"a # comment ; {\n b;", "b"},
        {"a ${b}c;", "${b}c"},
        {"a b${c}d;", "b${c}d"},
        {"a b\"c;", "b\"c"}, /* a quote inside a word is a character */
        {"a b}c;", "b}c"},
        {"a \"b\nc\";", "b\nc"},
        {"a \xc3\xa4;", "\xc3\xa4"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        const nginxconf_directive *d = first(table[i].text);

        assert_int_equal(d->argc, 2);
        assert_string_equal(d->argv[0], "a");
        assert_string_equal(d->argv[1], table[i].word);
        assert_null(d->next);
    }
    /* nginx lets a parenthesis follow a closing quote, as a word of its own. */
    assert_int_equal(first("if ($a = \"b\") { }")->argc, 5);
    assert_int_equal(first("a \"b\"; c;")->argc, 2);
}

static void test_blocks(void **state)
{
    const nginxconf_directive *d = first("a 1;\nb x {\n  c;\n  d { e; }\n}\n\nf;\n");

    (void)state;
    assert_false(d->block);
    d = d->next;
    assert_true(d->block);
    assert_int_equal(d->argc, 2);
    assert_int_equal(d->line, 2);
    assert_string_equal(d->children->argv[0], "c");
    assert_ptr_equal(d->children->parent, d);
    assert_int_equal(d->children->line, 3);
    assert_string_equal(d->children->next->children->argv[0], "e");
    assert_string_equal(d->next->argv[0], "f");
    assert_int_equal(d->next->line, 7);
    assert_int_equal(parse(""), KH_OK);
    assert_null(nginxconf_top(conf));
    assert_int_equal(parse("# only a comment"), KH_OK);
    assert_true(first("a{}b;")->block);
}

static void test_lua(void **state)
{
    const nginxconf_directive *d =
        first("content_by_lua_block {\n local a = { \"}\", '}', \"\\\"}\" } -- } \n"
              " --[[ } \n } ]] local b = [==[ }} ]] ]==]\n}\nnext;");

    (void)state;
    assert_null(d->children);
    assert_string_equal(d->next->argv[0], "next");
    assert_int_equal(d->next->line, 6);
    assert_error(parse("a;\nx_by_lua_block { {\n}"), KH_E_MALFORMED, ":2: the Lua block");
}

static void test_errors(void **state)
{
    (void)state;
    assert_error(parse("a;\nb"), KH_E_MALFORMED, "/e/nginx.conf:2: \"b\" ends with neither");
    assert_error(parse("a;\n}"), KH_E_MALFORMED, ":2: unexpected \"}\"");
    assert_error(parse("\nx {\n a;\n"), KH_E_MALFORMED, ":2: the block that opens here is never closed");
    assert_error(parse("x {\n a\n}\n"), KH_E_MALFORMED,
                 ":3: unexpected \"}\": is a \";\" missing after \"a\"?");
    assert_error(parse("a;\n;"), KH_E_MALFORMED, ":2: unexpected \";\"");
    assert_error(parse("{"), KH_E_MALFORMED, "unexpected \"{\"");
    assert_error(parse("a\n\n'b"), KH_E_MALFORMED, ":3: the quote that opens here");
    assert_error(parse("a 'b'c;"), KH_E_MALFORMED, "right after a closing quote");
    assert_error(parse("include;"), KH_E_MALFORMED, "include takes one file name");
    assert_error(parse("a;\ninclude x;"), KH_E_IO, ":2: cannot read /e/x: no such file");
}

static void test_includes(void **state)
{
    static const file files[] = {
        {"/e/nginx.conf", "http {\n include sites/*;\n include /abs;\n}\n"},
        {"/e/sites/1", "server { a 1; }"},
        {"/e/sites/2", "\nserver { a 2; }\n"},
        {"/abs", "server { a 3; }"},
        {NULL, NULL},
    };
    static const file none[] = {{"/e/nginx.conf", "include none/*; a;"}, {NULL, NULL}};
    static const file secret[] = {{"/e/nginx.conf", "include s;"}, {"/e/s", NULL}, {NULL, NULL}};
    static const file circle[] = {{"/e/nginx.conf", "include a;"}, {"/e/a", "\ninclude a;"}, {NULL, NULL}};
    static const file open_block[] = {{"/e/nginx.conf", "x {\n include a;\n}"}, {"/e/a", "}"}, {NULL, NULL}};
    const nginxconf_directive *d = NULL;

    (void)state;
    assert_int_equal(parse_files(files), KH_OK);
    d = nginxconf_top(conf)->children;
    assert_string_equal(d->file, "/e/sites/1");
    assert_string_equal(d->children->argv[1], "1");
    assert_string_equal(d->next->file, "/e/sites/2");
    assert_int_equal(d->next->line, 2);
    assert_string_equal(d->next->next->file, "/abs");
    assert_null(d->next->next->next);
    assert_ptr_equal(d->parent, nginxconf_top(conf));
    assert_int_equal(parse_files(none), KH_OK);
    assert_error(parse_files(secret), KH_E_FORBIDDEN, "permission denied");
    assert_error(parse_files(circle), KH_E_TOO_LARGE, "/e/a:2: includes nested deeper");
    assert_error(parse_files(open_block), KH_E_MALFORMED, "/e/a:1: unexpected \"}\"");
}

static void test_bounds(void **state)
{
    char *text = malloc(200000);
    size_t len = 0;

    (void)state;
    for (int i = 0; i < NGINXCONF_DEPTH_MAX + 1; i++) {
        len += (size_t)sprintf(text + len, "a {");
    }
    assert_error(parse(text), KH_E_TOO_LARGE, "nested deeper");
    len = (size_t)sprintf(text, "a");
    for (int i = 0; i < 5000; i++) {
        len += (size_t)sprintf(text + len, " b");
    }
    assert_error(parse(text), KH_E_TOO_LARGE, "words");
    free(text);
}

/* Whatever a configuration is cut to, the answer is a tree or an error with a place. */
static void test_truncated(void **state)
{
    static const char whole[] =
        "http {\n map $a ${b} { 'x\\'' \"y\"; }\n server { listen 443 ssl; # c\n ssl_certificate a; }\n"
        " rewrite_by_lua_block { local x = [[ } ]] }\n}\n";
    char cut[sizeof(whole)];

    (void)state;
    for (size_t len = 0; len < sizeof(whole); len++) {
        memcpy(cut, whole, len);
        cut[len] = '\0';
        if (parse(cut) != KH_OK) {
            assert_memory_equal(error, "/e/nginx.conf:", 14);
        }
    }
    assert_int_equal(parse(whole), KH_OK);
}

static int forget(void **state)
{
    (void)state;
    nginxconf_free(conf);
    conf = NULL;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),     cmocka_unit_test(test_blocks),   cmocka_unit_test(test_lua),
        cmocka_unit_test(test_errors),    cmocka_unit_test(test_includes), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_truncated),
    };

    return cmocka_run_group_tests(tests, NULL, forget);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are never overwritten, tables, hex and times; and the pin of the import key. */
#include "output.h"
#include "pin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "%s/keyhold-test.XXXXXX",
             getenv("TMPDIR") != NULL && strlen(getenv("TMPDIR")) < 32 ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(dir) != NULL ? 0 : -1;
}

static int drop_dir(void **state)
{
    (void)state;
    return rmdir(dir); /* fails if a test, or a temporary file, left something behind */
}

static void read_back(const char *path, char text[256])
{
    FILE *file = fopen(path, "rb");

    assert_non_null(file);
    text[fread(text, 1, 255, file)] = '\0';
    fclose(file);
}

static void test_new_file(void **state)
{
    ctl_error error = {0};
    struct stat status;
    char path[128], text[256];

    (void)state;
    snprintf(path, sizeof(path), "%s/file", dir);
    assert_int_equal(output_new_file(path, "one", 3, 0600, (uid_t)-1, (gid_t)-1, &error), KH_OK);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    assert_int_equal(status.st_nlink, 1);
    assert_int_equal(output_new_file(path, "two", 3, 0600, (uid_t)-1, (gid_t)-1, &error), KH_E_EXISTS);
    assert_non_null(strstr(error.text, "not overwritten"));
    read_back(path, text);
    assert_string_equal(text, "one");
    assert_int_equal(unlink(path), 0);
    /* Not through a link that somebody laid there, not even a dangling one. */
    assert_int_equal(symlink("nowhere", path), 0);
    assert_int_equal(output_new_file(path, "two", 3, 0600, (uid_t)-1, (gid_t)-1, &error), KH_E_EXISTS);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof(path), "%s/none/file", dir);
    assert_int_equal(output_new_file(path, "one", 3, 0600, (uid_t)-1, (gid_t)-1, &error), KH_E_IO);
    assert_non_null(strstr(error.text, "make the directory first"));
}

static void test_table(void **state)
{
    static const char *const headings[] = {"A", "LONG"};
    char *text = NULL;
    size_t len = 0;
    FILE *stream = open_memstream(&text, &len);
    output_table *table = output_table_new(headings, 2);

    (void)state;
    output_table_row(table, (const char *[]){"wide", "x"});
    output_table_row(table, (const char *[]){"\xc2\xb5", "a\033b"});
    output_table_row(table, (const char *[]){NULL, "y"});
    for (int i = 0; i < 100; i++) {
        output_table_row(table, (const char *[]){"r", "s"});
    }
    assert_int_equal(output_table_print(table, stream), KH_OK);
    fclose(stream);
    assert_memory_equal(text, "A     LONG\nwide  x\n\xc2\xb5     a?b\n      y\n", 38);
    free(text);
    output_table_free(table);
    output_table_free(NULL);
}

static void test_words(void **state)
{
    char buf[32];

    (void)state;
    assert_string_equal(output_time(0, buf), "1970-01-01T00:00:00Z");
    assert_string_equal(output_time(1700000000, buf), "2023-11-14T22:13:20Z");
    assert_string_equal(output_hex((const uint8_t *)"\x00\xff\x1a", 3, buf), "00ff1a");
}

static void test_pin(void **state)
{
    uint8_t key[KH_IMPORT_PUBLIC_LEN], back[KH_IMPORT_PUBLIC_LEN];
    char line[PIN_LINE_MAX];
    size_t len = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(key); i++) {
        key[i] = (uint8_t)(i * 37);
    }
    pin_format(key, line);
    len = strlen(line);
    assert_int_equal(pin_parse(line, len, back), KH_OK);
    assert_memory_equal(key, back, sizeof(key));
    assert_int_equal(pin_parse(line, len - 1, back), KH_OK); /* without its newline */
    for (size_t cut = 0; cut < len - 1; cut++) {
        assert_int_equal(pin_parse(line, cut, back), KH_E_MALFORMED);
    }
    for (size_t i = 0; i < len - 1; i++) {
        char changed[PIN_LINE_MAX];

        memcpy(changed, line, len + 1);
        changed[i] = 'x';
        assert_int_equal(pin_parse(changed, len, back), KH_E_MALFORMED);
    }
    memcpy(line + len, " ", 2);
    assert_int_equal(pin_parse(line, len + 1, back), KH_E_MALFORMED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_file),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_pin),
    };

    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}

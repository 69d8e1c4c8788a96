/* SPDX-License-Identifier: Apache-2.0 */
/* Tables, JSON and files that are never overwritten. See output.h. */
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct output_table {
    unsigned columns;
    size_t rows, cap; /* the headings are row 0 */
    char **cells;
    bool lost;
};

/* What comes from a configuration or a certificate must not drive the terminal. */
static char *copy_printable(const char *text)
{
    char *copy = strdup(text != NULL ? text : "");

    for (char *c = copy; c != NULL && *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
    return copy;
}

output_table *output_table_new(const char *const *headings, unsigned columns)
{
    output_table *table = calloc(1, sizeof(*table));

    if (table != NULL) {
        table->columns = columns;
        output_table_row(table, headings);
    }
    return table;
}

void output_table_row(output_table *table, const char *const *cells)
{
    if (table->rows == table->cap) {
        size_t cap = table->cap > 0 ? table->cap * 2 : 32;
        char **grown = reallocarray(table->cells, cap * table->columns, sizeof(*grown));

        if (grown == NULL) {
            table->lost = true;
            return;
        }
        table->cells = grown;
        table->cap = cap;
    }
    for (unsigned i = 0; i < table->columns; i++) {
        char *copy = copy_printable(cells[i]);

        table->lost = table->lost || copy == NULL;
        table->cells[table->rows * table->columns + i] = copy;
    }
    table->rows++;
}

/* Columns on a terminal: UTF-8 continuation bytes take none. */
static size_t width_of(const char *text)
{
    size_t width = 0;

    for (; text != NULL && *text != '\0'; text++) {
        width += ((unsigned char)*text & 0xc0) != 0x80;
    }
    return width;
}

kh_result output_table_print(const output_table *table, FILE *stream)
{
    size_t widths[OUTPUT_COLUMNS_MAX] = {0};

    for (size_t i = 0; i < table->rows * table->columns; i++) {
        size_t width = width_of(table->cells[i]);
        size_t *widest = &widths[i % table->columns];

        *widest = width > *widest ? width : *widest;
    }
    for (size_t row = 0; row < table->rows; row++) {
        for (unsigned column = 0; column < table->columns; column++) {
            const char *cell = table->cells[row * table->columns + column];
            bool last = column + 1 == table->columns;
            int pad = last ? 0 : (int)(widths[column] - width_of(cell));

            (void)fprintf(stream, "%s%*s%s", cell != NULL ? cell : "", pad, "", last ? "\n" : "  ");
        }
    }
    return table->lost ? KH_E_MEMORY : KH_OK;
}

void output_table_free(output_table *table)
{
    if (table == NULL) {
        return;
    }
    for (size_t i = 0; i < table->rows * table->columns; i++) {
        free(table->cells[i]);
    }
    free(table->cells);
    free(table);
}

kh_result output_json(json_t *value, ctl_error *error)
{
    int status = value != NULL
                     ? json_dumpf(value, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_ENCODE_ANY)
                     : -1;

    json_decref(value);
    if (status != 0) {
        return ctl_fail(error, KH_E_MEMORY, "cannot print JSON: out of memory, or a name is not UTF-8");
    }
    (void)putchar('\n');
    return KH_OK;
}

const char *output_time(uint64_t seconds, char buf[32])
{
    time_t time = (time_t)seconds;
    struct tm tm;

    if (gmtime_r(&time, &tm) == NULL || strftime(buf, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0) {
        buf[0] = '\0';
    }
    return buf;
}

const char *output_hex(const uint8_t *data, size_t len, char *buf)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < len; i++) {
        buf[2 * i] = digits[data[i] >> 4];
        buf[2 * i + 1] = digits[data[i] & 15];
    }
    buf[2 * len] = '\0';
    return buf;
}

static bool write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t sent = write(fd, data, len);

        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            return false;
        }
        data += sent;
        len -= (size_t)sent;
    }
    return true;
}

static kh_result cannot_write(const char *path, ctl_error *error)
{
    int why = errno;

    if (why == EEXIST) {
        return ctl_fail(error, KH_E_EXISTS,
                        "%s exists already and is not overwritten; remove it or choose another name", path);
    }
    return ctl_fail(error, why == EACCES || why == EPERM ? KH_E_FORBIDDEN : KH_E_IO,
                    "cannot write %s: %s; %s", path, strerror(why),
                    why == EACCES || why == EPERM || why == EROFS ? "run this as root or choose another place"
                    : why == ENOENT                               ? "make the directory first"
                                                                  : "check the disk");
}

kh_result output_new_file(const char *path, const void *data, size_t len, mode_t mode, uid_t uid, gid_t gid,
                          ctl_error *error)
{
    kh_result result = KH_E_IO;
    struct stat status;
    char *temporary = NULL;
    int fd = -1;

    if (lstat(path, &status) == 0) {
        errno = EEXIST;
        return cannot_write(path, error);
    }
    if (asprintf(&temporary, "%s.XXXXXX", path) < 0) {
        return ctl_fail(error, KH_E_MEMORY, "cannot write %s: out of memory", path);
    }
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0) {
        result = cannot_write(path, error);
        goto done;
    }
    /* The owner before the mode and the content: at no moment may anybody else read it. link(2) does not
     * overwrite. */
    if (fchown(fd, uid, gid) != 0 || !write_all(fd, data, len) || fchmod(fd, mode) != 0 || fsync(fd) != 0 ||
        link(temporary, path) != 0) {
        result = cannot_write(path, error);
        goto done;
    }
    result = KH_OK;
done:
    if (fd >= 0) {
        (void)unlink(temporary);
        close(fd);
    }
    free(temporary);
    return result;
}

kh_result output_text(const char *path, const char *text, ctl_error *error)
{
    if (path == NULL || strcmp(path, "-") == 0) {
        if (fputs(text, stdout) < 0 || fflush(stdout) != 0) {
            return ctl_fail(error, KH_E_IO, "cannot write to standard output: %s", strerror(errno));
        }
        return KH_OK;
    }
    return output_new_file(path, text, strlen(text), 0644, (uid_t)-1, (gid_t)-1, error);
}

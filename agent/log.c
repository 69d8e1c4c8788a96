/* SPDX-License-Identifier: Apache-2.0 */
/* The structured log: lines are built in a buffer on the stack and leave in one write. */
#include "log.h"
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *the_role = "supervisor";
static kh_log_level the_level = KH_LOG_INFO;
static bool the_json;
static int the_fd = STDERR_FILENO;

static const char *const level_names[] = {"error", "warn", "notice", "info", "debug"};

typedef struct line {
    char text[KH_LOG_LINE_MAX];
    size_t len;
    bool full;
} line;

void kh_log_init(const char *role, kh_log_level level, bool json)
{
    the_role = role;
    the_level = level;
    the_json = json;
}

void kh_log_to(int fd)
{
    the_fd = fd;
}

/* Leaves room for the end of the line. */
static void put(line *out, const char *text, size_t len)
{
    if (out->full || len > sizeof out->text - 8 - out->len) {
        out->full = true;
        return;
    }
    memcpy(out->text + out->len, text, len);
    out->len += len;
}

static void put_string(line *out, const char *text)
{
    put(out, text, strlen(text));
}

/*
 * Quoted with the escapes of JSON; bytes that are not printable ASCII or UTF-8 lead and follow bytes become
 * \u00XX.
 */
static void put_quoted(line *out, const char *text)
{
    put(out, "\"", 1);
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        char escape[8];

        if (c == '"' || c == '\\') {
            escape[0] = '\\';
            escape[1] = (char)c;
            put(out, escape, 2);
        } else if (c < 0x20 || c >= 0x7f) {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            put(out, escape, 6);
        } else {
            put(out, text, 1);
        }
    }
    put(out, "\"", 1);
}

static bool plain(const char *text)
{
    static const char word[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:,@*?+%";

    return text[0] != '\0' && text[strspn(text, word)] == '\0';
}

static void put_field(line *out, const kh_log_field *field)
{
    line saved = *out;
    char number[32];

    if (the_json) {
        put(out, ",", 1);
        put_quoted(out, field->name);
        put(out, ":", 1);
    } else {
        put(out, " ", 1);
        put_string(out, field->name);
        put(out, "=", 1);
    }
    if (field->text == NULL) {
        snprintf(number, sizeof number, "%lld", field->number);
        put_string(out, number);
    } else if (!the_json && plain(field->text)) {
        put_string(out, field->text);
    } else {
        put_quoted(out, field->text);
    }
    if (out->full) { /* a cut value would not be JSON: leave the field out */
        *out = saved;
    }
}

static void put_start(line *out, kh_log_level level, const char *event)
{
    struct timespec now = {0};
    struct tm tm = {0};
    char head[128];
    char stamp[40];
    const char *format =
        the_json ? "{\"time\":\"%s\",\"level\":\"%s\",\"role\":\"%s\",\"event\":\"%s\"" : "%s %s %s %s";

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + strlen(stamp), sizeof stamp - strlen(stamp), ".%03ldZ", now.tv_nsec / 1000000);
    snprintf(head, sizeof head, format, stamp, level_names[level], the_role, event);
    put_string(out, head);
}

void kh_log_fields(kh_log_level level, const char *event, const kh_log_field *fields, size_t count)
{
    line out;
    ssize_t written = 0;

    if (level > the_level) {
        return;
    }
    out.len = 0;
    out.full = false;
    put_start(&out, level, event);
    for (size_t i = 0; i < count; i++) {
        put_field(&out, &fields[i]);
    }
    memcpy(out.text + out.len, the_json ? "}\n" : "\n", the_json ? 2 : 1);
    out.len += the_json ? 2 : 1;
    written = write(the_fd, out.text, out.len);
    (void)written; /* there is nowhere to say that the log is gone */
}

bool kh_log_allowed(kh_log_limit *limit, uint64_t now_ms, uint32_t *suppressed)
{
    if (limit->since_ms == 0 || now_ms - limit->since_ms >= KH_LOG_INTERVAL_MS) {
        limit->since_ms = now_ms == 0 ? 1 : now_ms;
        limit->written = 0;
    }
    if (limit->written >= KH_LOG_BURST) {
        limit->suppressed++;
        return false;
    }
    limit->written++;
    *suppressed = limit->suppressed;
    limit->suppressed = 0;
    return true;
}

void kh_log_keystore(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    kh_log(level, "keystore", KH_LT("text", text));
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The structured log: one line per event on stderr (the journal, under systemd), written with one write(2).
 *   text:  2026-01-02T03:04:05.678Z info front connection_open peer_uid=33 fd=9
 *   json:  {"time":"…","level":"info","role":"front","event":"connection_open","peer_uid":33,"fd":9}
 * Values are escaped, so that no peer can forge a line. Never pass a secret. Thread-safe after kh_log_init.
 */
#ifndef KH_AGENT_LOG_H
#define KH_AGENT_LOG_H

#include <keyhold/keystore.h> /* kh_log_level */

#define KH_LOG_LINE_MAX 1024 /* bytes; a longer line is cut at a field */

typedef struct kh_log_field {
    const char *name;
    const char *text; /* NULL: it is a number */
    long long number;
} kh_log_field;

#define KH_LT(field_name, value)                                                                             \
    {                                                                                                        \
        .name = (field_name), .text = (value)                                                                \
    } /* text, not NULL */
#define KH_LN(field_name, value)                                                                             \
    {                                                                                                        \
        .name = (field_name), .number = (long long)(value)                                                   \
    } /* number */

/* The process's role in each line (static storage), and what is written. May be called again (SIGHUP). */
void kh_log_init(const char *role, kh_log_level level, bool json);
/* Redirects the lines to another descriptor: for tests. */
void kh_log_to(int fd);
void kh_log_fields(kh_log_level level, const char *event, const kh_log_field *fields, size_t count);

/* kh_log(KH_LOG_INFO, "event", KH_LT("name", name), KH_LN("count", 3)); */
#define kh_log(level, event, ...)                                                                            \
    do {                                                                                                     \
        const kh_log_field kh_log_args[] = {{.name = NULL}, ##__VA_ARGS__};                                  \
        kh_log_fields(level, event, kh_log_args + 1, sizeof kh_log_args / sizeof *kh_log_args - 1);          \
    } while (0)

/*
 * For lines that a peer can cause: at most KH_LOG_BURST per KH_LOG_INTERVAL_MS and limit. Returns whether to
 * write now; *suppressed is how many were left out since the last one that was written. Zero-initialise the
 * limit.
 */
#define KH_LOG_BURST 5
#define KH_LOG_INTERVAL_MS 10000
typedef struct kh_log_limit {
    uint64_t since_ms;
    uint32_t written;
    uint32_t suppressed;
} kh_log_limit;
bool kh_log_allowed(kh_log_limit *limit, uint64_t now_ms, uint32_t *suppressed);

/* A kh_log_fn: the keystore's events in this log. */
void kh_log_keystore(void *ctx, kh_log_level level, const char *text);

#endif

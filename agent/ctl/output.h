/* SPDX-License-Identifier: Apache-2.0 */
/* What keyholdctl prints and writes: tables, JSON, times, and files that are never overwritten. */
#ifndef KEYHOLD_CTL_OUTPUT_H
#define KEYHOLD_CTL_OUTPUT_H

#include "ctl.h"

#include <jansson.h>
#include <sys/types.h>

/* A table whose columns become as wide as they need. Cells are copied. */
typedef struct output_table output_table;

#define OUTPUT_COLUMNS_MAX 12

/* headings: `columns` of them, not NULL. NULL: out of memory. Free with output_table_free (NULL is fine). */
output_table *output_table_new(const char *const *headings, unsigned columns);
/* Adds one row of cells; control characters of a cell are shown as "?". Memory errors show up in print. */
void output_table_row(output_table *table, const char *const *cells);
/* Prints to `stream`; KH_E_MEMORY: some row was lost for want of memory. */
KH_MUST_USE kh_result output_table_print(const output_table *table, FILE *stream);
void output_table_free(output_table *table);

/* Prints a JSON value to stdout, indented; takes over the reference (NULL: out of memory). */
KH_MUST_USE kh_result output_json(json_t *value, ctl_error *error);

/* "2026-01-31T12:00:00Z" of a Unix time; buf of 32 bytes. */
const char *output_time(uint64_t seconds, char buf[32]);
/* Lower-case hex; buf of 2 * len + 1 bytes. */
const char *output_hex(const uint8_t *data, size_t len, char *buf);

/*
 * Writes a new file whole or not at all: a temporary neighbour is written, synced and linked to its name.
 * KH_E_EXISTS: there is one already; nothing is changed. uid and gid (uid_t)-1: the caller's. Error set.
 */
KH_MUST_USE kh_result output_new_file(const char *path, const void *data, size_t len, mode_t mode, uid_t uid,
                                      gid_t gid, ctl_error *error);
/* Text to the file of --out, or to stdout when `path` is NULL or "-". */
KH_MUST_USE kh_result output_text(const char *path, const char *text, ctl_error *error);

#endif

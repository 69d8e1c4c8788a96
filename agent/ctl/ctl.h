/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all parts of keyholdctl share: exit codes, the one error, the parsed command line, and the run of one
 * command. keyholdctl has one thread. Functions that fail leave one line for people in a ctl_error; only
 * main() prints it.
 */
#ifndef KEYHOLD_CTL_H
#define KEYHOLD_CTL_H

#include <keyhold/types.h>
#include <stdio.h>

#define CTL_DEFAULT_CONFIG "/etc/keyhold/keyhold.conf"

/* Exit codes, as documented in keyholdctl(1). */
typedef enum ctl_exit { CTL_OK = 0, CTL_FAILED = 1, CTL_USAGE = 2, CTL_UNREACHABLE = 3 } ctl_exit;

/* ---- The error (error.c) ---- */

#define CTL_ERROR_MAX 1024

/* The first failure of this run: "what: why; what to do", without newline. Zero-initialise. */
typedef struct ctl_error {
    kh_result result;
    ctl_exit exit_code;
    char text[CTL_ERROR_MAX];
} ctl_error;

/* Sets the error, exit code 1, and returns `result`. A later call replaces an earlier one. */
kh_result ctl_fail(ctl_error *error, kh_result result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with exit code 2 and KH_E_INVALID: the command line is wrong. */
kh_result ctl_fail_usage(ctl_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same with exit code 3: the agent cannot be reached. */
kh_result ctl_fail_unreachable(ctl_error *error, kh_result result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- The command line (options.c) ---- */

#define CTL_OPTIONS_MAX 24
#define CTL_OPERANDS_MAX 2

/*
 * One option. value: NULL for a flag; "FILE" for one that must have a value; "[SEC]" for one that may have
 * one, and then only as --name=value. A table ends with a name of NULL.
 */
typedef struct ctl_option {
    const char *name;
    const char *value;
    const char *help;
} ctl_option;

struct ctl_run;

typedef struct ctl_command {
    const char *group;    /* "key" of "key create"; NULL for a command of one word */
    const char *name;     /* NULL ends a table */
    const char *operands; /* for the help: "NAME FILE"; "" for none */
    unsigned operands_min, operands_max;
    const ctl_option *options;
    const char *summary;
    kh_result (*run)(struct ctl_run *ctl);
} ctl_command;

/* Options that every command takes. */
extern const ctl_option ctl_global_options[];

/* A parsed command line; borrows from argv and the tables. Options not given are NULL, flags given are "". */
typedef struct ctl_args {
    const ctl_command *command; /* NULL when only --help or --version was asked for */
    const char *global[CTL_OPTIONS_MAX];
    const char *local[CTL_OPTIONS_MAX];
    const char *operands[CTL_OPERANDS_MAX];
    unsigned operand_count;
} ctl_args;

/* KH_E_INVALID with a usage error that names the nearest known word. Pure. */
KH_MUST_USE kh_result ctl_args_parse(const ctl_command *commands, int argc, char *const *argv, ctl_args *args,
                                     ctl_error *error);
/* The value of an option of the command or a global one; NULL: not given, or the command has no such option.
 */
const char *ctl_args_value(const ctl_args *args, const char *name);
/* A whole number in [min, max]; `fallback` when the option is not given. KH_E_INVALID with a usage error. */
KH_MUST_USE kh_result ctl_args_number(const ctl_args *args, const char *name, long min, long max,
                                      long fallback, long *number, ctl_error *error);
/* Edit distance (insert, delete, replace, swap of neighbours) of words of at most 63 bytes; SIZE_MAX beyond
 * that. */
size_t ctl_distance(const char *a, const char *b);

/* ---- One run ---- */

typedef struct ctl_run {
    const ctl_command *commands; /* the table, for help and completion */
    ctl_args args;
    bool json;
    uint32_t timeout_ms; /* for each call to the agent */
    ctl_error error;
} ctl_run;

/* The commands; each file of ctl/ has those of one concern. They print to stdout and return KH_OK or set
 * ctl->error. */
kh_result ctl_cmd_init(ctl_run *ctl);
kh_result ctl_cmd_key_create(ctl_run *ctl);
kh_result ctl_cmd_key_import(ctl_run *ctl);
kh_result ctl_cmd_key_list(ctl_run *ctl);
kh_result ctl_cmd_key_show(ctl_run *ctl);
kh_result ctl_cmd_key_enable(ctl_run *ctl);
kh_result ctl_cmd_key_disable(ctl_run *ctl);
kh_result ctl_cmd_key_delete(ctl_run *ctl);
kh_result ctl_cmd_key_recover(ctl_run *ctl);
kh_result ctl_cmd_key_purge(ctl_run *ctl);
kh_result ctl_cmd_key_rotate(ctl_run *ctl);
kh_result ctl_cmd_key_set(ctl_run *ctl);
kh_result ctl_cmd_key_move(ctl_run *ctl);
kh_result ctl_cmd_key_adopt(ctl_run *ctl);
kh_result ctl_cmd_key_backup(ctl_run *ctl);
kh_result ctl_cmd_key_reference(ctl_run *ctl);
kh_result ctl_cmd_key_public(ctl_run *ctl);
kh_result ctl_cmd_cert_self_signed(ctl_run *ctl);
kh_result ctl_cmd_cert_csr(ctl_run *ctl);
kh_result ctl_cmd_cert_match(ctl_run *ctl);
kh_result ctl_cmd_token_create(ctl_run *ctl);
kh_result ctl_cmd_kek_rotate(ctl_run *ctl);
kh_result ctl_cmd_pool_init(ctl_run *ctl);
kh_result ctl_cmd_pool_add(ctl_run *ctl);
kh_result ctl_cmd_pool_remove(ctl_run *ctl);
kh_result ctl_cmd_pool_repair(ctl_run *ctl);
kh_result ctl_cmd_pool_status(ctl_run *ctl);
kh_result ctl_cmd_ping(ctl_run *ctl);
kh_result ctl_cmd_status(ctl_run *ctl);
kh_result ctl_cmd_check_nginx(ctl_run *ctl);
kh_result ctl_cmd_store_set(ctl_run *ctl);
kh_result ctl_cmd_store_backup(ctl_run *ctl);
kh_result ctl_cmd_store_restore(ctl_run *ctl);
kh_result ctl_cmd_store_fsck(ctl_run *ctl);
kh_result ctl_cmd_store_export(ctl_run *ctl);
kh_result ctl_cmd_store_import(ctl_run *ctl);
kh_result ctl_cmd_version(ctl_run *ctl);
kh_result ctl_cmd_help(ctl_run *ctl);
kh_result ctl_cmd_completion(ctl_run *ctl);

#endif

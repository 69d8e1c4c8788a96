/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line: tables of commands and options in, a ctl_args out. Global options may stand anywhere;
 * what is not known is answered with the nearest word that is.
 */
#include "ctl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const ctl_option ctl_global_options[] = {
    {"config", "FILE", "the agent's configuration (default " CTL_DEFAULT_CONFIG ")"},
    {"socket", "ADDR", "talk to the agent at unix:/path instead of the one in the configuration"},
    {"token", "FILE", "prove who is calling with this token"},
    {"agent", "ADDR", "talk to an agent on another machine, at tcp:HOST:PORT; needs the next three"},
    {"agent-ca", "FILE", "who signs the agents' certificates (PEM)"},
    {"agent-cert", "FILE", "our certificate for the agent (PEM): its names say who is calling"},
    {"agent-key", "FILE", "its private key (PEM)"},
    {"agent-name", "NAME", "what the agent's certificate is for (default: HOST)"},
    {"timeout", "MS", "wait at most so many milliseconds for each answer (default 10000; key create: 60000)"},
    {"json", NULL, "print JSON for programs"},
    {"help", NULL, "print help, for a command too"},
    {"version", NULL, "print the version"},
    {NULL, NULL, NULL},
};

#define WORD_MAX 63

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;

    return least < c ? least : c;
}

size_t ctl_distance(const char *a, const char *b)
{
    size_t rows[3][WORD_MAX + 2];
    size_t a_len = strlen(a);
    size_t b_len = strlen(b);
    size_t *before = rows[0];
    size_t *last = rows[1];
    size_t *row = rows[2];

    if (a_len > WORD_MAX || b_len > WORD_MAX) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= b_len; j++) {
        before[j] = 0;
        last[j] = j;
    }
    for (size_t i = 1; i <= a_len; i++) {
        size_t *spare = before;

        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            row[j] = smallest(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < row[j]) {
                row[j] = before[j - 2] + 1;
            }
        }
        before = last;
        last = row;
        row = spare;
    }
    return last[b_len];
}

/*
 * Keeps the candidate that is nearer to `word` than what was best so far; far-fetched ones are no help. A
 * word that was not written to its end is as near as a single slip.
 */
static void consider(const char *word, const char *candidate, const char **best, size_t *best_distance)
{
    size_t word_len = strlen(word);
    size_t len = strlen(candidate);
    size_t distance = ctl_distance(word, candidate);
    size_t limit = len < 4 ? 1 : len < 8 ? 2 : 3;

    if (word_len >= 3 && word_len < len && memcmp(word, candidate, word_len) == 0) {
        distance = 1;
    }
    if (distance <= limit && distance < *best_distance) {
        *best = candidate;
        *best_distance = distance;
    }
}

static int find_option(const ctl_option *table, const char *name, size_t len)
{
    for (int i = 0; table != NULL && table[i].name != NULL; i++) {
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0) {
            return i;
        }
    }
    return -1;
}

static kh_result unknown_option(const ctl_command *command, const char *word, ctl_error *error)
{
    const ctl_option *tables[2] = {ctl_global_options, command != NULL ? command->options : NULL};
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    char name[WORD_MAX + 1] = "";
    const char *start = word + strspn(word, "-");

    snprintf(name, sizeof(name), "%.*s", (int)strcspn(start, "="), start);
    for (size_t t = 0; t < 2; t++) {
        for (const ctl_option *option = tables[t]; option != NULL && option->name != NULL; option++) {
            consider(name, option->name, &best, &best_distance);
        }
    }
    /* The word itself is not repeated beyond its name: somebody may have put a secret behind the "=". */
    if (best != NULL) {
        return ctl_fail_usage(error, "unknown option --%s; did you mean --%s?", name, best);
    }
    return ctl_fail_usage(
        error, "unknown option --%s; see keyholdctl help%s%s%s%s", name, command != NULL ? " " : "",
        command != NULL && command->group != NULL ? command->group : "",
        command != NULL && command->group != NULL ? " " : "", command != NULL ? command->name : "");
}

static bool is_group(const ctl_command *commands, const char *word)
{
    for (const ctl_command *command = commands; command->name != NULL; command++) {
        if (command->group != NULL && strcmp(command->group, word) == 0) {
            return true;
        }
    }
    return false;
}

static const ctl_command *find_command(const ctl_command *commands, const char *group, const char *name)
{
    for (const ctl_command *command = commands; command->name != NULL; command++) {
        if (strcmp(command->name, name) == 0 &&
            (group == NULL ? command->group == NULL
                           : command->group != NULL && strcmp(command->group, group) == 0)) {
            return command;
        }
    }
    return NULL;
}

static kh_result unknown_command(const ctl_command *commands, const char *group, const char *word,
                                 ctl_error *error)
{
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;

    for (const ctl_command *command = commands; command->name != NULL; command++) {
        if (group == NULL) {
            consider(word, command->group != NULL ? command->group : command->name, &best, &best_distance);
        } else if (command->group != NULL && strcmp(command->group, group) == 0) {
            consider(word, command->name, &best, &best_distance);
        }
    }
    if (best == NULL) {
        return ctl_fail_usage(error, "unknown command \"%s%s%s\"; see keyholdctl help",
                              group != NULL ? group : "", group != NULL ? " " : "", word);
    }
    return ctl_fail_usage(error, "unknown command \"%s%s%s\"; did you mean \"%s%s%s\"?",
                          group != NULL ? group : "", group != NULL ? " " : "", word,
                          group != NULL ? group : "", group != NULL ? " " : "", best);
}

/* One "--name", "--name=value" or "--name value"; *index moves past a value that was taken from the next
 * word. */
static kh_result take_option(int argc, char *const *argv, int *index, ctl_args *args, ctl_error *error)
{
    const char *word = argv[*index];
    const char *name = word + 2;
    size_t len = strcspn(name, "=");
    const char *value = name[len] == '=' ? name + len + 1 : NULL;
    const ctl_option *table = ctl_global_options;
    const char **slots = args->global;
    int found = -1;

    if (strncmp(word, "--", 2) != 0) {
        return unknown_option(args->command, word, error);
    }
    found = find_option(table, name, len);
    if (found < 0 && args->command != NULL) {
        table = args->command->options;
        slots = args->local;
        found = find_option(table, name, len);
    }
    if (found < 0) {
        return unknown_option(args->command, word, error);
    }
    if (slots[found] != NULL) {
        return ctl_fail_usage(error, "option --%s is given twice; give it once", table[found].name);
    }
    if (table[found].value == NULL) {
        if (value != NULL) {
            return ctl_fail_usage(error, "option --%s takes no value; leave out what follows the \"=\"",
                                  table[found].name);
        }
        value = "";
    } else if (table[found].value[0] == '[') {
        value = value != NULL ? value : "";
    } else if (value == NULL) {
        if (*index + 1 >= argc) {
            return ctl_fail_usage(error, "option --%s needs a value: --%s %s", table[found].name,
                                  table[found].name, table[found].value);
        }
        *index += 1;
        value = argv[*index];
    }
    slots[found] = value;
    return KH_OK;
}

/* A word that is not an option: the command, its second half, or an operand. */
static kh_result take_word(const ctl_command *commands, const char *word, const char **group, ctl_args *args,
                           ctl_error *error)
{
    if (args->command == NULL) {
        if (*group == NULL && is_group(commands, word)) {
            *group = word;
            return KH_OK;
        }
        args->command = find_command(commands, *group, word);
        return args->command != NULL ? KH_OK : unknown_command(commands, *group, word, error);
    }
    if (args->operand_count >= args->command->operands_max) {
        return ctl_fail_usage(error, "unexpected \"%s\"; the command is: keyholdctl %s%s%s %s", word,
                              args->command->group != NULL ? args->command->group : "",
                              args->command->group != NULL ? " " : "", args->command->name,
                              args->command->operands);
    }
    args->operands[args->operand_count++] = word;
    return KH_OK;
}

kh_result ctl_args_parse(const ctl_command *commands, int argc, char *const *argv, ctl_args *args,
                         ctl_error *error)
{
    kh_result result = KH_OK;
    const char *group = NULL;
    bool only_words = false;

    memset(args, 0, sizeof(*args));
    for (int i = 1; i < argc && result == KH_OK; i++) {
        if (!only_words && strcmp(argv[i], "--") == 0) {
            only_words = true;
        } else if (!only_words && strcmp(argv[i], "-h") == 0) {
            args->global[find_option(ctl_global_options, "help", 4)] = "";
        } else if (!only_words && argv[i][0] == '-' && argv[i][1] != '\0') {
            result = take_option(argc, argv, &i, args, error);
        } else {
            result = take_word(commands, argv[i], &group, args, error);
        }
    }
    if (result != KH_OK || ctl_args_value(args, "help") != NULL || ctl_args_value(args, "version") != NULL) {
        return result;
    }
    if (args->command == NULL) {
        return group != NULL
                   ? ctl_fail_usage(error, "\"%s\" alone is no command; see keyholdctl help %s", group, group)
                   : ctl_fail_usage(error, "no command is given; see keyholdctl help");
    }
    if (args->operand_count < args->command->operands_min) {
        return ctl_fail_usage(error, "too few operands; the command is: keyholdctl %s%s%s %s",
                              args->command->group != NULL ? args->command->group : "",
                              args->command->group != NULL ? " " : "", args->command->name,
                              args->command->operands);
    }
    return KH_OK;
}

const char *ctl_args_value(const ctl_args *args, const char *name)
{
    int found = find_option(ctl_global_options, name, strlen(name));

    if (found >= 0) {
        return args->global[found];
    }
    found = args->command != NULL ? find_option(args->command->options, name, strlen(name)) : -1;
    return found >= 0 ? args->local[found] : NULL;
}

kh_result ctl_args_number(const ctl_args *args, const char *name, long min, long max, long fallback,
                          long *number, ctl_error *error)
{
    const char *text = ctl_args_value(args, name);
    char *end = NULL;
    long value = 0;

    *number = fallback;
    if (text == NULL) {
        return KH_OK;
    }
    errno = 0;
    value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < min || value > max) {
        return ctl_fail_usage(error, "option --%s: \"%s\" is not a whole number from %ld to %ld", name, text,
                              min, max);
    }
    *number = value;
    return KH_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The control file of the misbehaving module: which call is to fail, and how. */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RULES_MAX 64
#define HIDDEN_MAX 32
#define LINE_MAX_BYTES 512
#define HANG_STEP_MS 20

typedef enum rule_kind { RULE_DELAY, RULE_HANG, RULE_ERROR, RULE_CRASH, RULE_LENGTH, RULE_COUNT } rule_kind;

typedef struct shim_rule {
    char function[40];
    rule_kind kind;
    long delay_us, length;
    CK_RV rv;
    char path[256], label[SHIM_LABEL_MAX];
    unsigned long every, after, calls;
} shim_rule;

/* Under lock, but for reading what is atomic. The file is known by what changes when it is replaced. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static shim_rule rules[RULES_MAX];
static size_t rule_count;
static CK_MECHANISM_TYPE hidden[HIDDEN_MAX];
static size_t hidden_count;
static atomic_bool labels, token_gone;
static atomic_ulong epoch, logouts;
static bool found_labels, found_gone; /* while the file is read */
static struct stat known;

typedef struct error_name {
    const char *name;
    CK_RV rv;
} error_name;
static const error_name error_names[] = {
#define E(name)                                                                                              \
    {                                                                                                        \
#name, name                                                                                          \
    }
    E(CKR_HOST_MEMORY),
    E(CKR_GENERAL_ERROR),
    E(CKR_FUNCTION_FAILED),
    E(CKR_ARGUMENTS_BAD),
    E(CKR_DEVICE_ERROR),
    E(CKR_DEVICE_MEMORY),
    E(CKR_DEVICE_REMOVED),
    E(CKR_DATA_INVALID),
    E(CKR_DATA_LEN_RANGE),
    E(CKR_FUNCTION_CANCELED),
    E(CKR_KEY_HANDLE_INVALID),
    E(CKR_KEY_FUNCTION_NOT_PERMITTED),
    E(CKR_MECHANISM_INVALID),
    E(CKR_OBJECT_HANDLE_INVALID),
    E(CKR_OPERATION_ACTIVE),
    E(CKR_OPERATION_NOT_INITIALIZED),
    E(CKR_PIN_INCORRECT),
    E(CKR_PIN_LOCKED),
    E(CKR_PIN_EXPIRED),
    E(CKR_SESSION_CLOSED),
    E(CKR_SESSION_COUNT),
    E(CKR_SESSION_HANDLE_INVALID),
    E(CKR_TOKEN_NOT_PRESENT),
    E(CKR_TOKEN_WRITE_PROTECTED),
    E(CKR_USER_NOT_LOGGED_IN),
    E(CKR_TEMPLATE_INCONSISTENT),
    E(CKR_ATTRIBUTE_TYPE_INVALID),
    E(CKR_ATTRIBUTE_VALUE_INVALID),
    E(CKR_BUFFER_TOO_SMALL),
    E(CKR_CRYPTOKI_NOT_INITIALIZED),
    E(CKR_WRAPPED_KEY_INVALID),
#undef E
};

static void give_up(const char *line)
{
    fprintf(stderr, "libkeyhold-misbehave: cannot read the rule: %s\n", line);
    abort();
}

static bool error_of(const char *word, CK_RV *rv)
{
    char *end = NULL;

    for (size_t i = 0; i < sizeof(error_names) / sizeof(error_names[0]); i++) {
        if (strcmp(error_names[i].name, word) == 0) {
            *rv = error_names[i].rv;
            return true;
        }
    }
    *rv = strtoul(word, &end, 0);
    return *end == '\0' && *rv != CKR_OK;
}

/* The word behind a verb, if it needs one. */
static bool read_verb(shim_rule *rule, const char *verb, char **save)
{
    const char *word = NULL;

    if (strcmp(verb, "hang") == 0 || strcmp(verb, "crash") == 0) {
        rule->kind = verb[0] == 'h' ? RULE_HANG : RULE_CRASH;
        return true;
    }
    word = strtok_r(NULL, " \t", save);
    if (word == NULL) {
        return false;
    }
    if (strcmp(verb, "delay") == 0) {
        rule->kind = RULE_DELAY;
        rule->delay_us = (long)(strtod(word, NULL) * 1000);
        return rule->delay_us > 0;
    }
    if (strcmp(verb, "error") == 0) {
        rule->kind = RULE_ERROR;
        return error_of(word, &rule->rv);
    }
    if (strcmp(verb, "length") == 0) {
        rule->kind = RULE_LENGTH;
        rule->length = strtol(word, NULL, 10);
        return rule->length != 0;
    }
    if (strcmp(verb, "count-file") == 0) {
        rule->kind = RULE_COUNT;
        return snprintf(rule->path, sizeof(rule->path), "%s", word) < (int)sizeof(rule->path);
    }
    return false;
}

static bool read_conditions(shim_rule *rule, char **save)
{
    char *word = NULL;

    while ((word = strtok_r(NULL, " \t", save)) != NULL) {
        unsigned long *number = strcmp(word, "every") == 0   ? &rule->every
                                : strcmp(word, "after") == 0 ? &rule->after
                                                             : NULL;

        if (strncmp(word, "label=", 6) == 0) {
            snprintf(rule->label, sizeof(rule->label), "%s", word + 6);
            found_labels = true;
        } else if (number != NULL && (word = strtok_r(NULL, " \t", save)) != NULL) {
            *number = strtoul(word, NULL, 10);
        } else {
            return false;
        }
    }
    return true;
}

static void read_line(char *line)
{
    char whole[LINE_MAX_BYTES], *save = NULL, *first = NULL, *verb = NULL;
    shim_rule *rule = &rules[rule_count];

    line[strcspn(line, "#\r\n")] = '\0';
    snprintf(whole, sizeof(whole), "%s", line);
    first = strtok_r(line, " \t", &save);
    if (first == NULL) {
        return;
    }
    verb = strtok_r(NULL, " \t", &save);
    if (verb != NULL && strcmp(first, "sessions") == 0 && strcmp(verb, "lost") == 0) {
        epoch++;
        return;
    }
    if (verb != NULL && strcmp(first, "login") == 0 && strcmp(verb, "lost") == 0) {
        logouts++;
        return;
    }
    if (verb != NULL && strcmp(first, "token") == 0 && strcmp(verb, "gone") == 0) {
        found_gone = true;
        return;
    }
    if (verb != NULL && strcmp(first, "hide") == 0 && hidden_count < HIDDEN_MAX) {
        hidden[hidden_count++] = strtoul(verb, NULL, 0);
        return;
    }
    memset(rule, 0, sizeof(*rule));
    if (rule_count == RULES_MAX || verb == NULL || strncmp(first, "C_", 2) != 0 ||
        strlen(first) >= sizeof(rule->function) || !read_verb(rule, verb, &save) ||
        !read_conditions(rule, &save)) {
        give_up(whole);
    }
    strcpy(rule->function, first);
    rule_count++;
}

static bool same(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Under lock. */
static void look_again(void)
{
    const char *path = getenv("KH_SHIM_CONTROL");
    char line[LINE_MAX_BYTES];
    struct stat now = {0};
    FILE *file = NULL;

    if (path == NULL || (stat(path, &now) != 0 && errno != ENOENT) || same(&now, &known)) {
        return;
    }
    known = now;
    rule_count = 0;
    hidden_count = 0;
    found_labels = false;
    found_gone = false;
    file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        read_line(line);
    }
    if (file != NULL) {
        fclose(file);
    }
    if (token_gone && !found_gone) {
        epoch++; /* who was away remembers nobody */
    }
    labels = found_labels;
    token_gone = found_gone;
}

/* Under lock. Whether the rule is for this call; counts it. */
static bool applies(shim_rule *rule, const char *function, const char *label)
{
    if (strcmp(rule->function, function) != 0 ||
        (rule->label[0] != '\0' && strcmp(rule->label, label) != 0)) {
        return false;
    }
    rule->calls++;
    return rule->calls > rule->after && (rule->every == 0 || rule->calls % rule->every == 0);
}

static int *const volatile shim_nowhere = NULL;

static void sleep_us(long us)
{
    struct timespec left = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static bool hangs(const char *function, const char *label)
{
    bool found = false;

    pthread_mutex_lock(&lock);
    look_again();
    for (size_t i = 0; i < rule_count && !found; i++) {
        found = rules[i].kind == RULE_HANG && strcmp(rules[i].function, function) == 0 &&
                (rules[i].label[0] == '\0' || strcmp(rules[i].label, label) == 0);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

shim_action shim_before(const char *function, const char *label)
{
    shim_action action = {0};
    bool hang = false, crash = false;

    pthread_mutex_lock(&lock);
    look_again();
    for (size_t i = 0; i < rule_count; i++) {
        shim_rule *rule = &rules[i];

        if (!applies(rule, function, label)) {
            continue;
        }
        action.delay_us += rule->delay_us;
        action.length += rule->length;
        action.rv = rule->kind == RULE_ERROR ? rule->rv : action.rv;
        hang |= rule->kind == RULE_HANG;
        crash |= rule->kind == RULE_CRASH;
        if (rule->kind == RULE_COUNT) {
            memcpy(action.count_file, rule->path, sizeof(action.count_file));
        }
    }
    pthread_mutex_unlock(&lock);
    if (action.delay_us > 0) {
        sleep_us(action.delay_us);
    }
    while (hang && hangs(function, label)) {
        sleep_us(HANG_STEP_MS * 1000);
    }
    if (crash) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile int *)shim_nowhere =
            0; /* raise() needs a system call that a confined keeper does not have */
    }
    return action;
}

void shim_after(const shim_action *action, const char *function, CK_RV rv)
{
    char line[80];
    int fd = -1, len = 0;

    if (action->count_file[0] == '\0') {
        return;
    }
    len = snprintf(line, sizeof(line), "%s 0x%lx\n", function, (unsigned long)rv);
    fd = open(action->count_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, line, (size_t)len) != len) {
        give_up(action->count_file);
    }
    close(fd);
}

bool shim_wants_labels(void)
{
    return labels;
}

bool shim_hides(CK_MECHANISM_TYPE type)
{
    bool hides = false;

    pthread_mutex_lock(&lock);
    look_again();
    for (size_t i = 0; i < hidden_count; i++) {
        hides |= hidden[i] == type;
    }
    pthread_mutex_unlock(&lock);
    return hides;
}

unsigned long shim_epoch(void)
{
    return epoch;
}

unsigned long shim_logouts(void)
{
    return logouts;
}

bool shim_token_gone(void)
{
    pthread_mutex_lock(&lock);
    look_again();
    pthread_mutex_unlock(&lock);
    return token_gone;
}

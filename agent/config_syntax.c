/* SPDX-License-Identifier: Apache-2.0 */
/* The options of the configuration file, and the check of each value at the line where it stands. */
#include "config_syntax.h"
#include "config.h"
#include "san.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * libconfuse takes the end of the file for the end of a section; inside a section this last option is
 * unknown.
 */
#define SENTINEL "__end_of_file"

/* libconfuse's callbacks carry no user pointer; parsing is synchronous and single-threaded. */
static char *the_error;

static void take_error(cfg_t *cfg, const char *format, va_list args)
{
    size_t used = 0;

    if (the_error == NULL || the_error[0] != '\0') {
        return; /* the first error is the cause of those that follow */
    }
    used = (size_t)snprintf(the_error, KH_CONFIG_ERROR_MAX, "%s:%d: ", cfg->filename, cfg->line);
    if (used < KH_CONFIG_ERROR_MAX) {
        vsnprintf(the_error + used, KH_CONFIG_ERROR_MAX - used, format, args);
        the_error[strcspn(the_error, "\n")] = '\0'; /* of a string without an end: all to the end of the file */
    }
}

/*
 * libconfuse would let the last of several win; here that is a mistake. The bit is one that it does not use.
 */
#define SEEN (1 << 24)

static int check_once(cfg_t *cfg, cfg_opt_t *opt)
{
    if ((opt->flags & SEEN) != 0) {
        cfg_error(cfg, "%s is there twice", opt->name);
        return -1;
    }
    opt->flags |= SEEN;
    return 0;
}

typedef struct number_range {
    const char *name;
    long least, most;
} number_range;

static const number_range top_numbers[] = {
#define KH_X(field, initial, least, most, what) {#field, least, most},
    KH_CONFIG_NUMBERS(KH_X)
#undef KH_X
};
static const number_range identity_numbers[] = {
    {"uid", 1, 4294967294}, {"queue_max", 1, 1000000}, {"weight", 1, 1000}, {"max_connections", 1, 500000}};
static const number_range token_numbers[] = {{"sessions", 1, 64}, {"call_timeout_ms", 50, 600000}};
static const number_range pool_numbers[] = {{"quorum", 1, KH_PARTITIONS_MAX}};
static const number_range listen_numbers[] = {{"mode", 0, 0777}}; /* of `metrics` too */

static int check_range(cfg_t *cfg, cfg_opt_t *opt, const number_range *table, size_t count)
{
    long value = cfg_opt_getnint(opt, cfg_opt_size(opt) - 1);

    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].name, opt->name) == 0 && (value < table[i].least || value > table[i].most)) {
            cfg_error(cfg, "%s = %ld is out of range: %ld to %ld", opt->name, value, table[i].least,
                      table[i].most);
            return -1;
        }
    }
    return check_once(cfg, opt);
}

static int check_top_number(cfg_t *cfg, cfg_opt_t *opt)
{
    return check_range(cfg, opt, top_numbers, sizeof top_numbers / sizeof *top_numbers);
}

static int check_identity_number(cfg_t *cfg, cfg_opt_t *opt)
{
    if (strcmp(opt->name, "uid") == 0 && cfg_opt_getnint(opt, 0) == 0) {
        cfg_error(cfg, "uid = 0 is the operator already and needs no identity");
        return -1;
    }
    return check_range(cfg, opt, identity_numbers, sizeof identity_numbers / sizeof *identity_numbers);
}

static int check_listen_number(cfg_t *cfg, cfg_opt_t *opt)
{
    if (strcmp(opt->name, "mode") == 0 && cfg_opt_getnint(opt, 0) > 0777) {
        cfg_error(cfg, "mode = %ld is out of range: 0 to 0777, in octal with a zero before it, as 0660",
                  cfg_opt_getnint(opt, 0));
        return -1;
    }
    return check_range(cfg, opt, listen_numbers, sizeof listen_numbers / sizeof *listen_numbers);
}

static int check_token_number(cfg_t *cfg, cfg_opt_t *opt)
{
    return check_range(cfg, opt, token_numbers, sizeof token_numbers / sizeof *token_numbers);
}

static int check_pool_number(cfg_t *cfg, cfg_opt_t *opt)
{
    return check_range(cfg, opt, pool_numbers, sizeof pool_numbers / sizeof *pool_numbers);
}

static const char *const level_names[] = {"error", "warn", "notice", "info", "debug"};

int kh_config_log_level(const char *name)
{
    for (int i = 0; i < (int)(sizeof level_names / sizeof *level_names); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

/* Words that an option accepts, as it is shown to people. */
static int check_word(cfg_t *cfg, cfg_opt_t *opt)
{
    static const struct {
        const char *option, *words;
    } table[] = {{"kernels", "auto openssl"},
                 {"cpu_affinity", "auto leave"},
                 {"log_level", "error warn notice info debug"},
                 {"log_format", "text json"},
                 {"confine", "vendor strict"}};
    const char *value = cfg_opt_getnstr(opt, 0);
    size_t len = strlen(value);

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *at = table[i].words;

        if (strcmp(table[i].option, opt->name) != 0) {
            continue;
        }
        for (; at != NULL && len > 0; at = strchr(at, ' ') == NULL ? NULL : strchr(at, ' ') + 1) {
            if (strncmp(at, value, len) == 0 && (at[len] == ' ' || at[len] == '\0')) {
                return check_once(cfg, opt);
            }
        }
        cfg_error(cfg, "%s = \"%s\": it is one of: %s", opt->name, value, table[i].words);
        return -1;
    }
    return 0;
}

static int check_not_empty(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);

    if (value == NULL || value[0] == '\0') {
        cfg_error(cfg, "%s is empty", opt->name);
        return -1;
    }
    return check_once(cfg, opt);
}

static int check_operation(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);
    int op = kh_op_parse(value);

    if (op < 0 || op > 31 || (KH_CONFIG_OPERATIONS & 1u << op) == 0) {
        cfg_error(cfg,
                  "operations: there is no \"%s\": sign, tls-rsa-decrypt, decrypt, public-key, list, status, "
                  "import-key, "
                  "create, import, set-state",
                  value);
        return -1;
    }
    return 0;
}

static int check_glob(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);
    size_t len = strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-*?");

    if (len == 0 || value[len] != '\0' || len > KH_NAME_MAX) {
        cfg_error(
            cfg,
            "keys: \"%s\" can match no key name (letters, digits, '.', '_', '-', and the wildcards * and ?)",
            value);
        return -1;
    }
    return 0;
}

/* A section's title is checked when the section closes; the line is the closing one, which is near enough. */
static int check_listen(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *address = cfg_title(cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1));

    if ((strncmp(address, "unix:", 5) != 0 && strncmp(address, "tcp:", 4) != 0) ||
        strchr(address, ':')[1] == '\0') {
        cfg_error(cfg, "listen \"%s\": an address is \"unix:PATH\" or \"tcp:ADDRESS:PORT\"", address);
        return -1;
    }
    return 0;
}

static int check_san(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);
    char canonical[KH_SAN_MAX + 1];

    if (cfg_opt_size(opt) > KH_SANS_MAX) {
        cfg_error(cfg, "san: more than %d names", KH_SANS_MAX);
        return -1;
    }
    if (kh_san_canonical(value, strlen(value), canonical) != KH_OK) {
        cfg_error(cfg,
                  "san: \"%s\" is none of dns:NAME, uri:URI, ip:ADDRESS, email:ADDRESS (exact, without "
                  "wildcards)",
                  value);
        return -1;
    }
    return 0;
}

/* The form; what is behind it is looked at with the whole file (config_metrics.c). */
static int check_metrics(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *address = cfg_title(cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1));

    if ((strncmp(address, "unix:", 5) != 0 && strncmp(address, "tcp:", 4) != 0) ||
        strchr(address, ':')[1] == '\0') {
        cfg_error(cfg, "metrics \"%s\": an address is \"unix:PATH\" or \"tcp:ADDRESS:PORT\"", address);
        return -1;
    }
    return 0;
}

/* Names of tokens and pools: they stand in the store beside each key. */
static int check_place(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *name = cfg_title(cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1));

    if (!kh_name_valid(name, strlen(name)) || strlen(name) > KH_PLACE_MAX) {
        cfg_error(cfg,
                  "%s \"%s\": a name has 1 to %d letters, digits, '.', '_', '-' and begins with a letter or digit",
                  opt->name, name, KH_PLACE_MAX);
        return -1;
    }
    return 0;
}

/* A variable for the library: NAME=VALUE. */
static int check_variable(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);
    size_t len = strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");

    if (len == 0 || value[len] != '=' || (value[0] >= '0' && value[0] <= '9')) {
        cfg_error(cfg, "env: \"%s\" is not NAME=VALUE", value);
        return -1;
    }
    if (cfg_opt_size(opt) > KH_TOKEN_ENV_MAX) {
        cfg_error(cfg, "env: more than %d variables", KH_TOKEN_ENV_MAX);
        return -1;
    }
    return 0;
}

static int check_token_path(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);

    if (value[0] != '/') {
        cfg_error(cfg, "paths: \"%s\" is no absolute path", value);
        return -1;
    }
    if (cfg_opt_size(opt) > KH_TOKEN_PATHS_MAX) {
        cfg_error(cfg, "paths: more than %d", KH_TOKEN_PATHS_MAX);
        return -1;
    }
    return 0;
}

static int check_identity(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *name = cfg_title(cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1));

    if (!kh_name_valid(name, strlen(name))) {
        cfg_error(cfg,
                  "identity \"%s\": a name has 1 to %d letters, digits, '.', '_', '-' and begins with a "
                  "letter or digit",
                  name, KH_NAME_MAX);
        return -1;
    }
    if (strcmp(name, "root") == 0) {
        cfg_error(cfg, "identity \"root\" is the operator and cannot be declared");
        return -1;
    }
    return 0;
}

static int check_allow(cfg_t *cfg, cfg_opt_t *opt)
{
    cfg_t *allow = cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1);

    if (cfg_size(allow, "keys") == 0 || cfg_size(allow, "operations") == 0) {
        cfg_error(cfg, "allow needs both `keys` and `operations`");
        return -1;
    }
    return 0;
}

static void set_checks(cfg_t *cfg)
{
    static const char *const paths[] = {"store",        "kek_file",     "kek_passphrase_file",
                                        "admin_socket", "front_user",   "keeper_user",
                                        "listen|owner", "listen|group", "listen|certificate",
                                        "listen|certificate_key", "listen|client_ca",
                                        "listen|client_crl", "metrics|owner", "metrics|group",
                                        "identity|token", "token|module", "token|label", "token|serial",
                                        "token|uri", "token|pin_file", "token|user"};
    static const char *const words[] = {"kernels", "cpu_affinity", "log_level", "log_format", "token|confine"};

    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        cfg_set_validate_func(cfg, paths[i], check_not_empty);
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        cfg_set_validate_func(cfg, words[i], check_word);
    }
    for (size_t i = 0; i < sizeof top_numbers / sizeof *top_numbers; i++) {
        cfg_set_validate_func(cfg, top_numbers[i].name, check_top_number);
    }
    cfg_set_validate_func(cfg, "identity|uid", check_identity_number);
    cfg_set_validate_func(cfg, "identity|queue_max", check_identity_number);
    cfg_set_validate_func(cfg, "identity|weight", check_identity_number);
    cfg_set_validate_func(cfg, "identity|max_connections", check_identity_number);
    cfg_set_validate_func(cfg, "token|sessions", check_token_number);
    cfg_set_validate_func(cfg, "token|call_timeout_ms", check_token_number);
    cfg_set_validate_func(cfg, "token|env", check_variable);
    cfg_set_validate_func(cfg, "token|paths", check_token_path);
    cfg_set_validate_func(cfg, "token", check_place);
    cfg_set_validate_func(cfg, "pool|quorum", check_pool_number);
    cfg_set_validate_func(cfg, "pool", check_place);
    cfg_set_validate_func(cfg, "listen|mode", check_listen_number);
    cfg_set_validate_func(cfg, "metrics|mode", check_listen_number);
    cfg_set_validate_func(cfg, "metrics", check_metrics);
    cfg_set_validate_func(cfg, "listen|administration", check_once);
    cfg_set_validate_func(cfg, "identity|san", check_san);
    cfg_set_validate_func(cfg, "identity|allow|keys", check_glob);
    cfg_set_validate_func(cfg, "identity|allow|operations", check_operation);
    cfg_set_validate_func(cfg, "identity|allow", check_allow);
    cfg_set_validate_func(cfg, "identity", check_identity);
    cfg_set_validate_func(cfg, "listen", check_listen);
}

/*
 * The length of the comment that begins here, if one does; SIZE_MAX when it has no end. `before`: the
 * character before.
 */
static size_t comment_len(const char *at, char before)
{
    const char *end = NULL;

    if (*at == '#') {
        return strcspn(at, "\n");
    }
    if (*at != '/' || strchr(" \t\r\n={}(),", before) == NULL) { /* within a word a slash is a slash */
        return 0;
    }
    if (at[1] == '/') {
        return strcspn(at, "\n");
    }
    if (at[1] != '*') {
        return 0;
    }
    end = strstr(at + 2, "*/");
    return end == NULL ? SIZE_MAX : (size_t)(end + 2 - at);
}

/*
 * Overwrites comments with spaces: libconfuse counts the line of a comment three times, and errors would name
 * wrong lines. In strings a backslash hides a quote. Returns what libconfuse would not mind, or NULL: a
 * comment without an end, at *line = 0; or a ${VARIABLE}, which it would take from the environment, so that
 * the roles, whose environments differ, would read different configurations.
 */
static const char *blank_comments(char *text, unsigned *line)
{
    char quote = '\0';

    *line = 1;
    for (char *at = text; *at != '\0'; at++) {
        *line += *at == '\n';
        if (quote != '\'' && at[0] == '$' && at[1] == '{') {
            return "variables are not expanded here: write the value instead of ${...}";
        }
        if (quote != '\0') {
            if (*at == '\\' && at[1] != '\0') {
                at++;
                *line += *at == '\n';
            } else if (*at == quote) {
                quote = '\0';
            }
        } else if (*at == '"' || *at == '\'') {
            quote = *at;
        } else {
            size_t len = comment_len(at, at == text ? '\n' : at[-1]);

            if (len == SIZE_MAX) {
                *line = 0;
                return "the file ends inside a comment";
            }
            for (size_t i = 0; i < len; i++) {
                *line += i > 0 && at[i] == '\n';
                at[i] = at[i] == '\n' ? '\n' : ' ';
            }
            at += len > 0 ? len - 1 : 0;
        }
    }
    return NULL;
}

kh_result kh_config_tree(const char *text, size_t len, const char *path, cfg_t **out, char *error)
{
    cfg_opt_t allow[] = {CFG_STR_LIST("keys", NULL, CFGF_NODEFAULT),
                         CFG_STR_LIST("operations", NULL, CFGF_NODEFAULT), CFG_END()};
    cfg_opt_t identity[] = {CFG_STR("token", NULL, CFGF_NODEFAULT), CFG_INT("uid", -1, CFGF_NONE),
                            CFG_INT("queue_max", 0, CFGF_NONE),     CFG_INT("weight", 1, CFGF_NONE),
                            CFG_INT("max_connections", 0, CFGF_NONE),
                            CFG_STR_LIST("san", NULL, CFGF_NODEFAULT),
                            CFG_SEC("allow", allow, CFGF_MULTI),    CFG_END()};
    cfg_opt_t listen[] = {CFG_INT("mode", -1, CFGF_NONE),
                          CFG_STR("owner", NULL, CFGF_NODEFAULT),
                          CFG_STR("group", NULL, CFGF_NODEFAULT),
                          CFG_STR("certificate", NULL, CFGF_NODEFAULT),
                          CFG_STR("certificate_key", NULL, CFGF_NODEFAULT),
                          CFG_STR("client_ca", NULL, CFGF_NODEFAULT),
                          CFG_STR("client_crl", NULL, CFGF_NODEFAULT),
                          CFG_BOOL("administration", cfg_false, CFGF_NONE),
                          CFG_END()};
    cfg_opt_t metrics[] = {CFG_INT("mode", 0666, CFGF_NONE), CFG_STR("owner", NULL, CFGF_NODEFAULT),
                           CFG_STR("group", NULL, CFGF_NODEFAULT), CFG_BOOL("public", cfg_false, CFGF_NONE),
                           CFG_END()};
    cfg_opt_t token[] = {CFG_STR("module", NULL, CFGF_NODEFAULT),
                         CFG_STR("label", NULL, CFGF_NODEFAULT),
                         CFG_STR("serial", NULL, CFGF_NODEFAULT),
                         CFG_STR("uri", NULL, CFGF_NODEFAULT),
                         CFG_STR("pin_file", NULL, CFGF_NODEFAULT),
                         CFG_STR("user", NULL, CFGF_NODEFAULT),
                         CFG_STR("confine", "vendor", CFGF_NONE),
                         CFG_INT("sessions", 8, CFGF_NONE),
                         CFG_INT("call_timeout_ms", 2000, CFGF_NONE),
                         CFG_STR_LIST("env", NULL, CFGF_NODEFAULT),
                         CFG_STR_LIST("paths", NULL, CFGF_NODEFAULT),
                         CFG_END()};
    cfg_opt_t pool[] = {CFG_STR_LIST("partitions", NULL, CFGF_NODEFAULT), CFG_INT("quorum", 0, CFGF_NONE),
                        CFG_END()};
    cfg_opt_t top[] = {CFG_STR("store", NULL, CFGF_NODEFAULT),
                       CFG_STR("kek_file", NULL, CFGF_NODEFAULT),
                       CFG_STR("kek_passphrase_file", NULL, CFGF_NODEFAULT),
                       CFG_STR("admin_socket", NULL, CFGF_NODEFAULT),
                       CFG_STR("front_user", NULL, CFGF_NODEFAULT),
                       CFG_STR("keeper_user", NULL, CFGF_NODEFAULT),
                       CFG_STR("kernels", "auto", CFGF_NONE),
                       CFG_STR("cpu_affinity", "auto", CFGF_NONE),
                       CFG_STR("log_level", "info", CFGF_NONE),
                       CFG_STR("log_format", "text", CFGF_NONE),
#define KH_X(field, initial, least, most, what) CFG_INT(#field, initial, CFGF_NONE),
                       KH_CONFIG_NUMBERS(KH_X)
#undef KH_X
                           CFG_INT(SENTINEL, 0, CFGF_NONE),
                       CFG_SEC("listen", listen, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES),
                       CFG_SEC("identity", identity, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES),
                       CFG_SEC("metrics", metrics, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES),
                       CFG_SEC("token", token, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES),
                       CFG_SEC("pool", pool, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES),
                       CFG_END()};
    cfg_t *cfg = cfg_init(top, CFGF_NONE);
    char *whole = NULL;
    int whole_len = asprintf(&whole, "%.*s\n" SENTINEL " = 1\n", (int)len, text);
    FILE *stream = NULL;
    kh_result result = KH_E_MEMORY;
    const char *mistake = NULL;
    unsigned line = 0;

    *out = NULL;
    if (whole_len >= 0 && (mistake = blank_comments(whole, &line)) != NULL) {
        if (line > 0) {
            snprintf(error, KH_CONFIG_ERROR_MAX, "%s:%u: %s", path, line, mistake);
        } else {
            snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s", path, mistake);
        }
        result = KH_E_INVALID;
        goto done;
    }
    if (whole_len >= 0) {
        stream = fmemopen(whole, (size_t)whole_len, "r");
    }
    if (cfg == NULL || stream == NULL) {
        goto done;
    }
    cfg->filename = strdup(path);
    if (cfg->filename == NULL) {
        goto done;
    }
    the_error = error;
    error[0] = '\0';
    cfg_set_error_function(cfg, take_error);
    set_checks(cfg);
    /* The last option is read unless something swallowed it: a string without an end, which is no error
     * there. */
    if (cfg_parse_fp(cfg, stream) != CFG_SUCCESS || cfg_getint(cfg, SENTINEL) != 1) {
        if (error[0] == '\0' || strstr(error, SENTINEL) != NULL ||
            strstr(error, "premature end of file") != NULL) {
            snprintf(error, KH_CONFIG_ERROR_MAX, "%s: the file ends inside a section, a list or a string",
                     path);
        }
        result = KH_E_INVALID;
        goto done;
    }
    *out = cfg;
    cfg = NULL;
    result = KH_OK;
done:
    the_error = NULL;
    if (stream != NULL) {
        fclose(stream);
    }
    if (whole_len >= 0) {
        free(whole);
    }
    if (cfg != NULL) {
        cfg_free(cfg);
    }
    return result;
}

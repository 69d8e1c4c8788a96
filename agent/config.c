/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From libconfuse's tree to a kh_config: paths made absolute, sections copied, what only the whole file shows
 * checked.
 */
#include "config.h"
#include "config_syntax.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

kh_result kh_config_fail(const kh_config *config, unsigned line, char *error, const char *what,
                         const char *name)
{
    if (line == 0) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s%s", config->path, what, name);
    } else {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%s:%u: %s%s", config->path, line, what, name);
    }
    return KH_E_INVALID;
}

static char *copy_string(cfg_t *cfg, const char *option)
{
    const char *value = cfg_getstr(cfg, option);

    return value == NULL ? NULL : strdup(value);
}

char *kh_config_absolute(const kh_config *config, const char *path)
{
    char *result = NULL;

    if (path[0] == '/' || strncmp(path, "credential:", 11) == 0 || strncmp(path, "env:", 4) == 0 ||
        strcmp(path, "-") == 0) {
        return strdup(path);
    }
    return asprintf(&result, "%s/%s", config->dir, path) < 0 ? NULL : result;
}

kh_result kh_config_take_path(const kh_config *config, cfg_t *cfg, const char *option, char **field)
{
    const char *value = cfg_getstr(cfg, option);

    if (value == NULL) {
        return KH_OK;
    }
    *field = kh_config_absolute(config, value);
    return *field == NULL ? KH_E_MEMORY : KH_OK;
}

static kh_result take_allow(cfg_t *cfg, kh_allow *allow)
{
    unsigned keys = cfg_size(cfg, "keys");

    allow->keys = calloc(keys + 1, sizeof *allow->keys);
    if (allow->keys == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < keys; i++) {
        allow->keys[i] = strdup(cfg_getnstr(cfg, "keys", i));
        if (allow->keys[i] == NULL) {
            return KH_E_MEMORY;
        }
        allow->key_count++;
    }
    for (unsigned i = 0; i < cfg_size(cfg, "operations"); i++) {
        allow->operations |= 1u << kh_op_parse(cfg_getnstr(cfg, "operations", i));
    }
    return KH_OK;
}

static kh_result take_identity(kh_config *config, cfg_t *cfg, kh_config_identity *identity, char *error)
{
    unsigned allows = cfg_size(cfg, "allow");
    kh_result result = KH_OK;

    snprintf(identity->name, sizeof identity->name, "%s", cfg_title(cfg));
    identity->line = (unsigned)cfg->line;
    identity->uid = cfg_getint(cfg, "uid");
    identity->queue_max = (uint32_t)cfg_getint(cfg, "queue_max");
    identity->weight = (uint32_t)cfg_getint(cfg, "weight");
    identity->max_connections = (uint32_t)cfg_getint(cfg, "max_connections");
    result = kh_config_take_path(config, cfg, "token", &identity->token);
    if (result != KH_OK) {
        return result;
    }
    result = kh_config_take_sans(cfg, identity);
    if (result != KH_OK) {
        return result;
    }
    if (identity->token != NULL ? identity->uid >= 0 : identity->uid < 0 && identity->san_count == 0) {
        return kh_config_fail(config, identity->line, error,
                              identity->token != NULL ? "cannot have both `token` and `uid`: identity "
                                                      : "needs `token`, `uid` or `san`: identity ",
                              identity->name);
    }
    identity->allows = calloc(allows + 1, sizeof *identity->allows);
    if (identity->allows == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < allows; i++) {
        result = take_allow(cfg_getnsec(cfg, "allow", i), &identity->allows[i]);
        identity->allow_count++;
        if (result != KH_OK) {
            return result;
        }
    }
    return KH_OK;
}

static kh_result take_identities(kh_config *config, cfg_t *cfg, char *error)
{
    unsigned count = cfg_size(cfg, "identity");
    kh_result result = KH_OK;

    if (count > KH_IDENTITIES_MAX) {
        return kh_config_fail(config, 0, error, "too many identities", "");
    }
    config->identities = calloc(count + 1, sizeof *config->identities);
    if (config->identities == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < count && result == KH_OK; i++) {
        result = take_identity(config, cfg_getnsec(cfg, "identity", i), &config->identities[i], error);
        config->identity_count++;
        for (unsigned j = 0; j < i && result == KH_OK; j++) {
            const kh_config_identity *a = &config->identities[i], *b = &config->identities[j];

            if (strcmp(a->name, b->name) == 0) {
                result = kh_config_fail(config, a->line, error, "declared twice: identity ", a->name);
            } else if (a->uid >= 0 && a->uid == b->uid) {
                result = kh_config_fail(config, a->line, error, "has the uid of another identity: ", a->name);
            }
        }
    }
    return result;
}

static kh_result take_all(kh_config *config, cfg_t *cfg, char *error)
{
    kh_result result = KH_OK;

#define KH_X(field, initial, least, most, what) config->field = cfg_getint(cfg, #field);
    KH_CONFIG_NUMBERS(KH_X)
#undef KH_X
    config->kernels = strcmp(cfg_getstr(cfg, "kernels"), "auto") == 0;
    config->cpu_affinity = strcmp(cfg_getstr(cfg, "cpu_affinity"), "auto") == 0;
    config->log_level = (kh_log_level)kh_config_log_level(cfg_getstr(cfg, "log_level"));
    config->log_format = strcmp(cfg_getstr(cfg, "log_format"), "json") == 0 ? KH_FORMAT_JSON : KH_FORMAT_TEXT;
    config->front_user = copy_string(cfg, "front_user");
    config->keeper_user = copy_string(cfg, "keeper_user");
    if ((result = kh_config_take_path(config, cfg, "store", &config->store)) != KH_OK ||
        (result = kh_config_take_path(config, cfg, "kek_file", &config->kek_file)) != KH_OK ||
        (result = kh_config_take_path(config, cfg, "kek_passphrase_file", &config->kek_passphrase_file)) != KH_OK ||
        (result = kh_config_take_path(config, cfg, "admin_socket", &config->admin_socket)) != KH_OK) {
        return result;
    }
    if (config->store == NULL) {
        return kh_config_fail(config, 0, error, "`store` is missing", "");
    }
    if ((config->kek_file == NULL) == (config->kek_passphrase_file == NULL)) {
        return kh_config_fail(config, 0, error, "needs exactly one of `kek_file` and `kek_passphrase_file`", "");
    }
    if (config->kek_file != NULL && strcmp(config->kek_file, "-") == 0) {
        return kh_config_fail(config, 0, error, "only a passphrase can be asked for on the terminal, not `kek_file`",
                       "");
    }
    if ((result = kh_config_take_listeners(config, cfg, error)) != KH_OK ||
        (result = take_identities(config, cfg, error)) != KH_OK) {
        return result;
    }
    result = kh_config_order_sans(config, error);
    if (result == KH_OK) {
        result = kh_config_take_metrics(config, cfg, error);
    }
    return result == KH_OK ? kh_config_take_tokens(config, cfg, error) : result;
}

static kh_result start(const char *text, size_t len, const char *path, kh_config **out)
{
    kh_config *config = calloc(1, sizeof *config);
    char *slash = NULL;

    if (config == NULL) {
        return KH_E_MEMORY;
    }
    *out = config;
    config->path = strdup(path);
    config->dir = strdup(path);
    config->text = malloc(len + 1);
    if (config->path == NULL || config->dir == NULL || config->text == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(config->text, text, len);
    config->text[len] = '\0';
    config->text_len = len;
    slash = strrchr(config->dir, '/');
    if (slash == NULL) {
        return KH_E_INVALID;
    }
    slash[slash == config->dir ? 1 : 0] = '\0';
    return KH_OK;
}

kh_result kh_config_parse(const char *text, size_t len, const char *path, kh_config **out, char *error)
{
    kh_config *config = NULL;
    cfg_t *cfg = NULL;
    kh_result result = KH_OK;

    *out = NULL;
    error[0] = '\0';
    if (len == 0 || len > KH_CONFIG_TEXT_MAX || memchr(text, 0, len) != NULL) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s", path,
                 len == 0 ? "the file is empty" : "this is not a configuration file");
        return KH_E_INVALID;
    }
    result = start(text, len, path, &config);
    if (result == KH_OK) {
        result = kh_config_tree(config->text, len, path, &cfg, error);
    }
    if (result == KH_OK) {
        result = take_all(config, cfg, error);
    }
    if (cfg != NULL) {
        cfg_free(cfg);
    }
    if (result != KH_OK) {
        if (error[0] == '\0') {
            snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s", path, kh_result_text(result));
        }
        kh_config_free(config);
        return result;
    }
    *out = config;
    return KH_OK;
}

static kh_result read_text(const char *path, char **text, size_t *len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    kh_result result = KH_E_IO;
    struct stat st;
    ssize_t got = 0;

    *text = NULL;
    *len = 0;
    if (fd < 0 || fstat(fd, &st) != 0) {
        goto done;
    }
    if (!S_ISREG(st.st_mode) || st.st_size > KH_CONFIG_TEXT_MAX) {
        errno = S_ISREG(st.st_mode) ? EFBIG : S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
        goto done;
    }
    *text = malloc(KH_CONFIG_TEXT_MAX + 1);
    if (*text == NULL) {
        result = KH_E_MEMORY;
        goto done;
    }
    while ((got = read(fd, *text + *len, KH_CONFIG_TEXT_MAX + 1 - *len)) > 0) {
        *len += (size_t)got;
    }
    if (got == 0 && *len <= KH_CONFIG_TEXT_MAX) {
        result = KH_OK;
    }
done:
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

kh_result kh_config_load(const char *path, kh_config **out, char *error)
{
    char *real = realpath(path, NULL), *text = NULL;
    size_t len = 0;
    kh_result result = KH_E_IO;

    *out = NULL;
    if (real != NULL) {
        result = read_text(real, &text, &len);
    }
    if (result != KH_OK) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s", path, strerror(errno));
    } else {
        result = kh_config_parse(text, len, real, out, error);
    }
    free(text);
    free(real);
    return result;
}

static void free_identity(kh_config_identity *identity)
{
    for (size_t i = 0; i < identity->allow_count; i++) {
        for (size_t j = 0; j < identity->allows[i].key_count; j++) {
            free(identity->allows[i].keys[j]);
        }
        free(identity->allows[i].keys);
    }
    free(identity->allows);
    free(identity->token);
    kh_config_free_sans(identity);
}

void kh_config_free(kh_config *config)
{
    if (config == NULL) {
        return;
    }
    for (size_t i = 0; i < config->identity_count; i++) {
        free_identity(&config->identities[i]);
    }
    kh_config_free_listeners(config);
    kh_config_free_metrics(config);
    kh_config_free_tokens(config);
    free(config->identities);
    free(config->sans);
    free(config->path);
    free(config->dir);
    free(config->text);
    free(config->store);
    free(config->kek_file);
    free(config->kek_passphrase_file);
    free(config->admin_socket);
    free(config->front_user);
    free(config->keeper_user);
    free(config);
}

/* A decimal id without sign or space; -1 when it is something else. */
static int64_t parse_id(const char *text, const char **end)
{
    int64_t value = 0;
    const char *at = text;

    for (; *at >= '0' && *at <= '9' && value <= UINT32_MAX; at++) {
        value = value * 10 + (*at - '0');
    }
    *end = at;
    return at == text || value >= UINT32_MAX ? -1 : value; /* 2^32-1 means "unchanged" to chown and setuid */
}

kh_result kh_config_user(const char *text, kh_user *user)
{
    const char *end = NULL;
    int64_t uid = parse_id(text, &end), gid = -1;
    const struct passwd *entry = NULL;

    if (uid >= 0 && *end == ':') {
        gid = parse_id(end + 1, &end);
        if (gid < 0 || *end != '\0') {
            return KH_E_INVALID;
        }
        *user = (kh_user){(uid_t)uid, (gid_t)gid};
        return KH_OK;
    }
    entry = getpwnam(text);
    if (entry == NULL) {
        return KH_E_INVALID;
    }
    *user = (kh_user){entry->pw_uid, entry->pw_gid};
    return KH_OK;
}

kh_result kh_config_owner(const char *text, uid_t *uid)
{
    const char *end = NULL;
    int64_t value = parse_id(text, &end);
    kh_user user;
    kh_result result = KH_OK;

    if (value >= 0 && *end == '\0') {
        *uid = (uid_t)value;
        return KH_OK;
    }
    result = kh_config_user(text, &user);
    *uid = result == KH_OK ? user.uid : (uid_t)-1;
    return result;
}

kh_result kh_config_group(const char *text, gid_t *gid)
{
    const char *end = NULL;
    int64_t value = parse_id(text, &end);
    const struct group *entry = NULL;

    if (value >= 0 && *end == '\0') {
        *gid = (gid_t)value;
        return KH_OK;
    }
    entry = getgrnam(text);
    if (entry == NULL) {
        return KH_E_INVALID;
    }
    *gid = entry->gr_gid;
    return KH_OK;
}

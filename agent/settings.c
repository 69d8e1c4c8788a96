/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's configuration, secrets and sockets: read at start, and again at SIGHUP. */
#include "channel.h"
#include "confine.h"
#include "kektoken.h"
#include "log.h"
#include "process.h"
#include "secret.h"
#include "supervisor.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define CREDENTIALS_SIZE (KH_IDENTITIES_MAX * sizeof(kh_credential))
#define PINS_SIZE (KH_TOKENS_MAX * sizeof(kh_pin))
#define DEFAULT_FRONT_USER "keyhold-front"
#define DEFAULT_KEEPER_USER KH_KEEPER_USER_DEFAULT

static kh_result seal_text(const kh_config *config, int *fd)
{
    size_t at = 0;

    *fd = memfd_create("keyhold-config", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    while (*fd >= 0 && at < config->text_len) {
        ssize_t put = write(*fd, config->text + at, config->text_len - at);

        if (put <= 0) {
            break;
        }
        at += (size_t)put;
    }
    if (*fd < 0 || at < config->text_len ||
        fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
        return KH_E_MEMORY;
    }
    return KH_OK;
}

kh_result kh_settings_load(const char *path, bool with_pins, kh_settings *settings, char *error)
{
    kh_result result = KH_OK;

    *settings = (kh_settings){.text_fd = -1};
    result = kh_config_load(path, &settings->config, error);
    if (result != KH_OK) {
        return result;
    }
    settings->credentials = kh_secret_alloc(CREDENTIALS_SIZE, NULL);
    settings->pins = kh_secret_alloc(PINS_SIZE, NULL);
    if (settings->credentials == NULL || settings->pins == NULL || seal_text(settings->config, &settings->text_fd) != KH_OK) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%s: out of memory", path);
        result = KH_E_MEMORY;
    } else {
        result = kh_tokens_load(settings->config, settings->credentials, error);
    }
    if (result == KH_OK) {
        result = kh_socket_owners_check(settings->config, error);
    }
    if (result == KH_OK) {
        result = with_pins ? kh_pins_load(settings->config, settings->pins, error) : KH_OK;
    }
    if (result == KH_OK) {
        result = kh_materials_load(settings->config, &settings->materials, error);
    }
    if (result != KH_OK) {
        kh_settings_free(settings);
    }
    return result;
}

void kh_settings_free(kh_settings *settings)
{
    if (settings->config != NULL) {
        kh_materials_free(settings->materials, settings->config->listener_count);
    }
    kh_config_free(settings->config);
    kh_secret_free(settings->credentials, CREDENTIALS_SIZE);
    kh_secret_free(settings->pins, PINS_SIZE);
    if (settings->text_fd >= 0) {
        close(settings->text_fd);
    }
    *settings = (kh_settings){.text_fd = -1};
}

/* ---- Sockets ---- */

static kh_socket *find_socket(kh_supervisor *supervisor, const char *address)
{
    for (size_t i = 0; i < supervisor->socket_count; i++) {
        if (strcmp(supervisor->sockets[i].address, address) == 0) {
            return &supervisor->sockets[i];
        }
    }
    return NULL;
}

static void drop_sockets(kh_supervisor *supervisor, size_t from)
{
    while (supervisor->socket_count > from) {
        kh_socket_close(&supervisor->sockets[--supervisor->socket_count]);
    }
}

/*
 * Opens what the configuration names and is not open yet, or whose file somebody removed: then both are there until
 * close_sockets. On failure none of those stay open.
 */
static kh_result open_sockets(kh_supervisor *supervisor, const kh_config *config, char *error)
{
    size_t before = supervisor->socket_count;
    kh_result result = KH_OK;

    for (size_t i = 0; i < config->listener_count && result == KH_OK; i++) {
        const kh_socket *open = find_socket(supervisor, config->listeners[i].address);

        if (open != NULL && kh_socket_present(open)) {
            continue;
        }
        if (supervisor->socket_count == KH_LISTENERS_MAX) {
            snprintf(error, KH_CONFIG_ERROR_MAX, "%s: too many listeners", config->path);
            result = KH_E_INVALID;
        } else {
            result = kh_socket_open_listener(&config->listeners[i], &supervisor->sockets[supervisor->socket_count],
                                             error);
            supervisor->socket_count += result == KH_OK;
        }
    }
    if (result != KH_OK) {
        drop_sockets(supervisor, before);
    }
    return result;
}

/* Closes what the configuration no longer names, and what has no file any more; the rest gets the mode and owner of now. */
static void close_sockets(kh_supervisor *supervisor)
{
    const kh_config *config = supervisor->settings.config;

    for (size_t i = 0; i < supervisor->socket_count;) {
        kh_socket *sock = &supervisor->sockets[i];
        const kh_config_listener *named = NULL;

        for (size_t j = 0; j < config->listener_count && named == NULL; j++) {
            named = strcmp(config->listeners[j].address, sock->address) == 0 ? &config->listeners[j] : NULL;
        }
        if (named != NULL && kh_socket_present(sock)) {
            kh_socket_dress(sock, named->mode, named->owner, named->group);
            i++;
            continue;
        }
        kh_socket_close(sock);
        *sock = supervisor->sockets[--supervisor->socket_count];
    }
}

/* ---- Start ---- */

static kh_result find_user(const char *text, const char *fallback, kh_user *user, char *error)
{
    const char *name = text != NULL ? text : fallback;

    if (kh_config_user(name, user) == KH_OK) {
        return KH_OK;
    }
    snprintf(error, KH_CONFIG_ERROR_MAX,
             "there is no user \"%s\": make it, or name another one in the configuration", name);
    return KH_E_INVALID;
}

/* Who runs the keeper of a token. */
kh_result kh_token_user(const kh_config *config, const kh_config_token *token, kh_user *user, char *error)
{
    return find_user(token->user != NULL ? token->user : config->keeper_user, DEFAULT_KEEPER_USER, user, error);
}

/* The user, and for --check the library, which a running agent waits for. */
static kh_result check_token(const kh_config *config, const kh_config_token *token, bool with_module, char *error)
{
    kh_user user;

    if (with_module && access(token->module, R_OK) != 0) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%.200s:%u: module %.200s: %s", config->path, token->line, token->module,
                 strerror(errno));
        return KH_E_INVALID;
    }
    return geteuid() == 0 ? kh_token_user(config, token, &user, error) : KH_OK;
}

kh_result kh_settings_check(const kh_config *config, char *error)
{
    kh_kek_token wrapped;
    uint8_t kek[32];
    kh_user user;
    int why = 0;
    kh_result result = KH_OK;

    if (geteuid() == 0 &&
        ((result = find_user(config->front_user, DEFAULT_FRONT_USER, &user, error)) != KH_OK ||
         (result = find_user(config->keeper_user, DEFAULT_KEEPER_USER, &user, error)) != KH_OK)) {
        return result;
    }
    for (size_t i = 0; i < config->token_count; i++) {
        if ((result = check_token(config, &config->tokens[i], true, error)) != KH_OK) {
            return result;
        }
    }
    why = geteuid() == 0 ? kh_process_may_read(&user, config->store) : access(config->store, R_OK) == 0 ? 0 : errno;
    if (why != 0) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "store %.200s: %s (%s)", config->store, strerror(why),
                 why == EACCES ? "it, the files beside it and their directory belong to the keeper's user"
                               : "keyholdctl init makes one");
        return KH_E_STORAGE;
    }
    if (config->kek_file != NULL) {
        result = kh_kek_token_file_load(config->kek_file, &wrapped);
        if (result == KH_OK && kh_config_find_token(config, wrapped.token) < 0) {
            snprintf(error, KH_CONFIG_ERROR_MAX, "kek_file %.200s is wrapped by the token \"%s\", for which there is no block token",
                     config->kek_file, wrapped.token);
            return KH_E_NOT_FOUND;
        }
        if (result == KH_E_MALFORMED) {
            result = kh_kek_file_load(config->kek_file, kek);
        }
        OPENSSL_cleanse(kek, sizeof(kek));
        if (result != KH_OK) {
            snprintf(error, KH_CONFIG_ERROR_MAX, "kek_file %.200s: %s", config->kek_file,
                     result == KH_E_IO          ? "cannot be read"
                     : result == KH_E_FORBIDDEN ? "others may read it: chmod 600"
                                                : "is no key-encryption key");
        }
    }
    return result;
}

static void log_warnings(const kh_settings *settings)
{
    for (size_t i = 0; i < settings->config->listener_count; i++) {
        if (settings->materials[i].warning[0] != '\0') {
            kh_log(KH_LOG_WARN, "certificate", KH_LT("warning", settings->materials[i].warning));
        }
    }
}

kh_result kh_settings_start(kh_supervisor *supervisor, char *error)
{
    const kh_config *config = supervisor->settings.config;
    const char *source = kh_kek_source(config);
    kh_result result = KH_OK;

    supervisor->store = strdup(config->store);
    supervisor->kek_source = strcmp(source, "-") != 0 ? strdup(source) : NULL;
    supervisor->keeper_boot = (kh_boot_keeper){.workers = supervisor->workers,
                                               .cache_keys = (uint32_t)config->cache_keys,
                                               .batch_window_us = (uint32_t)config->batch_window_us,
                                               .use_kernels = config->kernels};
    if (supervisor->store == NULL) {
        return KH_E_MEMORY;
    }
    supervisor->has_tokens = config->token_count > 0;
    log_warnings(&supervisor->settings);
    if (supervisor->privileged &&
        ((result = find_user(config->front_user, DEFAULT_FRONT_USER, &supervisor->front_user, error)) !=
             KH_OK ||
         (result = find_user(config->keeper_user, DEFAULT_KEEPER_USER, &supervisor->keeper_user, error)) !=
             KH_OK)) {
        return result;
    }
    if ((result = kh_kek_take(supervisor, NULL, &supervisor->kek, error)) != KH_OK ||
        (result = open_sockets(supervisor, config, error)) != KH_OK ||
        (result = kh_metrics_open(supervisor, config, error)) != KH_OK) {
        return result;
    }
    if (config->admin_socket != NULL) {
        result =
            kh_socket_open(config->admin_socket, SOCK_SEQPACKET, 0600, NULL, NULL, &supervisor->admin, error);
    }
    for (size_t i = 0; i < config->token_count && result == KH_OK; i++) {
        result = check_token(config, &config->tokens[i], false, error);
    }
    return result;
}

static void add_dir(kh_confine_path *paths, size_t *count, const char *file, int what)
{
    char *copy = strdup(file);

    if (copy != NULL) {
        paths[*count].path = strdup(dirname(copy));
        paths[*count].what = what;
        *count += paths[*count].path != NULL;
    }
    free(copy);
}

/* A file of a certificate, and the one that it is a link to: certbot keeps them apart. */
static void add_linked(kh_confine_path *paths, size_t *count, const char *file)
{
    char *real = file != NULL && file[0] == '/' ? realpath(file, NULL) : NULL;

    if (real != NULL) {
        add_dir(paths, count, file, KH_PATH_READ);
        add_dir(paths, count, real, KH_PATH_READ);
    }
    free(real);
}

static void add_listener(kh_confine_path *paths, size_t *count, const kh_config_listener *listener)
{
    if (listener->path != NULL) {
        add_dir(paths, count, listener->path, KH_PATH_SOCKETS);
        return;
    }
    add_linked(paths, count, listener->certificate);
    add_linked(paths, count, listener->certificate_key);
    add_linked(paths, count, listener->client_ca);
    add_linked(paths, count, listener->client_crl);
}

#define PATHS_PER_LISTENER 8 /* at most */

/* Directories, since files are replaced by renaming and sockets are made anew. */
static void confine_paths(const kh_config *config)
{
    size_t most = 9 + config->identity_count + PATHS_PER_LISTENER * config->listener_count + config->metrics_count;
    size_t count = 0;
    kh_confine_path *paths = calloc(most, sizeof *paths);

    if (paths == NULL) {
        return;
    }
    add_dir(paths, &count, config->path, KH_PATH_READ);
    add_dir(paths, &count, config->store, KH_PATH_STORE);
    if (kh_kek_source(config)[0] == '/') {
        add_dir(paths, &count, kh_kek_source(config), KH_PATH_READ); /* keyholdctl kek rotate renames another into its place */
    }
    for (size_t i = 0; i < config->identity_count; i++) {
        if (config->identities[i].token != NULL && config->identities[i].token[0] == '/') {
            add_dir(paths, &count, config->identities[i].token, KH_PATH_READ);
        }
    }
    for (size_t i = 0; i < config->listener_count; i++) {
        add_listener(paths, &count, &config->listeners[i]);
    }
    for (size_t i = 0; i < config->metrics_count; i++) {
        if (config->metrics[i].path != NULL) {
            add_dir(paths, &count, config->metrics[i].path, KH_PATH_SOCKETS);
        }
    }
    if (config->admin_socket != NULL) {
        add_dir(paths, &count, config->admin_socket, KH_PATH_SOCKETS);
    }
    if (getenv("CREDENTIALS_DIRECTORY") != NULL) {
        paths[count].path = strdup(getenv("CREDENTIALS_DIRECTORY"));
        paths[count].what = KH_PATH_READ;
        count += paths[count].path != NULL;
    }
    if (!kh_confine_paths(paths, count)) {
        kh_log(KH_LOG_WARN, "landlock_unavailable",
               KH_LT("means", "the supervisor's files are not confined"));
    }
    for (size_t i = 0; i < count; i++) {
        free((char *)(uintptr_t)paths[i].path);
    }
    free(paths);
}

void kh_settings_confine(kh_supervisor *supervisor)
{
    /*
     * What is forbidden here is forbidden to all that is started here, and a vendor's library wants more than can be named:
     * where there are tokens, their keepers confine themselves (token.c), and the others need no file at all.
     */
    if (!supervisor->has_tokens) {
        confine_paths(supervisor->settings.config);
    }
}

void kh_settings_stop(kh_supervisor *supervisor)
{
    drop_sockets(supervisor, 0);
    kh_metrics_close(supervisor, NULL);
    kh_socket_close(&supervisor->admin);
    kh_kek_free(&supervisor->kek);
    kh_settings_free(&supervisor->settings);
    kh_config_free(supervisor->first);
    free(supervisor->store);
    free(supervisor->kek_source);
    free(supervisor->kek_wrapped);
}

/* ---- To the front ---- */

static kh_result send_config(kh_supervisor *supervisor)
{
    const kh_config *config = supervisor->settings.config;
    long delay_ms =
        supervisor->options->delay_ms >= 0 ? supervisor->options->delay_ms : config->debug_delay_ms;
    uint8_t payload[4096 + sizeof(kh_boot_config)];
    const kh_boot_config boot = {
        .workers = supervisor->workers, .delay_ms = (uint32_t)delay_ms, .operator_uid = (uint32_t)geteuid()};
    size_t path_len = strlen(config->path);

    if (path_len > 4095) {
        return KH_E_TOO_LARGE;
    }
    memcpy(payload, &boot, sizeof boot);
    memcpy(payload + sizeof boot, config->path, path_len);
    return kh_channel_send(supervisor->front.channel_fd, KH_MSG_CONFIG, payload, sizeof boot + path_len,
                           &supervisor->settings.text_fd, 1);
}

static kh_result send_tokens(kh_supervisor *supervisor)
{
    kh_boot_token *tokens = kh_secret_alloc(KH_BOOT_TOKENS * sizeof *tokens, NULL);
    const kh_config *config = supervisor->settings.config;
    kh_result result = tokens != NULL ? KH_OK : KH_E_MEMORY;
    size_t count = 0;

    for (size_t i = 0; i < config->identity_count && result == KH_OK; i++) {
        if (config->identities[i].token != NULL) {
            tokens[count].identity = (uint32_t)i;
            memcpy(tokens[count++].secret, supervisor->settings.credentials[i].secret, KH_TOKEN_SECRET_LEN);
        }
        if (count == KH_BOOT_TOKENS || (count > 0 && i + 1 == config->identity_count)) {
            result = kh_channel_send(supervisor->front.channel_fd, KH_MSG_TOKENS, tokens,
                                     count * sizeof *tokens, NULL, 0);
            count = 0;
        }
    }
    if (count > 0 && result == KH_OK) {
        result = kh_channel_send(supervisor->front.channel_fd, KH_MSG_TOKENS, tokens, count * sizeof *tokens,
                                 NULL, 0);
    }
    kh_secret_free(tokens, KH_BOOT_TOKENS * sizeof *tokens);
    return result;
}

static kh_result send_materials(kh_supervisor *supervisor)
{
    const kh_settings *settings = &supervisor->settings;
    kh_result result = KH_OK;

    for (size_t i = 0; i < settings->config->listener_count && result == KH_OK; i++) {
        if (settings->materials[i].key != NULL) {
            result = kh_material_send(&settings->materials[i], supervisor->front.channel_fd, (uint32_t)i);
        }
    }
    return result;
}

kh_result kh_settings_send(kh_supervisor *supervisor, size_t first_socket)
{
    kh_result result = send_config(supervisor);

    if (result == KH_OK) {
        result = send_tokens(supervisor);
    }
    if (result == KH_OK) {
        result = send_materials(supervisor);
    }
    for (size_t i = first_socket; i < supervisor->socket_count && result == KH_OK; i++) {
        const kh_socket *sock = &supervisor->sockets[i];

        result = kh_channel_send(supervisor->front.channel_fd, KH_MSG_LISTENER, sock->address,
                                 strlen(sock->address), &sock->fd, 1);
    }
    if (result == KH_OK) {
        result = kh_metrics_send(supervisor);
    }
    if (result == KH_OK) {
        result = kh_channel_send(supervisor->front.channel_fd, KH_MSG_COMMIT, NULL, 0, NULL, 0);
    }
    return result;
}

static bool differs(const char *a, const char *b)
{
    return (a == NULL) != (b == NULL) || (a != NULL && strcmp(a, b) != 0);
}

/* What a running agent cannot change is left as it was, and said. */
static void warn_restart(const kh_supervisor *supervisor, const kh_config *old, const kh_config *new)
{
    const struct {
        const char *name;
        bool changed;
        const char *means; /* NULL: as most */
    } table[] = {
        {"store", differs(old->store, new->store), NULL},
        {"kek_file", differs(old->kek_file, new->kek_file), NULL},
        {"kek_passphrase_file", differs(old->kek_passphrase_file, new->kek_passphrase_file), NULL},
        {"admin_socket", differs(old->admin_socket, new->admin_socket), NULL},
        {"front_user", differs(old->front_user, new->front_user), NULL},
        {"keeper_user", differs(old->keeper_user, new->keeper_user), NULL},
        {"workers", old->workers != new->workers, NULL},
        {"kernels", old->kernels != new->kernels, NULL},
        {"batch_window_us", old->batch_window_us != new->batch_window_us, NULL},
        {"cache_keys", old->cache_keys != new->cache_keys, NULL},
        {"token", !supervisor->has_tokens && new->token_count > 0,
         "an agent that began without tokens is confined too tightly to start a vendor's library: no token is there until it is "
         "restarted; from then on SIGHUP adds others"},
        {"max_connections",
         old->max_connections < new->max_connections, NULL}, /* the front's limit of descriptors */
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].changed) {
            kh_log(KH_LOG_WARN, "restart_needed", KH_LT("option", table[i].name),
                   KH_LT("means", table[i].means != NULL ? table[i].means : "the old value stays until the agent is restarted"));
        }
    }
}

kh_result kh_settings_reload(kh_supervisor *supervisor, char *error)
{
    size_t before = supervisor->socket_count;
    kh_settings next, old = supervisor->settings;
    /* Where no token may be started its PIN is of no use, and its file perhaps out of reach (kh_settings_confine). */
    kh_result result = kh_settings_load(supervisor->options->config_path, supervisor->has_tokens, &next, error);

    if (result != KH_OK) {
        return result;
    }
    for (size_t i = 0; i < next.config->token_count && result == KH_OK; i++) {
        result = check_token(next.config, &next.config->tokens[i], false, error);
    }
    if (result == KH_OK) {
        result = open_sockets(supervisor, next.config, error);
    }
    if (result == KH_OK && (result = kh_metrics_open(supervisor, next.config, error)) != KH_OK) {
        drop_sockets(supervisor, before);
    }
    if (result != KH_OK) {
        kh_settings_free(&next);
        return result;
    }
    warn_restart(supervisor, supervisor->first != NULL ? supervisor->first : old.config, next.config);
    log_warnings(&next);
    supervisor->settings = next;
    kh_log_init("supervisor", next.config->log_level, next.config->log_format == KH_FORMAT_JSON);
    /* A front that is not there or does not take it gets it at its next start. */
    if (supervisor->front.pid != 0 && kh_settings_send(supervisor, before) != KH_OK) {
        kh_child_kill(&supervisor->front, "does not take its configuration");
    }
    kh_tokens_change(supervisor, &old);
    close_sockets(supervisor);
    kh_metrics_close(supervisor, supervisor->settings.config);
    if (supervisor->first == NULL) { /* it stays, for warn_restart */
        kh_materials_free(old.materials, old.config->listener_count);
        old.materials = NULL;
        supervisor->first = old.config;
        old.config = NULL;
    }
    kh_settings_free(&old);
    return KH_OK;
}

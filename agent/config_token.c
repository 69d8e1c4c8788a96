/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `token` and `pool` blocks of the configuration. Which token is meant is said by its label or serial number, or by a pkcs11:
 * URI (RFC 7512), which fills the same fields: never by a slot's number, which changes.
 */
#include "config_syntax.h"
#include <p11-kit/pkcs11.h>
#include <p11-kit/uri.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIN_FILE_PREFIX "file:"

int kh_config_find_token(const kh_config *config, const char *name)
{
    for (size_t i = 0; i < config->token_count; i++) {
        if (strcmp(config->tokens[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* ---- URIs ---- */

/* A value of the URI for a field that the block may have set itself: then they must agree. */
static kh_result fill(const kh_config *config, const kh_config_token *token, char **field, const char *option,
                      const char *value, size_t len, char *error)
{
    if (*field == NULL) {
        *field = strndup(value, len);
        return *field != NULL ? KH_OK : KH_E_MEMORY;
    }
    return strlen(*field) == len && memcmp(*field, value, len) == 0
               ? KH_OK
               : kh_config_fail(config, token->line, error, "the uri says another one than the block: ", option);
}

/* CK_TOKEN_INFO's fields have a fixed length, and blanks at their end. */
static size_t field_len(const unsigned char *field, size_t size)
{
    while (size > 0 && (field[size - 1] == ' ' || field[size - 1] == '\0')) {
        size--;
    }
    return size;
}

static kh_result take_uri_fields(const kh_config *config, P11KitUri *uri, kh_config_token *token, char *error)
{
    const CK_TOKEN_INFO *info = p11_kit_uri_get_token_info(uri);
    const char *module = p11_kit_uri_get_module_path(uri), *pin = p11_kit_uri_get_pin_source(uri);
    size_t label = field_len(info->label, sizeof info->label),
           serial = field_len(info->serialNumber, sizeof info->serialNumber);
    kh_result result = KH_OK;

    if (p11_kit_uri_get_pin_value(uri) != NULL) {
        return kh_config_fail(config, token->line, error,
                              "a PIN does not belong into the configuration: use pin_file instead of the uri's pin-value",
                              "");
    }
    if (label > 0) {
        result = fill(config, token, &token->label, "label", (const char *)info->label, label, error);
    }
    if (result == KH_OK && serial > 0) {
        result = fill(config, token, &token->serial, "serial", (const char *)info->serialNumber, serial, error);
    }
    if (result == KH_OK && module != NULL) {
        result = fill(config, token, &token->module, "module", module, strlen(module), error);
    }
    if (result == KH_OK && pin != NULL) {
        pin += strncmp(pin, PIN_FILE_PREFIX, strlen(PIN_FILE_PREFIX)) == 0 ? strlen(PIN_FILE_PREFIX) : 0;
        result = fill(config, token, &token->pin_file, "pin_file", pin, strlen(pin), error);
    }
    return result;
}

static kh_result take_uri(const kh_config *config, const char *text, kh_config_token *token, char *error)
{
    P11KitUri *uri = p11_kit_uri_new();
    kh_result result = KH_E_MEMORY;
    int parsed = 0;

    if (uri == NULL) {
        return result;
    }
    parsed = p11_kit_uri_parse(text, P11_KIT_URI_FOR_TOKEN | P11_KIT_URI_FOR_MODULE_WITH_VERSION, uri);
    if (parsed == P11_KIT_URI_OK && p11_kit_uri_any_unrecognized(uri) == 0) {
        result = take_uri_fields(config, uri, token, error);
    } else if (parsed != P11_KIT_URI_NO_MEMORY) {
        result = kh_config_fail(config, token->line, error,
                                "uri: not a pkcs11: URI of a token (RFC 7512), as "
                                "\"pkcs11:token=LABEL;serial=NUMBER\": ",
                                text);
    }
    p11_kit_uri_free(uri);
    return result;
}

/* ---- Tokens ---- */

static kh_result take_string(cfg_t *cfg, const char *option, char **field)
{
    const char *value = cfg_getstr(cfg, option);

    if (value == NULL) {
        return KH_OK;
    }
    *field = strdup(value);
    return *field != NULL ? KH_OK : KH_E_MEMORY;
}

static kh_result take_list(cfg_t *cfg, const char *option, char ***list, size_t *count)
{
    unsigned size = cfg_size(cfg, option);

    *list = calloc(size + 1, sizeof **list);
    if (*list == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < size; i++) {
        (*list)[i] = strdup(cfg_getnstr(cfg, option, i));
        if ((*list)[i] == NULL) {
            return KH_E_MEMORY;
        }
        (*count)++;
    }
    return KH_OK;
}

static kh_result check_token(const kh_config *config, const kh_config_token *token, char *error)
{
    if (token->module == NULL) {
        return kh_config_fail(config, token->line, error, "needs `module`, the path of its PKCS#11 library: token ",
                              token->name);
    }
    if (token->module[0] != '/') {
        return kh_config_fail(config, token->line, error, "not an absolute path: module ", token->module);
    }
    if (token->label == NULL && token->serial == NULL) {
        return kh_config_fail(config, token->line, error,
                              "needs `label`, `serial` or `uri`, which say which of the library's tokens it is: token ",
                              token->name);
    }
    if (token->label != NULL && strlen(token->label) > sizeof((CK_TOKEN_INFO *)0)->label) {
        return kh_config_fail(config, token->line, error, "longer than a token's label can be (32 bytes): ", token->label);
    }
    if (token->serial != NULL && strlen(token->serial) > sizeof((CK_TOKEN_INFO *)0)->serialNumber) {
        return kh_config_fail(config, token->line, error, "longer than a serial number can be (16 bytes): ",
                              token->serial);
    }
    if (token->pin_file != NULL && strcmp(token->pin_file, "-") == 0) {
        return kh_config_fail(config, token->line, error, "a PIN cannot be asked for on the terminal: token ", token->name);
    }
    /* The same token under two names would be opened by two keepers, which get into each other's way. */
    for (const kh_config_token *other = config->tokens; other < token; other++) {
        if (strcmp(other->module, token->module) == 0 && other->label != NULL && token->label != NULL &&
            strcmp(other->label, token->label) == 0 && other->serial == NULL && token->serial == NULL &&
            other->env_count == 0 && token->env_count == 0) {
            return kh_config_fail(config, token->line, error, "is the same token as another block's: token ", token->name);
        }
    }
    return KH_OK;
}

static kh_result take_token(const kh_config *config, cfg_t *cfg, kh_config_token *token, char *error)
{
    const char *uri = cfg_getstr(cfg, "uri");
    char *pin_file = NULL;
    kh_result result = KH_OK;

    token->line = (unsigned)cfg->line;
    token->sessions = cfg_getint(cfg, "sessions");
    token->call_timeout_ms = cfg_getint(cfg, "call_timeout_ms");
    token->confine_strict = strcmp(cfg_getstr(cfg, "confine"), "strict") == 0;
    token->name = strdup(cfg_title(cfg));
    if (token->name == NULL) {
        return KH_E_MEMORY;
    }
    if ((result = take_string(cfg, "module", &token->module)) != KH_OK ||
        (result = take_string(cfg, "label", &token->label)) != KH_OK ||
        (result = take_string(cfg, "serial", &token->serial)) != KH_OK ||
        (result = take_string(cfg, "user", &token->user)) != KH_OK ||
        (result = take_string(cfg, "pin_file", &token->pin_file)) != KH_OK ||
        (result = take_list(cfg, "env", &token->env, &token->env_count)) != KH_OK ||
        (result = take_list(cfg, "paths", &token->paths, &token->path_count)) != KH_OK ||
        (uri != NULL && (result = take_uri(config, uri, token, error)) != KH_OK)) {
        return result;
    }
    if (token->pin_file != NULL) {
        pin_file = kh_config_absolute(config, token->pin_file);
        if (pin_file == NULL) {
            return KH_E_MEMORY;
        }
        free(token->pin_file);
        token->pin_file = pin_file;
    }
    return check_token(config, token, error);
}

/* ---- Pools ---- */

static kh_result take_partition(const kh_config *config, const char *name, kh_config_pool *pool, char *error)
{
    int index = kh_config_find_token(config, name);

    if (index < 0) {
        return kh_config_fail(config, pool->line, error, "partitions: there is no token ", name);
    }
    for (const kh_config_pool *other = config->pools; other <= pool; other++) {
        for (size_t i = 0; i < other->partition_count; i++) {
            if (other->partitions[i] == (size_t)index) {
                return kh_config_fail(config, pool->line, error,
                                      other == pool ? "partitions: is there twice: token "
                                                    : "partitions: belongs to another pool already: token ",
                                      name);
            }
        }
    }
    pool->partitions[pool->partition_count++] = (size_t)index;
    return KH_OK;
}

static kh_result take_pool(const kh_config *config, cfg_t *cfg, kh_config_pool *pool, char *error)
{
    unsigned count = cfg_size(cfg, "partitions");
    kh_result result = KH_OK;

    pool->line = (unsigned)cfg->line;
    pool->quorum = cfg_getint(cfg, "quorum");
    pool->name = strdup(cfg_title(cfg));
    if (pool->name == NULL) {
        return KH_E_MEMORY;
    }
    if (kh_config_find_token(config, pool->name) >= 0) {
        return kh_config_fail(config, pool->line, error, "a token has this name already: pool ", pool->name);
    }
    if (count < 2 || count > KH_PARTITIONS_MAX) {
        return kh_config_fail(config, pool->line, error, "needs `partitions`, the names of 2 to 16 tokens: pool ",
                              pool->name);
    }
    for (unsigned i = 0; i < count && result == KH_OK; i++) {
        result = take_partition(config, cfg_getnstr(cfg, "partitions", i), pool, error);
    }
    if (result == KH_OK && pool->quorum > (long)pool->partition_count) {
        result = kh_config_fail(config, pool->line, error, "quorum: more than it has partitions: pool ", pool->name);
    }
    pool->quorum = pool->quorum > 0 ? pool->quorum : (long)pool->partition_count / 2 + 1;
    return result;
}

kh_result kh_config_take_tokens(kh_config *config, cfg_t *cfg, char *error)
{
    unsigned tokens = cfg_size(cfg, "token"), pools = cfg_size(cfg, "pool");
    kh_result result = KH_OK;

    if (tokens > KH_TOKENS_MAX || pools > KH_POOLS_MAX) {
        return kh_config_fail(config, 0, error, "too many `token` or `pool` blocks", "");
    }
    config->tokens = calloc(KH_TOKENS_MAX, sizeof *config->tokens);
    config->pools = calloc(KH_POOLS_MAX, sizeof *config->pools);
    if (config->tokens == NULL || config->pools == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < tokens && result == KH_OK; i++) {
        config->token_count++;
        result = take_token(config, cfg_getnsec(cfg, "token", i), &config->tokens[i], error);
    }
    for (unsigned i = 0; i < pools && result == KH_OK; i++) {
        config->pool_count++;
        result = take_pool(config, cfg_getnsec(cfg, "pool", i), &config->pools[i], error);
    }
    return result;
}

static void free_list(char **list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(list[i]);
    }
    free(list);
}

void kh_config_free_tokens(kh_config *config)
{
    for (size_t i = 0; i < config->token_count; i++) {
        kh_config_token *token = &config->tokens[i];

        free(token->name);
        free(token->module);
        free(token->label);
        free(token->serial);
        free(token->pin_file);
        free(token->user);
        free_list(token->env, token->env_count);
        free_list(token->paths, token->path_count);
    }
    for (size_t i = 0; i < config->pool_count; i++) {
        free(config->pools[i].name);
    }
    free(config->tokens);
    free(config->pools);
}

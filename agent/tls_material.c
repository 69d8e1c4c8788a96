/* SPDX-License-Identifier: Apache-2.0 */
/* The certificates and the key of a TCP listener: from files, through the channel, into a kh_tls_server. */
#include "tls_material.h"
#include "../protocol/tls/files.h"
#include "boot.h"
#include "credentials.h"
#include "secret.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SOON_PART 10 /* a certificate that is in the last part of its life is worth a word */

/* Where the supervisor is, for messages. */
typedef struct reading {
    const kh_config *config;
    const kh_config_listener *listener;
    char *error;
} reading;

static kh_result fail(const reading *at, const char *option, const char *path, kh_result why)
{
    snprintf(at->error, KH_CONFIG_ERROR_MAX, "%.150s:%u: %s %.150s: %.100s", at->config->path, at->listener->line, option,
             path, kh_tls_file_text(why));
    return why;
}

/* ---- Reading ---- */

static kh_result read_file(const reading *at, const char *option, const char *path, bool is_key, kh_tls_file *file)
{
    char resolved[4096];
    kh_result result = KH_E_IO;

    errno = ENOENT;
    if (kh_credential_resolve(path, resolved, sizeof resolved)) {
        errno = 0;
        result = kh_tls_file_read(resolved, is_key, file);
    }
    return result == KH_OK ? KH_OK : fail(at, option, path, result);
}

/* The key as DER in locked memory. */
static kh_result take_key(const reading *at, kh_material *material)
{
    const char *path = at->listener->certificate_key;
    kh_tls_file file = {0};
    EVP_PKEY *key = NULL;
    PKCS8_PRIV_KEY_INFO *info = NULL;
    kh_result result = read_file(at, "certificate_key", path, true, &file);
    uint8_t *to = NULL;
    int len = 0;

    if (result != KH_OK) {
        return result;
    }
    result = kh_tls_key_parse(kh_tls_file_bytes(&file), NULL, &key);
    kh_tls_file_free(&file);
    if (result == KH_OK) {
        info = EVP_PKEY2PKCS8(key);
        len = info != NULL ? i2d_PKCS8_PRIV_KEY_INFO(info, NULL) : 0;
        result = len <= 0 ? KH_E_MALFORMED : len > KH_MATERIAL_KEY_MAX ? KH_E_TOO_LARGE : KH_OK;
    }
    if (result == KH_OK && (material->key = kh_secret_alloc(KH_MATERIAL_KEY_MAX, NULL)) == NULL) {
        result = KH_E_MEMORY;
    }
    if (result == KH_OK) {
        to = material->key;
        material->key_len = (size_t)i2d_PKCS8_PRIV_KEY_INFO(info, &to);
    }
    PKCS8_PRIV_KEY_INFO_free(info); /* cleanses it */
    EVP_PKEY_free(key);
    return result == KH_OK ? KH_OK : fail(at, "certificate_key", path, result);
}

static kh_result seal(kh_bytes bytes, int *fd)
{
    size_t at = 0;

    *fd = memfd_create("keyhold-certificates", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    while (*fd >= 0 && at < bytes.len) {
        ssize_t put = write(*fd, bytes.data + at, bytes.len - at);

        if (put <= 0) {
            return KH_E_MEMORY;
        }
        at += (size_t)put;
    }
    return *fd >= 0 && fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0
               ? KH_OK
               : KH_E_MEMORY;
}

static void add_warning(const reading *at, kh_material *material, const char *option, const char *path, const char *what,
                        time_t when)
{
    struct tm parts;
    char text[32] = "";

    if (material->warning[0] == '\0' && gmtime_r(&when, &parts) != NULL) {
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
        snprintf(material->warning, sizeof material->warning, "%.150s:%u: %s %.150s: %s %s", at->config->path,
                 at->listener->line, option, path, what, text);
    }
}

/* Does with the files what the front will do, and looks at the dates. */
static kh_result check(const reading *at, kh_material *material, const kh_tls_parts *parts)
{
    const kh_config_listener *listener = at->listener;
    const struct {
        const char *option, *path;
    } table[] = {{"certificate", listener->certificate},
                 {"certificate_key", listener->certificate_key},
                 {"client_ca", listener->client_ca},
                 {"client_crl", listener->client_crl}};
    time_t now = time(NULL), begins = 0, ends = 0, crl_until = 0;
    kh_tls_server *server = NULL;
    const char *part = "certificate";
    kh_result result = kh_tls_server_new(parts, &server, &part);

    for (size_t i = 0; i < sizeof table / sizeof *table && result != KH_OK; i++) {
        if (strcmp(table[i].option, part) == 0) {
            return fail(at, table[i].option, table[i].path, result);
        }
    }
    kh_tls_server_dates(server, &begins, &ends, &crl_until);
    kh_tls_server_free(server);
    if (ends <= now) {
        add_warning(at, material, "certificate", listener->certificate, "no caller accepts it: it expired", ends);
    } else if (begins > now) {
        add_warning(at, material, "certificate", listener->certificate, "no caller accepts it before", begins);
    }
    if (crl_until != 0 && crl_until <= now) {
        add_warning(at, material, "client_crl", listener->client_crl,
                    "every caller is refused: the list was to be renewed", crl_until);
    }
    if (ends - now <= (ends - begins) / SOON_PART) {
        add_warning(at, material, "certificate", listener->certificate, "it expires soon:", ends);
    }
    return KH_OK;
}

kh_result kh_material_load(const kh_config *config, const kh_config_listener *listener, kh_material *material,
                           char *error)
{
    const reading at = {config, listener, error};
    const struct {
        const char *option, *path;
        int *fd;
    } table[] = {{"certificate", listener->certificate, &material->certificate_fd},
                 {"client_ca", listener->client_ca, &material->ca_fd},
                 {"client_crl", listener->client_crl, &material->crl_fd}};
    kh_tls_file files[3] = {{0}};
    kh_tls_parts parts = {0};
    kh_result result = KH_OK;

    *material = (kh_material){.certificate_fd = -1, .ca_fd = -1, .crl_fd = -1};
    for (size_t i = 0; i < 3 && result == KH_OK; i++) {
        if (table[i].path == NULL) {
            continue;
        }
        result = read_file(&at, table[i].option, table[i].path, false, &files[i]);
        if (result == KH_OK && (result = seal(kh_tls_file_bytes(&files[i]), table[i].fd)) != KH_OK) {
            fail(&at, table[i].option, table[i].path, result);
        }
    }
    if (result == KH_OK) {
        result = take_key(&at, material);
    }
    if (result == KH_OK) {
        parts = (kh_tls_parts){.certificate = kh_tls_file_bytes(&files[0]),
                               .key = {material->key, material->key_len},
                               .ca = kh_tls_file_bytes(&files[1]),
                               .crl = kh_tls_file_bytes(&files[2])};
        result = check(&at, material, &parts);
    }
    for (size_t i = 0; i < 3; i++) {
        kh_tls_file_free(&files[i]);
    }
    if (result != KH_OK) {
        kh_material_free(material);
    }
    return result;
}

void kh_material_free(kh_material *material)
{
    const int fds[] = {material->certificate_fd, material->ca_fd, material->crl_fd};

    for (size_t i = 0; i < 3; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    kh_secret_free(material->key, KH_MATERIAL_KEY_MAX);
    *material = (kh_material){.certificate_fd = -1, .ca_fd = -1, .crl_fd = -1};
}

kh_result kh_materials_load(const kh_config *config, kh_material **out, char *error)
{
    kh_material *materials = calloc(config->listener_count, sizeof *materials);
    kh_result result = KH_OK;

    *out = NULL;
    if (materials == NULL) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "%.200s: out of memory", config->path);
        return KH_E_MEMORY;
    }
    for (size_t i = 0; i < config->listener_count; i++) {
        materials[i] = (kh_material){.certificate_fd = -1, .ca_fd = -1, .crl_fd = -1};
    }
    for (size_t i = 0; i < config->listener_count && result == KH_OK; i++) {
        if (config->listeners[i].path == NULL) {
            result = kh_material_load(config, &config->listeners[i], &materials[i], error);
        }
    }
    if (result != KH_OK) {
        kh_materials_free(materials, config->listener_count);
        return result;
    }
    *out = materials;
    return KH_OK;
}

void kh_materials_free(kh_material *materials, size_t count)
{
    for (size_t i = 0; materials != NULL && i < count; i++) {
        kh_material_free(&materials[i]);
    }
    free(materials);
}

/* ---- Through the channel ---- */

kh_result kh_material_send(const kh_material *material, int channel_fd, uint32_t listener)
{
    const kh_boot_tls head = {.listener = listener, .has_crl = material->crl_fd >= 0};
    const int fds[] = {material->certificate_fd, material->ca_fd, material->crl_fd};
    uint8_t *payload = kh_secret_alloc(KH_CHANNEL_PAYLOAD_MAX, NULL);
    kh_result result = KH_E_MEMORY;

    if (payload != NULL) {
        memcpy(payload, &head, sizeof head);
        memcpy(payload + sizeof head, material->key, material->key_len);
        result = kh_channel_send(channel_fd, KH_MSG_TLS, payload, sizeof head + material->key_len, fds,
                                 head.has_crl != 0 ? 3 : 2);
    }
    kh_secret_free(payload, KH_CHANNEL_PAYLOAD_MAX);
    return result;
}

/* The bytes of a memory file; data NULL: it cannot be. */
static kh_bytes map(int fd)
{
    off_t size = lseek(fd, 0, SEEK_END);
    void *data = size > 0 && size <= KH_TLS_FILE_MAX ? mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;

    return data != MAP_FAILED ? (kh_bytes){data, (size_t)size} : (kh_bytes){NULL, 0};
}

static void unmap(kh_bytes bytes)
{
    if (bytes.data != NULL) {
        munmap((void *)(uintptr_t)bytes.data, bytes.len);
    }
}

kh_result kh_material_receive(const kh_channel_message *message, uint32_t *listener, kh_tls_server **server)
{
    kh_tls_parts parts = {0};
    kh_boot_tls head;
    kh_result result = KH_E_MALFORMED;

    *server = NULL;
    if (message->len <= sizeof head) {
        return result;
    }
    memcpy(&head, message->payload, sizeof head);
    *listener = head.listener;
    if (message->fd_count != (head.has_crl != 0 ? 3u : 2u)) {
        return result;
    }
    parts.key = (kh_bytes){message->payload + sizeof head, message->len - sizeof head};
    parts.certificate = map(message->fds[0]);
    parts.ca = map(message->fds[1]);
    parts.crl = head.has_crl != 0 ? map(message->fds[2]) : (kh_bytes){NULL, 0};
    if (parts.certificate.data != NULL && parts.ca.data != NULL && (parts.crl.data != NULL) == (head.has_crl != 0)) {
        result = kh_tls_server_new(&parts, server, NULL);
    }
    unmap(parts.certificate);
    unmap(parts.ca);
    unmap(parts.crl);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the key-encryption key and the tokens: files, systemd credentials, or a passphrase from the
 * terminal.
 */
#include "credentials.h"
#include "secret.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define KEK_LEN 32
#define CTRL_C 0x03
#define PREFIX "credential:"
#define ENV_PREFIX "env:"

bool kh_credential_resolve(const char *path, char *out, size_t cap)
{
    const char *dir = getenv("CREDENTIALS_DIRECTORY");

    if (strncmp(path, PREFIX, strlen(PREFIX)) != 0) {
        return (size_t)snprintf(out, cap, "%s", path) < cap;
    }
    path += strlen(PREFIX);
    if (dir == NULL || path[0] == '\0' || strchr(path, '/') != NULL) {
        return false;
    }
    return (size_t)snprintf(out, cap, "%s/%s", dir, path) < cap;
}

static kh_result say(char *error, const char *path, kh_result why)
{
    const char *text = kh_result_text(why);

    if (why == KH_E_IO) {
        text = errno != 0 ? strerror(errno) : "cannot be read";
    } else if (why == KH_E_FORBIDDEN) {
        text = "others may read it: chmod 600";
    } else if (why == KH_E_MALFORMED) {
        text = "it is not a file of that kind";
    }
    snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s", path, text);
    return why;
}

/* Reads up to the first newline. interrupt: the byte that gives up; 0: none does. */
static kh_result read_line(int fd, uint8_t interrupt, uint8_t *line, size_t cap, size_t *len)
{
    while (*len < cap) {
        ssize_t got = read(fd, line + *len, 1);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return KH_E_IO;
        }
        if (got == 0 || line[*len] == '\n') {
            return *len > 0 ? KH_OK : KH_E_MALFORMED;
        }
        if (interrupt != 0 && line[*len] == interrupt) {
            return KH_E_CANCELLED;
        }
        (*len)++;
    }
    return KH_E_TOO_LARGE;
}

static kh_result ask(kh_kek *kek)
{
    static const char prompt[] = "Keyhold store passphrase: ";
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    struct termios old, quiet;
    kh_result result = KH_E_IO;

    if (fd < 0 || tcgetattr(fd, &old) != 0) {
        goto done;
    }
    quiet = old;
    quiet.c_lflag &= ~(tcflag_t)(ECHO | ISIG); /* without ISIG ^C cannot leave the echo switched off; */
    quiet.c_cc[VEOL] = CTRL_C;                 /* it ends the line instead */
    if (tcsetattr(fd, TCSAFLUSH, &quiet) == 0 && write(fd, prompt, sizeof prompt - 1) > 0) {
        result = read_line(fd, CTRL_C, kek->secret, KH_PASSPHRASE_MAX, &kek->len);
    }
    tcsetattr(fd, TCSAFLUSH, &old);
    (void)!write(fd, "\n", 1);
done:
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

/* The first line of a file that nobody else may read. */
static kh_result read_secret_line(const char *path, uint8_t *line, size_t cap, size_t *len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    kh_result result = KH_E_IO;
    struct stat st;

    if (fd >= 0 && fstat(fd, &st) == 0) {
        errno = 0;
        result = !S_ISREG(st.st_mode)      ? KH_E_MALFORMED
                 : (st.st_mode & 077) != 0 ? KH_E_FORBIDDEN
                                           : read_line(fd, 0, line, cap, len);
    }
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

const char *kh_kek_source(const kh_config *config)
{
    return config->kek_file != NULL ? config->kek_file : config->kek_passphrase_file;
}

kh_result kh_kek_load(const kh_config *config, kh_kek *kek, char *error)
{
    const char *name = kh_kek_source(config);
    char path[4096];
    kh_result result = KH_OK;

    kek->kind = config->kek_file != NULL ? KH_KEK_FILE : KH_KEK_PASSPHRASE;
    kek->len = 0;
    kek->secret = kh_secret_alloc(KH_PASSPHRASE_MAX, NULL);
    if (kek->secret == NULL) {
        return say(error, name, KH_E_MEMORY);
    }
    if (strcmp(name, "-") == 0) {
        result = ask(kek);
        name = "the terminal";
    } else if (!kh_credential_resolve(name, path, sizeof path)) {
        result = KH_E_IO;
        errno = ENOENT;
    } else if (kek->kind == KH_KEK_FILE) {
        errno = 0;
        result = kh_kek_file_load(path, kek->secret);
        kek->len = KEK_LEN;
    } else {
        result = read_secret_line(path, kek->secret, KH_PASSPHRASE_MAX, &kek->len);
    }
    if (result != KH_OK) {
        say(error, name, result);
        kh_kek_free(kek);
    }
    return result;
}

void kh_kek_free(kh_kek *kek)
{
    kh_secret_free(kek->secret, KH_PASSPHRASE_MAX);
    kek->secret = NULL;
    kek->len = 0;
}

static kh_result load_pin(const char *name, kh_pin *pin, char *path, size_t path_cap)
{
    const char *value = NULL;

    pin->len = 0;
    snprintf(path, path_cap, "%s", name);
    if (strncmp(name, ENV_PREFIX, strlen(ENV_PREFIX)) == 0) {
        value = getenv(name + strlen(ENV_PREFIX));
        pin->len = value != NULL ? strnlen(value, KH_PIN_MAX + 1) : 0;
        if (pin->len == 0 || pin->len > KH_PIN_MAX) {
            errno = ENOENT;
            return value == NULL ? KH_E_IO : KH_E_MALFORMED;
        }
        memcpy(pin->text, value, pin->len);
        return KH_OK;
    }
    errno = ENOENT;
    if (!kh_credential_resolve(name, path, path_cap)) {
        return KH_E_IO;
    }
    return read_secret_line(path, pin->text, KH_PIN_MAX, &pin->len);
}

kh_result kh_pins_load(const kh_config *config, kh_pin *pins, char *error)
{
    char path[4096], what[KH_CONFIG_ERROR_MAX];
    kh_result result = KH_OK;

    for (size_t i = 0; i < config->token_count && result == KH_OK; i++) {
        const kh_config_token *token = &config->tokens[i];

        if (token->pin_file == NULL) {
            continue;
        }
        pins[i].present = true;
        result = load_pin(token->pin_file, &pins[i], path, sizeof path);
        if (result != KH_OK) {
            say(what, path, result);
            snprintf(error, KH_CONFIG_ERROR_MAX, "%.200s:%u: the PIN of token %s: %.200s", config->path, token->line,
                     token->name, what);
        }
    }
    return result;
}

kh_result kh_tokens_load(const kh_config *config, kh_credential *credentials, char *error)
{
    char path[4096], what[KH_CONFIG_ERROR_MAX];
    kh_result result = KH_OK;

    for (size_t i = 0; i < config->identity_count && result == KH_OK; i++) {
        const kh_config_identity *identity = &config->identities[i];

        if (identity->token == NULL) {
            continue;
        }
        if (!kh_credential_resolve(identity->token, path, sizeof path)) {
            errno = ENOENT;
            result = KH_E_IO;
            snprintf(path, sizeof path, "%s", identity->token);
        } else {
            errno = 0;
            result = kh_credential_load(path, &credentials[i]);
        }
        if (result != KH_OK) {
            say(what, path, result);
        } else if (strcmp(credentials[i].identity, identity->name) != 0) {
            result = KH_E_MISMATCH;
            snprintf(what, sizeof what, "the token %.200s is for identity \"%s\", not \"%s\"", path,
                     credentials[i].identity, identity->name);
        }
        if (result != KH_OK) {
            snprintf(error, KH_CONFIG_ERROR_MAX, "%.200s:%u: %.300s", config->path, identity->line, what);
        }
    }
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Secrets in keyholdctl: locked pages, reading them from files, the environment and the terminal, and wiping
 * them. */
#include "secret.h"

#include <errno.h>
#include <fcntl.h>
#include <keyhold/keystore.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

void ctl_secret_harden(void)
{
    struct rlimit limit = {0, 0};

    (void)setrlimit(RLIMIT_CORE, &limit);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    kh_secure_openssl(); /* OpenSSL's own copies of a key are wiped too, whoever frees them */
    /*
     * Everything is locked only where no later allocation can then fail for want of locked memory. That is
     * known when the limit could be lifted; else the secrets' own pages are locked and OpenSSL's copies only
     * wiped.
     */
    limit.rlim_cur = limit.rlim_max = RLIM_INFINITY;
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 && getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_MEMLOCK, &limit);
    }
    if (limit.rlim_cur == RLIM_INFINITY) {
        (void)mlockall(MCL_CURRENT | MCL_FUTURE);
    }
}

/* Pages of their own, so that locking and unlocking one secret does not unlock its neighbour. */
static size_t pages(size_t cap)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    return (cap + 1 + page - 1) / page * page;
}

kh_result ctl_secret_new(size_t cap, ctl_secret *secret)
{
    void *data = NULL;

    if (cap > 64u * 1024 * 1024) {
        return KH_E_MEMORY;
    }
    data = mmap(NULL, pages(cap), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return KH_E_MEMORY;
    }
    (void)mlock(data, pages(cap)); /* an ordinary user's limit may be used up: the wiping still holds */
    (void)madvise(data, pages(cap), MADV_DONTDUMP);
    secret->data = data;
    secret->len = 0;
    secret->cap = cap;
    return KH_OK;
}

void ctl_secret_free(ctl_secret *secret)
{
    if (secret->data != NULL) {
        OPENSSL_cleanse(secret->data, secret->cap + 1);
        (void)munmap(secret->data, pages(secret->cap));
    }
    memset(secret, 0, sizeof(*secret));
}

/* Plain read(2): stdio would keep a copy of the secret in a buffer of its own. */
static kh_result read_all(int fd, ctl_secret *secret)
{
    while (secret->len < secret->cap) {
        ssize_t got = read(fd, secret->data + secret->len, secret->cap - secret->len);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return KH_E_IO;
        }
        if (got == 0) {
            break;
        }
        secret->len += (size_t)got;
    }
    secret->data[secret->len] = 0;
    return KH_OK;
}

kh_result ctl_secret_read_file(const char *path, size_t max, ctl_secret *secret, ctl_error *error)
{
    kh_result result = KH_E_IO;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0) {
        result = errno == EACCES ? KH_E_FORBIDDEN : KH_E_IO;
        ctl_fail(error, result, "cannot open %s: %s; %s", path, strerror(errno),
                 result == KH_E_FORBIDDEN ? "run this as a user who may read it" : "check the name");
        goto done;
    }
    result = ctl_secret_new(max + 1, secret);
    if (result != KH_OK) {
        ctl_fail(error, result, "cannot read %s: out of memory", path);
        goto done;
    }
    result = read_all(fd, secret);
    if (result != KH_OK) {
        ctl_fail(error, result, "cannot read %s: %s; check the file", path, strerror(errno));
        goto done;
    }
    if (secret->len > max) {
        result = ctl_fail(error, KH_E_TOO_LARGE,
                          "cannot read %s: it is larger than %zu bytes; is it the right file?", path, max);
    }
done:
    if (fd >= 0) {
        close(fd);
    }
    if (result != KH_OK) {
        ctl_secret_free(secret);
    }
    return result;
}

/* One line from the terminal without echo, the newline included; the terminal's settings are put back in any
 * case. */
static kh_result read_hidden_line(int tty, const char *prompt, ctl_secret *secret)
{
    struct termios before;
    struct termios hidden;
    kh_result result = KH_OK;

    if (tcgetattr(tty, &before) != 0) {
        return KH_E_IO;
    }
    hidden = before;
    hidden.c_lflag &=
        ~(tcflag_t)(ECHO | ISIG); /* without ISIG an interrupt cannot leave the echo switched off */
    hidden.c_cc[VEOL] = 0x03;     /* ^C ends the line, else it would wait for the end of it */
    /* The prompt last: what is typed after it is not flushed, and not shown. */
    if (tcsetattr(tty, TCSAFLUSH, &hidden) != 0 || dprintf(tty, "%s: ", prompt) < 0) {
        (void)tcsetattr(tty, TCSAFLUSH, &before);
        return KH_E_IO;
    }
    while (secret->len < secret->cap) {
        ssize_t got = read(tty, secret->data + secret->len, 1);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got != 1 || secret->data[secret->len] == '\n') {
            break;
        }
        if (secret->data[secret->len] == 0x03) { /* ^C arrives as a byte here */
            result = KH_E_CANCELLED;
            break;
        }
        secret->len++;
    }
    secret->data[secret->len] = 0;
    (void)tcsetattr(tty, TCSAFLUSH, &before);
    (void)dprintf(tty, "\n");
    return result;
}

static const char *option_of(const ctl_passphrase_source *source)
{
    return source->option != NULL ? source->option : "--passphrase-file";
}

static kh_result prompt_for(const ctl_passphrase_source *source, ctl_secret *secret, ctl_error *error)
{
    kh_result result = KH_OK;
    ctl_secret again = {0};
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);

    if (tty < 0) {
        return ctl_fail(error, KH_E_PASSPHRASE,
                        "%s is needed and there is no terminal to ask at; give %s",
                        source->prompt, option_of(source));
    }
    result = ctl_secret_new(CTL_PASSPHRASE_MAX + 1, secret);
    if (result == KH_OK) {
        result = read_hidden_line(tty, source->prompt, secret);
    }
    if (result == KH_OK && source->twice) {
        result = ctl_secret_new(CTL_PASSPHRASE_MAX + 1, &again);
        if (result == KH_OK) {
            result = read_hidden_line(tty, "Once more", &again);
        }
        if (result == KH_OK &&
            (again.len != secret->len || CRYPTO_memcmp(again.data, secret->data, again.len) != 0)) {
            result = ctl_fail(error, KH_E_PASSPHRASE, "the two passphrases differ; try again");
        }
    }
    if (result != KH_OK && result != KH_E_PASSPHRASE) {
        ctl_fail(error, result, "no passphrase was entered; try again or give %s", option_of(source));
    }
    ctl_secret_free(&again);
    close(tty);
    return result;
}

static kh_result from_environment(const char *name, ctl_secret *secret, ctl_error *error)
{
    kh_result result = KH_OK;
    char *value = getenv(name);
    size_t len = value != NULL ? strlen(value) : 0;

    if (value == NULL) {
        return ctl_fail(error, KH_E_PASSPHRASE,
                        "no passphrase: the environment has no variable %s; set it or give "
                        "--passphrase-file",
                        name);
    }
    if (len > CTL_PASSPHRASE_MAX) {
        return ctl_fail(error, KH_E_PASSPHRASE,
                        "the passphrase in %s is longer than %d bytes; use a shorter one", name,
                        CTL_PASSPHRASE_MAX);
    }
    result = ctl_secret_new(CTL_PASSPHRASE_MAX + 1, secret);
    if (result == KH_OK) {
        memcpy(secret->data, value, len);
        secret->len = len;
        secret->data[len] = 0;
    }
    OPENSSL_cleanse(value, len); /* /proc/PID/environ shows these very bytes */
    (void)unsetenv(name);
    return result == KH_OK ? KH_OK : ctl_fail(error, result, "cannot read a passphrase: out of memory");
}

kh_result ctl_secret_passphrase(const ctl_passphrase_source *source, ctl_secret *secret, ctl_error *error)
{
    kh_result result = KH_OK;

    if (source->file != NULL && strcmp(source->file, "-") != 0) {
        result = ctl_secret_read_file(source->file, CTL_PASSPHRASE_MAX + 2, secret, error);
    } else if (source->file == NULL && source->environment != NULL) {
        result = from_environment(source->environment, secret, error);
    } else {
        result = prompt_for(source, secret, error);
    }
    if (result != KH_OK) {
        goto done;
    }
    /* The first line only, to the byte as keyholdd reads it: what is sealed here is opened there. */
    secret->len = strcspn((char *)secret->data, "\n");
    memset(secret->data + secret->len, 0, secret->cap + 1 - secret->len);
    if (secret->len == 0) {
        result =
            ctl_fail(error, KH_E_PASSPHRASE, "the passphrase%s%s is empty; give one with %s",
                     source->file != NULL ? " in " : "", source->file != NULL ? source->file : "", option_of(source));
    } else if (secret->len > CTL_PASSPHRASE_MAX) {
        result = ctl_fail(error, KH_E_PASSPHRASE, "the passphrase is longer than %d bytes; use a shorter one",
                          CTL_PASSPHRASE_MAX);
    }
done:
    if (result != KH_OK) {
        ctl_secret_free(secret);
    }
    return result;
}

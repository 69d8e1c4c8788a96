/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a real nginx configuration, for the pure reader in nginxconf.c. */
#include "nginxconf.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static kh_result read_file(void *ctx, const char *path, char **text, size_t *len)
{
    kh_result result = KH_E_IO;
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    (void)ctx;
    *text = NULL;
    *len = 0;
    if (fd < 0) {
        result = errno == EACCES ? KH_E_FORBIDDEN : KH_E_IO;
        goto done;
    }
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        goto done;
    }
    if (status.st_size > (off_t)NGINXCONF_FILE_MAX) {
        result = KH_E_TOO_LARGE;
        goto done;
    }
    *text = malloc((size_t)status.st_size + 1);
    if (*text == NULL) {
        result = KH_E_MEMORY;
        goto done;
    }
    while (*len < (size_t)status.st_size) {
        ssize_t got = read(fd, *text + *len, (size_t)status.st_size - *len);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            goto done;
        }
        if (got == 0) {
            break; /* it became shorter meanwhile */
        }
        *len += (size_t)got;
    }
    result = KH_OK;
done:
    if (result != KH_OK) {
        free(*text);
        *text = NULL;
    }
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

static kh_result glob_files(void *ctx, const char *pattern,
                            kh_result (*each)(void *match_ctx, const char *path), void *match_ctx)
{
    kh_result result = KH_OK;
    glob_t matches = {0};
    int status = glob(pattern, 0, NULL, &matches);

    (void)ctx;
    if (status == GLOB_NOMATCH) {
        goto done;
    }
    if (status != 0) {
        result = status == GLOB_NOSPACE ? KH_E_MEMORY : KH_E_IO;
        goto done;
    }
    for (size_t i = 0; i < matches.gl_pathc && result == KH_OK; i++) {
        result = each(match_ctx, matches.gl_pathv[i]);
    }
done:
    globfree(&matches);
    return result;
}

const nginxconf_source nginxconf_files = {NULL, read_file, glob_files};

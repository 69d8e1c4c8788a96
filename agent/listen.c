/* SPDX-License-Identifier: Apache-2.0 */
/* Listening Unix sockets. */
#include "listen.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define BACKLOG 1024

static kh_result say(char *error, kh_result why, const char *path, const char *what)
{
    snprintf(error, KH_CONFIG_ERROR_MAX, "%s: %s", path, what);
    return why;
}

/*
 * Whether somebody listens there, without connecting (the supervisor may not): a datagram to a socket of
 * another type is refused with EPROTOTYPE when that socket lives, and with ECONNREFUSED when only its file is
 * left.
 */
static bool alive(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool dead = fd >= 0 &&
                sendto(fd, "", 0, MSG_NOSIGNAL | MSG_DONTWAIT, (const struct sockaddr *)address,
                       sizeof *address) < 0 &&
                errno == ECONNREFUSED;

    if (fd >= 0) {
        close(fd);
    }
    return !dead;
}

static kh_result clear_stale(const struct sockaddr_un *address, char *error)
{
    const char *path = address->sun_path;
    struct stat st;

    if (lstat(path, &st) != 0) {
        return errno == ENOENT ? KH_OK : say(error, KH_E_IO, path, strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return say(error, KH_E_INVALID, path, "is there already and is no socket");
    }
    if (alive(address)) {
        return say(error, KH_E_EXISTS, path, "another process listens there (is keyholdd running already?)");
    }
    return unlink(path) == 0 || errno == ENOENT ? KH_OK : say(error, KH_E_IO, path, strerror(errno));
}

static kh_result dress(const char *path, mode_t mode, const char *owner, const char *group, kh_socket *out,
                       char *error)
{
    kh_user user = {(uid_t)-1, (gid_t)-1};
    gid_t gid = (gid_t)-1;
    struct stat st;

    if (owner != NULL && kh_config_user(owner, &user) != KH_OK) {
        return say(error, KH_E_INVALID, owner, "there is no such user");
    }
    if (group != NULL && kh_config_group(group, &gid) != KH_OK) {
        return say(error, KH_E_INVALID, group, "there is no such group");
    }
    if (((user.uid != (uid_t)-1 || gid != (gid_t)-1) && lchown(path, user.uid, gid) != 0) ||
        chmod(path, mode) != 0 || lstat(path, &st) != 0) {
        return say(error, KH_E_IO, path, strerror(errno));
    }
    out->dev = st.st_dev;
    out->ino = st.st_ino;
    return KH_OK;
}

kh_result kh_socket_open(const char *path, int type, mode_t mode, const char *owner, const char *group,
                         kh_socket *out, char *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    kh_result result = KH_OK;
    mode_t old = 0;
    int bound = 0;

    *out = (kh_socket){.fd = -1};
    if (strlen(path) >= sizeof address.sun_path) {
        return say(error, KH_E_INVALID, path, "the path is too long for a Unix socket");
    }
    memcpy(address.sun_path, path, strlen(path));
    result = clear_stale(&address, error);
    if (result != KH_OK) {
        return result;
    }
    out->fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    old = umask(0177); /* nobody gets in before mode and owner are set */
    bound = out->fd < 0 ? -1 : bind(out->fd, (struct sockaddr *)&address, sizeof address);
    umask(old);
    if (bound != 0) {
        result = say(error, KH_E_IO, path, strerror(errno));
    } else if ((result = dress(path, mode, owner, group, out, error)) == KH_OK &&
               listen(out->fd, BACKLOG) != 0) {
        result = say(error, KH_E_IO, path, strerror(errno));
    }
    if (result == KH_OK && (out->path = strdup(path)) == NULL) {
        result = say(error, KH_E_MEMORY, path, "out of memory");
    }
    if (result != KH_OK) {
        if (bound == 0) {
            unlink(path);
        }
        kh_socket_close(out);
    }
    return result;
}

void kh_socket_close(kh_socket *sock)
{
    struct stat st;

    if (sock->fd >= 0) {
        close(sock->fd);
    }
    if (sock->path != NULL && sock->ino != 0 && lstat(sock->path, &st) == 0 && st.st_dev == sock->dev &&
        st.st_ino == sock->ino) {
        unlink(sock->path);
    }
    free(sock->path);
    *sock = (kh_socket){.fd = -1};
}

int kh_socket_inherited(const char *path)
{
    static int count = -1;

    if (count < 0) {
        count = sd_listen_fds(0);
    }
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + count; fd++) {
        if (sd_is_socket_unix(fd, SOCK_STREAM, 1, path, 0) > 0) {
            int copy = fcntl(fd, F_DUPFD_CLOEXEC, 10);

            if (copy >= 0) {
                fcntl(copy, F_SETFL, fcntl(copy, F_GETFL) | O_NONBLOCK);
            }
            return copy;
        }
    }
    return -1;
}

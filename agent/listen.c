/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets. */
#include "listen.h"
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define BACKLOG 1024
#define UNIX "unix:"

/* A peer over TCP that answers nothing is gone after about a minute, or as soon as what was sent to it is this old. */
#define KEEPALIVE_IDLE_S 30
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_COUNT 3
#define UNANSWERED_MS 30000

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

/* Root in the unit, without CAP_DAC_OVERRIDE, may write to a socket of mode 0660 only while that is its own. */
static bool alive_as_owner(const struct sockaddr_un *address, const struct stat *st)
{
    bool changed = st->st_uid != geteuid() && lchown(address->sun_path, geteuid(), (gid_t)-1) == 0;
    bool found = alive(address);

    if (found && changed && lchown(address->sun_path, st->st_uid, (gid_t)-1) != 0) {
        kh_log(KH_LOG_WARN, "socket_unchanged", KH_LT("error", address->sun_path), KH_LT("means", "its owner is not what it was"));
    }
    return found;
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
    if (alive_as_owner(address, &st)) {
        return say(error, KH_E_EXISTS, path, "another process listens there (is keyholdd running already?)");
    }
    return unlink(path) == 0 || errno == ENOENT ? KH_OK : say(error, KH_E_IO, path, strerror(errno));
}

static kh_result dress(const char *path, mode_t mode, const char *owner, const char *group, kh_socket *out,
                       char *error)
{
    uid_t uid = (uid_t)-1;
    gid_t gid = (gid_t)-1;
    struct stat st;

    if (owner != NULL && kh_config_owner(owner, &uid) != KH_OK) {
        return say(error, KH_E_INVALID, owner, "there is no such user");
    }
    if (group != NULL && kh_config_group(group, &gid) != KH_OK) {
        return say(error, KH_E_INVALID, group, "there is no such group");
    }
    /* The mode first, while it is ours: root in the unit has CAP_CHOWN and no CAP_FOWNER. */
    if (lstat(path, &st) != 0 ||
        ((st.st_mode & 07777) != mode &&
         ((st.st_uid != geteuid() && lchown(path, geteuid(), (gid_t)-1) != 0) || chmod(path, mode) != 0)) ||
        ((uid != (uid_t)-1 || gid != (gid_t)-1) && lchown(path, uid, gid) != 0) || lstat(path, &st) != 0) {
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
    if (result == KH_OK && asprintf(&out->address, UNIX "%s", path) < 0) {
        out->address = NULL;
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

static bool has_file(const kh_socket *sock)
{
    return sock->address != NULL && sock->ino != 0;
}

bool kh_socket_present(const kh_socket *sock)
{
    struct stat st;

    return !has_file(sock) || (lstat(sock->address + strlen(UNIX), &st) == 0 && st.st_dev == sock->dev && st.st_ino == sock->ino);
}

void kh_socket_dress(kh_socket *sock, mode_t mode, const char *owner, const char *group)
{
    char error[KH_CONFIG_ERROR_MAX];

    if (has_file(sock) && kh_socket_present(sock) &&
        dress(sock->address + strlen(UNIX), mode, owner, group, sock, error) != KH_OK) {
        kh_log(KH_LOG_WARN, "socket_unchanged", KH_LT("error", error), KH_LT("means", "mode and owner of its file stay as they were"));
    }
}

static kh_result check_owner(const kh_config *config, unsigned line, const char *owner, const char *group, char *error)
{
    bool has_owner = true;
    uid_t uid = 0;
    gid_t gid = 0;

    if ((owner == NULL || (has_owner = kh_config_owner(owner, &uid) == KH_OK)) &&
        (group == NULL || kh_config_group(group, &gid) == KH_OK)) {
        return KH_OK;
    }
    snprintf(error, KH_CONFIG_ERROR_MAX, "%.200s:%u: there is no %s \"%.200s\"", config->path, line, has_owner ? "group" : "user",
             has_owner ? group : owner);
    return KH_E_INVALID;
}

kh_result kh_socket_owners_check(const kh_config *config, char *error)
{
    kh_result result = KH_OK;

    for (size_t i = 0; i < config->listener_count && result == KH_OK; i++) {
        const kh_config_listener *listener = &config->listeners[i];

        result = check_owner(config, listener->line, listener->owner, listener->group, error);
    }
    for (size_t i = 0; i < config->metrics_count && result == KH_OK; i++) {
        const kh_config_metrics *metrics = &config->metrics[i];

        result = check_owner(config, metrics->line, metrics->owner, metrics->group, error);
    }
    return result;
}

void kh_socket_close(kh_socket *sock)
{
    if (sock->fd >= 0) {
        close(sock->fd);
    }
    if (has_file(sock) && kh_socket_present(sock)) {
        unlink(sock->address + strlen(UNIX));
    }
    free(sock->address);
    *sock = (kh_socket){.fd = -1};
}

/* ---- TCP ---- */

static socklen_t size_of(const kh_tcp_address *tcp)
{
    return tcp->any.sa_family == AF_INET6 ? sizeof tcp->in6 : sizeof tcp->in;
}

/* What accepted connections inherit. */
static bool set_options(int fd)
{
    static const struct {
        int level, name, value;
    } table[] = {{IPPROTO_TCP, TCP_NODELAY, 1},
                 {SOL_SOCKET, SO_KEEPALIVE, 1},
                 {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S},
                 {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S},
                 {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT},
                 {IPPROTO_TCP, TCP_USER_TIMEOUT, UNANSWERED_MS}};

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (setsockopt(fd, table[i].level, table[i].name, &table[i].value, sizeof table[i].value) != 0) {
            return false;
        }
    }
    return true;
}

/* Without SO_REUSEADDR connections of before would keep a restarted agent out. IPv6 means IPv6 alone. */
static kh_result open_tcp(const kh_config_listener *listener, kh_socket *out, char *error)
{
    const kh_tcp_address *tcp = &listener->tcp;
    const int on = 1;

    out->fd = socket(tcp->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (out->fd < 0 || setsockopt(out->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        (tcp->any.sa_family == AF_INET6 &&
         setsockopt(out->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
        bind(out->fd, &tcp->any, size_of(tcp)) != 0 || listen(out->fd, BACKLOG) != 0) {
        return say(error, errno == EADDRINUSE ? KH_E_EXISTS : KH_E_IO, listener->address, strerror(errno));
    }
    return KH_OK;
}

/* ---- Listeners ---- */

/* A socket that systemd passed: for that path, or, if it is NULL, for that address. -1: none. */
static int inherited(const char *path, const kh_tcp_address *tcp)
{
    static int count = -1;

    if (count < 0) {
        count = sd_listen_fds(0);
    }
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + count; fd++) {
        if ((path != NULL ? sd_is_socket_unix(fd, SOCK_STREAM, 1, path, 0)
                          : sd_is_socket_sockaddr(fd, SOCK_STREAM, &tcp->any, size_of(tcp), 1)) > 0) {
            int copy = fcntl(fd, F_DUPFD_CLOEXEC, 10);

            if (copy >= 0) {
                fcntl(copy, F_SETFL, fcntl(copy, F_GETFL) | O_NONBLOCK);
            }
            return copy;
        }
    }
    return -1;
}

int kh_socket_inherited(const char *path)
{
    return inherited(path, NULL);
}

kh_result kh_socket_open_listener(const kh_config_listener *listener, kh_socket *out, char *error)
{
    kh_result result = KH_OK;

    *out = (kh_socket){.fd = inherited(listener->path, &listener->tcp)};
    if (out->fd < 0 && listener->path != NULL) {
        return kh_socket_open(listener->path, SOCK_STREAM, listener->mode, listener->owner, listener->group, out, error);
    }
    if (out->fd < 0) {
        result = open_tcp(listener, out, error);
    }
    if (result == KH_OK && listener->path == NULL && !set_options(out->fd)) {
        result = say(error, KH_E_IO, listener->address, strerror(errno));
    }
    if (result == KH_OK && (out->address = strdup(listener->address)) == NULL) {
        result = say(error, KH_E_MEMORY, listener->address, "out of memory");
    }
    if (result != KH_OK) {
        kh_socket_close(out);
    }
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock: the paths that the supervisor, and with it everything that it starts, can still open. The program
 * itself, its loader and its libraries are found from what is mapped, so that they can be started again and
 * nothing else can.
 */
#include "confine.h"
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <linux/landlock.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ULL << 13)
#endif

#define MAKE_AND_REMOVE                                                                                      \
    (LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |         \
     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |              \
     LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM)
#define READ (LANDLOCK_ACCESS_FS_READ_FILE)
#define HANDLED_1                                                                                            \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | READ | LANDLOCK_ACCESS_FS_READ_DIR |       \
     MAKE_AND_REMOVE)

/* Rights by kh_confine_path.what. */
static const uint64_t rights[] = {
    [KH_PATH_READ] = READ,
    [KH_PATH_EXECUTE] = READ | LANDLOCK_ACCESS_FS_EXECUTE,
    [KH_PATH_SOCKETS] = LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE,
    [KH_PATH_STORE] = READ | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_WRITE_FILE |
                      LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REMOVE_FILE |
                      LANDLOCK_ACCESS_FS_TRUNCATE,
    [KH_PATH_ALL] = READ | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_WRITE_FILE | MAKE_AND_REMOVE |
                    LANDLOCK_ACCESS_FS_TRUNCATE | LANDLOCK_ACCESS_FS_REFER,
    [KH_PATH_LOOK] = READ | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_EXECUTE,
};

typedef struct ruleset {
    int fd;
    uint64_t handled;
} ruleset;

static void allow(const ruleset *rules, const char *path, int what)
{
    struct landlock_path_beneath_attr attr = {.parent_fd = open(path, O_PATH | O_CLOEXEC)};
    uint64_t file_rights =
        LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | READ | LANDLOCK_ACCESS_FS_TRUNCATE;
    struct stat st;

    if (attr.parent_fd < 0 || fstat(attr.parent_fd, &st) != 0) {
        if (attr.parent_fd >= 0) {
            close(attr.parent_fd);
        }
        return;
    }
    attr.allowed_access = rights[what] & rules->handled & (S_ISDIR(st.st_mode) ? ~0ULL : file_rights);
    syscall(SYS_landlock_add_rule, rules->fd, LANDLOCK_RULE_PATH_BENEATH, &attr, 0);
    close(attr.parent_fd);
}

static int allow_library(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    if (info->dlpi_name != NULL && info->dlpi_name[0] == '/') {
        allow(data, info->dlpi_name, KH_PATH_EXECUTE);
    }
    return 0;
}

/* The program, its libraries, and what libraries read when they start. */
static void allow_program(const ruleset *rules)
{
    static const char *const files[] = {
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/ssl/openssl.cnf",
        "/usr/lib/ssl/openssl.cnf",
        "/etc/localtime",
        "/dev/null",
        "/sys/devices/system/cpu/online",
    };
    char exe[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);

    if (len > 0) {
        exe[len] = '\0';
        allow(rules, exe, KH_PATH_EXECUTE);
    }
    dl_iterate_phdr(allow_library, (void *)(uintptr_t)rules);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        allow(rules, files[i], KH_PATH_READ);
    }
}

int kh_confine_paths(const kh_confine_path *paths, size_t count)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct landlock_ruleset_attr attr = {.handled_access_fs = HANDLED_1};
    ruleset rules = {.fd = -1};
    int done = 0;

    if (SANITIZED || version < 1) {
        return 0;
    }
    attr.handled_access_fs |=
        (version >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0) | (version >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0);
    rules.handled = attr.handled_access_fs;
    rules.fd = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
    if (rules.fd < 0) {
        return 0;
    }
    allow_program(&rules);
    for (size_t i = 0; i < count; i++) {
        allow(&rules, paths[i].path, paths[i].what);
    }
    done =
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(SYS_landlock_restrict_self, rules.fd, 0) == 0;
    close(rules.fd);
    return done;
}

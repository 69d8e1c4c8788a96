/* SPDX-License-Identifier: Apache-2.0 */
/* Starting a role. */
#include "process.h"
#include "boot.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_NOT_STARTED 127

/* Between fork and exec: only what is safe there. */
static void fail(const char *what)
{
    const char *text = strerrordesc_np(errno);

    (void)!write(STDERR_FILENO, what, strlen(what));
    (void)!write(STDERR_FILENO, ": ", 2);
    (void)!write(STDERR_FILENO, text, strlen(text));
    (void)!write(STDERR_FILENO, "\n", 1);
    _exit(EXIT_NOT_STARTED);
}

/* Whether the role may lock as much memory as it wants. */
static bool set_limits(const kh_process_spec *spec)
{
    const struct rlimit none = {0, 0}, all = {RLIM_INFINITY, RLIM_INFINITY};
    struct rlimit files = {spec->descriptors, spec->descriptors};
    bool unlimited = setrlimit(RLIMIT_MEMLOCK, &all) == 0;

    setrlimit(RLIMIT_CORE, &none);
    if (setrlimit(RLIMIT_NOFILE, &files) != 0 && getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    return unlimited;
}

/*
 * For a root that may lock memory but not raise the limit on it, as in a container with CAP_IPC_LOCK alone: the
 * role keeps this one capability past its change of user. Where root has not even that, nothing is kept, and
 * the keeper warns that its memory is not locked.
 */
static void keep_memory_lock(void)
{
    const uint32_t lock = 1u << CAP_IPC_LOCK;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {
        {.effective = lock, .permitted = lock, .inheritable = lock}};

    if (syscall(SYS_capset, &head, sets) == 0) {
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_IPC_LOCK, 0, 0);
    }
}

static bool change_user(const kh_user *user)
{
    return setgroups(0, NULL) == 0 && setresgid(user->gid, user->gid, user->gid) == 0 &&
           setresuid(user->uid, user->uid, user->uid) == 0;
}

int kh_process_may_read(const kh_user *user, const char *path)
{
    pid_t child = fork();
    int status = 0;

    if (child == 0) {
        _exit(change_user(user) && access(path, R_OK) == 0 ? 0 : errno);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    return child < 0 ? errno : WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
}

static void drop_privileges(const kh_process_spec *spec, bool keep_lock)
{
    /* What is kept here and is not ambient afterwards is gone with the exec. */
    prctl(PR_SET_KEEPCAPS, keep_lock, 0, 0, 0);
    if (spec->change_user && !change_user(&spec->user)) {
        fail("keyholdd: cannot change the user");
    }
    if (keep_lock) {
        keep_memory_lock();
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        fail("keyholdd: no_new_privs");
    }
}

static void become(const kh_process_spec *spec, pid_t parent, char *const *env)
{
    char *const argv[] = {(char *)(uintptr_t)spec->role, NULL};
    int exe = fcntl(spec->exe_fd, F_DUPFD_CLOEXEC, KH_BOOT_FD + 2),
        channel = fcntl(spec->channel_fd, F_DUPFD, KH_BOOT_FD + 2);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bool unlimited = false;

    if (null >= 0) { /* a role that is taken over does not read the operator's terminal */
        dup2(null, STDIN_FILENO);
    }
    prctl(PR_SET_NAME, spec->role + strlen("keyholdd: "), 0, 0, 0);
    if (exe < 0 || channel < 0 || dup2(channel, KH_BOOT_FD) < 0 || dup3(exe, KH_BOOT_FD + 1, O_CLOEXEC) < 0 ||
        close_range(KH_BOOT_FD + 2, ~0u, 0) != 0) {
        fail("keyholdd: descriptors");
    }
    unlimited = set_limits(spec);
    drop_privileges(spec, spec->change_user && spec->locks_memory && !unlimited);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* after the change of user, which would clear it */
    if (getppid() != parent) {
        _exit(EXIT_NOT_STARTED);
    }
    fexecve(KH_BOOT_FD + 1, argv, env);
    fail("keyholdd: cannot start itself again");
}

/* What the roles find in their environment: nothing that steers libraries but what the configuration says for a token's. */
static void make_env(const kh_process_spec *spec, const char **env, size_t cap)
{
    size_t count = 0;
#ifdef KH_TEST_PROBES
    static const char *const kept[] = {"KEYHOLD_PROBE=", "ASAN_OPTIONS=", "UBSAN_OPTIONS=", "TSAN_OPTIONS=",
                                       "LSAN_OPTIONS="};

    for (char **at = environ; *at != NULL && count + 1 < cap; at++) {
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
            if (strncmp(*at, kept[i], strlen(kept[i])) == 0 && count + 1 < cap) {
                env[count++] = *at;
            }
        }
    }
#endif
    for (size_t i = 0; i < spec->env_count && count + 1 < cap; i++) {
        env[count++] = spec->env[i];
    }
    env[count] = NULL;
}

pid_t kh_process_start(const kh_process_spec *spec)
{
    const char *env[8 + KH_TOKEN_ENV_MAX];
    pid_t parent = getpid(), pid = -1;

    make_env(spec, env, sizeof env / sizeof *env);
    pid = fork();
    if (pid == 0) {
        become(spec, parent, (char *const *)(uintptr_t)env);
    }
    return pid;
}

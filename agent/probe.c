/* SPDX-License-Identifier: Apache-2.0 */
/* Test builds only: what a role could do if it were taken over. */
#include "probe.h"
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name_of(long result)
{
    return result < 0 ? strerrorname_np(errno) : "ok";
}

/* A file that exists everywhere and that anybody may read. */
static const char *try_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    const char *name = name_of(fd);

    if (fd >= 0) {
        close(fd);
    }
    return name;
}

static const char *try_exec(void)
{
    char *const argv[] = {(char *)(uintptr_t) "/bin/true", NULL};
    char *const env[] = {NULL};
    int status = 0;
    pid_t pid = vfork(); /* an exec that worked must not end the test */

    if (pid < 0) {
        return name_of(-1); /* no process, no program */
    }
    if (pid == 0) {
        execve(argv[0], argv, env);
        _exit(errno);
    }
    waitpid(pid, &status, 0);
    errno = WEXITSTATUS(status);
    return name_of(errno == 0 ? 0 : -1);
}

static const char *try_connect(int domain)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/nonexistent"};
    int pair[2] = {-1, -1}, fd = socket(domain, SOCK_STREAM, 0);
    const char *name = name_of(fd);

    (void)pair;
    if (fd >= 0) {
        name = name_of(connect(fd, (const struct sockaddr *)&address, sizeof address));
        close(fd);
    }
    return name;
}

void kh_probe(const char *role)
{
    const char *wish = getenv("KEYHOLD_PROBE");
    int dumpable = 0;

    if (wish == NULL || strcmp(wish, "1") != 0) {
        return;
    }
    kh_log(KH_LOG_NOTICE, "probe", KH_LT("process", role), KH_LT("open", try_open("/proc/version", O_RDONLY)),
           KH_LT("open_dir", try_open("/", O_RDONLY | O_DIRECTORY)),
           KH_LT("create", try_open("/tmp/keyhold-probe", O_WRONLY | O_CREAT | O_EXCL)),
           KH_LT("exec", try_exec()), KH_LT("connect", try_connect(AF_UNIX)),
           KH_LT("ptrace", name_of(ptrace(PTRACE_TRACEME, 0, NULL, NULL))),
           KH_LT("set_dumpable", name_of(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))));
    dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    kh_log(KH_LOG_NOTICE, "probe_state", KH_LT("process", role), KH_LN("dumpable", dumpable));
}

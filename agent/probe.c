/* SPDX-License-Identifier: Apache-2.0 */
/* Test builds only: what a role could do if it were taken over. */
#include "probe.h"
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name_of(long result)
{
    return result < 0 ? strerrorname_np(errno) : "ok";
}

/* What would carry a listener or the ring to an accomplice. */
static const char *try_pass_descriptor(void)
{
    char bytes[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = bytes, .msg_controllen = sizeof bytes};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    return name_of(sendmsg(-1, &msg, MSG_NOSIGNAL)); /* EBADF: the filter let it through */
}

static const char *try_executable(void)
{
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const char *name = name_of(memory == MAP_FAILED ? -1 : 0);

    if (memory != MAP_FAILED) {
        munmap(memory, 4096);
    }
    return name;
}

/* A file that exists everywhere and that anybody may read. */
static const char *try_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
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

/* The front may change its own policy (turns.h), and nobody's with a number; nor may it have a real-time one, nor a nice value. */
static const char *try_schedule(pid_t pid, int policy)
{
    const int priority = policy == SCHED_FIFO ? 1 : 0; /* struct sched_param */

    return name_of(syscall(SYS_sched_setscheduler, pid, policy, &priority));
}

static const char *try_nice(void)
{
    struct sched_attr attr = {.size = sizeof attr, .sched_nice = 19};

    return name_of(syscall(SYS_sched_setattr, 0, &attr, 0));
}

/* Each thread may choose its own CPUs, and nobody else's. */
static const char *try_affinity(pid_t pid)
{
    unsigned long all = ~0ul;

    return name_of(syscall(SYS_sched_setaffinity, pid, sizeof all, &all));
}

void kh_probe(const char *role)
{
    const char *wish = getenv("KEYHOLD_PROBE");
    int dumpable = 0;

    if (wish == NULL || strcmp(wish, "1") != 0) {
        return;
    }
    kh_log(
        KH_LOG_NOTICE, "probe", KH_LT("process", role), KH_LT("open", try_open("/proc/version", O_RDONLY)),
        KH_LT("open_dir", try_open("/", O_RDONLY | O_DIRECTORY)),
        KH_LT("create", try_open("/tmp/keyhold-probe", O_WRONLY | O_CREAT | O_EXCL)),
        KH_LT("exec", try_exec()), KH_LT("connect", try_connect(AF_UNIX)),
        KH_LT("ptrace", name_of(ptrace(PTRACE_TRACEME, 0, NULL, NULL))),
        KH_LT("own_signals", name_of(fcntl(STDERR_FILENO, F_SETOWN, getpid()))),
        KH_LT("pass_descriptor", try_pass_descriptor()), KH_LT("kill", name_of(kill(getpid(), 0))),
        KH_LT("executable", try_executable()), KH_LT("socket", name_of(socket(AF_INET, SOCK_STREAM, 0))),
        KH_LT("priority_futex", name_of(syscall(SYS_futex, &dumpable, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0))),
        KH_LT("schedule_other", try_schedule(getpid(), SCHED_NORMAL)),
        KH_LT("affinity_other", strcmp(role, "supervisor") == 0 ? "untried" : try_affinity(getpid())),
        KH_LT("real_time", strcmp(role, "supervisor") == 0 ? "untried" : try_schedule(0, SCHED_FIFO)), /* children would inherit it */
        KH_LT("nice", strcmp(role, "supervisor") == 0 ? "untried" : try_nice()),
        KH_LT("set_dumpable", name_of(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))));
    dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    kh_log(KH_LOG_NOTICE, "probe_state", KH_LT("process", role), KH_LN("dumpable", dumpable));
}

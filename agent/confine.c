/* SPDX-License-Identifier: Apache-2.0 */
/* The system call filters of the roles. */
#include "confine.h"
#include "boot.h"
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* the sanitizers' own threads, files and ptrace would be refused */
#else
#define SANITIZED 0
#endif

/* What front and keeper share: memory, time, descriptors that they have, threads' signals, the end. */
static const int common_calls[] = {
    SCMP_SYS(read),
    SCMP_SYS(readv),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(close),
    SCMP_SYS(recvmsg),
    SCMP_SYS(recvfrom),
    SCMP_SYS(accept4),
    SCMP_SYS(accept),
    SCMP_SYS(getsockopt),
    SCMP_SYS(shutdown),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(eventfd2),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(fstat),
    SCMP_SYS(lseek),
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(mlock),
    SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(getrandom),
    SCMP_SYS(getpid),
    SCMP_SYS(getppid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(membarrier),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(pread64),
};

/*
 * The keeper besides: its store's files, which are open already, and its threads. No path may be named but in
 * stat.
 */
static const int keeper_calls[] = {
    SCMP_SYS(pwrite64),  SCMP_SYS(fsync),           SCMP_SYS(fdatasync),
    SCMP_SYS(ftruncate), SCMP_SYS(fallocate),       SCMP_SYS(newfstatat),
    SCMP_SYS(stat),      SCMP_SYS(lstat),           SCMP_SYS(access),
    SCMP_SYS(fstatfs),   SCMP_SYS(get_robust_list), SCMP_SYS(getrusage),
    SCMP_SYS(sendmsg),
};

/* A token's keeper besides: the files of a token in software. */
static const int token_calls[] = {
    SCMP_SYS(openat),   SCMP_SYS(open),      SCMP_SYS(unlink),    SCMP_SYS(unlinkat),   SCMP_SYS(getdents64),
    SCMP_SYS(umask),    SCMP_SYS(chmod),     SCMP_SYS(fchmod),    SCMP_SYS(fchmodat),   SCMP_SYS(faccessat),
    SCMP_SYS(mkdir),    SCMP_SYS(mkdirat),   SCMP_SYS(rmdir),     SCMP_SYS(rename),     SCMP_SYS(renameat),
    SCMP_SYS(flock),    SCMP_SYS(statx),     SCMP_SYS(readlink),  SCMP_SYS(readlinkat), SCMP_SYS(getcwd),
    SCMP_SYS(uname),    SCMP_SYS(sysinfo),   SCMP_SYS(statfs),    SCMP_SYS(faccessat2), SCMP_SYS(renameat2),
    SCMP_SYS(prlimit64), SCMP_SYS(clock_getres), SCMP_SYS(times), SCMP_SYS(getgroups),
};

/* What nobody of the agent ever needs; the supervisor and, through it, its children. */
static const int forbidden_calls[] = {
    SCMP_SYS(ptrace),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(process_madvise),
    SCMP_SYS(kcmp),
    SCMP_SYS(pidfd_getfd),
    SCMP_SYS(bpf),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),
    SCMP_SYS(keyctl),
    SCMP_SYS(add_key),
    SCMP_SYS(request_key),
    SCMP_SYS(mount),
    SCMP_SYS(umount2),
    SCMP_SYS(pivot_root),
    SCMP_SYS(chroot),
    SCMP_SYS(unshare),
    SCMP_SYS(setns),
    SCMP_SYS(open_by_handle_at),
    SCMP_SYS(name_to_handle_at),
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(delete_module),
    SCMP_SYS(kexec_load),
    SCMP_SYS(kexec_file_load),
    SCMP_SYS(reboot),
    SCMP_SYS(swapon),
    SCMP_SYS(swapoff),
    SCMP_SYS(settimeofday),
    SCMP_SYS(clock_settime),
    SCMP_SYS(adjtimex),
    SCMP_SYS(sethostname),
    SCMP_SYS(setdomainname),
    SCMP_SYS(acct),
    SCMP_SYS(quotactl),
    SCMP_SYS(iopl),
    SCMP_SYS(ioperm),
    SCMP_SYS(mknod),
    SCMP_SYS(mknodat),
    SCMP_SYS(symlink),
    SCMP_SYS(symlinkat),
    SCMP_SYS(link),
    SCMP_SYS(linkat),
    SCMP_SYS(personality),
    SCMP_SYS(move_pages),
    SCMP_SYS(migrate_pages),
    SCMP_SYS(vmsplice),
    SCMP_SYS(execve),
};

static int add_all(scmp_filter_ctx filter, uint32_t action, const int *calls, size_t count)
{
    int result = 0;

    for (size_t i = 0; i < count && result == 0; i++) {
        result = seccomp_rule_add(filter, action, calls[i], 0);
        if (result == -EDOM || result == -EEXIST) { /* not a call of this architecture */
            result = 0;
        }
    }
    return result;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define EMPTY_PATH 0x1000 /* AT_EMPTY_PATH, of linux/fcntl.h, which clashes with glibc's */
#define REFUSE SCMP_ACT_ERRNO(EPERM)

/* Memory may be mapped and changed, but never made executable. */
static int allow_memory(scmp_filter_ctx filter)
{
    int result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));

    if (result == 0) {
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    }
    return result;
}

/*
 * Of calls that do many things, those that are needed: waiting and waking, but no priority inheritance; flags
 * and locks of descriptors, but no signals by them (F_SETOWN, F_SETSIG) and no leases; sending to the peer of
 * a connected socket, but to no address.
 */
static int allow_parts(scmp_filter_ctx filter, kh_confine_role role)
{
    static const int futexes[] = {FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAKE_OP, FUTEX_WAIT_BITSET,
                                  FUTEX_WAKE_BITSET};
    static const int descriptors[] = {F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GET_SEALS};
    static const unsigned policies[] = {SCHED_NORMAL, SCHED_BATCH};
    static const int locks[] = {F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW};
    int result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(sendto), 1, SCMP_A4(SCMP_CMP_EQ, 0));

    for (size_t i = 0; i < COUNT(futexes) && result == 0; i++) {
        result =
            seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(futex), 1,
                             SCMP_A1(SCMP_CMP_MASKED_EQ, FUTEX_CMD_MASK & INT_MAX, (unsigned)futexes[i]));
    }
    for (size_t i = 0; i < COUNT(descriptors) && result == 0; i++) {
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
                                  SCMP_A1(SCMP_CMP_EQ, (unsigned)descriptors[i]));
    }
    if (role != KH_CONFINE_TOKEN && result == 0) { /* on which CPUs each thread runs itself */
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(sched_setaffinity), 1, SCMP_A0(SCMP_CMP_EQ, 0));
    }
    for (size_t i = 0; role == KH_CONFINE_FRONT && i < COUNT(policies) && result == 0; i++) { /* each thread its own (turns.h) */
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(sched_setscheduler), 2, SCMP_A0(SCMP_CMP_EQ, 0),
                                  SCMP_A1(SCMP_CMP_EQ, policies[i]));
    }
    for (size_t i = 0; role != KH_CONFINE_FRONT && i < COUNT(locks) && result == 0; i++) {
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
                                  SCMP_A1(SCMP_CMP_EQ, (unsigned)locks[i]));
    }
    return result;
}

/*
 * Threads, but no processes. clone3 hides its flags in memory: glibc falls back to clone when there is none.
 */
static int allow_threads(scmp_filter_ctx filter)
{
    int result =
        seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                         SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM));

    if (result == 0) {
        result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    }
    if (result == 0) {
        result =
            seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    }
    return result;
}

static int fill_supervisor(scmp_filter_ctx filter, kh_confine_role role)
{
    int result = add_all(filter, REFUSE, forbidden_calls, COUNT(forbidden_calls));

    if (result == 0 && role == KH_CONFINE_SUPERVISOR) {
        result = seccomp_rule_add(filter, REFUSE, SCMP_SYS(connect), 0);
    }
    if (result ==
        0) { /* nobody becomes dumpable again; exec resets it, and the new image sets it first of all */
        result = seccomp_rule_add(filter, REFUSE, SCMP_SYS(prctl), 2, SCMP_A0(SCMP_CMP_EQ, PR_SET_DUMPABLE),
                                  SCMP_A1(SCMP_CMP_NE, 0));
    }
    if (result == 0) { /* only the program by descriptor */
        result = seccomp_rule_add(filter, REFUSE, SCMP_SYS(execveat), 1, SCMP_A4(SCMP_CMP_NE, EMPTY_PATH));
    }
    return result;
}

static bool is_supervisor(kh_confine_role role)
{
    return role == KH_CONFINE_SUPERVISOR || role == KH_CONFINE_SUPERVISOR_OF_TOKENS;
}

static int fill(scmp_filter_ctx filter, kh_confine_role role)
{
    int result = 0;

    if (is_supervisor(role)) {
        return fill_supervisor(filter, role);
    }
    result = add_all(filter, SCMP_ACT_ALLOW, common_calls, COUNT(common_calls));
    if (result == 0) {
        result = allow_memory(filter);
    }
    if (result == 0) {
        result = allow_parts(filter, role);
    }
    if (result == 0) { /* asking is harmless, and how a test sees it */
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
                                  SCMP_A0(SCMP_CMP_EQ, PR_GET_DUMPABLE));
    }
    if (result == 0) { /* glibc's fstat */
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(newfstatat), 1,
                                  SCMP_A3(SCMP_CMP_EQ, EMPTY_PATH));
    }
    if (role == KH_CONFINE_FRONT || result != 0) {
        return result;
    }
    result = add_all(filter, SCMP_ACT_ALLOW, keeper_calls, COUNT(keeper_calls));
    if (result == 0 && role == KH_CONFINE_TOKEN) {
        result = add_all(filter, SCMP_ACT_ALLOW, token_calls, COUNT(token_calls));
    }
    return result == 0 ? allow_threads(filter) : result;
}

void kh_confine(kh_confine_role role)
{
    scmp_filter_ctx filter = NULL;
    int result = -ENOMEM;

    if (SANITIZED) {
        kh_log(KH_LOG_WARN, "not_confined", KH_LT("why", "sanitizer build"));
        return;
    }
    filter = seccomp_init(is_supervisor(role) ? SCMP_ACT_ALLOW : REFUSE);
    if (filter != NULL) {
        result = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
        if (result == 0) { /* a call of another architecture is an attack */
            result = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
        }
        if (result == 0) {
            result = fill(filter, role);
        }
        if (result == 0) {
            result = seccomp_load(filter); /* sets no_new_privs */
        }
        seccomp_release(filter);
    }
    if (result != 0) {
        kh_log(KH_LOG_ERROR, "confinement_failed", KH_LN("errno", -result));
        _exit(KH_EXIT_REFUSED);
    }
    kh_log(KH_LOG_DEBUG, "confined");
}

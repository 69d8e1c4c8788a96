/* SPDX-License-Identifier: Apache-2.0 */
/* Hardening of the process that holds keys: OpenSSL's frees wipe, nothing is dumped or swapped out. */
#include "process.h"

#include <linux/capability.h>
#include <malloc.h>
#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static bool frees_wipe;

static void *wiping_malloc(size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    return malloc(size);
}

static void wiping_free(void *memory, const char *file, int line)
{
    (void)file;
    (void)line;
    if (memory != NULL) {
        OPENSSL_cleanse(memory, malloc_usable_size(memory));
        free(memory);
    }
}

static void *wiping_realloc(void *memory, size_t size, const char *file, int line)
{
    size_t old = memory != NULL ? malloc_usable_size(memory) : 0;
    void *moved = NULL;

    if (memory != NULL && size == 0) {
        wiping_free(memory, file, line);
        return NULL;
    }
    moved = malloc(size);
    if (moved != NULL && memory != NULL) {
        memcpy(moved, memory, old < size ? old : size);
        wiping_free(memory, file, line);
    }
    return moved;
}

void kh_secure_openssl(void)
{
    if (!frees_wipe) {
        frees_wipe = CRYPTO_set_mem_functions(wiping_malloc, wiping_realloc, wiping_free) == 1;
    }
}

uint64_t kh_now_ns(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void kh_logf(kh_log_fn log, void *ctx, kh_log_level level, const char *format, ...)
{
    char text[512];
    va_list args;

    if (log == NULL) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    log(ctx, level, text);
}

/* Whether RLIMIT_MEMLOCK does not count for this process. */
static bool locks_past_limit(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {{0}};

    return syscall(SYS_capget, &head, sets) == 0 && (sets[0].effective & 1u << CAP_IPC_LOCK) != 0;
}

/*
 * All memory, present and future, but only as it is touched: a ring of 4096 slots is 80 MB of address space.
 * Not with a limit in place: that would make later allocations fail.
 */
static bool lock_memory(void)
{
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};

    if (setrlimit(RLIMIT_MEMLOCK, &limit) == 0 ||
        (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY) || locks_past_limit()) {
        return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0;
    }
    return false;
}

void kh_process_harden(kh_log_fn log, void *ctx)
{
    const struct rlimit no_core = {0};

    if (!frees_wipe) {
        kh_logf(log, ctx, KH_LOG_WARN, "OpenSSL was used before kh_secure_openssl: its frees do not wipe");
    }
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || setrlimit(RLIMIT_CORE, &no_core) != 0) {
        kh_logf(log, ctx, KH_LOG_WARN, "cannot make the process non-dumpable");
    }
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
    /* A sanitizer's shadow is terabytes of address space, and not to be locked. */
    if (!lock_memory()) {
        kh_logf(log, ctx, KH_LOG_WARN,
                "cannot lock memory: keys may reach the swap (raise RLIMIT_MEMLOCK, or give root CAP_IPC_LOCK)");
    }
#else
    (void)lock_memory;
#endif
}

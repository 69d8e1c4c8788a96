/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a role: the same program again, from the descriptor it was started from, in a fresh address space.
 */
#ifndef KH_AGENT_PROCESS_H
#define KH_AGENT_PROCESS_H

#include "config.h"
#include <sys/types.h>

typedef struct kh_process_spec {
    const char *role; /* argv[0]: KH_ROLE_FRONT, …; its main is found by it */
    int exe_fd;       /* of the program */
    int channel_fd;   /* becomes KH_BOOT_FD; every other descriptor above 2 is closed */
    bool change_user;
    bool locks_memory; /* it locks all that it has: its user's limit must not stand in the way */
    kh_user user;
    size_t descriptors; /* RLIMIT_NOFILE */
    char *const *env;   /* "NAME=VALUE", env_count of them: its environment */
    size_t env_count;
} kh_process_spec;

/* Returns the child's pid, or -1 with errno. */
pid_t kh_process_start(const kh_process_spec *spec);
/*
 * Whether that user may read the file: 0, or the errno of the refusal. A process of the user looks, since root in the unit,
 * which has no CAP_DAC_OVERRIDE, sees into no directory that is the keeper's alone.
 */
int kh_process_may_read(const kh_user *user, const char *path);

#endif

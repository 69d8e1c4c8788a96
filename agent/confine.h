/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each process gives up once it has what it needs. A refused system call returns EPERM: a library that
 * tries something unexpected goes on, and the attempt is no way to kill the agent.
 */
#ifndef KH_AGENT_CONFINE_H
#define KH_AGENT_CONFINE_H

#include <stddef.h>

typedef enum kh_confine_role {
    KH_CONFINE_SUPERVISOR,
    KH_CONFINE_SUPERVISOR_OF_TOKENS, /* its children may connect: a vendor's library has to reach its HSM */
    KH_CONFINE_FRONT,
    KH_CONFINE_KEEPER,
    KH_CONFINE_TOKEN, /* a token's keeper with `confine = strict`; the library is loaded already */
} kh_confine_role;

/*
 * Installs the role's seccomp filter on all threads; no new privileges. The front and the keeper may only do
 * what is listed; the supervisor all but what is listed, since its children inherit its filter and have to
 * start. Logs what is missing; a process that cannot be confined exits, unless it is a sanitizer build, which
 * never is confined.
 */
void kh_confine(kh_confine_role role);

/* A path that the supervisor and its children may still open. */
typedef struct kh_confine_path {
    const char *path;
    enum { KH_PATH_READ, KH_PATH_EXECUTE, KH_PATH_SOCKETS, KH_PATH_STORE, KH_PATH_ALL, KH_PATH_LOOK } what;
} kh_confine_path;

/*
 * Landlock, where the kernel has it: only these paths, and what the program and its libraries were loaded
 * from. READ: the file, or what is below the directory. SOCKETS: sockets may be made and removed in the
 * directory. STORE: all but executing and making directories below the directory. ALL: all but executing. LOOK: reading, listing
 * and executing. A path that does not exist is skipped. Returns
 * whether it is in force.
 */
int kh_confine_paths(const kh_confine_path *paths, size_t count);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for secrets: pages of their own, locked, left out of core dumps, zero in a forked child, wiped when
 * freed.
 */
#ifndef KH_AGENT_SECRET_H
#define KH_AGENT_SECRET_H

#include <keyhold/types.h>

/*
 * len bytes, zeroed; NULL: no memory. When it cannot be locked (RLIMIT_MEMLOCK), *locked (may be NULL)
 * becomes false.
 */
void *kh_secret_alloc(size_t len, bool *locked);
/* Wipes and unmaps; len as it was allocated. NULL is fine. */
void kh_secret_free(void *secret, size_t len);
/* This process: not dumpable, no core file. Before the first secret is read. */
void kh_secret_process(void);

#endif

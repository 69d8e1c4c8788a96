/* SPDX-License-Identifier: Apache-2.0 */
/* A token without Keyhold: threads that do nothing but sign, each with a session, through the bare PKCS#11 interface. */
#ifndef KH_BARE_H
#define KH_BARE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct kh_bare_config {
    const char *module, *token, *pin;
    const char *const *keys; /* labels of P-256 keys, taken in turn by the threads */
    unsigned key_count, threads;
    uint64_t warmup_ns, duration_ns;
    const char *const *env; /* "NAME=value", NULL at the end: for the module */
} kh_bare_config;

/* Signatures per second, measured in a process of its own. False: could not be measured (a message is on standard error). */
bool kh_bare_run(const kh_bare_config *config, double *per_second);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What makes a process fit to hold keys. */
#ifndef KEYHOLD_KEYSTORE_PROCESS_H
#define KEYHOLD_KEYSTORE_PROCESS_H

#include <keyhold/keystore.h>

/* Not dumpable, no core, memory locked. What the system refuses is logged as a warning. */
void kh_process_harden(kh_log_fn log, void *ctx);
/* printf to a log; cuts at 512 bytes. */
void kh_logf(kh_log_fn log, void *ctx, kh_log_level level, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t kh_now_ns(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram of microseconds: eight buckets for each power of two, so that a quantile is right to an eighth.
 * Adding is a few instructions and never fails. Zero-initialise it.
 */
#ifndef KH_AGENT_HISTOGRAM_H
#define KH_AGENT_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define KH_HISTOGRAM_POWERS 36 /* up to 2^36 us, 19 hours; longer ones count as that */
#define KH_HISTOGRAM_BUCKETS ((KH_HISTOGRAM_POWERS - 2) * 8)

typedef struct kh_histogram {
    uint64_t count;
    uint64_t sum_us;
    uint64_t buckets[KH_HISTOGRAM_BUCKETS];
} kh_histogram;

void kh_histogram_add(kh_histogram *histogram, uint64_t us);
/* The value below which `permille` of 1000 values lie: the upper end of its bucket. 0 when empty. */
uint64_t kh_histogram_quantile(const kh_histogram *histogram, unsigned permille);
/* Values in [2^power, 2^(power+1)) microseconds; power 0 includes 0. */
uint64_t kh_histogram_power(const kh_histogram *histogram, unsigned power);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram of microseconds. Values below 8 have a bucket each; above, the three bits after the leading one
 * choose.
 */
#include "histogram.h"

static unsigned index_of(uint64_t us)
{
    unsigned power = 0;

    if (us < 8) {
        return (unsigned)us;
    }
    power = 63 - (unsigned)__builtin_clzll(us);
    if (power >= KH_HISTOGRAM_POWERS) {
        return KH_HISTOGRAM_BUCKETS - 1;
    }
    return (power - 2) * 8 + (unsigned)(us >> (power - 3) & 7);
}

static uint64_t upper_end(unsigned index)
{
    unsigned power = index / 8 + 2;

    return index < 8 ? index : ((uint64_t)(8 + index % 8 + 1) << (power - 3)) - 1;
}

void kh_histogram_add(kh_histogram *histogram, uint64_t us)
{
    histogram->count++;
    histogram->sum_us += us;
    histogram->buckets[index_of(us)]++;
}

uint64_t kh_histogram_quantile(const kh_histogram *histogram, unsigned permille)
{
    uint64_t rank = (histogram->count * permille + 999) / 1000, seen = 0;

    if (histogram->count == 0) {
        return 0;
    }
    for (unsigned i = 0; i < KH_HISTOGRAM_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen >= rank && seen > 0) {
            return upper_end(i);
        }
    }
    return upper_end(KH_HISTOGRAM_BUCKETS - 1);
}

uint64_t kh_histogram_power(const kh_histogram *histogram, unsigned power)
{
    static const unsigned small[3][2] = {{0, 2}, {2, 4}, {4, 8}};
    unsigned from = power < 3 ? small[power][0] : (power - 2) * 8,
             to = power < 3 ? small[power][1] : from + 8;
    uint64_t sum = 0;

    for (unsigned i = from; i < to && i < KH_HISTOGRAM_BUCKETS; i++) {
        sum += histogram->buckets[i];
    }
    return sum;
}

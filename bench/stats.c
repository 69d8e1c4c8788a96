/* SPDX-License-Identifier: Apache-2.0 */
/* Clock, histogram, median, and the CPU time of other processes. */
#include "bench.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

uint64_t kh_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Below KH_HIST_STEPS a bucket per value; above, KH_HIST_STEPS buckets for each power of two. */
static size_t hist_bucket(uint64_t ns)
{
    unsigned shift;

    if (ns < KH_HIST_STEPS) {
        return (size_t)ns;
    }
    shift = 63u - (unsigned)__builtin_clzll(ns) - 7u;
    return (size_t)(shift + 1) * KH_HIST_STEPS + (size_t)((ns >> shift) - KH_HIST_STEPS);
}

static uint64_t hist_value(size_t bucket)
{
    unsigned shift;

    if (bucket < KH_HIST_STEPS) {
        return bucket;
    }
    shift = (unsigned)(bucket / KH_HIST_STEPS) - 1;
    return (((uint64_t)(bucket % KH_HIST_STEPS) + KH_HIST_STEPS) << shift) + ((uint64_t)1 << shift) / 2;
}

void kh_hist_add(kh_hist *hist, uint64_t ns)
{
    hist->buckets[hist_bucket(ns)]++;
    hist->count++;
    if (ns > hist->max_ns) {
        hist->max_ns = ns;
    }
}

void kh_hist_merge(kh_hist *into, const kh_hist *from)
{
    into->count += from->count;
    into->max_ns = from->max_ns > into->max_ns ? from->max_ns : into->max_ns;
    for (size_t i = 0; i < KH_HIST_BUCKETS; i++) {
        into->buckets[i] += from->buckets[i];
    }
}

uint64_t kh_hist_quantile(const kh_hist *hist, double share)
{
    uint64_t rank = (uint64_t)(share * (double)hist->count + 0.5);
    uint64_t seen = 0;
    uint64_t value;
    size_t i;

    if (hist->count == 0) {
        return 0;
    }
    if (rank < 1) {
        rank = 1;
    }
    for (i = 0; i < KH_HIST_BUCKETS; i++) {
        seen += hist->buckets[i];
        if (seen >= rank) {
            value = hist_value(i);
            return value < hist->max_ns ? value : hist->max_ns;
        }
    }
    return hist->max_ns;
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return (x > y) - (x < y);
}

double kh_median(double *values, size_t count)
{
    if (count == 0) {
        return 0;
    }
    qsort(values, count, sizeof(*values), compare_double);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

bool kh_pids_parse(kh_pids *pids, const char *text)
{
    char *end;
    long pid;

    for (;;) {
        while (*text == ',' || isspace((unsigned char)*text)) {
            text++;
        }
        if (*text == '\0') {
            return pids->count > 0;
        }
        errno = 0;
        pid = strtol(text, &end, 10);
        if (errno != 0 || end == text || pid <= 0 || pids->count == KH_PIDS_MAX) {
            return false;
        }
        pids->pid[pids->count++] = (pid_t)pid;
        text = end;
    }
}

/* The kernel's per-process CPU clock: nanoseconds over all threads, finer than the ticks in /proc/PID/stat. */
static bool cpu_time(pid_t pid, uint64_t *ns)
{
    struct timespec used;
    clockid_t clock;

    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0) {
        return false;
    }
    *ns = (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
    return true;
}

bool kh_pids_start(kh_pids *pids)
{
    size_t i;

    for (i = 0; i < pids->count; i++) {
        if (!cpu_time(pids->pid[i], &pids->start_ns[i])) {
            return false;
        }
    }
    return true;
}

uint64_t kh_pids_used(const kh_pids *pids, unsigned *gone)
{
    uint64_t now = 0;
    uint64_t sum = 0;
    size_t i;

    *gone = 0;
    for (i = 0; i < pids->count; i++) {
        if (cpu_time(pids->pid[i], &now) && now >= pids->start_ns[i]) {
            sum += now - pids->start_ns[i];
        } else {
            (*gone)++;
        }
    }
    return sum;
}

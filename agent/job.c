/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of jobs and the table of waiting requests. */
#include "job.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 64 /* jobs allocated at a time */
#define CHUNKS_MAX 65536
#define LARGE_KEPT 64     /* large buffers that are kept for the next */
#define TABLE_SIZE 16384u /* a power of two */

struct kh_jobs {
    kh_job **chunks; /* of CHUNK jobs each */
    uint32_t chunk_count;
    uint32_t max_jobs, in_use;
    uint64_t max_bytes, bytes; /* of large buffers */
    kh_job *free;              /* by next */
    uint8_t *large[LARGE_KEPT];
    uint32_t large_count;
    kh_hash_key key;
    kh_job *table[TABLE_SIZE];
};

kh_result kh_jobs_new(uint32_t max_jobs, uint64_t max_bytes, kh_jobs **out)
{
    kh_jobs *jobs = calloc(1, sizeof *jobs);

    *out = NULL;
    if (jobs == NULL) {
        return KH_E_MEMORY;
    }
    jobs->chunks = calloc(CHUNKS_MAX, sizeof *jobs->chunks);
    if (jobs->chunks == NULL) {
        free(jobs);
        return KH_E_MEMORY;
    }
    jobs->key = kh_hash_key_new();
    kh_jobs_limit(jobs, max_jobs, max_bytes);
    *out = jobs;
    return KH_OK;
}

void kh_jobs_limit(kh_jobs *jobs, uint32_t max_jobs, uint64_t max_bytes)
{
    jobs->max_jobs = max_jobs < CHUNK * CHUNKS_MAX ? max_jobs : CHUNK * CHUNKS_MAX;
    jobs->max_bytes = max_bytes;
}

static void drop_large(kh_jobs *jobs, kh_job *job)
{
    if (job->data == job->space) {
        return;
    }
    jobs->bytes -= KH_RECORD_DATA_MAX;
    if (jobs->large_count < LARGE_KEPT) {
        jobs->large[jobs->large_count++] = job->data;
    } else {
        free(job->data);
    }
    job->data = job->space;
}

void kh_jobs_free(kh_jobs *jobs)
{
    if (jobs == NULL) {
        return;
    }
    for (uint32_t i = 0; i < jobs->chunk_count; i++) {
        for (uint32_t j = 0; j < CHUNK; j++) {
            if (jobs->chunks[i][j].state != KH_JOB_FREE) {
                drop_large(jobs, &jobs->chunks[i][j]);
            }
        }
        free(jobs->chunks[i]);
    }
    while (jobs->large_count > 0) {
        free(jobs->large[--jobs->large_count]);
    }
    free(jobs->chunks);
    free(jobs);
}

static bool grow(kh_jobs *jobs)
{
    kh_job *chunk = NULL;

    if (jobs->chunk_count >= CHUNKS_MAX || (chunk = calloc(CHUNK, sizeof *chunk)) == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < CHUNK; i++) {
        chunk[i].index = jobs->chunk_count * CHUNK + i;
        chunk[i].seq = 1;
        chunk[i].data = chunk[i].space;
        chunk[i].next = jobs->free;
        jobs->free = &chunk[i];
    }
    jobs->chunks[jobs->chunk_count++] = chunk;
    return true;
}

static bool take_large(kh_jobs *jobs, kh_job *job)
{
    if (jobs->bytes + KH_RECORD_DATA_MAX > jobs->max_bytes) {
        return false;
    }
    job->data = jobs->large_count > 0 ? jobs->large[--jobs->large_count] : malloc(KH_RECORD_DATA_MAX);
    if (job->data == NULL) {
        job->data = job->space;
        return false;
    }
    jobs->bytes += KH_RECORD_DATA_MAX;
    return true;
}

kh_job *kh_job_take(kh_jobs *jobs, uint32_t data_len)
{
    kh_job *job = NULL;
    uint32_t index = 0, seq = 0;

    if (jobs->in_use >= jobs->max_jobs || data_len > KH_RECORD_DATA_MAX ||
        (jobs->free == NULL && !grow(jobs))) {
        return NULL;
    }
    job = jobs->free;
    if (data_len > KH_JOB_INLINE && !take_large(jobs, job)) {
        return NULL;
    }
    jobs->free = job->next;
    jobs->in_use++;
    index = job->index;
    seq = job->seq;
    memset(job, 0, offsetof(kh_job, data));
    job->index = index;
    job->seq = seq;
    job->state = KH_JOB_LOOKUP;
    job->heap_index = UINT32_MAX;
    job->data_len = data_len;
    return job;
}

void kh_job_release(kh_jobs *jobs, kh_job *job)
{
    OPENSSL_cleanse(job->data, job->data_len);
    drop_large(jobs, job);
    job->data_len = 0;
    job->state = KH_JOB_FREE;
    job->seq++;
    job->next = jobs->free;
    jobs->free = job;
    jobs->in_use--;
}

uint64_t kh_job_cookie(const kh_job *job)
{
    return (uint64_t)job->seq << 32 | job->index;
}

kh_job *kh_jobs_find(const kh_jobs *jobs, uint64_t cookie)
{
    uint32_t index = (uint32_t)cookie;
    kh_job *job = NULL;

    if (index / CHUNK >= jobs->chunk_count) {
        return NULL;
    }
    job = &jobs->chunks[index / CHUNK][index % CHUNK];
    return job->state != KH_JOB_FREE && job->seq == (uint32_t)(cookie >> 32) ? job : NULL;
}

uint32_t kh_jobs_in_use(const kh_jobs *jobs)
{
    return jobs->in_use;
}

static uint32_t bucket_of(const kh_jobs *jobs, const struct kh_conn *conn, uint32_t request_id)
{
    const uint64_t words[2] = {(uint64_t)(uintptr_t)conn, request_id};

    return (uint32_t)kh_hash(jobs->key, words, sizeof words) & (TABLE_SIZE - 1);
}

void kh_jobs_enter(kh_jobs *jobs, kh_job *job)
{
    kh_job **bucket = &jobs->table[bucket_of(jobs, job->conn, job->request_id)];

    job->hash_next = *bucket;
    *bucket = job;
}

void kh_jobs_leave(kh_jobs *jobs, kh_job *job)
{
    kh_job **at = &jobs->table[bucket_of(jobs, job->conn, job->request_id)];

    while (*at != NULL && *at != job) {
        at = &(*at)->hash_next;
    }
    if (*at == job) {
        *at = job->hash_next;
        job->hash_next = NULL;
    }
}

kh_job *kh_jobs_request(const kh_jobs *jobs, const struct kh_conn *conn, uint32_t request_id)
{
    kh_job *job = jobs->table[bucket_of(jobs, conn, request_id)];

    while (job != NULL && (job->conn != conn || job->request_id != request_id)) {
        job = job->hash_next;
    }
    return job;
}

void kh_job_list_append(kh_job_list *list, kh_job *job)
{
    job->next = NULL;
    job->prev = list->last;
    if (list->last != NULL) {
        list->last->next = job;
    } else {
        list->first = job;
    }
    list->last = job;
    list->count++;
}

void kh_job_list_remove(kh_job_list *list, kh_job *job)
{
    if (job->prev != NULL) {
        job->prev->next = job->next;
    } else {
        list->first = job->next;
    }
    if (job->next != NULL) {
        job->next->prev = job->prev;
    } else {
        list->last = job->prev;
    }
    job->next = job->prev = NULL;
    list->count--;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the front remembers of the keeper's keys. Each entry is in the table and in exactly one of four lists.
 */
#include "directory.h"
#include <stdlib.h>
#include <string.h>

#define TABLE_SIZE 32768u /* a power of two */

typedef struct entry_list {
    kh_entry *first, *last;
    uint32_t count;
} entry_list;

struct kh_directory {
    kh_hash_key key;
    uint32_t max_entries;
    uint64_t generation;
    entry_list wanted, asked, known, absent; /* known and absent: least recently used first */
    kh_directory_stats stats;
    kh_entry *table[TABLE_SIZE];
};

static void append(entry_list *list, kh_entry *entry)
{
    entry->next = NULL;
    entry->prev = list->last;
    *(list->last != NULL ? &list->last->next : &list->first) = entry;
    list->last = entry;
    list->count++;
}

static void detach(entry_list *list, kh_entry *entry)
{
    *(entry->prev != NULL ? &entry->prev->next : &list->first) = entry->next;
    *(entry->next != NULL ? &entry->next->prev : &list->last) = entry->prev;
    list->count--;
}

static entry_list *list_of(kh_directory *directory, const kh_entry *entry)
{
    switch (entry->state) {
    case KH_ENTRY_WANTED:
        return &directory->wanted;
    case KH_ENTRY_ASKED:
        return &directory->asked;
    default:
        return entry->count > 0 ? &directory->known : &directory->absent;
    }
}

static kh_entry **bucket_of(kh_directory *directory, const uint8_t *key, size_t len)
{
    return &directory->table[kh_hash(directory->key, key, len) & (TABLE_SIZE - 1)];
}

static void destroy(kh_directory *directory, kh_entry *entry)
{
    kh_entry **at = bucket_of(directory, entry->key, entry->key_len);

    while (*at != entry) {
        at = &(*at)->hash_next;
    }
    *at = entry->hash_next;
    detach(list_of(directory, entry), entry);
    free(entry->infos);
    free(entry);
}

kh_result kh_directory_new(uint32_t max_entries, kh_directory **out)
{
    kh_directory *directory = calloc(1, sizeof *directory);

    *out = directory;
    if (directory == NULL) {
        return KH_E_MEMORY;
    }
    directory->key = kh_hash_key_new();
    directory->max_entries = max_entries;
    return KH_OK;
}

void kh_directory_free(kh_directory *directory)
{
    if (directory == NULL) {
        return;
    }
    entry_list *lists[] = {&directory->wanted, &directory->asked, &directory->known, &directory->absent};

    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        while (lists[i]->first != NULL) {
            destroy(directory, lists[i]->first);
        }
    }
    free(directory);
}

static void shrink(kh_directory *directory)
{
    while (directory->known.count > directory->max_entries) {
        destroy(directory, directory->known.first);
        directory->stats.evicted++;
    }
    while (directory->absent.count > KH_DIRECTORY_NEGATIVE_MAX) {
        destroy(directory, directory->absent.first);
    }
}

void kh_directory_limit(kh_directory *directory, uint32_t max_entries)
{
    directory->max_entries = max_entries;
    shrink(directory);
}

void kh_directory_generation(kh_directory *directory, uint64_t generation)
{
    if (directory->generation == generation) {
        return;
    }
    directory->generation = generation;
    directory->stats.dropped++;
    while (directory->known.first != NULL) {
        destroy(directory, directory->known.first);
    }
    while (directory->absent.first != NULL) {
        destroy(directory, directory->absent.first);
    }
    for (kh_entry *entry = directory->asked.first; entry != NULL; entry = entry->next) {
        entry->stale = true;
    }
}

static kh_entry *find(kh_directory *directory, const uint8_t *key, size_t len, bool is_id)
{
    kh_entry *entry = *bucket_of(directory, key, len);

    while (entry != NULL &&
           (entry->is_id != is_id || entry->key_len != len || memcmp(entry->key, key, len) != 0)) {
        entry = entry->hash_next;
    }
    return entry;
}

static kh_entry *make(kh_directory *directory, const uint8_t *key, size_t len, bool is_id)
{
    kh_entry *entry = calloc(1, sizeof *entry + len);
    kh_entry **bucket = bucket_of(directory, key, len);

    if (entry == NULL) {
        return NULL;
    }
    entry->state = KH_ENTRY_WANTED;
    entry->is_id = is_id;
    entry->key_len = (uint8_t)len;
    memcpy(entry->key, key, len);
    entry->hash_next = *bucket;
    *bucket = entry;
    append(&directory->wanted, entry);
    return entry;
}

kh_result kh_directory_get(kh_directory *directory, const uint8_t *key, size_t len, bool is_id,
                           kh_entry **out)
{
    kh_entry *entry = NULL;

    *out = NULL;
    if (len == 0 || len > KH_DIRECTORY_KEY_MAX) {
        return KH_E_TOO_LARGE;
    }
    entry = find(directory, key, len, is_id);
    if (entry == NULL) {
        directory->stats.misses++;
        entry = make(directory, key, len, is_id);
        if (entry == NULL) {
            return KH_E_MEMORY;
        }
    }
    *out = entry;
    if (entry->state != KH_ENTRY_KNOWN) {
        return KH_AGAIN;
    }
    detach(list_of(directory, entry), entry);
    append(list_of(directory, entry), entry);
    if (entry->count > 0) {
        directory->stats.hits++;
    } else {
        directory->stats.absent_hits++;
    }
    return KH_OK;
}

void kh_directory_wait(kh_entry *entry, kh_job *job)
{
    kh_job_list_append(&entry->waiters, job);
    job->entry = entry;
    job->state = KH_JOB_LOOKUP;
}

void kh_directory_unwait(kh_directory *directory, kh_job *job)
{
    kh_entry *entry = job->entry;

    kh_job_list_remove(&entry->waiters, job);
    job->entry = NULL;
    if (entry->state == KH_ENTRY_WANTED && entry->waiters.count == 0) {
        destroy(directory, entry);
    }
}

kh_entry *kh_directory_wanted(kh_directory *directory, uint64_t cookie)
{
    kh_entry *entry = directory->wanted.first;

    if (entry != NULL) {
        detach(&directory->wanted, entry);
        entry->state = KH_ENTRY_ASKED;
        entry->stale = false;
        entry->cookie = cookie;
        append(&directory->asked, entry);
    }
    return entry;
}

kh_entry *kh_directory_asked(kh_directory *directory, uint64_t cookie)
{
    kh_entry *entry = directory->asked.first;

    while (entry != NULL && entry->cookie != cookie) {
        entry = entry->next;
    }
    return entry;
}

static size_t size_of(const kh_key_info *info)
{
    size_t spki_len = info->spki_len <= KH_SPKI_MAX ? info->spki_len : 0;

    return (offsetof(kh_key_info, spki) + spki_len + 7) / 8 * 8;
}

/* One block: the pointers, then what they point to. NULL: no memory. */
static const kh_key_info **pack(const kh_key_info *infos, size_t count)
{
    size_t size = count * sizeof(kh_key_info *);
    const kh_key_info **packed = NULL;
    uint8_t *at = NULL;

    for (size_t i = 0; i < count; i++) {
        size += size_of(&infos[i]);
    }
    packed = malloc(size);
    if (packed == NULL) {
        return NULL;
    }
    at = (uint8_t *)(packed + count);
    for (size_t i = 0; i < count; i++) {
        kh_key_info *info = (kh_key_info *)(void *)at;

        memcpy(info, &infos[i], size_of(&infos[i]));
        info->spki_len = info->spki_len <= KH_SPKI_MAX ? info->spki_len : 0;
        info->name[KH_NAME_MAX] = '\0';
        info->place[KH_PLACE_MAX] = '\0';
        packed[i] = info;
        at += size_of(&infos[i]);
    }
    return packed;
}

static void become_known(kh_directory *directory, kh_entry *entry, const kh_key_info **infos, uint32_t count)
{
    detach(&directory->asked, entry);
    free(entry->infos);
    entry->infos = infos;
    entry->count = count;
    entry->state = KH_ENTRY_KNOWN;
    append(list_of(directory, entry), entry);
}

kh_result kh_directory_answer(kh_directory *directory, kh_entry *entry, kh_result result,
                              const kh_key_info *infos, size_t count, kh_job_list *waiters)
{
    const kh_key_info **copy = NULL;

    *waiters = entry->waiters;
    entry->waiters = (kh_job_list){0};
    for (kh_job *job = waiters->first; job != NULL; job = job->next) {
        job->entry = NULL;
        job->found = entry;
    }
    if (result == KH_E_NOT_FOUND) {
        count = 0;
    } else if (result != KH_OK) {
        return result;
    } else if (count == 0 || count > KH_LOOKUP_MAX) {
        return KH_E_INTERNAL;
    }
    if (count > 0) {
        copy = pack(infos, count);
        if (copy == NULL) {
            return KH_E_MEMORY;
        }
    }
    become_known(directory, entry, copy, (uint32_t)count);
    return KH_OK;
}

void kh_directory_settle(kh_directory *directory, kh_entry *entry)
{
    if (entry->state == KH_ENTRY_KNOWN && !entry->stale) {
        shrink(directory);
    } else if (entry->state == KH_ENTRY_KNOWN || entry->waiters.count == 0) {
        destroy(directory, entry);
    } else { /* somebody began to wait while the others were answered */
        detach(&directory->asked, entry);
        entry->state = KH_ENTRY_WANTED;
        append(&directory->wanted, entry);
    }
}

void kh_directory_again(kh_directory *directory)
{
    while (directory->asked.first != NULL) {
        kh_entry *entry = directory->asked.first;

        detach(&directory->asked, entry);
        entry->state = KH_ENTRY_WANTED;
        append(&directory->wanted, entry);
        if (entry->waiters.count == 0) {
            destroy(directory, entry);
        }
    }
}

void kh_directory_get_stats(const kh_directory *directory, kh_directory_stats *stats)
{
    *stats = directory->stats;
    stats->entries = directory->known.count;
    stats->absent = directory->absent.count;
    stats->pending = directory->wanted.count + directory->asked.count;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the front remembers of the keeper's keys: name, name/version or id to the versions that it names.
 * Bounded, least recently used out first; keys that do not exist are remembered too, in a bound of their own,
 * so that asking for them costs the keeper nothing and pushes no real key out. Requests for a key that is
 * being looked up wait for the one lookup.
 *
 * There may be very many: an entry takes no more memory than its key, its names and its public keys need.
 *
 * Nothing here does a lookup: the caller takes what is wanted (kh_directory_wanted) and brings the answer.
 */
#ifndef KH_AGENT_DIRECTORY_H
#define KH_AGENT_DIRECTORY_H

#include "job.h"

#define KH_DIRECTORY_KEY_MAX (KH_NAME_MAX + 12) /* bytes: a name, a slash, a version */
#define KH_DIRECTORY_NEGATIVE_MAX 4096          /* absent keys remembered */

typedef enum kh_entry_state {
    KH_ENTRY_WANTED, /* somebody waits; no lookup is under way */
    KH_ENTRY_ASKED,  /* a lookup is under way */
    KH_ENTRY_KNOWN,
} kh_entry_state;

typedef struct kh_entry kh_entry;
struct kh_entry {
    kh_entry_state state;
    bool is_id;
    bool stale; /* the generation changed while it was asked: good for those who wait, not to keep */
    uint8_t key_len;
    uint32_t count; /* infos; 0 and KNOWN: there is no such key */
    const kh_key_info **infos; /* one block with what they point to, which ends with the last byte of each spki */
    uint64_t cookie;     /* ASKED: of the lookup */
    kh_job_list waiters; /* jobs in state LOOKUP */
    kh_entry *hash_next;
    kh_entry *next, *prev; /* list by state */
    uint8_t key[];
};

typedef struct kh_directory kh_directory;

typedef struct kh_directory_stats {
    uint64_t hits, misses, absent_hits, evicted, dropped;
    uint32_t entries, absent, pending;
} kh_directory_stats;

KH_MUST_USE kh_result kh_directory_new(uint32_t max_entries, kh_directory **directory);
void kh_directory_free(kh_directory *directory);
void kh_directory_limit(kh_directory *directory, uint32_t max_entries);
/* Forgets everything known when the generation is another than at the last call. */
void kh_directory_generation(kh_directory *directory, uint64_t generation);
/*
 * The entry of a key. KH_OK: it is KNOWN. KH_AGAIN: it is WANTED or ASKED, and the caller may wait in it.
 * KH_E_MEMORY. KH_E_TOO_LARGE: no key has such a long name.
 */
KH_MUST_USE kh_result kh_directory_get(kh_directory *directory, const uint8_t *key, size_t len, bool is_id,
                                       kh_entry **entry);
void kh_directory_wait(kh_entry *entry, kh_job *job);
/* The job waits no longer. An entry that nobody waits for and that was not asked yet goes away. */
void kh_directory_unwait(kh_directory *directory, kh_job *job);
/* The oldest WANTED entry, now ASKED under that cookie (of the caller's, not 0); NULL: none. */
kh_entry *kh_directory_wanted(kh_directory *directory, uint64_t cookie);
/* The ASKED entry with that cookie; NULL. Linear in the lookups under way. */
kh_entry *kh_directory_asked(kh_directory *directory, uint64_t cookie);
/*
 * The answer: result OK with infos (copied; at most KH_LOOKUP_MAX), or NOT_FOUND, makes the entry KNOWN;
 * anything else, and no memory, leaves it unknown. The caller takes the waiters out of *waiters and answers
 * them, looking at the entry if it gets KH_OK back, before it calls kh_directory_settle, after which the
 * entry may be gone.
 */
KH_MUST_USE kh_result kh_directory_answer(kh_directory *directory, kh_entry *entry, kh_result result,
                                          const kh_key_info *infos, size_t count, kh_job_list *waiters);
void kh_directory_settle(kh_directory *directory, kh_entry *entry);
/* All that was ASKED is WANTED again: the keeper died. */
void kh_directory_again(kh_directory *directory);
void kh_directory_get_stats(const kh_directory *directory, kh_directory_stats *stats);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring: the memory that front and keeper share, and the keeper's private view of it.
 *
 * The front writes records into slots and their numbers into the submission queue; the keeper writes results
 * into the same slots and their numbers into the completion queue. Each queue has at least as many entries as
 * there are slots, so an honest front never overruns one; a hostile one overruns only itself.
 *
 * Who sleeps says so in the memory (`sleepers`, `front_waits`), so nobody makes a system call to wake one who
 * is awake. Workers sleep on the futex `door`: it wakes exactly as many as there is work for, which a
 * descriptor cannot. The front sleeps in its event loop, on a socket into which the keeper puts one byte for
 * each wish it takes.
 *
 * The keeper trusts none of it. Its indices and its copy of every record are private; what it reads from the
 * memory is masked or bounds-checked once, after the copy. It never waits for the front: a worker sleeps at
 * the door for a bounded time, since a front can move its waiters to where no wake-up finds them
 * (FUTEX_REQUEUE), and a write to the front's socket never blocks.
 */
#ifndef KEYHOLD_KEYSTORE_RING_H
#define KEYHOLD_KEYSTORE_RING_H

#include <keyhold/keystore.h>
#include <stdatomic.h>

#define KH_RING_SLOTS_MIN 8
#define KH_RING_SLOTS_MAX 4096
#define KH_RING_MAGIC UINT64_C(0x31676e69722d686b) /* "kh-ring1" */

typedef struct kh_ring_slot {
    uint64_t key_ref;
    uint64_t deadline_ns;
    uint32_t op, scheme, flags, arg, data_len;
    uint32_t result, result_len, batch;
    uint8_t data[KH_RECORD_DATA_MAX];
} kh_ring_slot;

#define KH_STATS_WORDS (sizeof(kh_keeper_stats) / sizeof(uint64_t))

/* What lies at the start of the memory. The two queues follow it, then the slots. */
typedef struct kh_ring_shared {
    uint64_t magic;
    uint32_t layout; /* differs between builds that do not fit together */
    uint32_t slots;
    _Atomic uint32_t served; /* a keeper has had this ring */
    /* Written by the front. */
    _Alignas(64) _Atomic uint32_t sq_tail;
    _Atomic uint32_t front_waits; /* 1: the front wants an event with the next completion */
    _Atomic uint32_t apart;       /* the CPU that workers leave to the front, + 1; 0: none */
    /* Written by both: each wake-up of a worker changes it. */
    _Alignas(64) _Atomic uint32_t door;
    /* Written by the keeper. */
    _Alignas(64) _Atomic uint32_t cq_tail;
    _Atomic uint32_t sleepers;
    _Atomic uint64_t generation;
    _Alignas(64) _Atomic uint64_t stats[KH_STATS_WORDS];
} kh_ring_shared;

/* Where things are in a mapping of `slots` slots; all from one private number. */
typedef struct kh_ring_map {
    kh_ring_shared *shared;
    _Atomic uint32_t *sq, *cq;
    kh_ring_slot *slot;
    uint32_t slots;
    uint32_t mask; /* queue entries - 1; entries are a power of two */
    size_t len;
} kh_ring_map;

uint32_t kh_ring_layout(void);
/* Maps the memory of a ring and checks its header and its size. KH_E_VERSION, KH_E_MEMORY, KH_E_INVALID. */
KH_MUST_USE kh_result kh_ring_mmap(int fd, kh_ring_map *map);
void kh_ring_munmap(kh_ring_map *map);

/* Wakes up to n waiters of a futex word, whichever process they are in. */
void kh_futex_wake(_Atomic uint32_t *word, uint32_t n);
/* Sleeps while *word == value; timeout_ns 0: for ever. May return early. */
void kh_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);

/* ---- The keeper's end ---------------------------------------------------------------------------------- */

/* A private copy of one record: what the front may scribble afterwards no longer matters. */
typedef struct kh_ring_copy {
    kh_record record; /* .data unset */
    uint32_t slot;
} kh_ring_copy;

typedef struct kh_ring_end {
    kh_ring_map map;
    int event_fd; /* to the front */
    uint32_t sq_head;
    uint32_t cq_tail;
    bool *taken; /* by slot: taken and not yet answered, so that no two operations share a slot, whatever the
                    front says */
} kh_ring_end;

/* Takes ownership of the descriptors, also on failure. A ring that another keeper had is continued at its
 * end. */
KH_MUST_USE kh_result kh_ring_end_open(int fds[3], kh_ring_end *end);
void kh_ring_end_close(kh_ring_end *end);
/* Whether there is something to take. Sequentially consistent with what `sleepers` says. */
bool kh_ring_end_pending(const kh_ring_end *end);
/* Copies the header of the next record. false: none there. An entry that names no slot, or one that is taken,
 * is skipped. */
bool kh_ring_end_next(kh_ring_end *end, kh_ring_copy *copy);
/* Copies its data: at most copy->record.data_len bytes, which the caller has checked against its buffer. */
void kh_ring_end_data(const kh_ring_end *end, const kh_ring_copy *copy, uint8_t *data);
/*
 * The record of a copy into private memory, with its data: in space, or, where that is too small, in *longer (the caller's to wipe
 * and free; NULL: not used). Nothing is looked at before it is copied. KH_E_TOO_LARGE, KH_E_MEMORY: without data.
 */
KH_MUST_USE kh_result kh_ring_end_take(const kh_ring_end *end, const kh_ring_copy *copy, kh_record *record, uint8_t *space,
                                       size_t space_len, uint8_t **longer);
/* Writes a result into a slot; needs no lock. */
void kh_ring_end_result(const kh_ring_end *end, uint32_t slot, kh_result result, const uint8_t *data,
                        size_t len, uint32_t batch);
/* Announces a slot as completed: it is the front's again. Under the lock under which records are taken. */
void kh_ring_end_push(kh_ring_end *end, uint32_t slot);
/* Wakes the front if it waits. */
void kh_ring_end_ring_front(const kh_ring_end *end);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper's inside. Threads:
 *   main       keeper.c     control socket, admin socket, rings; starts and stops the others
 *   workers    worker.c     take records from the ring, form batches, sign
 *   store      storework.c  everything that reads or writes the store; alone with the database
 *              storetask.c  what of that takes long, in slices
 *   generator  generator.c  what takes long: making keys, judging imported ones
 *
 * One lock, `lock`, guards what workers share: ring, lanes, completions, statistics. It is in this
 * process's memory, held briefly, and never during a private-key operation or a call of the store.
 * An operation belongs to one queue or one thread at a time.
 */
#ifndef KEYHOLD_KEYSTORE_KEEPER_H
#define KEYHOLD_KEYSTORE_KEEPER_H

#include "cache.h"
#include "keeper_ring.h"
#include "material.h"
#include "software.h"
#include "store.h"

#include <pthread.h>

#define KH_OP_INLINE 1024 /* every TLS message to sign, but for a client's TLS 1.2 transcript, fits */

struct kh_keeper;

typedef struct kh_op {
    struct kh_op *next;
    void (*run)(struct kh_keeper *keeper, struct kh_op *op); /* no operation but an event of the store thread's, which is its own */
    void (*answered)(struct kh_keeper *keeper, struct kh_op *op); /* the keeper's own: called instead of an answer */
    kh_keeper_ring *ring; /* NULL: came over the admin socket */
    int admin_fd;                /* answer goes here; owned */
    int file_fd;                 /* came along with it, or -1; owned */
    uint32_t slot;
    kh_record record; /* private; .data is inline_data or long_data */
    uint64_t arrived_ns;
    kh_key *key;         /* a reference, or NULL */
    uint64_t generation; /* the keeper's when `key` was known to be enabled */
    kh_result result;
    uint32_t batch;
    size_t out_len;
    uint8_t *long_data;
    uint8_t *long_out;     /* instead of out */
    kh_material *material; /* made by the generator for the store */
    void *task;            /* of an operation in slices; freed by task_free, on the store's thread */
    void (*task_free)(void *task);
    uint64_t told_ns; /* the last sign of life */
    bool generated;   /* the generator is done with it; result says how it went */
    uint8_t out[KH_SIGNATURE_MAX];
    uint8_t inline_data[KH_OP_INLINE];
} kh_op;

typedef struct kh_op_queue {
    kh_op *first, *last;
    uint32_t count;
} kh_op_queue;

static inline void kh_op_push(kh_op_queue *queue, kh_op *op)
{
    op->next = NULL;
    *(queue->last != NULL ? &queue->last->next : &queue->first) = op;
    queue->last = op;
    queue->count++;
}

static inline kh_op *kh_op_pop(kh_op_queue *queue)
{
    kh_op *op = queue->first;

    if (op != NULL) {
        queue->first = op->next;
        if (queue->first == NULL) {
            queue->last = NULL;
        }
        op->next = NULL;
        queue->count--;
    }
    return op;
}

/* A thread with a queue of its own, in order of preference. */
#define KH_DESK_CLASSES 3
typedef struct kh_desk {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    kh_op_queue queue[KH_DESK_CLASSES];
    uint32_t waiting;
    bool stop;
    pthread_t thread;
    bool running;
} kh_desk;

typedef enum kh_desk_class { KH_DESK_ADMIN = 0, KH_DESK_QUICK, KH_DESK_SLOW } kh_desk_class;

typedef struct kh_keeper {
    const kh_keeper_config *config;
    kh_store *store;
    kh_cache *cache;
    bool keys_dropped;       /* keys changed and nobody was told yet; the store thread's */
    struct kh_links *links;  /* to the tokens' keepers; the store thread's */
    kh_software *store_tier; /* signs what came over the admin socket; the store thread's */

    pthread_mutex_t lock;
    kh_keeper_ring *ring;
    kh_op_queue lane[KH_LANE_COUNT];
    _Atomic uint32_t idle_door; /* workers sleep here while there is no ring */
    uint32_t sleeping;
    uint32_t in_flight; /* operations anywhere in the keeper */
    uint32_t workers_running;
    bool closed; /* stopping: takes no more records */
    uint64_t generation;
    uint32_t epoch;        /* of batches that begin now */
    uint32_t computing[2]; /* batches under way, by the lowest bit of their epoch */
    kh_keeper_stats stats;

    kh_desk store_desk;
    kh_desk generator_desk;
    pthread_t *workers;
    uint32_t worker_count;
} kh_keeper;

/* ---- completion.c: operations that are done ------------------------------------------------------------ */

/* Answers operations; takes the lock. They are gone afterwards. */
void kh_keeper_complete(kh_keeper *keeper, kh_op *const ops[], size_t n);
void kh_keeper_complete_one(kh_keeper *keeper, kh_op *op, kh_result result);
/* Under the lock: adds to the counters of a lane and shows them in the ring. */
void kh_keeper_count(kh_keeper *keeper, int lane, const kh_lane_stats *more);
/* Under the lock: shows everything in the ring. */
void kh_keeper_publish(kh_keeper *keeper);
/* Whether the keeper is stopping. Takes the lock. */
bool kh_keeper_closed(kh_keeper *keeper);
/* Tells fronts that keys changed. Takes the lock. */
void kh_keeper_changed(kh_keeper *keeper);
/*
 * After kh_keeper_changed: waits until the batches that began before it are computed, so that no key that was
 * disabled signs after the change is acknowledged. The store thread's; takes the lock.
 */
void kh_keeper_settle(kh_keeper *keeper);
/* Under the lock: wakes up to n workers. */
void kh_keeper_wake(kh_keeper *keeper, uint32_t n);
/* Takes an operation that belongs to no queue out of the keeper, without an answer. Under the lock. */
void kh_keeper_forget(kh_keeper *keeper, kh_op *op);
/* Memory for a result of up to len bytes, in the operation. NULL: none left. */
uint8_t *kh_op_out(kh_op *op, size_t len);
bool kh_op_expired(const kh_op *op, uint64_t now_ns);
/*
 * Whether the key does that now: its validity, then a question to usage.c with the bytes of the operation. KH_E_DISABLED.
 * KH_E_USAGE is counted by the caller.
 */
kh_result kh_op_usage(const kh_op *op);
void kh_op_to_tier(kh_op *op, kh_tier_op *tier);

/* ---- the threads --------------------------------------------------------------------------------------- */

void *kh_worker_main(void *keeper);
/* Puts an operation whose key is there into its lane and wakes a worker. Takes the lock. */
void kh_worker_hand(kh_keeper *keeper, kh_op *op);

KH_MUST_USE kh_result kh_desk_init(kh_desk *desk);
void kh_desk_destroy(kh_desk *desk);
/* false: it has `limit` operations waiting already, or is stopping. */
bool kh_desk_push(kh_desk *desk, kh_desk_class class_, kh_op *op, uint32_t limit);
/* Blocks; NULL: stop, and nothing is left. */
kh_op *kh_desk_pop(kh_desk *desk);
void kh_desk_stop(kh_desk *desk);

void *kh_storework_main(void *keeper);
/* Routes an operation to the store thread; answers it itself if that is not possible. */
void kh_storework_submit(kh_keeper *keeper, kh_op *op);
void *kh_generator_main(void *keeper);
/* Counts and answers what the store thread is done with. */
void kh_storework_finish(kh_keeper *keeper, kh_op *op, kh_result result, uint64_t busy_ns);
/* An operation of the keeper's own, of root's rights, with a copy of the data; `answered` is called with it. NULL: no memory. */
kh_op *kh_storework_own(uint32_t op, const void *data, size_t len, void (*answered)(kh_keeper *keeper, kh_op *op));
/* Whose rights it has. */
kh_store_asker kh_storework_asker(const kh_op *op);
/* Fronts look keys up anew; what began with keys that are used no more is done. */
void kh_storework_changed(kh_keeper *keeper);
/* Has it done as if somebody had asked. */
void kh_storework_start(kh_keeper *keeper, kh_op *op);
kh_result kh_storework_give_infos(kh_op *op, const kh_key_info *infos, size_t count);

/* ---- storetask.c: operations in slices, on the store's thread. KH_AGAIN: a slice was done, and it waits for
 * the next */

kh_result kh_task_check(kh_keeper *keeper, kh_op *op);
kh_result kh_task_backup(kh_keeper *keeper, kh_op *op);
kh_result kh_task_backed_up(kh_keeper *keeper, kh_op *op);
kh_result kh_task_export(kh_keeper *keeper, kh_op *op);
kh_result kh_task_import(kh_keeper *keeper, kh_op *op);
/* Shows in the ring what the store knows of itself. */
void kh_task_show_store(kh_keeper *keeper);

/* ---- control.c: sockets -------------------------------------------------------------------------------- */

typedef enum kh_control_kind {
    KH_CONTROL_NONE,
    KH_CONTROL_RING,
    KH_CONTROL_STOP,
    KH_CONTROL_PLACES,
    KH_CONTROL_LINK
} kh_control_kind;

#define KH_CONTROL_FDS 3

typedef struct kh_control {
    int fds[KH_CONTROL_FDS]; /* three of RING, one of LINK: the caller's */
    char token[KH_PLACE_MAX + 1]; /* of LINK */
    kh_keeper_places places;      /* of PLACES */
} kh_control;

/* One message of the supervisor. STOP also at the end of file. */
kh_control_kind kh_control_receive(int fd, kh_control *control);

/* admin.c: accepts a peer that may be here; -1: none, or refused. */
int kh_admin_accept(int listener);
/* Reads the one request. NULL: none (closed or malformed). Takes ownership of fd. */
kh_op *kh_admin_receive(int fd, kh_result *result);
/* Sends a part, if there is room for it. */
bool kh_admin_part(int fd, const uint8_t *data, size_t len);
/* Whether the asker has hung up. */
bool kh_admin_gone(int fd);
/* Sends the answer and closes. */
void kh_admin_answer(int fd, kh_result result, const uint8_t *data, size_t len);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of a token's keeper: one process that has one PKCS#11 token open. Threads:
 *   main     token.c       control socket, link to the store's keeper, rings; watches the others, and never calls the library
 *   maker    token_make.c  opens the token, then does what the store's keeper asks: makes, brings in, destroys keys
 *   workers  token_work.c  one for each session: take records from the ring, operate
 *
 * One lock guards everything that they share (rings, keys, queues, the link); it is held briefly and never during a call of the
 * library. What keys are and may do is known from the store's keeper alone (token_key.c), which is asked over the link at a key's
 * first use. Each key has a queue of its own, and they are served in turn, so that a slow key delays no other beyond what runs.
 *
 * A library that hangs or whose token is gone is not argued with: what is under way is answered `unavailable`, and the process
 * ends without finalizing anything; the supervisor starts the next one.
 */
#ifndef KEYHOLD_KEYSTORE_TOKEN_H
#define KEYHOLD_KEYSTORE_TOKEN_H

#include "keeper_ring.h"
#include "link.h"
#include "process.h"
#include "rsakx.h"

#include <pthread.h>

#define KH_TOKEN_INLINE 1024 /* bytes of a record's data that need no memory of their own */

/* Watched from the main thread: whether a thread comes back from the library. */
typedef struct kh_token_watch {
    _Atomic uint32_t calls;       /* odd: inside a call */
    _Atomic uint32_t patience_ms; /* of this call */
    uint32_t seen, waited_ms;     /* the main thread's */
} kh_token_watch;

typedef struct kh_token_op {
    struct kh_token_op *next;
    kh_keeper_ring *ring; /* NULL: a question of the link, with its number */
    uint64_t number;
    uint64_t link_life; /* of the link that asked */
    uint32_t slot;
    bool is_slow; /* counted in slow_in_flight */
    kh_record record; /* private; .data is inline_data or long_data */
    size_t out_len;
    uint8_t *long_data;
    uint8_t out[KH_SIGNATURE_MAX];
    uint8_t inline_data[KH_TOKEN_INLINE];
} kh_token_op;

/* What is known of a key: from the store's keeper, and where it is in the token. */
typedef struct kh_token_key {
    struct kh_token_key *hash_next; /* in the table, or in `left` */
    struct kh_token_key *next;      /* in `ready` or `asked` */
    uint64_t ref;
    bool known;    /* the store's keeper has answered; else it is in `asked` */
    bool in_ready; /* waits for a worker */
    uint64_t question; /* its number; 0: not sent yet */
    uint64_t asked_ns; /* when it was sent last */
    uint64_t left_at;  /* the number of the change that took it out of the table; 0: it is there */
    kh_token_op *first, *last; /* operations that wait */
    uint32_t waiting;
    uint32_t in_flight;
    uint64_t usual_ns; /* how long an operation takes, smoothed; 0: unknown */
    uint64_t used_ns;
    /* Written before `known`, or by the only operation while not `found`. */
    bool found; /* `object` is the key; until then one operation at a time, which finds it */
    bool was_found, missed;
    kh_p11_key object;
    kh_key_info info;
    kh_p11_locator locator;
    char pool[KH_PLACE_MAX + 1];
    uint8_t *blob; /* until it was found */
    uint32_t blob_len;
    bool kx_ready; /* under the lock */
    uint8_t kx_secret[KH_RSAKX_SECRET_LEN];
    size_t modulus_len;
    uint8_t modulus[KH_SIGNATURE_MAX];
} kh_token_key;

typedef struct kh_token_worker {
    struct kh_token *token;
    pthread_t thread;
    kh_token_watch watch;
    kh_p11_session *session;
} kh_token_worker;

/* A question of the store's keeper for the maker. */
typedef struct kh_token_task {
    struct kh_token_task *next;
    uint64_t link_life; /* of the link that asked */
    kh_link_message message;
    uint8_t data[]; /* wiped */
} kh_token_task;

#define KH_TOKEN_CHANGES 64 /* questions `changed` that are not answered yet */

/* An answer for which the socket had no room. */
typedef struct kh_token_answer_kept {
    struct kh_token_answer_kept *next;
    kh_link_message message;
    uint8_t data[]; /* wiped */
} kh_token_answer_kept;

#define KH_TOKEN_QUESTIONS 64 /* to the store's keeper at a time: the socket has room for the answers, and for ours */

typedef struct kh_token_change {
    uint64_t number; /* of the question */
    uint64_t ref;
    uint64_t at; /* keys that left at this or before */
} kh_token_change;

typedef struct kh_token {
    const kh_token_config *config;
    kh_p11 *p11; /* set once, before `serving` */

    pthread_mutex_t lock;
    bool serving; /* the token is open and logged in */
    bool closed;  /* stopping: takes no more records */
    kh_keeper_ring *ring, *dead_rings;
    _Atomic uint32_t idle_door; /* workers sleep here while there is no ring */
    uint32_t sleeping, in_flight, workers_running;
    uint64_t now_ns; /* of whoever had the lock last */
    kh_keeper_stats stats;

    kh_token_key **bucket; /* KH_TOKEN_BUCKETS */
    uint32_t key_count, hand;
    kh_token_key *ready_first, *ready_last; /* keys with work that may begin, in turn */
    kh_token_key *asked;                    /* of which the store's keeper was asked, or is to be */
    kh_token_key *left;                     /* no longer known, with operations under way */
    uint64_t last_ref, mixed_ns;            /* when two keys were last seen beside each other */
    uint64_t usual_ns;                      /* of the fastest key of late */
    uint32_t slow_in_flight;

    int link_fd;        /* -1: none */
    uint64_t link_life; /* rises with each link that comes or goes: nothing of one is answered on another */
    uint32_t questions; /* sent, not answered */
    kh_token_answer_kept *kept, **kept_end;
    uint64_t next_number;
    kh_token_change changes[KH_TOKEN_CHANGES];
    uint32_t change_count;
    uint64_t change_clock;

    pthread_cond_t maker_wake;
    kh_token_task *tasks, **tasks_end;
    kh_token_watch maker_watch;
    uint32_t making, came_back; /* the main thread's: the maker's call that may take long, and the workers' calls when it began */
    kh_p11_session *maker_session; /* the maker's */
    pthread_t maker;

    pthread_mutex_t heal_lock; /* logging in again, and unwrapping into the token: one at a time */
    struct {                   /* under heal_lock: why keys could not be brought into it, as the log has it */
        char why[160];
        uint64_t said_ns;
        unsigned more; /* since then */
    } not_placed;
    _Atomic uint32_t logins;
    kh_token_worker *workers;
    uint32_t worker_count;
} kh_token;

/* ---- token.c */

/* Around calls of the library; most: milliseconds, 0: the configuration's. */
void kh_token_enter(kh_token *token, kh_token_watch *watch, uint32_t most_ms);
void kh_token_leave(kh_token_watch *watch);
/* Answers all that is under way and ends the process. Not under the lock. */
_Noreturn void kh_token_die(kh_token *token, kh_token_end why);
/* A PIN that was refused is the end of the process; any other result is nothing to this. Not under the lock. */
void kh_token_check_pin(kh_token *token, kh_result result);
/* Takes the login up again after a session lost it. KH_OK: there is one, whoever did it. */
kh_result kh_token_login_again(kh_token *token, kh_token_watch *watch, uint32_t logins_seen);

/* ---- token_op.c: records and answers. All under the lock */

/* Takes what is in the ring into the queues of its keys. */
void kh_token_take(kh_token *token);
/* The operation is gone afterwards. */
void kh_token_answer(kh_token *token, kh_token_op *op, kh_result result);
void kh_token_wake(kh_token *token, uint32_t n);
/* Releases the lock meanwhile. */
void kh_token_sleep(kh_token *token);
void kh_token_publish(kh_token *token);
void kh_token_count(kh_token *token, kh_lane lane, const kh_lane_stats *more);

/* ---- token_key.c: all under the lock */

/* Puts it into its key's queue, or answers it. */
void kh_token_key_queue(kh_token *token, kh_token_op *op);
/* The next operation whose turn it is; NULL: none. Its key is in *key until kh_token_key_done. */
kh_token_op *kh_token_key_next(kh_token *token, kh_token_key **key);
/* took_ns: in the library; 0: it did not get that far. */
void kh_token_key_done(kh_token *token, kh_token_key *key, kh_token_op *op, kh_result result, uint64_t took_ns);
/* The store's keeper's answer to the question with that number. */
void kh_token_key_told(kh_token *token, uint64_t number, kh_result result, const uint8_t *data, size_t len);
/* ref 0: all. Forgets them; those that are under way stay in `left` until they are done. */
void kh_token_keys_forget(kh_token *token, uint64_t ref);
/* Sends questions that are not sent yet; without a link they are answered. */
void kh_token_keys_ask(kh_token *token);
/* Answers what has waited for the store's keeper too long, or for a worker. */
void kh_token_keys_expire(kh_token *token);
/* Answers everything that waits. */
void kh_token_keys_drop(kh_token *token, kh_result result);
/* Once a second or so. */
void kh_token_keys_judge(kh_token *token);
void kh_token_keys_free(kh_token *token);

/* ---- token_link.c */

/* Reads what is there. Takes the lock. false: the other end is gone. */
bool kh_token_link_read(kh_token *token);
/* Under the lock: an answer over the link, if it is still the one of which the question came. */
void kh_token_link_answer(kh_token *token, uint64_t link_life, uint32_t op, uint64_t number, kh_result result,
                          const void *data, size_t len);
/* Under the lock: what had no room. */
void kh_token_link_flush(kh_token *token);
/* Under the lock: another link, or none (-1). What the old one asked is not answered any more. */
void kh_token_link_change(kh_token *token, int fd);
/* Under the lock: answers the `changed` whose keys are all done. */
void kh_token_link_settle(kh_token *token);
/* Under the lock: says who this is. */
void kh_token_link_hello(kh_token *token);

/* ---- token_make.c */

void *kh_token_maker_main(void *token);
void kh_token_task_free(kh_token_task *task);

/* ---- token_work.c */

void *kh_token_worker_main(void *worker);

#endif

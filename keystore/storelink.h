/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store's side of the links to the tokens' keepers. Everything here is the store thread's, but for the kh_link_ports, which the
 * main thread polls and whose datagrams it hands to the store thread.
 *
 * The store thread never waits for a token: whoever needs one asks, and goes on when it is answered. A question is always answered:
 * a token's keeper that ends, or is not there, answers `unavailable`.
 */
#ifndef KEYHOLD_KEYSTORE_STORELINK_H
#define KEYHOLD_KEYSTORE_STORELINK_H

#include "keeper.h"
#include "link.h"
#include "locator.h"

#define KH_REPAIR_REASONS 4

/* A token of the configuration. */
typedef struct kh_store_token {
    char name[KH_PLACE_MAX + 1];
    int fd;        /* -1: its keeper is not there */
    bool open;     /* it has said hello: it is logged in */
    uint64_t life; /* of the link: what an earlier one says does not count */
    bool cleaning; /* what is intended for it is being looked through */
    bool clean_again;
    unsigned clean_pause; /* ticks until it is tried again; after each failure longer */
    unsigned clean_failures;
    uint8_t cleaned_to[KH_P11_ID_LEN];
    uint8_t destroying[KH_P11_ID_LEN]; /* what it was asked to destroy */
    unsigned clean_failed;             /* objects that it did not, of this pass, */
    kh_result clean_result;            /* and what it said last */
    bool repairing; /* its pools' keys are being placed */
    bool repair_again;
    unsigned repair_pause, repair_failures; /* as those of cleaning */
    uint32_t repair_pool; /* index in places */
    uint64_t repaired_to;
    unsigned repair_left;             /* keys that it may still place before the next tick */
    uint64_t repaired, repair_failed; /* of this walk, */
    struct {
        char why[120];
        uint64_t keys;
    } repair_reasons[KH_REPAIR_REASONS]; /* and why those failed; the last one: for whatever other reasons */
    char left_pool[KH_PLACE_MAX + 1]; /* of which it gets no key any more, though it is in the configuration; empty: none */
    bool leaving;                     /* what it has of it is being destroyed */
} kh_store_token;

typedef struct kh_link_answer {
    kh_result result;
    const uint8_t *data; /* borrowed */
    size_t len;
} kh_link_answer;

/* answer: result KH_E_UNAVAILABLE when the token's keeper is gone. */
typedef void (*kh_link_answered_fn)(kh_keeper *keeper, void *ctx, kh_store_token *token, const kh_link_answer *answer);

/* An operation that waits until a number of things are done. */
typedef struct kh_link_wait {
    kh_op *op; /* answered with `result` when nothing is left */
    kh_result result;
    unsigned left;
} kh_link_wait;

/* One of these things: that what is to be destroyed in a token is. */
typedef struct kh_clean_wait {
    struct kh_clean_wait *next;
    const kh_store_token *token;
    kh_link_wait *wait;
} kh_clean_wait;

typedef struct kh_link_question {
    struct kh_link_question *next;
    uint64_t number;
    uint32_t op;
    uint64_t asked_ns;
    kh_store_token *token;
    kh_link_answered_fn answered;
    void *ctx;
} kh_link_question;

typedef struct kh_links {
    kh_keeper_places places;
    kh_store_token *tokens[KH_PLACES_TOKENS]; /* as in places */
    kh_link_question *questions;
    uint64_t last_number;
    struct kh_making *makings; /* storemake.c */
    kh_clean_wait *clean_waits;
    uint64_t rotate_at;        /* Unix time of the next look at rotations, */
    uint64_t rotate_clock;     /* and of the last tick */
    struct kh_rotate_pause *rotate_pauses; /* storerotate.c */
    char rotate_from[KH_NAME_MAX + 1];
    unsigned rotating; /* versions that are being made */
    kh_touched touched[KH_PLACES_TOKENS * 2]; /* places whose keys changed and nobody was told yet */
    size_t touched_count;
    kh_op_queue waiting; /* operations that a token was not there for yet */
    bool stopping;
} kh_links;

/* ---- linkport.c: the main thread's part */

typedef enum kh_link_event_kind {
    KH_LINK_EVENT_MESSAGE,
    KH_LINK_EVENT_NEW,    /* a link, whose descriptor is the store thread's now */
    KH_LINK_EVENT_GONE,   /* the other end is closed */
    KH_LINK_EVENT_PLACES, /* the configuration has these */
    KH_LINK_EVENT_TICK,
    KH_LINK_EVENT_STOP, /* nobody is waited for any more */
} kh_link_event_kind;

typedef struct kh_link_ports {
    struct {
        int fd;
        uint64_t life;
        unsigned slot; /* of its load */
        char token[KH_PLACE_MAX + 1];
    } port[KH_PLACES_TOKENS];
    size_t count;
    uint64_t lives;
    _Atomic uint32_t load[KH_PLACES_TOKENS]; /* datagrams that wait at the store's desk */
    _Atomic bool ticking;
} kh_link_ports;

/* Whether so much of it waits already that it is not read for now. */
bool kh_link_port_full(kh_link_ports *ports, size_t i);

void kh_link_ports_add(kh_keeper *keeper, kh_link_ports *ports, kh_control *control);
/* When one is readable; it may be gone afterwards, and the last one is at its index. */
void kh_link_ports_read(kh_keeper *keeper, kh_link_ports *ports, size_t i);
void kh_link_ports_places(kh_keeper *keeper, const kh_control *control);
void kh_link_ports_tick(kh_keeper *keeper, kh_link_ports *ports);
void kh_link_ports_stop(kh_keeper *keeper);
void kh_link_ports_close(kh_link_ports *ports);

/* ---- storelink.c */

/* What the main thread has for the store thread. */
void kh_links_event(kh_keeper *keeper, kh_link_event_kind kind, const kh_control *control, uint64_t life,
                    const kh_link_message *message, const uint8_t *data);

KH_MUST_USE kh_result kh_links_new(kh_links **links);
void kh_links_free(kh_links *links); /* NULL is fine; closes */
/* The token of that name; NULL: the configuration has none. */
kh_store_token *kh_links_token(kh_keeper *keeper, const char *name);
const kh_keeper_pool *kh_links_pool(const kh_keeper *keeper, const char *name);
/* Whether the token with that index is a partition. */
bool kh_pool_has(const kh_keeper_pool *pool, uint32_t token);
/* Ends its link; what it was asked is answered. */
void kh_links_close(kh_keeper *keeper, kh_store_token *token);
/*
 * What tier and place of a request mean here: the only token that is no pool's, or the only pool, if none is named.
 * KH_E_NOT_FOUND: there is no such. KH_E_INVALID: several could be meant.
 */
KH_MUST_USE kh_result kh_links_resolve(const kh_keeper *keeper, kh_key_info *info);
/*
 * An operation for which a token was not there: it is tried again when one comes, and ends so if none does in a few seconds. A
 * token that is just being opened is not worth a failure. false: it has waited enough, or nobody is to come.
 */
bool kh_links_await(kh_keeper *keeper, kh_op *op);
/* Tries them again (any: a token came), or ends those that waited enough. */
void kh_links_retry(kh_keeper *keeper, bool any);
/* ---- storeask.c */

/* Asks an open token. data: len bytes, copied. KH_E_UNAVAILABLE: it is not there; then nobody is called. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_link_ask(kh_keeper *keeper, kh_store_token *token, const kh_link_message *message, const void *data,
                                  kh_link_answered_fn answered, void *ctx);
/* An answer came. */
void kh_links_answered(kh_keeper *keeper, kh_store_token *token, const kh_link_message *message, const uint8_t *data);
/* Nobody answers what that token was asked any more. Whoever is called may ask others anew. */
void kh_links_fail_questions(kh_keeper *keeper, kh_store_token *token);
/* Ends links whose questions are not answered. */
void kh_links_judge(kh_keeper *keeper);
/* The answer to KH_LINK_KEY. */
void kh_links_tell_key(kh_keeper *keeper, kh_store_token *token, const kh_link_message *question);
/*
 * All that is said of a key to that token's keeper, of pkcs8_len bytes more in its tail; the caller frees. any_state: also of one
 * that is disabled or deleted.
 */
KH_MUST_USE kh_result kh_links_describe(kh_keeper *keeper, const kh_store_token *token, uint64_t ref, bool any_state,
                                        kh_link_key **key, size_t *len);

/* ---- storetell.c */

/* Notes whose keys changed; the store's on_change. */
void kh_links_touch(kh_keeper *keeper, const kh_touched *touched);
/*
 * Tells the tokens' keepers what changed, and answers the operation with the result when none of them works with what was before,
 * and, clean, when what was to be destroyed is. KH_AGAIN: it is not the caller's any more; else what to answer now.
 */
kh_result kh_links_settle(kh_keeper *keeper, kh_op *op, kh_result result, bool clean);
/* Nothing is left to be destroyed in it, or nobody is there to do it. */
void kh_links_cleaned(kh_keeper *keeper, const kh_store_token *token);

/* ---- storesign.c */

/* A private operation of root's with a key of a token. KH_AGAIN: the operation is not the caller's any more. */
kh_result kh_links_sign(kh_keeper *keeper, kh_op *op, const kh_key_info *info);

/* ---- storerepair.c */

/* Destroys what is intended for an open token and is not being made now. */
void kh_links_clean(kh_keeper *keeper, kh_store_token *token);
/* Places all keys of its pools into an open partition that lacks them. */
void kh_links_repair(kh_keeper *keeper, kh_store_token *token);
/* Once a second, or once in a while when there are no tokens. */
void kh_links_tick(kh_keeper *keeper);
/* It is gone: nothing is under way with it. */
void kh_links_forget(kh_keeper *keeper, kh_store_token *token);

/* ---- storeleave.c */

/* KH_STORE_LEAVE. KH_AGAIN: the operation is not the caller's any more. */
kh_result kh_links_leave(kh_keeper *keeper, kh_op *op);

/* ---- storerotate.c */

/* Makes new versions of keys that are due. */
void kh_rotate_due(kh_keeper *keeper, uint64_t now);
/* Looks at all of them with the next tick, those that failed included: something changed. */
void kh_rotate_soon(kh_links *links);

/* ---- storemake.c */

/* Keys that are made in, brought into or moved into tokens. KH_AGAIN: the operation is not the caller's any more. */
kh_result kh_make_insert(kh_keeper *keeper, kh_op *op, const kh_key_info *info);
kh_result kh_make_move(kh_keeper *keeper, kh_op *op);
/* Whether an object is being made now. */
bool kh_make_under_way(const kh_keeper *keeper, const uint8_t *object);

/* ---- storeadopt.c */

/* KH_STORE_ADOPT. KH_AGAIN: the operation is not the caller's any more. */
kh_result kh_links_adopt(kh_keeper *keeper, kh_op *op);

#endif

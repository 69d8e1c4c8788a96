/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real keeper of the store, and this program at the other end of its links, in place of tokens' keepers that do as they are told:
 * answer, fail, say nothing, or die. There is a token, t1, and a pool of three partitions, p1 to p3, of which two are enough.
 */
#ifndef KEYHOLD_TESTS_STORELINK_RIG_H
#define KEYHOLD_TESTS_STORELINK_RIG_H

#include "keeper_rig.h"
#include "storelink.h"

#include <keyhold/import.h>
#include <pthread.h>

#define OBJECTS 64
#define PEERS 4

/* ---- A token's keeper ------------------------------------------------------------------------------------ */

typedef struct peer {
    const char *name;
    int fd;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;
    _Atomic uint32_t silent_on; /* an operation that is not answered */
    _Atomic uint32_t fail_on;   /* one that is answered with KH_E_UNSUPPORTED, */
    const char *why;            /* and this */
    _Atomic uint32_t die_on;    /* one at which the link is closed; */
    _Atomic bool die_after;     /* after it was done and answered, or not even looked at */
    kh_link_message held; /* the question that was not answered */
    unsigned seen[32];    /* by operation */
    uint8_t objects[OBJECTS][KH_P11_ID_LEN]; /* in the token */
    _Atomic unsigned count;
    kh_link_key last; /* of the last question that had one */
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX];
    size_t pkcs8_len;
} peer;

extern keeper_rig rig;
extern peer peers[PEERS]; /* t1, p1, p2, p3 */
extern const kh_keeper_places places;

void peer_connect(peer *self);
/* Ends it, or waits until it has ended. */
void peer_end(peer *self);
void peers_end(void);
/* How many questions of that operation it has got. */
unsigned peer_seen(peer *self, uint32_t op);
void peer_wait_seen(peer *self, uint32_t op, unsigned count);
/* Waits until it has so many objects. */
void peer_wait_objects(peer *self, unsigned count);
/* What a peer has seen up to now: a copy, good until the next call. */
const peer *peer_meet(int i);
/* As if the last question had made its object. */
void peer_put_last(int i);
/* That it is done: the question that was held. */
void peer_answer(const peer *self, const kh_link_message *question);
/* Under its lock, or while it does not run: the index of an object, -1: there is none; one more. */
int peer_find_object(const peer *self, const uint8_t *id);
void peer_add_object(peer *self, const uint8_t *id);

/* ---- The keeper ------------------------------------------------------------------------------------------ */

/* Fixtures of each test. */
int links_set_up(void **state);
int links_tear_down(void **state);
/* Starts the keeper and connects those peers. */
void links_start(unsigned first, unsigned last);

kh_result links_create(const char *name, uint32_t tier, const char *place, kh_key_info *info);
kh_result links_by_name(kh_store_op op, const char *name);
/* What a check of the store has to say. */
void links_expect_report(const char *wanted);
/* How many lines the log has with that text. */
unsigned links_logged(const char *text);

/* A call in another thread, to see that it is not answered yet. */
typedef struct links_call {
    pthread_t thread;
    kh_record record;
    kh_key_info asked;
    kh_result result;
    _Atomic bool done;
} links_call;

void links_begin(links_call *call, kh_store_op op, const kh_key_info *asked);
kh_result links_end(links_call *call);

void pause_briefly(void); /* 1 ms */
/* Its public key's SubjectPublicKeyInfo; returns its length. */
size_t spki_of(EVP_PKEY *pkey, uint8_t *spki);

#endif

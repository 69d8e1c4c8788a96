/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requests in flight at the caller's end: slots that are found by id without search (the id contains the
 * slot's number, a generation tells its uses apart) and a binary heap over their deadlines. A cancelled
 * request keeps its slot until its reply has come, so that the agent's credit is counted as the agent counts
 * it.
 */
#ifndef KH_FLIGHTS_H
#define KH_FLIGHTS_H

#include <keyhold/protocol.h>

#define KH_FLIGHTS_MAX 65536

typedef enum kh_flight_state { KH_FLIGHT_FREE, KH_FLIGHT_LIVE, KH_FLIGHT_CANCELLED } kh_flight_state;

typedef struct kh_flight {
    void *user;
    uint64_t deadline_ms;
    uint32_t id;
    uint32_t heap_at; /* index + 1 in the heap; 0: not in it */
    uint32_t next;    /* index + 1 of the next free slot */
    uint16_t op;
    uint8_t state; /* kh_flight_state */
    bool held;     /* its frame waits for credit and was not put into the output */
} kh_flight;

typedef struct kh_flights {
    kh_flight *slots;
    uint32_t *heap; /* slot indexes, the earliest deadline first */
    uint32_t cap;   /* of slots and heap */
    uint32_t used;  /* slots not free */
    uint32_t live;  /* of these, not cancelled: the heap's length */
    uint32_t free;  /* index + 1 of the first free slot */
} kh_flights;

void kh_flights_free(kh_flights *flights);
/* A slot for a new live request, with its id set. KH_E_MEMORY; KH_E_OVERLOADED: KH_FLIGHTS_MAX reached. */
KH_MUST_USE kh_result kh_flights_add(kh_flights *flights, uint64_t deadline_ms, kh_flight **flight);
/* NULL: not in flight. Valid until the next add. */
kh_flight *kh_flights_find(const kh_flights *flights, uint32_t id);
/* Live to cancelled: leaves the heap, keeps the slot. */
void kh_flights_cancel(kh_flights *flights, kh_flight *flight);
/* Frees the slot. */
void kh_flights_remove(kh_flights *flights, kh_flight *flight);
/* The live request with the earliest deadline; NULL: none. */
kh_flight *kh_flights_first(const kh_flights *flights);
/* Takes out the live requests one by one, the earliest deadline first; false: none is left. */
bool kh_flights_drain(kh_flights *flights, void **user);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The requests in flight (flights.h). */
#include "flights.h"

#include <stdlib.h>
#include <string.h>

#define KH_FLIGHTS_START 32
#define KH_GENERATION (UINT32_C(1) << 16) /* above the slot's number in an id */

void kh_flights_free(kh_flights *flights)
{
    free(flights->slots);
    free(flights->heap);
    *flights = (kh_flights){0};
}

static uint64_t kh_heap_key(const kh_flights *flights, uint32_t at)
{
    return flights->slots[flights->heap[at]].deadline_ms;
}

static void kh_heap_put(kh_flights *flights, uint32_t at, uint32_t slot)
{
    flights->heap[at] = slot;
    flights->slots[slot].heap_at = at + 1;
}

static void kh_heap_up(kh_flights *flights, uint32_t at)
{
    uint32_t slot = flights->heap[at];

    while (at > 0 && flights->slots[slot].deadline_ms < kh_heap_key(flights, (at - 1) / 2)) {
        kh_heap_put(flights, at, flights->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    kh_heap_put(flights, at, slot);
}

static void kh_heap_down(kh_flights *flights, uint32_t at)
{
    uint32_t slot = flights->heap[at];

    for (uint32_t child = 2 * at + 1; child < flights->live; child = 2 * at + 1) {
        if (child + 1 < flights->live && kh_heap_key(flights, child + 1) < kh_heap_key(flights, child)) {
            child++;
        }
        if (flights->slots[slot].deadline_ms <= kh_heap_key(flights, child)) {
            break;
        }
        kh_heap_put(flights, at, flights->heap[child]);
        at = child;
    }
    kh_heap_put(flights, at, slot);
}

/* Takes a live request out of the heap: the last one fills its place and finds its own. */
static void kh_heap_remove(kh_flights *flights, kh_flight *flight)
{
    uint32_t at = flight->heap_at - 1;
    uint32_t last = --flights->live;

    flight->heap_at = 0;
    if (at == last) {
        return;
    }
    kh_heap_put(flights, at, flights->heap[last]);
    kh_heap_up(flights, at);
    kh_heap_down(flights, flights->slots[flights->heap[at]].heap_at - 1);
}

static kh_result kh_flights_grow(kh_flights *flights)
{
    uint32_t old_cap = flights->cap;
    uint32_t cap = old_cap > 0 ? old_cap * 2 : KH_FLIGHTS_START;
    kh_flight *slots = NULL;
    uint32_t *heap = NULL;

    if (old_cap >= KH_FLIGHTS_MAX) {
        return KH_E_OVERLOADED;
    }
    slots = calloc(cap, sizeof(*slots));
    heap = calloc(cap, sizeof(*heap));
    if (slots == NULL || heap == NULL) {
        free(slots);
        free(heap);
        return KH_E_MEMORY;
    }
    if (old_cap > 0) {
        memcpy(slots, flights->slots, old_cap * sizeof(*slots));
        memcpy(heap, flights->heap, old_cap * sizeof(*heap));
    }
    free(flights->slots);
    free(flights->heap);
    flights->slots = slots;
    flights->heap = heap;
    flights->cap = cap;
    for (uint32_t i = cap; i > old_cap; i--) {
        slots[i - 1].id = i - 1;
        slots[i - 1].next = flights->free;
        flights->free = i;
    }
    return KH_OK;
}

kh_result kh_flights_add(kh_flights *flights, uint64_t deadline_ms, kh_flight **flight)
{
    kh_flight *slot = NULL;
    uint32_t index = 0;

    *flight = NULL;
    if (flights->free == 0) {
        kh_result result = kh_flights_grow(flights);

        if (result != KH_OK) {
            return result;
        }
    }
    index = flights->free - 1;
    slot = &flights->slots[index];
    flights->free = slot->next;
    slot->state = KH_FLIGHT_LIVE;
    slot->deadline_ms = deadline_ms;
    slot->held = false;
    flights->used++;
    flights->heap[flights->live] = index;
    kh_heap_up(flights, flights->live++);
    *flight = slot;
    return KH_OK;
}

kh_flight *kh_flights_find(const kh_flights *flights, uint32_t id)
{
    uint32_t index = id % KH_GENERATION;
    kh_flight *slot = NULL;

    if (index >= flights->cap) {
        return NULL;
    }
    slot = &flights->slots[index];
    return slot->state != KH_FLIGHT_FREE && slot->id == id ? slot : NULL;
}

void kh_flights_cancel(kh_flights *flights, kh_flight *flight)
{
    kh_heap_remove(flights, flight);
    flight->state = KH_FLIGHT_CANCELLED;
    flight->user = NULL;
}

void kh_flights_remove(kh_flights *flights, kh_flight *flight)
{
    if (flight->state == KH_FLIGHT_LIVE) {
        kh_heap_remove(flights, flight);
    }
    flight->state = KH_FLIGHT_FREE;
    flight->user = NULL;
    flight->id += KH_GENERATION;
    flight->next = flights->free;
    flights->free = (uint32_t)(flight - flights->slots) + 1;
    flights->used--;
}

kh_flight *kh_flights_first(const kh_flights *flights)
{
    return flights->live > 0 ? &flights->slots[flights->heap[0]] : NULL;
}

bool kh_flights_drain(kh_flights *flights, void **user)
{
    kh_flight *flight = kh_flights_first(flights);

    if (flight == NULL) {
        return false;
    }
    *user = flight->user;
    kh_flights_remove(flights, flight);
    return true;
}

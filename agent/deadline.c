/* SPDX-License-Identifier: Apache-2.0 */
/* The jobs by deadline. */
#include "deadline.h"
#include <stdlib.h>

static void place(kh_deadlines *deadlines, uint32_t at, kh_job *job)
{
    deadlines->heap[at] = job;
    job->heap_index = at;
}

static void rise(kh_deadlines *deadlines, uint32_t at, kh_job *job)
{
    while (at > 0 && deadlines->heap[(at - 1) / 2]->deadline_ns > job->deadline_ns) {
        place(deadlines, at, deadlines->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    place(deadlines, at, job);
}

static void sink(kh_deadlines *deadlines, uint32_t at, kh_job *job)
{
    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child + 1 < deadlines->count &&
            deadlines->heap[child + 1]->deadline_ns < deadlines->heap[child]->deadline_ns) {
            child++;
        }
        if (child >= deadlines->count || deadlines->heap[child]->deadline_ns >= job->deadline_ns) {
            break;
        }
        place(deadlines, at, deadlines->heap[child]);
        at = child;
    }
    place(deadlines, at, job);
}

kh_result kh_deadlines_add(kh_deadlines *deadlines, kh_job *job)
{
    if (deadlines->count == deadlines->room) {
        uint32_t room = deadlines->room == 0 ? 1024 : deadlines->room * 2;
        kh_job **heap = realloc(deadlines->heap, room * sizeof *heap);

        if (heap == NULL) {
            return KH_E_MEMORY;
        }
        deadlines->heap = heap;
        deadlines->room = room;
    }
    rise(deadlines, deadlines->count++, job);
    return KH_OK;
}

void kh_deadlines_remove(kh_deadlines *deadlines, kh_job *job)
{
    uint32_t at = job->heap_index;
    kh_job *last = NULL;

    if (at == UINT32_MAX) {
        return;
    }
    job->heap_index = UINT32_MAX;
    last = deadlines->heap[--deadlines->count];
    if (last == job) {
        return;
    }
    if (at > 0 && deadlines->heap[(at - 1) / 2]->deadline_ns > last->deadline_ns) {
        rise(deadlines, at, last);
    } else {
        sink(deadlines, at, last);
    }
}

kh_job *kh_deadlines_first(const kh_deadlines *deadlines)
{
    return deadlines->count == 0 ? NULL : deadlines->heap[0];
}

void kh_deadlines_clear(kh_deadlines *deadlines)
{
    free(deadlines->heap);
    *deadlines = (kh_deadlines){0};
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The ring: making and mapping the shared memory, and the keeper's end of it. */
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(kh_keeper_stats) % sizeof(uint64_t) == 0, "the statistics are published word by word");
_Static_assert(KH_LIST_PAGE * sizeof(kh_key_info) <= KH_RECORD_DATA_MAX, "a page of keys fits a slot");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "shared atomics must not take locks");

uint32_t kh_ring_layout(void)
{
    static const char version[] = KH_VERSION;
    uint32_t sum = 2166136261u;
    const size_t sizes[] = {sizeof(kh_ring_shared), sizeof(kh_ring_slot), sizeof(kh_key_info),
                            sizeof(kh_keeper_stats)};

    for (size_t i = 0; i < sizeof(version); i++) {
        sum = (sum ^ (uint8_t)version[i]) * 16777619u;
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        sum = (sum ^ (uint32_t)sizes[i]) * 16777619u;
    }
    return sum;
}

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Lays out a ring of that many slots; `base` may be NULL when only the length is wanted. */
static void lay_out(kh_ring_map *map, void *base, uint32_t slots)
{
    uint32_t entries = 1;
    size_t queues = round_up(sizeof(kh_ring_shared), 64);
    size_t first_slot = 0;

    while (entries < slots) {
        entries *= 2;
    }
    first_slot = round_up(queues + 2 * entries * sizeof(uint32_t), 4096);
    map->slots = slots;
    map->mask = entries - 1;
    map->len = round_up(first_slot + slots * sizeof(kh_ring_slot), 4096);
    if (base == NULL) {
        return;
    }
    map->shared = base;
    map->sq = (_Atomic uint32_t *)(void *)((uint8_t *)base + queues);
    map->cq = map->sq + entries;
    map->slot = (kh_ring_slot *)(void *)((uint8_t *)base + first_slot);
}

static void close_fds(int fds[3])
{
    for (int i = 0; i < 3; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
        fds[i] = -1;
    }
}

kh_result kh_ring_create(uint32_t slots, int fds[3])
{
    kh_ring_map map = {0};
    kh_ring_shared header = {0};
    kh_result result = KH_E_MEMORY;

    fds[0] = fds[1] = fds[2] = -1;
    if (slots < KH_RING_SLOTS_MIN || slots > KH_RING_SLOTS_MAX) {
        return KH_E_INVALID;
    }
    lay_out(&map, NULL, slots);
    header.magic = KH_RING_MAGIC;
    header.layout = kh_ring_layout();
    header.slots = slots;
    fds[0] = memfd_create("keyhold-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fds[0] < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, &fds[1]) != 0 ||
        ftruncate(fds[0], (off_t)map.len) != 0 ||
        pwrite(fds[0], &header, sizeof(header), 0) != (ssize_t)sizeof(header) ||
        fcntl(fds[0], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        goto done;
    }
    result = KH_OK;
done:
    if (result != KH_OK) {
        close_fds(fds);
    }
    return result;
}

kh_result kh_ring_mmap(int fd, kh_ring_map *map)
{
    struct stat st;
    kh_ring_shared header;
    int seals = fcntl(fd, F_GET_SEALS);
    void *base = NULL;

    memset(map, 0, sizeof(*map));
    /* Without these seals the other side could shrink the file, and the next access here would be a SIGBUS.
     */
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW) ||
        fstat(fd, &st) != 0 || pread(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header)) {
        return KH_E_INVALID;
    }
    if (header.magic != KH_RING_MAGIC || header.layout != kh_ring_layout()) {
        return KH_E_VERSION;
    }
    if (header.slots < KH_RING_SLOTS_MIN || header.slots > KH_RING_SLOTS_MAX) {
        return KH_E_INVALID;
    }
    lay_out(map, NULL, header.slots);
    if (st.st_size < 0 || (size_t)st.st_size != map->len) {
        return KH_E_INVALID;
    }
    base = mmap(NULL, map->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        memset(map, 0, sizeof(*map));
        return KH_E_MEMORY;
    }
    lay_out(map, base, header.slots);
    return KH_OK;
}

void kh_ring_munmap(kh_ring_map *map)
{
    if (map->shared != NULL) {
        munmap(map->shared, map->len);
    }
    memset(map, 0, sizeof(*map));
}

void kh_futex_wake(_Atomic uint32_t *word, uint32_t n)
{
    syscall(SYS_futex, word, FUTEX_WAKE, n > INT_MAX ? INT_MAX : (int)n, NULL, NULL, 0);
}

void kh_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};

    syscall(SYS_futex, word, FUTEX_WAIT, value, timeout_ns == 0 ? NULL : &timeout, NULL, 0);
}

/* ---- The keeper's end ---------------------------------------------------------------------------------- */

kh_result kh_ring_end_open(int fds[3], kh_ring_end *end)
{
    kh_result result = KH_OK;

    memset(end, 0, sizeof(*end));
    end->event_fd = -1;
    result = kh_ring_mmap(fds[0], &end->map);
    if (result != KH_OK) {
        close_fds(fds);
        return result;
    }
    end->taken = calloc(end->map.slots, sizeof(*end->taken));
    if (end->taken == NULL) {
        kh_ring_munmap(&end->map);
        close_fds(fds);
        return KH_E_MEMORY;
    }
    end->event_fd = fds[2];
    close(fds[0]);
    close(fds[1]);
    fds[0] = fds[1] = fds[2] = -1;
    if (atomic_exchange(&end->map.shared->served, 1) != 0) {
        end->sq_head = atomic_load(&end->map.shared->sq_tail);
        end->cq_tail = atomic_load(&end->map.shared->cq_tail);
    }
    return KH_OK;
}

void kh_ring_end_close(kh_ring_end *end)
{
    if (end->event_fd >= 0) {
        close(end->event_fd);
    }
    end->event_fd = -1;
    free(end->taken);
    end->taken = NULL;
    kh_ring_munmap(&end->map);
}

bool kh_ring_end_pending(const kh_ring_end *end)
{
    return atomic_load(&end->map.shared->sq_tail) != end->sq_head;
}

bool kh_ring_end_next(kh_ring_end *end, kh_ring_copy *copy)
{
    const kh_ring_map *map = &end->map;
    uint32_t tail = atomic_load_explicit(&map->shared->sq_tail, memory_order_acquire);

    /* A tail further ahead than the queue is long is a lie; what it can hold is all that is looked at. */
    if (tail - end->sq_head > map->mask + 1) {
        end->sq_head = tail - (map->mask + 1);
    }
    while (end->sq_head != tail) {
        uint32_t index = atomic_load_explicit(&map->sq[end->sq_head++ & map->mask], memory_order_relaxed);
        const volatile kh_ring_slot *slot = NULL;

        if (index >= map->slots || end->taken[index]) {
            continue;
        }
        end->taken[index] = true;
        slot = &map->slot[index];
        memset(copy, 0, sizeof(*copy));
        copy->slot = index;
        copy->record.key_ref = slot->key_ref;
        copy->record.deadline_ns = slot->deadline_ns;
        copy->record.op = slot->op;
        copy->record.scheme = slot->scheme;
        copy->record.flags = slot->flags;
        copy->record.arg = slot->arg;
        copy->record.data_len = slot->data_len;
        return true;
    }
    return false;
}

void kh_ring_end_data(const kh_ring_end *end, const kh_ring_copy *copy, uint8_t *data)
{
    memcpy(data, end->map.slot[copy->slot].data, copy->record.data_len);
}

kh_result kh_ring_end_take(const kh_ring_end *end, const kh_ring_copy *copy, kh_record *record, uint8_t *space,
                           size_t space_len, uint8_t **longer)
{
    uint8_t *data = space;

    *record = copy->record;
    *longer = NULL;
    record->data = space;
    record->data_len = 0;
    if (copy->record.data_len > KH_RECORD_DATA_MAX) {
        return KH_E_TOO_LARGE;
    }
    if (copy->record.data_len > space_len) {
        data = *longer = malloc(copy->record.data_len);
        if (data == NULL) {
            return KH_E_MEMORY;
        }
    }
    kh_ring_end_data(end, copy, data);
    record->data = data;
    record->data_len = copy->record.data_len;
    return KH_OK;
}

void kh_ring_end_result(const kh_ring_end *end, uint32_t index, kh_result result, const uint8_t *data,
                        size_t len, uint32_t batch)
{
    kh_ring_slot *slot = &end->map.slot[index];

    if (len > sizeof(slot->data)) {
        result = KH_E_INTERNAL;
        len = 0;
    }
    if (len > 0) {
        memcpy(slot->data, data, len);
    }
    slot->result = (uint32_t)result;
    slot->result_len = (uint32_t)len;
    slot->batch = batch;
}

void kh_ring_end_push(kh_ring_end *end, uint32_t slot)
{
    end->taken[slot] = false;
    atomic_store_explicit(&end->map.cq[end->cq_tail & end->map.mask], slot, memory_order_relaxed);
    atomic_store(&end->map.shared->cq_tail, ++end->cq_tail);
}

void kh_ring_end_ring_front(const kh_ring_end *end)
{
    const char ring = 1;

    /* Load before the exchange: the cache line of a front that is awake stays where it is. */
    if (atomic_load(&end->map.shared->front_waits) != 0 &&
        atomic_exchange(&end->map.shared->front_waits, 0) != 0) {
        /*
         * Not O_NONBLOCK: that flag belongs to the open file, of which the front may have a descriptor, and a
         * front that clears it must not stop whoever stands here with the lock.
         */
        ssize_t n = send(end->event_fd, &ring, sizeof(ring), MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)n; /* EAGAIN: full, so the front is being woken anyway; EPIPE: there is none */
    }
}

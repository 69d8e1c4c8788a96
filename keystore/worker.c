/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: takes what is in the ring, sorts it into lanes, forms a batch of the lane whose head waited
 * longest against its deadline, computes it, answers. A free worker takes what is there; while all are busy,
 * operations gather.
 */
#include "affinity.h"
#include "keeper.h"
#include "multibuffer.h"
#include "process.h"

#include <stdlib.h>
#include <string.h>

#define DRAIN_MAX 256 /* records taken while the lock is held once */
/* How long an operation without a deadline is taken to bear waiting. */
#define NO_DEADLINE_NS UINT64_C(10000000000)
/*
 * The longest sleep at a ring's door. A front can move its waiters to a futex of its own (FUTEX_REQUEUE),
 * where no wake-up of this process finds them; so they come back by themselves.
 */
#define SLEEP_MAX_NS UINT64_C(500000000)

/* Operations that are answered without being computed. */
typedef struct answers {
    kh_op *op[DRAIN_MAX + KH_BATCH_MAX];
    size_t count;
    uint64_t expired[KH_LANE_COUNT];
} answers;

typedef struct worker {
    kh_keeper *keeper;
    kh_software *software;
    kh_affinity affinity;
    uint32_t apart; /* what the front wished when the affinity was last changed */
    answers out;
} worker;

static void answer(answers *out, kh_op *op, kh_result result)
{
    op->result = result;
    out->op[out->count++] = op;
}

/* Where an operation goes. The key is private knowledge: nothing of the shared memory decides but a number
 * that is looked up. */
static void route(kh_keeper *keeper, kh_op *op, answers *out, kh_op_queue *for_store)
{
    switch (op->record.op) {
    case KH_STORE_SIGN:
    case KH_STORE_TLS_RSA_KX:
    case KH_STORE_DECRYPT:
        op->key = kh_cache_get(keeper->cache, op->record.key_ref);
        op->generation = keeper->generation;
        if (op->key != NULL) {
            kh_op_push(&keeper->lane[op->key->lane], op);
        } else {
            kh_op_push(for_store, op);
        }
        break;
    case KH_STORE_LOOKUP:
    case KH_STORE_LIST:
    case KH_STORE_IMPORT_KEY:
    case KH_STORE_CREATE:
    case KH_STORE_IMPORT:
    case KH_STORE_SET_STATE:
        kh_op_push(for_store, op);
        break;
    case KH_STORE_RECOVER:
    case KH_STORE_PURGE:
    case KH_STORE_CERTIFY:
    case KH_STORE_CHECK:
    case KH_STORE_BACKUP:
    case KH_STORE_BACKED_UP:
    case KH_STORE_EXPORT:
    case KH_STORE_IMPORT_ALL:
    case KH_STORE_POLICY:
    case KH_STORE_SET:
    case KH_STORE_MOVE:
    case KH_STORE_ADOPT:
    case KH_STORE_REPAIR:
    case KH_STORE_KEK:
    case KH_STORE_ORDERS:
    case KH_STORE_LEAVE:
        answer(out, op, KH_E_FORBIDDEN);
        break;
    default:
        answer(out, op, KH_E_UNSUPPORTED);
        break;
    }
}

/* A private operation out of a record; its data is copied here, before anything looks at it. */
static kh_result take_record(kh_keeper_ring *ring, const kh_ring_copy *copy, kh_op *op)
{
    op->slot = copy->slot;
    op->admin_fd = op->file_fd = -1;
    op->key = NULL;
    op->result = KH_E_INTERNAL;
    op->batch = 0;
    op->out_len = 0;
    op->long_out = NULL;
    op->material = NULL;
    op->task = NULL;
    op->generated = false;
    op->run = NULL;
    op->answered = NULL;
    return kh_ring_end_take(&ring->end, copy, &op->record, op->inline_data, sizeof(op->inline_data), &op->long_data);
}

/* Under the lock. */
static void drain(kh_keeper *keeper, uint64_t now_ns, answers *out, kh_op_queue *for_store)
{
    kh_keeper_ring *ring = keeper->ring;
    kh_ring_copy copy;

    if (ring == NULL || keeper->closed) {
        return;
    }
    for (unsigned i = 0; i < DRAIN_MAX && kh_ring_end_next(&ring->end, &copy); i++) {
        kh_op *op = &ring->ops[copy.slot];
        kh_result result = KH_OK;

        ring->in_flight++;
        keeper->in_flight++;
        op->next = NULL;
        op->ring = ring;
        op->arrived_ns = now_ns;
        result = take_record(ring, &copy, op);
        if (result == KH_OK) {
            route(keeper, op, out, for_store);
        } else {
            answer(out, op, result);
        }
    }
}

/* `now_ns` of one worker may be before the arrival that another saw. */
static uint64_t waited_ns(const kh_op *op, uint64_t now_ns)
{
    return now_ns > op->arrived_ns ? now_ns - op->arrived_ns : 0;
}

/* How much of the time that it has the head of a lane has waited, in 1/1024. */
static uint64_t urgency(const kh_op *op, uint64_t now_ns)
{
    uint64_t waited = waited_ns(op, now_ns);
    uint64_t budget = op->record.deadline_ns == 0               ? NO_DEADLINE_NS
                      : op->record.deadline_ns > op->arrived_ns ? op->record.deadline_ns - op->arrived_ns
                                                                : 1;

    return waited >= budget ? 1024 : waited < (UINT64_MAX >> 10) ? (waited << 10) / budget : 1023;
}

/* The lane to serve, or -1. *wait_ns: how long a batch that is not full may still wait for company. */
static int pick(kh_keeper *keeper, uint64_t now_ns, uint64_t *wait_ns)
{
    const uint64_t window_ns = (uint64_t)keeper->config->batch_window_us * 1000;
    uint64_t best = 0;
    int lane = -1;

    *wait_ns = 0;
    for (int i = 0; i < KH_LANE_COUNT; i++) {
        const kh_op *head = keeper->lane[i].first;
        uint64_t age = 0, how = 0;

        if (head == NULL) {
            continue;
        }
        age = waited_ns(head, now_ns);
        if (!keeper->closed && keeper->lane[i].count < KH_BATCH_MAX && age < window_ns &&
            !kh_op_expired(head, now_ns)) {
            *wait_ns = *wait_ns == 0 || window_ns - age < *wait_ns ? window_ns - age : *wait_ns;
            continue;
        }
        how = urgency(head, now_ns);
        if (lane < 0 || how > best ||
            (how == best && head->arrived_ns < keeper->lane[lane].first->arrived_ns)) {
            best = how;
            lane = i;
        }
    }
    return lane;
}

/*
 * Whether the key of a waiting operation may still be used. After a change of any key it is looked up anew:
 * one that was disabled is no longer in the cache, and the store thread has the word.
 */
static bool still_enabled(kh_keeper *keeper, kh_op *op)
{
    if (op->generation != keeper->generation) {
        kh_key_release(op->key);
        op->key = kh_cache_get(keeper->cache, op->record.key_ref);
        op->generation = keeper->generation;
    }
    return op->key != NULL;
}

/*
 * How many operations of a lane a worker takes. Those that are computed one by one gain nothing from company: workers that
 * would sleep meanwhile take their share.
 */
static size_t batch_size(const kh_keeper *keeper, int lane)
{
    size_t count = keeper->lane[lane].count, most = count < KH_BATCH_MAX ? count : KH_BATCH_MAX;

    if (keeper->sleeping > 0 && !kh_multibuffer_gains((kh_lane)lane, most)) {
        size_t share = (count + keeper->sleeping) / (keeper->sleeping + 1);

        most = share < most ? share : most;
    }
    return most;
}

static size_t take_batch(kh_keeper *keeper, int lane, uint64_t now_ns, answers *out, kh_op_queue *for_store,
                         kh_op *batch[KH_BATCH_MAX])
{
    size_t n = 0, most = batch_size(keeper, lane);
    kh_op *op = NULL;

    while (n < most && out->count < sizeof(out->op) / sizeof(out->op[0]) &&
           (op = kh_op_pop(&keeper->lane[lane])) != NULL) {
        if (kh_op_expired(op, now_ns)) {
            out->expired[lane]++;
            answer(out, op, KH_E_DEADLINE);
        } else if (!still_enabled(keeper, op)) {
            kh_op_push(for_store, op);
        } else {
            batch[n++] = op;
        }
    }
    return n;
}

/* Computes a batch, which began in that epoch, and answers it. */
static void compute(kh_keeper *keeper, kh_software *software, int lane, uint32_t epoch, kh_op *batch[],
                    size_t n, uint64_t now_ns)
{
    kh_tier_op tier[KH_BATCH_MAX], *tiers[KH_BATCH_MAX];
    kh_op *asked[KH_BATCH_MAX];
    kh_lane_stats stats = {0};
    uint64_t refused = 0;
    size_t fill = 0;

    for (size_t i = 0; i < n; i++) {
        batch[i]->result = kh_op_usage(batch[i]);
        if (batch[i]->result != KH_OK) {
            stats.errors++;
            refused += batch[i]->result == KH_E_USAGE;
            continue;
        }
        kh_op_to_tier(batch[i], &tier[fill]);
        tiers[fill] = &tier[fill];
        asked[fill++] = batch[i];
    }
    if (fill > 0) {
        kh_software_batch(software, tiers, fill);
        stats.batches[fill] = 1;
        stats.busy_ns = kh_now_ns() - now_ns;
    }
    for (size_t i = 0; i < fill; i++) {
        asked[i]->result = tier[i].result;
        asked[i]->out_len = tier[i].out_len;
        asked[i]->batch = (uint32_t)fill;
        stats.operations++;
        stats.errors += tier[i].result != KH_OK;
        stats.by_kernel += tier[i].by_kernel;
        stats.by_openssl += !tier[i].by_kernel;
    }
    stats.kernel_faults = stats.by_kernel > 0 ? kh_multibuffer_new_faults() : 0;
    if (stats.kernel_faults > 0) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR,
                "keeper: %llu results of the %s kernel failed their check and were done again: suspect this "
                "CPU or its memory",
                (unsigned long long)stats.kernel_faults, kh_lane_name(lane));
    }
    pthread_mutex_lock(&keeper->lock);
    keeper->computing[epoch]--;
    keeper->stats.refused_usage += refused;
    kh_keeper_count(keeper, lane, &stats);
    pthread_mutex_unlock(&keeper->lock);
    kh_keeper_complete(keeper, batch, n);
}

/* Under the lock, which it releases and takes again. Sleeps until there may be work. */
static void sleep_at_door(kh_keeper *keeper, uint64_t timeout_ns)
{
    kh_keeper_ring *ring = keeper->ring;
    _Atomic uint32_t *door = ring != NULL ? &ring->end.map.shared->door : &keeper->idle_door;
    uint32_t seen = atomic_load(door);
    bool work = false;

    keeper->sleeping++;
    if (ring != NULL) {
        ring->sleeping++;
        atomic_fetch_add(&ring->end.map.shared->sleepers, 1);
        /* The front writes its queue and then looks at `sleepers`; here it is the other way round, so one
         * sees the other. */
        work = !keeper->closed && kh_ring_end_pending(&ring->end);
    }
    if (!work) {
        pthread_mutex_unlock(&keeper->lock);
        if (ring != NULL && (timeout_ns == 0 || timeout_ns > SLEEP_MAX_NS)) {
            timeout_ns = SLEEP_MAX_NS;
        }
        kh_futex_wait(door, seen, timeout_ns);
        pthread_mutex_lock(&keeper->lock);
    }
    if (ring != NULL) {
        atomic_fetch_sub(&ring->end.map.shared->sleepers, 1);
        ring->sleeping--;
    }
    keeper->sleeping--;
}

static bool finished(const kh_keeper *keeper)
{
    return keeper->closed && keeper->in_flight == 0;
}

static void answer_all(kh_keeper *keeper, answers *out)
{
    if (out->count == 0) {
        return;
    }
    pthread_mutex_lock(&keeper->lock);
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        if (out->expired[lane] > 0) {
            const kh_lane_stats stats = {.expired = out->expired[lane]};

            kh_keeper_count(keeper, lane, &stats);
            out->expired[lane] = 0;
        }
    }
    pthread_mutex_unlock(&keeper->lock);
    kh_keeper_complete(keeper, out->op, out->count);
    out->count = 0;
}

/* Leaves the front a CPU for itself, if it wishes. The number is the front's: any may come, and none does harm. */
static void keep_apart(worker *me, uint32_t apart)
{
    if (apart == me->apart) {
        return;
    }
    me->apart = apart;
    if (apart == 0) {
        kh_affinity_restore(&me->affinity);
    } else {
        (void)kh_affinity_without(&me->affinity, apart - 1);
    }
}

/* One turn: false when the worker is to end. */
static bool turn(worker *me)
{
    kh_keeper *keeper = me->keeper;
    answers *out = &me->out;
    kh_op *batch[KH_BATCH_MAX], *op = NULL;
    kh_op_queue for_store = {0};
    uint64_t now_ns = kh_now_ns(), wait_ns = 0;
    size_t n = 0;
    uint32_t epoch = 0, apart = 0;
    int lane = -1;
    bool end = false;

    pthread_mutex_lock(&keeper->lock);
    apart = keeper->ring != NULL ? atomic_load_explicit(&keeper->ring->end.map.shared->apart, memory_order_relaxed) : 0;
    drain(keeper, now_ns, out, &for_store);
    lane = pick(keeper, now_ns, &wait_ns);
    if (lane >= 0) {
        n = take_batch(keeper, lane, now_ns, out, &for_store, batch);
        epoch = keeper->epoch & 1;
        keeper->computing[epoch] += n > 0;
        if (keeper->sleeping > 0 && pick(keeper, now_ns, &wait_ns) >= 0) {
            kh_keeper_wake(keeper, 1);
        }
    } else if (out->count == 0 && for_store.count == 0) {
        end = finished(keeper);
        if (!end) {
            sleep_at_door(keeper, wait_ns);
        }
    }
    pthread_mutex_unlock(&keeper->lock);
    while ((op = kh_op_pop(&for_store)) != NULL) {
        kh_storework_submit(keeper, op);
    }
    answer_all(keeper, out);
    keep_apart(me, apart);
    if (n > 0) {
        compute(keeper, me->software, lane, epoch, batch, n, now_ns);
    }
    return !end;
}

void kh_worker_hand(kh_keeper *keeper, kh_op *op)
{
    pthread_mutex_lock(&keeper->lock);
    op->generation = keeper->generation;
    kh_op_push(&keeper->lane[op->key->lane], op);
    kh_keeper_wake(keeper, 1);
    pthread_mutex_unlock(&keeper->lock);
}

void *kh_worker_main(void *arg)
{
    kh_keeper *keeper = arg;
    worker *me = calloc(1, sizeof(*me));

    if (me != NULL) {
        me->keeper = keeper;
    }
    if (me == NULL || kh_software_new(&me->software) != KH_OK) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR,
                "keeper: a worker cannot start: out of memory");
        goto done;
    }
    while (turn(me)) {
    }
done:
    pthread_mutex_lock(&keeper->lock);
    keeper->workers_running--;
    pthread_mutex_unlock(&keeper->lock);
    if (me != NULL) {
        kh_software_free(me->software);
    }
    free(me);
    return NULL;
}

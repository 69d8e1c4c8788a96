/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metrics as Prometheus reads them. Every name is in docs/metrics.md, with what it means. Base units:
 * seconds. A metric has the same labels always, and is there before it first counts, where the labels are
 * known.
 */
#include "metrics.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define START_LEN (128 * 1024)
#define LE_FIRST 4 /* powers of two of microseconds: 16 us */
#define LE_LAST 24 /* to 16.8 s */

typedef struct text {
    char *data;
    size_t len, cap;
    bool failed;
} text;

static void put(text *out, const char *bytes, size_t len)
{
    if (!out->failed && len > out->cap - out->len) {
        size_t cap = out->cap > 0 ? 2 * out->cap : START_LEN;
        char *grown = NULL;

        while (cap - out->len < len) {
            cap *= 2;
        }
        grown = realloc(out->data, cap);
        out->failed = grown == NULL;
        out->data = grown != NULL ? grown : out->data;
        out->cap = grown != NULL ? cap : out->cap;
    }
    if (!out->failed) {
        memcpy(out->data + out->len, bytes, len);
        out->len += len;
    }
}

static void put_string(text *out, const char *string)
{
    put(out, string, strlen(string));
}

/* There are thousands of numbers in a large document: printf would take most of the time. */
static void put_number(text *out, uint64_t number)
{
    char digits[20];
    size_t at = sizeof digits;

    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    put(out, digits + at, sizeof digits - at);
}

/* Microseconds, as seconds with six digits. */
static void put_seconds(text *out, uint64_t us)
{
    char fraction[7] = {'.'};
    uint64_t rest = us % 1000000;

    put_number(out, us / 1000000);
    for (int i = 6; i > 0; i--) {
        fraction[i] = (char)('0' + rest % 10);
        rest /= 10;
    }
    put(out, fraction, sizeof fraction);
}

static void head(text *out, const char *name, const char *type, const char *help)
{
    put_string(out, "# HELP ");
    put_string(out, name);
    put_string(out, " ");
    put_string(out, help);
    put_string(out, "\n# TYPE ");
    put_string(out, name);
    put_string(out, " ");
    put_string(out, type);
    put_string(out, "\n");
}

/* ,name="value"; the value is escaped as the format says. */
static void put_label(text *out, bool first, const char *name, const char *value)
{
    put_string(out, first ? "{" : ",");
    put_string(out, name);
    put_string(out, "=\"");
    for (; *value != '\0'; value++) {
        if (*value == '\n') {
            put_string(out, "\\n");
            continue;
        }
        if (*value == '\\' || *value == '"') {
            put_string(out, "\\");
        }
        put(out, value, 1);
    }
    put_string(out, "\"");
}

/* The line up to its value, with up to two labels; label NULL: none. */
static void begin(text *out, const char *name, const char *label, const char *value, const char *label_2,
                  const char *value_2)
{
    put_string(out, name);
    if (label != NULL) {
        put_label(out, true, label, value);
        if (label_2 != NULL) {
            put_label(out, false, label_2, value_2);
        }
        put_string(out, "}");
    }
    put_string(out, " ");
}

static void sample(text *out, const char *name, const char *label, const char *value, uint64_t number)
{
    begin(out, name, label, value, NULL, NULL);
    put_number(out, number);
    put_string(out, "\n");
}

static void sample_2(text *out, const char *name, const char *label, const char *value, const char *label_2,
                     const char *value_2, uint64_t number)
{
    begin(out, name, label, value, label_2, value_2);
    put_number(out, number);
    put_string(out, "\n");
}

static void alone(text *out, const char *name, const char *type, const char *help, uint64_t number)
{
    head(out, name, type, help);
    sample(out, name, NULL, NULL, number);
}

/* name + suffix, which is also the name of a histogram's parts. */
static void put_part(text *out, const char *name, const char *suffix, const char *label, const char *value)
{
    put_string(out, name);
    put_string(out, suffix);
    put_label(out, true, label, value);
}

/*
 * Below 2^k microseconds: the values are whole microseconds that were cut off, so `le` the power is exact.
 * The count is taken from the same buckets, so that +Inf is the sum of all.
 */
static void histogram(text *out, const char *name, const char *label, const char *value,
                      const kh_histogram *of)
{
    uint64_t below = 0;

    for (unsigned power = 0; power < LE_FIRST; power++) {
        below += kh_histogram_power(of, power);
    }
    for (unsigned power = LE_FIRST; power <= LE_LAST; power++) {
        put_part(out, name, "_bucket", label, value);
        put_string(out, ",le=\"");
        put_seconds(out, (uint64_t)1 << power);
        put_string(out, "\"} ");
        put_number(out, below);
        put_string(out, "\n");
        below += kh_histogram_power(of, power);
    }
    put_part(out, name, "_bucket", label, value);
    put_string(out, ",le=\"+Inf\"} ");
    put_number(out, of->count);
    put_string(out, "\n");
    put_part(out, name, "_sum", label, value);
    put_string(out, "} ");
    put_seconds(out, of->sum_us);
    put_string(out, "\n");
    put_part(out, name, "_count", label, value);
    put_string(out, "} ");
    put_number(out, of->count);
    put_string(out, "\n");
}

/* ---- The agent ---- */

static void put_agent(text *out, const kh_front *front)
{
    head(out, "keyhold_build_info", "gauge", "The version that runs; always 1.");
    sample(out, "keyhold_build_info", "version", KH_VERSION, 1);
    alone(out, "process_start_time_seconds", "gauge", "Unix time at which this process, the front, started.",
          front->started_s);
    head(out, "keyhold_uptime_seconds", "gauge", "Seconds since the front started.");
    begin(out, "keyhold_uptime_seconds", NULL, NULL, NULL, NULL);
    put_seconds(out, (front->now_ns - front->started_ns) / 1000);
    put_string(out, "\n");
    head(out, "keyhold_process_starts_total", "counter", "How often each role was started.");
    for (uint32_t i = 0; i < front->process_count; i++) {
        sample(out, "keyhold_process_starts_total", "role", front->processes[i].role,
               front->processes[i].starts);
    }
    alone(out, "keyhold_draining", "gauge", "1 while the agent finishes what is queued before it stops.",
          front->draining);
    alone(out, "keyhold_debug_delay_milliseconds", "gauge",
          "By how much replies are held back on purpose; 0 in production.", front->boot.delay_ms);
}

static void put_keeper(text *out, const kh_front *front, const kh_keeper_stats *stats)
{
    static const char *const kernels[] = {"openssl", "portable", "avx512-ifma"};

    alone(out, "keyhold_keeper_up", "gauge", "Whether a keeper serves: without one nothing is signed.",
          front->store.keystore != NULL);
    alone(out, "keyhold_keeper_losses_total", "counter", "How often the front lost its keeper.",
          front->store.losses);
    alone(out, "keyhold_keeper_workers", "gauge", "Signing threads.", stats->workers);
    head(out, "keyhold_keeper_info", "gauge", "Which kernels compute batches; always 1.");
    sample(out, "keyhold_keeper_info", "kernels", kernels[stats->kernels < 3 ? stats->kernels : 0], 1);
    alone(out, "keyhold_kernels_failed", "gauge",
          "1 if the kernels failed their test at start, so that OpenSSL computes all.",
          stats->kernels_failed);
    alone(out, "keyhold_keys_resident", "gauge", "Private keys in the keeper's memory.",
          stats->keys_resident);
    alone(out, "keyhold_keys_loaded_total", "counter", "Private keys taken from the store.",
          stats->keys_loaded);
    alone(out, "keyhold_keys_evicted_total", "counter", "Private keys that made room for others.",
          stats->keys_evicted);
    alone(out, "keyhold_objects_to_destroy", "gauge", "Objects of purged keys that tokens still have.", stats->orders);
    alone(out, "keyhold_usage_refusals_total", "counter",
          "Operations that the keeper refused because the key's usage does not allow these bytes.",
          stats->refused_usage);
}

/* ---- Operations ---- */

static void put_operations(text *out, const kh_front *front)
{
    const char *name = "keyhold_operations_total";

    head(out, name, "counter", "Requests that were answered, by operation and result.");
    for (int op = 0; op < KH_OPS_ROOM; op++) {
        if (strcmp(kh_op_name(op), "unknown") == 0) {
            continue;
        }
        for (int result = 0; result < KH_RESULTS_ROOM; result++) {
            if (result == KH_OK || front->stats.results[op][result] > 0) {
                sample_2(out, name, "op", kh_op_name(op), "result", kh_result_name(result),
                         front->stats.results[op][result]);
            }
        }
    }
    name = "keyhold_operation_duration_seconds";
    head(out, name, "histogram", "From the arrival of a request that needs the keeper to its reply.");
    for (int op = KH_OP_SIGN; op < KH_OPS_ROOM; op++) {
        if (op != KH_OP_STATUS && strcmp(kh_op_name(op), "unknown") != 0) {
            histogram(out, name, "op", kh_op_name(op), &front->stats.total[op]);
        }
    }
}

/* ---- Lanes ---- */

static const struct {
    const char *name, *help;
    size_t at;
} lane_counters[] = {
    {"keyhold_lane_operations_total", "Operations computed, successful or not.",
     offsetof(kh_lane_stats, operations)},
    {"keyhold_lane_errors_total", "Operations that failed while they were computed.",
     offsetof(kh_lane_stats, errors)},
    {"keyhold_lane_expired_total", "Operations whose deadline had passed when a worker took them.",
     offsetof(kh_lane_stats, expired)},
    {"keyhold_lane_kernel_faults_total",
     "Results of the kernels that failed their check and were computed again by OpenSSL.",
     offsetof(kh_lane_stats, kernel_faults)},
};

static void put_lane_counters(text *out, const kh_keeper_stats *stats)
{
    for (size_t i = 0; i < sizeof lane_counters / sizeof *lane_counters; i++) {
        head(out, lane_counters[i].name, "counter", lane_counters[i].help);
        for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
            uint64_t value = 0;

            memcpy(&value, (const char *)&stats->lanes[lane] + lane_counters[i].at, sizeof value);
            sample(out, lane_counters[i].name, "lane", kh_lane_name(lane), value);
        }
    }
}

static void put_batches(text *out, const kh_keeper_stats *stats)
{
    static const char *const fills[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8"};
    const char *name = "keyhold_lane_batches_total";

    _Static_assert(sizeof fills / sizeof *fills == KH_BATCH_MAX + 1, "a label for each fill");
    head(out, name, "counter", "Batches that workers took, by how many operations were in them.");
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        for (int fill = 1; fill <= KH_BATCH_MAX; fill++) {
            sample_2(out, name, "lane", kh_lane_name(lane), "fill", fills[fill],
                     stats->lanes[lane].batches[fill]);
        }
    }
    name = "keyhold_lane_way_operations_total";
    head(out, name, "counter", "Operations by what computed them: OpenSSL or the kernels.");
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        sample_2(out, name, "lane", kh_lane_name(lane), "way", "openssl", stats->lanes[lane].by_openssl);
        sample_2(out, name, "lane", kh_lane_name(lane), "way", "kernel", stats->lanes[lane].by_kernel);
    }
    name = "keyhold_lane_busy_seconds_total";
    head(out, name, "counter", "Time that workers spent computing.");
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        begin(out, name, "lane", kh_lane_name(lane), NULL, NULL);
        put_seconds(out, stats->lanes[lane].busy_ns / 1000);
        put_string(out, "\n");
    }
}

static void put_queues(text *out, const kh_front *front)
{
    const char *name = "keyhold_queue_wait_seconds";

    head(out, name, "histogram", "From the arrival of an operation to its leaving for the keeper.");
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        histogram(out, name, "lane", kh_lane_name(lane), &front->stats.queued[lane]);
    }
    name = "keyhold_queue_waiting";
    head(out, name, "gauge", "Operations in the fair queues.");
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        sample(out, name, "lane", kh_lane_name(lane), front->queue.waiting[lane]);
    }
    name = "keyhold_lane_in_flight";
    head(out, name, "gauge", "Operations that the keeper has.");
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        sample(out, name, "lane", kh_lane_name(lane), front->in_ring[lane]);
    }
    alone(out, "keyhold_queue_operations", "gauge",
          "Admitted operations that have not left for the keeper, those that wait for a lookup included.",
          front->queue.total);
    alone(out, "keyhold_queue_limit", "gauge", "Most of these: queue_total of the configuration.",
          front->queue.total_max);
}

/* ---- Tokens and pools ---- */

static bool shown(const kh_place *place, bool pools)
{
    return place->is_pool == pools && !place->gone && place->count > 0;
}

static uint64_t token_up(const kh_place *place)
{
    return strcmp(kh_place_state(place, 0), "up") == 0;
}
static uint64_t token_sessions(const kh_place *place)
{
    return place->members[0]->sessions;
}
static uint64_t token_operations(const kh_place *place)
{
    return place->members[0]->done;
}
static uint64_t token_failures(const kh_place *place)
{
    return place->members[0]->failed;
}
static uint64_t token_losses(const kh_place *place)
{
    return place->members[0]->losses;
}
static uint64_t token_in_flight(const kh_place *place)
{
    return place->members[0]->health.outstanding;
}
static uint64_t place_waiting(const kh_place *place)
{
    return place->queue.waiting;
}
static uint64_t pool_operations(const kh_place *place)
{
    return place->done;
}
static uint64_t pool_moved(const kh_place *place)
{
    return place->moved;
}
static uint64_t pool_in_flight(const kh_place *place)
{
    return place->in_ring.count;
}

static const struct {
    const char *name, *type, *help;
    bool pools;
    uint64_t (*value)(const kh_place *place);
} place_metrics[] = {
    {"keyhold_token_up", "gauge", "Whether a token's keeper serves and its token is there.", false, token_up},
    {"keyhold_token_sessions", "gauge", "Operations that a token does at a time.", false, token_sessions},
    {"keyhold_token_operations_total", "counter", "Answers of a token's keeper.", false, token_operations},
    {"keyhold_token_failures_total", "counter", "Answers of a token's keeper that were the token's fault.", false,
     token_failures},
    {"keyhold_token_losses_total", "counter", "How often the front lost a token's keeper.", false, token_losses},
    {"keyhold_token_in_flight", "gauge", "Operations that a token's keeper has.", false, token_in_flight},
    {"keyhold_token_waiting", "gauge", "Operations in the fair queue of a token.", false, place_waiting},
    {"keyhold_pool_operations_total", "counter", "Operations of a pool that were answered.", true, pool_operations},
    {"keyhold_pool_moved_total", "counter", "Operations of a pool that were sent to one more partition.", true,
     pool_moved},
    {"keyhold_pool_in_flight", "gauge", "Operations of a pool that its partitions have.", true, pool_in_flight},
    {"keyhold_pool_waiting", "gauge", "Operations in the fair queue of a pool.", true, place_waiting},
};

static void put_partitions(text *out, const kh_front *front)
{
    const char *name = "keyhold_pool_partition_up";

    head(out, name, "gauge", "Whether a partition of a pool takes part.");
    for (const kh_place *place = front->places; place != NULL; place = place->next) {
        for (uint32_t i = 0; shown(place, true) && i < place->count; i++) {
            if ((place->active >> i & 1) != 0) {
                sample_2(out, name, "pool", place->name, "token", place->members[i]->token,
                         strcmp(kh_place_state(place, i), "up") == 0);
            }
        }
    }
}

static void put_durations(text *out, const kh_front *front)
{
    const char *name = "keyhold_token_operation_duration_seconds";

    head(out, name, "histogram", "From sending an operation to a token's keeper to its answer.");
    for (const kh_place *place = front->places; place != NULL; place = place->next) {
        if (shown(place, false)) {
            histogram(out, name, "token", place->name, &place->members[0]->took);
        }
    }
}

static void put_waits(text *out, const kh_front *front, bool pools, const char *name, const char *help)
{
    head(out, name, "histogram", help);
    for (const kh_place *place = front->places; place != NULL; place = place->next) {
        if (shown(place, pools)) {
            histogram(out, name, pools ? "pool" : "token", place->name, &place->queued);
        }
    }
}

static void put_kind(text *out, const kh_front *front, bool pools)
{
    for (size_t i = 0; i < sizeof place_metrics / sizeof *place_metrics; i++) {
        if (place_metrics[i].pools != pools) {
            continue;
        }
        head(out, place_metrics[i].name, place_metrics[i].type, place_metrics[i].help);
        for (const kh_place *place = front->places; place != NULL; place = place->next) {
            if (shown(place, pools)) {
                sample(out, place_metrics[i].name, pools ? "pool" : "token", place->name,
                       place_metrics[i].value(place));
            }
        }
    }
}

/* Only what the configuration has: metrics of tokens where there is none would have no samples. */
static void put_places(text *out, const kh_front *front)
{
    if (front->config->token_count > 0) {
        put_kind(out, front, false);
        put_durations(out, front);
        put_waits(out, front, false, "keyhold_token_queue_wait_seconds",
                  "From the arrival of an operation to its leaving for the token's keeper.");
    }
    if (front->config->pool_count > 0) {
        put_kind(out, front, true);
        put_partitions(out, front);
        put_waits(out, front, true, "keyhold_pool_queue_wait_seconds",
                  "From the arrival of an operation to its leaving for a partition.");
    }
}

/* ---- Connections and callers ---- */

static void put_connections(text *out, const kh_front *front)
{
    const char *name = "keyhold_connections";
    const kh_front_stats *stats = &front->stats;

    head(out, name, "gauge", "Open connections, by whether the caller has proved who it is.");
    sample(out, name, "state", "handshaking", front->handshaking.count);
    sample(out, name, "state", "ready", front->ready.count);
    alone(out, "keyhold_connections_limit", "gauge", "Most of these: max_connections of the configuration.",
          (uint64_t)front->config->max_connections);
    alone(out, "keyhold_connections_accepted_total", "counter", "Connections that were accepted.",
          stats->accepted);
    name = "keyhold_connections_refused_total";
    head(out, name, "counter", "Connections that found no room, by which bound was reached.");
    sample(out, name, "reason", "full", stats->refused_full);
    sample(out, name, "reason", "identity_full", stats->refused_identity);
    alone(out, "keyhold_auth_failures_total", "counter", "Callers that did not prove who they are.",
          stats->refused_auth);
    name = "keyhold_connections_closed_total";
    head(out, name, "counter", "Connections that the agent closed, by why.");
    sample(out, name, "reason", "idle", stats->closed_idle);
    sample(out, name, "reason", "silent", stats->closed_silent);
    sample(out, name, "reason", "stalled", stats->closed_stalled);
    sample(out, name, "reason", "protocol", stats->closed_protocol);
}

static uint64_t identity_connections(const kh_identity *identity)
{
    return identity->connections;
}
static uint64_t identity_requests(const kh_identity *identity)
{
    return identity->requests;
}
static uint64_t identity_completed(const kh_identity *identity)
{
    return identity->completed;
}
static uint64_t identity_refused(const kh_identity *identity)
{
    return identity->refused;
}
static uint64_t identity_waiting(const kh_identity *identity)
{
    return identity->tenant.waiting;
}

static const struct {
    const char *name, *type, *help;
    uint64_t (*value)(const kh_identity *identity);
} identity_metrics[] = {
    {"keyhold_identity_connections", "gauge", "Connections of an identity.", identity_connections},
    {"keyhold_identity_requests_total", "counter", "Operations of an identity that were admitted.",
     identity_requests},
    {"keyhold_identity_completed_total", "counter",
     "Operations of an identity that were answered, whatever the answer.", identity_completed},
    {"keyhold_identity_refused_total", "counter",
     "Requests of an identity that were refused: unknown or forbidden key, full queue.", identity_refused},
    {"keyhold_identity_waiting", "gauge", "Operations of an identity in the queues.", identity_waiting},
};

static void put_identities(text *out, const kh_front *front)
{
    for (size_t i = 0; i < sizeof identity_metrics / sizeof *identity_metrics; i++) {
        const char *name = identity_metrics[i].name;

        head(out, name, identity_metrics[i].type, identity_metrics[i].help);
        sample(out, name, "identity", front->root.name, identity_metrics[i].value(&front->root));
        for (const kh_identity *identity = front->identities; identity != NULL; identity = identity->next) {
            if (identity->config != NULL) { /* those that are gone stay in memory, but not here */
                sample(out, name, "identity", identity->name, identity_metrics[i].value(identity));
            }
        }
    }
}

static void put_directory(text *out, const kh_front *front)
{
    const char *name = "keyhold_directory_entries";
    kh_directory_stats stats;

    kh_directory_get_stats(front->directory, &stats);
    head(out, name, "gauge", "Key names and ids that the front remembers.");
    sample(out, name, "state", "known", stats.entries);
    sample(out, name, "state", "absent", stats.absent);
    sample(out, name, "state", "pending", stats.pending);
    alone(out, "keyhold_directory_lookups_total", "counter", "Lookups of keys that the keeper was asked for.",
          front->stats.lookups);
}

char *kh_metrics_document(const kh_front *front, size_t *len)
{
    kh_keeper_stats stats = {0};
    text out = {0};

    if (front->store.keystore != NULL) {
        kh_keystore_stats(front->store.keystore, &stats);
    }
    put_agent(&out, front);
    put_keeper(&out, front, &stats);
    put_operations(&out, front);
    put_queues(&out, front);
    put_lane_counters(&out, &stats);
    put_batches(&out, &stats);
    put_places(&out, front);
    put_connections(&out, front);
    put_identities(&out, front);
    put_directory(&out, front);
    if (out.failed) {
        free(out.data);
        out.data = NULL;
    }
    *len = out.len;
    return out.data;
}

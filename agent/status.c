/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON document of `status`: what the front, the ring and the keeper count. Bounded, so that it fits one
 * frame.
 */
#include "front.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define IDENTITIES_SHOWN 64
#define DOCUMENT_MAX (60 * 1024)
#define RATE_MIN 0.01 /* per second; a smoothed rate never quite gets to nothing by itself */

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static json_t *histogram_json(const kh_histogram *histogram)
{
    json_t *json = json_object(), *buckets = json_array();
    unsigned last = 0;

    json_object_set_new(json, "count", number(histogram->count));
    json_object_set_new(json, "mean",
                        number(histogram->count > 0 ? histogram->sum_us / histogram->count : 0));
    json_object_set_new(json, "p50", number(kh_histogram_quantile(histogram, 500)));
    json_object_set_new(json, "p99", number(kh_histogram_quantile(histogram, 990)));
    json_object_set_new(json, "p999", number(kh_histogram_quantile(histogram, 999)));
    for (unsigned power = 0; power < KH_HISTOGRAM_POWERS; power++) {
        last = kh_histogram_power(histogram, power) > 0 ? power + 1 : last;
    }
    for (unsigned power = 0; power < last; power++) {
        json_array_append_new(buckets, number(kh_histogram_power(histogram, power)));
    }
    json_object_set_new(json, "log2_us", buckets);
    return json;
}

static json_t *processes_json(const kh_front *front)
{
    json_t *json = json_array();

    for (uint32_t i = 0; i < front->process_count; i++) {
        json_t *one = json_object();

        json_object_set_new(one, "role", json_string(front->processes[i].role));
        json_object_set_new(one, "pid", json_integer(front->processes[i].pid));
        json_array_append_new(json, one);
    }
    return json;
}

static json_t *lane_json(const kh_front *front, const kh_keeper_stats *stats, int lane)
{
    const kh_lane_stats *of = &stats->lanes[lane];
    const double rate = front->stats.rate[lane];
    json_t *json = json_object(), *batches = json_array();
    uint64_t filled = 0, batch_count = 0;

    for (int fill = 1; fill <= KH_BATCH_MAX; fill++) {
        json_array_append_new(batches, number(of->batches[fill]));
        filled += of->batches[fill] * (uint64_t)fill;
        batch_count += of->batches[fill];
    }
    json_object_set_new(json, "operations", number(of->operations));
    json_object_set_new(json, "errors", number(of->errors));
    json_object_set_new(json, "expired", number(of->expired));
    json_object_set_new(json, "batches", batches);
    json_object_set_new(json, "mean_batch",
                        json_real(batch_count > 0 ? (double)filled / (double)batch_count : 0));
    json_object_set_new(json, "by_openssl", number(of->by_openssl));
    json_object_set_new(json, "by_kernel", number(of->by_kernel));
    json_object_set_new(json, "kernel_faults", number(of->kernel_faults));
    json_object_set_new(json, "busy_us", number(of->busy_ns / 1000));
    json_object_set_new(json, "per_second", json_real(rate < RATE_MIN ? 0 : rate));
    json_object_set_new(json, "waiting", number(front->queue.waiting[lane]));
    json_object_set_new(json, "in_ring", number(front->in_ring[lane]));
    json_object_set_new(json, "queue_us", histogram_json(&front->stats.queued[lane]));
    return json;
}

static json_t *store_json(const kh_keeper_stats *stats)
{
    char id[2 * KH_STORE_ID_LEN + 1];
    json_t *json = json_object();

    for (size_t i = 0; i < KH_STORE_ID_LEN; i++) {
        snprintf(id + 2 * i, 3, "%02x", stats->store_id[i]);
    }
    json_object_set_new(json, "id", json_string(id));
    json_object_set_new(json, "last_backup", number(stats->last_backup));
    json_object_set_new(json, "objects_to_destroy", number(stats->orders));
    return json;
}

static json_t *keeper_json(const kh_front *front, const kh_keeper_stats *stats)
{
    static const char *const kernels[] = {"openssl", "portable", "avx512-ifma"};
    json_t *json = json_object();

    json_object_set_new(json, "running", json_boolean(front->store.keystore != NULL));
    json_object_set_new(json, "losses", number(front->store.losses));
    json_object_set_new(json, "workers", number(stats->workers));
    json_object_set_new(json, "kernels", json_string(kernels[stats->kernels < 3 ? stats->kernels : 0]));
    json_object_set_new(json, "kernels_failed", json_boolean(stats->kernels_failed != 0));
    json_object_set_new(json, "keys_resident", number(stats->keys_resident));
    json_object_set_new(json, "keys_loaded", number(stats->keys_loaded));
    json_object_set_new(json, "keys_evicted", number(stats->keys_evicted));
    json_object_set_new(json, "refused_usage", number(stats->refused_usage));
    json_object_set_new(json, "store", store_json(stats));
    return json;
}

static json_t *operations_json(const kh_front *front)
{
    json_t *json = json_object();

    for (int op = 0; op < KH_OPS_ROOM; op++) {
        json_t *results = json_object();

        for (int result = 0; result < KH_RESULTS_ROOM; result++) {
            if (front->stats.results[op][result] > 0) {
                json_object_set_new(results, kh_result_name(result),
                                    number(front->stats.results[op][result]));
            }
        }
        if (json_object_size(results) == 0) {
            json_decref(results);
            continue;
        }
        json_t *one = json_object();

        json_object_set_new(one, "results", results);
        if (front->stats.total[op].count > 0) {
            json_object_set_new(one, "latency_us", histogram_json(&front->stats.total[op]));
        }
        json_object_set_new(json, kh_op_name(op), one);
    }
    return json;
}

static json_t *connections_json(const kh_front *front)
{
    json_t *json = json_object();

    json_object_set_new(json, "open", number(front->ready.count + front->handshaking.count));
    json_object_set_new(json, "handshaking", number(front->handshaking.count));
    json_object_set_new(json, "most", number((uint64_t)front->config->max_connections));
    json_object_set_new(json, "accepted", number(front->stats.accepted));
    json_object_set_new(json, "refused_full", number(front->stats.refused_full));
    json_object_set_new(json, "refused_identity", number(front->stats.refused_identity));
    json_object_set_new(json, "refused_auth", number(front->stats.refused_auth));
    json_object_set_new(json, "closed_idle", number(front->stats.closed_idle));
    json_object_set_new(json, "closed_silent", number(front->stats.closed_silent));
    json_object_set_new(json, "closed_stalled", number(front->stats.closed_stalled));
    json_object_set_new(json, "closed_protocol", number(front->stats.closed_protocol));
    return json;
}

static json_t *listeners_json(const kh_front *front)
{
    json_t *json = json_array();

    for (const kh_listener *listener = front->listeners; listener != NULL; listener = listener->next) {
        json_t *one = json_object();

        json_object_set_new(one, "address", json_string(listener->address));
        json_object_set_new(one, "kind", json_string(listener->is_tcp ? "tcp" : "unix"));
        json_object_set_new(one, "accepted", number(listener->accepted));
        json_object_set_new(one, "open", number(listener->connections));
        if (listener->is_tcp) {
            json_object_set_new(one, "administration", json_boolean(listener->administration));
            json_object_set_new(one, "tls_handshakes", number(listener->tls_handshakes));
            json_object_set_new(one, "tls_resumed", number(listener->tls_resumed));
            json_object_set_new(one, "tls_failed", number(listener->tls_failed));
        }
        json_array_append_new(json, one);
    }
    return json;
}

static json_t *identity_json(const kh_identity *identity)
{
    json_t *json = json_object();

    json_object_set_new(json, "name", json_string(identity->name));
    json_object_set_new(json, "connections", number(identity->connections));
    json_object_set_new(json, "requests", number(identity->requests));
    json_object_set_new(json, "completed", number(identity->completed));
    json_object_set_new(json, "refused", number(identity->refused));
    json_object_set_new(json, "waiting", number(identity->tenant.waiting));
    return json;
}

static json_t *identities_json(const kh_front *front)
{
    json_t *json = json_array();

    json_array_append_new(json, identity_json(&front->root));
    for (const kh_identity *identity = front->identities;
         identity != NULL && json_array_size(json) < IDENTITIES_SHOWN; identity = identity->next) {
        if (identity->config != NULL) {
            json_array_append_new(json, identity_json(identity));
        }
    }
    return json;
}

static json_t *directory_json(const kh_front *front)
{
    kh_directory_stats stats;
    json_t *json = json_object();

    kh_directory_get_stats(front->directory, &stats);
    json_object_set_new(json, "entries", number(stats.entries));
    json_object_set_new(json, "absent", number(stats.absent));
    json_object_set_new(json, "pending", number(stats.pending));
    json_object_set_new(json, "hits", number(stats.hits));
    json_object_set_new(json, "absent_hits", number(stats.absent_hits));
    json_object_set_new(json, "misses", number(stats.misses));
    json_object_set_new(json, "lookups", number(front->stats.lookups));
    json_object_set_new(json, "evicted", number(stats.evicted));
    json_object_set_new(json, "dropped", number(stats.dropped));
    return json;
}

static json_t *token_json(const kh_place *place)
{
    const kh_backend *backend = place->members[0];
    json_t *json = json_object();

    json_object_set_new(json, "name", json_string(place->name));
    json_object_set_new(json, "state", json_string(kh_place_state(place, 0)));
    json_object_set_new(json, "sessions", number(backend->sessions));
    json_object_set_new(json, "in_ring", number(backend->health.outstanding));
    json_object_set_new(json, "waiting", number(place->queue.waiting));
    json_object_set_new(json, "operations", number(backend->done));
    json_object_set_new(json, "failed", number(backend->failed));
    json_object_set_new(json, "losses", number(backend->losses));
    json_object_set_new(json, "usual_us", number(backend->health.usual_ns / 1000));
    json_object_set_new(json, "took_us", histogram_json(&backend->took));
    return json;
}

static json_t *pool_json(const kh_place *place)
{
    json_t *json = json_object(), *partitions = json_array();

    for (uint32_t i = 0; i < place->count; i++) {
        const kh_backend *backend = place->members[i];
        json_t *one = NULL;

        if ((place->active >> i & 1) == 0) {
            continue;
        }
        one = json_object();
        json_object_set_new(one, "token", json_string(backend->token));
        json_object_set_new(one, "state", json_string(kh_place_state(place, i)));
        json_object_set_new(one, "in_ring", number(backend->health.outstanding));
        json_object_set_new(one, "usual_us", number(backend->health.usual_ns / 1000));
        json_array_append_new(partitions, one);
    }
    json_object_set_new(json, "name", json_string(place->name));
    json_object_set_new(json, "partitions", partitions);
    json_object_set_new(json, "in_ring", number(place->in_ring.count));
    json_object_set_new(json, "waiting", number(place->queue.waiting));
    json_object_set_new(json, "operations", number(place->done));
    json_object_set_new(json, "moved", number(place->moved));
    json_object_set_new(json, "queue_us", histogram_json(&place->queued));
    return json;
}

/* All tokens, partitions included, or all pools. */
static json_t *places_json(const kh_front *front, bool pools)
{
    json_t *json = json_array();

    for (const kh_place *place = front->places; place != NULL; place = place->next) {
        if (place->is_pool == pools && !place->gone && place->count > 0) {
            json_array_insert_new(json, 0, pools ? pool_json(place) : token_json(place)); /* the last one is first */
        }
    }
    return json;
}

static json_t *document(const kh_front *front)
{
    json_t *json = json_object(), *lanes = json_object(), *queues = json_object();
    kh_keeper_stats stats = {0};

    if (front->store.keystore != NULL) {
        kh_keystore_stats(front->store.keystore, &stats);
    }
    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        json_object_set_new(lanes, kh_lane_name(lane), lane_json(front, &stats, lane));
    }
    json_object_set_new(queues, "waiting", number(front->queue.total));
    json_object_set_new(queues, "most", number(front->queue.total_max));
    json_object_set_new(queues, "jobs", number(kh_jobs_in_use(front->jobs)));
    json_object_set_new(queues, "delayed", number(front->delayed.count));
    json_object_set_new(json, "version", json_string(KH_VERSION));
    json_object_set_new(json, "started", number(front->started_s));
    json_object_set_new(json, "uptime_s", number((front->now_ns - front->started_ns) / 1000000000));
    json_object_set_new(json, "delay_ms", number(front->boot.delay_ms));
    json_object_set_new(json, "processes", processes_json(front));
    json_object_set_new(json, "keeper", keeper_json(front, &stats));
    json_object_set_new(json, "tokens", places_json(front, false));
    json_object_set_new(json, "pools", places_json(front, true));
    json_object_set_new(json, "lanes", lanes);
    json_object_set_new(json, "operations", operations_json(front));
    json_object_set_new(json, "queues", queues);
    json_object_set_new(json, "connections", connections_json(front));
    json_object_set_new(json, "listeners", listeners_json(front));
    json_object_set_new(json, "identities", identities_json(front));
    json_object_set_new(json, "directory", directory_json(front));
    return json;
}

void kh_status(kh_conn *conn, const kh_request *req)
{
    kh_reply reply = {.op = KH_OP_STATUS, .id = req->id};
    json_t *json = NULL;
    char *text = NULL;

    if (!kh_acl_allows_op(kh_identity_rights(conn->identity), KH_OP_STATUS)) {
        kh_refuse(conn, req->op, req->id, KH_E_FORBIDDEN, "this identity may not do this");
        return;
    }
    json = document(conn->front);
    text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(json);
    if (text == NULL) {
        kh_refuse(conn, req->op, req->id, KH_E_MEMORY, NULL);
        return;
    }
    if (strlen(text) > DOCUMENT_MAX) {
        kh_refuse(conn, req->op, req->id, KH_E_TOO_LARGE, "the status document does not fit a frame");
    } else {
        reply.data = kh_text_bytes(text);
        kh_conn_reply(conn, &reply);
    }
    free(text);
}

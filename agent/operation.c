/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a job: it begins with an admitted request and ends with exactly one reply, or with its
 * connection.
 */
#include "front.h"

#define EXPIRIES_PER_TURN 64

uint32_t kh_retry_after(const kh_front *front, kh_lane lane)
{
    double rate = front->stats.rate[lane], wait_ms = 0;

    if (front->store.keystore == NULL) {
        return 200;
    }
    wait_ms = rate < 1 ? 100 : 1000 * (double)front->queue.waiting[lane] / rate;
    return wait_ms < 5 ? 5 : wait_ms > 5000 ? 5000 : (uint32_t)wait_ms;
}

void kh_refuse(kh_conn *conn, kh_op op, uint32_t id, kh_result why, const char *detail)
{
    kh_reply reply = {.op = op, .id = id, .status = why};

    reply.detail = kh_text_bytes(detail != NULL ? detail : kh_result_text(why));
    if (why == KH_E_OVERLOADED || why == KH_E_UNAVAILABLE || why == KH_E_MEMORY) {
        reply.retry_after_ms = kh_retry_after(conn->front, KH_LANE_STORE);
    }
    if (conn->identity != NULL) {
        conn->identity->refused++;
    }
    kh_conn_reply(conn, &reply);
}

static kh_job *refuse_full(kh_conn *conn, const kh_request *req, kh_result why)
{
    kh_front *front = conn->front;
    kh_reply reply = {
        .op = req->op, .id = req->id, .status = why, .detail = kh_text_bytes(kh_result_text(why))};
    uint32_t suppressed = 0, longest = 0;

    for (int lane = 0; lane < KH_LANE_COUNT; lane++) {
        uint32_t wait_ms = front->queue.waiting[lane] > 0 ? kh_retry_after(front, (kh_lane)lane) : 5;

        longest = wait_ms > longest ? wait_ms : longest;
    }
    reply.retry_after_ms = longest;
    conn->identity->refused++;
    if (kh_log_allowed(&conn->identity->log_overload, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_WARN, "overloaded", KH_LT("identity", conn->identity->name),
               KH_LT("why", kh_result_name(why)), KH_LN("waiting", conn->identity->tenant.waiting),
               KH_LN("queue_max", conn->identity->tenant.queue_max), KH_LN("total", front->queue.total),
               KH_LN("queue_total", front->queue.total_max), KH_LN("suppressed", suppressed));
    }
    kh_conn_reply(conn, &reply);
    return NULL;
}

/* Whose it is, whatever has become of the connection's claim since. */
static kh_identity *identity_of(const kh_job *job)
{
    return (kh_identity *)job->tenant;
}

static void enter_conn(kh_conn *conn, kh_job *job)
{
    job->conn = conn;
    job->conn_prev = NULL;
    job->conn_next = conn->jobs;
    if (conn->jobs != NULL) {
        conn->jobs->conn_prev = job;
    }
    conn->jobs = job;
    conn->job_count++;
    conn->front->waiting_jobs++;
    if (identity_of(job)->waiting_jobs++ == 0) {
        conn->front->waiting_identities++;
    }
    kh_gather_count(&conn->front->gather, conn->front->waiting_jobs);
    kh_jobs_enter(conn->front->jobs, job);
}

/* Nobody waits for the job any more. */
static void leave_conn(kh_front *front, kh_job *job)
{
    kh_conn *conn = job->conn;

    kh_jobs_leave(front->jobs, job);
    kh_deadlines_remove(&front->deadlines, job);
    *(job->conn_prev != NULL ? &job->conn_prev->conn_next : &conn->jobs) = job->conn_next;
    if (job->conn_next != NULL) {
        job->conn_next->conn_prev = job->conn_prev;
    }
    conn->job_count--;
    front->waiting_jobs--;
    if (--identity_of(job)->waiting_jobs == 0) {
        front->waiting_identities--;
    }
    job->conn = NULL;
}

kh_job *kh_operation_begin(kh_conn *conn, const kh_request *req, size_t data_len)
{
    kh_front *front = conn->front;
    kh_tenant *tenant = &conn->identity->tenant;
    kh_job *job = NULL;

    if (front->draining) {
        kh_refuse(conn, req->op, req->id, KH_E_UNAVAILABLE, "the agent is stopping");
        return NULL;
    }
    if (kh_queue_admit(&front->queue, tenant) != KH_OK) {
        return refuse_full(conn, req, KH_E_OVERLOADED);
    }
    job = data_len <= KH_RECORD_DATA_MAX ? kh_job_take(front->jobs, (uint32_t)data_len) : NULL;
    if (job == NULL) {
        kh_queue_forget(&front->queue, tenant);
        return refuse_full(conn, req, data_len > KH_RECORD_DATA_MAX ? KH_E_TOO_LARGE : KH_E_OVERLOADED);
    }
    job->op = req->op;
    job->tenant = tenant;
    job->request_id = req->id;
    job->arrived_ns = front->now_ns;
    job->deadline_ns = front->now_ns + (uint64_t)req->deadline_ms * 1000000;
    if (kh_deadlines_add(&front->deadlines, job) != KH_OK) {
        kh_queue_forget(&front->queue, tenant);
        kh_job_release(front->jobs, job);
        return refuse_full(conn, req, KH_E_MEMORY);
    }
    conn->identity->requests++;
    enter_conn(conn, job);
    return job;
}

/*
 * Takes the job out of whatever holds it and frees it; one that is in the ring stays until its completion
 * comes.
 */
static void discard(kh_front *front, kh_job *job)
{
    switch (job->state) {
    case KH_JOB_LOOKUP:
        if (job->entry != NULL) {
            kh_directory_unwait(front->directory, job);
        }
        kh_queue_forget(&front->queue, job->tenant);
        break;
    case KH_JOB_QUEUED:
        if (job->flow != NULL) {
            kh_keyqueue_remove(job);
        } else {
            kh_queue_remove(&front->queue, job);
        }
        break;
    case KH_JOB_RING:
        return;
    case KH_JOB_DELAY:
        kh_job_list_remove(&front->delayed, job);
        break;
    default:
        break;
    }
    kh_manage_drop(job);
    kh_job_release(front->jobs, job);
}

void kh_operation_reply(kh_front *front, kh_job *job, kh_reply *reply)
{
    kh_conn *conn = job->conn;

    if (conn != NULL) {
        reply->op = job->op;
        reply->id = job->request_id;
        leave_conn(front, job);
        ((kh_identity *)job->tenant)->completed++;
        kh_histogram_add(&front->stats.total[job->op], (front->now_ns - job->arrived_ns) / 1000);
        kh_conn_reply(conn, reply);
    }
    discard(front, job);
}

void kh_operation_end(kh_front *front, kh_job *job, kh_result status, const uint8_t *data, size_t len)
{
    kh_reply reply = {.status = status};

    if (status == KH_OK) {
        reply.data = (kh_bytes){data, len};
    } else {
        reply.detail = kh_text_bytes(kh_result_text(status));
        reply.retry_after_ms = !kh_result_retryable(status) ? 0
                               : job->place != NULL         ? kh_place_retry_after(job->place)
                                                            : kh_retry_after(front, job->lane);
    }
    kh_operation_reply(front, job, &reply);
}

void kh_operation_cancel(kh_conn *conn, uint32_t request_id)
{
    kh_job *job = kh_jobs_request(conn->front->jobs, conn, request_id);

    if (job != NULL) {
        kh_operation_end(conn->front, job, KH_E_CANCELLED, NULL, 0);
    }
}

void kh_operation_abandon(kh_conn *conn)
{
    while (conn->jobs != NULL) {
        kh_job *job = conn->jobs;

        leave_conn(conn->front, job);
        discard(conn->front, job);
    }
}

/* So many at a time: thousands may have the same deadline, and the timer comes again at once. */
void kh_operation_expire(kh_front *front)
{
    kh_job *job = kh_deadlines_first(&front->deadlines);

    for (int i = 0; i < EXPIRIES_PER_TURN && job != NULL && job->deadline_ns <= front->now_ns; i++) {
        kh_operation_end(front, job, KH_E_DEADLINE, NULL, 0);
        job = kh_deadlines_first(&front->deadlines);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The caller's end of one connection: handshake, credit, deadlines, matching of replies (protocol.h,
 * SPEC.md). */
#include "buffer.h"
#include "flights.h"
#include "shape.h"

#include <stdlib.h>
#include <string.h>

#define KH_INFLIGHT_BEFORE_HELLO 1024
#define KH_HELD_PREFIX 4 /* before each held frame: the request's id, in the machine's byte order */

typedef enum kh_session_step { KH_STEP_HELLO, KH_STEP_AUTH, KH_STEP_READY, KH_STEP_LOST } kh_session_step;

struct kh_session {
    kh_session_step step; /* which reply comes next */
    kh_result why;
    uint32_t max_inflight; /* live requests */
    uint32_t credit;       /* requests in the output or at the agent, and held */
    uint32_t on_wire;      /* of these, not held */
    uint32_t max_frame;    /* the agent's */
    kh_prove_fn prove;
    void *prove_ctx;
    kh_flights flights;
    kh_output output;
    kh_output held; /* frames that wait for the handshake or for credit */
    kh_input input;
    kh_bytes taken; /* the reply that was handed out last and holds a secret: wiped when its views end */
    uint8_t nonce[KH_NONCE_LEN];
    char client_name[KH_CLIENT_NAME_MAX + 1];
    char identity[KH_NAME_MAX + 1];
    char known_as[KH_NAME_MAX + 1];
    char detail[KH_DETAIL_MAX + 1];
};

static kh_bytes kh_text(const char *text)
{
    return (kh_bytes){(const uint8_t *)text, strlen(text)};
}

/* Copies text of the agent's into buf of cap bytes, with what a terminal could obey replaced. */
static void kh_copy_text(char *buf, size_t cap, kh_bytes text)
{
    size_t len = text.len < cap - 1 ? text.len : cap - 1;

    for (size_t i = 0; i < len; i++) {
        buf[i] = text.data[i] >= 0x20 && text.data[i] != 0x7f ? (char)text.data[i] : '?';
    }
    buf[len] = '\0';
}

/* Queues one frame without id bookkeeping: hello, auth, cancel. */
static kh_result kh_session_put(kh_session *session, const kh_request *req, size_t bound)
{
    uint8_t *room = kh_output_reserve(&session->output, bound);
    kh_result result = KH_OK;
    size_t len = 0;

    if (room == NULL) {
        return KH_E_MEMORY;
    }
    result = kh_request_encode(req, room, bound, &len);
    kh_output_commit(&session->output, len);
    return result;
}

static kh_result kh_session_put_hello(kh_session *session)
{
    kh_request hello = {
        .op = KH_OP_HELLO,
        .version_min = KH_PROTOCOL_VERSION,
        .version_max = KH_PROTOCOL_VERSION,
        .max_frame = KH_FRAME_MAX,
        .client_name = kh_text(session->client_name),
        .identity = kh_text(session->identity),
        .nonce = {session->nonce, KH_NONCE_LEN},
    };

    return kh_session_put(session, &hello, 512);
}

kh_result kh_session_new(const kh_session_config *config, kh_session **session)
{
    const char *client_name = config->client_name != NULL ? config->client_name : "";
    const char *identity = config->identity != NULL ? config->identity : "";
    kh_session *made = NULL;
    kh_result result = KH_OK;

    *session = NULL;
    if (strlen(client_name) > KH_CLIENT_NAME_MAX || strlen(identity) > KH_NAME_MAX ||
        (*identity != '\0' && config->prove == NULL)) {
        return KH_E_INVALID;
    }
    made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(made->client_name, client_name, strlen(client_name) + 1);
    memcpy(made->identity, identity, strlen(identity) + 1);
    memcpy(made->nonce, config->nonce, KH_NONCE_LEN);
    made->prove = config->prove;
    made->prove_ctx = config->prove_ctx;
    made->max_inflight = config->max_inflight;
    made->max_frame = KH_FRAME_MIN_CAP;
    made->credit = KH_INFLIGHT_BEFORE_HELLO;
    result = kh_session_put_hello(made);
    if (result != KH_OK) {
        kh_session_free(made);
        return result;
    }
    *session = made;
    return KH_OK;
}

void kh_session_free(kh_session *session)
{
    if (session == NULL) {
        return;
    }
    kh_flights_free(&session->flights);
    kh_output_free(&session->output);
    kh_output_free(&session->held);
    kh_input_free(&session->input);
    free(session);
}

kh_session_state kh_session_get_state(const kh_session *session)
{
    switch (session->step) {
    case KH_STEP_READY:
        return KH_SESSION_READY;
    case KH_STEP_LOST:
        return KH_SESSION_LOST;
    case KH_STEP_HELLO:
    case KH_STEP_AUTH:
        break;
    }
    return KH_SESSION_OPENING;
}

const char *kh_session_identity(const kh_session *session)
{
    return session->known_as;
}

/* The most that a request can take when encoded. */
static size_t kh_request_bound(const kh_request *req)
{
    return 128 + req->key.len + req->name.len + req->after.len + req->label.len + req->data.len +
           req->place.len;
}

/* Encodes into the output, or behind its id into the held frames. KH_E_TOO_LARGE, KH_E_INVALID: nothing was
 * written. */
static kh_result kh_session_put_request(kh_session *session, const kh_request *req, bool held)
{
    kh_output *where = held ? &session->held : &session->output;
    size_t prefix = held ? KH_HELD_PREFIX : 0;
    size_t most = (size_t)session->max_frame + KH_FRAME_PREFIX;
    size_t bound = kh_request_bound(req);
    kh_result result = KH_OK;
    uint8_t *room = NULL;
    size_t len = 0;

    bound = bound < most ? bound : most;
    room = kh_output_reserve(where, prefix + bound);
    if (room == NULL) {
        return KH_E_MEMORY;
    }
    result = kh_request_encode(req, room + prefix, bound, &len);
    if (result == KH_OK) {
        memcpy(room, &req->id, prefix);
        kh_output_commit(where, prefix + len);
    }
    return result;
}

kh_result kh_session_submit(kh_session *session, const kh_request *req, uint64_t now_ms, void *user,
                            uint32_t *id)
{
    kh_request numbered = *req;
    kh_flight *flight = NULL;
    kh_result result = KH_OK;

    if (session->step == KH_STEP_LOST) {
        return KH_E_CLOSED;
    }
    if (kh_op_is_handshake(req->op) || req->op == KH_OP_CANCEL) {
        return KH_E_INVALID;
    }
    if (session->flights.used >= session->credit ||
        (session->max_inflight > 0 && session->flights.live >= session->max_inflight)) {
        return KH_E_OVERLOADED;
    }
    result = kh_flights_add(&session->flights, now_ms + req->deadline_ms, &flight);
    if (result != KH_OK) {
        return result;
    }
    flight->user = user;
    flight->op = (uint16_t)req->op;
    flight->held = session->step != KH_STEP_READY;
    numbered.id = flight->id;
    result = kh_session_put_request(session, &numbered, flight->held);
    if (result != KH_OK) {
        kh_flights_remove(&session->flights, flight);
        return result;
    }
    session->on_wire += !flight->held;
    *id = numbered.id;
    return KH_OK;
}

/* Cancelling is advice: if there is no memory for it, the agent does some work in vain. */
static void kh_session_cancel_flight(kh_session *session, kh_flight *flight)
{
    kh_request cancel = {.op = KH_OP_CANCEL, .id = flight->id};

    kh_flights_cancel(&session->flights, flight);
    if (session->step == KH_STEP_READY && !flight->held) {
        kh_result ignored = kh_session_put(session, &cancel, 16);

        (void)ignored;
    }
}

void kh_session_cancel(kh_session *session, uint32_t id)
{
    kh_flight *flight = kh_flights_find(&session->flights, id);

    if (flight != NULL && flight->state == KH_FLIGHT_LIVE) {
        kh_session_cancel_flight(session, flight);
    }
}

kh_bytes kh_session_output(const kh_session *session)
{
    return session->step == KH_STEP_LOST ? (kh_bytes){0} : kh_output_pending(&session->output);
}

void kh_session_sent(kh_session *session, size_t len)
{
    kh_output_consume(&session->output, len);
}

/* The views that were handed out last end here. */
static void kh_session_end_views(kh_session *session)
{
    if (session->taken.len > 0) {
        explicit_bzero((uint8_t *)session->taken.data, session->taken.len);
        session->taken = (kh_bytes){0};
    }
}

uint8_t *kh_session_read_buffer(kh_session *session, size_t *cap)
{
    *cap = 0;
    kh_session_end_views(session);
    return session->step == KH_STEP_LOST ? NULL : kh_input_room(&session->input, KH_FRAME_MAX, cap);
}

void kh_session_fed(kh_session *session, size_t len)
{
    kh_input_fed(&session->input, len);
}

void kh_session_abort(kh_session *session, kh_result why)
{
    if (session->step != KH_STEP_LOST) {
        session->step = KH_STEP_LOST;
        session->why = why;
    }
}

static kh_result kh_session_lose(kh_session *session, kh_result why, kh_bytes detail)
{
    kh_copy_text(session->detail, sizeof(session->detail), detail);
    kh_session_abort(session, why);
    return why;
}

/* Equal without a branch on the contents. */
static bool kh_equal_proofs(const uint8_t *a, const uint8_t *b)
{
    unsigned difference = 0;

    for (size_t i = 0; i < KH_PROOF_LEN; i++) {
        difference |= (unsigned)(a[i] ^ b[i]);
    }
    return difference == 0;
}

/* Checks the agent's proof and makes ours. */
static kh_result kh_session_prove(kh_session *session, const kh_reply *hello, uint8_t *proof)
{
    uint8_t expected[KH_PROOF_LEN];
    bool made =
        session->prove(session->prove_ctx, "keyhold-1 agent", session->nonce, hello->nonce.data, expected) &&
        session->prove(session->prove_ctx, "keyhold-1 client", session->nonce, hello->nonce.data, proof);
    bool equal = made && hello->proof.len == KH_PROOF_LEN && kh_equal_proofs(expected, hello->proof.data);

    explicit_bzero(expected, sizeof(expected));
    if (!made) {
        return kh_session_lose(session, KH_E_CRYPTO, kh_text("the proof of identity could not be computed"));
    }
    if (!equal) {
        return kh_session_lose(session, KH_E_UNAUTHENTICATED,
                               kh_text("the agent does not know this token (or is not the agent)"));
    }
    return KH_OK;
}

static kh_result kh_session_on_hello(kh_session *session, const kh_reply *reply)
{
    uint8_t proof[KH_PROOF_LEN];
    kh_request auth = {.op = KH_OP_AUTH};
    kh_result result = KH_OK;

    if (reply->version != KH_PROTOCOL_VERSION) {
        return kh_session_lose(session, KH_E_VERSION,
                               kh_text("the agent chose a version that was not offered"));
    }
    session->max_frame = reply->max_frame < KH_FRAME_MAX ? reply->max_frame : KH_FRAME_MAX;
    session->credit = reply->credit < KH_FLIGHTS_MAX ? reply->credit : KH_FLIGHTS_MAX;
    if (session->identity[0] != '\0') {
        result = kh_session_prove(session, reply, proof);
        if (result != KH_OK) {
            return result;
        }
        auth.proof = (kh_bytes){proof, KH_PROOF_LEN};
    }
    result = kh_session_put(session, &auth, 64);
    if (result != KH_OK) {
        return kh_session_lose(session, result, kh_text(""));
    }
    session->step = KH_STEP_AUTH;
    return KH_OK;
}

/* Length of the first held frame, its id set. */
static size_t kh_held_first(kh_bytes held, uint32_t *id)
{
    const uint8_t *at = held.data + KH_HELD_PREFIX;

    memcpy(id, held.data, KH_HELD_PREFIX);
    return KH_FRAME_PREFIX + ((size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | (size_t)at[3]);
}

/* Moves held frames into the output as far as the credit goes; those that were cancelled meanwhile are
 * dropped. */
static kh_result kh_session_release(kh_session *session)
{
    kh_bytes held = kh_output_pending(&session->held);

    while (held.len > 0 && session->on_wire < session->credit) {
        uint32_t id = 0;
        size_t len = kh_held_first(held, &id);
        kh_flight *flight = kh_flights_find(&session->flights, id);

        if (flight != NULL && flight->state == KH_FLIGHT_LIVE) {
            uint8_t *room = kh_output_reserve(&session->output, len);

            if (room == NULL) {
                return kh_session_lose(session, KH_E_MEMORY, kh_text(""));
            }
            memcpy(room, held.data + KH_HELD_PREFIX, len);
            kh_output_commit(&session->output, len);
            flight->held = false;
            session->on_wire++;
        } else if (flight != NULL) {
            kh_flights_remove(&session->flights, flight);
        }
        kh_output_consume(&session->held, KH_HELD_PREFIX + len);
        held = kh_output_pending(&session->held);
    }
    if (held.len == 0 && session->held.data != NULL) {
        kh_output_free(&session->held); /* used at the beginning of a connection only */
    }
    return KH_OK;
}

/* A reply that belongs to the handshake; a refused hello is also the agent's last word on any connection. */
static kh_result kh_session_on_handshake(kh_session *session, const kh_reply *reply)
{
    bool expected = (session->step == KH_STEP_HELLO && reply->op == KH_OP_HELLO) ||
                    (session->step == KH_STEP_AUTH && reply->op == KH_OP_AUTH);

    if (reply->status != KH_OK && (expected || reply->op == KH_OP_HELLO)) {
        return kh_session_lose(session, reply->status, reply->detail);
    }
    if (!expected) {
        return kh_session_lose(session, KH_E_MALFORMED, kh_text("a reply of the handshake out of order"));
    }
    if (reply->op == KH_OP_HELLO) {
        return kh_session_on_hello(session, reply);
    }
    kh_copy_text(session->known_as, sizeof(session->known_as), reply->identity);
    session->step = KH_STEP_READY;
    return kh_session_release(session);
}

/* A reply to a request. KH_AGAIN: to one that was cancelled. */
static kh_result kh_session_on_reply(kh_session *session, const kh_reply *reply, void **user)
{
    kh_flight *flight = kh_flights_find(&session->flights, reply->id);
    bool wanted = false;
    kh_result result = KH_OK;

    if (session->step != KH_STEP_READY || flight == NULL || flight->held ||
        flight->op != (uint16_t)reply->op) {
        return kh_session_lose(session, KH_E_MALFORMED, kh_text("a reply to a request that was not made"));
    }
    wanted = flight->state == KH_FLIGHT_LIVE;
    *user = flight->user;
    kh_flights_remove(&session->flights, flight);
    session->on_wire--;
    result = kh_session_release(session);
    if (result != KH_OK) {
        return result;
    }
    return wanted ? KH_OK : KH_AGAIN;
}

/* The next frame. KH_AGAIN with *more: look at the one after it. */
static kh_result kh_session_frame(kh_session *session, kh_reply *reply, void **user, bool *more)
{
    kh_bytes payload = {0};
    kh_result result = kh_input_peek(&session->input, KH_FRAME_MAX, &payload);

    *more = false;
    if (result == KH_AGAIN) {
        return result;
    }
    if (result != KH_OK || kh_reply_decode(payload.data, payload.len, reply) != KH_OK) {
        return kh_session_lose(session, KH_E_MALFORMED, kh_text("a malformed reply"));
    }
    kh_input_skip(&session->input, payload);
    if (kh_op_is_handshake(reply->op)) {
        result = kh_session_on_handshake(session, reply);
        *more = result == KH_OK;
        return result == KH_OK ? KH_AGAIN : result;
    }
    if (reply->op == KH_OP_TLS_RSA_DECRYPT || reply->op == KH_OP_DECRYPT) {
        session->taken = payload;
    }
    result = kh_session_on_reply(session, reply, user);
    *more = result == KH_AGAIN;
    return result;
}

kh_result kh_session_next(kh_session *session, kh_reply *reply, void **user)
{
    kh_result result = KH_AGAIN;
    bool more = true;

    while (more) {
        kh_session_end_views(session);
        if (session->step == KH_STEP_LOST) {
            return session->why;
        }
        result = kh_session_frame(session, reply, user, &more);
    }
    return result;
}

bool kh_session_drain(kh_session *session, void **user)
{
    return session->step == KH_STEP_LOST && kh_flights_drain(&session->flights, user);
}

bool kh_session_expire(kh_session *session, uint64_t now_ms, void **user)
{
    kh_flight *flight = kh_flights_first(&session->flights);

    if (flight == NULL || flight->deadline_ms > now_ms) {
        return false;
    }
    *user = flight->user;
    kh_session_cancel_flight(session, flight);
    return true;
}

uint64_t kh_session_next_deadline(const kh_session *session)
{
    const kh_flight *flight = kh_flights_first(&session->flights);

    return flight != NULL ? flight->deadline_ms : UINT64_MAX;
}

uint32_t kh_session_outstanding(const kh_session *session)
{
    return session->flights.live;
}

kh_result kh_session_why(const kh_session *session, const char **detail)
{
    if (detail != NULL) {
        *detail = session->detail;
    }
    return session->why;
}

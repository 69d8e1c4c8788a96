/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's end of one connection: order, credit, ids, and the bounds of what it buffers (protocol.h,
 * SPEC.md). */
#include "buffer.h"
#include "ids.h"
#include "shape.h"

#include <stdlib.h>
#include <string.h>

#define KH_CREDIT_DEFAULT 1024
#define KH_CREDIT_MAX 65536
#define KH_FRAME_LIMIT (16 * 1024 * 1024) /* no configuration may go beyond */
#define KH_HANDSHAKE_FRAME_MAX 1024       /* bytes of payload before the caller has proved who it is */
#define KH_HIGH_WATER (256 * 1024)        /* bytes of unread replies beyond which nothing more is read */

typedef enum kh_server_state {
    KH_SERVER_WANT_HELLO,
    KH_SERVER_IN_HELLO, /* the caller holds the hello and has to answer it */
    KH_SERVER_WANT_AUTH,
    KH_SERVER_IN_AUTH,
    KH_SERVER_READY,
    KH_SERVER_DEAD,
} kh_server_state;

struct kh_server {
    kh_server_state state;
    kh_result why; /* in state DEAD */
    uint32_t max_frame;
    uint32_t credit;
    uint32_t peer_max_frame; /* the smaller of the peer's and ours */
    uint32_t bulky;          /* outstanding requests whose replies can fill a frame */
    bool withheld;           /* a bulky request waits in the input until replies were read */
    kh_ids ids;
    kh_input input;
    kh_output output;
};

kh_result kh_server_new(const kh_server_config *config, kh_server **server)
{
    uint32_t max_frame = config != NULL && config->max_frame > 0 ? config->max_frame : KH_FRAME_MAX;
    uint32_t credit = config != NULL && config->credit > 0 ? config->credit : KH_CREDIT_DEFAULT;
    kh_server *made = NULL;

    *server = NULL;
    if (max_frame < KH_FRAME_MIN_CAP || max_frame > KH_FRAME_LIMIT || credit > KH_CREDIT_MAX) {
        return KH_E_INVALID;
    }
    made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return KH_E_MEMORY;
    }
    made->max_frame = max_frame;
    made->peer_max_frame = KH_FRAME_MIN_CAP;
    made->credit = credit;
    kh_ids_init(&made->ids);
    *server = made;
    return KH_OK;
}

void kh_server_free(kh_server *server)
{
    if (server == NULL) {
        return;
    }
    kh_ids_free(&server->ids);
    kh_input_free(&server->input);
    kh_output_free(&server->output);
    free(server);
}

static size_t kh_server_unread(const kh_server *server)
{
    return server->output.tail - server->output.head;
}

/* What the peer may send as one frame now. */
static size_t kh_server_frame_cap(const kh_server *server)
{
    return server->state == KH_SERVER_READY ? server->max_frame : KH_HANDSHAKE_FRAME_MAX;
}

bool kh_server_wants_read(const kh_server *server)
{
    return server->state != KH_SERVER_DEAD && !server->withheld &&
           kh_server_unread(server) <= KH_HIGH_WATER &&
           !kh_input_full(&server->input, kh_server_frame_cap(server));
}

uint8_t *kh_server_read_buffer(kh_server *server, size_t *cap)
{
    *cap = 0;
    return kh_server_wants_read(server) ? kh_input_room(&server->input, kh_server_frame_cap(server), cap)
                                        : NULL;
}

void kh_server_fed(kh_server *server, size_t len)
{
    kh_input_fed(&server->input, len);
}

/* A string constant as a view. */
static kh_bytes kh_text(const char *text)
{
    return (kh_bytes){(const uint8_t *)text, strlen(text)};
}

/* The most that a reply can take when encoded: its views and generous room for numbers and headers. */
static size_t kh_reply_bound(const kh_reply *reply)
{
    size_t bound = 128 + reply->detail.len;

    bound += reply->data.len + reply->nonce.len + reply->proof.len + reply->identity.len;
    bound += reply->entry.name.len + reply->entry.id.len + reply->entry.spki.len + reply->entry.place.len;
    for (uint32_t i = 0; reply->entries != NULL && i < reply->entry_count && i < KH_LIST_MAX; i++) {
        const kh_key_entry *entry = &reply->entries[i];

        bound += 64 + entry->name.len + entry->id.len + entry->spki.len;
    }
    return bound;
}

/* Encodes a reply into the output. KH_E_TOO_LARGE and KH_E_INVALID: nothing was written. */
static kh_result kh_server_put(kh_server *server, const kh_reply *reply)
{
    size_t bound = kh_reply_bound(reply);
    size_t most = (size_t)server->peer_max_frame + KH_FRAME_PREFIX;
    kh_result result = KH_OK;
    uint8_t *room = NULL;
    size_t len = 0;

    bound = bound < most ? bound : most;
    room = kh_output_reserve(&server->output, bound);
    if (room == NULL) {
        return KH_E_MEMORY;
    }
    result = kh_reply_encode(reply, room, bound, &len);
    kh_output_commit(&server->output, len);
    return result;
}

static void kh_server_die(kh_server *server, kh_result why)
{
    server->state = KH_SERVER_DEAD;
    server->why = why;
}

/* The connection ends here; the last frame says why, in the form of a refused hello. */
static kh_result kh_server_fail(kh_server *server, kh_result why, const char *detail)
{
    kh_reply goodbye = {.op = KH_OP_HELLO, .status = why, .detail = kh_text(detail)};

    if (kh_server_put(server, &goodbye) != KH_OK) {
        why = KH_E_MEMORY;
    }
    kh_server_die(server, why);
    return why;
}

/* Checks a hello and notes what it says. */
static kh_result kh_server_hello(kh_server *server, const kh_request *req)
{
    if (req->version_min > KH_PROTOCOL_VERSION || req->version_max < KH_PROTOCOL_VERSION) {
        return kh_server_fail(server, KH_E_VERSION, "this agent speaks version 1 of the protocol");
    }
    if (req->max_frame < KH_FRAME_MIN_CAP) {
        return kh_server_fail(server, KH_E_INVALID, "max_frame is below the least that is allowed");
    }
    server->peer_max_frame = req->max_frame < server->max_frame ? req->max_frame : server->max_frame;
    server->state = KH_SERVER_IN_HELLO;
    return KH_OK;
}

/* Hello, then auth, each once. */
static kh_result kh_server_handshake(kh_server *server, kh_result decoded, const kh_request *req)
{
    kh_op expected = server->state == KH_SERVER_WANT_HELLO ? KH_OP_HELLO : KH_OP_AUTH;

    if (req->op != expected && decoded != KH_E_MALFORMED) {
        return kh_server_fail(server, KH_E_ORDER, "hello, then auth, have to come before anything else");
    }
    if (decoded != KH_OK) {
        return kh_server_fail(server, KH_E_MALFORMED, "the handshake is malformed");
    }
    if (expected == KH_OP_HELLO) {
        return kh_server_hello(server, req);
    }
    server->state = KH_SERVER_IN_AUTH;
    return KH_OK;
}

/* Answers a request that the decoder refused; it was never outstanding. */
static kh_result kh_server_refuse(kh_server *server, const kh_request *req, kh_result why)
{
    kh_reply refusal = {.op = req->op, .id = req->id, .status = why, .detail = kh_text(kh_result_text(why))};

    if (req->op == KH_OP_CANCEL) {
        return kh_server_fail(server, KH_E_MALFORMED, "a malformed cancel");
    }
    if (kh_server_put(server, &refusal) != KH_OK) {
        kh_server_die(server, KH_E_MEMORY);
        return KH_E_MEMORY;
    }
    return why;
}

static bool kh_op_is_bulky(uint32_t op)
{
    return op == KH_OP_LIST || op == KH_OP_STATUS;
}

/* Whether one more bulky reply might go beyond the high-water mark. A lone one is always let through. */
static bool kh_server_must_withhold(const kh_server *server, const kh_request *req)
{
    size_t unread = kh_server_unread(server);
    size_t expected = ((size_t)server->bulky + 1) * server->peer_max_frame;

    if (!kh_op_is_bulky(req->op) || (server->bulky == 0 && unread == 0)) {
        return false;
    }
    return unread + expected > KH_HIGH_WATER;
}

/* A cancel concerns only what is outstanding and was not cancelled before; else its reply has crossed it:
 * KH_AGAIN. */
static kh_result kh_server_cancel(kh_server *server, const kh_request *req)
{
    kh_outstanding *found = kh_ids_find(&server->ids, req->id);

    if (found == NULL || found->cancelled) {
        return KH_AGAIN;
    }
    found->cancelled = true;
    return KH_OK;
}

/* Takes up a well-formed request after the handshake. */
static kh_result kh_server_accept(kh_server *server, const kh_request *req)
{
    if (server->ids.count >= server->credit) {
        return kh_server_fail(server, KH_E_OVERLOADED, "more requests outstanding than the credit allows");
    }
    if (kh_ids_add(&server->ids, req->id, (uint16_t)req->op) != KH_OK) {
        return kh_server_fail(server, KH_E_MEMORY, "the agent is out of memory");
    }
    server->bulky += kh_op_is_bulky(req->op);
    return KH_OK;
}

/* One frame after the handshake. KH_AGAIN: it is done with, look at the next. */
static kh_result kh_server_request(kh_server *server, kh_result decoded, const kh_request *req)
{
    if (decoded == KH_E_MALFORMED) {
        return kh_server_fail(server, KH_E_MALFORMED, "a malformed request");
    }
    if (kh_op_is_handshake(req->op)) {
        return kh_server_fail(server, KH_E_ORDER, "the handshake is over");
    }
    if (decoded == KH_OK && req->op == KH_OP_CANCEL) {
        return kh_server_cancel(server, req);
    }
    if (kh_ids_find(&server->ids, req->id) != NULL) {
        return kh_server_fail(server, KH_E_INVALID, "the id of a request is outstanding already");
    }
    return decoded == KH_OK ? kh_server_accept(server, req) : kh_server_refuse(server, req, decoded);
}

/* The first frame, decoded. KH_AGAIN: none, or it has to wait, or (*passed) it was one that asks for nothing.
 */
static kh_result kh_server_frame(kh_server *server, kh_request *req, bool *passed)
{
    kh_bytes payload = {0};
    kh_result decoded = KH_OK;
    kh_result result = kh_input_peek(&server->input, kh_server_frame_cap(server), &payload);

    *passed = false;
    if (result == KH_E_MALFORMED) {
        return kh_server_fail(server, KH_E_MALFORMED, "a frame is empty or longer than allowed");
    }
    if (result != KH_OK) {
        return result;
    }
    decoded = kh_request_decode(payload.data, payload.len, req);
    if (server->state != KH_SERVER_READY) {
        kh_input_skip(&server->input, payload);
        return kh_server_handshake(server, decoded, req);
    }
    server->withheld = decoded == KH_OK && kh_server_must_withhold(server, req);
    if (server->withheld) {
        return KH_AGAIN;
    }
    kh_input_skip(&server->input, payload);
    result = kh_server_request(server, decoded, req);
    *passed = result == KH_AGAIN;
    return result;
}

kh_result kh_server_next(kh_server *server, kh_request *req)
{
    kh_result result = KH_AGAIN;
    bool passed = true;

    if (server->state == KH_SERVER_DEAD) {
        return server->why;
    }
    if (server->state == KH_SERVER_IN_HELLO || server->state == KH_SERVER_IN_AUTH) {
        return KH_AGAIN;
    }
    while (passed) {
        result = kh_server_frame(server, req, &passed);
    }
    return result;
}

/* Answers hello or auth. The session itself says what it stands for: version, frames, credit. */
static kh_result kh_server_reply_handshake(kh_server *server, const kh_reply *reply)
{
    bool is_hello = reply->op == KH_OP_HELLO;
    kh_reply filled = *reply;
    kh_result result = KH_OK;

    if (server->state != (is_hello ? KH_SERVER_IN_HELLO : KH_SERVER_IN_AUTH)) {
        return KH_E_ORDER;
    }
    if (is_hello) {
        filled.version = KH_PROTOCOL_VERSION;
        filled.max_frame = server->max_frame;
        filled.credit = server->credit;
    }
    result = kh_server_put(server, &filled);
    if (result != KH_OK) {
        kh_server_die(server, result);
    } else if (reply->status != KH_OK) {
        kh_server_die(server, reply->status);
    } else {
        server->state = is_hello ? KH_SERVER_WANT_AUTH : KH_SERVER_READY;
    }
    return result;
}

/* Cuts a text to the longest that a reply may carry, not within a UTF-8 sequence. */
static kh_bytes kh_detail_cut(kh_bytes detail)
{
    if (detail.len <= KH_DETAIL_MAX) {
        return detail;
    }
    detail.len = KH_DETAIL_MAX;
    while (detail.len > 0 && (detail.data[detail.len] & 0xc0) == 0x80) {
        detail.len--;
    }
    return detail;
}

/* Whatever cannot be sent becomes an error, since every request gets exactly one reply. */
static kh_result kh_server_put_or_refuse(kh_server *server, const kh_reply *reply)
{
    kh_reply cut = *reply;
    kh_result result = KH_OK;

    cut.detail = kh_detail_cut(reply->detail);
    result = kh_server_put(server, &cut);
    if (result == KH_E_TOO_LARGE || result == KH_E_INVALID) {
        kh_result why = result == KH_E_TOO_LARGE ? KH_E_TOO_LARGE : KH_E_INTERNAL;
        kh_reply refusal = {.op = reply->op, .id = reply->id, .status = why};

        refusal.detail = kh_text("the agent's reply cannot be sent");
        result = kh_server_put(server, &refusal);
    }
    return result;
}

kh_result kh_server_reply(kh_server *server, const kh_reply *reply)
{
    const kh_outstanding *found = NULL;
    kh_result result = KH_OK;

    if (server->state == KH_SERVER_DEAD) {
        return KH_E_CLOSED;
    }
    if (kh_op_is_handshake(reply->op)) {
        return kh_server_reply_handshake(server, reply);
    }
    found = kh_ids_find(&server->ids, reply->id);
    if (found == NULL || found->op != (uint16_t)reply->op) {
        return KH_E_ORDER;
    }
    result = kh_server_put_or_refuse(server, reply);
    if (result != KH_OK) {
        kh_server_die(server, KH_E_MEMORY);
        return KH_E_MEMORY;
    }
    if (reply->op == KH_OP_TLS_RSA_DECRYPT || reply->op == KH_OP_DECRYPT) {
        server->output.secret = true;
    }
    kh_ids_remove(&server->ids, reply->id);
    server->bulky -= kh_op_is_bulky(reply->op);
    return KH_OK;
}

kh_bytes kh_server_output(const kh_server *server)
{
    return kh_output_pending(&server->output);
}

void kh_server_sent(kh_server *server, size_t len)
{
    kh_output_consume(&server->output, len);
}

uint32_t kh_server_outstanding(const kh_server *server)
{
    return server->ids.count;
}

bool kh_server_ready(const kh_server *server)
{
    return server->state == KH_SERVER_READY;
}

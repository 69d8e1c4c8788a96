/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A byte stream from a peer into one end of a connection: the agent's (first byte even) or the caller's. The
 * second byte says how large the pieces are. The end lives or is lost for a named reason; what it buffers
 * stays bounded.
 */
#include <keyhold/protocol.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define BUFFERED_MAX (2 * 1024 * 1024)

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

static bool prove(void *ctx, const char *label, const uint8_t *nonce_client, const uint8_t *nonce_agent,
                  uint8_t *proof)
{
    (void)ctx;
    (void)label;
    (void)nonce_client;
    memset(proof, nonce_agent[0], KH_PROOF_LEN);
    return true;
}

/* Answers everything at once, but leaves every fourth request outstanding. False: the connection is lost. */
static bool answer_all(kh_server *server)
{
    static const uint8_t zeros[64];
    kh_request req;
    kh_result result = KH_OK;

    for (;;) {
        kh_reply reply = {.nonce = {zeros, KH_NONCE_LEN}};

        result = kh_server_next(server, &req);
        if (result == KH_E_UNSUPPORTED || result == KH_E_TOO_LARGE) {
            continue;
        }
        if (result != KH_OK) {
            return result == KH_AGAIN;
        }
        reply.op = req.op;
        reply.id = req.id;
        if (req.op >= KH_OP_PUBLIC_KEY) {
            reply.status = KH_E_NOT_FOUND;
        }
        if (req.op <= KH_OP_AUTH || (req.op != KH_OP_CANCEL && req.id % 4 != 0)) {
            require(kh_server_reply(server, &reply) == KH_OK);
        }
    }
}

static void feed_server(const uint8_t *data, size_t len, size_t piece)
{
    kh_server_config config = {.credit = 8};
    kh_server *server = NULL;
    bool alive = true;

    require(kh_server_new(&config, &server) == KH_OK);
    while (len > 0 && alive) {
        size_t cap = 0;
        uint8_t *room = kh_server_read_buffer(server, &cap);

        if (room == NULL) {
            kh_server_sent(server, kh_server_output(server).len); /* the peer reads after all */
            room = kh_server_read_buffer(server, &cap);
        }
        require(room != NULL && cap > 0);
        cap = cap < piece ? cap : piece;
        cap = cap < len ? cap : len;
        memcpy(room, data, cap);
        kh_server_fed(server, cap);
        data += cap;
        len -= cap;
        alive = answer_all(server);
        require(kh_server_outstanding(server) <= 8 && kh_server_output(server).len < BUFFERED_MAX);
    }
    kh_server_free(server);
}

static void feed_session(const uint8_t *data, size_t len, size_t piece)
{
    kh_session_config config = {.client_name = "fuzz", .identity = "fuzz", .prove = prove};
    kh_request sign = {.op = KH_OP_SIGN, .deadline_ms = 1000, .key = {(const uint8_t *)"k", 1}};
    kh_session *session = NULL;
    kh_result result = KH_AGAIN;
    kh_reply reply;
    void *user = NULL;
    uint32_t id = 0;

    require(kh_session_new(&config, &session) == KH_OK);
    for (uint64_t i = 0; i < 4; i++) {
        require(kh_session_submit(session, &sign, 4 - i, session, &id) == KH_OK);
    }
    kh_session_cancel(session, id);
    while (len > 0 && result == KH_AGAIN) {
        size_t cap = 0;
        uint8_t *room = kh_session_read_buffer(session, &cap);

        require(room != NULL && cap > 0);
        cap = cap < piece ? cap : piece;
        cap = cap < len ? cap : len;
        memcpy(room, data, cap);
        kh_session_fed(session, cap);
        data += cap;
        len -= cap;
        do {
            user = NULL;
            result = kh_session_next(session, &reply, &user);
            require(result != KH_OK || user == session);
        } while (result == KH_OK);
        require(kh_session_output(session).len < BUFFERED_MAX);
    }
    require(result == KH_AGAIN || kh_session_get_state(session) == KH_SESSION_LOST);
    kh_session_abort(session, KH_E_CLOSED);
    while (kh_session_drain(session, &user)) {
        require(user == session);
    }
    require(kh_session_outstanding(session) == 0);
    kh_session_free(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 2) {
        return 0;
    }
    if (data[0] % 2 == 0) {
        feed_server(data + 2, len - 2, (size_t)data[1] + 1);
    } else {
        feed_session(data + 2, len - 2, (size_t)data[1] + 1);
    }
    return 0;
}

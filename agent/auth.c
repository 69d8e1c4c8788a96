/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hello and auth: who is calling. A caller that names an identity proves it with its token's secret; one that
 * names none is known by what its transport knows. Of a Unix socket that is the uid that the kernel gives for its end: 0
 * is root, the operator, others only if an identity of the configuration asks for that uid. Of TCP it is the
 * certificate, and nothing else counts. An unknown identity, an unknown certificate and a wrong proof look alike to the
 * caller.
 */
#include "front.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define LABEL_CLIENT "keyhold-1 client"
#define LABEL_AGENT "keyhold-1 agent"

/* The secret to measure the caller against: of nobody, when it names an identity that has none. */
static kh_credential *credential_of(kh_conn *conn)
{
    kh_identity *identity = conn->identity;

    return identity != NULL && identity->credential != NULL ? identity->credential : conn->front->nobody;
}

static void refuse(kh_conn *conn, kh_op op)
{
    kh_front *front = conn->front;
    kh_reply reply = {.op = op, .status = KH_E_UNAUTHENTICATED};
    uint32_t suppressed = 0;

    front->stats.refused_auth++;
    if (kh_log_allowed(&front->log_auth, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_WARN, "auth_refused", KH_LOG_PEER(conn),
               KH_LT("identity", conn->identity != NULL ? conn->identity->name : "unknown"),
               KH_LT("by", conn->by_token ? "token" : conn->transport->ops->by),
               KH_LN("suppressed", suppressed));
    }
    reply.detail = kh_text_bytes(kh_result_text(KH_E_UNAUTHENTICATED));
    conn->identity = NULL;
    conn->state = KH_CONN_LAST;
    kh_conn_reply(conn, &reply);
}

void kh_auth_hello(kh_conn *conn, const kh_request *req)
{
    uint8_t proof[KH_PROOF_LEN] = {0};
    kh_reply reply = {.op = KH_OP_HELLO};

    memcpy(conn->nonce_client, req->nonce.data, KH_NONCE_LEN);
    conn->by_token = req->identity.len > 0;
    conn->identity = conn->by_token ? kh_identity_by_name(conn->front, req->identity.data, req->identity.len)
                                    : conn->transport->ops->identify(conn->transport, conn->front);
    if (conn->by_token && !conn->transport->ops->tokens) {
        refuse(conn, KH_OP_HELLO);
        return;
    }
    if (getrandom(conn->nonce_agent, KH_NONCE_LEN, 0) != KH_NONCE_LEN ||
        (conn->by_token && !kh_credential_prove(credential_of(conn), LABEL_AGENT, conn->nonce_client,
                                                conn->nonce_agent, proof))) {
        reply.status = KH_E_INTERNAL;
        reply.detail = kh_text_bytes("the agent cannot make a proof");
    }
    reply.nonce = (kh_bytes){conn->nonce_agent, KH_NONCE_LEN};
    reply.proof = (kh_bytes){proof, KH_PROOF_LEN};
    if (reply.status != KH_OK) {
        conn->state = KH_CONN_LAST;
    }
    kh_conn_reply(conn, &reply);
}

/* Whether the proof is right. The comparison takes the same time wherever it fails, and whoever it is for. */
static bool proved(kh_conn *conn, const kh_request *req)
{
    uint8_t expected[KH_PROOF_LEN] = {0};
    bool equal = false;

    if (!conn->by_token) {
        /* Asked again: a reload may have come between hello and auth. */
        return conn->identity != NULL && conn->transport->ops->identify(conn->transport, conn->front) == conn->identity;
    }
    if (req->proof.len != KH_PROOF_LEN ||
        !kh_credential_prove(credential_of(conn), LABEL_CLIENT, conn->nonce_client, conn->nonce_agent,
                             expected)) {
        return false;
    }
    equal = CRYPTO_memcmp(expected, req->proof.data, KH_PROOF_LEN) == 0;
    OPENSSL_cleanse(expected, sizeof expected);
    return equal && conn->identity != NULL && conn->identity->credential != NULL;
}

/* It is who it says, but has too many connections already. */
static void refuse_full(kh_conn *conn)
{
    kh_reply reply = {.op = KH_OP_AUTH, .status = KH_E_OVERLOADED};

    reply.detail = kh_text_bytes("too many connections of this identity, or of all");
    conn->identity = NULL;
    conn->state = KH_CONN_LAST;
    kh_conn_reply(conn, &reply);
}

void kh_auth_proof(kh_conn *conn, const kh_request *req)
{
    kh_reply reply = {.op = KH_OP_AUTH};

    if (!proved(conn, req)) {
        refuse(conn, KH_OP_AUTH);
        return;
    }
    if (!kh_room_for_identity(conn->front, conn->identity)) {
        refuse_full(conn);
        return;
    }
    reply.identity = kh_text_bytes(conn->identity->name);
    conn->state = KH_CONN_READY;
    conn->identity->connections++;
    conn->counted = true;
    kh_conn_reply(conn, &reply);
    kh_log(KH_LOG_DEBUG, "connection_ready", KH_LT("identity", conn->identity->name),
           KH_LOG_PEER(conn));
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The blocking client: kh_session over one link, with poll. Every wait ends at the deadline of the call. */
#include "link.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>

struct kh_client {
    kh_link *link;
    kh_session *session; /* NULL: not connected */
    bool has_credential;
    kh_credential credential;
    bool write_closed; /* the agent reads no more; what it said before is still to be read */
    char name[KH_NAME_MAX + 1];
    char known_as[KH_NAME_MAX + 1];
};

static void kh_client_disconnect(kh_client *client)
{
    if (client->link != NULL) {
        client->link->ops->disconnect(client->link);
    }
    client->write_closed = false;
    kh_session_free(client->session);
    client->session = NULL;
}

/* Notes why the session is lost, in the agent's words if it had any, else in the link's. */
static kh_result kh_client_lost(kh_client *client)
{
    kh_link *link = client->link;
    const char *words = "";
    kh_result why = kh_session_why(client->session, &words);

    if (*words != '\0' || link->detail[0] == '\0') {
        snprintf(link->detail, sizeof(link->detail), "%s%s%s", kh_result_text(why), *words != '\0' ? ": " : "", words);
    }
    return why;
}

/* Writes what can be written now. */
static void kh_client_flush(kh_client *client, uint64_t *sent)
{
    kh_bytes output = kh_session_output(client->session);
    kh_result result = KH_OK;

    while (output.len > 0 && !client->write_closed && result == KH_OK) {
        size_t n = 0;

        result = client->link->ops->write(client->link, output.data, output.len, &n);
        *sent += (uint64_t)n;
        kh_session_sent(client->session, n);
        output = kh_session_output(client->session);
    }
    client->write_closed = client->write_closed || result == KH_E_CLOSED;
    if (result != KH_OK && result != KH_AGAIN && result != KH_E_CLOSED) {
        kh_session_abort(client->session, result);
    }
}

/* Reads once, what is there now. */
static void kh_client_fill(kh_client *client)
{
    size_t cap = 0;
    size_t got = 0;
    uint8_t *room = kh_session_read_buffer(client->session, &cap);
    kh_result result = KH_E_MEMORY;

    if (room != NULL) {
        result = client->link->ops->read(client->link, room, cap, &got);
    }
    if (got > 0) {
        kh_session_fed(client->session, got);
    } else if (result != KH_AGAIN) {
        kh_session_abort(client->session, result);
    }
}

static kh_result kh_client_start_session(kh_client *client)
{
    kh_session_config config = {
        .client_name = client->name,
        .identity = client->has_credential ? client->credential.identity : "",
        .prove = kh_credential_prove,
        .prove_ctx = &client->credential,
    };

    if (RAND_bytes(config.nonce, sizeof(config.nonce)) != 1) {
        return KH_E_CRYPTO;
    }
    return kh_session_new(&config, &client->session);
}

/* Hello and auth. */
static kh_result kh_client_handshake(kh_client *client, uint64_t deadline_ms)
{
    kh_link *link = client->link;
    kh_reply reply;
    void *user = NULL;
    uint64_t sent = 0;
    kh_result result = KH_OK;

    for (;;) {
        result = kh_session_next(client->session, &reply, &user);
        if (result != KH_AGAIN) {
            return kh_client_lost(client);
        }
        if (kh_session_get_state(client->session) == KH_SESSION_READY) {
            snprintf(client->known_as, sizeof(client->known_as), "%s", kh_session_identity(client->session));
            return KH_OK;
        }
        kh_client_flush(client, &sent);
        result = kh_link_wait(link, deadline_ms);
        if (result != KH_OK) {
            snprintf(link->detail, sizeof(link->detail), "%s: %s", link->name,
                     result == KH_E_DEADLINE ? "no answer in time" : strerror(errno));
            return result;
        }
        kh_client_fill(client);
    }
}

static kh_result kh_client_connect(kh_client *client, uint64_t deadline_ms)
{
    kh_result result = KH_OK;

    kh_client_disconnect(client);
    client->link->detail[0] = '\0';
    result = client->link->ops->connect(client->link, deadline_ms);
    if (result == KH_OK) {
        result = kh_client_start_session(client);
    }
    if (result == KH_OK) {
        result = kh_client_handshake(client, deadline_ms);
    }
    if (result != KH_OK) {
        kh_client_disconnect(client);
    }
    return result;
}

/* Opens a client on a link, which it takes over. */
static kh_result kh_client_start(kh_link *link, const kh_credential *cred, const char *client_name, uint64_t deadline_ms,
                                 kh_client **client, char *detail)
{
    kh_client *made = calloc(1, sizeof(*made));
    kh_result result = KH_E_MEMORY;

    if (made == NULL) {
        link->ops->free(link);
        return result;
    }
    made->link = link;
    if (client_name != NULL) {
        snprintf(made->name, sizeof(made->name), "%s", client_name);
    }
    if (cred != NULL) {
        made->credential = *cred;
        made->has_credential = true;
    }
    result = kh_client_connect(made, deadline_ms);
    if (result != KH_OK) {
        snprintf(detail, KH_LINK_DETAIL_MAX, "%s", link->detail);
        kh_client_close(made);
        made = NULL;
    }
    *client = made;
    return result;
}

/* What the caller is told of a failure. */
static void kh_client_tell(kh_result result, const char *words, char *detail, size_t detail_cap)
{
    if (detail != NULL && detail_cap > 0) {
        snprintf(detail, detail_cap, "%s", *words != '\0' || result == KH_OK ? words : kh_result_text(result));
    }
}

kh_result kh_client_open(const char *address, const kh_credential *cred, const char *client_name,
                         uint32_t timeout_ms, kh_client **client, char *detail, size_t detail_cap)
{
    uint64_t deadline_ms = kh_link_now_ms() + timeout_ms;
    char words[KH_LINK_DETAIL_MAX] = "";
    kh_link *link = NULL;
    kh_result result = kh_link_unix(address, &link, words);

    *client = NULL;
    if (result == KH_OK) {
        result = kh_client_start(link, cred, client_name, deadline_ms, client, words);
    }
    kh_client_tell(result, words, detail, detail_cap);
    return result;
}

kh_result kh_client_open_tls(const char *address, const kh_client_tls *tls, const char *client_name,
                             uint32_t timeout_ms, kh_client **client, char *detail, size_t detail_cap)
{
    uint64_t deadline_ms = kh_link_now_ms() + timeout_ms;
    char words[KH_LINK_DETAIL_MAX] = "";
    kh_link *link = NULL;
    kh_result result = kh_link_tcp(address, tls, &link, words);

    *client = NULL;
    if (result == KH_OK) {
        result = kh_client_start(link, NULL, client_name, deadline_ms, client, words);
    }
    kh_client_tell(result, words, detail, detail_cap);
    return result;
}

void kh_client_close(kh_client *client)
{
    if (client == NULL) {
        return;
    }
    kh_client_disconnect(client);
    client->link->ops->free(client->link);
    kh_credential_wipe(&client->credential);
    free(client);
}

const char *kh_client_identity(const kh_client *client)
{
    return client->known_as;
}

/* Whether the connection can be used: takes what came since the last call, which may be the end. */
static bool kh_client_alive(kh_client *client)
{
    kh_reply reply;
    void *user = NULL;

    if (client->session == NULL || kh_session_get_state(client->session) != KH_SESSION_READY) {
        return false;
    }
    kh_client_fill(client);
    /* Nothing is outstanding: anything but "nothing" (late replies are swallowed) means the end. */
    return kh_session_next(client->session, &reply, &user) == KH_AGAIN;
}

/* Sends one request and waits for its reply. *sent: how many bytes left, to know whether it may be repeated.
 */
static kh_result kh_client_exchange(kh_client *client, const kh_request *req, uint64_t deadline_ms,
                                    kh_reply *reply, uint64_t *sent)
{
    kh_request timed = *req;
    uint64_t now = kh_link_now_ms();
    uint32_t id = 0;
    void *user = NULL;
    kh_result result = KH_OK;

    *sent = 0;
    if (now >= deadline_ms) {
        return KH_E_DEADLINE;
    }
    timed.deadline_ms = (uint32_t)(deadline_ms - now);
    result = kh_session_submit(client->session, &timed, now, client, &id);
    while (result == KH_OK) {
        kh_client_flush(client, sent);
        result = kh_session_next(client->session, reply, &user);
        if (result != KH_AGAIN) {
            return result;
        }
        result = kh_link_wait(client->link, deadline_ms);
        if (result == KH_OK) {
            kh_client_fill(client);
        }
    }
    if (result == KH_E_DEADLINE) {
        kh_session_cancel(client->session, id);
        kh_client_flush(client, sent);
    }
    return result;
}

kh_result kh_client_call(kh_client *client, const kh_request *req, kh_reply *reply)
{
    uint64_t deadline_ms = kh_link_now_ms() + req->deadline_ms;
    uint64_t sent = 0;
    bool fresh = false;
    kh_result result = KH_OK;

    *reply = (kh_reply){0};
    if (req->deadline_ms == 0 || req->deadline_ms > KH_DEADLINE_MAX_MS) {
        return KH_E_INVALID;
    }
    for (;;) {
        if (!kh_client_alive(client)) {
            result = fresh ? KH_E_CLOSED : kh_client_connect(client, deadline_ms);
            fresh = true;
            if (result != KH_OK) {
                return result;
            }
        }
        result = kh_client_exchange(client, req, deadline_ms, reply, &sent);
        if (fresh || sent > 0 || (result != KH_E_CLOSED && result != KH_E_IO)) {
            return result;
        }
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The blocking client: kh_session over one Unix socket, with poll. Every wait ends at the deadline of the
 * call. */
#include <keyhold/client.h>

#include <errno.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define KH_UNIX_PREFIX "unix:"
#define KH_CONNECT_RETRY_MS 5 /* a full backlog cannot be polled for */

struct kh_client {
    int fd; /* -1: not connected */
    kh_session *session;
    struct sockaddr_un address;
    bool has_credential;
    kh_credential credential;
    bool write_closed; /* the agent reads no more; what it said before is still to be read */
    char name[KH_NAME_MAX + 1];
    char known_as[KH_NAME_MAX + 1];
    char detail[320];
};

static uint64_t kh_now_ms(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void kh_client_disconnect(kh_client *client)
{
    if (client->fd >= 0) {
        close(client->fd);
    }
    client->fd = -1;
    client->write_closed = false;
    kh_session_free(client->session);
    client->session = NULL;
}

/* Notes why the session is lost, in the agent's words if it had any. */
static kh_result kh_client_lost(kh_client *client)
{
    const char *words = "";
    kh_result why = kh_session_why(client->session, &words);

    snprintf(client->detail, sizeof(client->detail), "%s%s%s", kh_result_text(why),
             *words != '\0' ? ": " : "", words);
    return why;
}

/* Writes what can be written now. */
static void kh_client_flush(kh_client *client, uint64_t *sent)
{
    kh_bytes output = kh_session_output(client->session);

    while (output.len > 0 && !client->write_closed) {
        ssize_t n = send(client->fd, output.data, output.len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            client->write_closed = errno == EPIPE || errno == ECONNRESET;
            if (!client->write_closed && errno != EAGAIN && errno != EWOULDBLOCK) {
                kh_session_abort(client->session, KH_E_IO);
            }
            return;
        }
        *sent += (uint64_t)n;
        kh_session_sent(client->session, (size_t)n);
        output = kh_session_output(client->session);
    }
}

/* Reads once, what is there now. */
static void kh_client_fill(kh_client *client)
{
    size_t cap = 0;
    uint8_t *room = kh_session_read_buffer(client->session, &cap);
    ssize_t n = 0;

    if (room == NULL) {
        kh_session_abort(client->session, KH_E_MEMORY);
        return;
    }
    do {
        n = recv(client->fd, room, cap, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0) {
        kh_session_fed(client->session, (size_t)n);
    } else if (n == 0) {
        kh_session_abort(client->session, KH_E_CLOSED);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
        kh_session_abort(client->session, errno == ECONNRESET ? KH_E_CLOSED : KH_E_IO);
    }
}

/* Waits until there is something to read, or to write if that is wanted. KH_E_DEADLINE: too late. */
static kh_result kh_client_wait(kh_client *client, uint64_t deadline_ms)
{
    struct pollfd pollfd = {.fd = client->fd, .events = POLLIN};
    uint64_t now = kh_now_ms();

    if (now >= deadline_ms) {
        return KH_E_DEADLINE;
    }
    if (kh_session_output(client->session).len > 0 && !client->write_closed) {
        pollfd.events |= POLLOUT;
    }
    if (poll(&pollfd, 1, deadline_ms - now < INT_MAX ? (int)(deadline_ms - now) : INT_MAX) < 0 &&
        errno != EINTR) {
        return KH_E_IO;
    }
    return KH_OK;
}

static kh_result kh_client_connect_socket(kh_client *client, uint64_t deadline_ms)
{
    int error = 0;

    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->fd < 0) {
        error = errno;
    } else {
        while (connect(client->fd, (struct sockaddr *)&client->address, sizeof(client->address)) != 0) {
            error = errno;
            if (error != EAGAIN && error != EINTR) {
                break;
            }
            error = 0;
            if (kh_now_ms() >= deadline_ms) {
                snprintf(client->detail, sizeof(client->detail),
                         "%s: the agent does not accept connections in time", client->address.sun_path);
                return KH_E_DEADLINE;
            }
            poll(NULL, 0, KH_CONNECT_RETRY_MS);
        }
    }
    if (error == 0) {
        return KH_OK;
    }
    snprintf(client->detail, sizeof(client->detail), "%s: %s", client->address.sun_path, strerror(error));
    return error == ENOENT || error == ECONNREFUSED ? KH_E_UNAVAILABLE : KH_E_IO;
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
        result = kh_client_wait(client, deadline_ms);
        if (result != KH_OK) {
            snprintf(client->detail, sizeof(client->detail), "%s: %s", client->address.sun_path,
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
    result = kh_client_connect_socket(client, deadline_ms);
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

static kh_result kh_client_set_address(kh_client *client, const char *address)
{
    const size_t prefix_len = sizeof(KH_UNIX_PREFIX) - 1;
    size_t len = strlen(address);

    if (strncmp(address, KH_UNIX_PREFIX, prefix_len) != 0 || len == prefix_len ||
        len - prefix_len >= sizeof(client->address.sun_path)) {
        snprintf(client->detail, sizeof(client->detail), "%.200s: not an address of the form unix:/path",
                 address);
        return KH_E_INVALID;
    }
    client->address.sun_family = AF_UNIX;
    memcpy(client->address.sun_path, address + prefix_len, len - prefix_len + 1);
    return KH_OK;
}

kh_result kh_client_open(const char *address, const kh_credential *cred, const char *client_name,
                         uint32_t timeout_ms, kh_client **client, char *detail, size_t detail_cap)
{
    kh_client *made = calloc(1, sizeof(*made));
    uint64_t deadline_ms = kh_now_ms() + timeout_ms;
    kh_result result = KH_E_MEMORY;

    *client = NULL;
    if (made == NULL) {
        goto done;
    }
    made->fd = -1;
    if (client_name != NULL) {
        snprintf(made->name, sizeof(made->name), "%s", client_name);
    }
    if (cred != NULL) {
        made->credential = *cred;
        made->has_credential = true;
    }
    result = kh_client_set_address(made, address);
    if (result == KH_OK) {
        result = kh_client_connect(made, deadline_ms);
    }
done:
    if (detail != NULL && detail_cap > 0) {
        const char *words = made != NULL ? made->detail : "";

        snprintf(detail, detail_cap, "%s",
                 *words != '\0' || result == KH_OK ? words : kh_result_text(result));
    }
    if (result != KH_OK) {
        kh_client_close(made);
        made = NULL;
    }
    *client = made;
    return result;
}

void kh_client_close(kh_client *client)
{
    if (client == NULL) {
        return;
    }
    kh_client_disconnect(client);
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
    uint64_t now = kh_now_ms();
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
        result = kh_client_wait(client, deadline_ms);
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
    uint64_t deadline_ms = kh_now_ms() + req->deadline_ms;
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

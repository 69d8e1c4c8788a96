/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS over TCP. The peer is whom its certificate names: a uid, a token or an address never counts. The certificate is
 * judged at each hello and at each new configuration, so that a session that is resumed, or a connection that was there
 * before, has no rights that a new one would not get.
 */
#include "../protocol/tls/stream.h"
#include "front.h"
#include "transport.h"
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SWALLOW_MAX 65536 /* bytes that are thrown away of a peer that was refused */
#define SHOWN_MAX 200     /* bytes of a name in the log */

typedef struct kh_tls_transport {
    kh_transport transport; /* first */
    kh_listener *listener;
    kh_tls_stream stream;
    bool counted;     /* its handshake */
    bool refused;     /* the handshake failed */
    uint32_t trust;   /* the listener's, when the certificate was verified last */
    size_t swallowed; /* bytes since it was refused */
    char address[INET6_ADDRSTRLEN + 16];
    char name[SHOWN_MAX + 1]; /* of its certificate's, for the log: the one it is known by, else the first */
} kh_tls_transport;

static void count_handshake(kh_tls_transport *tls)
{
    if (tls->stream.finished && !tls->counted) {
        tls->counted = true;
        tls->listener->tls_handshakes++;
        tls->listener->tls_resumed += SSL_session_reused(tls->stream.ssl) == 1;
    }
}

/* The TLS handshake failed: says so, to the peer too. */
static void refuse(kh_tls_transport *tls)
{
    kh_listener *listener = tls->listener;
    char why[KH_TLS_WHY_MAX];
    uint32_t suppressed = 0;

    kh_tls_stream_why(&tls->stream, why);
    if (kh_log_allowed(&listener->log_tls, kh_front_ms(listener->front), &suppressed)) {
        kh_log(KH_LOG_WARN, "tls_refused", KH_LT("listener", listener->address), KH_LT("peer", tls->address),
               KH_LT("why", why), KH_LN("suppressed", suppressed));
    }
    tls->refused = true;
    shutdown(tls->transport.fd, SHUT_WR);
}

/*
 * What comes after a refusal is thrown away until the peer hangs up. Were the connection closed at once, the kernel would
 * answer what the peer has sent meanwhile with a reset, and the peer might never see the alert that says why.
 */
static kh_result swallow(kh_tls_transport *tls, uint8_t *room, size_t cap)
{
    ssize_t n = recv(tls->transport.fd, room, cap, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return KH_AGAIN;
    }
    tls->swallowed += n > 0 ? (size_t)n : 0;
    return n > 0 && tls->swallowed < SWALLOW_MAX ? KH_AGAIN : KH_E_CLOSED;
}

/* Takes over what the stream says of itself. */
static kh_result settle(kh_tls_transport *tls, kh_result result)
{
    tls->transport.held = tls->stream.held;
    tls->transport.wants_write = tls->stream.wants_write;
    count_handshake(tls);
    if (result == KH_OK || result == KH_AGAIN || tls->stream.finished) {
        return result;
    }
    tls->listener->tls_failed++;
    if (result == KH_E_CLOSED || result == KH_E_IO) {
        return result; /* it went away: there is nothing to be said, and to nobody */
    }
    refuse(tls);
    return KH_AGAIN;
}

static kh_result tls_read(kh_transport *transport, uint8_t *room, size_t cap, size_t *got)
{
    kh_tls_transport *tls = (kh_tls_transport *)transport;

    *got = 0;
    return tls->refused ? swallow(tls, room, cap) : settle(tls, kh_tls_stream_read(&tls->stream, room, cap, got));
}

static kh_result tls_write(kh_transport *transport, const uint8_t *data, size_t len, size_t *sent)
{
    kh_tls_transport *tls = (kh_tls_transport *)transport;

    *sent = 0;
    return tls->refused ? KH_AGAIN : settle(tls, kh_tls_stream_write(&tls->stream, data, len, sent));
}

/* ---- Who it is ---- */

typedef struct search {
    kh_tls_transport *tls;
    kh_front *front;
    kh_identity *found;
    bool ambiguous; /* its names are those of several identities */
} search;

static void match(void *ctx, const char *san)
{
    search *looking = ctx;
    const kh_config_identity *config = kh_config_find_san(looking->front->config, san);
    kh_identity *identity = NULL;

    if (config != NULL || looking->tls->name[0] == '\0') {
        snprintf(looking->tls->name, sizeof looking->tls->name, "%.*s", SHOWN_MAX, san);
    }
    if (config == NULL) {
        return;
    }
    identity = kh_identity_by_name(looking->front, (const uint8_t *)config->name, strlen(config->name));
    looking->ambiguous = looking->ambiguous || (looking->found != NULL && looking->found != identity);
    looking->found = identity;
}

static kh_identity *tls_identify(kh_transport *transport, kh_front *front)
{
    kh_tls_transport *tls = (kh_tls_transport *)transport;
    kh_listener *listener = tls->listener;
    search looking = {.tls = tls, .front = front};

    if (listener->gone || !tls->stream.finished) {
        return NULL;
    }
    if (tls->trust != listener->trust) { /* others are believed now than when it came */
        if (!kh_tls_server_believes(listener->tls, tls->stream.ssl)) {
            return NULL;
        }
        tls->trust = listener->trust;
    }
    return kh_tls_peer_names(tls->stream.ssl, match, &looking) && !looking.ambiguous ? looking.found : NULL;
}

static void tls_free(kh_transport *transport)
{
    kh_tls_transport *tls = (kh_tls_transport *)transport;

    kh_tls_stream_end(&tls->stream, true);
    free(tls);
}

static void spell_address(const struct sockaddr *peer, char *text, size_t cap)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)peer;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)peer;
    bool is_six = peer->sa_family == AF_INET6;
    char host[INET6_ADDRSTRLEN] = "?";

    inet_ntop(peer->sa_family, is_six ? (const void *)&in6->sin6_addr : &in->sin_addr, host, sizeof host);
    snprintf(text, cap, is_six ? "[%s]:%u" : "%s:%u", host, ntohs(is_six ? in6->sin6_port : in->sin_port));
}

kh_result kh_transport_tls(kh_listener *listener, int fd, const struct sockaddr *peer, kh_transport **out)
{
    static const kh_transport_ops ops = {
        .by = "certificate", .read = tls_read, .write = tls_write, .identify = tls_identify, .free = tls_free};
    kh_tls_transport *tls = calloc(1, sizeof *tls);
    SSL *ssl = tls != NULL && listener->tls != NULL ? kh_tls_server_accept(listener->tls) : NULL;

    *out = NULL;
    if (ssl == NULL || kh_tls_stream_start(&tls->stream, ssl, fd) != KH_OK) { /* takes ssl */
        free(tls);
        return KH_E_MEMORY;
    }
    spell_address(peer, tls->address, sizeof tls->address);
    tls->listener = listener;
    tls->trust = listener->trust;
    tls->transport = (kh_transport){.ops = &ops,
                                    .fd = fd,
                                    .uid = (uid_t)-1,
                                    .who = {KH_LT("peer", tls->address), KH_LT("certificate", tls->name)}};
    *out = &tls->transport;
    return KH_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS over a non-blocking descriptor, for both ends of a connection over TCP (SPEC.md): what is agreed on, and
 * bytes in and out. Private to Keyhold. One thread per stream. Nothing is copied but by OpenSSL itself.
 */
#ifndef KH_TLS_STREAM_H
#define KH_TLS_STREAM_H

#include <keyhold/types.h>
#include <openssl/ssl.h>

#define KH_TLS_ALPN "\x09keyhold/1" /* as it is on the wire */
#define KH_TLS_ALPN_LEN 10
#define KH_TLS_WHY_MAX 256 /* bytes of a reason, with its zero */

typedef struct kh_tls_stream {
    SSL *ssl;         /* owned; NULL: not in use */
    int fd;           /* the caller's */
    bool finished;    /* the handshake is */
    bool broken;      /* after a failure: nothing more can be said */
    bool heard;       /* data came */
    bool held;        /* data that came is inside: no event of the descriptor will tell of it */
    bool wants_write; /* what was tried last waits until something can be written */
    int error;        /* errno of the descriptor; 0: its end, or no failure of it */
} kh_tls_stream;

/*
 * What both ends agree on: TLS 1.3 and nothing older. One read takes at most one record from the descriptor, so that
 * a peer that sends a flood of records without data (key updates) gets no more than its turn. KH_E_CRYPTO.
 */
KH_MUST_USE kh_result kh_tls_common(SSL_CTX *ctx);

/* Takes ssl over, also on failure; it is in accept or connect state. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_tls_stream_start(kh_tls_stream *stream, SSL *ssl, int fd);
/* Frees what is there. polite: the peer is told, if it can be told at once. */
void kh_tls_stream_end(kh_tls_stream *stream, bool polite);

/*
 * Both do the handshake first. KH_AGAIN: not now (see wants_write). KH_E_CLOSED: the peer is gone.
 * KH_E_UNAUTHENTICATED: one side does not accept the other. KH_E_MALFORMED: what came is no TLS. KH_E_IO,
 * KH_E_MEMORY. After all but KH_OK and KH_AGAIN the stream is of no use any more; kh_tls_stream_why says more.
 */
/* KH_OK: *got > 0 bytes. */
KH_MUST_USE kh_result kh_tls_stream_read(kh_tls_stream *stream, uint8_t *room, size_t cap, size_t *got);
/*
 * KH_OK: *sent > 0 bytes, perhaps not all. After KH_AGAIN the next call must begin with the
 * same bytes, wherever they are then.
 */
KH_MUST_USE kh_result kh_tls_stream_write(kh_tls_stream *stream, const uint8_t *data, size_t len, size_t *sent);
/* Text for people about a failure, right after it: takes what OpenSSL's error queue says, and empties it. */
void kh_tls_stream_why(const kh_tls_stream *stream, char why[KH_TLS_WHY_MAX]);

#endif

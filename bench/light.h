/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A light TLS 1.3 client (RFC 8446), for loading servers: libssl's client costs more CPU time than the server that it loads.
 * TLS_AES_128_GCM_SHA256 and X25519 only, one key pair for all connections, and no certificate or CertificateVerify is
 * verified. The server's Finished is. It does no I/O: bytes come from and go to the caller.
 *
 * light_hello.c has ClientHello and ServerHello, light_keys.c the key schedule and the records' protection, light.c the order
 * of records and messages.
 */
#ifndef KH_BENCH_LIGHT_H
#define KH_BENCH_LIGHT_H

#include <openssl/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the connections of one thread share. */
typedef struct kh_light kh_light;
/* One connection after another. */
typedef struct kh_light_conn kh_light_conn;

typedef enum kh_light_state {
    KH_LIGHT_HANDSHAKE, /* more bytes are needed */
    KH_LIGHT_OPEN,      /* the server's Finished was right; our Finished and close_notify are to be sent */
    KH_LIGHT_CLOSED,    /* the server has sent close_notify, perhaps before the handshake was done */
    KH_LIGHT_ALERT,     /* it has sent another alert: kh_light_alert() */
    KH_LIGHT_BROKEN     /* it broke the protocol, or something is not supported: kh_light_error() */
} kh_light_state;

/* `lib` must outlive it (NULL: the default one). sni: NULL for none; at most 255 bytes. NULL: no memory, or libcrypto refuses. */
kh_light *kh_light_new(OSSL_LIB_CTX *lib, const char *sni);
void kh_light_free(kh_light *light);

/* `light` must outlive it. Only for the thread of `light`. */
kh_light_conn *kh_light_conn_new(kh_light *light);
void kh_light_conn_free(kh_light_conn *conn);

/* Forgets the connection before, and has a ClientHello to be sent. Allocates nothing that lasts. */
bool kh_light_begin(kh_light_conn *conn);

/* What is to be sent: *len bytes, perhaps none. kh_light_sent() says how many of them were. */
const uint8_t *kh_light_out(const kh_light_conn *conn, size_t *len);
void kh_light_sent(kh_light_conn *conn, size_t len);

/* Where to put what the server sent: *len bytes of room, at least one. kh_light_received() says how many came. */
uint8_t *kh_light_room(kh_light_conn *conn, size_t *len);
kh_light_state kh_light_received(kh_light_conn *conn, size_t len);

/* After KH_LIGHT_BROKEN: why. */
const char *kh_light_error(const kh_light_conn *conn);
/* After KH_LIGHT_ALERT: its description (RFC 8446, section 6). */
int kh_light_alert(const kh_light_conn *conn);
/* IANA's name of the scheme in CertificateVerify, as "ecdsa_secp256r1_sha256". */
const char *kh_light_signature(const kh_light_conn *conn);

#endif

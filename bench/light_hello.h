/* SPDX-License-Identifier: Apache-2.0 */
/* The light client's ClientHello and the server's answer to it. Pure functions over bytes. */
#ifndef KH_BENCH_LIGHT_HELLO_H
#define KH_BENCH_LIGHT_HELLO_H

#include <stddef.h>
#include <stdint.h>

#define KH_LIGHT_RANDOM_LEN 32
#define KH_LIGHT_SESSION_ID_LEN 32 /* not empty: as browsers have it (RFC 8446, appendix D.4) */
#define KH_LIGHT_SHARE_LEN 32
#define KH_LIGHT_HELLO_MAX 512     /* of a ClientHello */
#define KH_LIGHT_RANDOM_AT 6       /* where the random is within the ClientHello */
#define KH_LIGHT_SESSION_ID_AT 39  /* and the session id */

/*
 * The handshake message ClientHello, with zeroes for the random and the session id. Its length; 0: the name is empty or longer than 255
 * bytes. sni may be NULL.
 */
size_t kh_light_client_hello(const char *sni, const uint8_t share[KH_LIGHT_SHARE_LEN], uint8_t out[KH_LIGHT_HELLO_MAX]);

/*
 * The body of a ServerHello, `len` bytes of anything. NULL: it is the answer to our hello, and `share` is the server's key share. Else
 * what is wrong with it.
 */
const char *kh_light_server_hello(const uint8_t *body, size_t len, const uint8_t session_id[KH_LIGHT_SESSION_ID_LEN],
                                  uint8_t share[KH_LIGHT_SHARE_LEN]);

/* IANA's name of a signature scheme that the ClientHello offers; NULL: it offers no such one. */
const char *kh_light_scheme_name(unsigned scheme);

#endif

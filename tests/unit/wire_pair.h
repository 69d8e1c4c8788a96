/* SPDX-License-Identifier: Apache-2.0 */
/* The two sessions of a connection back to back over byte buffers, for tests: no socket, no clock. */
#ifndef KH_WIRE_PAIR_H
#define KH_WIRE_PAIR_H

#include <keyhold/protocol.h>

/* Moves up to `most` bytes of pending output to the other end. Returns how many were moved. */
size_t kh_pair_to_server(kh_session *session, kh_server *server, size_t most);
size_t kh_pair_to_session(kh_server *server, kh_session *session, size_t most);
/* Feeds raw bytes to the server in pieces of `piece` bytes, as far as it wants to read. Returns how many it
 * took. */
size_t kh_feed_server(kh_server *server, const uint8_t *bytes, size_t len, size_t piece);
size_t kh_feed_session(kh_session *session, const uint8_t *bytes, size_t len, size_t piece);

/* A session and a server whose handshake is done; fails the test if it does not work. */
kh_session *kh_new_session(const char *identity, uint32_t max_inflight);
kh_server *kh_new_server(uint32_t credit);
void kh_pair_handshake(kh_session *session, kh_server *server);
/* A server that was led through the handshake with the golden vectors, its output emptied. */
kh_server *kh_ready_server(uint32_t credit);
/* Answers a hello or auth as an agent would. */
void kh_answer_handshake(kh_server *server, const kh_request *req);
/* The proof of the golden vectors, without HMAC: the only nonces in these tests are theirs. */
bool kh_fake_prove(void *ctx, const char *label, const uint8_t *nonce_client, const uint8_t *nonce_agent,
                   uint8_t *proof);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load engine's light client against a server that says anything. By the first byte's lowest bits: 0 anything instead of records; 1 anything as
 * a ServerHello; else a good ServerHello, and then anything within authentic records, of the type and the lengths that the input says.
 * None of it is a handshake.
 */
#include "light.h"
#include "light_hello.h"
#include "light_keys.h"

#include <stdlib.h>
#include <string.h>

#define HELLO_LEN 122 /* of the ServerHello that answer() makes */
#define RECORD_LEN (KH_LIGHT_RECORD_HEADER + HELLO_LEN)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

static kh_light *light;
static kh_light_crypto server;

static void feed(kh_light_conn *conn, const uint8_t *data, size_t len)
{
    kh_light_state now = KH_LIGHT_HANDSHAKE;
    size_t room;
    size_t take;

    for (; len > 0 && now == KH_LIGHT_HANDSHAKE; data += take, len -= take) {
        uint8_t *at = kh_light_room(conn, &room);

        require(room > 0);
        take = len < room ? len : room;
        memcpy(at, data, take);
        now = kh_light_received(conn, take);
    }
    require(now != KH_LIGHT_OPEN);
}

/* Answers the hello that the client has to send; the keys of what comes then. */
static void answer(kh_light_conn *conn, kh_light_traffic *keys)
{
    static const uint8_t middle[] = {0x13, 0x01, 0, 0, 46, 0, 43, 0, 2, 3, 4, 0, 51, 0, 36, 0, 0x1d, 0, 32};
    uint8_t record[RECORD_LEN];
    uint8_t secret[KH_LIGHT_HASH_LEN];
    uint8_t hash[KH_LIGHT_HASH_LEN];
    size_t out_len;
    const uint8_t *out = kh_light_out(conn, &out_len);
    const uint8_t *hello = out + KH_LIGHT_RECORD_HEADER;
    EVP_MD_CTX *transcript = EVP_MD_CTX_new();

    memset(record, 0, sizeof(record));
    memcpy(record, (const uint8_t[]){22, 3, 3, 0, HELLO_LEN, 2, 0, 0, HELLO_LEN - 4, 3, 3}, 11);
    record[43] = KH_LIGHT_SESSION_ID_LEN;
    memcpy(record + 44, hello + KH_LIGHT_SESSION_ID_AT, KH_LIGHT_SESSION_ID_LEN);
    memcpy(record + 76, middle, sizeof(middle));
    memcpy(record + 76 + sizeof(middle), server.share, KH_LIGHT_SHARE_LEN);
    require(transcript != NULL && EVP_DigestInit_ex2(transcript, server.sha256, NULL) == 1 &&
            EVP_DigestUpdate(transcript, hello, out_len - KH_LIGHT_RECORD_HEADER) == 1 &&
            EVP_DigestUpdate(transcript, record + KH_LIGHT_RECORD_HEADER, HELLO_LEN) == 1 &&
            kh_light_hash(&server, transcript, hash) &&
            kh_light_handshake_secret(&server, hello + out_len - KH_LIGHT_RECORD_HEADER - KH_LIGHT_SHARE_LEN, secret) &&
            kh_light_traffic_init(&server, keys, secret, "s hs traffic", hash));
    EVP_MD_CTX_free(transcript);
    feed(conn, record, sizeof(record));
}

/* The input is records: a byte for the type, a byte for the length, the content. */
static void feed_sealed(kh_light_conn *conn, const uint8_t *data, size_t len)
{
    static const uint8_t types[] = {22, 22, 22, 22, 21, 23, 20, 0};
    kh_light_traffic keys = {0};
    uint8_t record[255 + KH_LIGHT_RECORD_HEADER + 1 + KH_LIGHT_TAG_LEN];
    size_t take;
    size_t sealed;

    answer(conn, &keys);
    while (len >= 2) {
        take = data[1] < len - 2 ? data[1] : len - 2;
        sealed = kh_light_seal_record(&server, &keys, types[data[0] % 8], data + 2, take, record);
        require(sealed > 0);
        feed(conn, record, sealed);
        data += 2 + take;
        len -= 2 + take;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const uint8_t session_id[KH_LIGHT_SESSION_ID_LEN];
    uint8_t share[KH_LIGHT_SHARE_LEN];
    kh_light_conn *conn;

    if (light == NULL) {
        light = kh_light_new(NULL, NULL);
        require(light != NULL && kh_light_crypto_init(&server, NULL));
    }
    conn = kh_light_conn_new(light);
    require(conn != NULL && kh_light_begin(conn));
    if (len > 0 && data[0] % 4 == 0) {
        feed(conn, data + 1, len - 1);
    } else if (len > 0 && data[0] % 4 == 1) {
        kh_light_server_hello(data + 1, len - 1, session_id, share);
    } else if (len > 0) {
        feed_sealed(conn, data + 1, len - 1);
    }
    kh_light_conn_free(conn);
    return 0;
}

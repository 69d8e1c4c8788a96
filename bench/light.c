/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The light client's connections: records are cut out of the stream, opened, and their handshake messages followed in the one
 * order that a full handshake has (RFC 8446, section 2). Messages are hashed as they pass and only the first bytes of each
 * are kept, so that what a server sends is never stored by a length of its own.
 */
#include "light.h"

#include "light_hello.h"
#include "light_keys.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#define CIPHERTEXT_MAX (16384 + 256) /* section 5.2 */
#define HEAD_MAX 256                 /* what is kept of a message: all of a ServerHello */
#define MESSAGE_HEADER 4
#define MESSAGE_MAX 0xffffff
#define RANDOM_PER_HELLO (KH_LIGHT_RANDOM_LEN + KH_LIGHT_SESSION_ID_LEN)
#define RANDOM_BLOCK (64 * RANDOM_PER_HELLO)

enum { CHANGE_CIPHER_SPEC = 20, ALERT = 21, HANDSHAKE = 22, APPLICATION_DATA = 23 }; /* record types */
enum { NEW_SESSION_TICKET = 4, CERTIFICATE_REQUEST = 13, FINISHED = 20 }; /* messages (section 4) */

typedef enum stage { SERVER_HELLO, ENCRYPTED_EXTENSIONS, CERTIFICATE, CERTIFICATE_VERIFY, SERVER_FINISHED, AFTER } stage;

struct kh_light {
    OSSL_LIB_CTX *lib;
    kh_light_crypto crypto;
    uint8_t hello[KH_LIGHT_HELLO_MAX];
    size_t hello_len;
    uint8_t random[RANDOM_BLOCK];
    size_t random_used;
};

struct kh_light_conn {
    kh_light *light;
    kh_light_state state;
    const char *error;
    int alert;
    stage stage; /* the message that is due */
    unsigned scheme;
    EVP_MD_CTX *transcript;
    kh_light_traffic read, write;
    uint8_t master[KH_LIGHT_HASH_LEN];
    uint8_t verify_data[KH_LIGHT_HASH_LEN]; /* that the server's Finished must have */
    size_t have, need;                      /* of the message under way: its bytes so far, and all of them */
    uint8_t head[HEAD_MAX];                 /* and the first of them */
    size_t out_len, out_sent;
    uint8_t out[KH_LIGHT_RECORD_HEADER + KH_LIGHT_HELLO_MAX];
    uint8_t session_id[KH_LIGHT_SESSION_ID_LEN];
    size_t in_len;
    uint8_t in[KH_LIGHT_RECORD_HEADER + CIPHERTEXT_MAX];
};

static bool broken(kh_light_conn *conn, const char *why)
{
    conn->state = KH_LIGHT_BROKEN;
    conn->error = why;
    return false;
}

/* ---- The messages of the handshake ----------------------------------------------------------------------------------- */

static bool take_server_hello(kh_light_conn *conn)
{
    kh_light_crypto *crypto = &conn->light->crypto;
    uint8_t share[KH_LIGHT_SHARE_LEN];
    uint8_t secret[KH_LIGHT_HASH_LEN];
    uint8_t hash[KH_LIGHT_HASH_LEN];
    const char *wrong = kh_light_server_hello(conn->head + MESSAGE_HEADER, conn->need - MESSAGE_HEADER, conn->session_id,
                                              share);

    if (wrong != NULL) {
        return broken(conn, wrong);
    }
    if (!kh_light_handshake_secret(crypto, share, secret)) {
        return broken(conn, "the server's key share is refused");
    }
    return (kh_light_hash(crypto, conn->transcript, hash) &&
            kh_light_traffic_init(crypto, &conn->write, secret, "c hs traffic", hash) &&
            kh_light_traffic_init(crypto, &conn->read, secret, "s hs traffic", hash) &&
            kh_light_master_secret(crypto, secret, conn->master)) || broken(conn, "libcrypto fails");
}

static bool take_certificate_verify(kh_light_conn *conn)
{
    conn->scheme = (unsigned)conn->head[MESSAGE_HEADER] << 8 | conn->head[MESSAGE_HEADER + 1];
    return kh_light_scheme_name(conn->scheme) != NULL || broken(conn, "CertificateVerify: a scheme that was not offered");
}

/* Our last words: Finished and, since there is nothing else to say, close_notify, each under its own keys. */
static bool answer_finished(kh_light_conn *conn)
{
    static const uint8_t change_cipher_spec[] = {CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1}; /* appendix D.4 */
    static const uint8_t close_notify[] = {1, 0};
    kh_light_crypto *crypto = &conn->light->crypto;
    uint8_t finished[MESSAGE_HEADER + KH_LIGHT_HASH_LEN] = {FINISHED, 0, 0, KH_LIGHT_HASH_LEN};
    uint8_t hash[KH_LIGHT_HASH_LEN];
    size_t first;
    size_t second;

    memcpy(conn->out, change_cipher_spec, sizeof(change_cipher_spec));
    conn->out_sent = 0;
    conn->out_len = sizeof(change_cipher_spec);
    if (!kh_light_hash(crypto, conn->transcript, hash) ||
        !kh_light_verify_data(crypto, &conn->write, hash, finished + MESSAGE_HEADER)) {
        return false;
    }
    first = kh_light_seal_record(crypto, &conn->write, HANDSHAKE, finished, sizeof(finished), conn->out + conn->out_len);
    conn->out_len += first;
    if (first == 0 || !kh_light_traffic_init(crypto, &conn->write, conn->master, "c ap traffic", hash) ||
        !kh_light_traffic_init(crypto, &conn->read, conn->master, "s ap traffic", hash)) {
        return false;
    }
    second = kh_light_seal_record(crypto, &conn->write, ALERT, close_notify, sizeof(close_notify), conn->out + conn->out_len);
    conn->out_len += second;
    return second > 0;
}

static bool take_finished(kh_light_conn *conn)
{
    if (CRYPTO_memcmp(conn->head + MESSAGE_HEADER, conn->verify_data, sizeof(conn->verify_data)) != 0) {
        return broken(conn, "the server's Finished is wrong");
    }
    if (!answer_finished(conn)) {
        return broken(conn, "libcrypto fails");
    }
    conn->state = KH_LIGHT_OPEN;
    return true;
}

static const struct {
    uint8_t type;
    size_t min, max; /* of its body */
    const char *wrong;
    bool (*take)(kh_light_conn *conn); /* NULL: nothing but its hash matters */
} steps[] = {
    [SERVER_HELLO] = {2, 40, HEAD_MAX - MESSAGE_HEADER, "not a ServerHello", take_server_hello},
    [ENCRYPTED_EXTENSIONS] = {8, 2, 2 + 0xffff, "not EncryptedExtensions", NULL},
    [CERTIFICATE] = {11, 4, MESSAGE_MAX, "not a Certificate", NULL},
    [CERTIFICATE_VERIFY] = {15, 4, 4 + 0xffff, "not a CertificateVerify", take_certificate_verify},
    [SERVER_FINISHED] = {FINISHED, KH_LIGHT_HASH_LEN, KH_LIGHT_HASH_LEN, "not a Finished", take_finished},
    [AFTER] = {NEW_SESSION_TICKET, 0, MESSAGE_MAX, "not a NewSessionTicket after the handshake", NULL}};

/* A message's header is there. Is it the one that is due? */
static bool begin_message(kh_light_conn *conn)
{
    kh_light_crypto *crypto = &conn->light->crypto;
    const uint8_t *head = conn->head;
    size_t len = (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
    uint8_t hash[KH_LIGHT_HASH_LEN];

    if (conn->stage == CERTIFICATE && head[0] == CERTIFICATE_REQUEST) {
        return broken(conn, "the server asks for a client certificate");
    }
    if (head[0] != steps[conn->stage].type || len < steps[conn->stage].min || len > steps[conn->stage].max) {
        return broken(conn, steps[conn->stage].wrong);
    }
    conn->need = MESSAGE_HEADER + len;
    /* The transcript of a Finished ends before it. */
    return conn->stage != SERVER_FINISHED || (kh_light_hash(crypto, conn->transcript, hash) &&
                                             kh_light_verify_data(crypto, &conn->read, hash, conn->verify_data)) ||
           broken(conn, "libcrypto fails");
}

/* All of a message is there. `left`: of its record; none may be left before the keys change (section 5.1). */
static bool end_message(kh_light_conn *conn, size_t left)
{
    stage ended = conn->stage;

    conn->have = 0;
    if (steps[ended].take != NULL && !steps[ended].take(conn)) {
        return false;
    }
    if (left > 0 && (ended == SERVER_HELLO || ended == SERVER_FINISHED)) {
        return broken(conn, "more in a record than its keys are for");
    }
    conn->stage = ended == AFTER ? AFTER : ended + 1;
    return true;
}

static bool hash_on(kh_light_conn *conn, const uint8_t *data, size_t len)
{
    return conn->stage == AFTER || EVP_DigestUpdate(conn->transcript, data, len) == 1 || broken(conn, "libcrypto fails");
}

/* Of the `len` bytes that come next in the message: those up to its byte `end`, of which the first are kept. How many. */
static size_t keep(kh_light_conn *conn, const uint8_t *data, size_t len, size_t end)
{
    size_t take = len < end - conn->have ? len : end - conn->have;
    size_t room = conn->have < HEAD_MAX ? HEAD_MAX - conn->have : 0;

    memcpy(conn->head + (HEAD_MAX - room), data, take < room ? take : room);
    conn->have += take;
    return take;
}

/* Messages may share a record, and span several. */
static bool take_handshake(kh_light_conn *conn, const uint8_t *data, size_t len)
{
    size_t taken;

    while (len > 0) {
        if (conn->have < MESSAGE_HEADER) {
            taken = keep(conn, data, len, MESSAGE_HEADER);
            data += taken;
            len -= taken;
            if (conn->have < MESSAGE_HEADER) {
                return true;
            }
            if (!begin_message(conn) || !hash_on(conn, conn->head, MESSAGE_HEADER)) {
                return false;
            }
        }
        taken = keep(conn, data, len, conn->need);
        if (!hash_on(conn, data, taken)) {
            return false;
        }
        data += taken;
        len -= taken;
        if (conn->have == conn->need && !end_message(conn, len)) {
            return false;
        }
    }
    return true;
}

/* ---- Records (section 5) ----------------------------------------------------------------------------------------------- */

/* Section 6; the level means nothing. */
static bool take_alert(kh_light_conn *conn, const uint8_t *content, size_t len)
{
    if (len != 2) {
        return broken(conn, "malformed alert");
    }
    conn->state = content[1] == 0 ? KH_LIGHT_CLOSED : KH_LIGHT_ALERT;
    conn->alert = content[1];
    return false;
}

static bool take_content(kh_light_conn *conn, uint8_t type, const uint8_t *content, size_t len)
{
    if (type == HANDSHAKE && len > 0) {
        return take_handshake(conn, content, len);
    }
    if (type == ALERT) {
        return take_alert(conn, content, len);
    }
    return (type == APPLICATION_DATA && conn->stage == AFTER) || broken(conn, "a record of an unexpected type");
}

/* A record under keys: TLSCiphertext, with the true type behind the content and before zeroes (section 5.2). */
static bool take_sealed(kh_light_conn *conn, uint8_t *record, size_t len)
{
    uint8_t *content = record + KH_LIGHT_RECORD_HEADER;
    size_t end;

    if (len <= KH_LIGHT_TAG_LEN || !kh_light_open_record(&conn->light->crypto, &conn->read, record, len)) {
        return broken(conn, "a record that is not authentic");
    }
    for (end = len - KH_LIGHT_TAG_LEN; end > 0 && content[end - 1] == 0; end--) {
    }
    return end > 0 ? take_content(conn, content[end - 1], content, end - 1) : broken(conn, "a record without a type");
}

static bool take_record(kh_light_conn *conn, uint8_t *record, size_t len)
{
    const uint8_t *content = record + KH_LIGHT_RECORD_HEADER;

    if (record[0] == CHANGE_CIPHER_SPEC) { /* may come within the handshake and means nothing (appendix D.4) */
        return (len == 1 && content[0] == 1 && conn->stage != SERVER_HELLO && conn->stage != AFTER) ||
               broken(conn, "an unexpected change_cipher_spec");
    }
    if (conn->stage == SERVER_HELLO) {
        return take_content(conn, record[0], content, len);
    }
    return record[0] == APPLICATION_DATA ? take_sealed(conn, record, len) : broken(conn, "a record that is not protected");
}

/* All records that are complete; what is left of the last one moves to the begin. False: the connection has ended. */
static bool take_records(kh_light_conn *conn)
{
    size_t at = 0;

    while (conn->in_len - at >= KH_LIGHT_RECORD_HEADER) {
        uint8_t *record = conn->in + at;
        size_t len = (size_t)record[3] << 8 | record[4];

        if (record[0] < CHANGE_CIPHER_SPEC || record[0] > APPLICATION_DATA || record[1] != 3 || len > CIPHERTEXT_MAX) {
            return broken(conn, "not a record of TLS");
        }
        if (conn->in_len - at - KH_LIGHT_RECORD_HEADER < len) {
            break;
        }
        if (!take_record(conn, record, len)) {
            return false;
        }
        at += KH_LIGHT_RECORD_HEADER + len;
    }
    conn->in_len -= at;
    memmove(conn->in, conn->in + at, conn->in_len);
    return true;
}

uint8_t *kh_light_room(kh_light_conn *conn, size_t *len)
{
    *len = sizeof(conn->in) - conn->in_len; /* never 0: a record that fills `in` is complete, and was taken */
    return conn->in + conn->in_len;
}

kh_light_state kh_light_received(kh_light_conn *conn, size_t len)
{
    if (conn->state == KH_LIGHT_HANDSHAKE || conn->state == KH_LIGHT_OPEN) {
        conn->in_len += len;
        if (!take_records(conn)) {
            conn->in_len = 0; /* nothing more is read from it */
        }
    }
    return conn->state;
}

/* ---- Connections --------------------------------------------------------------------------------------------------------- */

kh_light *kh_light_new(OSSL_LIB_CTX *lib, const char *sni)
{
    kh_light *light = calloc(1, sizeof(*light));

    if (light == NULL) {
        return NULL;
    }
    light->lib = lib;
    light->random_used = RANDOM_BLOCK;
    if (kh_light_crypto_init(&light->crypto, lib)) {
        light->hello_len = kh_light_client_hello(sni, light->crypto.share, light->hello);
    }
    if (light->hello_len == 0) {
        kh_light_free(light);
        return NULL;
    }
    return light;
}

void kh_light_free(kh_light *light)
{
    if (light != NULL) {
        kh_light_crypto_free(&light->crypto);
        free(light);
    }
}

kh_light_conn *kh_light_conn_new(kh_light *light)
{
    kh_light_conn *conn = calloc(1, sizeof(*conn));

    if (conn == NULL || (conn->transcript = EVP_MD_CTX_new()) == NULL) {
        free(conn);
        return NULL;
    }
    conn->light = light;
    conn->state = KH_LIGHT_BROKEN; /* until it begins */
    return conn;
}

void kh_light_conn_free(kh_light_conn *conn)
{
    if (conn != NULL) {
        EVP_MD_CTX_free(conn->transcript);
        free(conn);
    }
}

static const uint8_t *fresh_random(kh_light *light)
{
    if (light->random_used == RANDOM_BLOCK) {
        if (RAND_bytes_ex(light->lib, light->random, RANDOM_BLOCK, 0) != 1) {
            return NULL;
        }
        light->random_used = 0;
    }
    light->random_used += RANDOM_PER_HELLO;
    return light->random + light->random_used - RANDOM_PER_HELLO;
}

bool kh_light_begin(kh_light_conn *conn)
{
    kh_light *light = conn->light;
    const uint8_t *random = fresh_random(light);
    const uint8_t header[] = {HANDSHAKE, 3, 1, (uint8_t)(light->hello_len >> 8), (uint8_t)light->hello_len};
    uint8_t *hello = conn->out + sizeof(header);

    if (random == NULL) {
        return false;
    }
    conn->state = KH_LIGHT_HANDSHAKE;
    conn->stage = SERVER_HELLO;
    conn->error = "";
    conn->in_len = conn->have = conn->out_sent = 0;
    conn->out_len = sizeof(header) + light->hello_len;
    memcpy(conn->out, header, sizeof(header));
    memcpy(hello, light->hello, light->hello_len);
    memcpy(hello + KH_LIGHT_RANDOM_AT, random, KH_LIGHT_RANDOM_LEN);
    memcpy(hello + KH_LIGHT_SESSION_ID_AT, random + KH_LIGHT_RANDOM_LEN, KH_LIGHT_SESSION_ID_LEN);
    memcpy(conn->session_id, random + KH_LIGHT_RANDOM_LEN, KH_LIGHT_SESSION_ID_LEN);
    return EVP_DigestInit_ex2(conn->transcript, light->crypto.sha256, NULL) == 1 &&
           EVP_DigestUpdate(conn->transcript, hello, light->hello_len) == 1;
}

const uint8_t *kh_light_out(const kh_light_conn *conn, size_t *len)
{
    *len = conn->out_len - conn->out_sent;
    return conn->out + conn->out_sent;
}

void kh_light_sent(kh_light_conn *conn, size_t len)
{
    conn->out_sent += len;
}

const char *kh_light_error(const kh_light_conn *conn)
{
    return conn->error;
}

int kh_light_alert(const kh_light_conn *conn)
{
    return conn->alert;
}

const char *kh_light_signature(const kh_light_conn *conn)
{
    const char *name = kh_light_scheme_name(conn->scheme);

    return name != NULL ? name : "";
}

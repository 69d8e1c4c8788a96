/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench/light*.c against libssl's server in this process. With the server's handshake secret its messages are put into records anew: cut
 * in any way, and with any byte changed. A client that takes a server for one that has done its work would count what never happened.
 */
#include "light.h"
#include "light_hello.h"
#include "light_keys.h"

#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FLIGHT_MAX 8192
#define HEADER KH_LIGHT_RECORD_HEADER

typedef struct rig {
    kh_light *light;
    kh_light_conn *conn;
    kh_light_crypto crypto; /* to open and seal with the server's keys */
    SSL_CTX *ctx;
    SSL *ssl;
    uint8_t secret[KH_LIGHT_HASH_LEN]; /* SERVER_HANDSHAKE_TRAFFIC_SECRET */
    uint8_t flight[FLIGHT_MAX];        /* ServerHello to Finished, as records */
    size_t flight_len;
} rig;

/* ---- A server ------------------------------------------------------------------------------------------------------- */

static void note_secret(const SSL *ssl, const char *line)
{
    rig *r = SSL_get_app_data(ssl);
    const char *hex = strrchr(line, ' ') + 1;
    size_t len = 0;

    if (strncmp(line, "SERVER_HANDSHAKE_TRAFFIC_SECRET ", 32) == 0) {
        assert_int_equal(OPENSSL_hexstr2buf_ex(r->secret, sizeof(r->secret), &len, hex, '\0'), 1);
        assert_int_equal(len, sizeof(r->secret));
    }
}

static SSL_CTX *server_with(EVP_PKEY *key)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    X509 *crt = X509_new();
    const EVP_MD *md = EVP_PKEY_is_a(key, "ED25519") ? NULL : EVP_sha256();

    assert_non_null(ctx);
    assert_int_equal(ASN1_INTEGER_set(X509_get_serialNumber(crt), 1), 1);
    X509_gmtime_adj(X509_getm_notBefore(crt), 0);
    X509_gmtime_adj(X509_getm_notAfter(crt), 3600);
    X509_set_pubkey(crt, key);
    assert_true(X509_sign(crt, key, md) > 0);
    assert_int_equal(SSL_CTX_use_certificate(ctx, crt), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
    SSL_CTX_set_keylog_callback(ctx, note_secret);
    X509_free(crt);
    EVP_PKEY_free(key);
    return ctx;
}

static int set_up(void **state)
{
    rig *r = calloc(1, sizeof(*r));

    assert_non_null(r);
    r->light = kh_light_new(NULL, "light.keyhold.test");
    assert_non_null(r->light);
    r->conn = kh_light_conn_new(r->light);
    assert_non_null(r->conn);
    assert_true(kh_light_crypto_init(&r->crypto, NULL));
    r->ctx = server_with(EVP_EC_gen("P-256"));
    *state = r;
    return 0;
}

static int tear_down(void **state)
{
    rig *r = *state;

    kh_light_crypto_free(&r->crypto);
    kh_light_conn_free(r->conn);
    kh_light_free(r->light);
    SSL_free(r->ssl);
    SSL_CTX_free(r->ctx);
    free(r);
    return 0;
}

/* What the client has to send goes to the server, which does what it can. */
static void serve(rig *r)
{
    size_t len;
    const uint8_t *bytes = kh_light_out(r->conn, &len);

    assert_int_equal(BIO_write(SSL_get_rbio(r->ssl), bytes, (int)len), (int)len);
    kh_light_sent(r->conn, len);
    SSL_do_handshake(r->ssl);
}

/* Both begin anew; r->flight is what the server answered to the hello. */
static void begin(rig *r)
{
    int len;

    SSL_free(r->ssl);
    r->ssl = SSL_new(r->ctx);
    assert_non_null(r->ssl);
    SSL_set_app_data(r->ssl, r);
    SSL_set_bio(r->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    BIO_set_mem_eof_return(SSL_get_rbio(r->ssl), -1);
    SSL_set_accept_state(r->ssl);
    assert_true(kh_light_begin(r->conn));
    serve(r);
    len = BIO_read(SSL_get_wbio(r->ssl), r->flight, FLIGHT_MAX);
    assert_true(len > 0 && len < FLIGHT_MAX);
    r->flight_len = (size_t)len;
}

static kh_light_state feed(rig *r, const uint8_t *bytes, size_t len)
{
    kh_light_state now = KH_LIGHT_HANDSHAKE;
    size_t room;
    size_t take;

    while (len > 0) {
        uint8_t *at = kh_light_room(r->conn, &room);

        assert_true(room > 0);
        take = len < room ? len : room;
        memcpy(at, bytes, take);
        bytes += take;
        len -= take;
        now = kh_light_received(r->conn, take);
        if (now != KH_LIGHT_HANDSHAKE && now != KH_LIGHT_OPEN) {
            break; /* the room may be at its end */
        }
    }
    return now;
}

/* The rest of a connection whose client is satisfied: so is the server, and its close ends it. */
static void close_in_order(rig *r)
{
    uint8_t rest[4096];
    char byte;
    int len;

    serve(r);
    assert_true(SSL_is_init_finished(r->ssl));
    assert_int_equal(SSL_get_error(r->ssl, SSL_read(r->ssl, &byte, 1)), SSL_ERROR_ZERO_RETURN);
    SSL_shutdown(r->ssl);
    len = BIO_read(SSL_get_wbio(r->ssl), rest, sizeof(rest)); /* tickets, and close_notify */
    assert_true(len > 0);
    assert_int_equal(feed(r, rest, (size_t)len), KH_LIGHT_CLOSED);
}

/* ---- Whole handshakes ------------------------------------------------------------------------------------------------ */

static void each_type_of_key(void **state)
{
    rig *r = *state;
    const struct {
        EVP_PKEY *key;
        const char *scheme;
    } cases[] = {{EVP_EC_gen("P-256"), "ecdsa_secp256r1_sha256"}, {EVP_EC_gen("P-384"), "ecdsa_secp384r1_sha384"},
                 {EVP_EC_gen("P-521"), "ecdsa_secp521r1_sha512"}, {EVP_RSA_gen(2048), "rsa_pss_rsae_sha256"},
                 {EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), "ed25519"}};
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        SSL_CTX_free(r->ctx);
        r->ctx = server_with(cases[i].key);
        begin(r);
        assert_int_equal(feed(r, r->flight, r->flight_len), KH_LIGHT_OPEN);
        assert_string_equal(kh_light_signature(r->conn), cases[i].scheme);
        assert_string_equal(SSL_get_servername(r->ssl, TLSEXT_NAMETYPE_host_name), "light.keyhold.test");
        close_in_order(r);
    }
}

static void byte_by_byte(void **state)
{
    rig *r = *state;
    size_t i;

    begin(r);
    for (i = 0; i + 1 < r->flight_len; i++) {
        assert_int_equal(feed(r, r->flight + i, 1), KH_LIGHT_HANDSHAKE);
    }
    assert_int_equal(feed(r, r->flight + i, 1), KH_LIGHT_OPEN);
    close_in_order(r);
}

static void padded_records(void **state)
{
    rig *r = *state;

    assert_int_equal(SSL_CTX_set_block_padding(r->ctx, 512), 1);
    begin(r);
    assert_int_equal(feed(r, r->flight, r->flight_len), KH_LIGHT_OPEN);
    close_in_order(r);
}

/* Every byte that comes over the wire counts, but the second of the version in a record that is not protected. */
static void a_changed_byte_on_the_wire(void **state)
{
    rig *r = *state;
    size_t changed;
    size_t first;
    size_t len = 1;

    for (changed = 0; changed < len; changed++) {
        begin(r);
        len = r->flight_len; /* a signature of ECDSA has no fixed length */
        if (changed >= len) {
            break;
        }
        first = HEADER + ((size_t)r->flight[3] << 8 | r->flight[4]);
        assert_int_equal(r->flight[first], 20);
        r->flight[changed] ^= (uint8_t)(1u << changed % 8);
        if (changed != 2 && changed != first + 2) {
            assert_int_not_equal(feed(r, r->flight, len), KH_LIGHT_OPEN);
        }
    }
}

/* ---- With the server's keys -------------------------------------------------------------------------------------------- */

/* The messages from EncryptedExtensions to Finished. How many bytes; *hello_len: of the records before. */
static size_t open_flight(rig *r, uint8_t *messages, size_t *hello_len)
{
    kh_light_traffic keys = {0};
    size_t used = 0;
    size_t at = 0;

    memcpy(keys.secret, r->secret, sizeof(keys.secret));
    assert_true(kh_light_traffic_keys(&r->crypto, &keys));
    *hello_len = 0;
    while (at < r->flight_len) {
        uint8_t *record = r->flight + at;
        size_t len = (size_t)record[3] << 8 | record[4];

        if (record[0] != 23) {
            *hello_len = at + HEADER + len;
        } else {
            assert_true(kh_light_open_record(&r->crypto, &keys, record, len));
            memcpy(messages + used, record + HEADER, len - KH_LIGHT_TAG_LEN - 1);
            used += len - KH_LIGHT_TAG_LEN - 1;
        }
        at += HEADER + len;
    }
    return used;
}

/* Sends them to the client in records of at most `size` bytes. */
static kh_light_state feed_messages(rig *r, const uint8_t *messages, size_t len, size_t size)
{
    kh_light_traffic keys = {0};
    uint8_t record[FLIGHT_MAX + 64];
    kh_light_state now = KH_LIGHT_HANDSHAKE;
    size_t take;
    size_t sealed;

    memcpy(keys.secret, r->secret, sizeof(keys.secret));
    assert_true(kh_light_traffic_keys(&r->crypto, &keys));
    for (; len > 0 && now == KH_LIGHT_HANDSHAKE; len -= take, messages += take) {
        take = len < size ? len : size;
        sealed = kh_light_seal_record(&r->crypto, &keys, 22, messages, take, record);
        assert_true(sealed > 0);
        now = feed(r, record, sealed);
    }
    return now;
}

static void records_of_any_size(void **state)
{
    static const size_t sizes[] = {1, 3, 4, 5, 37, 200, FLIGHT_MAX};
    rig *r = *state;
    uint8_t messages[FLIGHT_MAX];
    size_t hello_len;
    size_t len;
    size_t i;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        begin(r);
        len = open_flight(r, messages, &hello_len);
        assert_int_equal(feed(r, r->flight, hello_len), KH_LIGHT_HANDSHAKE);
        assert_int_equal(feed_messages(r, messages, len, sizes[i]), KH_LIGHT_OPEN);
        close_in_order(r);
    }
}

/* Authentic records with a message that is not what the server's Finished is about, or with another Finished, or with more behind it. */
static void a_changed_byte_in_a_message(void **state)
{
    rig *r = *state;
    uint8_t messages[FLIGHT_MAX + 1];
    size_t hello_len;
    size_t len = 1;
    size_t changed;

    for (changed = 0; changed <= len; changed++) {
        begin(r);
        len = open_flight(r, messages, &hello_len);
        assert_int_equal(feed(r, r->flight, hello_len), KH_LIGHT_HANDSHAKE);
        messages[len] = 0;
        if (changed < len) {
            messages[changed] ^= (uint8_t)(1u << changed % 8);
        }
        assert_int_not_equal(feed_messages(r, messages, changed < len ? len : len + 1, FLIGHT_MAX), KH_LIGHT_OPEN);
    }
}

/* ---- Servers that do not fit ------------------------------------------------------------------------------------------- */

static void no_such_server(void **state)
{
    rig *r = *state;

    assert_int_equal(SSL_CTX_set_ciphersuites(r->ctx, "TLS_AES_256_GCM_SHA384"), 1);
    begin(r);
    assert_int_equal(feed(r, r->flight, r->flight_len), KH_LIGHT_ALERT);
    assert_int_equal(kh_light_alert(r->conn), SSL_AD_HANDSHAKE_FAILURE);
    assert_int_equal(SSL_CTX_set_ciphersuites(r->ctx, "TLS_AES_128_GCM_SHA256"), 1);
    SSL_CTX_set_verify(r->ctx, SSL_VERIFY_PEER, NULL);
    begin(r);
    assert_int_equal(feed(r, r->flight, r->flight_len), KH_LIGHT_BROKEN);
    assert_string_equal(kh_light_error(r->conn), "the server asks for a client certificate");
    SSL_CTX_set_max_proto_version(r->ctx, TLS1_2_VERSION);
    begin(r);
    assert_int_equal(feed(r, r->flight, r->flight_len), KH_LIGHT_ALERT);
    assert_int_equal(kh_light_alert(r->conn), SSL_AD_PROTOCOL_VERSION);
}

#define BODY(text) text, sizeof(text) - 1

/* What comes instead of a ServerHello. */
static void no_such_records(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *wrong;
    } cases[] = {{BODY("HTTP/1.1 400"), "not a record of TLS"},
                 {BODY("\x16\x03\x03\x41\x01"), "not a record of TLS"},
                 {BODY("\x16\x02\x00\x00\x01\x00"), "not a record of TLS"},
                 {BODY("\x16\x03\x03\x00\x00"), "a record of an unexpected type"},
                 {BODY("\x17\x03\x03\x00\x01x"), "a record of an unexpected type"},
                 {BODY("\x14\x03\x03\x00\x01\x01"), "an unexpected change_cipher_spec"},
                 {BODY("\x15\x03\x03\x00\x01\x02"), "malformed alert"},
                 {BODY("\x16\x03\x03\x00\x04\x08\x00\x00\x02"), "not a ServerHello"},
                 {BODY("\x16\x03\x03\x00\x04\x02\x00\x00\xfd"), "not a ServerHello"}};
    rig *r = *state;
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_true(kh_light_begin(r->conn));
        assert_int_equal(feed(r, (const uint8_t *)cases[i].bytes, cases[i].len), KH_LIGHT_BROKEN);
        assert_string_equal(kh_light_error(r->conn), cases[i].wrong);
    }
    assert_true(kh_light_begin(r->conn));
    assert_int_equal(feed(r, (const uint8_t *)"\x15\x03\x03\x00\x02\x01\x00", 7), KH_LIGHT_CLOSED);
}

#define SHARE_32 "\x00\x20" "0123456789abcdef0123456789abcdef"
#define VERSION "\x00\x2b\x00\x02\x03\x04"

static void server_hellos(void **state)
{
    static const struct {
        const char *extensions;
        size_t len;
        const char *wrong; /* a part of the text; NULL: right */
    } cases[] = {{BODY(VERSION "\x00\x33\x00\x24\x00\x1d" SHARE_32), NULL},
                 {BODY("\x00\x33\x00\x24\x00\x1d" SHARE_32 VERSION), NULL},
                 {BODY("\x00\x33\x00\x24\x00\x1d" SHARE_32), "no TLS 1.3"},
                 {BODY("\x00\x2b\x00\x02\x03\x03\x00\x33\x00\x24\x00\x1d" SHARE_32), "not TLS 1.3"},
                 {BODY(VERSION), "no key share"},
                 {BODY(VERSION VERSION), "twice"},
                 {BODY(VERSION "\x00\x33\x00\x24\x00\x17" SHARE_32), "not a key share"},
                 {BODY(VERSION "\x00\x33\x00\x02\x00\x1d"), "not a key share"},
                 {BODY(VERSION "\x00\x33\x00\x25\x00\x1d" SHARE_32), "malformed"},
                 {BODY(VERSION "\x00\x33\xff"), "malformed"},
                 {BODY(VERSION "\x00\x29\x00\x02\x00\x00"), "not asked for"}};
    uint8_t session_id[KH_LIGHT_SESSION_ID_LEN] = {7};
    uint8_t share[KH_LIGHT_SHARE_LEN];
    uint8_t body[256] = {3, 3};
    const char *wrong;
    size_t i;
    size_t len;

    (void)state;
    body[34] = sizeof(session_id);
    memcpy(body + 35, session_id, sizeof(session_id));
    body[67] = 0x13;
    body[68] = 0x01;
    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        body[71] = (uint8_t)cases[i].len;
        memcpy(body + 72, cases[i].extensions, cases[i].len);
        len = 72 + cases[i].len;
        wrong = kh_light_server_hello(body, len, session_id, share);
        if (cases[i].wrong == NULL) {
            assert_null(wrong);
            assert_memory_equal(share, "0123456789abcdef0123456789abcdef", sizeof(share));
        } else {
            assert_non_null(wrong);
            assert_non_null(strstr(wrong, cases[i].wrong));
        }
        while (len > 0) {
            uint8_t *exact = malloc(--len + 1); /* so that a sanitizer sees a byte too many */

            assert_non_null(exact);
            memcpy(exact + 1, body, len);
            assert_non_null(kh_light_server_hello(exact + 1, len, session_id, share));
            free(exact);
        }
    }
    body[36] ^= 1;
    wrong = kh_light_server_hello(body, 72 + body[71], session_id, share);
    assert_non_null(wrong);
    assert_non_null(strstr(wrong, "another session id"));
    memcpy(body + 2, "\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91"
                     "\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c", 32);
    assert_non_null(strstr(kh_light_server_hello(body, sizeof(body), session_id, share), "HelloRetryRequest"));
}

static void names(void **state)
{
    uint8_t share[KH_LIGHT_SHARE_LEN] = {0};
    uint8_t hello[KH_LIGHT_HELLO_MAX];
    char name[257];

    (void)state;
    memset(name, 'a', sizeof(name));
    name[256] = '\0';
    assert_int_equal(kh_light_client_hello(name, share, hello), 0);
    name[255] = '\0';
    assert_in_range(kh_light_client_hello(name, share, hello), 256, KH_LIGHT_HELLO_MAX);
    assert_int_equal(kh_light_client_hello("", share, hello), 0);
    assert_null(kh_light_new(NULL, ""));
    assert_true(kh_light_client_hello(NULL, share, hello) > 0);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {CASE(each_type_of_key), CASE(byte_by_byte), CASE(records_of_any_size), CASE(padded_records),
                                       CASE(a_changed_byte_on_the_wire), CASE(a_changed_byte_in_a_message),
                                       CASE(no_such_server), CASE(no_such_records), cmocka_unit_test(server_hellos), cmocka_unit_test(names)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

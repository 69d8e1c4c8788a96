/* SPDX-License-Identifier: Apache-2.0 */
/* Both ends of TLS in one process, over a socket pair: who is let in, by which names, what is resumed, what a peer can do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "../../protocol/tls/files.h"
#include "../../protocol/tls/stream.h"
#include "tls.h"
#include "tls_rig.h"
#include <fcntl.h>
#include <keyhold/client.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static tls_rig rig;
static tls_rig_party agent, edge;

static int setup(void **state)
{
    (void)state;
    tls_rig_make(&rig);
    tls_rig_issue(&rig, &rig.ca, "agent", "DNS:agent.example,IP:127.0.0.1", -60, 3600, &agent);
    tls_rig_issue(&rig, &rig.ca, "edge",
                  "DNS:Edge1.Example,URI:spiffe://example/Edge1,IP:192.0.2.7,IP:2001:db8::7,email:ops@example.org,DNS:*.bad,"
                  "RID:1.2.3",
                  -60, 3600, &edge);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tls_rig_free(&agent);
    tls_rig_free(&edge);
    tls_rig_end(&rig);
    return 0;
}

/* ---- Two ends ---- */

typedef struct ends {
    int fds[2];
    kh_tls_stream server, client;
} ends;

static kh_result make_server(const tls_rig_party *own, const char *ca_file, const char *crl_file, kh_tls_server **server,
                             const char **part)
{
    kh_tls_file certificate = {0}, ca = {0}, crl = {0};
    uint8_t *key = NULL;
    int key_len = i2d_PrivateKey(own->key, &key);
    kh_tls_parts parts;
    kh_result result = KH_OK;

    assert_true(key_len > 0);
    assert_int_equal(kh_tls_file_read(own->certificate_file, false, &certificate), KH_OK);
    assert_int_equal(kh_tls_file_read(ca_file, false, &ca), KH_OK);
    if (crl_file != NULL) {
        assert_int_equal(kh_tls_file_read(crl_file, false, &crl), KH_OK);
    }
    parts = (kh_tls_parts){kh_tls_file_bytes(&certificate), {key, (size_t)key_len}, kh_tls_file_bytes(&ca), kh_tls_file_bytes(&crl)};
    result = kh_tls_server_new(&parts, server, part);
    kh_tls_file_free(&certificate);
    kh_tls_file_free(&ca);
    kh_tls_file_free(&crl);
    OPENSSL_free(key);
    return result;
}

static kh_tls_server *good_server(void)
{
    kh_tls_server *server = NULL;

    assert_int_equal(make_server(&agent, rig.ca.certificate_file, NULL, &server, NULL), KH_OK);
    return server;
}

static SSL_CTX *client_context(const tls_rig_party *own)
{
    const kh_client_tls tls = {.ca_file = rig.ca.certificate_file,
                               .certificate_file = own->certificate_file,
                               .key_file = own->key_file};
    SSL_CTX *ctx = NULL;

    assert_int_equal(kh_client_tls_context(&tls, &ctx, NULL, 0), KH_OK);
    return ctx;
}

static void start(ends *both, const kh_tls_server *server, SSL_CTX *ctx, SSL_SESSION *session)
{
    SSL *ssl = SSL_new(ctx);

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both->fds), 0);
    assert_int_equal(kh_client_tls_prepare(ssl, "agent.example"), KH_OK);
    if (session != NULL) {
        assert_int_equal(SSL_set_session(ssl, session), 1);
    }
    assert_int_equal(kh_tls_stream_start(&both->server, kh_tls_server_accept(server), both->fds[0]), KH_OK);
    assert_int_equal(kh_tls_stream_start(&both->client, ssl, both->fds[1]), KH_OK);
}

static void end(ends *both)
{
    kh_tls_stream_end(&both->client, true);
    kh_tls_stream_end(&both->server, true);
    close(both->fds[0]);
    close(both->fds[1]);
}

/* Until each side has had a byte of the other, or one fails: its result. */
static kh_result meet(ends *both)
{
    bool server_sent = false, client_sent = false, server_got = false, client_got = false;

    for (int i = 0; i < 100 && !(server_got && client_got); i++) {
        uint8_t room[16];
        size_t moved = 0;
        kh_result result = KH_OK;

        if (!client_sent) {
            result = kh_tls_stream_write(&both->client, (const uint8_t *)"c", 1, &moved);
            client_sent = result == KH_OK;
        } else {
            result = kh_tls_stream_read(&both->client, room, sizeof room, &moved);
            client_got = client_got || result == KH_OK;
        }
        if (result != KH_OK && result != KH_AGAIN) {
            return result;
        }
        result = kh_tls_stream_read(&both->server, room, sizeof room, &moved);
        server_got = server_got || result == KH_OK;
        if (server_got && !server_sent) {
            result = kh_tls_stream_write(&both->server, (const uint8_t *)"s", 1, &moved);
            server_sent = result == KH_OK;
        }
        if (result != KH_OK && result != KH_AGAIN) {
            return result;
        }
    }
    assert_true(server_got && client_got);
    return KH_OK;
}

/* ---- Tests ---- */

typedef struct names {
    char text[8][64];
    size_t count;
} names;

static void take_name(void *ctx, const char *san)
{
    names *all = ctx;

    assert_true(all->count < 8);
    snprintf(all->text[all->count++], 64, "%s", san);
}

static void test_names(void **state)
{
    static const char *const expected[] = {"dns:edge1.example", "uri:spiffe://example/Edge1", "ip:192.0.2.7", "ip:2001:db8::7",
                                           "email:ops@example.org"};
    kh_tls_server *server = good_server();
    SSL_CTX *ctx = client_context(&edge);
    names all = {.count = 0};
    ends both;

    (void)state;
    start(&both, server, ctx, NULL);
    assert_false(kh_tls_peer_names(both.server.ssl, take_name, &all)); /* nobody yet */
    assert_int_equal(meet(&both), KH_OK);
    assert_string_equal(SSL_get_version(both.server.ssl), "TLSv1.3");
    assert_true(kh_tls_peer_names(both.server.ssl, take_name, &all));
    assert_int_equal(all.count, 5); /* the wildcard and what is no name of ours are left out */
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(all.text[i], expected[i]);
    }
    end(&both);
    kh_tls_server_free(server);
    SSL_CTX_free(ctx);
}

static void expect_refused(const kh_tls_server *server, const tls_rig_party *caller, const char *words)
{
    SSL_CTX *ctx = client_context(caller);
    char why[KH_TLS_WHY_MAX];
    ends both;

    start(&both, server, ctx, NULL);
    assert_int_equal(meet(&both), KH_E_UNAUTHENTICATED);
    kh_tls_stream_why(&both.server, why);
    if (strstr(why, words) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", why, words);
    }
    end(&both);
    SSL_CTX_free(ctx);
}

static void test_refused(void **state)
{
    kh_tls_server *server = good_server(), *strict = NULL;
    tls_rig_party other_ca, stranger, expired, early;
    char crl[128];

    (void)state;
    tls_rig_authority(&rig, "other", &other_ca);
    tls_rig_issue(&rig, &other_ca, "stranger", "DNS:edge1.example", -60, 3600, &stranger);
    tls_rig_issue(&rig, &rig.ca, "expired", "DNS:edge1.example", -3600, -60, &expired);
    tls_rig_issue(&rig, &rig.ca, "early", "DNS:edge1.example", 600, 3600, &early);
    expect_refused(server, &stranger, "unable to get local issuer");
    expect_refused(server, &expired, "certificate has expired");
    expect_refused(server, &early, "not yet valid");
    tls_rig_crl(&rig, &rig.ca, &edge, 3600, crl);
    assert_int_equal(make_server(&agent, rig.ca.certificate_file, crl, &strict, NULL), KH_OK);
    expect_refused(strict, &edge, "revoked");
    kh_tls_server_free(strict);
    tls_rig_crl(&rig, &rig.ca, NULL, -30, crl);
    assert_int_equal(make_server(&agent, rig.ca.certificate_file, crl, &strict, NULL), KH_OK);
    expect_refused(strict, &edge, "CRL has expired");
    kh_tls_server_free(strict);
    kh_tls_server_free(server);
    tls_rig_free(&stranger);
    tls_rig_free(&expired);
    tls_rig_free(&early);
    tls_rig_free(&other_ca);
}

/* The caller checks the agent as well. */
static void test_agent_refused(void **state)
{
    kh_tls_server *server = NULL;
    SSL_CTX *ctx = client_context(&edge);
    tls_rig_party wrong;
    char why[KH_TLS_WHY_MAX];
    ends both;

    (void)state;
    tls_rig_issue(&rig, &rig.ca, "wrong", "DNS:agent2.example", -60, 3600, &wrong);
    assert_int_equal(make_server(&wrong, rig.ca.certificate_file, NULL, &server, NULL), KH_OK);
    start(&both, server, ctx, NULL);
    assert_int_equal(meet(&both), KH_E_UNAUTHENTICATED);
    kh_tls_stream_why(&both.client, why);
    assert_non_null(strstr(why, "hostname mismatch"));
    end(&both);
    kh_tls_server_free(server);
    SSL_CTX_free(ctx);
    tls_rig_free(&wrong);
}

static void test_reload(void **state)
{
    kh_tls_server *server = good_server(), *same = good_server(), *renewed = NULL, *revoking = NULL;
    SSL_CTX *ctx = client_context(&edge);
    tls_rig_party agent2;
    char crl[128];
    ends both;

    (void)state;
    tls_rig_issue(&rig, &rig.ca, "agent2", "DNS:agent.example", -60, 3600, &agent2);
    assert_int_equal(make_server(&agent2, rig.ca.certificate_file, NULL, &renewed, NULL), KH_OK);
    tls_rig_crl(&rig, &rig.ca, &edge, 3600, crl);
    assert_int_equal(make_server(&agent, rig.ca.certificate_file, crl, &revoking, NULL), KH_OK);
    assert_true(kh_tls_server_same(server, same) && kh_tls_server_same_trust(server, same));
    assert_true(!kh_tls_server_same(server, renewed) && kh_tls_server_same_trust(server, renewed));
    assert_true(!kh_tls_server_same(server, revoking) && !kh_tls_server_same_trust(server, revoking));
    start(&both, server, ctx, NULL);
    assert_int_equal(meet(&both), KH_OK);
    assert_true(kh_tls_server_believes(server, both.server.ssl));
    assert_true(kh_tls_server_believes(renewed, both.server.ssl));
    assert_false(kh_tls_server_believes(revoking, both.server.ssl));
    kh_tls_server_free(server); /* the connection needs it no more */
    assert_int_equal(meet(&both), KH_OK);
    end(&both);
    kh_tls_server_free(same);
    kh_tls_server_free(renewed);
    kh_tls_server_free(revoking);
    SSL_CTX_free(ctx);
    tls_rig_free(&agent2);
}

static SSL_SESSION *the_session;

static int on_session(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(the_session);
    the_session = session;
    return 1;
}

/* A session is resumed by the server that issued it, and the names come with it; another server of the same parts takes it not. */
static void test_resumption(void **state)
{
    kh_tls_server *server = good_server(), *other = good_server();
    SSL_CTX *ctx = client_context(&edge);
    names all = {.count = 0};
    ends both;

    (void)state;
    SSL_CTX_sess_set_new_cb(ctx, on_session);
    start(&both, server, ctx, NULL);
    assert_int_equal(meet(&both), KH_OK);
    end(&both);
    assert_non_null(the_session);
    start(&both, server, ctx, the_session);
    assert_int_equal(meet(&both), KH_OK);
    assert_int_equal(SSL_session_reused(both.server.ssl), 1);
    assert_true(kh_tls_peer_names(both.server.ssl, take_name, &all));
    assert_string_equal(all.text[0], "dns:edge1.example");
    end(&both);
    start(&both, other, ctx, the_session);
    assert_int_equal(meet(&both), KH_OK);
    assert_int_equal(SSL_session_reused(both.server.ssl), 0);
    end(&both);
    SSL_SESSION_free(the_session);
    the_session = NULL;
    kh_tls_server_free(server);
    kh_tls_server_free(other);
    SSL_CTX_free(ctx);
}

static long skipped_s; /* how far this process's clock is ahead */

/* In place of the C library's, also for OpenSSL. */
time_t time(time_t *to)
{
    struct timespec now;
    time_t value = 0;

    clock_gettime(CLOCK_REALTIME, &now);
    value = now.tv_sec + skipped_s;
    if (to != NULL) {
        *to = value;
    }
    return value;
}

/* Resumption after resumption, each with the ticket of the one before: an hour after the full handshake comes another. */
static void test_resumption_ends(void **state)
{
    static const struct {
        long skipped_s;
        int resumed;
    } table[] = {{0, 0}, {1200, 1}, {2400, 1}, {3500, 1}, {3700, 0}, {4900, 1}};
    tls_rig_party own, caller;
    kh_tls_server *server = NULL;
    SSL_CTX *ctx = NULL;
    ends both;

    (void)state;
    tls_rig_issue(&rig, &rig.ca, "lasting agent", "DNS:agent.example", -60, 86400, &own);
    tls_rig_issue(&rig, &rig.ca, "lasting edge", "DNS:edge1.example", -60, 86400, &caller);
    assert_int_equal(make_server(&own, rig.ca.certificate_file, NULL, &server, NULL), KH_OK);
    ctx = client_context(&caller);
    SSL_CTX_sess_set_new_cb(ctx, on_session);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        skipped_s = table[i].skipped_s;
        start(&both, server, ctx, the_session);
        assert_int_equal(meet(&both), KH_OK);
        assert_int_equal(SSL_session_reused(both.server.ssl), table[i].resumed);
        end(&both);
    }
    skipped_s = 0;
    SSL_SESSION_free(the_session);
    the_session = NULL;
    kh_tls_server_free(server);
    SSL_CTX_free(ctx);
    tls_rig_free(&own);
    tls_rig_free(&caller);
}

/* More than fits: partly written, tried again from another place in memory, read in small pieces. */
static void test_bytes(void **state)
{
    enum { TOTAL = 1 << 20, PIECE = 1000 };
    kh_tls_server *server = good_server();
    SSL_CTX *ctx = client_context(&edge);
    uint8_t *out = malloc(TOTAL), room[PIECE];
    size_t sent = 0, got = 0, moved = 0;
    bool blocked = false, held = false;
    ends both;

    (void)state;
    assert_non_null(out);
    for (size_t i = 0; i < TOTAL; i++) {
        out[i] = (uint8_t)(i * 7 + i / 251);
    }
    start(&both, server, ctx, NULL);
    assert_int_equal(meet(&both), KH_OK);
    while (got < TOTAL) {
        uint8_t *moving = malloc(TOTAL - sent + 1);
        kh_result result = KH_OK;

        assert_non_null(moving);
        memcpy(moving, out + sent, TOTAL - sent);
        if (sent < TOTAL) {
            result = kh_tls_stream_write(&both.server, moving, TOTAL - sent, &moved);
            blocked = blocked || both.server.wants_write;
            assert_true(result == KH_OK || result == KH_AGAIN);
            sent += moved;
        }
        free(moving);
        for (int i = 0; i < 100; i++) {
            result = kh_tls_stream_read(&both.client, room, sizeof room, &moved);
            held = held || both.client.held;
            if (result == KH_AGAIN) {
                break;
            }
            assert_int_equal(result, KH_OK);
            assert_memory_equal(room, out + got, moved);
            got += moved;
        }
    }
    assert_true(blocked);
    assert_true(held);
    kh_tls_stream_end(&both.server, true);
    assert_int_equal(kh_tls_stream_read(&both.client, room, sizeof room, &moved), KH_E_CLOSED);
    end(&both);
    free(out);
    kh_tls_server_free(server);
    SSL_CTX_free(ctx);
}

/* Each of them takes a read of its own: a flood gets no more than its turns. */
static void test_key_updates(void **state)
{
    kh_tls_server *server = good_server();
    SSL_CTX *ctx = client_context(&edge);
    uint8_t room[16];
    size_t moved = 0;
    unsigned reads = 0;
    ends both;

    (void)state;
    start(&both, server, ctx, NULL);
    assert_int_equal(meet(&both), KH_OK);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(SSL_key_update(both.client.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
        assert_int_equal(SSL_do_handshake(both.client.ssl), 1);
    }
    assert_int_equal(kh_tls_stream_write(&both.client, (const uint8_t *)"x", 1, &moved), KH_OK);
    while (kh_tls_stream_read(&both.server, room, sizeof room, &moved) == KH_AGAIN) {
        assert_true(++reads <= 1000);
    }
    assert_true(reads >= 100);
    assert_int_equal(room[0], 'x');
    end(&both);
    kh_tls_server_free(server);
    SSL_CTX_free(ctx);
}

static void test_garbage(void **state)
{
    static const char *const table[] = {"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff with a length that cannot be",
                                        "\x15\x03\x01 an alert first", "keyhold without TLS"};
    kh_tls_server *server = good_server();

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char why[KH_TLS_WHY_MAX];
        uint8_t room[16];
        size_t moved = 0;
        kh_tls_stream stream;
        kh_result result = KH_OK;
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        assert_int_equal(kh_tls_stream_start(&stream, kh_tls_server_accept(server), fds[0]), KH_OK);
        assert_int_equal(kh_tls_stream_read(&stream, room, sizeof room, &moved), KH_AGAIN);
        assert_true(write(fds[1], table[i], strlen(table[i])) > 0);
        assert_int_equal(shutdown(fds[1], SHUT_WR), 0);
        result = kh_tls_stream_read(&stream, room, sizeof room, &moved);
        assert_true(result == KH_E_MALFORMED || result == KH_E_UNAUTHENTICATED || result == KH_E_CLOSED);
        kh_tls_stream_why(&stream, why);
        assert_true(why[0] != '\0');
        kh_tls_stream_end(&stream, true);
        close(fds[0]);
        close(fds[1]);
    }
    kh_tls_server_free(server);
}

static void write_text(const char *path, const char *text, mode_t mode)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static void test_files(void **state)
{
    char path[128], detail[256] = "";
    kh_client_tls tls = {.ca_file = rig.ca.certificate_file,
                         .certificate_file = edge.certificate_file,
                         .key_file = edge.key_file};
    kh_tls_file file;
    EVP_PKEY *key = NULL;
    SSL_CTX *ctx = NULL;
    FILE *out = NULL;

    (void)state;
    snprintf(path, sizeof path, "%s/file", rig.dir);
    assert_int_equal(kh_tls_file_read(path, false, &file), KH_E_IO);
    assert_int_equal(kh_tls_file_read(rig.dir, false, &file), KH_E_IO);
    write_text(path, "x", 0604);
    assert_int_equal(kh_tls_file_read(path, true, &file), KH_E_FORBIDDEN);
    assert_int_equal(kh_tls_file_read(path, false, &file), KH_OK);
    assert_int_equal(file.len, 1);
    assert_int_equal(kh_tls_key_parse(kh_tls_file_bytes(&file), NULL, &key), KH_E_MALFORMED);
    kh_tls_file_free(&file);
    assert_int_equal(chmod(path, 0640), 0);
    out = fopen(path, "w");
    assert_non_null(out);
    assert_int_equal(PEM_write_PKCS8PrivateKey(out, edge.key, EVP_aes_128_cbc(), "secret", 6, NULL, NULL), 1);
    assert_int_equal(fclose(out), 0);
    tls.key_file = path;
    assert_int_equal(kh_client_tls_context(&tls, &ctx, detail, sizeof detail), KH_E_PASSPHRASE);
    assert_non_null(strstr(detail, "encrypted"));
    tls.key_file = agent.key_file;
    assert_int_equal(kh_client_tls_context(&tls, &ctx, detail, sizeof detail), KH_E_MISMATCH);
    tls.key_file = NULL;
    assert_int_equal(kh_client_tls_context(&tls, &ctx, detail, sizeof detail), KH_E_INVALID);
    assert_non_null(strstr(detail, "not given"));
    tls.key_file = edge.key_file;
    write_text(path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0644);
    tls.ca_file = path;
    assert_int_equal(kh_client_tls_context(&tls, &ctx, detail, sizeof detail), KH_E_MALFORMED);
    assert_non_null(strstr(detail, path));
    tls.ca_file = edge.key_file;
    assert_int_equal(kh_client_tls_context(&tls, &ctx, detail, sizeof detail), KH_E_MALFORMED);
    assert_null(ctx);
    unlink(path);
}

static void test_parts(void **state)
{
    kh_tls_server *server = NULL;
    tls_rig_party mixed = agent;
    const char *part = NULL;

    (void)state;
    mixed.key = edge.key;
    assert_int_equal(make_server(&mixed, rig.ca.certificate_file, NULL, &server, &part), KH_E_MISMATCH);
    assert_string_equal(part, "certificate_key");
    assert_int_equal(make_server(&agent, agent.key_file, NULL, &server, &part), KH_E_MALFORMED);
    assert_string_equal(part, "client_ca");
    assert_int_equal(make_server(&agent, rig.ca.certificate_file, agent.certificate_file, &server, &part), KH_E_MALFORMED);
    assert_string_equal(part, "client_crl");
    memcpy(mixed.certificate_file, agent.key_file, sizeof mixed.certificate_file);
    assert_int_equal(make_server(&mixed, rig.ca.certificate_file, NULL, &server, &part), KH_E_MALFORMED);
    assert_string_equal(part, "certificate");
    assert_null(server);
}

static void test_prepare(void **state)
{
    SSL_CTX *ctx = client_context(&edge);
    SSL *ssl = SSL_new(ctx);

    (void)state;
    assert_int_equal(kh_client_tls_prepare(ssl, ""), KH_E_INVALID); /* it would switch the check off */
    assert_int_equal(kh_client_tls_prepare(ssl, "2001:db8::1"), KH_OK);
    assert_null(SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)); /* RFC 6066: no addresses */
    assert_int_equal(kh_client_tls_prepare(ssl, "agent.example"), KH_OK);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),  cmocka_unit_test(test_refused),     cmocka_unit_test(test_agent_refused),
        cmocka_unit_test(test_reload), cmocka_unit_test(test_resumption),  cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_files),  cmocka_unit_test(test_key_updates), cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_parts),  cmocka_unit_test(test_prepare),
        cmocka_unit_test(test_resumption_ends)};

    return cmocka_run_group_tests(tests, setup, teardown);
}

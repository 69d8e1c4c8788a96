/* SPDX-License-Identifier: Apache-2.0 */
/* What check-nginx finds in a configuration: certificates, inheritance, who speaks TLS, keyhold on, agents,
 * nginx as a client. */
#include "nginxsites.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static nginxconf *conf;
static nginxsite *sites;
static size_t count;

static kh_result read_text(void *ctx, const char *path, char **text, size_t *len)
{
    (void)path;
    *len = strlen(ctx);
    *text = malloc(*len + 1);
    memcpy(*text, ctx, *len);
    return KH_OK;
}

static int forget(void **state)
{
    (void)state;
    free(sites);
    nginxconf_free(conf);
    sites = NULL;
    conf = NULL;
    return 0;
}

static void find(const char *text)
{
    nginxconf_source source = {(void *)text, read_text, NULL};
    char error[256];

    (void)forget(NULL);
    assert_int_equal(nginxconf_parse(&source, "/n", "/", &conf, error, sizeof(error)), KH_OK);
    assert_int_equal(nginxsites_find(conf, &sites, &count), KH_OK);
}

static void test_own_certificates(void **state)
{
    (void)state;
    find("http {\n server {\n listen 443 ssl; server_name a b c; keyhold on;\n ssl_certificate x;\n "
         "ssl_certificate y;\n"
         " ssl_certificate_key k;\n } }");
    assert_int_equal(count, 2);
    assert_string_equal(sites[0].certificate, "x");
    assert_string_equal(sites[0].key, "k");
    assert_string_equal(sites[0].server_name, "a");
    assert_int_equal(sites[0].more_names, 2);
    assert_int_equal(sites[0].line, 4);
    assert_true(sites[0].keyhold);
    assert_string_equal(sites[1].certificate, "y");
    assert_null(sites[1].key);
}

static void test_inheritance(void **state)
{
    (void)state;
    find("http { ssl_certificate h; ssl_certificate_key hk; keyhold on; keyhold_agent unix:/h token=t;\n"
         "server { listen 443 ssl; }\n"
         "server { listen 443 ssl; ssl_certificate s; ssl_certificate_key sk; keyhold off; }\n"
         "server { listen 443 ssl; keyhold_agent unix:/1; keyhold_agent unix:/2 token=t2; }\n"
         "server { listen 80; server_name plain; }\n"
         "}");
    assert_int_equal(count, 3);
    assert_string_equal(sites[0].certificate, "h");
    assert_string_equal(sites[0].key, "hk");
    assert_int_equal(sites[0].line, 1);
    assert_true(sites[0].keyhold);
    assert_string_equal(sites[0].agents->argv[1], "unix:/h");
    assert_string_equal(nginxsites_parameter(sites[0].agents, "token"), "t");
    assert_null(nginxsites_parameter(sites[0].agents, "to"));
    assert_null(nginxsites_next_agent(sites[0].agents));
    assert_string_equal(sites[1].certificate, "s");
    assert_string_equal(sites[1].key, "sk");
    assert_false(sites[1].keyhold);
    assert_string_equal(sites[2].agents->argv[1], "unix:/1");
    assert_string_equal(nginxsites_next_agent(sites[2].agents)->argv[1], "unix:/2");
    assert_string_equal(sites[2].server_name, "");
}

static void test_who_speaks_tls(void **state)
{
    (void)state;
    /* The second server listens without "ssl" at an address where another one speaks TLS: nginx then does so
     * for both. */
    find("http { ssl_certificate h; server { listen 1.2.3.4:443 ssl; } server { listen 1.2.3.4:443; } server "
         "{ listen 80; }\n"
         "server { listen 443 quic; } server { ssl on; listen 444; } server { } }");
    assert_int_equal(count, 4);
    /* A certificate of the server's own counts anyway: somebody meant it. */
    find("http { server { listen 80; ssl_certificate x; } }");
    assert_int_equal(count, 1);
    find("stream { server { listen 1 ssl; ssl_certificate x; } } mail { server { listen 2 ssl; "
         "ssl_certificate y; } }");
    assert_int_equal(count, 2);
    find("server { listen 443 ssl; ssl_certificate x; } events { server { ssl_certificate x; } }");
    assert_int_equal(count, 0);
    find("http { upstream u { server 1.2.3.4; } } http;");
    assert_int_equal(count, 0);
    find("");
    assert_int_equal(count, 0);
}

static void test_odd_words(void **state)
{
    (void)state;
    find("http { server { listen; server_name; ssl_certificate; ssl_certificate_key; keyhold; keyhold_agent; "
         "} }");
    assert_int_equal(count, 1);
    assert_string_equal(sites[0].certificate, "");
    assert_null(sites[0].key);
    assert_false(sites[0].keyhold);
    find("http { server { ssl_certificate $ssl_server_name.crt; keyhold ON; } }");
    assert_true(nginxconf_has_variable(sites[0].certificate));
    assert_true(sites[0].keyhold);
}

static void test_clients(void **state)
{
    (void)state;
    find("http { keyhold_agent unix:/h; proxy_ssl_certificate all; proxy_ssl_certificate_key allkey;\n"
         "server { listen 80; server_name front;\n"
         "location /a { proxy_ssl_certificate a; if ($x) { grpc_ssl_certificate g; } }\n"
         "location /b { proxy_ssl_certificate_key b; uwsgi_ssl_certificate u; uwsgi_ssl_certificate_key uk; }\n"
         "location /c { proxy_ssl_certificate \"\"; } location /d { proxy_pass https://d; } } }\n"
         "stream { server { listen 1 ssl; ssl_certificate s; keyhold on; proxy_ssl_certificate p; } }");
    assert_int_equal(count, 7);
    assert_string_equal(sites[0].directive, "proxy_ssl_certificate");
    assert_string_equal(sites[0].certificate, "all");
    assert_string_equal(sites[0].key, "allkey");
    assert_string_equal(sites[0].server_name, "");
    assert_true(sites[0].client);
    assert_string_equal(sites[1].certificate, "a");
    assert_string_equal(sites[1].key, "allkey");
    assert_string_equal(sites[1].server_name, "front");
    assert_int_equal(sites[1].line, 3);
    assert_string_equal(sites[2].directive, "grpc_ssl_certificate");
    assert_null(sites[2].key);
    assert_string_equal(sites[3].certificate, "all"); /* with another key */
    assert_string_equal(sites[3].key, "b");
    assert_string_equal(sites[4].certificate, "u");
    assert_string_equal(sites[4].key, "uk");
    /* The settings are nginx's: stream's servers ask http's agent. */
    assert_string_equal(sites[5].certificate, "s");
    assert_string_equal(sites[5].directive, "ssl_certificate");
    assert_true(sites[5].keyhold);
    assert_false(sites[5].client);
    assert_string_equal(sites[5].agents->argv[1], "unix:/h");
    assert_string_equal(sites[6].certificate, "p");
    assert_string_equal(sites[6].agents->argv[1], "unix:/h");
    assert_false(sites[6].keyhold);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_certificates),
        cmocka_unit_test(test_inheritance),
        cmocka_unit_test(test_who_speaks_tls),
        cmocka_unit_test(test_odd_words),
        cmocka_unit_test(test_clients),
    };

    return cmocka_run_group_tests(tests, NULL, forget);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration file: what is accepted becomes the right values, what is not is refused at its line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "config.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TLS " certificate = \"a.crt\" certificate_key = \"a.key\" client_ca = \"ca.crt\" "
#define BASE "store = \"store/keys.db\"\nkek_file = \"kek\"\nlisten \"unix:agent.sock\" {}\n"

static kh_result parse(const char *text, kh_config **config, char *error)
{
    return kh_config_parse(text, strlen(text), "/etc/keyhold/keyhold.conf", config, error);
}

static void test_defaults(void **state)
{
    char error[KH_CONFIG_ERROR_MAX];
    kh_config *config = NULL;

    (void)state;
    assert_int_equal(parse(BASE, &config, error), KH_OK);
    assert_string_equal(config->store, "/etc/keyhold/store/keys.db");
    assert_string_equal(config->kek_file, "/etc/keyhold/kek");
    assert_null(config->kek_passphrase_file);
    assert_null(config->admin_socket);
    assert_null(config->front_user);
    assert_true(config->kernels);
    assert_int_equal(config->log_level, KH_LOG_INFO);
    assert_int_equal(config->log_format, KH_FORMAT_TEXT);
#define KH_X(field, initial, least, most, what) assert_int_equal(config->field, initial);
    KH_CONFIG_NUMBERS(KH_X)
#undef KH_X
    assert_int_equal(config->listener_count, 1);
    assert_string_equal(config->listeners[0].path, "/etc/keyhold/agent.sock");
    assert_string_equal(config->listeners[0].address, "unix:/etc/keyhold/agent.sock");
    assert_int_equal(config->listeners[0].mode, 0666);
    assert_int_equal(config->identity_count, 0);
    assert_string_equal(config->text, BASE);
    kh_config_free(config);
}

static void test_everything(void **state)
{
    static const char text[] =
        "# a comment\n"
        "store = '/var/lib/keyhold/keys.db' // another\n"
        "kek_passphrase_file = \"credential:passphrase\"\n"
        "admin_socket = \"admin.sock\"\n"
        "front_user = \"33:33\"  keeper_user = \"nobody\"\n"
        "workers = 4 kernels = \"openssl\" batch_window_us = 50 cache_keys = 7\n"
        "log_level = \"debug\" log_format = \"json\"\n"
        "listen \"unix:/run/a.sock\" { mode = 0660 owner = \"1:2\" group = \"3\" }\n"
        "listen \"unix:b.sock\" {}\n"
        "identity \"edge\" {\n"
        "    token = \"edge.token\"\n"
        "    allow { keys = {\"site-*\", \"www\"}  operations = {\"sign\", \"public-key\"} }\n"
        "    allow { keys = {\"kx\"} operations = {\"tls-rsa-decrypt\"} }\n"
        "    queue_max = 10 weight = 3 max_connections = 5\n"
        "}\n"
        "identity \"php\" { uid = 33 }\n"
        "metrics \"unix:m.sock\" { mode = 0600 group = \"4\" }\n"
        "metrics \"tcp:127.1.2.3:9464\" {}\n"
        "metrics \"tcp:[::1]:1\" {}\n"
        "metrics \"tcp:[::]:65535\" { public = true }\n";
    char error[KH_CONFIG_ERROR_MAX];
    kh_config *config = NULL;
    kh_user user = {0, 0};

    (void)state;
    assert_int_equal(parse(text, &config, error), KH_OK);
    assert_string_equal(config->kek_passphrase_file, "credential:passphrase");
    assert_string_equal(config->admin_socket, "/etc/keyhold/admin.sock");
    assert_int_equal(kh_config_user(config->front_user, &user), KH_OK);
    assert_int_equal(user.uid, 33);
    assert_int_equal(config->workers, 4);
    assert_false(config->kernels);
    assert_int_equal(config->log_format, KH_FORMAT_JSON);
    assert_string_equal(config->listeners[0].path, "/run/a.sock");
    assert_int_equal(config->listeners[0].mode, 0660);
    assert_string_equal(config->listeners[0].owner, "1:2");
    assert_string_equal(config->identities[0].token, "/etc/keyhold/edge.token");
    assert_int_equal(config->identities[0].allow_count, 2);
    assert_string_equal(config->identities[0].allows[0].keys[1], "www");
    assert_int_equal(config->identities[0].allows[0].operations, 1u << KH_OP_SIGN | 1u << KH_OP_PUBLIC_KEY);
    assert_int_equal(config->identities[0].queue_max, 10);
    assert_int_equal(config->identities[0].weight, 3);
    assert_int_equal(config->identities[1].uid, 33);
    assert_null(config->identities[1].token);
    assert_int_equal(config->identities[0].max_connections, 5);
    assert_int_equal(config->identities[1].max_connections, 0);
    assert_int_equal(config->metrics_count, 4);
    assert_string_equal(config->metrics[0].path, "/etc/keyhold/m.sock");
    assert_string_equal(config->metrics[0].address, "unix:m.sock");
    assert_int_equal(config->metrics[0].mode, 0600);
    assert_string_equal(config->metrics[0].group, "4");
    assert_null(config->metrics[1].path);
    assert_int_equal(config->metrics[1].tcp.in.sin_family, AF_INET);
    assert_int_equal(ntohl(config->metrics[1].tcp.in.sin_addr.s_addr), 0x7f010203);
    assert_int_equal(ntohs(config->metrics[1].tcp.in.sin_port), 9464);
    assert_int_equal(config->metrics[2].tcp.in6.sin6_family, AF_INET6);
    assert_true(config->metrics[3].is_public && !config->metrics[2].is_public);
    kh_config_free(config);
}

/* TCP listeners, and who is known by which name. */
static void test_tcp(void **state)
{
    static const char text[] =
        BASE "listen \"tcp:0.0.0.0:7443\" {" TLS " client_crl = \"/crl\" administration = true }\n"
        "listen \"tcp:[2001:DB8:0:0::7]:7443\" {" TLS "}\n"
        "identity \"a\" { san = {\"dns:Edge1.Example\", \"ip:2001:db8::0:1\"} }\n"
        "identity \"b\" { token = \"b.token\" san = {\"uri:spiffe://example/B\"} }\n"
        "identity \"c\" { uid = 7 san = {\"email:Ops@Example.org\"} }\n";
    char error[KH_CONFIG_ERROR_MAX];
    kh_config *config = NULL;

    (void)state;
    assert_int_equal(parse(text, &config, error), KH_OK);
    assert_int_equal(config->listener_count, 3);
    assert_string_equal(config->listeners[1].address, "tcp:0.0.0.0:7443");
    assert_null(config->listeners[1].path);
    assert_int_equal(config->listeners[1].tcp.in.sin_family, AF_INET);
    assert_int_equal(ntohs(config->listeners[1].tcp.in.sin_port), 7443);
    assert_string_equal(config->listeners[1].certificate, "/etc/keyhold/a.crt");
    assert_string_equal(config->listeners[1].certificate_key, "/etc/keyhold/a.key");
    assert_string_equal(config->listeners[1].client_ca, "/etc/keyhold/ca.crt");
    assert_string_equal(config->listeners[1].client_crl, "/crl");
    assert_true(config->listeners[1].administration);
    assert_string_equal(config->listeners[2].address, "tcp:[2001:db8::7]:7443");
    assert_int_equal(config->listeners[2].tcp.any.sa_family, AF_INET6);
    assert_null(config->listeners[2].client_crl);
    assert_false(config->listeners[2].administration);
    assert_int_equal(config->san_count, 4);
    assert_ptr_equal(kh_config_find_san(config, "dns:edge1.example"), &config->identities[0]);
    assert_ptr_equal(kh_config_find_san(config, "ip:2001:db8::1"), &config->identities[0]);
    assert_ptr_equal(kh_config_find_san(config, "uri:spiffe://example/B"), &config->identities[1]);
    assert_ptr_equal(kh_config_find_san(config, "email:Ops@example.org"), &config->identities[2]);
    assert_null(kh_config_find_san(config, "uri:spiffe://example/b"));
    assert_null(kh_config_find_san(config, "dns:edge1.example.org"));
    assert_null(kh_config_find_san(config, ""));
    kh_config_free(config);
}

/* What is wrong, and how the message begins and what it contains. BASE is lines 1 to 3. */
static void test_mistakes(void **state)
{
    static const struct {
        const char *text, *where, *what;
    } table[] = {
        {BASE "wat = 3\n", ":4: ", "wat"},
        {BASE "# one\n\n  # two \"quoted\n// three\nwat = 3\n", ":8: ", "wat"},
        {BASE "/* four\n five */ workers /* six */ = 1\nwat = 3\n", ":6: ", "wat"},
        {BASE "admin_socket = \"a#b//c/*d\\\" '\" # and\nfront_user = 'x # \" y'\nwat = 3\n", ":6: ", "wat"},
        {BASE "/* without end\nwat = 3\n", ": ", "ends inside a comment"},
        {BASE "admin_socket = a//b\nwat = 3\n", ":5: ", "wat"},
        {BASE "\n\nworkers = 257\n", ":6: ", "out of range: 0 to 256"},
        {BASE "workers = 1\nworkers = 1\n", ":5: ", "twice"},
        {BASE "store = \"other\"\n", ":4: ", "twice"},
        {BASE "kernels = \"auto\" kernels = \"openssl\"\n", ":4: ", "twice"},
        {BASE "identity \"a\" { uid = 3\n uid = 4 }\n", ":5: ", "twice"},
        {BASE "workers = -1\n", ":4: ", "out of range"},
        {BASE "workers = many\n", ":4: ", "integer"},
        {BASE "workers = 99999999999999999999\n", ":4: ", "range"},
        {BASE "frame_max = 20479\n", ":4: ", "out of range"},
        {BASE "kernels = \"aut\"\n", ":4: ", "auto openssl"},
        {BASE "kernels = \"\"\n", ":4: ", "auto openssl"},
        {BASE "log_level = \"loud\"\n", ":4: ", "error warn notice info debug"},
        {BASE "front_user = \"\"\n", ":4: ", "empty"},
        {BASE "listen \"udp:443\" {}\n", ":4: ", "unix:PATH"},
        {BASE "listen \"tcp:\" {}\n", ":4: ", "tcp:ADDRESS:PORT"},
        {BASE "listen \"tcp:443\" {" TLS "}\n", ":4: ", "numeric address"},
        {BASE "listen \"tcp:localhost:443\" {" TLS "}\n", ":4: ", "numeric address"},
        {BASE "listen \"tcp:::1:443\" {" TLS "}\n", ":4: ", "numeric address"},
        {BASE "listen \"tcp:127.0.0.1:0\" {" TLS "}\n", ":4: ", "numeric address"},
        {BASE "listen \"tcp:127.0.0.1:65536\" {" TLS "}\n", ":4: ", "numeric address"},
        {BASE "listen \"tcp:127.0.0.1: 7\" {" TLS "}\n", ":4: ", "numeric address"},
        {BASE "listen \"tcp:1.2.3.4:5\" {}\n", ":4: ", "`certificate` is missing"},
        {BASE "listen \"tcp:1.2.3.4:5\" { certificate = \"a\" certificate_key = \"b\" }\n", ":4: ",
         "`client_ca` is missing"},
        {BASE "listen \"tcp:1.2.3.4:5\" {" TLS " mode = 0600 }\n", ":4: ", "`mode` has no meaning"},
        {BASE "listen \"tcp:1.2.3.4:5\" {" TLS " owner = \"x\" }\n", ":4: ", "`owner` has no meaning"},
        {BASE "listen \"unix:x\" { certificate = \"a\" }\n", ":4: ", "`certificate` has no meaning"},
        {BASE "listen \"unix:x\" { administration = true }\n", ":4: ", "`administration` has no meaning"},
        {BASE "listen \"tcp:1.2.3.4:5\" {" TLS " client_crl = \"\" }\n", ":4: ", "empty"},
        {BASE "listen \"tcp:1.2.3.4:5\" {" TLS "}\nlisten \"tcp:1.2.3.4:05\" {" TLS "}\n", ":5: ", "declared twice"},
        {BASE "listen \"tcp:[::1]:5\" {" TLS "}\nlisten \"tcp:[0::1]:5\" {" TLS "}\n", ":5: ", "declared twice"},
        {BASE "identity \"a\" { san = {\"edge1\"} }\n", ":4: ", "is none of dns:"},
        {BASE "identity \"a\" {\n san = {\"dns:a\",\n \"dns:*.b\"} }\n", ":6: ", "without wildcards"},
        {BASE "identity \"a\" { san = {} }\n", ":4: ", "needs `token`, `uid` or `san`"},
        {BASE "identity \"a\" { san = {\"dns:x\"} }\nidentity \"b\" { san = {\"uri:u:v\", \"dns:X\"} }\n", ":5: ",
         "name of another identity, too: san dns:x"},
        {BASE "identity \"a\" { san = {\"dns:x\", \"dns:X\"} }\n", ":4: ", "is there twice: san dns:x"},
        {BASE "listen \"unix:\" {}\n", ":4: ", "unix:PATH"},
        {BASE "listen \"unix:x\" { mode = 01777 }\n", ":4: ", "out of range"},
        {BASE "listen \"unix:x\" { mode = 666 }\n", ":4: ", "in octal"},
        {BASE "\"open\nend\" = 1\n", ":", "open"},
        {BASE "listen \"unix:./agent.sock\" {}\nlisten \"unix:/etc/keyhold/agent.sock\" {}\n",
         ":5: ", "declared twice"},
        {BASE "identity \"a b\" { uid = 3 }\n", ":4: ", "a name has"},
        {BASE "identity \"a\" { uid = 3 max_connections = 0 }\n", ":4: ", "out of range"},
        {BASE "metrics \"http://x\" {}\n", ":4: ", "tcp:ADDRESS:PORT"},
        {BASE "metrics \"tcp:128.0.0.1:1\" {}\n", ":4: ", "public = true"},
        {BASE "metrics \"tcp:[::ffff:10.0.0.1]:1\" {}\n", ":4: ", "public = true"},
        {BASE "metrics \"tcp:127.0.0.1:+1\" {}\n", ":4: ", "numeric"},
        {BASE "metrics \"tcp:[127.0.0.1]:1\" {}\n", ":4: ", "numeric"},
        {BASE "metrics \"unix:agent.sock\" {}\n", ":4: ", "something else"},
        {BASE "metrics \"unix:a\" {}\nmetrics \"unix:./a\" {}\nmetrics \"unix:/etc/keyhold/a\" {}\n", ":6: ",
         "something else"},
        {BASE "identity \"root\" { uid = 3 }\n", ":4: ", "operator"},
        {BASE "identity \"a\" { uid = 0 }\n", ":4: ", "operator"},
        {BASE "identity \"a\" { uid = 4294967295 }\n", ":4: ", "out of range"},
        {BASE "identity \"a\" { }\n", ":4: ", "needs `token`, `uid` or `san`"},
        {BASE "identity \"a\" {\n token = \"t\"\n uid = 3\n}\n", ":7: ", "cannot have both"},
        {BASE "identity \"a\" { uid = 3 }\nidentity \"b\" { uid = 3 }\n", ":5: ", "uid of another"},
        {BASE "identity \"a\" { uid = 3 }\nidentity \"a\" { uid = 4 }\n", ":5: ", "a"},
        {BASE "identity \"a\" { uid = 3 weight = 0 }\n", ":4: ", "out of range"},
        {BASE "identity \"a\" { uid = 3\n allow { keys = {\"x\"} operations = {\"signn\"} } }\n",
         ":5: ", "signn"},
        {BASE "identity \"a\" { uid = 3\n allow { keys = {\"x\"} operations = {\"ping\"} } }\n",
         ":5: ", "ping"},
        {BASE "identity \"a\" { uid = 3\n allow { keys = {\"x y\"} operations = {\"sign\"} } }\n",
         ":5: ", "x y"},
        {BASE "identity \"a\" { uid = 3\n allow { keys = {} operations = {\"sign\"} } }\n", ":5: ", "both"},
        {BASE "identity \"a\" { uid = 3\n allow { keys = {\"x\"} } }\n", ":5: ", "both"},
        {BASE "identity \"a\" { uid = 3\n", ": ", "ends inside"},
        {BASE "store = \"x\nand so on", ": ", "ends inside"},
        {"kek_file = \"kek\"\nlisten \"unix:a\" {}\n", ": ", "store"},
        {"store = \"s\"\nlisten \"unix:a\" {}\n", ": ", "kek_file"},
        {BASE "workers = 1\n\"", ": ", "ends inside"},
        {BASE "# ${one}\nadmin_socket = '${two}'\n/*\n*/ front_user = \"a\\\nb${three}\"\n",
         ":8: ", "not expanded"},
        {BASE "listen unix:${RUN}/b {}\n", ":4: ", "not expanded"},
        {BASE "kek_passphrase_file = \"-\"\n", ": ", "exactly one of"},
        {"store = \"s\"\nkek_file = \"-\"\nlisten \"unix:a\" {}\n", ": ", "passphrase"},
        {"store = \"s\"\nkek_file = \"k\"\n", ": ", "listen"},
        {"", ": ", "empty"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char error[KH_CONFIG_ERROR_MAX] = "", start[64];
        kh_config *config = (kh_config *)1;

        snprintf(start, sizeof start, "/etc/keyhold/keyhold.conf%s", table[i].where);
        assert_int_equal(parse(table[i].text, &config, error), KH_E_INVALID);
        assert_null(config);
        if (strncmp(error, start, strlen(start)) != 0 || strstr(error, table[i].what) == NULL) {
            fail_msg("case %zu: \"%s\" does not begin with \"%s\" and contain \"%s\"", i, error, start,
                     table[i].what);
        }
        assert_null(strchr(error, '\n')); /* one line of a log */
    }
}

#define TOKENS                                                                                               \
    "token \"a\" { module = \"/lib/p11.so\" label = \"ta\" pin_file = \"a.pin\" }\n"                         \
    "token \"b\" { module = \"/lib/p11.so\" serial = \"77\" pin_file = \"env:PIN_B\" user = \"7:8\"\n"        \
    "  confine = strict sessions = 2 call_timeout_ms = 500\n"                                              \
    "  env = {\"SOFTHSM2_CONF=/etc/b.conf\", \"B=\"} paths = {\"/var/b\"} }\n"                                \
    "token \"c\" { uri = \"pkcs11:token=t%20c;serial=12?module-path=/lib/c.so&pin-source=file:/etc/c.pin\" }\n"

static void test_tokens(void **state)
{
    static const char text[] = BASE TOKENS "pool \"p\" { partitions = {\"c\", \"a\", \"b\"} }\n";
    char error[KH_CONFIG_ERROR_MAX];
    kh_config *config = NULL;
    const kh_config_token *token = NULL;

    (void)state;
    assert_int_equal(parse(text, &config, error), KH_OK);
    assert_int_equal(config->token_count, 3);
    token = &config->tokens[0];
    assert_string_equal(token->name, "a");
    assert_string_equal(token->module, "/lib/p11.so");
    assert_string_equal(token->label, "ta");
    assert_null(token->serial);
    assert_string_equal(token->pin_file, "/etc/keyhold/a.pin");
    assert_null(token->user);
    assert_false(token->confine_strict);
    assert_int_equal(token->sessions, 8);
    assert_int_equal(token->call_timeout_ms, 2000);
    assert_int_equal(token->env_count, 0);
    assert_int_equal(token->path_count, 0);
    token = &config->tokens[1];
    assert_null(token->label);
    assert_string_equal(token->serial, "77");
    assert_string_equal(token->pin_file, "env:PIN_B");
    assert_string_equal(token->user, "7:8");
    assert_true(token->confine_strict);
    assert_int_equal(token->sessions, 2);
    assert_int_equal(token->call_timeout_ms, 500);
    assert_int_equal(token->env_count, 2);
    assert_string_equal(token->env[0], "SOFTHSM2_CONF=/etc/b.conf");
    assert_string_equal(token->env[1], "B=");
    assert_string_equal(token->paths[0], "/var/b");
    token = &config->tokens[2];
    assert_string_equal(token->label, "t c");
    assert_string_equal(token->serial, "12");
    assert_string_equal(token->module, "/lib/c.so");
    assert_string_equal(token->pin_file, "/etc/c.pin");
    assert_int_equal(config->pool_count, 1);
    assert_string_equal(config->pools[0].name, "p");
    assert_int_equal(config->pools[0].partition_count, 3);
    assert_int_equal(config->pools[0].partitions[0], 2);
    assert_int_equal(config->pools[0].partitions[2], 1);
    assert_int_equal(config->pools[0].quorum, 2);
    assert_int_equal(kh_config_find_token(config, "b"), 1);
    assert_int_equal(kh_config_find_token(config, "p"), -1);
    kh_config_free(config);
}

static void test_token_mistakes(void **state)
{
    static const struct {
        const char *text, *error; /* the latter: a part of it */
    } cases[] = {
        {"token \"x\" { label = \"l\" }", ":4: needs `module`"},
        {"token \"x\" { module = \"/m\" }", ":4: needs `label`, `serial` or `uri`"},
        {"token \"x\" { module = \"m.so\" label = \"l\" }", ":4: not an absolute path: module m.so"},
        {"token \"x y\" { module = \"/m\" label = \"l\" }", "token \"x y\": a name has 1 to 31"},
        {"token \"x12345678901234567890123456789012\" { module = \"/m\" label = \"l\" }", "a name has 1 to 31"},
        {"token \"x\" { module = \"/m\" label = \"l\"\nsessions = 65 }", ":5: sessions = 65 is out of range: 1 to 64"},
        {"token \"x\" { module = \"/m\" label = \"l\" call_timeout_ms = 1 }", "call_timeout_ms = 1 is out of range"},
        {"token \"x\" { module = \"/m\" label = \"l\" confine = none }", "it is one of: vendor strict"},
        {"token \"x\" { module = \"/m\" label = \"l\" env = {\"A\"} }", "env: \"A\" is not NAME=VALUE"},
        {"token \"x\" { module = \"/m\" label = \"l\" env = {\"1A=b\"} }", "is not NAME=VALUE"},
        {"token \"x\" { module = \"/m\" label = \"l\" paths = {\"a\"} }", "paths: \"a\" is no absolute path"},
        {"token \"x\" { module = \"/m\" label = \"l\" pin_file = \"-\" }", "cannot be asked for on the terminal"},
        {"token \"x\" { module = \"/m\" label = \"l\" pin = \"1234\" }", "no such option 'pin'"},
        {"token \"x\" { module = \"/m\" label = \"123456789012345678901234567890123\" }", "longer than a token's label"},
        {"token \"x\" { module = \"/m\" serial = \"12345678901234567\" }", "longer than a serial number"},
        {"token \"x\" { module = \"/m\" uri = \"http://x\" }", "uri: not a pkcs11: URI"},
        {"token \"x\" { module = \"/m\" uri = \"pkcs11:token=%zz\" }", "uri: not a pkcs11: URI"},
        {"token \"x\" { module = \"/m\" uri = \"pkcs11:token=a;slot-idx=1\" }", "uri: not a pkcs11: URI"},
        {"token \"x\" { module = \"/m\" uri = \"pkcs11:\" }", "needs `label`, `serial` or `uri`"},
        {"token \"x\" { module = \"/m\" label = \"a\" uri = \"pkcs11:token=b\" }", "the uri says another one than the block: label"},
        {"token \"x\" { module = \"/m\" uri = \"pkcs11:token=b?pin-value=1234\" }", "use pin_file"},
        {"token \"x\" { module = \"/m\" label = \"l\" }\ntoken \"x\" { module = \"/n\" label = \"l\" }", "x"},
        {"token \"x\" { module = \"/m\" label = \"l\" }\ntoken \"y\" { module = \"/m\" label = \"l\" }", ":5: is the same token"},
        {TOKENS "pool \"p\" { partitions = {\"a\"} }", "needs `partitions`"},
        {TOKENS "pool \"p\" { }", "needs `partitions`"},
        {TOKENS "pool \"p\" { partitions = {\"a\", \"d\"} }", "there is no token d"},
        {TOKENS "pool \"p\" { partitions = {\"a\", \"a\"} }", "is there twice: token a"},
        {TOKENS "pool \"p\" { partitions = {\"a\", \"b\"} quorum = 3 }", "quorum: more than it has partitions"},
        {TOKENS "pool \"p\" { partitions = {\"a\", \"b\"} quorum = 0 }", "quorum = 0 is out of range"},
        {TOKENS "pool \"a\" { partitions = {\"a\", \"b\"} }", "a token has this name already"},
        {TOKENS "pool \"p\" { partitions = {\"a\", \"b\"} }\npool \"q\" { partitions = {\"c\", \"b\"} }", "belongs to another pool"},
    };
    char error[KH_CONFIG_ERROR_MAX], text[4096];
    kh_config *config = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, BASE "%s\n", cases[i].text);
        assert_int_equal(parse(text, &config, error), KH_E_INVALID);
        assert_null(config);
        if (strstr(error, cases[i].error) == NULL) {
            fail_msg("%s\n  gave: %s\n  not: %s", cases[i].text, error, cases[i].error);
        }
    }
}

/* Every prefix of a good file is refused or accepted, never more. */
static void test_truncated(void **state)
{
    static const char text[] = BASE
        "identity \"e\" { token = \"t\" allow { keys = {\"*\"} operations = {\"sign\"} } }\nworkers = 2\n";
    char error[KH_CONFIG_ERROR_MAX];

    (void)state;
    for (size_t len = 0; len <= sizeof text - 1; len++) {
        char *copy = malloc(len + 1); /* exact, for the sanitizer */
        kh_config *config = NULL;
        kh_result result = KH_OK;

        assert_non_null(copy);
        memcpy(copy, text, len);
        result = kh_config_parse(copy, len, "/x", &config, error);
        assert_true((result == KH_OK) == (config != NULL));
        assert_true(result == KH_OK || error[0] != '\0');
        kh_config_free(config);
        free(copy);
    }
}

static void test_binary_and_missing(void **state)
{
    char error[KH_CONFIG_ERROR_MAX];
    kh_config *config = NULL;

    (void)state;
    assert_int_equal(kh_config_parse("a\0b", 3, "/x", &config, error), KH_E_INVALID);
    assert_int_equal(kh_config_load("/nonexistent/keyhold.conf", &config, error), KH_E_IO);
    assert_non_null(strstr(error, "/nonexistent/keyhold.conf: No such file"));
    assert_int_equal(kh_config_load("/", &config, error), KH_E_IO);
    assert_non_null(strstr(error, "/: Is a directory"));
}

static void test_users(void **state)
{
    static const char *const bad[] = {
        "", ":", "5:", ":5", "5:6:7", "4294967295:1", "1:4294967295", "-1:2", "5 :6", "no-such-user"};
    kh_user user = {0, 0};
    gid_t gid = 0;

    (void)state;
    assert_int_equal(kh_config_user("64801:7", &user), KH_OK);
    assert_int_equal(user.uid, 64801);
    assert_int_equal(user.gid, 7);
    assert_int_equal(kh_config_user("root", &user), KH_OK);
    assert_int_equal(user.uid, 0);
    assert_int_equal(kh_config_group("12", &gid), KH_OK);
    assert_int_equal(gid, 12);
    assert_int_equal(kh_config_group("root", &gid), KH_OK);
    assert_int_equal(kh_config_group("no-such-group", &gid), KH_E_INVALID);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kh_config_user(bad[i], &user), KH_E_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),           cmocka_unit_test(test_everything),
        cmocka_unit_test(test_tcp),                cmocka_unit_test(test_mistakes),           cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_binary_and_missing), cmocka_unit_test(test_users),
        cmocka_unit_test(test_tokens),             cmocka_unit_test(test_token_mistakes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

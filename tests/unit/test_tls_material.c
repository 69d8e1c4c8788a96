/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates and keys on their way from files, through the channel, into a server. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "boot.h"
#include "tls_material.h"
#include "tls_rig.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static tls_rig rig;
static tls_rig_party agent;
static char path[] = "/etc/keyhold/keyhold.conf", address[] = "tcp:127.0.0.1:1";
static kh_config config = {.path = path};

static int setup(void **state)
{
    (void)state;
    tls_rig_make(&rig);
    tls_rig_issue(&rig, &rig.ca, "agent", "DNS:agent.example", -60, 86400, &agent);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tls_rig_free(&agent);
    tls_rig_end(&rig);
    return 0;
}

static kh_config_listener listener_of(tls_rig_party *own, char *crl)
{
    return (kh_config_listener){.address = address,
                                .line = 12,
                                .certificate = own->certificate_file,
                                .certificate_key = own->key_file,
                                .client_ca = rig.ca.certificate_file,
                                .client_crl = crl};
}

static void test_through_the_channel(void **state)
{
    kh_config_listener listener = listener_of(&agent, NULL);
    kh_channel_message *message = malloc(sizeof *message);
    char error[KH_CONFIG_ERROR_MAX] = "", crl[128];
    kh_material material, with_crl;
    kh_tls_server *first = NULL, *second = NULL;
    uint32_t index = 0;
    int ends[2];

    (void)state;
    assert_non_null(message);
    assert_int_equal(kh_channel_pair(ends), KH_OK);
    assert_int_equal(kh_material_load(&config, &listener, &material, error), KH_OK);
    assert_string_equal(material.warning, "");
    assert_true(fcntl(material.certificate_fd, F_GET_SEALS) & F_SEAL_WRITE);
    assert_int_equal(kh_material_send(&material, ends[0], 3), KH_OK);
    tls_rig_crl(&rig, &rig.ca, NULL, 3600, crl);
    listener.client_crl = crl;
    assert_int_equal(kh_material_load(&config, &listener, &with_crl, error), KH_OK);
    assert_int_equal(kh_material_send(&with_crl, ends[0], 4), KH_OK);

    assert_int_equal(kh_channel_receive(ends[1], true, message), KH_OK);
    assert_int_equal(message->type, KH_MSG_TLS);
    assert_int_equal(kh_material_receive(message, &index, &first), KH_OK);
    assert_int_equal(index, 3);
    for (uint32_t len = 0; len < message->len; len += len < 16 ? 1 : 29) { /* cut anywhere it is refused */
        kh_channel_message cut = *message;

        cut.len = len;
        assert_int_not_equal(kh_material_receive(&cut, &index, &second), KH_OK);
        assert_null(second);
    }
    message->fd_count--;
    assert_int_equal(kh_material_receive(message, &index, &second), KH_E_MALFORMED);
    message->fd_count++;
    kh_channel_close_fds(message);
    assert_int_equal(kh_channel_receive(ends[1], true, message), KH_OK);
    assert_int_equal(kh_material_receive(message, &index, &second), KH_OK);
    assert_int_equal(index, 4);
    assert_false(kh_tls_server_same(first, second));
    kh_channel_close_fds(message);
    kh_tls_server_free(first);
    kh_tls_server_free(second);
    kh_material_free(&material);
    kh_material_free(&with_crl);
    close(ends[0]);
    close(ends[1]);
    free(message);
}

static void expect(kh_config_listener listener, kh_result result, const char *option, const char *words)
{
    char error[KH_CONFIG_ERROR_MAX] = "", start[64];
    kh_material material;

    snprintf(start, sizeof start, "%s:12: %s /", path, option);
    assert_int_equal(kh_material_load(&config, &listener, &material, error), result);
    if (strncmp(error, start, strlen(start)) != 0 || strstr(error, words) == NULL) {
        fail_msg("\"%s\" does not begin with \"%s\" and say \"%s\"", error, start, words);
    }
    assert_int_equal(material.certificate_fd, -1);
    assert_null(material.key);
}

static void test_mistakes(void **state)
{
    kh_config_listener listener = listener_of(&agent, NULL);
    char missing[] = "/nonexistent/file", credential[] = "credential:agent.key";
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_material material;

    (void)state;
    listener.certificate = missing;
    expect(listener, KH_E_IO, "certificate", "No such file");
    listener = listener_of(&agent, missing);
    expect(listener, KH_E_IO, "client_crl", "No such file");
    listener = listener_of(&agent, NULL);
    listener.certificate_key = rig.ca.key_file;
    expect(listener, KH_E_MISMATCH, "certificate_key", "does not belong");
    listener.certificate_key = agent.certificate_file; /* everybody may read that one */
    expect(listener, KH_E_FORBIDDEN, "certificate_key", "everybody may read");
    listener = listener_of(&agent, agent.certificate_file);
    expect(listener, KH_E_MALFORMED, "client_crl", "nothing of that kind");
    listener = listener_of(&agent, NULL);
    listener.certificate_key = credential;
    unsetenv("CREDENTIALS_DIRECTORY");
    assert_int_equal(kh_material_load(&config, &listener, &material, error), KH_E_IO);
    setenv("CREDENTIALS_DIRECTORY", rig.dir, 1);
    assert_int_equal(kh_material_load(&config, &listener, &material, error), KH_OK);
    kh_material_free(&material);
    unsetenv("CREDENTIALS_DIRECTORY");
}

static void test_warnings(void **state)
{
    static const struct {
        long from, to;
        const char *words;
    } table[] = {{-7200, -3600, "it expired"}, {3600, 7200, "no caller accepts it before"}, {-86400, 3600, "it expires soon"}};
    char error[KH_CONFIG_ERROR_MAX] = "", crl[128];
    kh_config_listener listener;
    kh_material material;
    tls_rig_party own;

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tls_rig_issue(&rig, &rig.ca, "own", NULL, table[i].from, table[i].to, &own);
        assert_int_equal(kh_material_load(&config, (listener = listener_of(&own, NULL), &listener), &material, error), KH_OK);
        assert_non_null(strstr(material.warning, table[i].words));
        assert_non_null(strstr(material.warning, ":12: certificate "));
        kh_material_free(&material);
        tls_rig_free(&own);
    }
    tls_rig_crl(&rig, &rig.ca, NULL, -30, crl);
    listener = listener_of(&agent, crl);
    assert_int_equal(kh_material_load(&config, &listener, &material, error), KH_OK);
    assert_non_null(strstr(material.warning, "every caller is refused"));
    kh_material_free(&material);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_through_the_channel), cmocka_unit_test(test_mistakes),
                                       cmocka_unit_test(test_warnings)};

    return cmocka_run_group_tests(tests, setup, teardown);
}

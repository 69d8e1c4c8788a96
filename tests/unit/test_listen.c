/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets: stale files are replaced, living ones and other files never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "listen.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/keyhold-test.XXXXXX";
static char path[64];

static int setup(void **state)
{
    (void)state;
    if (mkdtemp(dir) == NULL) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/agent.sock", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static kh_result open_it(kh_socket *sock, char *error)
{
    return kh_socket_open(path, SOCK_STREAM, 0640, NULL, NULL, sock, error);
}

static void test_fresh(void **state)
{
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_socket sock;
    struct stat st;

    (void)state;
    assert_int_equal(open_it(&sock, error), KH_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    kh_socket_close(&sock);
    assert_int_equal(sock.fd, -1);
    assert_int_not_equal(stat(path, &st), 0); /* removed */
}

static void test_alive(void **state)
{
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_socket first, second;

    (void)state;
    assert_int_equal(open_it(&first, error), KH_OK);
    assert_int_equal(open_it(&second, error), KH_E_EXISTS);
    assert_non_null(strstr(error, path));
    assert_non_null(strstr(error, "listens there"));
    assert_int_equal(access(path, F_OK), 0); /* left alone */
    kh_socket_close(&first);
    assert_int_equal(kh_socket_open(path, SOCK_SEQPACKET, 0600, NULL, NULL, &first, error), KH_OK);
    assert_int_equal(open_it(&second, error), KH_E_EXISTS);
    kh_socket_close(&first);
}

static void test_stale(void **state)
{
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_socket sock;

    (void)state;
    assert_int_equal(open_it(&sock, error), KH_OK);
    close(sock.fd); /* as after kill -9 */
    sock.fd = -1;
    sock.ino = 0;
    kh_socket_close(&sock);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(open_it(&sock, error), KH_OK);
    kh_socket_close(&sock);
}

static void test_not_a_socket(void **state)
{
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_socket sock;
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(open_it(&sock, error), KH_E_INVALID);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(unlink(path), 0);
}

static void test_replaced(void **state)
{
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_socket first, second;

    (void)state;
    assert_int_equal(open_it(&first, error), KH_OK);
    assert_int_equal(unlink(path), 0); /* somebody else takes the name */
    assert_int_equal(open_it(&second, error), KH_OK);
    kh_socket_close(&first);
    assert_int_equal(access(path, F_OK), 0); /* theirs stays */
    kh_socket_close(&second);
}

static void test_bad(void **state)
{
    char error[KH_CONFIG_ERROR_MAX] = "", longer[300];
    kh_socket sock;

    (void)state;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(kh_socket_open(longer, SOCK_STREAM, 0600, NULL, NULL, &sock, error), KH_E_INVALID);
    assert_int_equal(kh_socket_open("/nonexistent/dir/a.sock", SOCK_STREAM, 0600, NULL, NULL, &sock, error),
                     KH_E_IO);
    assert_int_equal(kh_socket_open(path, SOCK_STREAM, 0600, "no-such-user", NULL, &sock, error),
                     KH_E_INVALID);
    assert_int_not_equal(access(path, F_OK), 0); /* nothing left behind */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fresh),    cmocka_unit_test(test_alive),
                                       cmocka_unit_test(test_stale),    cmocka_unit_test(test_not_a_socket),
                                       cmocka_unit_test(test_replaced), cmocka_unit_test(test_bad)};

    return cmocka_run_group_tests(tests, setup, teardown);
}

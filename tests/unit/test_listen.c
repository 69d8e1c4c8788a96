/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets: stale files are replaced, living ones and other files never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "listen.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
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

/* What the connections of a TCP listener inherit, which the front cannot set. */
static void test_tcp(void **state)
{
    static const struct {
        int level, name, value;
    } table[] = {{IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},  {IPPROTO_TCP, TCP_KEEPIDLE, 30},
                 {IPPROTO_TCP, TCP_KEEPINTVL, 10}, {IPPROTO_TCP, TCP_KEEPCNT, 3}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 30000}};
    char name[] = "tcp:127.0.0.1:0", error[KH_CONFIG_ERROR_MAX] = "";
    kh_config_listener listener = {.address = name};
    socklen_t len = sizeof listener.tcp.in;
    kh_socket sock, second;
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)state;
    listener.tcp.in.sin_family = AF_INET;
    listener.tcp.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, &listener.tcp.any, len), 0); /* a port that is free */
    assert_int_equal(getsockname(fd, &listener.tcp.any, &len), 0);
    close(fd);
    assert_int_equal(kh_socket_open_listener(&listener, &sock, error), KH_OK);
    assert_string_equal(sock.address, name);
    assert_int_equal(connect(client, &listener.tcp.any, len), 0);
    while ((fd = accept4(sock.fd, NULL, NULL, SOCK_CLOEXEC)) < 0) {
        assert_int_equal(errno, EAGAIN);
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int value = 0;

        len = sizeof value;
        assert_int_equal(getsockopt(fd, table[i].level, table[i].name, &value, &len), 0);
        assert_int_equal(value, table[i].value);
    }
    assert_int_equal(kh_socket_open_listener(&listener, &second, error), KH_E_EXISTS);
    assert_non_null(strstr(error, "in use"));
    assert_int_equal(second.fd, -1);
    close(fd);
    close(client);
    kh_socket_close(&sock);
    assert_int_equal(kh_socket_open_listener(&listener, &sock, error), KH_OK); /* at once, though one was just closed */
    kh_socket_close(&sock);
}

static kh_tcp_address passed; /* what systemd listens on for us; see pass_socket */

/* As systemd starts a service with a socket: descriptor 3. */
static void pass_socket(void)
{
    socklen_t len = sizeof passed.in;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char pid[16];

    passed.in.sin_family = AF_INET;
    passed.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, &passed.any, len) != 0 || listen(fd, 5) != 0 || getsockname(fd, &passed.any, &len) != 0 ||
        dup2(fd, 3) != 3) {
        abort();
    }
    if (fd != 3) {
        close(fd);
    }
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
}

/* It is taken by its address, and gets the options that one of ours gets. */
static void test_inherited(void **state)
{
    char name[] = "tcp:127.0.0.1:1", error[KH_CONFIG_ERROR_MAX] = "";
    kh_config_listener listener = {.address = name, .tcp = passed};
    kh_tcp_address bound;
    socklen_t len = sizeof bound;
    kh_socket sock;
    int value = 0;

    (void)state;
    assert_int_equal(kh_socket_open_listener(&listener, &sock, error), KH_OK); /* else: the address is in use */
    assert_int_equal(getsockname(sock.fd, &bound.any, &len), 0);
    assert_int_equal(bound.in.sin_port, passed.in.sin_port);
    len = sizeof value;
    assert_int_equal(getsockopt(sock.fd, IPPROTO_TCP, TCP_NODELAY, &value, &len), 0);
    assert_int_equal(value, 1);
    kh_socket_close(&sock);
    assert_int_equal(kh_socket_inherited("/nonexistent"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fresh),    cmocka_unit_test(test_alive),
                                       cmocka_unit_test(test_stale),    cmocka_unit_test(test_not_a_socket),
                                       cmocka_unit_test(test_replaced), cmocka_unit_test(test_bad),
                                       cmocka_unit_test(test_tcp),      cmocka_unit_test(test_inherited)};

    pass_socket();
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The admin and the control socket: malformed and odd messages, many at once, a keeper that is not there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper.h"
#include "keeper_rig.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static keeper_rig rig;

static int connect_raw(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    assert_true(strlen(rig.admin) < sizeof(address.sun_path));
    strcpy(address.sun_path, rig.admin);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void assert_alive(void)
{
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    const rig_answer *got = rig_admin(&rig, &record);

    assert_int_equal(got->result, KH_OK);
    assert_memory_equal(got->data, rig.import_public, 32);
}

static void test_malformed(void **state)
{
    uint8_t datagram[64] = {0}, answer[64];
    uint32_t result = 0;

    (void)state;
    for (size_t len = 1; len <= sizeof(datagram); len++) {
        int fd = connect_raw();

        assert_int_equal(send(fd, datagram, len, 0), len);
        assert_int_equal(recv(fd, answer, sizeof(answer), 0), 8);
        memcpy(&result, answer + 4, 4);
        assert_int_equal(result, len < 32 ? KH_E_MALFORMED : KH_E_VERSION);
        close(fd);
    }
    uint32_t layout = kh_ring_layout(),
             sizes[] = {1, 31, 33, KH_RECORD_DATA_MAX, KH_RECORD_DATA_MAX + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) { /* says another length than it has */
        int fd = connect_raw();

        memset(datagram, 0, sizeof(datagram));
        memcpy(datagram, &layout, 4);
        memcpy(datagram + 20, &sizes[i], 4);
        assert_int_equal(send(fd, datagram, 64, 0), 64);
        assert_int_equal(recv(fd, answer, sizeof(answer), 0), 8);
        memcpy(&result, answer + 4, 4);
        assert_int_equal(result, KH_E_MALFORMED);
        close(fd);
    }
    for (unsigned op = 0; op < 64; op++) {
        kh_record record = {.op = op};
        kh_result got = rig_admin(&rig, &record)->result;

        assert_true(got != KH_OK || op == KH_STORE_IMPORT_KEY || op == KH_STORE_CHECK ||
                    op == KH_STORE_BACKED_UP || op == KH_STORE_POLICY || op == KH_STORE_ORDERS || op == KH_STORE_KEK);
    }
    assert_alive();
}

/* One descriptor, asked for or not, is taken along and closed; two and more are refused. */
static void test_descriptors(void **state)
{
    const struct {
        uint32_t layout, op, rest[6];
    } request = {.layout = kh_ring_layout(), .op = KH_STORE_IMPORT_KEY};
    struct iovec iov = {(void *)(uintptr_t)&request, sizeof(request)};
    union {
        struct cmsghdr header;
        uint8_t space[CMSG_SPACE(8 * sizeof(int))];
    } control;
    int many[8];

    (void)state;
    assert_int_equal(sizeof(request), 32);
    for (size_t n = 1; n <= 8; n++) {
        struct msghdr header = {.msg_iov = &iov,
                                .msg_iovlen = 1,
                                .msg_control = &control,
                                .msg_controllen = CMSG_SPACE(n * sizeof(int))};
        uint32_t answer[16] = {0};
        int fd = connect_raw(), ends[2];

        memset(&control, 0, sizeof(control));
        assert_int_equal(pipe(ends), 0);
        for (size_t i = 0; i < n; i++) {
            many[i] = ends[1];
        }
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(&control.header), many, n * sizeof(int));
        assert_int_equal(sendmsg(fd, &header, 0), sizeof(request));
        assert_true(recv(fd, answer, sizeof(answer), 0) >= 8);
        assert_int_equal(answer[1], n == 1 ? KH_OK : KH_E_MALFORMED);
        close(ends[1]);
        assert_int_equal(read(ends[0], answer, 1), 0); /* the end of the pipe: none is left in the keeper */
        close(ends[0]);
        close(fd);
    }
    assert_alive();
}

/* Connections that never ask are given up for those that do. */
static void test_idle(void **state)
{
    int fds[40];

    (void)state;
    for (int i = 0; i < 40; i++) {
        fds[i] = connect_raw();
        if (i % 8 == 0) {
            assert_alive();
        }
    }
    assert_alive();
    for (int i = 0; i < 40; i++) {
        close(fds[i]);
    }
    assert_alive();
}

static void test_absent(void **state)
{
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    uint8_t out[64];
    size_t len = 1;
    char longer[200];

    (void)state;
    assert_int_equal(kh_admin_call("/nonexistent/admin", &record, out, sizeof(out), &len, 100),
                     KH_E_UNAVAILABLE);
    assert_int_equal(len, 0);
    memset(longer, 'x', sizeof(longer));
    longer[199] = '\0';
    assert_int_equal(kh_admin_call(longer, &record, out, sizeof(out), &len, 100), KH_E_UNAVAILABLE);
    record.data_len = KH_RECORD_DATA_MAX + 1;
    assert_int_equal(kh_admin_call(rig.admin, &record, out, sizeof(out), &len, 100), KH_E_TOO_LARGE);
    record.data_len = 0;
    assert_int_equal(kh_admin_call(rig.admin, &record, out, 16, &len, 1000),
                     KH_E_TOO_LARGE); /* out is too small */
    record.op = KH_STORE_CREATE;
    kh_key_info info = {.name = "slow", .type = KH_KEY_RSA, .bits = 4096, .usage = KH_USAGE_SIGN};
    record.data = (const uint8_t *)&info;
    record.data_len = sizeof(info);
    assert_int_equal(kh_admin_call(rig.admin, &record, out, sizeof(out), &len, 1), KH_E_DEADLINE);
    assert_alive(); /* while the key is being made */
}

/* Messages of another build, without descriptors, with too few or too many: the keeper goes on with the ring
 * that it has. */
static void test_control(void **state)
{
    uint32_t message[2] = {kh_ring_layout(), KH_CONTROL_RING};
    int bad[3], many[5];

    (void)state;
    assert_int_equal(send(rig.control, message, 8, 0), 8);
    message[0]++;
    assert_int_equal(send(rig.control, message, 8, 0), 8);
    assert_int_equal(send(rig.control, message, 3, 0), 3);
    for (int i = 0; i < 3; i++) {
        bad[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    }
    assert_int_equal(kh_keeper_send_ring(rig.control, bad), KH_OK);
    for (int i = 0; i < 5; i++) {
        many[i] = bad[0];
    }
    union {
        struct cmsghdr header;
        uint8_t space[CMSG_SPACE(sizeof(many))];
    } control = {0};
    message[0] = kh_ring_layout();
    struct iovec iov = {message, 8};
    for (size_t n = 1; n <= 5; n += 4) {
        struct msghdr header = {.msg_iov = &iov,
                                .msg_iovlen = 1,
                                .msg_control = &control,
                                .msg_controllen = CMSG_SPACE(n * sizeof(int))};

        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(&control.header), many, n * sizeof(int));
        assert_int_equal(sendmsg(rig.control, &header, 0), 8);
    }
    for (int i = 0; i < 3; i++) {
        close(bad[i]);
    }
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    assert_int_equal(rig_call(&rig, &record)->result, KH_OK);
    assert_int_equal(kh_keeper_send_stop(-1), KH_E_IO);
}

/* The supervisor is gone: the keeper ends in good order. */
static void test_end_of_file(void **state)
{
    (void)state;
    close(rig.control);
    rig.control = -1;
    assert_int_equal(rig_reap(&rig), KH_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_malformed), cmocka_unit_test(test_descriptors),
                                       cmocka_unit_test(test_idle),      cmocka_unit_test(test_absent),
                                       cmocka_unit_test(test_control),   cmocka_unit_test(test_end_of_file)};
    int failed = 0;

    kh_secure_openssl();
    rig_init(&rig, NULL);
    if (rig_start(&rig) != KH_OK) {
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rig_clean(&rig);
    return failed;
}

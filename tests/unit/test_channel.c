/* SPDX-License-Identifier: Apache-2.0 */
/* The channel between supervisor and children: messages whole, descriptors owned, ends noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "channel.h"
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void test_messages(void **state)
{
    static uint8_t payload[KH_CHANNEL_PAYLOAD_MAX + 1];
    kh_channel_message message;
    int ends[2];

    (void)state;
    memset(payload, 7, sizeof payload);
    assert_int_equal(kh_channel_pair(ends), KH_OK);
    assert_int_equal(kh_channel_receive(ends[1], false, &message), KH_AGAIN);
    assert_int_equal(kh_channel_send(ends[0], KH_MSG_COMMIT, NULL, 0, NULL, 0), KH_OK);
    assert_int_equal(kh_channel_send(ends[0], KH_MSG_TOKENS, payload, KH_CHANNEL_PAYLOAD_MAX, NULL, 0),
                     KH_OK);
    assert_int_equal(kh_channel_send(ends[0], KH_MSG_TOKENS, payload, KH_CHANNEL_PAYLOAD_MAX + 1, NULL, 0),
                     KH_E_TOO_LARGE);
    assert_int_equal(kh_channel_receive(ends[1], true, &message), KH_OK);
    assert_int_equal(message.type, KH_MSG_COMMIT);
    assert_int_equal(message.len, 0);
    assert_int_equal(kh_channel_receive(ends[1], true, &message), KH_OK);
    assert_int_equal(message.len, KH_CHANNEL_PAYLOAD_MAX);
    assert_memory_equal(message.payload, payload, KH_CHANNEL_PAYLOAD_MAX);
    assert_int_equal(send(ends[0], "ab", 2, 0), 2); /* too short for a type */
    assert_int_equal(kh_channel_receive(ends[1], true, &message), KH_E_MALFORMED);
    close(ends[0]);
    assert_int_equal(kh_channel_receive(ends[1], true, &message), KH_E_CLOSED);
    assert_int_equal(kh_channel_send(ends[1], KH_MSG_READY, NULL, 0, NULL, 0), KH_E_IO);
    close(ends[1]);
}

static void test_descriptors(void **state)
{
    kh_channel_message message;
    int ends[2], pipes[2], more[KH_CHANNEL_FDS_MAX + 1];
    char byte = 0;

    (void)state;
    assert_int_equal(kh_channel_pair(ends), KH_OK);
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(kh_channel_send(ends[0], KH_MSG_RING, "x", 1, pipes, 2), KH_OK);
    for (int i = 0; i <= KH_CHANNEL_FDS_MAX; i++) {
        more[i] = pipes[0];
    }
    assert_int_equal(kh_channel_send(ends[0], KH_MSG_RING, NULL, 0, more, KH_CHANNEL_FDS_MAX + 1),
                     KH_E_TOO_LARGE);
    close(pipes[1]);
    assert_int_equal(kh_channel_receive(ends[1], true, &message), KH_OK);
    assert_int_equal(message.fd_count, 2);
    assert_int_not_equal(fcntl(message.fds[0], F_GETFD) & FD_CLOEXEC, 0);
    assert_int_equal(write(message.fds[1], "y", 1), 1);
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
    kh_channel_close_fds(&message);
    assert_int_equal(message.fd_count, 0);
    assert_int_equal(read(pipes[0], &byte, 1), 0); /* the last writer is gone */
    close(pipes[0]);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_messages), cmocka_unit_test(test_descriptors)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

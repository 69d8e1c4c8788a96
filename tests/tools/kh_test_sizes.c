/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kh-test-sizes: what a parked handshake takes of a worker's heap in this build, one "NAME BYTES" a line. The operation and its
 * buffers are on the coroutine's stack, and so is the coroutine's own state.
 */
#include "ngx_keyhold_handshake.h"

#include "flights.h"

#include <stdio.h>

int main(void)
{
    /* a slot of the session's table, and its place in the heap of deadlines */
    printf("handshake %zu\nflight %zu\n", sizeof(ngx_keyhold_handshake_t), sizeof(kh_flight) + sizeof(uint32_t));
    return 0;
}

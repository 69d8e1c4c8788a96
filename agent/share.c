/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front's own time, shared out: in one turn of the loop each identity gets so much of it for its
 * requests, those that have not said who they are get as much all together (over TCP, where they make TLS
 * handshakes, apart from those on this machine), and accepting has a part of its own. What is left over waits
 * for the next turn, so however much one caller sends, a turn stays short and others are heard.
 */
#include "front.h"

#define IDENTITY_NS 100000 /* of one turn: a hundred requests */
#define STRANGERS_NS 50000
#define ACCEPTS_NS 25000 /* less than what is needed to hear those that were accepted */

static bool is_known(const kh_conn *conn)
{
    return conn->state == KH_CONN_READY && conn->identity != NULL;
}

static kh_share *share_of(const kh_conn *conn)
{
    return is_known(conn)           ? &conn->identity->share
           : conn->listener->is_tcp ? &conn->front->tcp_strangers
                                    : &conn->front->strangers;
}

/* A share begins anew with each turn. */
static kh_share *of_this_turn(const kh_front *front, kh_share *share)
{
    if (share->turn != front->turn) {
        share->turn = front->turn;
        share->spent_ns = 0;
    }
    return share;
}

bool kh_share_has_time(const kh_conn *conn)
{
    kh_share *share = of_this_turn(conn->front, share_of(conn));

    return share->spent_ns < (is_known(conn) ? IDENTITY_NS : STRANGERS_NS);
}

uint64_t kh_share_begin(kh_front *front)
{
    front->share_since_ns = kh_front_clock();
    return front->share_since_ns;
}

static void spend(kh_front *front, kh_share *share)
{
    uint64_t since_ns = front->share_since_ns;

    of_this_turn(front, share)->spent_ns += kh_share_begin(front) - since_ns;
}

void kh_share_spend(const kh_conn *conn)
{
    spend(conn->front, share_of(conn));
}

bool kh_share_spend_accept(kh_front *front)
{
    spend(front, &front->accepts);
    return front->accepts.spent_ns < ACCEPTS_NS;
}

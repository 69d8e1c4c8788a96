/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for connections. max_connections bounds all of them; an identity has a bound of its own, so that none
 * can take them all; and an eighth stays free of callers that are known, so that a new one can always come in
 * and say who it is, root (the operator) above all.
 */
#include "front.h"

#define RESERVED_PART 8 /* of max_connections: for callers that are not known yet, and for root */

static uint32_t most_of_all(const kh_front *front)
{
    return (uint32_t)front->config->max_connections;
}

static uint32_t most_of_identity(const kh_front *front, const kh_identity *identity)
{
    uint32_t all = most_of_all(front);

    if (identity->is_root) {
        return all;
    }
    if (identity->config != NULL && identity->config->max_connections > 0) {
        return identity->config->max_connections;
    }
    return all - all / 4;
}

/*
 * Who makes room for a caller: the oldest that has not said who it is, of the same user if there is one, so
 * that a user who floods the front shuts out nobody else.
 */
static kh_conn *find_victim(const kh_front *front, uid_t uid)
{
    kh_conn *oldest = NULL;

    for (kh_conn *conn = front->handshaking.first; conn != NULL; conn = conn->next) {
        if (conn->state == KH_CONN_CLOSED) {
            continue;
        }
        if (conn->transport->uid == uid) {
            return conn;
        }
        oldest = oldest != NULL ? oldest : conn;
    }
    return oldest;
}

bool kh_room_for_stranger(kh_front *front, uid_t uid)
{
    uint32_t suppressed = 0;
    kh_conn *victim = NULL;

    if (front->handshaking.count + front->ready.count < most_of_all(front)) {
        return true;
    }
    front->stats.refused_full++;
    if (kh_log_allowed(&front->log_full, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_WARN, "connections_full", KH_LN("max_connections", most_of_all(front)),
               KH_LN("silent", front->handshaking.count), KH_LN("peer_uid", uid),
               KH_LN("suppressed", suppressed));
    }
    victim = find_victim(front, uid);
    if (victim != NULL) {
        kh_conn_close(victim, "made room");
    }
    return victim != NULL;
}

bool kh_room_for_identity(kh_front *front, kh_identity *identity)
{
    uint32_t all = most_of_all(front), most = most_of_identity(front, identity), suppressed = 0;
    bool own_full = identity->connections >= most;
    bool all_full = !identity->is_root && front->ready.count >= all - all / RESERVED_PART;

    if (!own_full && !all_full) {
        return true;
    }
    front->stats.refused_identity += own_full;
    front->stats.refused_full += !own_full;
    if (kh_log_allowed(&identity->log_connections, kh_front_ms(front), &suppressed)) {
        kh_log(KH_LOG_WARN, "identity_connections_full", KH_LT("identity", identity->name),
               KH_LN("connections", identity->connections), KH_LN("most", most),
               KH_LT("bound", own_full ? "of the identity" : "max_connections"),
               KH_LN("suppressed", suppressed));
    }
    return false;
}

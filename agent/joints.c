/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What joins the children. A ring is shared by the front and one keeper, a link by the store's keeper and a token's: whenever
 * either end is new, so is what joins them. The front gets a ring when the keeper is ready to serve it.
 *
 * The store's keeper gets its links before its ring: so it knows of every token's keeper that may still act on what an older store's
 * keeper said before it can be asked to change anything.
 */
#include "channel.h"
#include "log.h"
#include "supervisor.h"
#include <string.h>
#include <unistd.h>

#define LOOKUP_SLOTS 80 /* besides the lanes' windows: lookups and store operations */
#define TOKEN_SLOTS 64  /* a token's ring besides its windows: operations that were given up */
#define SLOTS_MOST 4096

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

static void name_ring(const kh_child *child, kh_boot_ring *which)
{
    memset(which, 0, sizeof *which);
    memcpy(which->token, child->token, sizeof which->token);
}

/* ---- Rings */

static uint32_t slots_of(const kh_child *child)
{
    const kh_config_token *token = NULL;

    if (child->kind == KH_CHILD_KEEPER) {
        return (KH_LANE_COUNT - 1) * 2 * KH_BATCH_MAX * child->supervisor->workers + LOOKUP_SLOTS;
    }
    token = kh_token_block(child);
    return TOKEN_SLOTS + (token != NULL ? 16 * (uint32_t)token->sessions : 0);
}

static void new_ring(kh_child *keeper)
{
    kh_supervisor *supervisor = keeper->supervisor;
    uint32_t slots = slots_of(keeper);
    kh_result result = KH_OK;

    for (int i = 0; i < 3; i++) {
        close_fd(&keeper->ring[i]);
    }
    if (keeper->pid == 0 || supervisor->front.pid == 0) {
        return; /* whichever comes makes one */
    }
    result = kh_ring_create(slots < SLOTS_MOST ? slots : SLOTS_MOST, keeper->ring);
    if (result == KH_OK) {
        result = kh_keeper_send_ring(keeper->control_fd, keeper->ring);
    }
    if (result != KH_OK) {
        kh_log(KH_LOG_ERROR, "ring_failed", KH_LT("role", keeper->name), KH_LT("why", kh_result_name(result)),
               KH_LT("means", "nothing is signed there until front or keeper start again"));
    }
}

static void give_ring(kh_child *keeper)
{
    kh_supervisor *supervisor = keeper->supervisor;
    kh_boot_ring which;

    name_ring(keeper, &which);
    if (supervisor->front.ready && keeper->ready && keeper->ring[0] >= 0 &&
        kh_channel_send(supervisor->front.channel_fd, KH_MSG_RING, &which, sizeof which, keeper->ring, 3) != KH_OK) {
        kh_child_kill(&supervisor->front, "does not take its ring");
    }
}

/* ---- Links */

void kh_joints_send_places(kh_supervisor *supervisor)
{
    const kh_config *config = supervisor->settings.config;
    kh_keeper_places places = {0};

    if (supervisor->keeper.pid == 0 || config->token_count > KH_PLACES_TOKENS || config->pool_count > KH_PLACES_POOLS) {
        return;
    }
    for (size_t i = 0; i < config->token_count; i++) {
        strncpy(places.tokens[places.token_count++], config->tokens[i].name, KH_PLACE_MAX);
    }
    for (size_t i = 0; i < config->pool_count; i++) {
        kh_keeper_pool *pool = &places.pools[places.pool_count++];

        strncpy(pool->name, config->pools[i].name, KH_PLACE_MAX);
        pool->quorum = (uint32_t)config->pools[i].quorum;
        for (size_t j = 0; j < config->pools[i].partition_count; j++) {
            pool->partitions[pool->partition_count++] = (uint32_t)config->pools[i].partitions[j];
        }
    }
    if (kh_keeper_send_places(supervisor->keeper.control_fd, &places) != KH_OK) {
        kh_child_kill(&supervisor->keeper, "does not read its channel");
    }
}

/* First to the token's keeper, which drops what it knew, then to the store's, which counts on that. */
static void new_link(kh_child *token)
{
    kh_child *keeper = &token->supervisor->keeper;
    int fds[2] = {-1, -1};

    if (token->pid == 0 || keeper->pid == 0) {
        return;
    }
    if (kh_channel_pair(fds) != KH_OK || kh_keeper_send_link(token->control_fd, token->token, fds[0]) != KH_OK) {
        kh_child_kill(token, "does not take its link");
    } else if (kh_keeper_send_link(keeper->control_fd, token->token, fds[1]) != KH_OK) {
        kh_child_kill(keeper, "does not take a link");
    }
    close_fd(&fds[0]);
    close_fd(&fds[1]);
}

/* ---- When a child comes, is ready, and goes */

void kh_joints_make(kh_child *child)
{
    kh_supervisor *supervisor = child->supervisor;
    kh_child *other = NULL;

    if (child->kind == KH_CHILD_KEEPER) {
        kh_joints_send_places(supervisor);
    }
    for (size_t i = 2; child->kind != KH_CHILD_FRONT && (other = kh_children_at(supervisor, i)) != NULL; i++) {
        if (child->kind == KH_CHILD_KEEPER || other == child) {
            new_link(other);
        }
    }
    for (size_t i = 1; (other = kh_children_at(supervisor, i)) != NULL; i++) {
        if (child->kind == KH_CHILD_FRONT || other == child) {
            new_ring(other);
        }
    }
}

void kh_joints_give(kh_child *child)
{
    kh_child *keeper = NULL;

    for (size_t i = 1; (keeper = kh_children_at(child->supervisor, i)) != NULL; i++) {
        if (child->kind == KH_CHILD_FRONT || keeper == child) {
            give_ring(keeper);
        }
    }
}

void kh_joints_break(kh_child *child)
{
    kh_child *front = &child->supervisor->front;
    kh_boot_ring which;

    if (child->kind == KH_CHILD_FRONT) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        close_fd(&child->ring[i]);
    }
    name_ring(child, &which);
    if (front->pid != 0 &&
        kh_channel_send(front->channel_fd, KH_MSG_KEEPER_DOWN, &which, sizeof which, NULL, 0) != KH_OK) {
        kh_child_kill(front, "does not read its channel");
    }
}

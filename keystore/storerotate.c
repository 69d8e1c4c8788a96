/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rotation policies: of a name whose newest version is as old as its policy says, the keeper makes the next one, of the same type
 * and in the same place. It serves at once by its name; a certificate goes on to name the version that it was made for.
 */
#include "storelink.h"
#include "process.h"
#include "row.h"

#include <stdlib.h>
#include <string.h>

#define EVERY_S 60
#define AFTER_FAILURE_S 600
#define NAMES_PER_TURN 64
#define AT_A_TIME 4 /* versions that are being made: a token may take a minute for one */
#define DAY_S UINT64_C(86400)

/* A name whose policy failed: others go on. */
struct kh_rotate_pause {
    struct kh_rotate_pause *next;
    uint64_t until;
    char name[KH_NAME_MAX + 1];
};

static void pause_name(kh_links *links, const char *name)
{
    struct kh_rotate_pause *more = calloc(1, sizeof(*more));

    if (more == NULL) {
        links->rotate_at = links->rotate_clock + AFTER_FAILURE_S; /* then all of them */
        return;
    }
    memcpy(more->name, name, sizeof(more->name));
    more->until = links->rotate_clock + AFTER_FAILURE_S;
    more->next = links->rotate_pauses;
    links->rotate_pauses = more;
}

/* Ends pauses that are over. */
static bool is_paused(kh_links *links, const char *name)
{
    struct kh_rotate_pause **at = &links->rotate_pauses;
    bool found = false;

    while (*at != NULL) {
        struct kh_rotate_pause *one = *at;

        if (one->until <= links->rotate_clock) {
            *at = one->next;
            free(one);
        } else {
            found = found || strcmp(one->name, name) == 0;
            at = &one->next;
        }
    }
    return found;
}

void kh_rotate_soon(kh_links *links)
{
    struct kh_rotate_pause *one = NULL;

    links->rotate_at = 0;
    while ((one = links->rotate_pauses) != NULL) {
        links->rotate_pauses = one->next;
        free(one);
    }
}

static void on_rotated(kh_keeper *keeper, kh_op *op)
{
    const kh_keeper_config *config = keeper->config;
    kh_key_info info;

    if (kh_keeper_closed(keeper)) {
        return; /* perhaps on another thread */
    }
    keeper->links->rotating--;
    memcpy(&info, op->result == KH_OK ? op->long_out : op->record.data, sizeof(info));
    if (op->result == KH_OK) {
        kh_logf(config->log, config->ctx, KH_LOG_NOTICE,
                "keeper: %s/%u was made by the rotation policy of its name; it needs a certificate", info.name, info.version);
        return;
    }
    kh_logf(config->log, config->ctx, KH_LOG_ERROR,
            "keeper: the rotation policy of %s could not make a new version: %s; it is tried again in %d minutes", info.name,
            kh_result_text(op->result), AFTER_FAILURE_S / 60);
    pause_name(keeper->links, info.name);
}

_Static_assert(sizeof(kh_key_info) > KH_SIGNATURE_MAX, "an answer with it is in long_out");

/* false: it was not possible to begin. */
static bool rotate(kh_keeper *keeper, const kh_key_info *newest, uint64_t now)
{
    kh_key_info next = {.type = newest->type, .bits = newest->bits, .usage = newest->usage, .flags = KH_KEY_NEW_VERSION};
    kh_op *op = NULL;

    memcpy(next.name, newest->name, sizeof(next.name));
    if (newest->expires != 0) { /* it lives as long as the one before was to */
        next.expires = now + (newest->expires > newest->created ? newest->expires - newest->created : DAY_S);
    }
    op = kh_storework_own(KH_STORE_CREATE, &next, sizeof(next), on_rotated);
    if (op == NULL) {
        return false;
    }
    keeper->links->rotating++;
    kh_storework_start(keeper, op);
    return true;
}

static void look_at(kh_keeper *keeper, const char *name, uint64_t now)
{
    kh_name_policy policy;
    kh_key_info newest;

    if (kh_store_policy(keeper->store, name, &policy) != KH_OK || policy.rotate_days == 0 || name[0] == '\0' ||
        is_paused(keeper->links, name)) {
        return;
    }
    if (kh_store_newest(keeper->store, name, true, &newest) != KH_OK || newest.state != STATE_ENABLED) {
        return; /* disabled and deleted keys stay as they are */
    }
    if (newest.created + policy.rotate_days * DAY_S <= now && !rotate(keeper, &newest, now)) {
        keeper->links->rotate_at = now + EVERY_S;
    }
}

void kh_rotate_due(kh_keeper *keeper, uint64_t now)
{
    kh_links *links = keeper->links;
    char name[KH_NAME_MAX + 1];

    links->rotate_clock = now;
    if (now < links->rotate_at || links->rotating > 0 || links->stopping) {
        return;
    }
    memcpy(name, links->rotate_from, sizeof(name));
    for (unsigned i = 0; i < NAMES_PER_TURN && links->rotating < AT_A_TIME; i++) {
        if (kh_store_next_named(keeper->store, name) != KH_OK) {
            name[0] = '\0';
            links->rotate_at = now + EVERY_S;
            break;
        }
        look_at(keeper, name, now);
    }
    memcpy(links->rotate_from, name, sizeof(name));
}

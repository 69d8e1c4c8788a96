/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main thread's part of the links: it has a duplicate of each, receives what comes, and hands it to the store thread. So the
 * store thread sleeps at its desk alone.
 */
#include "storelink.h"
#include "process.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAITING_MAX 1024 /* questions of tokens' keepers at the store's desk */

/* What the store thread gets; begins with an operation, so that it fits its desk. */
typedef struct link_event {
    kh_op op;
    kh_link_event_kind kind;
    kh_control control;
    uint64_t life;
    kh_link_message message;
    uint8_t data[];
} link_event;

static void free_event(link_event *event)
{
    OPENSSL_cleanse(event->data, event->message.data_len);
    free(event);
}

static void run(kh_keeper *keeper, kh_op *op)
{
    link_event *event = (link_event *)op;

    kh_links_event(keeper, event->kind, &event->control, event->life, &event->message, event->data);
    free_event(event);
}

static link_event *new_event(kh_link_event_kind kind, size_t len)
{
    link_event *event = calloc(1, sizeof(*event) + len);

    if (event != NULL) {
        event->op.run = run;
        event->op.admin_fd = event->op.file_fd = -1;
        event->kind = kind;
    }
    return event;
}

/* false: the store thread has too much to do, or is stopping. */
static bool hand_over(kh_keeper *keeper, link_event *event, kh_desk_class class_, uint32_t limit)
{
    if (event != NULL && kh_desk_push(&keeper->store_desk, class_, &event->op, limit)) {
        return true;
    }
    if (event != NULL) {
        free_event(event);
    }
    return false;
}

void kh_link_ports_tick(kh_keeper *keeper)
{
    (void)hand_over(keeper, new_event(KH_LINK_EVENT_TICK, 0), KH_DESK_SLOW, WAITING_MAX);
}

void kh_link_ports_stop(kh_keeper *keeper)
{
    (void)hand_over(keeper, new_event(KH_LINK_EVENT_STOP, 0), KH_DESK_ADMIN, UINT32_MAX);
}

void kh_link_ports_places(kh_keeper *keeper, const kh_control *control)
{
    link_event *event = new_event(KH_LINK_EVENT_PLACES, 0);

    if (event != NULL) {
        event->control = *control;
    }
    (void)hand_over(keeper, event, KH_DESK_ADMIN, UINT32_MAX);
}

static void gone(kh_keeper *keeper, kh_link_ports *ports, size_t i)
{
    link_event *event = new_event(KH_LINK_EVENT_GONE, 0);

    if (event != NULL) {
        event->life = ports->port[i].life;
    }
    (void)hand_over(keeper, event, KH_DESK_ADMIN, UINT32_MAX);
    close(ports->port[i].fd);
    ports->port[i] = ports->port[--ports->count];
}

/* Takes over the descriptor. */
void kh_link_ports_add(kh_keeper *keeper, kh_link_ports *ports, kh_control *control)
{
    int fd = control->fds[0], own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    link_event *event = new_event(KH_LINK_EVENT_NEW, 0);

    for (size_t i = ports->count; i-- > 0;) {
        if (strcmp(ports->port[i].token, control->token) == 0) {
            gone(keeper, ports, i);
        }
    }
    if (own < 0 || event == NULL || ports->count == KH_PLACES_TOKENS) {
        kh_logf(keeper->config->log, keeper->config->ctx, KH_LOG_ERROR, "keeper: no room for the link to token %s",
                control->token);
        free(event);
        close(fd);
        if (own >= 0) {
            close(own);
        }
        return;
    }
    ports->port[ports->count].fd = own;
    ports->port[ports->count].life = ++ports->lives;
    memcpy(ports->port[ports->count].token, control->token, sizeof(control->token));
    event->control = *control; /* with the descriptor */
    event->life = ports->port[ports->count++].life;
    if (!hand_over(keeper, event, KH_DESK_ADMIN, UINT32_MAX)) {
        close(fd);
    }
}

/* A question for which there is no room now is answered so. */
static void refuse(int fd, const kh_link_message *question)
{
    const kh_link_message answer = {
        .op = question->op, .answer = 1, .number = question->number, .ref = question->ref, .result = KH_E_OVERLOADED};
    kh_result result = question->answer == 0 ? kh_link_send(fd, &answer, NULL) : KH_OK;

    (void)result;
}

void kh_link_ports_read(kh_keeper *keeper, kh_link_ports *ports, size_t i)
{
    uint8_t data[KH_LINK_DATA_MAX];
    const int fd = ports->port[i].fd;
    kh_link_message message;
    kh_result result = KH_OK;

    while ((result = kh_link_receive(fd, &message, data)) == KH_OK || result == KH_E_MALFORMED) {
        link_event *event = result == KH_OK ? new_event(KH_LINK_EVENT_MESSAGE, message.data_len) : NULL;
        bool answer = result == KH_OK && message.answer != 0;

        if (result != KH_OK) {
            continue;
        }
        if (event != NULL) {
            event->life = ports->port[i].life;
            event->message = message;
            memcpy(event->data, data, message.data_len);
        }
        OPENSSL_cleanse(data, message.data_len);
        if (!hand_over(keeper, event, answer ? KH_DESK_ADMIN : KH_DESK_QUICK, answer ? UINT32_MAX : WAITING_MAX)) {
            refuse(fd, &message);
        }
    }
    if (result != KH_AGAIN) {
        gone(keeper, ports, i);
    }
}

void kh_link_ports_close(kh_link_ports *ports)
{
    while (ports->count > 0) {
        close(ports->port[--ports->count].fd);
    }
}

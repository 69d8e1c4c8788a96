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

/*
 * A token's keeper, where a vendor's library runs, cannot keep this thread from its other duties, nor fill the memory: so many
 * datagrams are read in a turn, and so many may wait.
 */
#define READ_MAX 64
#define WAITING_MAX 256

/* What the store thread gets; begins with an operation, so that it fits its desk. */
typedef struct link_event {
    kh_op op;
    kh_link_event_kind kind;
    kh_control control;
    uint64_t life;
    _Atomic uint32_t *load; /* NULL: not counted */
    _Atomic bool *flag;
    kh_link_message message;
    uint8_t data[];
} link_event;

static void free_event(link_event *event)
{
    OPENSSL_cleanse(event->data, event->message.data_len);
    free(event);
}

/* It waits no longer. */
static void let_go(link_event *event)
{
    if (event->load != NULL) {
        atomic_fetch_sub(event->load, 1);
    }
    if (event->flag != NULL) {
        atomic_store(event->flag, false);
    }
}

static void run(kh_keeper *keeper, kh_op *op)
{
    link_event *event = (link_event *)op;

    let_go(event);
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

/* false: the store thread is stopping, or there is no memory. */
static bool hand_over(kh_keeper *keeper, link_event *event, kh_desk_class class_)
{
    if (event != NULL && kh_desk_push(&keeper->store_desk, class_, &event->op, UINT32_MAX)) {
        return true;
    }
    if (event != NULL) {
        let_go(event);
        free_event(event);
    }
    return false;
}

void kh_link_ports_tick(kh_keeper *keeper, kh_link_ports *ports)
{
    link_event *event = atomic_exchange(&ports->ticking, true) ? NULL : new_event(KH_LINK_EVENT_TICK, 0);

    if (event != NULL) {
        event->flag = &ports->ticking;
        (void)hand_over(keeper, event, KH_DESK_QUICK);
    }
}

bool kh_link_port_full(kh_link_ports *ports, size_t i)
{
    return atomic_load(&ports->load[ports->port[i].slot]) >= WAITING_MAX;
}

void kh_link_ports_stop(kh_keeper *keeper)
{
    (void)hand_over(keeper, new_event(KH_LINK_EVENT_STOP, 0), KH_DESK_ADMIN);
}

void kh_link_ports_places(kh_keeper *keeper, const kh_control *control)
{
    link_event *event = new_event(KH_LINK_EVENT_PLACES, 0);

    if (event != NULL) {
        event->control = *control;
    }
    (void)hand_over(keeper, event, KH_DESK_ADMIN);
}

static void gone(kh_keeper *keeper, kh_link_ports *ports, size_t i)
{
    link_event *event = new_event(KH_LINK_EVENT_GONE, 0);

    if (event != NULL) {
        event->life = ports->port[i].life;
    }
    (void)hand_over(keeper, event, KH_DESK_ADMIN);
    close(ports->port[i].fd);
    ports->port[i] = ports->port[--ports->count];
}

static unsigned free_slot(const kh_link_ports *ports)
{
    uint32_t taken = 0;
    unsigned slot = 0;

    for (size_t i = 0; i < ports->count; i++) {
        taken |= 1u << ports->port[i].slot;
    }
    while ((taken & 1u << slot) != 0) {
        slot++;
    }
    return slot;
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
    ports->port[ports->count].slot = free_slot(ports);
    ports->port[ports->count].fd = own;
    ports->port[ports->count].life = ++ports->lives;
    memcpy(ports->port[ports->count].token, control->token, sizeof(control->token));
    event->control = *control; /* with the descriptor */
    event->life = ports->port[ports->count++].life;
    if (!hand_over(keeper, event, KH_DESK_ADMIN)) {
        close(fd);
    }
}

/* Answers, and whoever comes, before what a front has piled up. */
static void take(kh_keeper *keeper, kh_link_ports *ports, size_t i, const kh_link_message *message, const uint8_t *data)
{
    link_event *event = new_event(KH_LINK_EVENT_MESSAGE, message->data_len);
    bool first = message->answer != 0 || message->op == KH_LINK_HELLO;

    if (event == NULL) {
        return; /* what is not answered is asked again, or ends with the link */
    }
    event->life = ports->port[i].life;
    event->message = *message;
    event->load = &ports->load[ports->port[i].slot];
    memcpy(event->data, data, message->data_len);
    atomic_fetch_add(event->load, 1);
    (void)hand_over(keeper, event, first ? KH_DESK_ADMIN : KH_DESK_QUICK);
}

void kh_link_ports_read(kh_keeper *keeper, kh_link_ports *ports, size_t i)
{
    uint8_t data[KH_LINK_DATA_MAX];
    const int fd = ports->port[i].fd;
    kh_link_message message;
    kh_result result = KH_OK;

    for (unsigned n = 0; n < READ_MAX && !kh_link_port_full(ports, i); n++) {
        result = kh_link_receive(fd, &message, data);
        if (result == KH_OK) {
            take(keeper, ports, i, &message, data);
            OPENSSL_cleanse(data, message.data_len);
        } else if (result != KH_E_MALFORMED) {
            break;
        }
    }
    if (result == KH_E_CLOSED) {
        gone(keeper, ports, i);
    }
}

void kh_link_ports_close(kh_link_ports *ports)
{
    while (ports->count > 0) {
        close(ports->port[--ports->count].fd);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The blocking client's way to an agent: one interface, a Unix socket (link_unix.c) or TLS over TCP (link_tcp.c) behind
 * it. Private to the client.
 */
#ifndef KH_LINK_H
#define KH_LINK_H

#include <keyhold/client.h>
#include <time.h>

#define KH_LINK_DETAIL_MAX 320

typedef struct kh_link kh_link;

typedef struct kh_link_ops {
    /* From nothing to a way that bytes can go: at most until the deadline. Fills detail on failure. */
    kh_result (*connect)(kh_link *link, uint64_t deadline_ms);
    /* None of both waits. KH_OK: at least one byte. KH_AGAIN: not now. KH_E_CLOSED: the end. Others: it is lost. */
    kh_result (*read)(kh_link *link, uint8_t *room, size_t cap, size_t *got);
    kh_result (*write)(kh_link *link, const uint8_t *data, size_t len, size_t *sent);
    /* Back to nothing; never fails, tells the agent nothing (a forked child calls it, too). */
    void (*disconnect)(kh_link *link);
    void (*free)(kh_link *link); /* after disconnect */
} kh_link_ops;

struct kh_link {
    const kh_link_ops *ops;
    int fd;           /* -1: not connected */
    bool held;        /* there is something to read that poll does not tell of */
    bool wants_write; /* poll for writing, too */
    char name[128];   /* of the agent, for messages: a path, or HOST:PORT */
    char detail[KH_LINK_DETAIL_MAX]; /* of the last failure, for people; "" if there is nothing to say */
};

/* The address is "unix:/path". KH_E_INVALID: it is not. detail: KH_LINK_DETAIL_MAX bytes. */
KH_MUST_USE kh_result kh_link_unix(const char *address, kh_link **link, char *detail);
/* The address is "tcp:HOST:PORT". KH_E_INVALID, and what kh_client_tls_context gives. */
KH_MUST_USE kh_result kh_link_tcp(const char *address, const kh_client_tls *tls, kh_link **link, char *detail);

/* Waits until the link can be read or, if it wants that, written. KH_E_DEADLINE, KH_E_IO. */
KH_MUST_USE kh_result kh_link_wait(kh_link *link, uint64_t deadline_ms);

static inline uint64_t kh_link_now_ms(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

#endif

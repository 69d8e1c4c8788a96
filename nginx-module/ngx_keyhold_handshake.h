/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to ngx_keyhold_gate.c and ngx_keyhold_handshake.c: the state of a
 * handshake that is, or may come to be, suspended.
 */

#ifndef _NGX_KEYHOLD_HANDSHAKE_H_INCLUDED_
#define _NGX_KEYHOLD_HANDSHAKE_H_INCLUDED_


#include "ngx_keyhold.h"


struct ngx_keyhold_handshake_s {
    ngx_queue_t                 queue;          /* while parked */
    ngx_connection_t           *connection;
    ngx_atomic_uint_t           number;
    ngx_socket_t                fd;
    ngx_ssl_conn_t             *ssl;

    BIO                        *rbio;           /* while gated */
    ngx_event_t                 take;           /* posted */

    ngx_keyhold_coro_t         *coro;           /* while running or parked */
    ngx_event_t                *event;          /* whose handler runs on it */
    ngx_keyhold_op_t           *op;             /* while parked */
    ngx_pool_cleanup_t         *cleanup;

    /* nginx's, while ours are in their places */
    ngx_connection_handler_pt   handler;
    ngx_event_handler_pt        read_handler;
    ngx_event_handler_pt        write_handler;

    ngx_err_t                   err;            /* why it failed */

    unsigned                    running:1;      /* on the coroutine */
    unsigned                    parked:1;
    unsigned                    over:1;         /* c->ssl->handler was called */
    unsigned                    failed:1;
    unsigned                    aborted:1;      /* the operation is cancelled */
    unsigned                    orphan:1;       /* the connection is no more */
    unsigned                    freed:1;        /* its SSL is no more */
};


/* The gate's posted event: its BIO makes way, the coroutine begins. */
void ngx_keyhold_handshake_take(ngx_event_t *ev);
/* Frees the state; nothing of its connection is touched. */
void ngx_keyhold_handshake_forget(ngx_keyhold_handshake_t *hs);

/* The state of an SSL; NULL: it is not, or no longer, ours. */
ngx_keyhold_handshake_t *ngx_keyhold_gate_get(ngx_ssl_conn_t *ssl);
/* The SSL is no longer ours.  The state stays to be freed. */
void ngx_keyhold_gate_open(ngx_ssl_conn_t *ssl);


#endif /* _NGX_KEYHOLD_HANDSHAKE_H_INCLUDED_ */

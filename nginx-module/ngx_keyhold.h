/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the module know of each other.
 *
 *   ngx_keyhold_module.c        settings, the life of the module (core)
 *   ngx_keyhold_settings.h      their directives, for http{} and stream{}
 *   ngx_http_keyhold_module.c   "keyhold on" in http
 *   ngx_keyhold_variables.c     what the access logs can say
 *   ngx_keyhold_token.c         the token of an agent
 *   ngx_keyhold_reference.c     "keyhold on": a reference for each certificate
 *   ngx_keyhold_provider.c      the OpenSSL provider inside nginx, and how it waits
 *   ngx_keyhold_gate.c          how a handshake is noticed
 *   ngx_keyhold_handshake.c     suspended handshakes
 *   ngx_keyhold_coro.c          stacks, and the switch between them
 *   ngx_keyhold_op.c            operations: deadline, retry, limit
 *   ngx_keyhold_conn.c          a worker's connection to an agent
 *   ngx_keyhold_probe.c         at start: does the agent have our keys?
 *
 * Everything runs in the one thread of a worker.  All times are of
 * ngx_current_msec unless their name says otherwise.
 */

#ifndef _NGX_KEYHOLD_H_INCLUDED_
#define _NGX_KEYHOLD_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_event_connect.h>

#include <keyhold/client.h>


#define NGX_KEYHOLD_DETAIL_LEN  256

/* What another module may use; module.map names it too. */
#define NGX_KEYHOLD_EXPORT  __attribute__((visibility("default")))


typedef struct ngx_keyhold_agent_s      ngx_keyhold_agent_t;
typedef struct ngx_keyhold_op_s         ngx_keyhold_op_t;
typedef struct ngx_keyhold_handshake_s  ngx_keyhold_handshake_t;


/* A key that the configuration names, by name or (name empty) by id. */

typedef struct {
    ngx_str_t                 name;
    u_char                    id[KH_KEY_ID_LEN];
    kh_key_type               type;
} ngx_keyhold_key_t;


typedef struct {
    ngx_array_t               agents;        /* ngx_keyhold_agent_t * */
    ngx_array_t               keys;          /* ngx_keyhold_key_t */
    ngx_msec_t                timeout;
    ngx_msec_t                connect_timeout;
    ngx_int_t                 max_inflight;  /* per worker */
    ngx_pool_t               *pool;
    unsigned                  on:1;          /* "keyhold on" somewhere */
} ngx_keyhold_conf_t;


/* The core module: its configuration is the settings. */
NGX_KEYHOLD_EXPORT extern ngx_module_t  ngx_keyhold_module;


/* The configuration of this worker; NULL: no agent is configured. */
extern ngx_keyhold_conf_t    *ngx_keyhold_conf;


/* How a connection's last private-key operation went; in c->pool. */

typedef struct {
    kh_result                 status;
    ngx_uint_t                usec;
    ngx_str_t                *agent;
} ngx_keyhold_outcome_t;


/* ---- operations ---- */

typedef enum {
    NGX_KEYHOLD_OP_IDLE = 0,
    NGX_KEYHOLD_OP_WAITING,     /* for an agent that can take it */
    NGX_KEYHOLD_OP_DELAYED,     /* refused for now, to be tried again */
    NGX_KEYHOLD_OP_SENT
} ngx_keyhold_op_state_e;


/*
 * One request to an agent.  It belongs to its starter, who keeps it, req and
 * out in place until the handler was called or the operation cancelled.
 */

struct ngx_keyhold_op_s {
    /* set by the starter */
    kh_request               *req;
    u_char                   *out;
    size_t                    cap;
    void                    (*handler)(ngx_keyhold_op_t *op);
    void                     *data;
    kh_key_entry             *entry;      /* for public-key: where it goes */
    unsigned                  unlimited:1;  /* not under max_inflight */

    /* the end of it, for the handler */
    kh_result                 result;
    size_t                    len;
    ngx_keyhold_agent_t      *agent;      /* NULL: it never met one */
    u_char                    detail[NGX_KEYHOLD_DETAIL_LEN];

    /* private */
    ngx_keyhold_op_state_e    state;
    ngx_queue_t               queue;
    ngx_queue_t               deadlines;
    ngx_msec_t                started;
    ngx_msec_t                sent;
    ngx_msec_t                retry;
    uint32_t                  id;
};


/*
 * KH_OK: the handler will be called, after this call has returned.
 * KH_E_OVERLOADED: keyhold_max_inflight is reached.
 */
kh_result ngx_keyhold_op_start(ngx_keyhold_op_t *op);
/* The handler will not be called. */
void ngx_keyhold_op_cancel(ngx_keyhold_op_t *op);

ngx_int_t ngx_keyhold_op_init(ngx_cycle_t *cycle);

/* From the connection: a reply came, the connection is lost, more can be sent. */
void ngx_keyhold_op_reply(ngx_keyhold_op_t *op, const kh_reply *reply);
void ngx_keyhold_op_lost(ngx_keyhold_op_t *op);
void ngx_keyhold_op_dispatch(void);


/* ---- connections to agents ---- */

struct ngx_keyhold_agent_s {
    /* configuration, read by the master */
    ngx_str_t                 name;       /* "unix:/path" */
    struct sockaddr_un        sockaddr;
    socklen_t                 socklen;
    kh_credential            *cred;       /* NULL: known by our uid */

    /* of the worker */
    ngx_keyhold_conf_t       *conf;
    ngx_connection_t         *connection;
    kh_session               *session;
    ngx_event_t               reconnect;  /* timer */
    ngx_event_t               flush;      /* posted */
    ngx_uint_t                fresh;      /* requests that it will write */
    ngx_uint_t                seen;       /* when it was put off */
    ngx_msec_t                backoff;
    ngx_msec_t                received;   /* when something last came */
    ngx_msec_t                since;      /* when it became ready */
    u_char                    why[NGX_KEYHOLD_DETAIL_LEN];
    unsigned                  ready:1;
    unsigned                  down:1;     /* and the log says so */
    unsigned                  full:1;     /* the agent's credit is used up */
    unsigned                  served:1;   /* an operation, on this connection */
    unsigned                  unsteady:1; /* the last one was of no use */
};


ngx_int_t ngx_keyhold_conn_init(ngx_keyhold_agent_t *agent,
    ngx_keyhold_conf_t *conf, ngx_log_t *log);
void ngx_keyhold_conn_close(ngx_keyhold_agent_t *agent);
/*
 * NGX_OK: sent with the end of this turn.  NGX_AGAIN: not now.  NGX_ERROR: this
 * request can never be sent, op->result says why.
 */
ngx_int_t ngx_keyhold_conn_send(ngx_keyhold_agent_t *agent,
    ngx_keyhold_op_t *op, ngx_msec_t left);
void ngx_keyhold_conn_cancel(ngx_keyhold_agent_t *agent, uint32_t id);
/* An operation was answered: the agent is well. */
void ngx_keyhold_conn_served(ngx_keyhold_agent_t *agent);
/* Nothing has come for too long: start anew. */
void ngx_keyhold_conn_stalled(ngx_keyhold_agent_t *agent);


/* ---- coroutines ---- */

typedef struct ngx_keyhold_coro_s  ngx_keyhold_coro_t;

/* NULL: out of memory or of mappings, and the log says so. */
ngx_keyhold_coro_t *ngx_keyhold_coro_get(ngx_log_t *log);
/* Only when it has ended, or will never be resumed. */
void ngx_keyhold_coro_release(ngx_keyhold_coro_t *coro);
/* Runs func(data) until it ends, yields or exits.  1: it has ended. */
ngx_uint_t ngx_keyhold_coro_start(ngx_keyhold_coro_t *coro,
    void (*func)(void *data), void *data);
/* Goes on after a yield.  1: it has ended. */
ngx_uint_t ngx_keyhold_coro_resume(ngx_keyhold_coro_t *coro);
/* On a coroutine: back to whoever started or resumed it. */
void ngx_keyhold_coro_yield(void);
/* On a coroutine: the same for good, from within any depth of calls. */
void ngx_keyhold_coro_exit(void);
/* The data of the coroutine that runs, NULL on the main stack. */
void *ngx_keyhold_coro_data(void);
void ngx_keyhold_coro_cleanup(void);
/* Warns when the kernel will not map stacks for so many at a time. */
void ngx_keyhold_coro_check(ngx_int_t n, ngx_log_t *log);


/* ---- handshakes ---- */

/* Once per process, before any SSL is made. */
ngx_int_t ngx_keyhold_gate_init(ngx_log_t *log);
/* Whose handshake libssl is in that is not suspended; NULL: in none. */
ngx_connection_t *ngx_keyhold_gate_unsuspended(void);
/* In a worker. */
void ngx_keyhold_handshake_init(void);
/* Ends all that are parked: the worker exits. */
void ngx_keyhold_handshake_exit(void);
/* The handshake that runs on the current stack; NULL: none of ours. */
ngx_keyhold_handshake_t *ngx_keyhold_handshake_current(void);
ngx_connection_t *ngx_keyhold_handshake_connection(
    ngx_keyhold_handshake_t *hs);
/*
 * Parks the handshake until ngx_keyhold_handshake_wake.  NGX_OK: the operation
 * has ended.  NGX_ABORT: the handshake is given up, the operation cancelled.
 */
ngx_int_t ngx_keyhold_handshake_park(ngx_keyhold_handshake_t *hs,
    ngx_keyhold_op_t *op);
/* An operation's handler; its data is the handshake. */
void ngx_keyhold_handshake_wake(ngx_keyhold_op_t *op);
/* The handshake will fail because of the agent: how, for nginx's own log. */
void ngx_keyhold_handshake_failed(ngx_keyhold_handshake_t *hs, ngx_err_t err);
void ngx_keyhold_handshake_outcome(ngx_keyhold_handshake_t *hs,
    kh_result status, ngx_uint_t usec, ngx_str_t *agent);
ngx_keyhold_outcome_t *ngx_keyhold_get_outcome(ngx_connection_t *c);


/* ---- the rest ---- */

ngx_int_t ngx_keyhold_provider_load(ngx_log_t *log);
void ngx_keyhold_provider_exit(void);
/* Where the keys are noted that are loaded from here on; NULL: nowhere. */
void ngx_keyhold_provider_collect(ngx_keyhold_conf_t *conf);
/* The configuration is complete. */
void ngx_keyhold_provider_collected(ngx_keyhold_conf_t *conf);
/*
 * What an agent said besides the result, for the log; empty when it only
 * repeats the result's own text.  buf has NGX_KEYHOLD_DETAIL_LEN bytes.
 */
void ngx_keyhold_detail(u_char *buf, kh_result result, kh_bytes detail);
/* "name" or the id in hex; for the log. */
u_char *ngx_keyhold_key_text(u_char *buf, u_char *last, const kh_request *req);

/* Reads the token file of an agent; logs what is wrong with it. */
char *ngx_keyhold_token(ngx_conf_t *cf, ngx_keyhold_agent_t *agent,
    ngx_str_t *file);
/* In a worker. */
void ngx_keyhold_token_lock(ngx_keyhold_agent_t *agent);

/* The directive keyhold_agent; conf is the settings. */
NGX_KEYHOLD_EXPORT char *ngx_keyhold_agent(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/*
 * "keyhold on" in a server, its own or inherited: its keys, unless it has some,
 * become references for its certificates.  certs: those in effect.
 */
NGX_KEYHOLD_EXPORT char *ngx_keyhold_references(ngx_conf_t *cf, ngx_uint_t own,
    ngx_array_t *certs, ngx_array_t **keys);

/* The value of a variable for an access log. */
#define NGX_KEYHOLD_VAR_STATUS  0
#define NGX_KEYHOLD_VAR_TIME    1
#define NGX_KEYHOLD_VAR_AGENT   2

NGX_KEYHOLD_EXPORT ngx_int_t ngx_keyhold_variable(ngx_connection_t *c,
    ngx_pool_t *pool, ngx_variable_value_t *v, uintptr_t what);

/* An agent is there: ask it for our keys, once. */
void ngx_keyhold_probe_start(ngx_log_t *log);
void ngx_keyhold_probe_exit(void);


#endif /* _NGX_KEYHOLD_H_INCLUDED_ */

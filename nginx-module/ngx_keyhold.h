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
 *   ngx_keyhold_route.c         operations: to which agent
 *   ngx_keyhold_retry.c         operations: to which next, and when
 *   ngx_keyhold_balance.c       policy: shares, second tries
 *   ngx_keyhold_missing.c       policy: which agent lacks which key
 *   ngx_keyhold_check.c         whether an agent's answers are to be believed
 *   ngx_keyhold_agent.c         the directive keyhold_agent
 *   ngx_keyhold_conn.c          a worker's session with an agent
 *   ngx_keyhold_away.c          what is thought of one that is away
 *   ngx_keyhold_transport.c     the socket below it
 *   ngx_keyhold_tls.c           TLS on that
 *   ngx_keyhold_sync.c          without the event loop
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

#include "ngx_keyhold_balance.h"


#define NGX_KEYHOLD_DETAIL_LEN  256

/* What another module may use; module.map names it too. */
#define NGX_KEYHOLD_EXPORT  __attribute__((visibility("default")))


typedef struct ngx_keyhold_agent_s      ngx_keyhold_agent_t;
typedef struct ngx_keyhold_tls_s        ngx_keyhold_tls_t;
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
    ngx_msec_t                try_timeout;
    ngx_msec_t                connect_timeout;
    ngx_str_t                 certificate;         /* for agents on TCP */
    ngx_str_t                 certificate_key;
    ngx_str_t                 trusted_certificate;
    SSL_CTX                  *ssl_ctx;             /* to them, in the event loop */
    SSL_CTX                  *sync_ctx;            /* and out of it */
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
    ngx_uint_t                tries;
    ngx_str_t                *agent;        /* &ngx_keyhold_agent_t.name */
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
    const struct kh_prov_key *key;        /* for private keys: to check replies */
    ngx_keyhold_agent_t      *only;       /* no other agent will do */
    unsigned                  unlimited:1;  /* not under max_inflight */

    /* the end of it, for the handler */
    kh_result                 result;
    size_t                    len;
    ngx_keyhold_agent_t      *agent;      /* NULL: it never met one */
    ngx_uint_t                tries;      /* how often it was sent */
    unsigned                  gone:1;     /* no agent was within reach */
    u_char                    detail[NGX_KEYHOLD_DETAIL_LEN];

    /* private */
    ngx_keyhold_op_state_e    state;
    ngx_queue_t               queue;
    ngx_queue_t               deadlines;
    ngx_msec_t                started;
    ngx_msec_t                sent;
    ngx_msec_t                retry;
    ngx_msec_t                delay;      /* the last one */
    uint32_t                  id;
    ngx_uint_t                work;
    uint64_t                  missing;    /* what stands for its key */
    ngx_keyhold_set_t         tried;      /* refused, or were too slow */
    kh_result                 refusal;
    unsigned                  owes:1;     /* being sent again is a second try */
};


/*
 * KH_OK: the handler will be called, after this call has returned.
 * KH_E_OVERLOADED: keyhold_max_inflight is reached.
 */
kh_result ngx_keyhold_op_start(ngx_keyhold_op_t *op);
/* The handler will not be called. */
void ngx_keyhold_op_cancel(ngx_keyhold_op_t *op);

ngx_int_t ngx_keyhold_op_init(ngx_cycle_t *cycle);

/*
 * A reply came.  NGX_ERROR: it can not be the answer, the agent is not to be
 * believed, *why says in which way; the operation is still the agent's.
 */
ngx_int_t ngx_keyhold_op_reply(ngx_keyhold_op_t *op, const kh_reply *reply,
    const char **why);

/* For ngx_keyhold_route.c. */
void ngx_keyhold_op_end(ngx_keyhold_op_t *op, kh_result result);
/* Later: it is sent again, or, when its result is set by then, ended. */
void ngx_keyhold_op_delay(ngx_keyhold_op_t *op, ngx_msec_t msec);
ngx_msec_int_t ngx_keyhold_op_left(ngx_keyhold_op_t *op);


/* ---- which agent ---- */

void ngx_keyhold_route_init(ngx_keyhold_conf_t *conf, ngx_log_t *log);
/* A new operation, or one that was delayed. */
void ngx_keyhold_route(ngx_keyhold_op_t *op);
/* It has left its agent's hands: answered, cancelled, lost. */
void ngx_keyhold_route_left(ngx_keyhold_op_t *op);
/* An agent refused it. */
void ngx_keyhold_route_refused(ngx_keyhold_op_t *op, kh_result status,
    ngx_msec_t retry_after);
/* Its connection is no more. */
void ngx_keyhold_route_lost(ngx_keyhold_op_t *op);
/* An agent can take more: those that wait, as far as it goes. */
void ngx_keyhold_route_dispatch(void);
/* An agent is found to be out of reach. */
void ngx_keyhold_route_down(void);
/* Whether it has been out of reach for so long that nobody waits for it. */
ngx_uint_t ngx_keyhold_agent_gone(ngx_keyhold_agent_t *agent);
/* It was answered, or given up, after so long. */
void ngx_keyhold_route_took(ngx_keyhold_op_t *op);


/* ---- whether to believe an agent ---- */

/* NULL: nothing is wrong with what it answered, as far as was looked. */
const char *ngx_keyhold_check(ngx_keyhold_op_t *op, const kh_reply *reply);
/* A new connection, or a reason for doubt: look closely for a while. */
void ngx_keyhold_check_closely(ngx_keyhold_agent_t *agent);
/* A client did not accept a signature of an agent of that name. */
void ngx_keyhold_check_alert(ngx_str_t *name);


/* ---- agents ---- */

struct ngx_keyhold_agent_s {
    /* configuration, read by the master */
    ngx_str_t                 name;       /* "unix:/path", "tcp:host:port" */
    ngx_uint_t                index;
    ngx_addr_t               *addrs;
    ngx_uint_t                naddrs;
    ngx_str_t                 server_name;  /* of TCP: as its certificate has it */
    kh_credential            *cred;       /* NULL: known by our uid */
    ngx_keyhold_share_t       share;
    unsigned                  tls:1;

    /* of the worker: the socket (ngx_keyhold_transport.c) */
    ngx_keyhold_conf_t       *conf;
    ngx_connection_t         *connection;
    ngx_keyhold_tls_t        *stream;     /* of this connection */
    SSL_SESSION              *resume;     /* for the next one */
    ngx_event_t               flush;      /* posted */
    ngx_uint_t                fresh;      /* requests that it will write */
    ngx_uint_t                seen;       /* when it was put off */
    ngx_uint_t                addr;       /* which is tried */
    unsigned                  connecting:1;

    /* the session (ngx_keyhold_conn.c) */
    kh_session               *session;
    ngx_event_t               reconnect;  /* timer */
    ngx_msec_t                backoff;
    ngx_msec_t                received;   /* when something last came */
    ngx_msec_t                since;      /* when it became ready */
    ngx_msec_t                down_since;
    ngx_uint_t                strikes;    /* wrong answers, silences */
    u_char                    why[NGX_KEYHOLD_DETAIL_LEN];
    uint32_t                  news;       /* the reason that was logged last */
    ngx_msec_t                told;       /* when */
    unsigned                  ready:1;
    unsigned                  down:1;     /* and the log says so */
    unsigned                  full:1;     /* the agent's credit is used up */
    unsigned                  served:1;   /* an operation, on this connection */
    unsigned                  unsteady:1; /* the last one was of no use */

    /* operations (ngx_keyhold_route.c) */
    ngx_queue_t               sent;       /* the first was sent first */
    ngx_event_t               overdue;    /* timer */
    ngx_msec_t                refused;    /* since when it refuses */
    ngx_uint_t                refusals;   /* in a row */
    ngx_uint_t                slows;      /* not in time, in a row */
    ngx_msec_t                said[2];    /* when the log was told of it */
    ngx_msec_t                latency;    /* smoothed, in 1/8 msec; 0: unknown */
    ngx_keyhold_missing_t    *missing;

    /* replies (ngx_keyhold_check.c) */
    ngx_uint_t                checks;     /* so many are looked at closely */
    ngx_uint_t                unchecked;  /* since the last that was */
    ngx_msec_t                alerted;

    /* what it has of our keys (ngx_keyhold_probe.c) */
    void                     *probe;
    ngx_uint_t                probed;     /* keys asked for */
    ngx_uint_t                lacking;    /* of them, said in the log */
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

/* From the transport: something can be read; the socket is of no use. */
void ngx_keyhold_conn_input(ngx_keyhold_agent_t *agent);
void ngx_keyhold_conn_broken(ngx_keyhold_agent_t *agent, ngx_err_t err,
    const char *text);


/* ---- the socket below ---- */

/* Begins to connect.  NGX_ERROR: *err and *why. */
ngx_int_t ngx_keyhold_transport_open(ngx_keyhold_agent_t *agent,
    ngx_err_t *err, const char **why);
void ngx_keyhold_transport_close(ngx_keyhold_agent_t *agent);
/* There is something to be written: at the end of this turn. */
void ngx_keyhold_transport_post(ngx_keyhold_agent_t *agent);
void ngx_keyhold_transport_flush(ngx_keyhold_agent_t *agent);

/* The context is the master's.  Logs what is wrong with the files. */
char *ngx_keyhold_tls_context(ngx_cycle_t *cycle, ngx_keyhold_conf_t *conf);
ngx_int_t ngx_keyhold_tls_start(ngx_keyhold_agent_t *agent);
void ngx_keyhold_tls_end(ngx_keyhold_agent_t *agent);
/* As c->recv and c->send. */
ssize_t ngx_keyhold_tls_recv(ngx_connection_t *c, u_char *buf, size_t size);
ssize_t ngx_keyhold_tls_send(ngx_connection_t *c, u_char *buf, size_t size);
/* What was wrong. */
const char *ngx_keyhold_tls_why(ngx_keyhold_agent_t *agent);


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
    ngx_keyhold_op_t *op, kh_result status, ngx_uint_t usec);
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
/* Over connections of its own, waiting; tries each agent. */
kh_result ngx_keyhold_perform_sync(const struct kh_prov_key *key,
    kh_request *req, uint8_t *out, size_t cap, size_t *len);
void ngx_keyhold_sync_exit(void);
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
#define NGX_KEYHOLD_VAR_TRIES   3

NGX_KEYHOLD_EXPORT ngx_int_t ngx_keyhold_variable(ngx_connection_t *c,
    ngx_pool_t *pool, ngx_variable_value_t *v, uintptr_t what);

/* The settings are complete: defaults, and what does not go together. */
char *ngx_keyhold_agents_init(ngx_cycle_t *cycle, ngx_keyhold_conf_t *conf);

/* An agent is there: ask it for our keys, once. */
void ngx_keyhold_probe_start(ngx_keyhold_agent_t *agent);
void ngx_keyhold_probe_exit(void);


#endif /* _NGX_KEYHOLD_H_INCLUDED_ */

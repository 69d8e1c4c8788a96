/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front: the process that listens, decides who may do what, queues, and talks to the keeper through the
 * ring. This header is what its files share; each of them has one concern:
 *   front.c      the process: start, loop, end
 *   control.c    what the supervisor sends
 *   identity.c   who there is: tokens, uids, limits; survives a reload
 *   listener.c   listening sockets
 *   conn.c       connections
 *   room.c       how many of them
 *   share.c      how much of the front's time each caller gets
 *   transport_unix.c, transport_tls.c  what is between a connection and its descriptor
 *   auth.c       hello and auth
 *   admit.c      a request becomes a job, or is answered at once
 *   operation.c  the life of a job: begin, end, cancel, expire
 *   dispatch.c   queues to the store's keeper, completions to replies
 *   naps.c       operations that come one at a time
 *   backend.c    the rings of all keepers
 *   place.c      keys in tokens and pools; keyqueue.c their queues, health.c which partition is asked
 *   manage.c     operations that manage keys
 *   status.c     the JSON document of `status`
 *   metrics.c, metrics_http.c  the same for Prometheus, and serving it
 *
 * One thread, one libev loop. Replies are written when completions were collected, first thing in a turn of the loop, and
 * at its end; the keeper is woken once per turn.
 */
#ifndef KH_AGENT_FRONT_H
#define KH_AGENT_FRONT_H

#include "acl.h"
#include "backend.h"
#include "boot.h"
#include "channel.h"
#include "config.h"
#include "deadline.h"
#include "directory.h"
#include "gather.h"
#include "histogram.h"
#include "log.h"
#include "lone.h"
#include "place.h"
#include "queue.h"
#include "tls.h"
#include "transport.h"
#include <ev.h>

#define KH_OPS_ROOM 20      /* kh_op is below this */
#define KH_RESULTS_ROOM 32  /* kh_result is below this */
#define KH_LOOKUPS_MAX 64   /* lookups in the ring at a time */
#define KH_STORE_JOBS_MAX 4 /* other store operations in the ring at a time */
#define KH_LISTS_MAX 16     /* `list` operations of one identity at a time: each gathers up to 64 KiB */

typedef struct kh_front kh_front;
typedef struct kh_conn kh_conn;
typedef struct kh_listener kh_listener;

/* Time spent in one turn of the loop (share.c). */
typedef struct kh_share {
    uint64_t turn, spent_ns;
} kh_share;

/* Who can call. Made when a configuration first names it, never freed, so that jobs may point to it. */
typedef struct kh_identity kh_identity;
struct kh_identity {
    kh_tenant tenant; /* first: a job's tenant is its identity */
    char name[KH_NAME_MAX + 1];
    bool is_root;
    const kh_config_identity *config; /* of the current configuration; NULL: root, or no longer there */
    kh_credential *credential;        /* in locked memory; NULL: none */
    kh_credential *old_credential;    /* during kh_identities_apply: of the configuration before */
    bool same_token;                  /* the last configuration left its secret as it was */
    uint32_t lists;                   /* `list` operations that gather entries */
    uint32_t connections;
    uint32_t waiting_jobs; /* of its connections */
    uint64_t requests, refused, completed;
    kh_share share;
    /* each identity has its own: none drowns what others cause */
    kh_log_limit log_refused, log_overload, log_connections, log_place;
    kh_identity *next;
};

typedef enum kh_conn_state {
    KH_CONN_HELLO, /* has not said who it is, or not proved it */
    KH_CONN_READY,
    KH_CONN_LAST,   /* what is in its output is the last */
    KH_CONN_CLOSED, /* freed at the end of the turn */
} kh_conn_state;

typedef struct kh_conn_list {
    kh_conn *first, *last;
    uint32_t count;
} kh_conn_list;

struct kh_conn {
    ev_io io;
    kh_front *front;
    kh_listener *listener;
    kh_transport *transport;
    kh_server *server;
    kh_conn_state state;
    kh_identity *identity; /* READY; before: who it claims to be, NULL: nobody that is known */
    uint8_t nonce_client[KH_NONCE_LEN], nonce_agent[KH_NONCE_LEN];
    bool by_token; /* it named an identity */
    bool dirty;
    bool more;          /* requests are left in its buffer for the next turn */
    bool counted;       /* in identity->connections */
    kh_conn_list *list; /* handshaking or ready */
    kh_conn *dirty_next;
    kh_conn *next, *prev; /* handshaking: by age; ready: by last activity */
    uint64_t active_ms;   /* when it came, or was last active */
    uint64_t stalled_ms;  /* since when its output does not move; 0: it moves */
    uint32_t job_count;
    kh_job *jobs;
};

struct kh_listener {
    ev_io io;
    kh_front *front;
    char *address; /* as in the configuration */
    bool is_tcp;
    bool gone;            /* the configuration names it no more: it is freed with its last connection */
    bool administration;  /* keys may be managed through it */
    kh_tls_server *tls;   /* TCP: for new connections */
    uint32_t trust;       /* counts how often others became believed */
    uint32_t connections; /* that point here */
    uint64_t accepted, tls_handshakes, tls_resumed, tls_failed;
    kh_log_limit log_tls;
    kh_listener *next;
};

typedef struct kh_front_stats {
    uint64_t results[KH_OPS_ROOM][KH_RESULTS_ROOM];
    kh_histogram total[KH_OPS_ROOM];    /* arrival to reply; private-key operations and lookups */
    kh_histogram queued[KH_LANE_COUNT]; /* arrival to ring */
    uint64_t lane_done[KH_LANE_COUNT];
    uint64_t accepted, refused_full, refused_identity, refused_auth, closed_idle, closed_silent,
        closed_stalled, closed_protocol;
    uint64_t lookups;
    double rate[KH_LANE_COUNT]; /* completions per second, smoothed */
    uint64_t rate_base[KH_LANE_COUNT];
    uint64_t rate_ns;
} kh_front_stats;

struct kh_front {
    struct ev_loop *loop;
    int channel_fd;
    ev_io channel_io;
    kh_channel_message *message; /* locked: secrets come through it */
    uint64_t now_ns;    /* CLOCK_MONOTONIC, of this callback */
    uint64_t started_s; /* Unix time */
    uint64_t started_ns;
    /* configuration */
    kh_config *config, *next_config;
    kh_boot_config boot, next_boot;
    kh_identity *identities;
    kh_identity root;
    kh_credential *credentials; /* locked; KH_IDENTITIES_MAX of them, by index in the configuration */
    kh_credential *next_credentials;
    kh_credential *nobody; /* a random secret: what unknown identities are measured against */
    kh_listener *listeners;
    struct kh_metrics *metrics; /* metrics_http.c's; NULL: none */
    kh_tls_server *next_tls[KH_LISTENERS_MAX]; /* by index in the configuration, until kh_listeners_apply */
    /* connections */
    kh_conn_list handshaking, ready;
    kh_conn *dirty;
    ev_idle busy;  /* active while some of them have more for the next turn: the loop does not sleep */
    uint64_t turn; /* of the loop */
    kh_share strangers, tcp_strangers, accepts;
    uint64_t share_since_ns; /* share.c */
    ev_timer sweep;
    bool sweep_again; /* the last one left some for this one */
    ev_timer accept_pause;
    ev_timer alive;
    /* jobs */
    kh_jobs *jobs;
    kh_queue queue;
    kh_deadlines deadlines;
    ev_timer deadline_timer;
    uint64_t deadline_armed_ns, delay_armed_ns;
    kh_job_list in_ring_jobs;
    kh_job_list delayed;
    ev_timer delay_timer;
    uint32_t waiting_jobs;       /* jobs with somebody who waits */
    uint32_t waiting_identities; /* that have such jobs */
    kh_gather gather;
    kh_lone lone;
    bool apart; /* front and workers keep to different CPUs */
    ev_io nap_io;
    int cpu;       /* the front's while they are apart, or when they were last */
    uint64_t naps; /* since they are apart */
    kh_directory *directory;
    /* keepers */
    kh_backend store;
    kh_backend *tokens; /* by next */
    kh_place *places;   /* tokens and pools, as keys name them; by next */
    ev_timer places_timer;
    uint64_t places_armed_ns, places_checked_ns;
    /* the store's keeper */
    uint32_t in_ring[KH_LANE_COUNT];
    uint32_t lookups_in_ring;
    uint64_t lookup_seq;
    ev_prepare prepare;
    kh_boot_process processes[KH_BOOT_PROCESSES];
    uint32_t process_count;
    bool draining;
    bool drained;
    uint64_t drain_until_ns;
    kh_front_stats stats;
    kh_log_limit log_full, log_auth, log_protocol, log_stalled;
};

uint64_t kh_front_clock(void); /* CLOCK_MONOTONIC in nanoseconds */
static inline uint64_t kh_front_ms(const kh_front *front)
{
    return front->now_ns / 1000000;
}
/* A string constant or zero-terminated string as a view. */
static inline kh_bytes kh_text_bytes(const char *text)
{
    return (kh_bytes){(const uint8_t *)text, __builtin_strlen(text)};
}

/* ---- front.c: the role's main. Returns an exit code. */
int kh_front_main(void);

/* ---- control.c */
/* Takes the boot messages up to the first COMMIT. KH_E_CLOSED, KH_E_INVALID, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_control_boot(kh_front *front);
void kh_control_start(kh_front *front);

/* ---- identity.c */
/*
 * Takes up front->config and front->credentials: new identities appear, gone ones lose their rights. The
 * credentials of the configuration before must still be there.
 */
KH_MUST_USE kh_result kh_identities_apply(kh_front *front);
kh_identity *kh_identity_by_name(kh_front *front, const uint8_t *name, size_t len);
/* root, or the identity that the configuration gives that uid; NULL: none. */
kh_identity *kh_identity_by_uid(kh_front *front, uid_t uid);
/* What the acl's functions take: NULL for root, an empty one for an identity that is gone. */
const kh_config_identity *kh_identity_rights(const kh_identity *identity);

/* ---- listener.c */
/* Takes over a listening descriptor. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_listener_add(kh_front *front, int fd, const char *address);
/* Drops the listeners that the configuration no longer names; the others get their new settings and certificates. */
void kh_listeners_apply(kh_front *front);
/* One connection less. */
void kh_listener_release(kh_listener *listener);
void kh_listeners_stop(kh_front *front);
void kh_listeners_start(kh_front *front);

/* ---- conn.c */
/*
 * Takes over an accepted descriptor. When it is full, the oldest caller that has not said who it is makes
 * room.
 */
KH_MUST_USE kh_result kh_conn_open(kh_listener *listener, int fd, const struct sockaddr *peer);
/* Queues a reply; it is written at the end of the turn. A closed connection swallows it. */
void kh_conn_reply(kh_conn *conn, const kh_reply *reply);
/* Ends the connection: its jobs are cancelled; it is freed at the end of the turn. `why` is for the log. */
void kh_conn_close(kh_conn *conn, const char *why);
/* Writes what is to be written, closes what is to be closed. Not while a pointer to a connection is held. */
void kh_conns_flush(kh_front *front);
void kh_conns_start(kh_front *front);
/* Closes connections whose identity is gone, or whose token is another now, or whose certificate does not count now. */
void kh_conns_apply(kh_front *front);
/* Whether anything is still to be written. */
bool kh_conns_pending(kh_front *front);

/* ---- room.c */
/*
 * Whether one more caller that is not known may come in; when all is full, one that has said nothing makes
 * room.
 */
bool kh_room_for_stranger(kh_front *front, uid_t uid);
/* Whether the identity may have one more connection. What is refused is counted and logged. */
bool kh_room_for_identity(kh_front *front, kh_identity *identity);

/* ---- share.c */
/* Time counts from now on. Returns kh_front_clock(). */
uint64_t kh_share_begin(kh_front *front);
/* What was spent since the last of these three calls was spent on this caller. */
void kh_share_spend(const kh_conn *conn);
/* Or on accepting; returns whether there is time for one more. */
bool kh_share_spend_accept(kh_front *front);
/* Whether more may be done for this caller in this turn. */
bool kh_share_has_time(const kh_conn *conn);

/* ---- auth.c */
void kh_auth_hello(kh_conn *conn, const kh_request *req);
void kh_auth_proof(kh_conn *conn, const kh_request *req);

/* ---- admit.c */
/* One request of a connection that is ready. Answers it, now or later. */
void kh_admit(kh_conn *conn, const kh_request *req);
/* Goes on with a job whose key is known now. */
void kh_admit_found(kh_front *front, kh_job *job, const kh_key_info *const infos[], size_t count);
/* A reply that is all status. */
void kh_refuse(kh_conn *conn, kh_op op, uint32_t id, kh_result why, const char *detail);
/* Fills the protocol's entry from the keystore's; views point into info. */
void kh_entry_from_info(const kh_key_info *info, bool with_spki, kh_key_entry *entry);

/* ---- operation.c */
/*
 * A job for this request, admitted and counted, with room for data_len bytes; NULL: it was refused and
 * answered. It is in no queue yet.
 */
kh_job *kh_operation_begin(kh_conn *conn, const kh_request *req, size_t data_len);
/* Answers with that status, data of a private-key operation, or nothing else; frees or detaches the job. */
void kh_operation_end(kh_front *front, kh_job *job, kh_result status, const uint8_t *data, size_t len);
/* The same with a reply made by the caller; op and id are filled in. */
void kh_operation_reply(kh_front *front, kh_job *job, kh_reply *reply);
void kh_operation_cancel(kh_conn *conn, uint32_t request_id);
/* All jobs of a connection that goes away. */
void kh_operation_abandon(kh_conn *conn);
void kh_operation_expire(kh_front *front);
/* Milliseconds after which a refused caller of the store's keeper may try again. */
uint32_t kh_retry_after(const kh_front *front, kh_lane lane);

/* ---- dispatch.c */
void kh_dispatch_start(kh_front *front);
/* Fills the rings from the queues and wakes the keepers. */
void kh_dispatch(kh_front *front);
/* A completion of the store's keeper. */
void kh_dispatch_done(kh_front *front, const kh_completion *completion);
/* The store's keeper is gone. Returns how many operations failed for it. */
uint32_t kh_dispatch_lost(kh_front *front);
/* The reply to a private-key operation, whoever did it; the job is in no list. */
void kh_dispatch_answer(kh_front *front, kh_job *job, const kh_completion *completion);
void kh_dispatch_rates(kh_front *front);

/* ---- naps.c */
void kh_naps_start(kh_front *front);
/* At the beginning of a turn. */
void kh_naps_turn(kh_front *front);
/* At its end, when the keeper has everything that it is to have. */
void kh_naps_dispatched(kh_front *front);
/* The store's keeper is gone; its ring is still there. */
void kh_naps_keeper_lost(kh_front *front);

/* ---- manage.c */
void kh_manage(kh_conn *conn, const kh_request *req);
/*
 * The keeper's answer to a store operation: answers the caller, or (list) queues the job again for the next
 * page.
 */
void kh_manage_done(kh_front *front, kh_job *job, const kh_completion *completion);
/* Frees what a job of a store operation holds besides itself. */
void kh_manage_drop(kh_job *job);

/* ---- status.c */
void kh_status(kh_conn *conn, const kh_request *req);

#endif

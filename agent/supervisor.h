/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor: starts first, reads configuration and secrets, opens the sockets, starts front and keeper
 * and starts again whichever dies. It parses nothing that comes from a peer. This header is what its files
 * share:
 *   supervisor.c  start, signals, end
 *   children.c    the roles: start, death, back-off
 *   joints.c      what joins them: rings between front and keepers, links between keepers
 *   tokens.c      the keepers of tokens: one for each that the configuration names
 *   settings.c    configuration and sockets, and how they change
 *   metrics_sockets.c  where metrics are served
 */
#ifndef KH_AGENT_SUPERVISOR_H
#define KH_AGENT_SUPERVISOR_H

#include "boot.h"
#include "config.h"
#include "credentials.h"
#include "listen.h"
#include "tls_material.h"
#include <ev.h>

typedef struct kh_options {
    const char *config_path;
    long delay_ms; /* -1: the configuration's */
    bool check;    /* only check the configuration */
} kh_options;

typedef struct kh_supervisor kh_supervisor;

typedef enum kh_child_kind { KH_CHILD_FRONT, KH_CHILD_KEEPER, KH_CHILD_TOKEN } kh_child_kind;

typedef struct kh_child {
    kh_supervisor *supervisor;
    kh_child_kind kind;
    char role[64];    /* argv[0] */
    const char *name; /* "front", "keeper", "token NAME" */
    pid_t pid;      /* 0: not running */
    bool ready;     /* it said so */
    bool was_ready; /* ever: a first start that fails is the end */
    bool kill_sent;
    int channel_fd;           /* -1: closed */
    int control_fd;           /* keepers: kh_keeper_send_* */
    int ring[3];              /* keepers: what they share with the front; -1: none */
    uint32_t failures;        /* deaths in a row before it had served for a while */
    uint32_t starts;
    double started, ready_at; /* kh_supervisor_clock */
    double silent_s;          /* how long it has said nothing, in the watchdog's own ticks */
    ev_child watcher;
    ev_io channel_io;
    ev_timer restart;
    /* a token's keeper */
    char token[KH_PLACE_MAX + 1]; /* its name in the configuration */
    bool parked;                  /* its PIN was refused: not started again before something changes */
    bool new_pin;                 /* its PIN has changed and was not taken yet */
    uint32_t early_deaths;        /* in a row, before the token was open: each may have cost a try of the PIN */
    bool asked_to_stop;           /* its block has changed or is gone */
    bool was_seen;                /* it has been ready, or has died: nobody waits for its first start any more */
    ev_timer patience;            /* until it has stopped */
} kh_child;

typedef struct kh_metrics_socket {
    kh_socket sock;
    char *address; /* as the configuration has it */
} kh_metrics_socket;

typedef struct kh_settings {
    kh_config *config;
    kh_credential *credentials; /* KH_IDENTITIES_MAX, kh_secret_alloc */
    kh_pin *pins;               /* KH_TOKENS_MAX, kh_secret_alloc: of the configuration's tokens */
    kh_material *materials;     /* of the listeners, by their index */
    int text_fd;                /* sealed memfd of config->text */
} kh_settings;

struct kh_supervisor {
    const kh_options *options;
    struct ev_loop *loop;
    int exe_fd;
    bool privileged;
    uint32_t workers;
    kh_settings settings;
    kh_config *first; /* of the start, once a reload has replaced it: what changes at a start only is compared with it */
    kh_kek kek;
    struct kh_kek_token *kek_wrapped; /* by a token, as kek_file had it when it was opened; NULL: it is not */
    kh_user front_user, keeper_user;
    kh_boot_keeper keeper_boot; /* of the first configuration: a keeper that starts again is the same */
    char *store;
    char *kek_source; /* kh_kek_source as it was at the start; NULL: the terminal */
    kh_socket sockets[KH_LISTENERS_MAX];
    size_t socket_count;
    kh_metrics_socket metrics[2 * KH_METRICS_MAX]; /* a reload has those of both configurations */
    size_t metrics_count;
    kh_socket admin;
    kh_child front, keeper;
    kh_child *tokens[KH_TOKENS_MAX]; /* NULL: free */
    bool has_tokens; /* the first configuration had some: files and connections are not forbidden to all */
    bool announced; /* READY=1 was sent */
    bool stopping;
    int exit_code;
    double watchdog_s;
    ev_signal hup, term, interrupt;
    ev_timer patience, watchdog;
};

/* ---- supervisor.c. Returns an exit code. */
int kh_supervise(const kh_options *options);
/* CLOCK_MONOTONIC in seconds; ev_now is the time of day, which may jump. */
double kh_supervisor_clock(void);
/* Ends the loop with that code. */
void kh_supervisor_end(kh_supervisor *supervisor, int exit_code);
/* A child became ready, or not: tells systemd when all are for the first time, tokens or not. */
void kh_supervisor_note_ready(kh_supervisor *supervisor);
/* The front or keeper is gone while the agent is stopping. */
void kh_supervisor_note_stopped(kh_supervisor *supervisor, kh_child *child);

/* ---- settings.c; error: KH_CONFIG_ERROR_MAX bytes */
/* with_pins: also the PINs of tokens. */
KH_MUST_USE kh_result kh_settings_load(const char *path, bool with_pins, kh_settings *settings, char *error);
/* What starting needs besides, without starting: the users, the store, the key-encryption key's file. */
KH_MUST_USE kh_result kh_settings_check(const kh_config *config, char *error);
void kh_settings_free(kh_settings *settings);
/* Users, key-encryption key, sockets: once, before confinement. */
KH_MUST_USE kh_result kh_settings_start(kh_supervisor *supervisor, char *error);
/* Reads the file again; on success the front has it. On failure nothing changes. */
KH_MUST_USE kh_result kh_settings_reload(kh_supervisor *supervisor, char *error);
/* Sends the current configuration and tokens to the front, and the sockets from `first` on. KH_E_IO. */
KH_MUST_USE kh_result kh_settings_send(kh_supervisor *supervisor, size_t first_socket);
void kh_settings_confine(kh_supervisor *supervisor);
/* Who runs the keeper of a token. KH_E_INVALID: there is no such user. */
KH_MUST_USE kh_result kh_token_user(const kh_config *config, const kh_config_token *token, kh_user *user, char *error);
void kh_settings_stop(kh_supervisor *supervisor);

/* ---- metrics_sockets.c; error: KH_CONFIG_ERROR_MAX bytes */
/* Opens what the configuration names and is not open yet; on failure none of those stay open. */
KH_MUST_USE kh_result kh_metrics_open(kh_supervisor *supervisor, const kh_config *config, char *error);
/* Closes what the configuration does not name; NULL: all. */
void kh_metrics_close(kh_supervisor *supervisor, const kh_config *config);
/* Sends them to the front. KH_E_IO. */
KH_MUST_USE kh_result kh_metrics_send(kh_supervisor *supervisor);

/* ---- children.c */
void kh_children_init(kh_supervisor *supervisor);
void kh_child_init(kh_supervisor *supervisor, kh_child *child, kh_child_kind kind, const char *token);
/* The i-th child there is, from 0 on: front, keeper, tokens' keepers. NULL: no more. */
kh_child *kh_children_at(kh_supervisor *supervisor, size_t i);
/* Starts the child now; if that fails, later. */
void kh_child_start(kh_child *child);
/* Starts the child again: at once after it has served for a while, else after a back-off. */
void kh_child_start_later(kh_child *child);
/* The same after so many seconds; it is not to blame. */
void kh_child_start_after(kh_child *child, double wait_s);
/* SIGKILL: it does not answer. */
void kh_child_kill(kh_child *child, const char *why);
void kh_children_send_processes(kh_supervisor *supervisor);

/* ---- joints.c */
/* A new child has its configuration: rings and links with those that run. */
void kh_joints_make(kh_child *child);
/* A child is ready: the front gets its ring, or all rings. */
void kh_joints_give(kh_child *child);
/* A keeper is gone: tells the front. */
void kh_joints_break(kh_child *child);
/* Tells the store's keeper which tokens and pools there are. */
void kh_joints_send_places(kh_supervisor *supervisor);

/* ---- tokens.c */
/* Starts the keepers of all tokens of the configuration that have none. */
void kh_tokens_start(kh_supervisor *supervisor);
/* After a reload: keepers whose block or PIN changed are started anew, those whose block is gone are stopped. */
void kh_tokens_change(kh_supervisor *supervisor, const kh_settings *old);
/* Its boot message. KH_E_NOT_FOUND: its block is gone. */
KH_MUST_USE kh_result kh_token_boot(kh_child *child, int control_fd);
/* Its block in the configuration; NULL: it is gone. */
const kh_config_token *kh_token_block(const kh_child *child);
/* It is gone. Starts it again, or remembers why not; may free it. */
void kh_token_died(kh_child *child, int status);
/* NULL: there is none of that name. */
kh_child *kh_token_find(kh_supervisor *supervisor, const char *name);
void kh_token_forget(kh_child *child);

#endif

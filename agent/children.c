/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The roles: starting them, noticing that they died, starting them again. The first new start is immediate;
 * one that dies again before it has served for half a second waits, longer each time.
 */
#include "channel.h"
#include "kektoken.h"
#include "log.h"
#include "process.h"
#include "secret.h"
#include "supervisor.h"
#include <errno.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SERVED_S 0.5 /* a child that was ready for this long is no crash loop */
#define BACKOFF_FIRST_S 0.1
#define BACKOFF_MOST_S 30.0
#define TOKEN_FAILURES 10 /* in a row, and then it is a crash loop as others */
#define TOKEN_BACKOFF_S 0.25
#define TOKEN_DESCRIPTORS 1024 /* a vendor's library opens what it likes */

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

kh_child *kh_children_at(kh_supervisor *supervisor, size_t i)
{
    if (i < 2) {
        return i == 0 ? &supervisor->front : &supervisor->keeper;
    }
    for (size_t at = 0, left = i - 2; at < KH_TOKENS_MAX; at++) {
        if (supervisor->tokens[at] != NULL && left-- == 0) {
            return supervisor->tokens[at];
        }
    }
    return NULL;
}

void kh_children_send_processes(kh_supervisor *supervisor)
{
    kh_boot_process list[KH_BOOT_PROCESSES] = {{.pid = getpid(), .starts = 1, .role = "supervisor"}};
    const kh_child *child = NULL;
    size_t count = 1;

    for (size_t i = 0; (child = kh_children_at(supervisor, i)) != NULL && count < KH_BOOT_PROCESSES; i++) {
        if (child->pid != 0) {
            list[count].pid = child->pid;
            list[count].starts = child->starts;
            strncpy(list[count++].role, child->kind == KH_CHILD_TOKEN ? "token" : child->name, sizeof list->role - 1);
        }
    }
    if (supervisor->front.pid != 0 && kh_channel_send(supervisor->front.channel_fd, KH_MSG_PROCESSES, list,
                                                      count * sizeof *list, NULL, 0) != KH_OK) {
        kh_child_kill(&supervisor->front, "does not read its channel");
    }
}

void kh_child_kill(kh_child *child, const char *why)
{
    if (child->pid != 0 && !child->kill_sent) {
        kh_log(KH_LOG_ERROR, "process_kill", KH_LT("role", child->name), KH_LN("pid", child->pid),
               KH_LT("why", why));
        kill(child->pid, SIGKILL);
        child->kill_sent = true;
    }
}

/* ---- What a child says ---- */

/* The front says that a keeper answers nothing. It may say so of anyone: then of nobody. */
static void take_stuck(kh_supervisor *supervisor, const kh_channel_message *message)
{
    kh_child *child = &supervisor->keeper;
    kh_boot_ring which;

    if (message->len == sizeof which) {
        memcpy(&which, message->payload, sizeof which);
        which.token[KH_PLACE_MAX] = '\0';
        child = which.token[0] != '\0' ? kh_token_find(supervisor, which.token) : child;
    }
    if (child != NULL && child->ready) {
        kh_child_kill(child, "does not answer");
    }
}

static void on_channel(struct ev_loop *loop, ev_io *io, int events)
{
    kh_child *child = io->data;
    kh_channel_message message;
    kh_result result = KH_OK;

    (void)events;
    result = kh_channel_receive(child->channel_fd, false, &message);
    if (result == KH_AGAIN) {
        return;
    }
    if (result != KH_OK) { /* its end is closed: it is dying, and SIGCHLD follows */
        ev_io_stop(loop, io);
        return;
    }
    kh_channel_close_fds(&message);
    child->silent_s = 0;
    if (message.type == KH_MSG_KEEPER_STUCK && child->kind == KH_CHILD_FRONT) {
        take_stuck(child->supervisor, &message);
    }
    if (message.type == KH_MSG_READY && !child->ready) {
        child->ready = child->was_ready = child->was_seen = true;
        child->ready_at = kh_supervisor_clock();
        kh_log(KH_LOG_INFO, "process_ready", KH_LT("role", child->name), KH_LN("pid", child->pid),
               KH_LN("ms", (child->ready_at - child->started) * 1000));
        kh_joints_give(child);
        child->new_pin = false;
        if (child->kind == KH_CHILD_KEEPER) {
            kh_tokens_start(child->supervisor);
        }
        kh_supervisor_note_ready(child->supervisor);
    }
}

/* ---- Starting ---- */

/*
 * `keyholdctl kek rotate` puts another key or passphrase into the file while the agent runs: a keeper that starts now needs that one.
 * A file that cannot be read now, and the terminal, leave what was read before.
 */
static void read_kek_again(kh_supervisor *supervisor)
{
    const kh_config *config = supervisor->settings.config;
    const kh_kek_kind kind = config->kek_file != NULL ? KH_KEK_FILE : KH_KEK_PASSPHRASE;
    char error[KH_CONFIG_ERROR_MAX];
    kh_kek kek = {0};

    /* A reload may have named another file: that one counts from the next start on. */
    if (supervisor->kek_source != NULL && strcmp(supervisor->kek_source, kh_kek_source(config)) == 0 &&
        kind == supervisor->kek.kind && kh_kek_take(supervisor, &supervisor->kek, &kek, error) == KH_OK) {
        kh_kek_free(&supervisor->kek);
        supervisor->kek = kek;
    }
}

static kh_result boot_keeper(kh_child *child, int control_fd)
{
    kh_supervisor *supervisor = child->supervisor;
    kh_boot_keeper boot = supervisor->keeper_boot;
    uint8_t *payload = kh_secret_alloc(KH_CHANNEL_PAYLOAD_MAX, NULL);
    size_t path_len = strlen(supervisor->store), len = 0;
    int fds[2] = {control_fd, supervisor->admin.fd};
    kh_result result = KH_E_MEMORY;

    read_kek_again(supervisor);
    len = sizeof boot + supervisor->kek.len + path_len;
    boot.kek_kind = supervisor->kek.kind;
    boot.kek_len = (uint32_t)supervisor->kek.len;
    boot.log_level = supervisor->settings.config->log_level;
    boot.log_json = supervisor->settings.config->log_format == KH_FORMAT_JSON;
    if (payload != NULL && len <= KH_CHANNEL_PAYLOAD_MAX) {
        memcpy(payload, &boot, sizeof boot);
        memcpy(payload + sizeof boot, supervisor->kek.secret, supervisor->kek.len);
        memcpy(payload + sizeof boot + supervisor->kek.len, supervisor->store, path_len);
        result =
            kh_channel_send(child->channel_fd, KH_MSG_KEEPER_BOOT, payload, len, fds, fds[1] >= 0 ? 2 : 1);
    }
    kh_secret_free(payload, KH_CHANNEL_PAYLOAD_MAX);
    return result;
}

/* What a new child has to be told. control_fd: the keeper's end of its control socket. */
static kh_result boot(kh_child *child, int control_fd)
{
    kh_result result = child->kind == KH_CHILD_KEEPER  ? boot_keeper(child, control_fd)
                       : child->kind == KH_CHILD_TOKEN ? kh_token_boot(child, control_fd)
                                                       : kh_settings_send(child->supervisor, 0);

    if (result == KH_OK) {
        kh_joints_make(child);
        kh_children_send_processes(child->supervisor);
    }
    return result;
}

static void on_restart(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop;
    (void)events;
    kh_child_start(timer->data);
}

void kh_child_start_after(kh_child *child, double wait_s)
{
    ev_timer_stop(child->supervisor->loop, &child->restart);
    ev_timer_init(&child->restart, on_restart, wait_s, 0.);
    child->restart.data = child;
    ev_now_update(child->supervisor->loop);
    ev_timer_start(child->supervisor->loop, &child->restart);
}

void kh_child_start_later(kh_child *child)
{
    double wait_s = 0;

    child->failures++;
    if (child->kind == KH_CHILD_TOKEN && child->failures > 1 && child->failures < TOKEN_FAILURES) {
        wait_s = TOKEN_BACKOFF_S; /* a vendor's library that crashes now and then: the others wait for its keys */
    } else if (child->failures > 1) {
        wait_s = BACKOFF_FIRST_S * (double)(1u << (child->failures < 16 ? child->failures - 2 : 14));
        wait_s = wait_s < BACKOFF_MOST_S ? wait_s : BACKOFF_MOST_S;
        kh_log(KH_LOG_ERROR, "crash_loop", KH_LT("role", child->name), KH_LN("failures", child->failures),
               KH_LN("next_start_ms", wait_s * 1000));
    }
    kh_child_start_after(child, wait_s);
}

static void on_child(struct ev_loop *loop, ev_child *watcher, int events);

static bool spawn(kh_child *child, int channel_fd)
{
    kh_supervisor *supervisor = child->supervisor;
    const kh_config *config = supervisor->settings.config;
    const kh_config_token *token = child->kind == KH_CHILD_TOKEN ? kh_token_block(child) : NULL;
    char error[KH_CONFIG_ERROR_MAX];
    kh_process_spec spec = {.role = child->role,
                            .exe_fd = supervisor->exe_fd,
                            .channel_fd = channel_fd,
                            .change_user = supervisor->privileged,
                            .locks_memory = child->kind != KH_CHILD_FRONT,
                            .user = child->kind == KH_CHILD_FRONT ? supervisor->front_user : supervisor->keeper_user,
                            .descriptors = child->kind == KH_CHILD_FRONT ? (size_t)config->max_connections + 256
                                           : child->kind == KH_CHILD_KEEPER ? 256
                                                                            : TOKEN_DESCRIPTORS};

    if (token != NULL) {
        spec.env = token->env;
        spec.env_count = token->env_count;
        if (supervisor->privileged && kh_token_user(config, token, &spec.user, error) != KH_OK) {
            errno = ENOENT;
            return false;
        }
    }
    child->pid = kh_process_start(&spec);
    if (child->pid < 0) {
        child->pid = 0;
        return false;
    }
    child->ready = child->kill_sent = false;
    child->starts++;
    child->started = kh_supervisor_clock();
    child->silent_s = 0;
    ev_child_init(&child->watcher, on_child, child->pid, 0);
    child->watcher.data = child;
    ev_child_start(supervisor->loop, &child->watcher);
    ev_io_init(&child->channel_io, on_channel, child->channel_fd, EV_READ);
    child->channel_io.data = child;
    ev_io_start(supervisor->loop, &child->channel_io);
    return true;
}

void kh_child_start(kh_child *child)
{
    int channel[2] = {-1, -1}, control[2] = {-1, -1};
    bool started =
        kh_channel_pair(channel) == KH_OK && (child->kind == KH_CHILD_FRONT || kh_channel_pair(control) == KH_OK);

    child->channel_fd = channel[0];
    child->control_fd = control[0];
    started = started && spawn(child, channel[1]);
    close_fd(&channel[1]);
    if (started) {
        kh_log(KH_LOG_INFO, "process_started", KH_LT("role", child->name), KH_LN("pid", child->pid));
        if (boot(child, control[1]) != KH_OK) {
            kh_child_kill(child, "does not take its configuration");
        }
    } else {
        kh_log(KH_LOG_ERROR, "process_not_started", KH_LT("role", child->name),
               KH_LT("error", strerror(errno)));
        close_fd(&child->channel_fd);
        close_fd(&child->control_fd);
        child->was_seen = true;
        kh_child_start_later(child);
        kh_supervisor_note_ready(child->supervisor);
    }
    close_fd(&control[1]);
}

/* ---- Death ---- */

static void log_death(const kh_child *child, int status)
{
    if (WIFSIGNALED(status)) {
        kh_log(KH_LOG_ERROR, "process_died", KH_LT("role", child->name), KH_LN("pid", child->pid),
               KH_LN("signal", WTERMSIG(status)));
    } else {
        kh_log((child->supervisor->stopping || child->asked_to_stop) && WEXITSTATUS(status) == 0 ? KH_LOG_INFO : KH_LOG_ERROR,
               "process_died", KH_LT("role", child->name), KH_LN("pid", child->pid),
               KH_LN("exit", WEXITSTATUS(status)));
    }
}

static void on_child(struct ev_loop *loop, ev_child *watcher, int events)
{
    kh_child *child = watcher->data;
    kh_supervisor *supervisor = child->supervisor;
    bool served = child->ready && kh_supervisor_clock() - child->ready_at >= SERVED_S;

    (void)events;
    ev_child_stop(loop, watcher);
    ev_io_stop(loop, &child->channel_io);
    log_death(child, watcher->rstatus);
    child->pid = 0;
    child->ready = false;
    close_fd(&child->channel_fd);
    close_fd(&child->control_fd);
    child->failures = served ? 0 : child->failures;
    child->parked = child->kind == KH_CHILD_TOKEN && WIFEXITED(watcher->rstatus) &&
                    WEXITSTATUS(watcher->rstatus) == KH_EXIT_PIN;
    kh_joints_break(child);
    if (child->kind == KH_CHILD_TOKEN && !supervisor->stopping) {
        child->was_seen = true;
        kh_token_died(child, watcher->rstatus);
        kh_children_send_processes(supervisor);
        kh_supervisor_note_ready(supervisor);
    } else if (!child->was_ready && !supervisor->stopping &&
        (child->failures >= 2 ||
         (WIFEXITED(watcher->rstatus) && WEXITSTATUS(watcher->rstatus) != KH_EXIT_BUG))) {
        kh_log(KH_LOG_ERROR, "cannot_start", KH_LT("role", child->name),
               KH_LT("do", "see what this role says in the lines before"));
        kh_supervisor_end(supervisor, 1);
    } else if (supervisor->stopping) {
        kh_supervisor_note_stopped(supervisor, child);
    } else {
        kh_child_start_later(child);
        kh_children_send_processes(supervisor);
    }
}

void kh_child_init(kh_supervisor *supervisor, kh_child *child, kh_child_kind kind, const char *token)
{
    static const char *const roles[] = {
        [KH_CHILD_FRONT] = KH_ROLE_FRONT, [KH_CHILD_KEEPER] = KH_ROLE_KEEPER, [KH_CHILD_TOKEN] = KH_ROLE_TOKEN};

    child->supervisor = supervisor;
    child->kind = kind;
    snprintf(child->role, sizeof child->role, "%s%s", roles[kind], token);
    snprintf(child->token, sizeof child->token, "%s", token);
    child->name = child->role + strlen("keyholdd: ");
    child->channel_fd = child->control_fd = -1;
    for (int i = 0; i < 3; i++) {
        child->ring[i] = -1;
    }
    ev_timer_init(&child->restart, on_restart, 0., 0.);
    child->restart.data = child;
}

void kh_children_init(kh_supervisor *supervisor)
{
    kh_child_init(supervisor, &supervisor->front, KH_CHILD_FRONT, "");
    kh_child_init(supervisor, &supervisor->keeper, KH_CHILD_KEEPER, "");
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The roles: starting them, noticing that they died, starting them again. The first new start is immediate;
 * one that dies again before it has served for half a second waits, longer each time.
 *
 * A ring is shared by one front and one keeper: whenever either is new, so is the ring. The front gets it
 * when the keeper is ready to serve it.
 */
#include "channel.h"
#include "log.h"
#include "process.h"
#include "secret.h"
#include "supervisor.h"
#include <errno.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SERVED_S 0.5 /* a child that was ready for this long is no crash loop */
#define BACKOFF_FIRST_S 0.1
#define BACKOFF_MOST_S 30.0
#define LOOKUP_SLOTS 80 /* besides the lanes' windows: lookups and store operations */

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

void kh_children_send_processes(kh_supervisor *supervisor)
{
    const kh_child *children[] = {&supervisor->front, &supervisor->keeper};
    kh_boot_process list[KH_BOOT_PROCESSES] = {{.pid = getpid(), .starts = 1, .role = "supervisor"}};
    size_t count = 1;

    for (size_t i = 0; i < 2; i++) {
        if (children[i]->pid != 0) {
            list[count].pid = children[i]->pid;
            list[count].starts = children[i]->starts;
            strncpy(list[count++].role, children[i]->name, sizeof list->role - 1);
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

/* ---- Rings ---- */

static void new_ring(kh_supervisor *supervisor)
{
    uint32_t slots = (KH_LANE_COUNT - 1) * 2 * KH_BATCH_MAX * supervisor->workers + LOOKUP_SLOTS;
    kh_result result = KH_OK;

    for (int i = 0; i < 3; i++) {
        close_fd(&supervisor->ring[i]);
    }
    if (supervisor->keeper.pid == 0 || supervisor->front.pid == 0) {
        return; /* whichever comes makes one */
    }
    result = kh_ring_create(slots < 4096 ? slots : 4096, supervisor->ring);
    if (result == KH_OK) {
        result = kh_keeper_send_ring(supervisor->keeper.control_fd, supervisor->ring);
    }
    if (result != KH_OK) {
        kh_log(KH_LOG_ERROR, "ring_failed", KH_LT("why", kh_result_name(result)),
               KH_LT("means", "nothing is signed until front or keeper start again"));
    }
}

static void give_ring(kh_supervisor *supervisor)
{
    if (supervisor->front.ready && supervisor->keeper.ready && supervisor->ring[0] >= 0 &&
        kh_channel_send(supervisor->front.channel_fd, KH_MSG_RING, NULL, 0, supervisor->ring, 3) != KH_OK) {
        kh_child_kill(&supervisor->front, "does not take its ring");
    }
}

/* ---- What a child says ---- */

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
    if (message.type == KH_MSG_KEEPER_STUCK && !child->is_keeper && child->supervisor->keeper.ready) {
        kh_child_kill(&child->supervisor->keeper, "does not answer");
    }
    if (message.type == KH_MSG_READY && !child->ready) {
        child->ready = child->was_ready = true;
        child->ready_at = kh_supervisor_clock();
        kh_log(KH_LOG_INFO, "process_ready", KH_LT("role", child->name), KH_LN("pid", child->pid),
               KH_LN("ms", (child->ready_at - child->started) * 1000));
        give_ring(child->supervisor);
        kh_supervisor_note_ready(child->supervisor);
    }
}

/* ---- Starting ---- */

static kh_result boot_keeper(kh_child *child, int control_fd)
{
    kh_supervisor *supervisor = child->supervisor;
    kh_boot_keeper boot = supervisor->keeper_boot;
    uint8_t *payload = kh_secret_alloc(KH_CHANNEL_PAYLOAD_MAX, NULL);
    size_t path_len = strlen(supervisor->store), len = sizeof boot + supervisor->kek.len + path_len;
    int fds[2] = {control_fd, supervisor->admin.fd};
    kh_result result = KH_E_MEMORY;

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
    kh_result result =
        child->is_keeper ? boot_keeper(child, control_fd) : kh_settings_send(child->supervisor, 0);

    if (result == KH_OK) {
        new_ring(child->supervisor); /* the other may have used the old one */
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

void kh_child_start_later(kh_child *child)
{
    double wait_s = 0;

    child->failures++;
    if (child->failures > 1) {
        wait_s = BACKOFF_FIRST_S * (double)(1u << (child->failures < 16 ? child->failures - 2 : 14));
        wait_s = wait_s < BACKOFF_MOST_S ? wait_s : BACKOFF_MOST_S;
        kh_log(KH_LOG_ERROR, "crash_loop", KH_LT("role", child->name), KH_LN("failures", child->failures),
               KH_LN("next_start_ms", wait_s * 1000));
    }
    ev_timer_stop(child->supervisor->loop, &child->restart);
    ev_timer_init(&child->restart, on_restart, wait_s, 0.);
    child->restart.data = child;
    ev_now_update(child->supervisor->loop);
    ev_timer_start(child->supervisor->loop, &child->restart);
}

static void on_child(struct ev_loop *loop, ev_child *watcher, int events);

static bool spawn(kh_child *child, int channel_fd)
{
    kh_supervisor *supervisor = child->supervisor;
    const kh_process_spec spec = {
        .role = child->role,
        .exe_fd = supervisor->exe_fd,
        .channel_fd = channel_fd,
        .change_user = supervisor->privileged,
        .locks_memory = child->is_keeper,
        .user = child->is_keeper ? supervisor->keeper_user : supervisor->front_user,
        .descriptors = child->is_keeper ? 256 : (size_t)supervisor->settings.config->max_connections + 256};

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
        kh_channel_pair(channel) == KH_OK && (!child->is_keeper || kh_channel_pair(control) == KH_OK);

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
        kh_child_start_later(child);
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
        kh_log(child->supervisor->stopping && WEXITSTATUS(status) == 0 ? KH_LOG_INFO : KH_LOG_ERROR,
               "process_died", KH_LT("role", child->name), KH_LN("pid", child->pid),
               KH_LN("exit", WEXITSTATUS(status)));
    }
}

static void tell_front(kh_supervisor *supervisor)
{
    if (supervisor->front.pid != 0 &&
        kh_channel_send(supervisor->front.channel_fd, KH_MSG_KEEPER_DOWN, NULL, 0, NULL, 0) != KH_OK) {
        kh_child_kill(&supervisor->front, "does not read its channel");
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
    if (child->is_keeper) {
        tell_front(supervisor);
    }
    if (!child->was_ready && !supervisor->stopping &&
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

static void init(kh_supervisor *supervisor, kh_child *child, const char *role)
{
    child->supervisor = supervisor;
    child->role = role;
    child->name = role + strlen("keyholdd: ");
    child->channel_fd = child->control_fd = -1;
    ev_timer_init(&child->restart, on_restart, 0., 0.);
    child->restart.data = child;
}

void kh_children_init(kh_supervisor *supervisor)
{
    init(supervisor, &supervisor->front, KH_ROLE_FRONT);
    init(supervisor, &supervisor->keeper, KH_ROLE_KEEPER);
    supervisor->keeper.is_keeper = true;
    for (int i = 0; i < 3; i++) {
        supervisor->ring[i] = -1;
    }
}

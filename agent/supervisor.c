/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor: start, signals, what systemd is told, and the end. */
#include "supervisor.h"
#include "channel.h"
#include "confine.h"
#include "log.h"
#include "probe.h"
#include "secret.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#define SILENCE_S 10.0 /* a child that has said nothing for so long is stuck */
#define KEEPER_PATIENCE_S 5.0
#define FRONT_PATIENCE_S 2.0 /* beyond its drain timeout */

double kh_supervisor_clock(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void kh_supervisor_end(kh_supervisor *supervisor, int exit_code)
{
    supervisor->exit_code = exit_code;
    ev_break(supervisor->loop, EVBREAK_ALL);
}

void kh_supervisor_note_ready(kh_supervisor *supervisor)
{
    const kh_child *child = NULL;
    bool ready = supervisor->front.ready && supervisor->keeper.ready;

    for (size_t i = 2; (child = kh_children_at(supervisor, i)) != NULL; i++) {
        ready = ready && child->was_seen;
    }
    if (!supervisor->announced && ready) {
        supervisor->announced = true;
        kh_log(KH_LOG_NOTICE, "ready", KH_LT("version", KH_VERSION));
        sd_notify(0, "READY=1\nSTATUS=serving");
    }
}

/* ---- SIGHUP ---- */

static void on_hup(struct ev_loop *loop, ev_signal *watcher, int events)
{
    kh_supervisor *supervisor = watcher->data;
    char error[KH_CONFIG_ERROR_MAX] = "";
    struct timespec now = {0};

    (void)loop;
    (void)events;
    if (supervisor->stopping) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
    if (kh_settings_reload(supervisor, error) != KH_OK) {
        kh_log(KH_LOG_ERROR, "reload_failed", KH_LT("error", error),
               KH_LT("means", "the old configuration stays"));
    } else {
        kh_log(KH_LOG_NOTICE, "reloaded", KH_LT("file", supervisor->settings.config->path));
    }
    sd_notify(0, "READY=1");
}

/* ---- The end: first the front, which still needs the keepers; then these ---- */

static void on_patience(struct ev_loop *loop, ev_timer *timer, int events)
{
    kh_supervisor *supervisor = timer->data;
    kh_child *child = NULL;

    (void)loop;
    (void)events;
    for (size_t i = 0; (child = kh_children_at(supervisor, i)) != NULL; i++) {
        if (child->pid != 0) {
            kh_child_kill(child, "does not stop");
            if (child->kind == KH_CHILD_FRONT) {
                return; /* the keepers are told when it is gone */
            }
        }
    }
}

static void wait_most(kh_supervisor *supervisor, double seconds)
{
    ev_timer_stop(supervisor->loop, &supervisor->patience);
    ev_timer_init(&supervisor->patience, on_patience, seconds, 0.);
    supervisor->patience.data = supervisor;
    ev_now_update(supervisor->loop);
    ev_timer_start(supervisor->loop, &supervisor->patience);
}

static bool anybody_runs(kh_supervisor *supervisor)
{
    const kh_child *child = NULL;

    for (size_t i = 0; (child = kh_children_at(supervisor, i)) != NULL; i++) {
        if (child->pid != 0) {
            return true;
        }
    }
    return false;
}

static void stop_keepers(kh_supervisor *supervisor)
{
    kh_child *child = NULL;

    for (size_t i = 1; (child = kh_children_at(supervisor, i)) != NULL; i++) {
        ev_timer_stop(supervisor->loop, &child->restart);
        if (child->pid != 0 && kh_keeper_send_stop(child->control_fd) != KH_OK) {
            kh_child_kill(child, "does not read its channel");
        }
    }
    if (!anybody_runs(supervisor)) {
        kh_supervisor_end(supervisor, 0);
        return;
    }
    wait_most(supervisor, KEEPER_PATIENCE_S);
}

void kh_supervisor_note_stopped(kh_supervisor *supervisor, kh_child *child)
{
    if (!anybody_runs(supervisor)) {
        kh_supervisor_end(supervisor, 0);
    } else if (child->kind == KH_CHILD_FRONT) {
        stop_keepers(supervisor);
    } else if (supervisor->front.pid != 0 && !child->parked) {
        kh_child_start_later(child); /* what is queued still needs one */
    }
}

static void on_stop(struct ev_loop *loop, ev_signal *watcher, int events)
{
    kh_supervisor *supervisor = watcher->data;
    kh_child *child = NULL;
    uint32_t most_ms = (uint32_t)supervisor->settings.config->drain_timeout_ms;

    (void)loop;
    (void)events;
    if (supervisor->stopping) { /* asked twice: now */
        for (size_t i = 0; (child = kh_children_at(supervisor, i)) != NULL; i++) {
            kh_child_kill(child, "asked to stop twice");
        }
        return;
    }
    supervisor->stopping = true;
    sd_notify(0, "STOPPING=1\nSTATUS=draining");
    kh_log(KH_LOG_NOTICE, "stopping", KH_LN("signal", watcher->signum));
    ev_timer_stop(supervisor->loop, &supervisor->front.restart);
    if (supervisor->front.pid == 0) {
        stop_keepers(supervisor);
        return;
    }
    if (kh_channel_send(supervisor->front.channel_fd, KH_MSG_DRAIN, &most_ms, sizeof most_ms, NULL, 0) !=
        KH_OK) {
        kh_child_kill(&supervisor->front, "does not read its channel");
    }
    wait_most(supervisor, most_ms / 1000. + FRONT_PATIENCE_S);
}

/* ---- Watchdogs: of the children, and systemd's of the agent ---- */

/*
 * Ticks are counted, not time: after the machine or the whole agent has stood still, the children get as much
 * time to speak again as the supervisor to listen.
 */
static void watch_child(kh_child *child, double tick_s)
{
    if (child->ready && child->pid != 0) {
        child->silent_s += tick_s;
        if (child->silent_s > SILENCE_S) {
            kh_child_kill(child, "is stuck");
        }
    }
}

static void on_watchdog(struct ev_loop *loop, ev_timer *timer, int events)
{
    kh_supervisor *supervisor = timer->data;
    kh_child *child = NULL;

    (void)loop;
    (void)events;
    for (size_t i = 0; (child = kh_children_at(supervisor, i)) != NULL; i++) {
        watch_child(child, timer->repeat);
    }
    if (supervisor->watchdog_s > 0) {
        sd_notify(0, "WATCHDOG=1");
    }
}

static void watch(kh_supervisor *supervisor, ev_signal *watcher, int signum,
                  void (*handler)(struct ev_loop *, ev_signal *, int))
{
    ev_signal_init(watcher, handler, signum);
    watcher->data = supervisor;
    ev_signal_start(supervisor->loop, watcher);
}

static void start_watching(kh_supervisor *supervisor)
{
    uint64_t usec = 0;

    if (sd_watchdog_enabled(0, &usec) > 0) {
        supervisor->watchdog_s = (double)usec / 1e6;
    }
    watch(supervisor, &supervisor->hup, SIGHUP, on_hup);
    watch(supervisor, &supervisor->term, SIGTERM, on_stop);
    watch(supervisor, &supervisor->interrupt, SIGINT, on_stop);
    ev_timer_init(&supervisor->watchdog, on_watchdog, 1.,
                  supervisor->watchdog_s > 0 && supervisor->watchdog_s < 4 ? supervisor->watchdog_s / 2 : 2.);
    supervisor->watchdog.data = supervisor;
    ev_timer_start(supervisor->loop, &supervisor->watchdog);
}

/* ---- Start ---- */

static uint32_t count_cpus(void)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

static int check(const kh_options *options)
{
    char error[KH_CONFIG_ERROR_MAX] = "";
    kh_settings settings;

    if (kh_settings_load(options->config_path, true, &settings, error) != KH_OK) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    if (kh_settings_check(settings.config, error) != KH_OK) {
        bool named = strncmp(error, settings.config->path, strlen(settings.config->path)) == 0; /* with the line */

        fprintf(stderr, "%s%s%s\n", named ? "" : settings.config->path, named ? "" : ": ", error);
        kh_settings_free(&settings);
        return 1;
    }
    for (size_t i = 0; i < settings.config->listener_count; i++) {
        if (settings.materials[i].warning[0] != '\0') {
            printf("warning: %s\n", settings.materials[i].warning);
        }
    }
    printf("%s: ok, %zu listeners, %zu identities", settings.config->path, settings.config->listener_count,
           settings.config->identity_count);
    if (settings.config->token_count > 0) {
        printf(", %zu tokens, %zu pools", settings.config->token_count, settings.config->pool_count);
    }
    printf("\n");
    kh_settings_free(&settings);
    return 0;
}

static kh_result start(kh_supervisor *supervisor, char *error)
{
    const kh_config *config = NULL;
    kh_result result = kh_settings_load(supervisor->options->config_path, true, &supervisor->settings, error);

    if (result != KH_OK) {
        return result;
    }
    config = supervisor->settings.config;
    kh_log_init("supervisor", config->log_level, config->log_format == KH_FORMAT_JSON);
    supervisor->privileged = geteuid() == 0;
    if (!supervisor->privileged) {
        kh_log(KH_LOG_WARN, "unprivileged",
               KH_LT("means", "front and keeper run as the same user as the supervisor"));
    }
    supervisor->workers = config->workers > 0 ? (uint32_t)config->workers : count_cpus();
    result = kh_settings_start(supervisor, error);
    if (result != KH_OK) {
        return result;
    }
    supervisor->loop = ev_default_loop(EVFLAG_NOENV | EVBACKEND_EPOLL);
    if (supervisor->loop == NULL) {
        snprintf(error, KH_CONFIG_ERROR_MAX, "no event loop: %s", strerror(errno));
        return KH_E_MEMORY;
    }
    start_watching(supervisor);
    kh_settings_confine(supervisor);
    kh_confine(supervisor->has_tokens ? KH_CONFINE_SUPERVISOR_OF_TOKENS : KH_CONFINE_SUPERVISOR);
    kh_probe("supervisor");
    return KH_OK;
}

int kh_supervise(const kh_options *options)
{
    static kh_supervisor supervisor;
    char error[KH_CONFIG_ERROR_MAX] = "";

    /*
     * Before anything else: later /proc/self/exe may not be opened any more, and the file may have been
     * replaced.
     */
    supervisor.exe_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    supervisor.options = options;
    supervisor.settings.text_fd = -1;
    supervisor.admin.fd = -1;
    kh_secret_process();
    kh_children_init(&supervisor);
    if (options->check) {
        return check(options);
    }
    signal(SIGPIPE, SIG_IGN);
    if (start(&supervisor, error) != KH_OK) {
        kh_log(KH_LOG_ERROR, "start_failed", KH_LT("error", error));
        fprintf(stderr, "keyholdd: %s\n", error);
        kh_settings_stop(&supervisor);
        return 1;
    }
    kh_child_start(&supervisor.keeper);
    kh_child_start(&supervisor.front);
    ev_run(supervisor.loop, 0);
    supervisor.stopping = true;
    kh_settings_stop(&supervisor);
    kh_log(KH_LOG_NOTICE, "stopped", KH_LN("exit", supervisor.exit_code));
    return supervisor.exit_code;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What lone.h decides is done here: front and workers keep apart, and the front's sleep is cut short. */
#include "front.h"
#include <sys/timerfd.h>
#include <unistd.h>

static void end(kh_front *front)
{
    const kh_lone *lone = &front->lone;

    front->apart = false;
    kh_keystore_anywhere(front->store.keystore);
    kh_log(KH_LOG_DEBUG, "cpu_any", KH_LT("why", kh_lone_why_name(lone->why)), KH_LN("naps", front->naps),
           KH_LN("took_us", lone->apart_ns[lone->lane] / 1000), KH_LN("usual_us", lone->usual_ns[lone->lane] / 1000));
}

static void begin(kh_front *front)
{
    front->naps = 0;
    /* Where it did harm, perhaps somebody else is on that CPU, or on that of the host: another then. */
    front->cpu = kh_keystore_apart(front->store.keystore, front->lone.why == KH_LONE_HARM ? front->cpu : -1);
    front->apart = front->cpu >= 0;
    if (front->apart) {
        kh_log(KH_LOG_DEBUG, "cpu_apart", KH_LN("cpu", front->cpu));
    } else {
        kh_lone_end(&front->lone, KH_LONE_REFUSED, front->now_ns);
        end(front);
    }
}

/* Before anything is dispatched: what comes together finds all CPUs. */
void kh_naps_turn(kh_front *front)
{
    const uint32_t waiting = front->waiting_jobs, in_ring = front->in_ring_jobs.count;

    if (front->store.keystore == NULL) {
        return;
    }
    if (front->config->cpu_affinity) {
        kh_lone_turn(&front->lone, waiting > in_ring ? waiting : in_ring, front->now_ns);
    } else {
        kh_lone_end(&front->lone, KH_LONE_OFF, front->now_ns);
    }
    if (front->lone.apart != front->apart) {
        (front->apart ? end : begin)(front);
    }
}

static void nap(kh_front *front)
{
    const uint64_t nap_ns = kh_lone_nap(&front->lone, kh_front_clock());
    const struct itimerspec in = {.it_value.tv_nsec = (long)nap_ns};

    if (nap_ns > 0) {
        (void)!timerfd_settime(front->nap_io.fd, 0, &in, NULL);
    }
}

static void on_nap_over(struct ev_loop *loop, ev_io *io, int events)
{
    kh_front *front = io->data;
    uint64_t times = 0;

    (void)loop;
    (void)events;
    if (read(io->fd, &times, sizeof times) == sizeof times) {
        front->naps++;
        nap(front);
    }
}

void kh_naps_dispatched(kh_front *front)
{
    const kh_job *job = front->in_ring_jobs.first;

    if (front->in_ring_jobs.count == 1 && front->nap_io.fd >= 0 &&
        kh_lone_begin(&front->lone, kh_job_cookie(job), job->lane, job->submitted_ns)) {
        nap(front);
    }
}

void kh_naps_keeper_lost(kh_front *front)
{
    kh_lone_end(&front->lone, KH_LONE_KEEPER, front->now_ns);
    if (front->apart) {
        end(front);
    }
}

void kh_naps_start(kh_front *front)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    ev_io_init(&front->nap_io, on_nap_over, fd, EV_READ);
    front->nap_io.data = front;
    if (fd >= 0) {
        ev_io_start(front->loop, &front->nap_io);
    }
}

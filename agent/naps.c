/* SPDX-License-Identifier: Apache-2.0 */
/* What lone.h decides is done here: front and workers keep apart, and the front's sleep is cut short. */
#include "front.h"
#include <sched.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void apply(kh_front *front)
{
    if (front->lone.apart == front->apart || front->store.keystore == NULL) {
        return;
    }
    front->apart = front->lone.apart;
    if (!front->apart) {
        (void)kh_keystore_apart(front->store.keystore, false);
        kh_log(KH_LOG_DEBUG, "cpu_any");
    } else if (kh_keystore_apart(front->store.keystore, true)) {
        kh_log(KH_LOG_DEBUG, "cpu_apart", KH_LN("cpu", sched_getcpu()));
    } else { /* it may use one CPU only */
        front->apart = false;
        kh_lone_company(&front->lone, front->now_ns);
        front->lone.not_before_ns = UINT64_MAX;
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
    uint64_t times = 0;

    (void)loop;
    (void)events;
    if (read(io->fd, &times, sizeof times) == sizeof times) {
        nap(io->data);
    }
}

void kh_naps_turn(kh_front *front)
{
    const kh_job *job = front->in_ring_jobs.first;

    if (front->waiting_jobs > 1 || front->in_ring_jobs.count > 1 || !front->config->cpu_affinity) {
        kh_lone_company(&front->lone, front->now_ns);
    } else if (job != NULL && front->nap_io.fd >= 0 && !(front->lone.under_way && front->lone.cookie == kh_job_cookie(job))) {
        kh_lone_begin(&front->lone, kh_job_cookie(job), job->lane, job->submitted_ns);
        nap(front);
    }
    apply(front);
}

void kh_naps_over(kh_front *front)
{
    kh_lone_company(&front->lone, front->now_ns);
    front->apart = false; /* the ring that ends lets the front go */
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

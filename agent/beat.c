/* SPDX-License-Identifier: Apache-2.0 */
/* A keeper's sign of life. */
#include "beat.h"
#include "boot.h"
#include "channel.h"
#include "log.h"
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define BEAT_STACK (256 * 1024)

/* A process that is stopped or frozen says nothing; workers that hang are noticed by the front. */
static void *beat(void *arg)
{
    const struct timespec interval = {.tv_sec = KH_ALIVE_S};

    for (;;) {
        nanosleep(&interval, NULL);
        kh_channel_poke(KH_BOOT_FD, KH_MSG_ALIVE);
    }
    return arg;
}

static bool start_beating(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    bool started = false;

    if (pthread_attr_init(&attr) != 0) {
        return false;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
    started = pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED) == 0 &&
              pthread_attr_setstacksize(&attr, BEAT_STACK) == 0 && /* all of it gets locked */
              pthread_create(&thread, &attr, beat, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return started;
}

void kh_beat_start(void)
{
    if (!start_beating()) {
        kh_log(KH_LOG_ERROR, "start_failed", KH_LT("why", "no thread for the heartbeat"));
        _exit(KH_EXIT_BUG);
    }
}

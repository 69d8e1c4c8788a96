/* SPDX-License-Identifier: Apache-2.0 */
/* The queue of a thread that serves operations one by one. */
#include "keeper.h"

#include <string.h>

kh_result kh_desk_init(kh_desk *desk)
{
    memset(desk, 0, sizeof(*desk));
    if (pthread_mutex_init(&desk->lock, NULL) != 0) {
        return KH_E_MEMORY;
    }
    return pthread_cond_init(&desk->wake, NULL) == 0 ? KH_OK : KH_E_MEMORY;
}

void kh_desk_destroy(kh_desk *desk)
{
    pthread_cond_destroy(&desk->wake);
    pthread_mutex_destroy(&desk->lock);
}

bool kh_desk_push(kh_desk *desk, kh_desk_class class_, kh_op *op, uint32_t limit)
{
    bool taken = false;

    pthread_mutex_lock(&desk->lock);
    if (!desk->stop && desk->waiting < limit) {
        kh_op_push(&desk->queue[class_], op);
        desk->waiting++;
        taken = true;
        pthread_cond_signal(&desk->wake);
    }
    pthread_mutex_unlock(&desk->lock);
    return taken;
}

kh_op *kh_desk_pop(kh_desk *desk)
{
    kh_op *op = NULL;

    pthread_mutex_lock(&desk->lock);
    while (desk->waiting == 0 && !desk->stop) {
        pthread_cond_wait(&desk->wake, &desk->lock);
    }
    for (int i = 0; op == NULL && i < KH_DESK_CLASSES; i++) {
        op = kh_op_pop(&desk->queue[i]);
    }
    if (op != NULL) {
        desk->waiting--;
    }
    pthread_mutex_unlock(&desk->lock);
    return op;
}

void kh_desk_stop(kh_desk *desk)
{
    pthread_mutex_lock(&desk->lock);
    desk->stop = true;
    pthread_cond_broadcast(&desk->wake);
    pthread_mutex_unlock(&desk->lock);
}

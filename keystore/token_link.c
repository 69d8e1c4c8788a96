/* SPDX-License-Identifier: Apache-2.0 */
/* A token's keeper: the link to the store's keeper. What takes long is the maker's (token_make.c). */
#include "token.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- Talking */

static void keep(kh_token *token, const kh_link_message *message, const void *data)
{
    kh_token_answer_kept *kept = malloc(sizeof(*kept) + message->data_len);

    if (kept == NULL) { /* the store's keeper must not wait for ever: a link that ends answers all */
        shutdown(token->link_fd, SHUT_RDWR);
        return;
    }
    kept->next = NULL;
    kept->message = *message;
    if (message->data_len > 0) {
        memcpy(kept->data, data, message->data_len);
    }
    *token->kept_end = kept;
    token->kept_end = &kept->next;
}

/* In order, and what has no room now is kept. */
static void tell(kh_token *token, const kh_link_message *message, const void *data)
{
    if (token->link_fd >= 0 && (token->kept != NULL || kh_link_send(token->link_fd, message, data) == KH_AGAIN)) {
        keep(token, message, data);
    }
}

static void drop_kept(kh_token *token)
{
    kh_token_answer_kept *kept = token->kept;

    token->kept = kept->next;
    token->kept_end = kept->next != NULL ? token->kept_end : &token->kept;
    OPENSSL_cleanse(kept, sizeof(*kept) + kept->message.data_len);
    free(kept);
}

void kh_token_link_flush(kh_token *token)
{
    while (token->kept != NULL && kh_link_send(token->link_fd, &token->kept->message, token->kept->data) != KH_AGAIN) {
        drop_kept(token);
    }
}

void kh_token_link_answer(kh_token *token, uint64_t link_life, uint32_t op, uint64_t number, kh_result result,
                          const void *data, size_t len)
{
    const kh_link_message message = {
        .op = op, .answer = 1, .number = number, .result = (uint32_t)result, .data_len = (uint32_t)len};

    if (link_life == token->link_life) {
        tell(token, &message, data);
    }
}

/* What the old link asked of the maker is dropped, but what is to be destroyed: that is never wrong. */
static void drop_tasks(kh_token *token)
{
    kh_token_task **at = &token->tasks;

    while (*at != NULL) {
        kh_token_task *task = *at;

        if (task->message.op == KH_LINK_DESTROY) {
            at = &task->next;
        } else {
            *at = task->next;
            kh_token_task_free(task);
        }
    }
    token->tasks_end = at;
}

void kh_token_link_change(kh_token *token, int fd)
{
    if (token->link_fd >= 0) {
        close(token->link_fd);
    }
    token->link_fd = fd;
    token->link_life++;
    token->change_count = 0;
    while (token->kept != NULL) {
        drop_kept(token);
    }
    drop_tasks(token);
    kh_token_link_hello(token);
    kh_token_keys_forget(token, 0);
}

void kh_token_link_hello(kh_token *token)
{
    char name[KH_PLACE_MAX + 1] = "";
    const kh_link_message message = {.op = KH_LINK_HELLO, .number = ++token->next_number, .data_len = sizeof(name)};

    if (token->serving) {
        memcpy(name, token->config->name, strnlen(token->config->name, KH_PLACE_MAX));
        tell(token, &message, name);
    }
}

static bool still_busy(const kh_token *token, const kh_token_change *change)
{
    for (const kh_token_key *key = token->left; key != NULL; key = key->hash_next) {
        if (key->left_at <= change->at && (change->ref == 0 || change->ref == key->ref)) {
            return true;
        }
    }
    return false;
}

void kh_token_link_settle(kh_token *token)
{
    for (uint32_t i = 0; i < token->change_count;) {
        if (still_busy(token, &token->changes[i])) {
            i++;
            continue;
        }
        kh_token_link_answer(token, token->link_life, KH_LINK_CHANGED, token->changes[i].number, KH_OK, NULL, 0);
        token->changes[i] = token->changes[--token->change_count];
    }
}

/* ---- Hearing */

static void changed(kh_token *token, const kh_link_message *message)
{
    kh_token_keys_forget(token, message->ref);
    token->changes[token->change_count++] =
        (kh_token_change){.number = message->number, .ref = message->ref, .at = token->change_clock};
    kh_token_link_settle(token);
}

/* A signature for root: an operation like others, whose answer goes over the link. */
static void sign(kh_token *token, const kh_link_message *message, const uint8_t *data)
{
    kh_token_op *op = message->data_len <= KH_RECORD_DATA_MAX ? calloc(1, sizeof(*op)) : NULL;

    if (op != NULL && message->data_len > sizeof(op->inline_data)) {
        op->long_data = malloc(message->data_len);
    }
    if (op == NULL || (message->data_len > sizeof(op->inline_data) && op->long_data == NULL)) {
        free(op);
        kh_token_link_answer(token, token->link_life, message->op, message->number, KH_E_MEMORY, NULL, 0);
        return;
    }
    op->number = message->number;
    op->link_life = token->link_life;
    op->record = (kh_record){.op = KH_STORE_CERTIFY,
                             .key_ref = message->ref,
                             .scheme = message->scheme,
                             .data = op->long_data != NULL ? op->long_data : op->inline_data,
                             .data_len = message->data_len};
    memcpy((uint8_t *)(uintptr_t)op->record.data, data, message->data_len);
    token->in_flight++;
    kh_token_key_queue(token, op);
    kh_token_wake(token, 1);
}

static void give_to_maker(kh_token *token, const kh_link_message *message, const uint8_t *data)
{
    kh_token_task *task = NULL;

    if (!token->serving) {
        kh_token_link_answer(token, token->link_life, message->op, message->number, KH_E_UNAVAILABLE, NULL, 0);
        return;
    }
    task = malloc(sizeof(*task) + message->data_len);
    if (task == NULL) {
        kh_token_link_answer(token, token->link_life, message->op, message->number, KH_E_MEMORY, NULL, 0);
        return;
    }
    task->next = NULL;
    task->link_life = token->link_life;
    task->message = *message;
    memcpy(task->data, data, message->data_len);
    *token->tasks_end = task;
    token->tasks_end = &task->next;
    pthread_cond_signal(&token->maker_wake);
}

static void hear(kh_token *token, const kh_link_message *message, const uint8_t *data)
{
    if (message->answer != 0) {
        if (message->op == KH_LINK_KEY) {
            kh_token_key_told(token, message->number, (kh_result)message->result, data, message->data_len);
        }
        return;
    }
    switch (message->op) {
    case KH_LINK_CHANGED:
        changed(token, message);
        break;
    case KH_LINK_SIGN:
        sign(token, message, data);
        break;
    case KH_LINK_GENERATE:
    case KH_LINK_IMPORT:
    case KH_LINK_PLACE:
    case KH_LINK_DESTROY:
    case KH_LINK_FIND:
    case KH_LINK_ALIVE:
        give_to_maker(token, message, data);
        break;
    default:
        kh_token_link_answer(token, token->link_life, message->op, message->number, KH_E_UNSUPPORTED, NULL, 0);
        break;
    }
}

bool kh_token_link_read(kh_token *token)
{
    static uint8_t data[KH_LINK_DATA_MAX]; /* the main thread's */
    kh_link_message message;
    kh_result result = KH_OK;

    pthread_mutex_lock(&token->lock);
    token->now_ns = kh_now_ns();
    while (token->link_fd >= 0 && token->change_count < KH_TOKEN_CHANGES) {
        result = kh_link_receive(token->link_fd, &message, data);
        if (result == KH_AGAIN || result == KH_E_CLOSED) {
            break;
        }
        if (result == KH_OK) {
            hear(token, &message, data);
            OPENSSL_cleanse(data, message.data_len);
        }
    }
    pthread_mutex_unlock(&token->lock);
    return result != KH_E_CLOSED;
}

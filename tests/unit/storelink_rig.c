/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens' keepers that do as they are told, at the links of a real keeper of the store. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "storelink_rig.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

keeper_rig rig;
peer peers[PEERS];

const kh_keeper_places places = {.token_count = PEERS,
                                 .tokens = {"t1", "p1", "p2", "p3"},
                                 .pool_count = 1,
                                 .pools = {{"pool", 2, 3, {1, 2, 3}}}};

/* ---- A token's keeper ------------------------------------------------------------------------------------ */

int peer_find_object(const peer *self, const uint8_t *id)
{
    for (unsigned i = 0; i < self->count; i++) {
        if (memcmp(self->objects[i], id, KH_P11_ID_LEN) == 0) {
            return (int)i;
        }
    }
    return -1;
}

void peer_add_object(peer *self, const uint8_t *id)
{
    if (peer_find_object(self, id) < 0 && self->count < OBJECTS) {
        memcpy(self->objects[self->count++], id, KH_P11_ID_LEN);
    }
}

size_t spki_of(EVP_PKEY *pkey, uint8_t *spki)
{
    kh_material material;
    size_t len = 0;

    if (kh_material_encode(pkey, &material) == KH_OK) {
        len = material.spki_len;
        memcpy(spki, material.spki, len);
    }
    return len;
}

/* What an operation does in this token; the answer's data into out. */
static size_t perform(peer *self, const kh_link_message *question, const uint8_t *data, uint8_t *out)
{
    kh_link_key key = {0};
    EVP_PKEY *pkey = NULL;
    size_t len = 0;
    int at = -1;

    if (question->data_len >= sizeof(key)) {
        memcpy(&key, data, sizeof(key));
    }
    switch (question->op) {
    case KH_LINK_GENERATE:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
        key.info.spki_len = (uint32_t)spki_of(pkey, key.info.spki);
        EVP_PKEY_free(pkey);
        break;
    case KH_LINK_IMPORT:
        self->pkcs8_len = key.pkcs8_len;
        memcpy(self->pkcs8, data + sizeof(key) + key.blob_len, key.pkcs8_len);
        break;
    case KH_LINK_FIND:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
        key.info.spki_len = (uint32_t)spki_of(pkey, key.info.spki);
        EVP_PKEY_free(pkey);
        break;
    case KH_LINK_PLACE:
        peer_add_object(self, key.locator.id);
        return 0;
    case KH_LINK_DESTROY:
        at = peer_find_object(self, key.locator.id);
        if (at >= 0) {
            memcpy(self->objects[at], self->objects[--self->count], KH_P11_ID_LEN);
        }
        return 0;
    case KH_LINK_SIGN:
        memcpy(out, "signed", 6);
        return 6;
    default:
        return 0;
    }
    key.blob_len = key.pool[0] != '\0' ? 100 : 0;
    key.pkcs8_len = 0;
    if (key.blob_len == 0 && question->op != KH_LINK_FIND) {
        peer_add_object(self, key.locator.id);
    }
    memcpy(out, &key, sizeof(key));
    len = sizeof(key);
    memset(out + len, 0xb0, key.blob_len);
    return len + key.blob_len;
}

static kh_result reply(const peer *self, const kh_link_message *question, kh_result result, const uint8_t *data, size_t len)
{
    const kh_link_message message = {.op = question->op,
                                     .answer = 1,
                                     .number = question->number,
                                     .result = (uint32_t)result,
                                     .data_len = (uint32_t)len};

    return kh_link_send(self->fd, &message, data);
}

/* false: it dies here, or the test has ended it meanwhile. Not the test's thread: nothing is asserted. */
static bool serve(peer *self, const kh_link_message *question, const uint8_t *data)
{
    uint8_t out[KH_LINK_DATA_MAX];
    size_t len = 0;

    if (question->answer != 0 || question->op >= 32) {
        return true;
    }
    self->seen[question->op]++;
    if (question->data_len >= sizeof(self->last)) {
        memcpy(&self->last, data, sizeof(self->last));
    }
    if (self->die_on == question->op && !self->die_after) {
        return false;
    }
    if (self->silent_on == question->op) {
        self->held = *question;
        return true;
    }
    if (self->fail_on == question->op) {
        return reply(self, question, KH_E_UNSUPPORTED, (const uint8_t *)self->why, strlen(self->why)) == KH_OK;
    }
    len = perform(self, question, data, out);
    return reply(self, question, KH_OK, out, len) == KH_OK && self->die_on != question->op;
}

static void *run_peer(void *arg)
{
    peer *self = arg;
    uint8_t data[KH_LINK_DATA_MAX];
    kh_link_message message;
    bool alive = true;

    while (alive) {
        struct pollfd pfd = {.fd = self->fd, .events = POLLIN};
        kh_result result = KH_OK;

        (void)poll(&pfd, 1, 1000);
        pthread_mutex_lock(&self->lock);
        while (alive && (result = kh_link_receive(self->fd, &message, data)) == KH_OK) {
            alive = serve(self, &message, data);
        }
        alive = alive && result == KH_AGAIN;
        pthread_mutex_unlock(&self->lock);
    }
    close(self->fd);
    return NULL;
}

void peer_answer(const peer *self, const kh_link_message *question)
{
    assert_int_equal(reply(self, question, KH_OK, NULL, 0), KH_OK);
}

static void hello(const peer *self)
{
    char name[KH_PLACE_MAX + 1] = "";
    const kh_link_message message = {.op = KH_LINK_HELLO, .number = 1, .data_len = sizeof(name)};

    strcpy(name, self->name);
    assert_int_equal(kh_link_send(self->fd, &message, name), KH_OK);
}

void peer_connect(peer *self)
{
    int fds[2];

    assert_int_equal(kh_link_pair(fds), KH_OK);
    assert_int_equal(kh_keeper_send_link(rig.control, self->name, fds[0]), KH_OK);
    close(fds[0]);
    self->fd = fds[1];
    memset(self->seen, 0, sizeof(self->seen));
    hello(self);
    assert_int_equal(pthread_create(&self->thread, NULL, run_peer, self), 0);
    self->running = true;
}

void peer_end(peer *self)
{
    if (self->running) {
        shutdown(self->fd, SHUT_RDWR);
        pthread_join(self->thread, NULL);
    }
    self->running = false;
    self->silent_on = self->fail_on = self->die_on = 0;
    self->die_after = false;
}

void peers_end(void)
{
    for (int i = 0; i < PEERS; i++) {
        peer_end(&peers[i]);
    }
}

unsigned peer_seen(peer *self, uint32_t op)
{
    unsigned count = 0;

    pthread_mutex_lock(&self->lock);
    count = self->seen[op];
    pthread_mutex_unlock(&self->lock);
    return count;
}

void pause_briefly(void)
{
    const struct timespec brief = {.tv_nsec = 1000000};

    nanosleep(&brief, NULL);
}

void peer_wait_seen(peer *self, uint32_t op, unsigned count)
{
    for (int i = 0; i < 20000 && peer_seen(self, op) < count; i++) {
        pause_briefly();
    }
    assert_true(peer_seen(self, op) >= count);
}

void peer_wait_objects(peer *self, unsigned count)
{
    unsigned now = count + 1;

    for (int i = 0; i < 20000 && now != count; i++) {
        pthread_mutex_lock(&self->lock);
        now = self->count;
        pthread_mutex_unlock(&self->lock);
        pause_briefly();
    }
    assert_int_equal(now, count);
}

const peer *peer_meet(int i)
{
    static peer copy;

    pthread_mutex_lock(&peers[i].lock);
    memcpy((void *)&copy, (const void *)&peers[i], sizeof(copy));
    pthread_mutex_unlock(&peers[i].lock);
    return &copy;
}

void peer_put_last(int i)
{
    pthread_mutex_lock(&peers[i].lock);
    peer_add_object(&peers[i], peers[i].last.locator.id);
    pthread_mutex_unlock(&peers[i].lock);
}

/* ---- The keeper ----------------------------------------------------------------------------------------- */

void links_start(unsigned first, unsigned last)
{
    assert_int_equal(rig_start(&rig), KH_OK);
    assert_int_equal(kh_keeper_send_places(rig.control, &places), KH_OK);
    for (unsigned i = first; i <= last && i < PEERS; i++) {
        peer_connect(&peers[i]);
    }
}

int links_set_up(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    rig_init(&rig, NULL);
    for (int i = 0; i < PEERS; i++) {
        peers[i] = (peer){.name = places.tokens[i], .fd = -1, .why = ""};
        pthread_mutex_init(&peers[i].lock, NULL);
    }
    return 0;
}

int links_tear_down(void **state)
{
    (void)state;
    peers_end();
    if (rig.pid != 0) {
        assert_int_equal(rig_stop(&rig), KH_OK);
    }
    rig_clean(&rig);
    return 0;
}

kh_result links_create(const char *name, uint32_t tier, const char *place, kh_key_info *info)
{
    kh_key_info asked = {.type = KH_KEY_P256, .bits = 256, .usage = KH_USAGE_SIGN, .tier = tier};
    const kh_record record = {.op = KH_STORE_CREATE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    const rig_answer *got = NULL;

    snprintf(asked.name, sizeof(asked.name), "%s", name);
    snprintf(asked.place, sizeof(asked.place), "%s", place);
    got = rig_admin(&rig, &record);
    if (got->result == KH_OK) {
        memcpy(info, got->data, sizeof(*info));
    }
    return got->result;
}

kh_result links_by_name(kh_store_op op, const char *name)
{
    kh_key_info asked = {0};
    const kh_record record = {.op = op, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};

    snprintf(asked.name, sizeof(asked.name), "%s", name);
    return rig_admin(&rig, &record)->result;
}

void links_expect_report(const char *wanted)
{
    const kh_record record = {.op = KH_STORE_CHECK};
    const rig_answer *got = rig_admin(&rig, &record);

    assert_int_equal(got->result, KH_OK);
    assert_int_equal(got->len, strlen(wanted));
    assert_memory_equal(got->data, wanted, got->len);
}

unsigned links_logged(const char *text)
{
    char line[1024];
    FILE *file = fopen(rig.log, "r");
    unsigned count = 0;

    assert_non_null(file);
    while (fgets(line, sizeof(line), file) != NULL) {
        count += strstr(line, text) != NULL;
    }
    fclose(file);
    return count;
}

static void *run_call(void *arg)
{
    links_call *call = arg;
    uint8_t out[KH_RECORD_DATA_MAX];
    size_t len = 0;

    call->result = kh_admin_call(rig.admin, &call->record, out, sizeof(out), &len, 60000);
    call->done = true;
    return NULL;
}

void links_begin(links_call *call, kh_store_op op, const kh_key_info *asked)
{
    memset(call, 0, sizeof(*call));
    call->asked = *asked;
    call->record = (kh_record){.op = op, .data = (const uint8_t *)&call->asked, .data_len = sizeof(call->asked)};
    assert_int_equal(pthread_create(&call->thread, NULL, run_call, call), 0);
}

kh_result links_end(links_call *call)
{
    pthread_join(call->thread, NULL);
    return call->result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store's keeper and tokens' keepers: a real keeper process, and this program at the other end of its links, in place of
 * keepers of tokens that do as they are told: answer, fail, say nothing, or die. After each end at each point nothing is
 * half there: a key has its row and its object, or its object is asked to be destroyed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper_rig.h"
#include "storelink.h"

#include <errno.h>
#include <keyhold/import.h>
#include <openssl/evp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define OBJECTS 64
#define PEERS 4
#define DAY UINT64_C(86400) /* seconds */

/* ---- A token's keeper that does as it is told ----------------------------------------------------------- */

typedef struct peer {
    const char *name;
    int fd;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;
    _Atomic uint32_t silent_on; /* an operation that is not answered */
    _Atomic uint32_t fail_on;   /* one that is answered with KH_E_UNSUPPORTED, */
    const char *why;            /* and this */
    _Atomic uint32_t die_on;    /* one at which the link is closed; */
    _Atomic bool die_after;     /* after it was done and answered, or not even looked at */
    kh_link_message held; /* the question that was not answered */
    unsigned seen[32];  /* by operation */
    uint8_t objects[OBJECTS][KH_P11_ID_LEN]; /* in the token */
    _Atomic unsigned count;
    kh_link_key last; /* of the last question that had one */
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX];
    size_t pkcs8_len;
} peer;

static keeper_rig rig;
static peer peers[PEERS] = {{.name = "t1", .fd = -1}, {.name = "p1", .fd = -1}, {.name = "p2", .fd = -1}, {.name = "p3", .fd = -1}};

static const kh_keeper_places places = {.token_count = 4,
                                        .tokens = {"t1", "p1", "p2", "p3"},
                                        .pool_count = 1,
                                        .pools = {{"pool", 2, 3, {1, 2, 3}}}};

static int find_object(const peer *self, const uint8_t *id)
{
    for (unsigned i = 0; i < self->count; i++) {
        if (memcmp(self->objects[i], id, KH_P11_ID_LEN) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static void add_object(peer *self, const uint8_t *id)
{
    if (find_object(self, id) < 0 && self->count < OBJECTS) {
        memcpy(self->objects[self->count++], id, KH_P11_ID_LEN);
    }
}

static size_t public_of(EVP_PKEY *pkey, uint8_t *spki)
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
        key.info.spki_len = (uint32_t)public_of(pkey, key.info.spki);
        EVP_PKEY_free(pkey);
        break;
    case KH_LINK_IMPORT:
        self->pkcs8_len = key.pkcs8_len;
        memcpy(self->pkcs8, data + sizeof(key) + key.blob_len, key.pkcs8_len);
        break;
    case KH_LINK_FIND:
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
        key.info.spki_len = (uint32_t)public_of(pkey, key.info.spki);
        EVP_PKEY_free(pkey);
        break;
    case KH_LINK_PLACE:
        add_object(self, key.locator.id);
        return 0;
    case KH_LINK_DESTROY:
        at = find_object(self, key.locator.id);
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
        add_object(self, key.locator.id);
    }
    memcpy(out, &key, sizeof(key));
    len = sizeof(key);
    memset(out + len, 0xb0, key.blob_len);
    return len + key.blob_len;
}

static void answer(const peer *self, const kh_link_message *question, kh_result result, const uint8_t *data, size_t len)
{
    const kh_link_message message = {.op = question->op,
                                     .answer = 1,
                                     .number = question->number,
                                     .result = (uint32_t)result,
                                     .data_len = (uint32_t)len};

    assert_int_equal(kh_link_send(self->fd, &message, data), KH_OK);
}

/* false: it dies here. */
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
        answer(self, question, KH_E_UNSUPPORTED, (const uint8_t *)self->why, strlen(self->why));
        return true;
    }
    len = perform(self, question, data, out);
    answer(self, question, KH_OK, out, len);
    return self->die_on != question->op;
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

static void hello(const peer *self)
{
    char name[KH_PLACE_MAX + 1] = "";
    const kh_link_message message = {.op = KH_LINK_HELLO, .number = 1, .data_len = sizeof(name)};

    strcpy(name, self->name);
    assert_int_equal(kh_link_send(self->fd, &message, name), KH_OK);
}

static void connect_peer(peer *self)
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

/* Ends it, or waits until it has ended. */
static void end_peer(peer *self)
{
    if (self->running) {
        shutdown(self->fd, SHUT_RDWR);
        pthread_join(self->thread, NULL);
    }
    self->running = false;
    self->silent_on = self->fail_on = self->die_on = 0;
    self->die_after = false;
}

static void end_peers(void)
{
    for (int i = 0; i < PEERS; i++) {
        end_peer(&peers[i]);
    }
}

static unsigned seen(peer *self, uint32_t op)
{
    unsigned count = 0;

    pthread_mutex_lock(&self->lock);
    count = self->seen[op];
    pthread_mutex_unlock(&self->lock);
    return count;
}

static void pause_briefly(void)
{
    const struct timespec brief = {.tv_nsec = 1000000};

    nanosleep(&brief, NULL);
}

static void wait_seen(peer *self, uint32_t op, unsigned count)
{
    for (int i = 0; i < 20000 && seen(self, op) < count; i++) {
        pause_briefly();
    }
    assert_true(seen(self, op) >= count);
}

static void wait_objects(peer *self, unsigned count)
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

/* What a peer has seen up to now: a copy, good until the next call. */
static const peer *meet(int i)
{
    static peer copy;

    pthread_mutex_lock(&peers[i].lock);
    memcpy((void *)&copy, (const void *)&peers[i], sizeof(copy));
    pthread_mutex_unlock(&peers[i].lock);
    return &copy;
}

/* As if the last question had made its object. */
static void put_last(int i)
{
    pthread_mutex_lock(&peers[i].lock);
    add_object(&peers[i], peers[i].last.locator.id);
    pthread_mutex_unlock(&peers[i].lock);
}

/* ---- The keeper ----------------------------------------------------------------------------------------- */

static void start_keeper(unsigned first, unsigned last)
{
    assert_int_equal(rig_start(&rig), KH_OK);
    assert_int_equal(kh_keeper_send_places(rig.control, &places), KH_OK);
    for (unsigned i = first; i <= last && i < PEERS; i++) {
        connect_peer(&peers[i]);
    }
}

static int set_up(void **state)
{
    (void)state;
    rig_init(&rig, NULL);
    for (int i = 0; i < PEERS; i++) {
        peers[i] = (peer){.name = places.tokens[i], .fd = -1, .why = ""};
        pthread_mutex_init(&peers[i].lock, NULL);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    end_peers();
    if (rig.pid != 0) {
        assert_int_equal(rig_stop(&rig), KH_OK);
    }
    rig_clean(&rig);
    return 0;
}

static kh_result create(const char *name, uint32_t tier, const char *place, kh_key_info *info)
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

static kh_result by_name(kh_store_op op, const char *name)
{
    kh_key_info asked = {0};
    const kh_record record = {.op = op, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};

    snprintf(asked.name, sizeof(asked.name), "%s", name);
    return rig_admin(&rig, &record)->result;
}

static void expect_report(const char *wanted)
{
    const kh_record record = {.op = KH_STORE_CHECK};
    const rig_answer *got = rig_admin(&rig, &record);

    assert_int_equal(got->result, KH_OK);
    assert_int_equal(got->len, strlen(wanted));
    assert_memory_equal(got->data, wanted, got->len);
}

/* How many lines the log has with that text. */
static unsigned logged(const char *text)
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

/* A call in another thread, to see that it is not answered yet. */
typedef struct calling {
    pthread_t thread;
    kh_record record;
    kh_key_info asked;
    kh_result result;
    _Atomic bool done;
} calling;

static void *run_call(void *arg)
{
    calling *call = arg;
    uint8_t out[KH_RECORD_DATA_MAX];
    size_t len = 0;

    call->result = kh_admin_call(rig.admin, &call->record, out, sizeof(out), &len, 60000);
    call->done = true;
    return NULL;
}

static void begin_call(calling *call, kh_store_op op, const kh_key_info *asked)
{
    memset(call, 0, sizeof(*call));
    call->asked = *asked;
    call->record = (kh_record){.op = op, .data = (const uint8_t *)&call->asked, .data_len = sizeof(call->asked)};
    assert_int_equal(pthread_create(&call->thread, NULL, run_call, call), 0);
}

static kh_result end_call(calling *call)
{
    pthread_join(call->thread, NULL);
    return call->result;
}

/* ---- Tests ---------------------------------------------------------------------------------------------- */

static void test_no_token(void **state)
{
    kh_key_info info;

    (void)state;
    assert_int_equal(rig_start(&rig), KH_OK);
    assert_int_equal(create("www", KH_TIER_HSM, "", &info), KH_E_NOT_FOUND);
    assert_int_equal(create("www", KH_TIER_HSM_POOL, "", &info), KH_E_NOT_FOUND);
    assert_int_equal(kh_keeper_send_places(rig.control, &places), KH_OK);
    assert_int_equal(create("www", KH_TIER_HSM, "other", &info), KH_E_NOT_FOUND);
    assert_int_equal(create("www", 9, "", &info), KH_E_INVALID);
    assert_int_equal(create("www", KH_TIER_SOFTWARE, "t1", &info), KH_E_INVALID);
    assert_int_equal(create("www", KH_TIER_HSM, "t1", &info), KH_E_UNAVAILABLE); /* after it was waited for */
    assert_int_equal(rig_lookup(&rig, "www", &info), KH_E_NOT_FOUND);
}

/* One that is asked for a moment before its token is there waits for it. */
static void test_waits_for_token(void **state)
{
    calling call;
    kh_key_info asked = {.type = KH_KEY_P256, .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .name = "www"};

    (void)state;
    assert_int_equal(rig_start(&rig), KH_OK);
    assert_int_equal(kh_keeper_send_places(rig.control, &places), KH_OK);
    begin_call(&call, KH_STORE_CREATE, &asked);
    for (int i = 0; i < 50; i++) {
        pause_briefly();
    }
    assert_false(call.done);
    connect_peer(&peers[0]);
    assert_int_equal(end_call(&call), KH_OK);
}

static void test_create(void **state)
{
    kh_key_info info, again;

    (void)state;
    start_keeper(0, 0);
    assert_int_equal(create("www", KH_TIER_HSM, "", &info), KH_OK);
    assert_int_equal(info.tier, KH_TIER_HSM);
    assert_string_equal(info.place, "t1");
    assert_int_equal(meet(0)->last.locator.id_len, KH_P11_ID_LEN);
    assert_string_equal(meet(0)->last.locator.label, "www");
    assert_string_equal(meet(0)->last.pool, "");
    assert_int_equal(meet(0)->last.info.usage, KH_USAGE_SIGN);
    assert_int_equal(peers[0].count, 1);
    expect_report("ok 1 keys\n");
    /* It is no key of this process. */
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_E_UNAVAILABLE);
    end_peers();
    rig_kill(&rig);
    start_keeper(0, 0);
    assert_int_equal(rig_lookup(&rig, "www", &again), KH_OK);
    assert_memory_equal(again.id, info.id, sizeof(info.id));
    assert_int_equal(seen(&peers[0], KH_LINK_DESTROY), 0);
    /* What the token cannot do. */
    peers[0].fail_on = KH_LINK_GENERATE;
    assert_int_equal(create("api", KH_TIER_HSM, "", &info), KH_E_UNSUPPORTED);
    wait_objects(&peers[0], 1);
    expect_report("ok 1 keys\n");
}

/* The token's keeper ends while it makes a key: before, or when it is made and nobody knows. */
static void test_token_dies(void **state)
{
    kh_key_info info;

    (void)state;
    start_keeper(0, 0);
    for (int after = 0; after < 2; after++) {
        peers[0].die_on = KH_LINK_GENERATE;
        peers[0].die_after = after != 0;
        peers[0].count = 0;
        if (after == 0) {
            assert_int_equal(create("www", KH_TIER_HSM, "t1", &info), KH_E_UNAVAILABLE);
            assert_int_equal(rig_lookup(&rig, "www", &info), KH_E_NOT_FOUND);
        } else {
            assert_int_equal(create("www", KH_TIER_HSM, "t1", &info), KH_OK); /* its last word counts */
        }
        end_peer(&peers[0]);
        put_last(0); /* as if it had been made */
        connect_peer(&peers[0]);
        if (after == 0) {
            wait_seen(&peers[0], KH_LINK_DESTROY, 1);
            wait_objects(&peers[0], 0);
        } else {
            wait_objects(&peers[0], 1);
        }
    }
}

/* T6: the store's keeper is killed while a key is made, before and after the token made it. */
static void test_t6_killed(void **state)
{
    unsigned there = 0, gone = 0;

    (void)state;
    for (unsigned round = 0; round < 24; round++) {
        calling call;
        kh_key_info asked = {.type = KH_KEY_P256, .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"}, info;
        bool silent = round % 3 == 0;
        kh_result result = KH_OK;

        snprintf(asked.name, sizeof(asked.name), "key-%u", round);
        start_keeper(0, 0);
        peers[0].silent_on = silent ? KH_LINK_GENERATE : 0;
        begin_call(&call, KH_STORE_CREATE, &asked);
        wait_seen(&peers[0], KH_LINK_GENERATE, 1);
        for (unsigned i = 0; !silent && i < round * 20; i++) {
            sched_yield(); /* a little later each time */
        }
        rig_kill(&rig);
        result = end_call(&call);
        if (silent) { /* made, and the answer lost */
            put_last(0);
        }
        end_peers();
        start_keeper(0, 0);
        if (rig_lookup(&rig, asked.name, &info) == KH_OK) {
            there++;
        } else {
            assert_int_not_equal(result, KH_OK); /* what was acknowledged is there */
            gone++;
        }
        wait_objects(&peers[0], there); /* an object for each key, and no other */
        end_peers();
        assert_int_equal(rig_stop(&rig), KH_OK);
    }
    assert_true(gone >= 8);
    print_message("T6: the keeper killed %u times while a token made a key: %u were there, %u gone without a trace\n",
                  there + gone, there, gone);
}

/* Disabling is not acknowledged before the token's keeper says that nothing runs any more, or is dead. */
static void test_disable(void **state)
{
    calling call;
    kh_key_info info, asked = {.state = 2, .name = "www"};

    (void)state;
    start_keeper(0, 1);
    assert_int_equal(create("www", KH_TIER_HSM, "t1", &info), KH_OK);
    for (int dies = 0; dies < 2; dies++) {
        peers[0].silent_on = KH_LINK_CHANGED;
        begin_call(&call, KH_STORE_SET_STATE, &asked);
        wait_seen(&peers[0], KH_LINK_CHANGED, 1);
        assert_int_equal(meet(0)->held.ref, info.ref);
        for (int i = 0; i < 50; i++) {
            pause_briefly();
        }
        assert_false(call.done);
        /* Meanwhile it tells anew whoever asks, and others are served. */
        assert_int_equal(by_name(KH_STORE_LOOKUP, "x"), KH_E_INVALID);
        if (dies == 0) {
            answer(&peers[0], &meet(0)->held, KH_OK, NULL, 0);
        } else {
            end_peer(&peers[0]);
        }
        assert_int_equal(end_call(&call), KH_OK);
        peers[0].silent_on = 0;
        asked.state = 1;
    }
    assert_int_equal(seen(&peers[1], KH_LINK_CHANGED), 0); /* it is not its key */
}

/* What it is told when it asks. */
static void test_key_question(void **state)
{
    int fds[2];
    uint8_t data[KH_LINK_DATA_MAX];
    kh_link_message message = {.op = KH_LINK_KEY, .number = 77};
    kh_link_key *key = (kh_link_key *)(void *)data;
    kh_key_info info;

    (void)state;
    start_keeper(0, 0);
    assert_int_equal(create("www", KH_TIER_HSM, "", &info), KH_OK);
    end_peer(&peers[0]);
    for (int i = 0; i < 2; i++) { /* its own token, and another's */
        assert_int_equal(kh_link_pair(fds), KH_OK);
        assert_int_equal(kh_keeper_send_link(rig.control, i == 0 ? "t1" : "p1", fds[0]), KH_OK);
        close(fds[0]);
        message.ref = info.ref;
        message.answer = 0;
        message.data_len = 0;
        assert_int_equal(kh_link_send(fds[1], &message, NULL), KH_OK);
        do {
            struct pollfd pfd = {.fd = fds[1], .events = POLLIN};

            assert_int_equal(poll(&pfd, 1, 20000), 1);
            assert_int_equal(kh_link_receive(fds[1], &message, data), KH_OK);
        } while (message.op != KH_LINK_KEY);
        assert_int_equal(message.number, 77);
        assert_int_equal(message.result, i == 0 ? KH_OK : KH_E_NOT_FOUND);
        if (i == 0) {
            assert_int_equal(message.data_len, sizeof(*key));
            assert_int_equal(key->info.ref, info.ref);
            assert_string_equal(key->info.name, "www");
            assert_memory_equal(key->locator.id, meet(0)->last.locator.id, KH_P11_ID_LEN);
        }
        close(fds[1]);
    }
}

static void test_purge(void **state)
{
    kh_key_info info;

    (void)state;
    start_keeper(0, 0);
    assert_int_equal(create("www", KH_TIER_HSM, "", &info), KH_OK);
    assert_int_equal(rig_set_state(&rig, "www", 0, 3, &info), KH_OK);
    assert_int_equal(by_name(KH_STORE_PURGE, "www"), KH_OK);
    assert_int_equal(peers[0].count, 0); /* gone before it was acknowledged */
    /* A token that is not there loses it when it comes. */
    assert_int_equal(create("api", KH_TIER_HSM, "", &info), KH_OK);
    assert_int_equal(rig_set_state(&rig, "api", 0, 3, &info), KH_OK);
    end_peer(&peers[0]);
    assert_int_equal(by_name(KH_STORE_PURGE, "api"), KH_OK);
    assert_int_equal(peers[0].count, 1);
    rig_kill(&rig);
    start_keeper(0, 0);
    wait_objects(&peers[0], 0);
}

static void test_move(void **state)
{
    kh_key_info info, asked = {.tier = KH_TIER_HSM, .name = "www"}, moved;
    const kh_record record = {.op = KH_STORE_MOVE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    const rig_answer *got = NULL;
    EVP_PKEY *pkey = NULL;
    uint8_t spki[KH_SPKI_MAX];

    (void)state;
    start_keeper(0, 0);
    assert_int_equal(create("www", 0, "", &info), KH_OK);
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_OK);
    peers[0].fail_on = KH_LINK_IMPORT;
    assert_int_equal(rig_admin(&rig, &record)->result, KH_E_UNSUPPORTED);
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_OK); /* as before */
    peers[0].fail_on = 0;
    got = rig_admin(&rig, &record);
    assert_int_equal(got->result, KH_OK);
    memcpy(&moved, got->data, sizeof(moved));
    assert_int_equal(moved.tier, KH_TIER_HSM);
    assert_memory_equal(moved.id, info.id, sizeof(info.id));
    assert_int_equal(kh_pkcs8_parse(meet(0)->pkcs8, meet(0)->pkcs8_len, &pkey), KH_OK);
    assert_int_equal(public_of(pkey, spki), info.spki_len);
    assert_memory_equal(spki, info.spki, info.spki_len);
    EVP_PKEY_free(pkey);
    assert_int_equal(rig_sign(&rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_E_UNAVAILABLE);
    assert_int_equal(rig_admin(&rig, &record)->result, KH_E_ORDER);
    expect_report("ok 1 keys\n");
}

static void test_import(void **state)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    uint8_t pkcs8[KH_IMPORT_PKCS8_MAX], data[sizeof(kh_key_info) + 1024];
    kh_material material;
    kh_key_info asked = {.name = "www", .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"};
    kh_import_terms terms = {.name = "www", .usage = KH_USAGE_SIGN, .tier = KH_TIER_HSM, .place = "t1"};
    kh_record record = {.op = KH_STORE_IMPORT, .data = data};
    size_t len = 0;

    (void)state;
    start_keeper(0, 0);
    assert_int_equal(kh_material_encode(pkey, &material), KH_OK);
    memcpy(pkcs8, material.pkcs8, material.pkcs8_len);
    for (int honest = 0; honest < 2; honest++) {
        /* Sealed for the token: nobody on the way makes it a key of memory. */
        asked.tier = honest != 0 ? KH_TIER_HSM : KH_TIER_SOFTWARE;
        asked.place[0] = honest != 0 ? 't' : '\0';
        memcpy(data, &asked, sizeof(asked));
        assert_int_equal(kh_import_seal_as(rig.import_public, &terms, pkcs8, material.pkcs8_len, data + sizeof(asked), 1024,
                                           &len),
                         KH_OK);
        record.data_len = (uint32_t)(sizeof(asked) + len);
        assert_int_equal(rig_admin(&rig, &record)->result, honest != 0 ? KH_OK : KH_E_CRYPTO);
    }
    assert_int_equal(meet(0)->pkcs8_len, material.pkcs8_len);
    assert_memory_equal(meet(0)->pkcs8, pkcs8, material.pkcs8_len);
    EVP_PKEY_free(pkey);
    expect_report("ok 1 keys\n");
}

static void test_adopt_and_certify(void **state)
{
    kh_key_adoption asked = {.info = {.name = "theirs", .usage = KH_USAGE_TLS_SERVER}, .label = "made elsewhere"};
    const kh_record record = {.op = KH_STORE_ADOPT, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    kh_record certify = {.op = KH_STORE_CERTIFY, .scheme = KH_ECDSA_SHA256, .data = (const uint8_t *)"tbs", .data_len = 3};
    const rig_answer *got = NULL;
    kh_key_info info;

    (void)state;
    start_keeper(0, 0);
    got = rig_admin(&rig, &record);
    assert_int_equal(got->result, KH_OK);
    memcpy(&info, got->data, sizeof(info));
    assert_int_equal(info.tier, KH_TIER_HSM);
    assert_string_equal(meet(0)->last.locator.label, "made elsewhere");
    certify.key_ref = info.ref;
    got = rig_admin(&rig, &certify);
    assert_int_equal(got->result, KH_OK);
    assert_memory_equal(got->data, "signed", 6);
    certify.scheme = KH_ED25519;
    assert_int_equal(rig_admin(&rig, &certify)->result, KH_E_SCHEME);
    asked.label[0] = '\0';
    assert_int_equal(rig_admin(&rig, &record)->result, KH_E_INVALID);
    assert_int_equal(rig_set_state(&rig, "theirs", 0, 3, &info), KH_OK);
    assert_int_equal(by_name(KH_STORE_PURGE, "theirs"), KH_OK);
    assert_int_equal(seen(&peers[0], KH_LINK_DESTROY), 0);
}

/* ---- Pools ---------------------------------------------------------------------------------------------- */

static void test_pool(void **state)
{
    kh_key_info info;

    (void)state;
    start_keeper(1, 3);
    assert_int_equal(create("www", KH_TIER_HSM_POOL, "", &info), KH_OK);
    assert_string_equal(info.place, "pool");
    for (int i = 1; i < 4; i++) {
        wait_objects(&peers[i], 1);
    }
    /* The quorum is enough; who was slow or away has it afterwards. */
    peers[3].silent_on = KH_LINK_PLACE;
    assert_int_equal(create("api", KH_TIER_HSM_POOL, "pool", &info), KH_OK);
    end_peer(&peers[3]);
    assert_int_equal(create("shop", KH_TIER_HSM_POOL, "pool", &info), KH_OK);
    connect_peer(&peers[3]);
    wait_objects(&peers[3], 3);
    /* An emptied one is filled. */
    end_peer(&peers[2]);
    peers[2].count = 0;
    connect_peer(&peers[2]);
    wait_objects(&peers[2], 3);
    expect_report("ok 3 keys\n");
    assert_int_equal(rig_set_state(&rig, "api", 0, 3, &info), KH_OK);
    assert_int_equal(by_name(KH_STORE_PURGE, "api"), KH_OK);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(peers[i].count, 2);
    }
}

static kh_result leave(const char *pool, const char *token, kh_left *left)
{
    kh_pool_leave asked = {.pool = ""};
    const kh_record record = {.op = KH_STORE_LEAVE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    const rig_answer *got = NULL;

    strcpy(asked.pool, pool);
    strcpy(asked.token, token);
    got = rig_admin(&rig, &record);
    if (got->result == KH_OK) {
        memcpy(left, got->data, sizeof(*left));
    }
    return got->result;
}

/* One that leaves is told of no key any more, and destroys those of that pool; a repair takes it back. */
static void test_leave(void **state)
{
    const kh_record repair = {.op = KH_STORE_REPAIR, .data = (const uint8_t *)"pool", .data_len = 4};
    const uint8_t own[KH_P11_ID_LEN] = "made by others";
    kh_key_info info;
    kh_left left;

    (void)state;
    start_keeper(0, 3);
    for (int i = 0; i < 5; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(create(name, KH_TIER_HSM_POOL, "", &info), KH_OK);
    }
    for (int i = 1; i < 4; i++) {
        wait_objects(&peers[i], 5);
    }
    assert_int_equal(rig_set_state(&rig, "k1", 0, 3, &info), KH_OK); /* a deleted one has its object, too */
    pthread_mutex_lock(&peers[3].lock);
    add_object(&peers[3], own);
    pthread_mutex_unlock(&peers[3].lock);
    assert_int_equal(leave("pool", "p9", &left), KH_E_NOT_FOUND);
    assert_int_equal(leave("pool", "p3", &left), KH_OK);
    assert_int_equal(left.gone, 5);
    assert_int_equal(left.kept, 0);
    assert_true(seen(&peers[3], KH_LINK_CHANGED) > 0);
    wait_objects(&peers[3], 1);
    assert_int_equal(find_object(&peers[3], own), 0);
    wait_objects(&peers[2], 5);
    assert_int_equal(leave("pool", "p3", &left), KH_OK); /* said again, it is as before */
    end_peer(&peers[3]);
    assert_int_equal(leave("pool", "p3", &left), KH_E_UNAVAILABLE);
    connect_peer(&peers[3]); /* it comes back, and gets nothing */
    assert_int_equal(create("k5", KH_TIER_HSM_POOL, "", &info), KH_OK);
    wait_objects(&peers[2], 6);
    peers[3].fail_on = KH_LINK_DESTROY;
    assert_int_equal(leave("pool", "p3", &left), KH_OK);
    assert_int_equal(left.gone, 0);
    assert_int_equal(left.kept, 6);
    peers[3].fail_on = 0;
    assert_int_equal(rig_admin(&rig, &repair)->result, KH_OK);
    wait_objects(&peers[3], 7);
}

static uint64_t orders(const char *token)
{
    const kh_record record = {.op = KH_STORE_ORDERS};
    const rig_answer *got = rig_admin(&rig, &record);
    kh_order order;

    assert_int_equal(got->result, KH_OK);
    for (size_t at = 0; at < got->len; at += sizeof(order)) {
        memcpy(&order, got->data + at, sizeof(order));
        if (strcmp(order.token, token) == 0) {
            return order.objects;
        }
    }
    return 0;
}

/* What a token would not destroy, or could not since it was away, is counted until it is gone. */
static void test_orders(void **state)
{
    kh_key_info info;

    (void)state;
    start_keeper(1, 3);
    for (int i = 0; i < 3; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(create(name, KH_TIER_HSM_POOL, "", &info), KH_OK);
        assert_int_equal(rig_set_state(&rig, name, 0, 3, &info), KH_OK);
    }
    for (int i = 1; i < 4; i++) {
        wait_objects(&peers[i], 3);
    }
    assert_int_equal(orders("p1") + orders("p2") + orders("p3"), 0);
    end_peer(&peers[3]);
    peers[2].fail_on = KH_LINK_DESTROY;
    for (int i = 0; i < 3; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(by_name(KH_STORE_PURGE, name), KH_OK);
    }
    assert_int_equal(orders("p1"), 0);
    assert_int_equal(orders("p2"), 3);
    assert_int_equal(orders("p3"), 3);
    assert_true(logged("objects in token p2 that are to be destroyed are still there") > 0);
    peers[2].fail_on = 0;
    connect_peer(&peers[3]);
    wait_objects(&peers[3], 0);
    wait_objects(&peers[2], 0);
    for (int i = 0; i < 5000 && orders("p2") + orders("p3") > 0; i++) {
        pause_briefly();
    }
    assert_int_equal(orders("p2") + orders("p3"), 0);
}

/* Without the quorum nothing stays behind. */
static void test_pool_without_quorum(void **state)
{
    kh_key_info info;

    (void)state;
    start_keeper(1, 3);
    peers[1].fail_on = peers[2].fail_on = KH_LINK_PLACE;
    assert_int_equal(create("www", KH_TIER_HSM_POOL, "", &info), KH_E_UNAVAILABLE);
    assert_int_equal(rig_lookup(&rig, "www", &info), KH_E_NOT_FOUND);
    wait_objects(&peers[3], 0);
    peers[1].fail_on = peers[2].fail_on = 0;
    /* The one that makes it dies: another does. */
    peers[1].die_on = KH_LINK_GENERATE;
    assert_int_equal(create("www", KH_TIER_HSM_POOL, "", &info), KH_OK);
    wait_objects(&peers[2], 1);
    wait_objects(&peers[3], 1);
    expect_report("ok 1 keys\n");
}

/* What a partition cannot take is said in one line for all keys, and not each second. */
static void test_repair_that_fails(void **state)
{
    const kh_record repair = {.op = KH_STORE_REPAIR, .data = (const uint8_t *)"pool", .data_len = 4};
    kh_key_info info;

    (void)state;
    start_keeper(1, 2);
    for (int i = 0; i < 10; i++) {
        char name[8];

        snprintf(name, sizeof(name), "k%d", i);
        assert_int_equal(create(name, KH_TIER_HSM_POOL, "", &info), KH_OK);
    }
    peers[3].fail_on = KH_LINK_PLACE;
    peers[3].why = "no such\n mechanism";
    connect_peer(&peers[3]);
    wait_seen(&peers[3], KH_LINK_PLACE, 10);
    for (int i = 0; i < 5000 && logged("lacks") == 0; i++) {
        pause_briefly();
    }
    assert_int_equal(logged("partition p3 lacks 10 of 10 keys of its pool, which cannot be placed: no such? mechanism; "
                            "tried again in 2 s"),
                     1);
    assert_int_equal(logged("p3"), 2); /* it is there; and that */
    peers[3].fail_on = 0;
    (void)rig_admin(&rig, &repair);
    wait_objects(&peers[3], 10);
    for (int i = 0; i < 5000 && logged("p3 has all 10 keys") == 0; i++) {
        pause_briefly();
    }
    assert_int_equal(logged("p3 has all 10 keys"), 1);
}

/* ---- Rotation policies ---------------------------------------------------------------------------------- */

static void no_log(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    (void)level;
    (void)text;
}

/* The store's thread, without its loop: what it is to do is in its desk. */
static kh_keeper *open_keeper(void)
{
    static const kh_keeper_config config = {.log = no_log};
    kh_keeper *keeper = calloc(1, sizeof(*keeper));

    assert_non_null(keeper);
    keeper->config = &config;
    pthread_mutex_init(&keeper->lock, NULL);
    assert_int_equal(kh_desk_init(&keeper->store_desk), KH_OK);
    assert_int_equal(kh_links_new(&keeper->links), KH_OK);
    assert_int_equal(kh_store_open(rig.store, KH_KEK_FILE, rig.kek, 32, NULL, NULL, &keeper->store), KH_OK);
    return keeper;
}

static void close_keeper(kh_keeper *keeper)
{
    while (keeper->store_desk.waiting > 0) {
        kh_op *op = kh_desk_pop(&keeper->store_desk);

        free(op->long_data);
        free(op);
    }
    kh_store_close(keeper->store);
    kh_links_free(keeper->links);
    kh_desk_destroy(&keeper->store_desk);
    pthread_mutex_destroy(&keeper->lock);
    free(keeper);
}

/* A key with a policy of 30 days, that is to live 40. */
static void add_rotated(kh_keeper *keeper, const char *name, uint64_t now)
{
    kh_key_change change = {.what = KH_CHANGE_ROTATE | KH_CHANGE_EXPIRES, .expires = now + 40 * DAY, .policy.rotate_days = 30};
    kh_key_info info = {.usage = KH_USAGE_SIGN};
    kh_material material;

    strcpy(info.name, name);
    strcpy(change.policy.name, name);
    assert_int_equal(kh_material_generate(KH_KEY_P256, 256, &material), KH_OK);
    assert_int_equal(kh_store_insert(keeper->store, KH_ASKER_ROOT, &info, &material), KH_OK);
    assert_int_equal(kh_store_set(keeper->store, &change, &info), KH_OK);
}

/* What the policies ask for next, which ends so. */
static void expect_rotation(kh_keeper *keeper, const char *name, kh_result result)
{
    kh_op *op = NULL;
    kh_key_info asked;

    assert_true(keeper->store_desk.waiting > 0); /* else it would be waited for */
    op = kh_desk_pop(&keeper->store_desk);
    assert_int_equal(op->record.op, KH_STORE_CREATE);
    memcpy(&asked, op->record.data, sizeof(asked));
    assert_string_equal(asked.name, name);
    op->result = result;
    op->long_out = malloc(sizeof(asked));
    memcpy(op->long_out, &asked, sizeof(asked));
    op->answered(keeper, op);
    free(op->long_out);
    free(op->long_data);
    free(op);
}

static void test_rotation(void **state)
{
    const uint64_t now = (uint64_t)time(NULL);
    kh_keeper *keeper = open_keeper();
    kh_key_info info, asked;
    kh_op *op = NULL;

    (void)state;
    add_rotated(keeper, "www", now);
    kh_rotate_due(keeper, now + 29 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 0);
    kh_rotate_soon(keeper->links);
    kh_rotate_due(keeper, now + 31 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 1);
    kh_rotate_due(keeper, now + 32 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 1); /* it is being made */
    op = kh_desk_pop(&keeper->store_desk);
    assert_int_equal(op->record.op, KH_STORE_CREATE);
    memcpy(&asked, op->record.data, sizeof(asked));
    assert_string_equal(asked.name, "www");
    assert_int_equal(asked.type, KH_KEY_P256);
    assert_int_equal(asked.flags, KH_KEY_NEW_VERSION);
    assert_true(asked.expires >= now + (31 + 40) * DAY - 60); /* it lives as long */
    free(op->long_data);
    free(op);
    /* A key that is disabled stays as it is. */
    assert_int_equal(kh_store_set_state(keeper->store, KH_ASKER_ROOT, "www", 0, 2, &info), KH_OK);
    keeper->links->rotating = 0;
    kh_rotate_soon(keeper->links);
    kh_rotate_due(keeper, now + 31 * DAY);
    assert_int_equal(keeper->store_desk.waiting, 0);
    close_keeper(keeper);
}

/* One that fails is left for a while, and the others go on; no more than a few are made at a time. */
static void test_rotation_that_fails(void **state)
{
    const uint64_t now = (uint64_t)time(NULL), then = now + 31 * DAY;
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
    kh_keeper *keeper = open_keeper();

    (void)state;
    for (int i = 0; i < 6; i++) {
        add_rotated(keeper, names[i], now);
    }
    kh_rotate_due(keeper, then);
    assert_int_equal(keeper->store_desk.waiting, 4);
    expect_rotation(keeper, "a", KH_E_UNAVAILABLE);
    for (int i = 1; i < 4; i++) {
        expect_rotation(keeper, names[i], KH_OK);
    }
    kh_rotate_due(keeper, then + 1);
    assert_int_equal(keeper->store_desk.waiting, 2);
    expect_rotation(keeper, "e", KH_E_UNAVAILABLE);
    expect_rotation(keeper, "f", KH_OK);
    /* The next round: nothing was really made here, so all but those that failed are due again. */
    kh_rotate_due(keeper, then + 120);
    for (int i = 1; i < 4; i++) {
        expect_rotation(keeper, names[i], KH_OK);
    }
    expect_rotation(keeper, "f", KH_OK);
    assert_int_equal(keeper->store_desk.waiting, 0);
    kh_rotate_due(keeper, then + 602); /* the end of this round; and then they are, too */
    kh_rotate_due(keeper, then + 663);
    expect_rotation(keeper, "a", KH_E_UNAVAILABLE);
    for (int i = 1; i < 4; i++) {
        expect_rotation(keeper, names[i], KH_OK);
    }
    kh_rotate_soon(keeper->links); /* a token came: nobody is left out */
    keeper->links->rotate_from[0] = '\0';
    kh_rotate_due(keeper, then + 664);
    expect_rotation(keeper, "a", KH_OK);
    close_keeper(keeper);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_token, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_waits_for_token, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_create, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_token_dies, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_t6_killed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_disable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_key_question, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_purge, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_move, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_import, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_adopt_and_certify, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_pool, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_pool_without_quorum, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_repair_that_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_leave, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_orders, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rotation, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rotation_that_fails, set_up, tear_down),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

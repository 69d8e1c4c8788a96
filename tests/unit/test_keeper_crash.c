/* SPDX-License-Identifier: Apache-2.0 */
/*
 * M14: kill -9 at random moments while keys are created, imported and disabled. Whatever was acknowledged
 * holds afterwards. KH_CHECK=full makes it a long loop.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper_rig.h"

#include <errno.h>
#include <openssl/evp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEYS_MAX 20000

/* What was acknowledged about a key, and what was asked and not yet answered. */
typedef struct fact {
    bool exists;
    uint32_t state;
    uint32_t asked_state; /* 0: nothing */
    kh_key_info info;
} fact;

static keeper_rig rig;
static fact *facts;
static unsigned names; /* key-0 to key-(names - 1) were asked for */

static void killer_after(unsigned delay_us)
{
    const struct timespec moment = {.tv_nsec = (long)delay_us * 1000};
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        nanosleep(&moment, NULL);
        kill(rig.pid, SIGKILL);
        _exit(0);
    }
}

/* One operation; false: the keeper is gone. */
static bool call(const kh_record *record, kh_result *result, kh_key_info *info)
{
    struct pollfd pfd = {.fd = kh_keystore_event_fd(rig.keystore), .events = POLLIN};
    kh_completion completion;

    assert_int_equal(kh_keystore_submit(rig.keystore, record), KH_OK);
    kh_keystore_flush(rig.keystore);
    while (kh_keystore_collect(rig.keystore, &completion, 1) == 0) {
        siginfo_t dead = {0};

        if (poll(&pfd, 1, 5) == 0 && waitid(P_PID, (id_t)rig.pid, &dead, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            dead.si_pid != 0) {
            if (kh_keystore_collect(rig.keystore, &completion, 1) == 0) {
                return false;
            }
            break;
        }
    }
    *result = completion.result;
    if (completion.result == KH_OK && info != NULL) {
        memcpy(info, completion.data, sizeof(*info));
    }
    kh_keystore_release(rig.keystore, &completion);
    return true;
}

static bool one_create(unsigned n)
{
    kh_key_info asked = {.type = n % 2 ? KH_KEY_P256 : KH_KEY_ED25519, .usage = KH_USAGE_SIGN};
    kh_record record = {.op = KH_STORE_CREATE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    kh_result result = KH_OK;

    snprintf(asked.name, sizeof(asked.name), "key-%u", n);
    if (!call(&record, &result, &facts[n].info)) {
        return false;
    }
    assert_int_equal(result, KH_OK);
    facts[n].exists = true;
    facts[n].state = 1;
    return true;
}

static bool one_state(unsigned n, uint32_t state)
{
    kh_key_info asked = {.version = 0, .state = state}, newest;
    kh_record record = {.op = KH_STORE_SET_STATE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    kh_result result = KH_OK;

    if (!facts[n].exists) {
        return true;
    }
    snprintf(asked.name, sizeof(asked.name), "key-%u", n);
    facts[n].asked_state = state;
    if (!call(&record, &result, &newest)) {
        return false;
    }
    assert_int_equal(result, KH_OK);
    assert_int_equal(newest.state, state);
    facts[n].state = state;
    facts[n].asked_state = 0;
    return true;
}

static bool one_import(unsigned n)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    uint8_t data[sizeof(kh_key_info) + 512];
    kh_key_info asked = {.usage = KH_USAGE_SIGN};
    kh_record record = {.op = KH_STORE_IMPORT, .data = data};
    size_t sealed = 0;
    kh_result result = KH_OK;
    bool alive = false;

    snprintf(asked.name, sizeof(asked.name), "key-%u", n);
    memcpy(data, &asked, sizeof(asked));
    rig_wrap(&rig, asked.name, pkey, KH_USAGE_SIGN, 0, data + sizeof(asked), sizeof(data) - sizeof(asked),
             &sealed);
    record.data_len = (uint32_t)(sizeof(asked) + sealed);
    alive = call(&record, &result, &facts[n].info);
    if (alive) {
        assert_int_equal(result, KH_OK);
        facts[n].exists = true;
        facts[n].state = 1;
    }
    EVP_PKEY_free(pkey);
    return alive;
}

static bool one_step(void)
{
    unsigned n = names;

    switch (random() % 3) {
    case 0:
        names++;
        return one_create(n);
    case 1:
        names++;
        return one_import(n);
    default:
        return n == 0 || one_state((unsigned)random() % n, 1 + (uint32_t)random() % 2);
    }
}

/* Every fact holds: the key is there, with its id and state, and signs if it is enabled. */
static void verify(void)
{
    static const uint8_t message[3] = "abc";

    for (unsigned n = 0; n < names; n++) {
        char name[32];
        kh_key_info info;
        kh_result result = KH_OK;
        uint32_t scheme = 0;

        snprintf(name, sizeof(name), "key-%u", n);
        result = rig_lookup(&rig, name, &info);
        if (!facts[n].exists) {
            /* Never acknowledged: it may be there or not, but if it is, it is whole. */
            assert_true(result == KH_OK || result == KH_E_NOT_FOUND);
            if (result == KH_E_NOT_FOUND) {
                continue;
            }
            facts[n].exists = true;
            facts[n].state = 1;
            facts[n].info = info;
        }
        assert_int_equal(result, KH_OK);
        assert_memory_equal(info.id, facts[n].info.id, 32);
        assert_int_equal(info.ref, facts[n].info.ref);
        assert_true(info.state == facts[n].state || info.state == facts[n].asked_state);
        facts[n].state = info.state;
        facts[n].asked_state = 0;
        scheme = info.type == KH_KEY_ED25519 ? KH_ED25519 : KH_ECDSA_SHA256;
        if (info.state == 2) {
            assert_int_equal(rig_sign(&rig, &info, scheme, 0, message, 3), KH_E_DISABLED);
            continue;
        }
        kh_record record = {
            .op = KH_STORE_SIGN, .key_ref = info.ref, .scheme = scheme, .data = message, .data_len = 3};
        const rig_answer *got = rig_call(&rig, &record);
        assert_int_equal(got->result, KH_OK);
        assert_true(rig_verify(info.spki, info.spki_len, scheme, false, message, 3, got->data, got->len));
    }
}

static void test_kill(void **state)
{
    const char *mode = getenv("KH_CHECK");
    const unsigned rounds = mode != NULL && strcmp(mode, "full") == 0 ? 300 : 25;

    (void)state;
    srandom(7);
    for (unsigned round = 0; round < rounds && names < KEYS_MAX - 1000; round++) {
        unsigned steps = 0;

        assert_int_equal(rig_start(&rig), KH_OK);
        killer_after(500 + (unsigned)random() % 60000);
        while (one_step()) {
            steps++;
        }
        rig_kill(&rig);
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
        assert_int_equal(rig_start(&rig), KH_OK);
        verify();
        rig_kill(&rig);
    }
    assert_int_equal(rig_start(&rig), KH_OK);
    kh_record check = {.op = KH_STORE_CHECK};
    const rig_answer *got = rig_admin(&rig, &check);
    assert_int_equal(got->result, KH_OK);
    assert_memory_equal(got->data, "ok ", 3);
    assert_int_equal(rig_stop(&rig), KH_OK);
    print_message("M14: killed %u times, %u keys asked for, all that was acknowledged holds\n", rounds,
                  names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kill)};
    int failed = 0;

    kh_secure_openssl();
    facts = calloc(KEYS_MAX, sizeof(*facts));
    rig_init(&rig, NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rig_clean(&rig);
    free(facts);
    return failed;
}

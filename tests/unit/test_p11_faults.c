/* SPDX-License-Identifier: Apache-2.0 */
/* What a token's faults mean: each misbehaviour of the shim (tests/shim) as the keeper sees it. */
#include "p11_rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static const uint8_t message[] = "what a TLS server signs";

typedef struct rig {
    kh_p11 *p11;
    kh_p11_session *session;
    kh_p11_locator locator[2]; /* P-256 "fast", RSA-4096 "slow" */
    kh_p11_key key[2];
    char counts[300];
} rig;
static rig r;

static kh_result sign(int which)
{
    uint8_t out[KH_SIGNATURE_MAX];
    size_t len = 0;

    return kh_p11_sign(r.session, &r.key[which], which == 0 ? KH_ECDSA_SHA256 : KH_RSA_PSS_RSAE_SHA256, false,
                       message, sizeof(message), out, &len);
}

static void set_keys(void)
{
    assert_int_equal(kh_p11_find(r.session, &r.locator[0], &r.key[0]), KH_OK);
    assert_int_equal(kh_p11_find(r.session, &r.locator[1], &r.key[1]), KH_OK);
}

static int set_up(void **state)
{
    uint8_t spki[KH_SPKI_MAX];
    size_t len = 0;
    const char *conf = NULL;

    (void)state;
    rig_token("one");
    rig_token("pins");
    conf = getenv("SOFTHSM2_CONF");
    snprintf(r.counts, sizeof(r.counts), "%s.counts", conf);
    rig_rules("");
    r.p11 = rig_open(KH_SHIM, "one");
    assert_int_equal(kh_p11_session_new(r.p11, true, &r.session), KH_OK);
    r.locator[0] = rig_locator(1, "fast");
    r.locator[1] = rig_locator(2, "slow");
    assert_int_equal(kh_p11_generate(r.session, KH_KEY_P256, 256, &r.locator[0], KH_USAGE_SIGN, spki, &len),
                     KH_OK);
    assert_int_equal(
        kh_p11_generate(r.session, KH_KEY_RSA, 4096, &r.locator[1], KH_USAGE_DECRYPT, spki, &len), KH_OK);
    set_keys();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rig_rules("");
    kh_p11_session_free(r.session);
    kh_p11_close(r.p11);
    rig_clean();
    return 0;
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void delays(void **state)
{
    double begin = 0;

    (void)state;
    rig_rules("C_Sign delay 200\n");
    begin = now();
    assert_int_equal(sign(0), KH_OK);
    assert_true(now() - begin >= 0.2);
    rig_rules("C_Sign delay 5000 label=slow\n");
    begin = now();
    assert_int_equal(sign(0), KH_OK);
    assert_true(now() - begin < 5);
    rig_rules("C_Sign delay 150 label=slow\n# and nothing else\n");
    begin = now();
    assert_int_equal(sign(1), KH_OK);
    assert_true(now() - begin >= 0.15);
    rig_rules("");
}

static void fails_now_and_then(void **state)
{
    int failed = 0;

    (void)state;
    rig_rules("C_Sign error CKR_DEVICE_ERROR every 10\n");
    for (int i = 0; i < 50; i++) {
        kh_result result = sign(0);

        if (result != KH_OK) {
            failed++;
            assert_int_equal(result, KH_E_UNAVAILABLE);
            assert_string_equal(kh_p11_session_error(r.session), "C_Sign: CKR_DEVICE_ERROR");
            assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_SESSION);
            assert_int_equal(kh_p11_session_renew(r.session), KH_OK);
        } else {
            assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_NONE);
        }
    }
    assert_int_equal(failed, 5);
    rig_rules("C_SignInit error 0x80000123 after 1\n");
    assert_int_equal(sign(0), KH_OK);
    assert_int_equal(sign(0), KH_E_UNAVAILABLE);
    assert_string_equal(kh_p11_session_error(r.session), "C_SignInit: CKR 0x80000123");
    rig_rules("");
    assert_int_equal(sign(0), KH_OK);
}

typedef struct meaning {
    const char *rv;
    kh_result result;
    kh_p11_heal heal;
} meaning;

static void each_error_has_a_meaning(void **state)
{
    static const meaning meanings[] = {
        {"CKR_HOST_MEMORY", KH_E_MEMORY, KH_HEAL_NONE},
        {"CKR_GENERAL_ERROR", KH_E_UNAVAILABLE, KH_HEAL_SESSION},
        {"CKR_DEVICE_REMOVED", KH_E_UNAVAILABLE, KH_HEAL_TOKEN},
        {"CKR_TOKEN_NOT_PRESENT", KH_E_UNAVAILABLE, KH_HEAL_TOKEN},
        {"CKR_CRYPTOKI_NOT_INITIALIZED", KH_E_UNAVAILABLE, KH_HEAL_TOKEN},
        {"CKR_SESSION_HANDLE_INVALID", KH_E_UNAVAILABLE, KH_HEAL_SESSION},
        {"CKR_USER_NOT_LOGGED_IN", KH_E_UNAVAILABLE, KH_HEAL_LOGIN},
        {"CKR_KEY_HANDLE_INVALID", KH_E_UNAVAILABLE, KH_HEAL_OBJECT},
        {"CKR_MECHANISM_INVALID", KH_E_UNSUPPORTED, KH_HEAL_NONE},
        {"CKR_DATA_LEN_RANGE", KH_E_INVALID, KH_HEAL_NONE},
        {"CKR_BUFFER_TOO_SMALL", KH_E_UNAVAILABLE, KH_HEAL_SESSION},
    };
    char rule[80];

    (void)state;
    for (size_t i = 0; i < sizeof(meanings) / sizeof(meanings[0]); i++) {
        snprintf(rule, sizeof(rule), "C_Sign error %s\n", meanings[i].rv);
        rig_rules(rule);
        assert_int_equal(sign(0), meanings[i].result);
        assert_int_equal(kh_p11_session_heal(r.session), meanings[i].heal);
        rig_rules("");
        assert_int_equal(sign(0), KH_OK);
    }
}

static void lies_about_lengths(void **state)
{
    uint8_t block[512] = {0, 1}, out[KH_SIGNATURE_MAX];
    size_t len = 0;
    kh_p11_key key;

    (void)state;
    for (int which = 0; which < 2; which++) {
        rig_rules("C_Sign length +1\n");
        assert_int_equal(sign(which), KH_E_UNAVAILABLE);
        assert_string_equal(kh_p11_session_error(r.session),
                            which == 0 ? "C_Sign: answered 65 bytes instead of 64"
                                       : "C_Sign: answered 513 bytes instead of 512");
        assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_SESSION);
        rig_rules("C_Sign length -1\n");
        assert_int_equal(sign(which), KH_E_UNAVAILABLE);
        rig_rules("C_Sign length +1000000\n");
        assert_int_equal(sign(which), KH_E_UNAVAILABLE);
    }
    rig_rules("C_Decrypt length +1\n");
    assert_int_equal(kh_p11_rsa_raw(r.session, &r.key[1], block, sizeof(block), out, &len), KH_E_UNAVAILABLE);
    rig_rules("C_Decrypt error CKR_DATA_INVALID\n");
    assert_int_equal(kh_p11_rsa_raw(r.session, &r.key[1], block, sizeof(block), out, &len), KH_E_CRYPTO);
    rig_rules("C_GetAttributeValue length +100000\n");
    assert_int_equal(kh_p11_find(r.session, &r.locator[1], &key), KH_E_UNAVAILABLE);
    rig_rules("");
    assert_int_equal(kh_p11_rsa_raw(r.session, &r.key[1], block, sizeof(block), out, &len), KH_OK);
    assert_int_equal(sign(0), KH_OK);
}

/* All sessions, the login and the handles are gone: renewed, logged in, found again; and nothing piles up. */
static void loses_sessions(void **state)
{
    kh_p11_session *other = NULL;

    (void)state;
    for (int i = 0; i < 20; i++) {
        rig_rules(i % 2 ? "sessions lost\n" : "sessions lost\n#\n");
        assert_int_equal(sign(0), KH_E_UNAVAILABLE);
        assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_SESSION);
        assert_int_equal(kh_p11_alive(r.session), KH_E_UNAVAILABLE);
        assert_int_equal(kh_p11_session_new(r.p11, false, &other), KH_OK);
        kh_p11_session_free(other);
        assert_int_equal(kh_p11_session_renew(r.session), KH_OK);
        assert_int_equal(sign(0), KH_E_UNAVAILABLE);
        assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_OBJECT);
        set_keys();
        assert_int_equal(sign(0), KH_OK);
    }
    rig_rules("");
}

/* Logged out, a token shows no private keys: none of it is believed, and nothing counts as destroyed. */
static void is_logged_out(void **state)
{
    kh_p11_locator unknown = rig_locator(99, "unknown");
    kh_p11_key key;

    (void)state;
    rig_rules("login lost\n");
    assert_int_equal(kh_p11_find(r.session, &r.locator[0], &key), KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_LOGIN);
    assert_int_equal(kh_p11_destroy(r.session, &r.locator[0]), KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_LOGIN);
    assert_int_equal(kh_p11_alive(r.session), KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_login(r.p11), KH_OK);
    assert_int_equal(kh_p11_find(r.session, &unknown, &key), KH_E_NOT_FOUND);
    assert_int_equal(sign(0), KH_OK);
    rig_rules("");
}

/* A pair was made, but the answer was lost: the next try replaces it. */
static void repeats_a_generation(void **state)
{
    kh_p11_locator locator = rig_locator(50, "twice");
    uint8_t spki[KH_SPKI_MAX], again[KH_SPKI_MAX];
    size_t len = 0, again_len = 0;
    kh_p11_key key;

    (void)state;
    rig_rules("C_GetAttributeValue error CKR_DEVICE_ERROR\nC_DestroyObject error CKR_DEVICE_ERROR\n");
    assert_int_equal(kh_p11_generate(r.session, KH_KEY_P256, 256, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_SESSION);
    rig_rules("");
    assert_int_equal(kh_p11_generate(r.session, KH_KEY_P256, 256, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_OK);
    assert_int_equal(kh_p11_find(r.session, &locator, &key), KH_OK);
    assert_int_equal(kh_p11_public(r.session, &locator, again, &again_len), KH_OK);
    assert_int_equal(again_len, len);
    assert_memory_equal(again, spki, len);
    assert_int_equal(kh_p11_destroy(r.session, &locator), KH_OK);
}

/* A wrong PIN that the library has no word for is known by the token's count, and tried once all the same. */
static void knows_a_wrong_pin(void **state)
{
    kh_p11_config config = {.module = KH_SHIM, .label = "pins", .pin = (const uint8_t *)"9999", .pin_len = 4};
    kh_p11_session *session = NULL;
    kh_p11 *p11 = NULL;
    char rule[400];
    struct stat st;

    (void)state;
    snprintf(rule, sizeof(rule), "C_Login count-file %s.pin\n", r.counts);
    rig_rules(rule);
    assert_int_equal(kh_p11_open(&config, &p11), KH_OK);
    assert_int_equal(kh_p11_session_new(p11, false, &session), KH_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kh_p11_login(p11), KH_E_PASSPHRASE);
    }
    snprintf(rule, sizeof(rule), "%s.pin", r.counts);
    assert_int_equal(stat(rule, &st), 0);
    assert_int_equal(st.st_size, strlen("C_Login 0xa0\n"));
    kh_p11_session_free(session);
    kh_p11_close(p11);
    rig_rules("C_Login error CKR_FUNCTION_FAILED\n");
    assert_int_equal(kh_p11_open(&config, &p11), KH_OK);
    assert_int_equal(kh_p11_login(p11), KH_E_PASSPHRASE); /* the count is still low from before */
    kh_p11_close(p11);
    rig_rules("");
}

static void token_goes_and_comes(void **state)
{
    kh_p11_config config = {.module = KH_SHIM, .label = "one"};
    kh_p11 *p11 = NULL;

    (void)state;
    rig_rules("token gone\n");
    assert_int_equal(sign(0), KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_TOKEN);
    assert_int_equal(kh_p11_alive(r.session), KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r.session), KH_HEAL_TOKEN);
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_NOT_FOUND);
    rig_rules("");
    assert_int_equal(sign(0), KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_renew(r.session), KH_OK);
    set_keys();
    assert_int_equal(sign(0), KH_OK);
    assert_int_equal(kh_p11_alive(r.session), KH_OK);
}

/* What ends or stops a process is tried in another one. */
static int child_signs(void)
{
    pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        kh_p11_config config = {
            .module = KH_SHIM, .label = "one", .pin = (const uint8_t *)RIG_PIN, .pin_len = 4};
        kh_p11_session *session = NULL;
        kh_p11_key key;
        kh_p11 *p11 = NULL;
        uint8_t out[KH_SIGNATURE_MAX];
        size_t len = 0;
        bool good = true;

        signal(SIGSEGV, SIG_DFL); /* cmocka has handlers */
        signal(SIGABRT, SIG_DFL);
        good = kh_p11_open(&config, &p11) == KH_OK && kh_p11_login(p11) == KH_OK &&
               kh_p11_session_new(p11, false, &session) == KH_OK &&
               kh_p11_find(session, &r.locator[0], &key) == KH_OK;

        alarm(1);
        for (int i = 0; good && i < 10; i++) {
            good = kh_p11_sign(session, &key, KH_ECDSA_SHA256, false, message, sizeof(message), out, &len) ==
                   KH_OK;
        }
        _exit(good ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 256 + WEXITSTATUS(status);
}

static void crashes_and_hangs(void **state)
{
    char rule[400];
    struct stat st;

    (void)state;
    /* Another process of the same directory, and not a fork of one that has SoftHSM open. */
    kh_p11_session_free(r.session);
    kh_p11_close(r.p11);
    r.session = NULL;
    r.p11 = NULL;
    assert_int_equal(child_signs(), 256);
    rig_rules("C_Sign crash after 5\n");
    assert_int_equal(child_signs(), SIGSEGV);
    rig_rules("C_Sign hang after 2\n");
    assert_int_equal(child_signs(), SIGALRM);
    snprintf(rule, sizeof(rule), "C_Login count-file %s\n", r.counts);
    rig_rules(rule);
    assert_int_equal(child_signs(), 256);
    assert_int_equal(child_signs(), 256);
    assert_int_equal(stat(r.counts, &st), 0);
    assert_int_equal(st.st_size, 2 * strlen("C_Login 0x0\n"));
    rig_rules("C_Sign wobble 5\n");
    assert_int_equal(child_signs(), SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(delays),
        cmocka_unit_test(fails_now_and_then),
        cmocka_unit_test(each_error_has_a_meaning),
        cmocka_unit_test(lies_about_lengths),
        cmocka_unit_test(loses_sessions),
        cmocka_unit_test(is_logged_out),
        cmocka_unit_test(repeats_a_generation),
        cmocka_unit_test(token_goes_and_comes),
        cmocka_unit_test(crashes_and_hangs),
        cmocka_unit_test(knows_a_wrong_pin),
    };

    if (rig_softhsm() == NULL) {
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

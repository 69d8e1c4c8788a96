/* SPDX-License-Identifier: Apache-2.0 */
/* Work in tokens, each in a process of its own. See tokenwork.h. */
#include "tokenwork.h"
#include "secret.h"

#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ENV_PREFIX "env:"
#define CREDENTIAL_PREFIX "credential:"

/* What the child says, in front of what the work brought. */
typedef struct child_answer {
    kh_result result;
    char error[CTL_ERROR_MAX];
} child_answer;

/* ---- The child ---- */

/* The last error that the library's layer logged is why it did not open. */
static void keep_error(void *ctx, kh_log_level level, const char *text)
{
    if (level == KH_LOG_ERROR) {
        (void)snprintf(ctx, CTL_ERROR_MAX, "%s", text);
    }
}

static bool become_keeper(const kh_config *config, const kh_config_token *token)
{
    const char *keeper = config->keeper_user != NULL ? config->keeper_user : KH_KEEPER_USER_DEFAULT;
    const char *name = token->user != NULL ? token->user : keeper;
    kh_user user;

    if (geteuid() != 0) {
        return true;
    }
    return kh_config_user(name, &user) == KH_OK && setgroups(0, NULL) == 0 &&
           setresgid(user.gid, user.gid, user.gid) == 0 && setresuid(user.uid, user.uid, user.uid) == 0;
}

static bool take_environment(const kh_config_token *token)
{
    if (clearenv() != 0) {
        return false;
    }
    for (size_t i = 0; i < token->env_count; i++) {
        if (putenv(token->env[i]) != 0) {
            return false;
        }
    }
    return true;
}

static const char *words_of(kh_result result)
{
    switch (result) {
    case KH_E_NOT_FOUND:
        return "no such token: is it initialized, are label and serial right, may the keeper's user read it?";
    case KH_E_PASSPHRASE:
        return "its PIN is wrong";
    case KH_E_LOCKED:
        return "its PIN is locked";
    default:
        return kh_result_text((int)result);
    }
}

static kh_result work_in(kh_p11 *p11, const ctl_token_work *work, char *error)
{
    kh_p11_session *session = NULL;
    kh_result result = KH_OK;

    if (work->no_login) {
        return work->run(p11, NULL, work->in, work->out, error);
    }
    result = kh_p11_login(p11);
    if (result == KH_OK) {
        result = kh_p11_session_new(p11, true, &session);
    }
    if (result != KH_OK) {
        (void)snprintf(error, CTL_ERROR_MAX, "%s", words_of(result));
        return result;
    }
    result = work->run(p11, session, work->in, work->out, error);
    if (result != KH_OK && error[0] == '\0') {
        (void)snprintf(error, CTL_ERROR_MAX, "%s", kh_p11_session_error(session));
    }
    kh_p11_session_free(session);
    return result;
}

static void child(pid_t parent, const kh_config *config, const kh_config_token *token, const ctl_secret *pin,
                  const ctl_token_work *work, int fd)
{
    child_answer answer = {.result = KH_E_FORBIDDEN};
    const kh_p11_config how = {.module = token->module,
                               .label = token->label,
                               .serial = token->serial,
                               .pin = pin->data,
                               .pin_len = pin->len,
                               .log = keep_error,
                               .log_ctx = answer.error};
    kh_p11 *p11 = NULL;

    if (!become_keeper(config, token) || !take_environment(token) ||
        prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) { /* a change of user clears that signal */
        (void)snprintf(answer.error, sizeof(answer.error), "cannot become the keeper's user");
    } else {
        answer.result = kh_p11_open(&how, &p11);
        if (answer.result == KH_OK) {
            answer.result = work_in(p11, work, answer.error);
            kh_p11_close(p11);
        } else {
            if (answer.error[0] == '\0') {
                (void)snprintf(answer.error, sizeof(answer.error), "%s", words_of(answer.result));
            }
            /* That something is not found is the work's to say. */
            answer.result = answer.result == KH_E_NOT_FOUND ? KH_E_UNAVAILABLE : answer.result;
        }
    }
    if (write(fd, &answer, sizeof(answer)) == sizeof(answer) && work->out_len > 0) {
        (void)!write(fd, work->out, work->out_len);
    }
    _exit(0);
}

/* ---- The parent ---- */

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Exactly len bytes; false: the end came before, or the time is over (*late). */
static bool receive(int fd, void *data, size_t len, uint64_t until, bool *late)
{
    for (size_t got = 0; got < len;) {
        uint64_t now = now_ms();
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        ssize_t n = 0;

        *late = now >= until;
        if (*late) {
            return false;
        }
        if (poll(&ready, 1, (int)(until - now)) <= 0) {
            continue;
        }
        n = read(fd, (uint8_t *)data + got, len - got);
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return false;
        }
        got += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static kh_result load_pin(ctl_run *ctl, const kh_config_token *token, ctl_secret *pin)
{
    ctl_passphrase_source source = {0};

    if (token->pin_file == NULL) {
        return KH_OK;
    }
    if (strncmp(token->pin_file, CREDENTIAL_PREFIX, strlen(CREDENTIAL_PREFIX)) == 0) {
        source.prompt = "PIN of the token"; /* only the agent's unit can read it */
    } else if (strncmp(token->pin_file, ENV_PREFIX, strlen(ENV_PREFIX)) == 0) {
        source.environment = token->pin_file + strlen(ENV_PREFIX);
    } else {
        source.file = token->pin_file;
    }
    return ctl_secret_passphrase(&source, pin, &ctl->error);
}

static kh_result finish(ctl_run *ctl, const kh_config_token *token, const ctl_token_work *work, int fd)
{
    child_answer answer = {.result = KH_E_UNAVAILABLE};
    uint64_t until = now_ms() + work->timeout_ms;
    bool late = false;

    if (!receive(fd, &answer, sizeof(answer), until, &late) ||
        (work->out_len > 0 && !receive(fd, work->out, work->out_len, until, &late))) {
        return ctl_fail(&ctl->error, KH_E_UNAVAILABLE, "%s: token %s: %s", work->what, token->name,
                        late ? "its library does not answer" : "its library crashed");
    }
    answer.error[sizeof(answer.error) - 1] = '\0';
    if (answer.result == KH_OK) {
        return KH_OK;
    }
    return ctl_fail(&ctl->error, answer.result, "%s: token %s: %.500s", work->what, token->name,
                    answer.error[0] != '\0' ? answer.error : kh_result_text((int)answer.result));
}

kh_result ctl_token_do(ctl_run *ctl, const kh_config *config, const kh_config_token *token,
                       const ctl_token_work *work)
{
    ctl_secret pin = {0};
    int fds[2] = {-1, -1};
    pid_t parent = getpid(), pid = -1;
    kh_result result = load_pin(ctl, token, &pin);

    if (result == KH_OK && (pipe(fds) != 0 || (pid = fork()) < 0)) {
        result = ctl_fail(&ctl->error, KH_E_IO, "%s: %s", work->what, strerror(errno));
    }
    if (pid == 0) {
        (void)close(fds[0]);
        child(parent, config, token, &pin, work, fds[1]);
    }
    ctl_secret_free(&pin);
    if (fds[1] >= 0) {
        (void)close(fds[1]);
    }
    if (result == KH_OK) {
        result = finish(ctl, token, work, fds[0]);
        (void)kill(pid, SIGKILL); /* it may hang in its library */
        (void)waitpid(pid, NULL, 0);
    }
    if (fds[0] >= 0) {
        (void)close(fds[0]);
    }
    return result;
}

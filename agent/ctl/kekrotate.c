/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kek rotate: another key-encryption key for a store that is in use. Safe at any point: between the two calls
 * either key opens the store, and the file has one of them at any time. Whoever is interrupted says it again.
 */
#include "agent.h"
#include "secret.h"
#include "tokenwork.h"

#include <kek_token.h>
#include <openssl/crypto.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KEK_LEN 32
#define PATH_LEN 4096

static const char what[] = "cannot change the key-encryption key";

typedef struct rotation {
    const char *path;    /* kek_file */
    char next[PATH_LEN]; /* where the next one is made */
    char old[PATH_LEN];  /* where the one before is kept */
    const char *token;   /* that is to wrap the next one, by its name in the configuration; NULL: none */
    bool made;           /* and this run made it: no store knows of it */
    ctl_secret keys;     /* both, KEK_LEN each */
} rotation;

/* What is done in a token, each in its own process (tokenwork.h). `out`, which has the key in it, is wiped by whoever asked. */
typedef struct kek_in_token {
    kh_kek_token wrapped;
    uint8_t kek[KEK_LEN];
} kek_in_token;

static kh_result unwrap(kh_p11 *p11, kh_p11_session *session, const void *in, void *out, char *error)
{
    (void)p11;
    (void)error;
    return kh_kek_token_unwrap(session, in, ((kek_in_token *)out)->kek);
}

static kh_result make(kh_p11 *p11, kh_p11_session *session, const void *in, void *out, char *error)
{
    kek_in_token *made = out;

    (void)p11;
    (void)error;
    return kh_kek_token_create(session, in, &made->wrapped, made->kek);
}

static kh_result in_token(ctl_run *ctl, const kh_config *config, const char *name, ctl_token_fn run, const void *in,
                          kek_in_token *out)
{
    const ctl_token_work work = {.run = run, .in = in, .out = out, .out_len = sizeof(*out), .what = what, .timeout_ms = 15000};
    int index = kh_config_find_token(config, name);

    return index >= 0 ? ctl_token_do(ctl, config, &config->tokens[index], &work)
                      : ctl_fail(&ctl->error, KH_E_NOT_FOUND, "%s: there is no block token \"%s\" in %s", what, name,
                                 config->path);
}

static kh_result take_paths(ctl_run *ctl, const kh_config *config, rotation *r)
{
    time_t now = time(NULL);
    struct tm utc;
    char stamp[32];

    r->path = config->kek_file;
    r->token = ctl_args_value(&ctl->args, "in-token");
    if (r->path == NULL) {
        return ctl_fail(&ctl->error, KH_E_UNSUPPORTED,
                        "%s: the store is sealed under a passphrase; export its keys into a store with a key "
                        "file or another "
                        "passphrase instead (keyholdctl store export)",
                        what);
    }
    if (r->path[0] != '/') {
        return ctl_fail(&ctl->error, KH_E_UNSUPPORTED,
                        "%s: kek_file is %s, which only the agent's unit can read and nobody can "
                        "write; use a path for the change",
                        what, r->path);
    }
    (void)strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", gmtime_r(&now, &utc));
    if (snprintf(r->next, PATH_LEN, "%s.next", r->path) >= PATH_LEN ||
        snprintf(r->old, PATH_LEN, "%s.until-%s", r->path, stamp) >= PATH_LEN) {
        return ctl_fail(&ctl->error, KH_E_TOO_LARGE, "%s: the path is too long", what);
    }
    return KH_OK;
}

/* The key in that file, or what the token that it names makes of the file. */
static kh_result load(ctl_run *ctl, const kh_config *config, const char *path, uint8_t *kek)
{
    kek_in_token had = {0};
    kh_result result = kh_kek_token_file_load(path, &had.wrapped);

    if (result == KH_OK) {
        kh_kek_token wrapped = had.wrapped;

        result = in_token(ctl, config, wrapped.token, unwrap, &wrapped, &had);
        memcpy(kek, had.kek, KEK_LEN);
        OPENSSL_cleanse(&had, sizeof(had));
        return result;
    }
    result = kh_kek_file_load(path, kek);
    return result == KH_OK
               ? KH_OK
               : ctl_fail(&ctl->error, result, "%s: %s: %s", what, path,
                          result == KH_E_MALFORMED ? "it is no key file" : kh_result_text((int)result));
}

static kh_result make_in_token(ctl_run *ctl, const kh_config *config, const rotation *r)
{
    kek_in_token made = {0};
    kh_result result = in_token(ctl, config, r->token, make, r->token, &made);

    if (result == KH_OK && (result = kh_kek_token_file_create(r->next, &made.wrapped)) != KH_OK) {
        ctl_fail(&ctl->error, result, "%s: %s cannot be written: %s", what, r->next, strerror(errno));
    }
    OPENSSL_cleanse(&made, sizeof(made));
    return result;
}

/* One that an interrupted run made is taken. */
static kh_result make_next(ctl_run *ctl, const kh_config *config, rotation *r)
{
    const bool there = access(r->next, F_OK) == 0;
    kh_result result = KH_OK;

    if (!there && r->token != NULL) {
        result = make_in_token(ctl, config, r);
    } else if (!there && (result = kh_kek_file_create(r->next)) != KH_OK) {
        ctl_fail(&ctl->error, result, "%s: %s cannot be written: %s", what, r->next, strerror(errno));
    }
    r->made = !there && result == KH_OK;
    return result == KH_OK ? load(ctl, config, r->next, r->keys.data + KEK_LEN) : result;
}

/* A name that is free: another change may have been in this second. */
static bool keep_old(rotation *r)
{
    size_t len = strlen(r->old);

    for (int i = 2; link(r->path, r->old) != 0; i++) {
        if (errno != EEXIST || i > 99 ||
            snprintf(r->old + len, PATH_LEN - len, "-%d", i) >= (int)(PATH_LEN - len)) {
            return false;
        }
    }
    return true;
}

/* The old one stays under another name, the next one takes its place. */
static kh_result put_in_place(ctl_run *ctl, rotation *r)
{
    char dir[PATH_LEN];
    int fd = -1;
    bool good = keep_old(r) && rename(r->next, r->path) == 0;

    (void)snprintf(dir, sizeof(dir), "%s", r->path);
    fd = open(dirname(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    good = good && fd >= 0 && fsync(fd) == 0;
    if (!good) {
        ctl_fail(&ctl->error, KH_E_IO, "%s: %s: %s; both keys open the store: say it again", what, r->path,
                 strerror(errno));
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return good ? KH_OK : KH_E_IO;
}

static kh_result tell(ctl_agent *agent, const uint8_t *keys, size_t len)
{
    const kh_record record = {.op = KH_STORE_KEK, .data = keys, .data_len = (uint32_t)len};
    size_t out_len = 0;

    return ctl_agent_admin(agent, &record, what, NULL, 0, &out_len);
}

/*
 * After a refusal: a key that this run made, and that the store certainly has not, is a secret for nothing. What an earlier run
 * left, or what is not known to be refused (the agent gone, no answer in time), may be the one that opens the store.
 */
static void drop_next(const rotation *r, bool told, kh_result result)
{
    const bool refused = result == KH_E_PASSPHRASE || result == KH_E_INVALID || result == KH_E_UNSUPPORTED ||
                         result == KH_E_FORBIDDEN || result == KH_E_VERSION;

    if (r->made && (!told || refused)) {
        (void)unlink(r->next);
    }
}

kh_result ctl_cmd_kek_rotate(ctl_run *ctl)
{
    rotation *r = calloc(1, sizeof(*r));
    kh_config *config = NULL;
    ctl_agent *agent = NULL;
    kh_result result =
        r != NULL ? ctl_load_config(ctl, &config) : ctl_fail(&ctl->error, KH_E_MEMORY, "out of memory");

    if (result == KH_OK) {
        result = take_paths(ctl, config, r);
    }
    if (result == KH_OK && (result = ctl_secret_new(2 * KEK_LEN, &r->keys)) != KH_OK) {
        ctl_fail(&ctl->error, result, "out of memory");
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        result = load(ctl, config, r->path, r->keys.data);
    }
    if (result == KH_OK && (result = make_next(ctl, config, r)) != KH_OK) {
        drop_next(r, false, result);
    } else if (result == KH_OK && (result = tell(agent, r->keys.data, 2 * KEK_LEN)) != KH_OK) {
        drop_next(r, true, result);
    }
    if (result == KH_OK) {
        result = put_in_place(ctl, r);
    }
    if (result == KH_OK) {
        result = tell(agent, r->keys.data + KEK_LEN, KEK_LEN);
    }
    if (result == KH_OK) {
        (void)printf(
            "the store is sealed under a new key-encryption key, %s\n"
            "the one before is %s: backups and exports from before need it; destroy it when there are none\n",
            r->path, r->old);
    }
    ctl_agent_close(agent);
    if (r != NULL) {
        ctl_secret_free(&r->keys);
    }
    free(r);
    kh_config_free(config);
    return result;
}

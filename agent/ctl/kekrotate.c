/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kek rotate: another key-encryption key for a store that is in use. Safe at any point: between the two calls
 * either key opens the store, and the file has one of them at any time. Whoever is interrupted says it again.
 * Here is that of a key file; kekphrase.c has that of a passphrase.
 */
#include "kekrotate.h"
#include "secret.h"
#include "tokenwork.h"

#include <kek_token.h>
#include <openssl/crypto.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define KEK_LEN 32

const char kek_what[] = "cannot change the key-encryption key";

typedef struct rotation {
    kek_place place;   /* kek_file's */
    const char *token; /* that is to wrap the next one, by its name in the configuration; NULL: none */
    bool made;         /* the next one was made by this run: no store knows of it */
    ctl_secret keys;   /* a kh_kek_change */
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
    const ctl_token_work work = {.run = run, .in = in, .out = out, .out_len = sizeof(*out), .what = kek_what, .timeout_ms = 15000};
    int index = kh_config_find_token(config, name);

    return index >= 0 ? ctl_token_do(ctl, config, &config->tokens[index], &work)
                      : ctl_fail(&ctl->error, KH_E_NOT_FOUND, "%s: there is no block token \"%s\" in %s", kek_what, name,
                                 config->path);
}

kh_result kek_place_name(ctl_run *ctl, const char *path, kek_place *place)
{
    time_t now = time(NULL);
    struct tm utc;
    char stamp[32];

    place->path = path;
    (void)strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", gmtime_r(&now, &utc));
    return snprintf(place->next, KEK_PATH_LEN, "%s.next", path) < KEK_PATH_LEN &&
                   snprintf(place->old, KEK_PATH_LEN, "%s.until-%s", path, stamp) < KEK_PATH_LEN
               ? KH_OK
               : ctl_fail(&ctl->error, KH_E_TOO_LARGE, "%s: the path is too long", kek_what);
}

static kh_result take_paths(ctl_run *ctl, const kh_config *config, rotation *r)
{
    r->token = ctl_args_value(&ctl->args, "in-token");
    if (ctl_args_value(&ctl->args, "passphrase-file") != NULL || ctl_args_value(&ctl->args, "new-passphrase-file") != NULL) {
        return ctl_fail_usage(&ctl->error, "%s: the agent's store is sealed under the key file %s, not under a passphrase; "
                                           "say it without --passphrase-file and --new-passphrase-file",
                              kek_what, config->kek_file);
    }
    if (strncmp(config->kek_file, "credential:", 11) == 0) {
        return ctl_fail(&ctl->error, KH_E_UNSUPPORTED,
                        "%s: kek_file is %s, which only the agent's unit can read and nobody can "
                        "write; use a path for the change",
                        kek_what, config->kek_file);
    }
    return kek_place_name(ctl, config->kek_file, &r->place);
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
               : ctl_fail(&ctl->error, result, "%s: %s: %s", kek_what, path,
                          result == KH_E_MALFORMED ? "it is no key file" : kh_result_text((int)result));
}

static kh_result make_in_token(ctl_run *ctl, const kh_config *config, const rotation *r)
{
    kek_in_token made = {0};
    kh_result result = in_token(ctl, config, r->token, make, r->token, &made);

    if (result == KH_OK && (result = kh_kek_token_file_create(r->place.next, &made.wrapped)) != KH_OK) {
        ctl_fail(&ctl->error, result, "%s: %s cannot be written: %s", kek_what, r->place.next, strerror(errno));
    }
    OPENSSL_cleanse(&made, sizeof(made));
    return result;
}

/* Begun by a run that was killed then: no store knows of it. */
static bool is_torn(const char *path)
{
    kh_kek_token wrapped;
    uint8_t kek[KEK_LEN];
    bool torn = kh_kek_token_file_load(path, &wrapped) == KH_E_MALFORMED && kh_kek_file_load(path, kek) == KH_E_MALFORMED;

    OPENSSL_cleanse(kek, sizeof(kek));
    return torn;
}

/* One that an interrupted run made is taken. */
static kh_result make_next(ctl_run *ctl, const kh_config *config, rotation *r, uint8_t *kek)
{
    const bool there = access(r->place.next, F_OK) == 0 && !(is_torn(r->place.next) && unlink(r->place.next) == 0);
    kh_result result = KH_OK;

    if (!there && r->token != NULL) {
        result = make_in_token(ctl, config, r);
    } else if (!there && (result = kh_kek_file_create(r->place.next)) != KH_OK) {
        ctl_fail(&ctl->error, result, "%s: %s cannot be written: %s", kek_what, r->place.next, strerror(errno));
    }
    r->made = !there && result == KH_OK;
    return result == KH_OK ? load(ctl, config, r->place.next, kek) : result;
}

/* A name that is free: another change may have been in this second. */
static bool keep_old(kek_place *place)
{
    size_t len = strlen(place->old);

    for (int i = 2; link(place->path, place->old) != 0; i++) {
        if (errno != EEXIST || i > 99 ||
            snprintf(place->old + len, KEK_PATH_LEN - len, "-%d", i) >= (int)(KEK_PATH_LEN - len)) {
            return false;
        }
    }
    return true;
}

static bool give_to_owner(const kek_place *place)
{
    struct stat before, next;

    return stat(place->path, &before) == 0 && lstat(place->next, &next) == 0 &&
           ((before.st_uid == next.st_uid && before.st_gid == next.st_gid) ||
            lchown(place->next, before.st_uid, before.st_gid) == 0);
}

kh_result kek_place_put(ctl_run *ctl, kek_place *place)
{
    char dir[KEK_PATH_LEN];
    int fd = -1;
    bool good = give_to_owner(place) && keep_old(place) && rename(place->next, place->path) == 0;

    (void)snprintf(dir, sizeof(dir), "%s", place->path);
    if (good) {
        fd = open(dirname(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        good = fd >= 0 && fsync(fd) == 0;
    }
    if (!good) {
        ctl_fail(&ctl->error, KH_E_IO, "%s: %s: %s; the one before and the next one open the store: say it again", kek_what,
                 place->path, strerror(errno));
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return good ? KH_OK : KH_E_IO;
}

kh_result kek_tell(ctl_agent *agent, const void *data, size_t len)
{
    const kh_record record = {.op = KH_STORE_KEK, .data = data, .data_len = (uint32_t)len};
    size_t out_len = 0;

    return ctl_agent_admin(agent, &record, kek_what, NULL, 0, &out_len);
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
        (void)unlink(r->place.next);
    }
}

static kh_result rotate_file(ctl_run *ctl, const kh_config *config, ctl_agent *agent, rotation *r)
{
    kh_kek_change *change = NULL;
    kh_result result = ctl_secret_new(sizeof(*change), &r->keys);

    if (result != KH_OK) {
        return ctl_fail(&ctl->error, result, "out of memory");
    }
    change = (kh_kek_change *)r->keys.data; /* bytes only */
    change->recipe[0] = KH_KEK_FILE;
    result = load(ctl, config, r->place.path, change->kek);
    if (result == KH_OK && (result = make_next(ctl, config, r, change->next)) != KH_OK) {
        drop_next(r, false, result);
    } else if (result == KH_OK && (result = kek_tell(agent, change, sizeof(*change))) != KH_OK) {
        drop_next(r, true, result);
    }
    if (result == KH_OK) {
        result = kek_place_put(ctl, &r->place);
    }
    if (result == KH_OK) {
        result = kek_tell(agent, change->next, KEK_LEN);
    }
    if (result == KH_OK) {
        (void)printf(
            "the store is sealed under a new key-encryption key, %s\n"
            "the one before is %s: backups and exports from before need it; destroy it when there are none\n",
            r->place.path, r->place.old);
    }
    return result;
}

/*
 * Two changes at once would take each other's files and keys away. On the store's directory, which nobody else may open, so that
 * nobody else can be in the way. The lock goes with the process, however that ends.
 */
static kh_result lock(ctl_run *ctl, const kh_config *config, int *fd)
{
    char dir[KEK_PATH_LEN];

    (void)snprintf(dir, sizeof(dir), "%s", config->store);
    *fd = open(dirname(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *fd >= 0 && flock(*fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK
               ? ctl_fail(&ctl->error, KH_E_LOCKED, "%s: another kek rotate is running; wait for it", kek_what)
               : KH_OK;
}

kh_result ctl_cmd_kek_rotate(ctl_run *ctl)
{
    rotation *r = calloc(1, sizeof(*r));
    kh_config *config = NULL;
    ctl_agent *agent = NULL;
    int lock_fd = -1;
    kh_result result =
        r != NULL ? ctl_load_config(ctl, &config) : ctl_fail(&ctl->error, KH_E_MEMORY, "out of memory");

    if (result == KH_OK && config->kek_file != NULL) {
        result = take_paths(ctl, config, r);
    }
    if (result == KH_OK) {
        result = lock(ctl, config, &lock_fd);
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        result = config->kek_file != NULL ? rotate_file(ctl, config, agent, r) : kek_rotate_passphrase(ctl, config, agent);
    }
    ctl_agent_close(agent);
    if (lock_fd >= 0) {
        (void)close(lock_fd);
    }
    if (r != NULL) {
        ctl_secret_free(&r->keys);
    }
    free(r);
    kh_config_free(config);
    return result;
}

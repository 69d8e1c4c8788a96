/* SPDX-License-Identifier: Apache-2.0 */
/* store restore: a backup in place of the store, while the agent is stopped. */
#include "kek.h"
#include "output.h"
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct restoring {
    ctl_run *ctl;
    const char *from, *store;
    bool sealed; /* what is in its rows could not be checked: only the agent gets at the key-encryption key */
    char finding[STORE_FINDING_MAX];
    char log[512];
} restoring;

static void note_finding(void *run, const char *text)
{
    store_keep_first(((restoring *)run)->finding, text);
}

static void note_log(void *run, kh_log_level level, const char *text)
{
    if (level == KH_LOG_ERROR) {
        (void)snprintf(((restoring *)run)->log, sizeof(((restoring *)run)->log), "%s", text);
    }
}

/* Nothing is put in place that the agent could not use. */
static kh_result check_backup(restoring *run, const kh_config *config, uint64_t *keys)
{
    ctl_run *ctl = run->ctl;
    ctl_secret secret = {0};
    kh_storefile_checking checking = {.finding = note_finding, .log = note_log, .ctx = run};
    kh_result result = ctl_kek_load(ctl, config, &secret, &checking.kind);

    run->sealed = result == KH_E_UNSUPPORTED; /* a token wraps it, and the agent, which could ask that one, is stopped */
    if (result != KH_OK && !run->sealed) {
        return result;
    }
    memset(&ctl->error, 0, sizeof(ctl->error));
    checking.kek_secret = secret.data;
    checking.kek_secret_len = secret.len;
    result = run->sealed ? kh_storefile_integrity(run->from, note_finding, run) : kh_storefile_check(run->from, &checking, keys);
    ctl_secret_free(&secret);
    if (result == KH_E_DAMAGED) {
        return ctl_fail(&ctl->error, result, "%s is damaged (%s); nothing was changed: take an older backup",
                        run->from, run->finding[0] != '\0' ? run->finding : run->log);
    }
    if (result != KH_OK) {
        return ctl_fail(&ctl->error, result, "cannot restore %s: %s; nothing was changed", run->from,
                        run->log[0] != '\0' ? run->log : kh_result_text(result));
    }
    return KH_OK;
}

/* As the store was that it replaces, or as the configuration has its user. */
static bool give_to_keeper(const ctl_newfile *file, const kh_config *config)
{
    struct stat status;
    kh_user user = {geteuid(), getegid()};

    if (stat(config->store, &status) == 0) {
        user = (kh_user){status.st_uid, status.st_gid};
    } else if (geteuid() == 0 &&
               kh_config_user(config->keeper_user != NULL ? config->keeper_user : KH_KEEPER_USER_DEFAULT, &user) != KH_OK) {
        errno = EINVAL;
        return false;
    }
    return fchown(file->fd, user.uid, user.gid) == 0;
}

/* Moves a store and the log beside it, if they are there, out of the way. A log that stayed would be taken
 * for the backup's. */
static bool move_aside(const char *store, char *aside, size_t cap)
{
    char stamp[32], log[4096], aside_log[4096];
    time_t now = time(NULL);
    struct tm utc;

    (void)strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", gmtime_r(&now, &utc));
    if ((size_t)snprintf(aside, cap, "%s.before-%s", store, stamp) >= cap ||
        (size_t)snprintf(log, sizeof(log), "%s-wal", store) >= sizeof(log) ||
        (size_t)snprintf(aside_log, sizeof(aside_log), "%s-wal", aside) >= sizeof(aside_log)) {
        errno = ENAMETOOLONG;
        return false;
    }
    if (rename(store, aside) != 0) {
        aside[0] = '\0';
        if (errno != ENOENT) {
            return false;
        }
    }
    return rename(log, aside_log) == 0 || errno == ENOENT;
}

static kh_result put_in_place(restoring *run, const kh_config *config, char *aside, size_t cap)
{
    ctl_error *error = &run->ctl->error;
    ctl_newfile file = {.fd = -1};
    int lock = -1;
    kh_result result = ctl_newfile_open(run->store, KH_FILE_STORE, &file, error);

    if (result != KH_OK) {
        goto done;
    }
    /* Not before: it looks at what is there, and when it closes that the kernel gives up our lock on it. */
    result = kh_storefile_lock(run->store, &lock);
    if (result != KH_OK) {
        result = ctl_fail(error, result,
                          "the agent is running with the store %s; stop it first (systemctl stop keyhold)",
                          run->store);
        goto done;
    }
    if (kh_storefile_copy(run->from, file.partial) != KH_OK || !give_to_keeper(&file, config) ||
        fsync(file.fd) != 0) {
        result =
            ctl_fail(error, KH_E_IO, "cannot copy %s beside %s (%s); nothing was changed", run->from,
                     run->store, ctl_newfile_full(&file) ? "no space left on the device" : strerror(errno));
        goto done;
    }
    if (!move_aside(run->store, aside, cap)) {
        result = ctl_fail(error, KH_E_IO, "cannot move %s aside: %s; look what is in its directory",
                          run->store, strerror(errno));
        goto done;
    }
    result = ctl_newfile_commit(&file, error);
done:
    ctl_newfile_abandon(&file);
    if (lock >= 0) {
        close(lock);
    }
    return result;
}

kh_result ctl_cmd_store_restore(ctl_run *ctl)
{
    restoring run = {.ctl = ctl, .from = ctl->args.operands[0]};
    char aside[4096] = "";
    kh_config *config = NULL;
    pid_t holder = 0;
    uint64_t keys = 0;
    kh_result result = ctl_load_config(ctl, &config);

    if (result != KH_OK) {
        return result;
    }
    run.store = config->store;
    holder = kh_storefile_holder(run.store);
    if (holder != 0) {
        result = ctl_fail(
            &ctl->error, KH_E_LOCKED,
            "the agent is running with the store %s (process %ld); stop it first (systemctl stop keyhold)",
            run.store, (long)holder);
    }
    if (result == KH_OK) {
        result = check_backup(&run, config, &keys);
    }
    if (result == KH_OK) {
        result = put_in_place(&run, config, aside, sizeof(aside));
    }
    if (result == KH_OK && ctl->json) {
        result = output_json(
            json_pack("{s:s, s:o, s:s}", "store", run.store, "keys", run.sealed ? json_null() : json_integer((json_int_t)keys), "before",
                      aside),
            &ctl->error);
    } else if (result == KH_OK) {
        if (run.sealed) {
            (void)printf("%s restored to %s; its keys were not looked at, since a token has the key-encryption key: start the agent, and "
                         "say keyholdctl store fsck\n",
                         run.from, run.store);
        } else {
            (void)printf("%llu keys restored to %s\n", (unsigned long long)keys, run.store);
        }
        if (aside[0] != '\0') {
            (void)printf("The store that was there is %s; remove it when all is well.\n", aside);
        }
    }
    kh_config_free(config);
    return result;
}

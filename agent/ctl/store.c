/* SPDX-License-Identifier: Apache-2.0 */
/* store backup, export, import: a store's keys as files. */
#include "store.h"
#include "kek.h"
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static kh_result print_report(ctl_run *ctl, const char *done, const char *path, const kh_store_report *report)
{
    if (ctl->json) {
        return output_json(json_pack("{s:s, s:I}", "file", path, "keys", (json_int_t)report->keys),
                           &ctl->error);
    }
    (void)printf("%llu keys %s %s\n", (unsigned long long)report->keys, done, path);
    return KH_OK;
}

kh_result store_fill_file(ctl_run *ctl, ctl_agent *agent, const kh_record *record, const ctl_newfile *file,
                          const char *what, kh_store_report *report)
{
    size_t len = 0;
    kh_result result =
        ctl_agent_admin_file(agent, record, file->fd, what, (uint8_t *)report, sizeof(*report), &len);

    if (result == KH_E_IO && ctl->error.exit_code != CTL_UNREACHABLE) {
        return ctl_fail(&ctl->error, result, "%s: %s cannot be written (%s); what was there before stays",
                        what, file->path,
                        ctl_newfile_full(file) ? "no space left on the device" : "see the agent's log");
    }
    if (result == KH_OK && len != sizeof(*report)) {
        result = ctl_fail(&ctl->error, KH_E_VERSION,
                          "%s: install the same version of keyholdctl and keyholdd", what);
    }
    return result;
}

/* ---- Backup -------------------------------------------------------------------------------------------- */

kh_result store_backup_into(ctl_run *ctl, ctl_agent *agent, const ctl_newfile *file, kh_store_report *report)
{
    const kh_record record = {.op = KH_STORE_BACKUP};

    return store_fill_file(ctl, agent, &record, file, "cannot back up the store", report);
}

void store_keep_first(void *text, const char *finding)
{
    if (((char *)text)[0] == '\0') {
        (void)snprintf(text, STORE_FINDING_MAX, "%s", finding);
    }
}

/* The live store is a file of the same kind as a backup, locked by its agent, and named by the configuration. */
static bool is_in_use(ctl_run *ctl, const char *path)
{
    kh_config *config = NULL;
    struct stat live, named;
    bool same = false;

    if (ctl_load_config(ctl, &config) == KH_OK) {
        same = stat(config->store, &live) == 0 && stat(path, &named) == 0 && live.st_dev == named.st_dev &&
               live.st_ino == named.st_ino;
    }
    memset(&ctl->error, 0, sizeof(ctl->error)); /* there may be none: the lock tells, too */
    kh_config_free(config);
    return same || kh_storefile_holder(path) != 0;
}

static kh_result refuse_in_use(ctl_run *ctl, const char *path)
{
    return !is_in_use(ctl, path)
               ? KH_OK
               : ctl_fail(&ctl->error, KH_E_LOCKED, "%s is the store of a running agent; choose another name", path);
}

kh_result ctl_cmd_store_backup(ctl_run *ctl)
{
    const char *path = ctl->args.operands[0];
    const kh_record noted = {.op = KH_STORE_BACKED_UP};
    ctl_newfile file = {.fd = -1};
    ctl_agent *agent = NULL;
    kh_store_report report = {0};
    char finding[STORE_FINDING_MAX] = "";
    size_t len = 0;
    kh_result result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);

    if (result == KH_OK) {
        result = ctl_newfile_open(path, KH_FILE_STORE, &file, &ctl->error);
    }
    if (result == KH_OK) {
        result = refuse_in_use(ctl, path);
    }
    if (result == KH_OK) {
        result = store_backup_into(ctl, agent, &file, &report);
    }
    if (result == KH_OK && kh_storefile_integrity(file.partial, store_keep_first, finding) != KH_OK) {
        result =
            ctl_fail(&ctl->error, KH_E_DAMAGED,
                     "the store is damaged (%s); what was backed up before stays: see keyholdctl store fsck",
                     finding[0] != '\0' ? finding : "its copy cannot be checked");
    }
    /* Once more: a keeper that was about to start has its lock only now that it has answered. */
    if (result == KH_OK) {
        result = refuse_in_use(ctl, path);
    }
    if (result == KH_OK) {
        result = ctl_newfile_commit(&file, &ctl->error);
    }
    if (result == KH_OK) {
        result = ctl_agent_admin(agent, &noted, "the backup is complete, but its time cannot be noted", NULL,
                                 0, &len);
    }
    if (result == KH_OK) {
        result = print_report(ctl, "backed up to", path, &report);
    }
    ctl_newfile_abandon(&file);
    ctl_agent_close(agent);
    return result;
}

/* ---- Export -------------------------------------------------------------------------------------------- */

/* "www.*,shop" as globs with their zeros. */
static kh_result take_globs(ctl_run *ctl, char *globs, size_t cap, size_t *len)
{
    const char *list = ctl_args_value(&ctl->args, "keys");

    *len = 0;
    if (list == NULL) {
        return KH_OK;
    }
    if (list[0] == '\0' || strlen(list) >= cap) {
        return ctl_fail_usage(&ctl->error,
                              "option --keys needs names or globs, separated by commas: --keys 'www.*,shop'");
    }
    *len = strlen(list) + 1;
    memcpy(globs, list, *len);
    for (size_t i = 0; i < *len; i++) {
        globs[i] = globs[i] == ',' ? '\0' : globs[i];
    }
    return KH_OK;
}

kh_result store_export_to(ctl_run *ctl, const char *path, const char *globs, size_t len)
{
    kh_record record = {.op = KH_STORE_EXPORT, .data = (const uint8_t *)globs, .data_len = (uint32_t)len};
    ctl_newfile file = {.fd = -1};
    ctl_agent *agent = NULL;
    kh_store_report report = {0};
    kh_result result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);

    if (result == KH_OK) {
        result = ctl_newfile_open(path, KH_FILE_EXPORT, &file, &ctl->error);
    }
    if (result == KH_OK) {
        result = store_fill_file(ctl, agent, &record, &file, "cannot export", &report);
    }
    if (result == KH_OK && report.keys == 0) {
        result = ctl_fail(&ctl->error, KH_E_NOT_FOUND, "no key has such a name; see keyholdctl key list");
    }
    if (result == KH_OK) {
        result = ctl_newfile_commit(&file, &ctl->error);
    }
    if (result == KH_OK) {
        result = print_report(ctl, "exported to", path, &report);
    }
    ctl_newfile_abandon(&file);
    ctl_agent_close(agent);
    return result;
}

kh_result ctl_cmd_store_export(ctl_run *ctl)
{
    char globs[KH_MESSAGE_MAX];
    size_t len = 0;
    kh_result result = take_globs(ctl, globs, sizeof(globs), &len);

    return result == KH_OK ? store_export_to(ctl, ctl->args.operands[0], globs, len) : result;
}

/* ---- Import -------------------------------------------------------------------------------------------- */

/* The key of another KEK than the agent's, when one is given, or when it is a passphrase, which every store
 * turns into another KEK. */
static kh_result take_key(ctl_run *ctl, int fd, const char *path, uint8_t key[KH_EXPORT_KEY_LEN], size_t *len)
{
    kh_config *config = NULL;
    ctl_secret secret = {0};
    kh_kek_kind made = KH_KEK_FILE, kind = KH_KEK_FILE;
    kh_result result = kh_export_kek_kind(fd, &made);

    *len = 0;
    if (result != KH_OK || (made == KH_KEK_FILE && !ctl_kek_given(ctl))) {
        return KH_OK; /* the agent says what is wrong with the file */
    }
    result = ctl_load_config(ctl, &config);
    if (result == KH_OK && made == KH_KEK_PASSPHRASE && !ctl_kek_given(ctl) &&
        config->kek_passphrase_file == NULL) {
        result = ctl_fail(
            &ctl->error, KH_E_PASSPHRASE,
            "%s is sealed under a passphrase, and this agent has a key file; give --passphrase-file", path);
    }
    if (result == KH_OK) {
        result = ctl_kek_load(ctl, config, &secret, &kind);
    }
    if (result == KH_OK) {
        result = kh_export_key(fd, kind, secret.data, secret.len, key);
        *len = KH_EXPORT_KEY_LEN;
        if (result == KH_E_PASSPHRASE) {
            ctl_fail(&ctl->error, result, "%s is sealed under a %s; give %s", path,
                     made == KH_KEK_PASSPHRASE ? "passphrase" : "key file",
                     made == KH_KEK_PASSPHRASE ? "--passphrase-file" : "--kek-file");
        } else if (result != KH_OK) {
            ctl_fail(&ctl->error, result, "cannot import %s: %s", path, kh_result_text(result));
        }
    }
    ctl_secret_free(&secret);
    kh_config_free(config);
    return result;
}

static kh_result print_import(ctl_run *ctl, const char *path, const kh_store_report *report)
{
    if (ctl->json) {
        return output_json(json_pack("{s:s, s:I, s:I, s:I}", "file", path, "keys", (json_int_t)report->keys,
                                     "imported", (json_int_t)report->stored, "present",
                                     (json_int_t)report->present),
                           &ctl->error);
    }
    (void)printf("%llu keys imported from %s; %llu were here already\n", (unsigned long long)report->stored,
                 path, (unsigned long long)report->present);
    return KH_OK;
}

kh_result ctl_cmd_store_import(ctl_run *ctl)
{
    const char *path = ctl->args.operands[0];
    uint8_t key[KH_EXPORT_KEY_LEN], out[1024];
    kh_record record = {.op = KH_STORE_IMPORT_ALL,
                        .flags = ctl_args_value(&ctl->args, "allow-purged") != NULL ? KH_IMPORT_PURGED : 0,
                        .data = key};
    char what[4096];
    ctl_agent *agent = NULL;
    kh_store_report report = {0};
    struct stat status;
    size_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    kh_result result = KH_OK;

    if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        result = ctl_fail(&ctl->error, KH_E_IO, "cannot read %s: %s; check the name", path,
                          fd < 0 ? strerror(errno) : "it is not a file");
        goto done;
    }
    /* The agent's own would come to no good there: when it closes one more descriptor of it, its lock on it is gone. */
    if (kh_file_kind_of(fd) == KH_FILE_STORE) {
        result = ctl_fail(&ctl->error, KH_E_MALFORMED,
                          "cannot import %s: it is a store, and no export of one; make that with keyholdctl store export, or "
                          "put a backup in place of the store with keyholdctl store restore",
                          path);
        goto done;
    }
    (void)snprintf(what, sizeof(what), "cannot import %s", path);
    if ((result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent)) != KH_OK ||
        (result = take_key(ctl, fd, path, key, &len)) != KH_OK) {
        goto done;
    }
    record.data_len = (uint32_t)len;
    result = ctl_agent_admin_file(agent, &record, fd, what, out, sizeof(out), &len);
    if (result == KH_OK) {
        memcpy(&report, out, len < sizeof(report) ? len : sizeof(report));
        result = print_import(ctl, path, &report);
    }
done:
    OPENSSL_cleanse(key, sizeof(key));
    ctl_agent_close(agent);
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

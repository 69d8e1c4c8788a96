/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init: makes what an agent needs to start, and nothing twice. The steps go from what others depend on to
 * what depends on them; each says whether it made something or found it. What is found is left as it is.
 */
#include "agent.h"
#include "layout.h"
#include "output.h"
#include "pin.h"
#include "secret.h"
#include "token.h"

#include <errno.h>
#include <keyhold/import.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One run of init. */
typedef struct init_run {
    ctl_run *ctl;
    layout at;
    json_t *made, *found; /* lists of paths, for --json */
    unsigned made_count;
    uint8_t import_public[KH_IMPORT_PUBLIC_LEN];
    bool import_known;
} init_run;

static bool exists(const char *path)
{
    struct stat status;

    return lstat(path, &status) == 0;
}

static void tell(init_run *run, const char *what, const char *path, bool made)
{
    run->made_count += made;
    if (run->ctl->json) {
        (void)json_array_append_new(made ? run->made : run->found, json_string(path));
    } else {
        (void)printf("%s  %-22s %s\n", made ? "made  " : "exists", what, path);
    }
}

/* The passphrase or the KEK file's bytes, whatever seals the store key. */
static kh_result load_kek(init_run *run, ctl_secret *secret, kh_kek_kind *kind)
{
    ctl_run *ctl = run->ctl;
    ctl_passphrase_source source = {
        .file = run->at.passphrase_file, .prompt = "Passphrase of the store", .twice = true};
    kh_result result = KH_OK;

    if (run->at.passphrase_file != NULL) {
        *kind = KH_KEK_PASSPHRASE;
        return ctl_secret_passphrase(&source, secret, &ctl->error);
    }
    *kind = KH_KEK_FILE;
    result = ctl_secret_new(32, secret);
    if (result == KH_OK) {
        result = kh_kek_file_load(run->at.kek, secret->data);
        secret->len = 32;
    }
    if (result != KH_OK) {
        ctl_fail(&ctl->error, result, "cannot read the key-encryption key %s: %s; %s", run->at.kek,
                 kh_result_text(result),
                 result == KH_E_FORBIDDEN ? "its mode must be 0600" : "restore it from its backup");
    }
    return result;
}

static kh_result make_kek(init_run *run)
{
    ctl_run *ctl = run->ctl;
    kh_result result = KH_OK;

    if (run->at.passphrase_file != NULL) {
        return KH_OK;
    }
    if (exists(run->at.kek)) {
        tell(run, "key-encryption key", run->at.kek, false);
        return KH_OK;
    }
    /* A fresh KEK beside an old store would look like the right one and never be it. */
    if (exists(run->at.store)) {
        return ctl_fail(&ctl->error, KH_E_NOT_FOUND,
                        "the store %s exists, but its key-encryption key %s does not; restore it from its "
                        "backup, or move the store away to begin anew",
                        run->at.store, run->at.kek);
    }
    result = kh_kek_file_create(run->at.kek);
    if (result != KH_OK) {
        return ctl_fail(&ctl->error, result, "cannot make %s: %s (%s); check the directory", run->at.kek,
                        kh_result_text(result), strerror(errno));
    }
    tell(run, "key-encryption key", run->at.kek, true);
    return KH_OK;
}

static kh_result own_store(init_run *run)
{
    static const char *const suffixes[] = {"", "-wal", "-shm", "-journal"};
    char *path = NULL;

    for (size_t i = 0; run->at.privileged && i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        if (asprintf(&path, "%s%s", run->at.store, suffixes[i]) < 0) {
            return ctl_fail(&run->ctl->error, KH_E_MEMORY, "cannot hand over the store: out of memory");
        }
        if (lchown(path, run->at.keeper.uid, run->at.keeper.gid) != 0 && errno != ENOENT) {
            ctl_fail(&run->ctl->error, KH_E_STORAGE, "cannot give %s to the keeper's user: %s; chown it",
                     path, strerror(errno));
            free(path);
            return KH_E_STORAGE;
        }
        free(path);
    }
    return KH_OK;
}

static kh_result make_store(init_run *run)
{
    ctl_run *ctl = run->ctl;
    kh_kek_kind kind = KH_KEK_FILE;
    ctl_secret kek = {0};
    kh_result result = KH_OK;

    if (exists(run->at.store)) {
        tell(run, "store", run->at.store, false);
        return KH_OK;
    }
    if (exists(run->at.pin)) {
        return ctl_fail(
            &ctl->error, KH_E_EXISTS,
            "%s pins the import key of a store, but %s does not exist; restore the store from its "
            "backup, or remove the pin to begin anew",
            run->at.pin, run->at.store);
    }
    result = load_kek(run, &kek, &kind);
    if (result != KH_OK) {
        goto done;
    }
    result = kh_store_init(run->at.store, kind, kek.data, kek.len, run->import_public);
    if (result != KH_OK) {
        ctl_fail(&ctl->error, result, "cannot make the store %s: %s; check the directory", run->at.store,
                 kh_result_text(result));
        goto done;
    }
    run->import_known = true;
    tell(run, "store", run->at.store, true);
    result = own_store(run);
done:
    ctl_secret_free(&kek);
    return result;
}

/* An older store without a pin: its running keeper knows the key, and the admin socket leads past the front.
 */
static kh_result ask_keeper(init_run *run)
{
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    size_t len = 0;

    if (kh_admin_call(run->at.admin_socket, &record, run->import_public, sizeof(run->import_public), &len,
                      run->ctl->timeout_ms) != KH_OK ||
        len != sizeof(run->import_public)) {
        return ctl_fail(&run->ctl->error, KH_E_NOT_FOUND,
                        "the pin %s of the store's import key is missing; start the agent and run "
                        "keyholdctl init again, which then takes it from the keeper",
                        run->at.pin);
    }
    run->import_known = true;
    return KH_OK;
}

static kh_result make_pin(init_run *run)
{
    char line[PIN_LINE_MAX];
    kh_result result = KH_OK;

    if (exists(run->at.pin)) {
        tell(run, "pin of the import key", run->at.pin, false);
        result = pin_load(run->at.pin, run->import_public, &run->ctl->error);
        run->import_known = result == KH_OK;
        return result;
    }
    if (!run->import_known) {
        result = ask_keeper(run);
    }
    if (result == KH_OK) {
        pin_format(run->import_public, line);
        result =
            output_new_file(run->at.pin, line, strlen(line), 0644, (uid_t)-1, (gid_t)-1, &run->ctl->error);
    }
    if (result == KH_OK) {
        tell(run, "pin of the import key", run->at.pin, true);
    }
    return result;
}

static kh_result make_token(init_run *run)
{
    kh_result result = KH_OK;

    if (exists(run->at.token)) {
        tell(run, "token of nginx", run->at.token, false);
        return KH_OK;
    }
    result = token_write("nginx", run->at.token, &run->ctl->error);
    if (result == KH_OK) {
        tell(run, "token of nginx", run->at.token, true);
    }
    return result;
}

static kh_result make_config(init_run *run)
{
    char *text = NULL;
    kh_result result = KH_OK;

    if (exists(run->at.config)) {
        tell(run, "configuration", run->at.config, false);
        return KH_OK;
    }
    text = layout_config_text(&run->at);
    if (text == NULL) {
        return ctl_fail(&run->ctl->error, KH_E_MEMORY, "cannot write %s: out of memory", run->at.config);
    }
    result =
        output_new_file(run->at.config, text, strlen(text), 0644, (uid_t)-1, (gid_t)-1, &run->ctl->error);
    if (result == KH_OK) {
        tell(run, "configuration", run->at.config, true);
    }
    free(text);
    return result;
}

static kh_result make_directory(init_run *run, const char *what, const char *path, mode_t mode,
                                const kh_user *owner)
{
    ctl_error *error = &run->ctl->error;

    if (exists(path)) {
        tell(run, what, path, false);
        return KH_OK;
    }
    if (mkdir(path, 0700) != 0) {
        return ctl_fail(error, errno == EACCES ? KH_E_FORBIDDEN : KH_E_IO, "cannot make %s: %s; %s", path,
                        strerror(errno),
                        errno == ENOENT ? "make the directory above it first"
                                        : "run this as root or choose another place");
    }
    if ((owner != NULL && run->at.privileged && lchown(path, owner->uid, owner->gid) != 0) ||
        chmod(path, mode) != 0) {
        return ctl_fail(error, KH_E_IO, "cannot set owner and mode of %s: %s; check the file system", path,
                        strerror(errno));
    }
    tell(run, what, path, true);
    return KH_OK;
}

static kh_result make_directories(init_run *run)
{
    const layout *at = &run->at;
    struct stat status;
    kh_result result = make_directory(run, "directory", at->config_dir, 0755, NULL);

    /* The directory given with --dir is ours to open: mktemp's mode would keep the keeper out. Nobody gets to
     * list it. */
    if (result == KH_OK && at->single && at->privileged && stat(at->config_dir, &status) == 0 &&
        (status.st_mode & 0011) != 0011 && chmod(at->config_dir, (status.st_mode & 07777) | 0011) != 0) {
        result =
            ctl_fail(&run->ctl->error, KH_E_IO, "cannot open %s for the agent's users: %s; chmod 0711 it",
                     at->config_dir, strerror(errno));
    }
    if (result == KH_OK) {
        result = layout_check_parents(at, &run->ctl->error);
    }
    if (result == KH_OK) {
        result = make_directory(run, "store's directory", at->store_dir, 0700, &at->keeper);
    }
    if (result == KH_OK && strcmp(at->run_dir, at->config_dir) != 0) {
        result = make_directory(run, "sockets' directory", at->run_dir, 0755, NULL);
    }
    return result;
}

static kh_result report(init_run *run)
{
    char fingerprint[52] = "";
    const layout *at = &run->at;

    kh_import_fingerprint(run->import_public, fingerprint);
    if (run->ctl->json) {
        json_t *value = json_pack("{s:s, s:s, s:O, s:O}", "config", at->config, "import_fingerprint",
                                  fingerprint, "made", run->made, "exists", run->found);

        return output_json(value, &run->ctl->error);
    }
    (void)printf("\nImport key of the store: %s\n", fingerprint);
    if (run->made_count == 0) {
        (void)printf("Everything exists already; nothing was changed.\n");
        return KH_OK;
    }
    (void)printf("\nNext:\n");
    if (at->passphrase_file == NULL) {
        (void)printf("  back up %s apart from the store: without it the store cannot be opened\n", at->kek);
    }
    if (at->single) {
        (void)printf("  keyholdd --config %s\n  keyholdctl --config %s ping\n"
                     "  keyholdctl --config %s key create NAME --type p256\n",
                     at->config, at->config, at->config);
    } else {
        (void)printf("  systemctl enable --now keyhold\n  keyholdctl ping\n  keyholdctl key create NAME "
                     "--type p256\n");
    }
    (void)printf("  in nginx: keyhold_agent unix:%s token=%s;\n", at->agent_socket, at->token);
    return KH_OK;
}

kh_result ctl_cmd_init(ctl_run *ctl)
{
    static kh_result (*const steps[])(init_run * run) = {make_directories, make_kek,    make_store, make_pin,
                                                         make_token,       make_config, report};
    init_run run = {.ctl = ctl, .made = json_array(), .found = json_array()};
    kh_result result = layout_from_args(ctl, &run.at);

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]) && result == KH_OK; i++) {
        result = steps[i](&run);
    }
    layout_free(&run.at);
    json_decref(run.made);
    json_decref(run.found);
    return result;
}

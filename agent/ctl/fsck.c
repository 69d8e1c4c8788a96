/* SPDX-License-Identifier: Apache-2.0 */
/* store fsck: is every key there, whole, and found? Of the agent's store while it serves, or of a file. */
#include "kek.h"
#include "output.h"
#include "store.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct fsck_run {
    ctl_run *ctl;
    json_t *findings; /* for --json */
    uint64_t keys, count;
    char log[512];
} fsck_run;

static void tell(void *run_, const char *text)
{
    fsck_run *run = run_;

    run->count++;
    if (run->ctl->json) {
        (void)json_array_append_new(run->findings, json_string(text));
    } else {
        (void)puts(text);
    }
}

static void note_log(void *run_, kh_log_level level, const char *text)
{
    fsck_run *run = run_;

    if (level == KH_LOG_ERROR) {
        (void)snprintf(run->log, sizeof(run->log), "%s", text);
    }
}

/* ---- The store of a running agent ---------------------------------------------------------------------- */

/* The keeper's report: a line for each finding, then "ok N keys", or "damaged: good are N keys; N findings".
 */
static void take_report(fsck_run *run, char *report)
{
    char *save = NULL;
    unsigned long long keys = 0, findings = 0;

    for (char *line = strtok_r(report, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        if (sscanf(line, "ok %llu keys", &keys) != 1 &&
            sscanf(line, "damaged: good are %llu keys; %llu findings", &keys, &findings) < 1) {
            tell(run, line);
        }
    }
    run->keys = keys;
    if (findings > run->count) { /* not all of them had room */
        char line[96];

        (void)snprintf(line, sizeof(line), "%llu findings more: see the agent's log",
                       findings - (unsigned long long)run->count);
        tell(run, line);
        run->count = findings;
    }
}

static kh_result check_online(fsck_run *run, ctl_agent *agent)
{
    const kh_record record = {.op = KH_STORE_CHECK};
    char *report = calloc(1, KH_RECORD_DATA_MAX + 1);
    size_t len = 0;
    kh_result result = report != NULL
                           ? KH_OK
                           : ctl_fail(&run->ctl->error, KH_E_MEMORY, "cannot check the store: out of memory");

    if (result == KH_OK) {
        result = ctl_agent_admin(agent, &record, "cannot check the store", (uint8_t *)report,
                                 KH_RECORD_DATA_MAX, &len);
    }
    if (result == KH_OK) {
        report[len] = '\0';
        take_report(run, report);
    }
    free(report);
    return result;
}

/* The file itself is the agent's alone; a copy, page by page, has the same structure. */
static kh_result check_structure(fsck_run *run, ctl_agent *agent)
{
    const char *tmp = getenv("TMPDIR");
    ctl_newfile file = {.fd = -1};
    kh_store_report report = {0};
    char path[512];
    kh_result result = KH_OK;

    (void)snprintf(path, sizeof(path), "%s/keyhold-fsck-%ld", tmp != NULL ? tmp : "/var/tmp", (long)getpid());
    result = ctl_newfile_open(path, KH_FILE_STORE, &file, &run->ctl->error);
    if (result == KH_OK) {
        result = store_backup_into(run->ctl, agent, &file, &report);
    }
    if (result == KH_OK) {
        result = kh_storefile_integrity(file.partial, tell, run);
        if (result != KH_OK && result != KH_E_DAMAGED) {
            ctl_fail(&run->ctl->error, result,
                     "cannot check a copy of the store in %s: %s; set TMPDIR to where there is room", path,
                     kh_result_text(result));
        }
    }
    ctl_newfile_abandon(&file);
    return result == KH_E_DAMAGED ? KH_OK : result;
}

static kh_result fsck_online(fsck_run *run)
{
    ctl_agent *agent = NULL;
    kh_result result = ctl_agent_open(run->ctl, CTL_WAY_ADMIN, &agent);

    if (result == KH_OK) {
        result = check_online(run, agent);
    }
    if (result == KH_OK) {
        result = check_structure(run, agent);
    }
    ctl_agent_close(agent);
    return result;
}

/* ---- A file -------------------------------------------------------------------------------------------- */

static kh_result fsck_file(fsck_run *run, const char *path)
{
    ctl_run *ctl = run->ctl;
    kh_storefile_checking checking = {.finding = tell, .log = note_log, .ctx = run};
    pid_t holder = kh_storefile_holder(path);
    kh_config *config = NULL;
    ctl_secret secret = {0};
    kh_result result = KH_OK;

    if (holder != 0) {
        return ctl_fail(&ctl->error, KH_E_LOCKED,
                        "%s is in use by an agent (process %ld); check it over the agent, without --store, "
                        "or check a backup",
                        path, (long)holder);
    }
    if (!ctl_kek_given(ctl)) {
        result = ctl_load_config(ctl, &config);
    }
    if (result == KH_OK) {
        result = ctl_kek_load(ctl, config, &secret, &checking.kind);
    }
    if (result == KH_OK) {
        checking.kek_secret = secret.data;
        checking.kek_secret_len = secret.len;
        result = kh_storefile_check(path, &checking, &run->keys);
        if (result == KH_E_DAMAGED && run->count == 0) { /* it does not even open */
            tell(run,
                 run->log[0] != '\0' ? run->log : "the file is damaged; restore the store from a backup");
        } else if (result != KH_OK && result != KH_E_DAMAGED) {
            ctl_fail(&ctl->error, result, "cannot check %s: %s", path,
                     run->log[0] != '\0' ? run->log : kh_result_text(result));
        }
    }
    ctl_secret_free(&secret);
    kh_config_free(config);
    return result == KH_E_DAMAGED ? KH_OK : result;
}

static kh_result conclude(fsck_run *run)
{
    ctl_run *ctl = run->ctl;
    kh_result result = KH_OK;

    if (ctl->json) {
        result = output_json(
            json_pack("{s:O, s:I}", "findings", run->findings, "keys", (json_int_t)run->keys), &ctl->error);
    } else if (run->count == 0) {
        (void)printf("ok %llu keys\n", (unsigned long long)run->keys);
    } else {
        (void)printf("damaged: %llu keys are good; %llu findings\n", (unsigned long long)run->keys,
                     (unsigned long long)run->count);
    }
    (void)fflush(stdout);
    if (result == KH_OK && run->count > 0) {
        result = ctl_fail(
            &ctl->error, KH_E_DAMAGED,
            "the store is damaged: do what the findings say, or restore it from a backup (keyholdctl store "
            "restore)");
    }
    return result;
}

kh_result ctl_cmd_store_fsck(ctl_run *ctl)
{
    const char *path = ctl_args_value(&ctl->args, "store");
    fsck_run run = {.ctl = ctl, .findings = json_array()};
    kh_result result = KH_OK;

    if (path == NULL && ctl_kek_given(ctl)) {
        return ctl_fail_usage(
            &ctl->error, "a running agent has its key; --kek-file and --passphrase-file go with --store");
    }
    result = path != NULL ? fsck_file(&run, path) : fsck_online(&run);
    if (result == KH_OK) {
        result = conclude(&run);
    } else {
        ctl->error.exit_code = CTL_USAGE; /* 2: it could not be checked */
    }
    json_decref(run.findings);
    return result;
}

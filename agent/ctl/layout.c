/* SPDX-License-Identifier: Apache-2.0 */
/* Where keyholdctl init puts things. See layout.h. */
#include "layout.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNQUOTABLE "\"\\$\n" /* characters that mean something in a quoted string of the configuration */

static char *join(const char *dir, const char *name)
{
    char *path = NULL;

    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

/* realpath of a directory whose last part need not exist yet. From malloc; NULL with errno. */
static char *absolute_dir(const char *path)
{
    char *parent = NULL;
    char *copy = NULL;
    char *name = NULL;
    char *result = realpath(path, NULL);

    if (result != NULL || errno != ENOENT) {
        return result;
    }
    copy = strdup(path);
    name = strdup(path);
    parent = copy != NULL ? realpath(dirname(copy), NULL) : NULL;
    if (parent != NULL && name != NULL) {
        result = join(strcmp(parent, "/") == 0 ? "" : parent, basename(name));
    }
    free(parent);
    free(name);
    free(copy);
    return result;
}

static kh_result find_user(ctl_run *ctl, const char *option, const char *fallback, const char **name,
                           kh_user *user)
{
    const char *given = ctl_args_value(&ctl->args, option);

    *name = given != NULL ? given : fallback;
    if (kh_config_user(*name, user) == KH_OK) {
        return KH_OK;
    }
    if (given != NULL) {
        return ctl_fail(&ctl->error, KH_E_NOT_FOUND,
                        "there is no user \"%s\"; give --%s a name that exists, or uid:gid", *name, option);
    }
    return ctl_fail(&ctl->error, KH_E_NOT_FOUND,
                    "there is no user \"%s\"; make the agent's users with \"systemd-sysusers keyhold.conf\" "
                    "(or \"useradd --system "
                    "%s\"), or give --%s",
                    *name, *name, option);
}

static kh_result find_users(ctl_run *ctl, layout *at)
{
    kh_result result = KH_OK;

    if (!at->privileged) {
        return KH_OK;
    }
    result = find_user(ctl, "user-front", at->single ? "64801:64801" : "keyhold-front", &at->front_user,
                       &at->front);
    if (result == KH_OK) {
        result = find_user(ctl, "user-keeper", at->single ? "64802:64802" : "keyhold-keeper",
                           &at->keeper_user, &at->keeper);
    }
    if (result == KH_OK && (at->front.uid == 0 || at->keeper.uid == 0 || at->front.uid == at->keeper.uid)) {
        result = ctl_fail(&ctl->error, KH_E_INVALID,
                          "front and keeper must have two different users, neither of them root; choose "
                          "others with --user-front and --user-keeper");
    }
    return result;
}

/* --socket says where the agent is to listen: "unix:/path" or "/path". */
static kh_result set_socket(ctl_run *ctl, layout *at)
{
    const char *socket = ctl_args_value(&ctl->args, "socket");

    if (socket == NULL) {
        at->agent_socket = join(at->run_dir, "agent.sock");
        return at->agent_socket != NULL ? KH_OK : KH_E_MEMORY;
    }
    socket += strncmp(socket, "unix:", 5) == 0 ? 5 : 0;
    if (socket[0] != '/' || strpbrk(socket, UNQUOTABLE) != NULL) {
        return ctl_fail_usage(
            &ctl->error, "\"%s\" is not a place for the agent's socket; give --socket unix:/path", socket);
    }
    at->agent_socket = strdup(socket);
    return at->agent_socket != NULL ? KH_OK : KH_E_MEMORY;
}

static bool set_paths(layout *at)
{
    at->config = join(at->config_dir, "keyhold.conf");
    at->kek = join(at->config_dir, "kek");
    at->pin = join(at->config_dir, "import.pub");
    at->token = join(at->config_dir, "nginx.token");
    at->store = join(at->store_dir, "keys.db");
    at->admin_socket = join(at->run_dir, "admin.sock");
    return at->config != NULL && at->kek != NULL && at->pin != NULL && at->token != NULL &&
           at->store != NULL && at->admin_socket != NULL;
}

static kh_result set_passphrase(ctl_run *ctl, layout *at)
{
    const char *file = ctl_args_value(&ctl->args, "passphrase-file");
    struct stat status;

    if (file == NULL) {
        return KH_OK;
    }
    if (strncmp(file, "credential:", 11) == 0) {
        return ctl_fail_usage(&ctl->error,
                              "only the agent's unit can read \"%s\"; give init the file itself, and write "
                              "kek_passphrase_file = \"%s\" into the configuration afterwards",
                              file, file);
    }
    at->passphrase_file = strcmp(file, "-") == 0 ? strdup("-") : realpath(file, NULL);
    if (at->passphrase_file == NULL) {
        return ctl_fail(&ctl->error, KH_E_IO, "cannot read the passphrase file %s: %s; check the name", file,
                        strerror(errno));
    }
    /* keyholdd refuses such a file: better now than at its start. */
    if (strcmp(file, "-") != 0 && stat(file, &status) == 0 && (status.st_mode & 077) != 0) {
        return ctl_fail(&ctl->error, KH_E_FORBIDDEN,
                        "the passphrase file %s can be read by others; chmod 0600 it", file);
    }
    return KH_OK;
}

kh_result layout_from_args(ctl_run *ctl, layout *at)
{
    const char *dir = ctl_args_value(&ctl->args, "dir");
    kh_result result = KH_OK;

    at->single = dir != NULL;
    at->privileged = geteuid() == 0;
    if (!at->single && !at->privileged) {
        return ctl_fail(&ctl->error, KH_E_FORBIDDEN,
                        "init makes /etc/keyhold and /var/lib/keyhold and needs root for it; run it as "
                        "root, or give --dir for an agent of your own");
    }
    if (!at->single && ctl_args_value(&ctl->args, "config") != NULL) {
        return ctl_fail_usage(
            &ctl->error,
            "init writes /etc/keyhold/keyhold.conf; for another place give --dir instead of --config");
    }
    if (at->single) {
        at->config_dir = absolute_dir(dir);
        if (at->config_dir == NULL) {
            return ctl_fail(&ctl->error, KH_E_IO, "cannot use %s: %s; make the directory above it first", dir,
                            strerror(errno));
        }
        if (strlen(at->config_dir) > 90) {
            return ctl_fail(&ctl->error, KH_E_TOO_LARGE,
                            "the path %s is too long for a Unix socket in it; choose a shorter one",
                            at->config_dir);
        }
        if (strpbrk(at->config_dir, UNQUOTABLE) != NULL) {
            return ctl_fail(&ctl->error, KH_E_INVALID,
                            "the path %s has characters that the configuration cannot hold; choose another",
                            at->config_dir);
        }
    }
    at->config_dir = at->single ? at->config_dir : strdup("/etc/keyhold");
    at->store_dir = at->single ? join(at->config_dir, "store") : strdup("/var/lib/keyhold");
    at->run_dir = strdup(at->single ? at->config_dir : "/run/keyhold");
    if (at->config_dir == NULL || at->store_dir == NULL || at->run_dir == NULL || !set_paths(at)) {
        return ctl_fail(&ctl->error, KH_E_MEMORY, "cannot begin: out of memory");
    }
    result = set_socket(ctl, at);
    if (result == KH_OK) {
        result = find_users(ctl, at);
    }
    return result == KH_OK ? set_passphrase(ctl, at) : result;
}

void layout_free(layout *at)
{
    char *const all[] = {at->config_dir,   at->store_dir,    at->run_dir,        at->config,
                         at->kek,          at->pin,          at->token,          at->store,
                         at->agent_socket, at->admin_socket, at->passphrase_file};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        free(all[i]);
    }
    memset(at, 0, sizeof(*at));
}

kh_result layout_check_parents(const layout *at, ctl_error *error)
{
    char path[PATH_MAX];
    struct stat status;

    if (!at->privileged) {
        return KH_OK;
    }
    (void)snprintf(path, sizeof(path), "%s", at->store_dir);
    while (strcmp(dirname(path), "/") != 0) {
        if (stat(path, &status) == 0 && (status.st_mode & S_IXOTH) == 0 && status.st_uid != at->keeper.uid) {
            return ctl_fail(error, KH_E_FORBIDDEN,
                            "the agent's users cannot get through %s (mode %04o); chmod o+x it, or choose "
                            "another --dir",
                            path, (unsigned)(status.st_mode & 07777));
        }
    }
    return KH_OK;
}

/* Below the configuration's directory a name is written relative, so that the whole can be moved. */
static const char *relative(const layout *at, const char *path)
{
    size_t len = strlen(at->config_dir);

    return strncmp(path, at->config_dir, len) == 0 && path[len] == '/' ? path + len + 1 : path;
}

char *layout_config_text(const layout *at)
{
    char *text = NULL;
    size_t len = 0;
    FILE *stream = open_memstream(&text, &len);

    if (stream == NULL) {
        return NULL;
    }
    (void)fprintf(stream,
                  "# Keyhold's agent; made by keyholdctl init. See keyhold.conf(5).\n"
                  "# Relative names are relative to this file's directory.\n\n"
                  "store        = \"%s\"\n",
                  relative(at, at->store));
    if (at->passphrase_file != NULL) {
        (void)fprintf(stream, "kek_passphrase_file = \"%s\"\n", at->passphrase_file);
    } else {
        (void)fprintf(stream, "kek_file     = \"%s\"\n", relative(at, at->kek));
    }
    (void)fprintf(stream, "admin_socket = \"%s\"\n", relative(at, at->admin_socket));
    if (at->privileged) {
        (void)fprintf(stream, "front_user   = \"%s\"\nkeeper_user  = \"%s\"\n", at->front_user,
                      at->keeper_user);
    }
    (void)fprintf(
        stream,
        "\n# Whoever connects proves who it is; the socket itself may be open to all.\n"
        "listen \"unix:%s\" { mode = 0666 }\n\n"
        "identity \"nginx\" {\n"
        "    token = \"%s\"\n"
        "    allow { keys = {\"*\"}  operations = {\"sign\", \"tls-rsa-decrypt\", \"public-key\"} }\n"
        "}\n",
        relative(at, at->agent_socket), relative(at, at->token));
    if (!at->privileged) {
        (void)fprintf(stream,
                      "\n# The user who made this agent may manage it.\n"
                      "identity \"operator\" {\n"
                      "    uid = %u\n"
                      "    allow { keys = {\"*\"}  operations = {\"public-key\", \"list\", \"status\", "
                      "\"import-key\", \"create\", "
                      "\"import\", \"set-state\"} }\n"
                      "}\n",
                      (unsigned)geteuid());
    }
    if (fclose(stream) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

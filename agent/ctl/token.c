/* SPDX-License-Identifier: Apache-2.0 */
/* token create: a fresh secret in a file of its own, and the lines that let its bearer in. */
#include "token.h"
#include "output.h"
#include "secret.h"

#include "../config.h"

#include <keyhold/client.h>
#include <libgen.h>
#include <limits.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_LEN (sizeof("keyhold-token-1 ") + KH_NAME_MAX + 1 + 2 * KH_TOKEN_SECRET_LEN + 1)

kh_result token_write(const char *name, const char *path, ctl_error *error)
{
    ctl_secret secret = {0};
    ctl_secret line = {0};
    kh_result result = ctl_secret_new(KH_TOKEN_SECRET_LEN, &secret);

    if (result == KH_OK) {
        result = ctl_secret_new(LINE_MAX_LEN, &line);
    }
    if (result != KH_OK) {
        ctl_fail(error, result, "cannot make a token: out of memory");
        goto done;
    }
    if (RAND_priv_bytes(secret.data, KH_TOKEN_SECRET_LEN) != 1) {
        result =
            ctl_fail(error, KH_E_CRYPTO, "cannot make a token: the system has no random numbers; try again");
        goto done;
    }
    /* Not printf's business: it may keep what it formats. */
    (void)stpcpy(stpcpy(stpcpy((char *)line.data, "keyhold-token-1 "), name), " ");
    line.len = strlen((char *)line.data);
    (void)output_hex(secret.data, KH_TOKEN_SECRET_LEN, (char *)line.data + line.len);
    line.len += 2 * KH_TOKEN_SECRET_LEN;
    line.data[line.len++] = '\n';
    result = output_new_file(path, line.data, line.len, 0600, (uid_t)-1, (gid_t)-1, error);
done:
    ctl_secret_free(&line);
    ctl_secret_free(&secret);
    return result;
}

/* Where the token goes without --out: beside the configuration. From malloc. */
static char *default_path(const ctl_run *ctl, const char *name)
{
    const char *config = ctl_args_value(&ctl->args, "config");
    char *copy = strdup(config != NULL ? config : CTL_DEFAULT_CONFIG);
    char *path = NULL;

    if (copy != NULL && asprintf(&path, "%s/%s.token", dirname(copy), name) < 0) {
        path = NULL;
    }
    free(copy);
    return path;
}

/* Where nginx reaches the agent: the first Unix socket of the configuration, if that can be read. */
static const char *agent_address(const kh_config *config)
{
    for (size_t i = 0; config != NULL && i < config->listener_count; i++) {
        if (config->listeners[i].path != NULL) {
            return config->listeners[i].address;
        }
    }
    return "unix:/run/keyhold/agent.sock";
}

static kh_result tell(ctl_run *ctl, const char *name, const char *path)
{
    char ignored[KH_CONFIG_ERROR_MAX];
    const char *file = ctl_args_value(&ctl->args, "config");
    kh_config *config = NULL;

    if (ctl->json) {
        return output_json(json_pack("{s:s, s:s}", "identity", name, "token", path), &ctl->error);
    }
    if (kh_config_load(file != NULL ? file : CTL_DEFAULT_CONFIG, &config, ignored) != KH_OK) {
        config = NULL; /* none yet, or a mistake in it: that is not what was asked */
    }
    (void)printf("The token of \"%s\" is in %s (mode 0600).\n\n"
                 "Add to keyhold.conf, narrowed to the keys and operations it needs:\n\n"
                 "identity \"%s\" {\n"
                 "    token = \"%s\"\n"
                 "    allow { keys = {\"*\"}  operations = {\"sign\", \"public-key\"} }\n"
                 "}\n\n"
                 "Then: keyholdd --check, and systemctl reload keyhold (or send the agent SIGHUP).\n"
                 "In nginx: keyhold_agent %s token=%s;\n",
                 name, path, name, path, agent_address(config), path);
    kh_config_free(config);
    return KH_OK;
}

kh_result ctl_cmd_token_create(ctl_run *ctl)
{
    const char *name = ctl->args.operands[0];
    const char *out = ctl_args_value(&ctl->args, "out");
    char *path = NULL;
    char *absolute = NULL;
    kh_result result = KH_OK;

    if (!kh_name_valid(name, strlen(name)) || strcmp(name, "root") == 0) {
        return ctl_fail_usage(
            &ctl->error,
            "\"%s\" is not a name for an identity: 1 to %d letters, digits, '.', '_' and '-', beginning "
            "with a letter or digit, and not \"root\"; choose another",
            name, KH_NAME_MAX);
    }
    path = out != NULL ? strdup(out) : default_path(ctl, name);
    if (path == NULL) {
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot make a token: out of memory");
        goto done;
    }
    result = token_write(name, path, &ctl->error);
    if (result == KH_OK) {
        absolute = realpath(path, NULL);
        result = tell(ctl, name, absolute != NULL ? absolute : path);
    }
done:
    free(absolute);
    free(path);
    return result;
}

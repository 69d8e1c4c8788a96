/* SPDX-License-Identifier: Apache-2.0 */
/* The key-encryption key for keyholdctl. See kek.h. */
#include "kek.h"

#include <errno.h>
#include <kek_token.h>
#include <string.h>

#define KEK_LEN 32

bool ctl_kek_given(const ctl_run *ctl)
{
    return ctl_args_value(&ctl->args, "kek-file") != NULL ||
           ctl_args_value(&ctl->args, "passphrase-file") != NULL;
}

static kh_result load_file(const char *path, ctl_secret *secret, ctl_error *error)
{
    kh_kek_token wrapped;
    kh_result result = ctl_secret_new(KEK_LEN, secret);

    if (result == KH_OK) {
        errno = 0;
        result = kh_kek_file_load(path, secret->data);
        secret->len = KEK_LEN;
    }
    if (result == KH_E_MALFORMED && kh_kek_token_file_load(path, &wrapped) == KH_OK) {
        return ctl_fail(error, KH_E_UNSUPPORTED,
                        "the key-encryption key %s is wrapped by the token \"%s\", and only a running agent has it; ask that "
                        "one (without --store), or seal the store under a file first (keyholdctl kek rotate)",
                        path, wrapped.token);
    }
    switch (result) {
    case KH_OK:
        return KH_OK;
    case KH_E_FORBIDDEN:
        return ctl_fail(error, result, "the key-encryption key %s can be read by others; chmod 0600 it",
                        path);
    case KH_E_MALFORMED:
        return ctl_fail(error, result,
                        "%s is not a key-encryption key; give the file that keyholdctl init made (kek)",
                        path);
    default:
        return ctl_fail(
            error, result,
            "cannot read the key-encryption key %s: %s; run this as root, or name it with --kek-file", path,
            errno != 0 ? strerror(errno) : kh_result_text(result));
    }
}

kh_result ctl_kek_load(ctl_run *ctl, const kh_config *config, ctl_secret *secret, kh_kek_kind *kind)
{
    const char *kek_file = ctl_args_value(&ctl->args, "kek-file");
    const char *passphrase_file = ctl_args_value(&ctl->args, "passphrase-file");
    ctl_passphrase_source source = {.prompt = "Passphrase of the store"};

    if (kek_file != NULL && passphrase_file != NULL) {
        return ctl_fail_usage(&ctl->error, "--kek-file and --passphrase-file exclude each other; give one");
    }
    if (kek_file == NULL && passphrase_file == NULL && config != NULL) {
        kek_file = config->kek_file;
        passphrase_file = config->kek_passphrase_file;
    }
    if ((kek_file != NULL && strncmp(kek_file, "credential:", 11) == 0) ||
        (passphrase_file != NULL && strncmp(passphrase_file, "credential:", 11) == 0)) {
        return ctl_fail(
            &ctl->error, KH_E_PASSPHRASE,
            "only the agent's unit can read \"%s\"; give the key itself with --kek-file or --passphrase-file",
            kek_file != NULL ? kek_file : passphrase_file);
    }
    *kind = kek_file != NULL ? KH_KEK_FILE : KH_KEK_PASSPHRASE;
    if (kek_file != NULL) {
        return load_file(kek_file, secret, &ctl->error);
    }
    source.file = passphrase_file;
    return ctl_secret_passphrase(&source, secret, &ctl->error);
}

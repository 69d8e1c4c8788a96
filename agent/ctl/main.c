/* SPDX-License-Identifier: Apache-2.0 */
/* keyholdctl: the operator's tool. This file has the table of commands and the one place where an error is
 * printed. */
#include "ctl.h"
#include "descriptors.h"
#include "secret.h"

#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static const ctl_option init_options[] = {
    {"dir", "DIR", "put everything into DIR: an agent of its own, for tests and trials"},
    {"user-front", "USER",
     "user of the front, a name or uid:gid (default keyhold-front; with --dir 64801:64801)"},
    {"user-keeper", "USER", "user of the keeper (default keyhold-keeper; with --dir 64802:64802)"},
    {"passphrase-file", "FILE",
     "seal the store under the passphrase in FILE (\"-\": ask) instead of a key file"},
    {NULL, NULL, NULL},
};
static const ctl_option create_options[] = {
    {"type", "TYPE", "rsa2048, rsa3072, rsa4096, p256, p384, p521 or ed25519"},
    {"usage", "LIST", "what the key may be used for, fixed for ever (default tls-server)"},
    {"new-version", NULL, "make the next version of a key that exists; its usage is inherited"},
    {"tier", "TIER", "where it lives: software (default), hsm or hsm-pool"},
    {"place", "NAME", "which token or pool of the agent's configuration, if there are several"},
    {"not-before", "TIME", "valid from then on: 2027-01-31, 2027-01-31T12:00:00Z (UTC) or +30d"},
    {"expires", "TIME", "valid until then"},
    {"tag", "LIST", "KEY=VALUE,…: for people and programs; the keys of a name have one set (admin socket)"},
    {NULL, NULL, NULL},
};
static const ctl_option import_options[] = {
    {"cert", "FILE", "refuse a key that does not belong to this certificate"},
    {"usage", "LIST", "what the key may be used for, fixed for ever (default tls-server)"},
    {"passphrase-file", "FILE", "the key's passphrase is the first line of FILE (\"-\": ask)"},
    {"passphrase-env", "NAME", "the key's passphrase is in the environment's variable NAME"},
    {"pin", "PIN",
     "the store's import key: a file, or SHA256:… (default import.pub beside the configuration)"},
    {"allow-duplicate", NULL, "the same key may already be stored under another name"},
    {"new-version", NULL, "import as the next version of a key that exists"},
    {"tier", "TIER", "where it lives: software (default), hsm or hsm-pool"},
    {"place", "NAME", "which token or pool of the agent's configuration, if there are several"},
    {"not-before", "TIME", "valid from then on: 2027-01-31, 2027-01-31T12:00:00Z (UTC) or +30d"},
    {"expires", "TIME", "valid until then"},
    {"tag", "LIST", "KEY=VALUE,…: for people and programs; the keys of a name have one set (admin socket)"},
    {NULL, NULL, NULL},
};
static const ctl_option kek_rotate_options[] = {
    {"in-token", "NAME", "wrapped by a key that is made in this token of the configuration; without it: in a plain file"},
    {"new-passphrase-file", "FILE", "of a store under a passphrase: the new one is the first line of FILE (default, and \"-\": ask)"},
    {"passphrase-file", "FILE", "the one of now, where the agent has it from no file (default, and \"-\": ask)"},
    {NULL, NULL, NULL},
};
static const ctl_option rotate_options[] = {
    {"not-before", "TIME", "valid from then on: 2027-01-31, 2027-01-31T12:00:00Z (UTC) or +30d"},
    {"expires", "TIME", "valid until then"},
    {NULL, NULL, NULL},
};
static const ctl_option set_options[] = {
    {"not-before", "TIME", "valid from then on: 2027-01-31, 2027-01-31T12:00:00Z (UTC), +30d or never"},
    {"expires", "TIME", "valid until then; never: no longer bounded"},
    {"rotate-every", "DAYS", "a new version whenever the newest is so old; 0: never"},
    {"retain", "DAYS", "once deleted, not to be purged for so long; can be raised, never lowered"},
    {"tag", "LIST", "KEY=VALUE,…; KEY= removes one"},
    {NULL, NULL, NULL},
};
static const ctl_option move_options[] = {
    {"tier", "TIER", "hsm or hsm-pool"},
    {"place", "NAME", "which token or pool of the agent's configuration, if there are several"},
    {NULL, NULL, NULL},
};
static const ctl_option adopt_options[] = {
    {"place", "NAME", "which token of the agent's configuration, if there are several"},
    {"label", "LABEL", "the key's label in the token"},
    {"id", "HEX", "its CKA_ID"},
    {"usage", "LIST", "what the key may be used for, fixed for ever (default tls-server)"},
    {"allow-duplicate", NULL, "the same key may already be stored under another name"},
    {"new-version", NULL, "as the next version of a key that exists"},
    {NULL, NULL, NULL},
};
static const ctl_option store_set_options[] = {
    {"retain", "DAYS", "no deleted key is purged for so long; can be raised, never lowered"},
    {NULL, NULL, NULL},
};
static const ctl_option out_options[] = {
    {"out", "FILE", "write to a new FILE instead of standard output"},
    {NULL, NULL, NULL},
};
static const ctl_option purge_options[] = {
    {"yes", NULL, "yes, destroy it for good"},
    {NULL, NULL, NULL},
};
static const ctl_option self_signed_options[] = {
    {"subject", "NAME", "\"/C=DE/O=Site/CN=www.example\""},
    {"san", "LIST", "DNS:a,DNS:b,IP:192.0.2.1 (default: the CN, if it is a host name)"},
    {"days", "N", "valid for N days from now (default 365)"},
    {"out", "FILE", "write to a new FILE instead of standard output"},
    {NULL, NULL, NULL},
};
static const ctl_option csr_options[] = {
    {"subject", "NAME", "\"/C=DE/O=Site/CN=www.example\""},
    {"san", "LIST", "DNS:a,DNS:b,IP:192.0.2.1 (default: the CN, if it is a host name)"},
    {"out", "FILE", "write to a new FILE instead of standard output"},
    {NULL, NULL, NULL},
};
static const ctl_option token_options[] = {
    {"out", "FILE", "write to a new FILE (default NAME.token beside the configuration)"},
    {NULL, NULL, NULL},
};
static const ctl_option pool_add_options[] = {
    {"so-pin-file", "FILE",
     "the PIN of the security officer of a partition that has the key is the first line of FILE (default: ask)"},
    {NULL, NULL, NULL},
};
static const ctl_option pool_init_options[] = {
    {"force", NULL, "although the store has keys of an older pool of that name, which are lost then"},
    {NULL, NULL, NULL},
};
static const ctl_option pool_remove_options[] = {
    {"yes", NULL, "yes, take the pool's key and the pool's keys out of the token"},
    {"keep", NULL, "the pool's key alone: the other keys stay in the token"},
    {"last", NULL, "although no other partition has it: what is wrapped under it is lost"},
    {NULL, NULL, NULL},
};
static const ctl_option ping_options[] = {
    {"count", "N", "so many times (default 1)"},
    {NULL, NULL, NULL},
};
static const ctl_option status_options[] = {
    {"watch", "[SEC]", "again every SEC seconds (default 2), with rates since the last time"},
    {NULL, NULL, NULL},
};
static const ctl_option check_nginx_options[] = {
    {"prefix", "DIR", "take relative names from DIR (default: the directory of FILE, as nginx does)"},
    {"all", NULL, "a local key that the agent does not have is bad, too"},
    {NULL, NULL, NULL},
};

static const ctl_option restore_options[] = {
    {"kek-file", "FILE", "the key-encryption key of the backup (default: the configuration's)"},
    {"passphrase-file", "FILE", "the passphrase that seals it is the first line of FILE (\"-\": ask)"},
    {NULL, NULL, NULL},
};
static const ctl_option fsck_options[] = {
    {"store", "FILE", "check this file, which no agent has open, instead of the agent's store"},
    {"kek-file", "FILE", "the key-encryption key of that file (default: the configuration's)"},
    {"passphrase-file", "FILE", "the passphrase that seals it is the first line of FILE (\"-\": ask)"},
    {NULL, NULL, NULL},
};
static const ctl_option export_options[] = {
    {"keys", "GLOBS", "only keys of these names: 'www.*,shop' (default: all)"},
    {NULL, NULL, NULL},
};
static const ctl_option store_import_options[] = {
    {"allow-purged", NULL, "keys that were purged here may come back"},
    {"kek-file", "FILE", "the export was made under this key-encryption key instead of the agent's"},
    {"passphrase-file", "FILE", "it was made under the passphrase in the first line of FILE (\"-\": ask)"},
    {NULL, NULL, NULL},
};

static const ctl_command commands[] = {
    {NULL, "init", "", 0, 0, init_options, "make the store, its keys and a configuration; never overwrites",
     ctl_cmd_init},
    {"key", "create", "NAME", 1, 1, create_options, "make a key in the store", ctl_cmd_key_create},
    {"key", "import", "NAME FILE", 2, 2, import_options, "import a private key (PEM, DER, PKCS#8, PKCS#12)",
     ctl_cmd_key_import},
    {"key", "list", "[GLOB]", 0, 1, NULL, "list keys", ctl_cmd_key_list},
    {"key", "show", "NAME[/V]", 1, 1, NULL, "show a key's versions", ctl_cmd_key_show},
    {"key", "enable", "NAME[/V]", 1, 1, NULL, "let a key be used again", ctl_cmd_key_enable},
    {"key", "disable", "NAME[/V]", 1, 1, NULL, "let a key not be used", ctl_cmd_key_disable},
    {"key", "delete", "NAME[/V]", 1, 1, NULL, "delete a key; recover brings it back", ctl_cmd_key_delete},
    {"key", "recover", "NAME", 1, 1, NULL, "bring a deleted key back (admin socket)", ctl_cmd_key_recover},
    {"key", "purge", "NAME", 1, 1, purge_options, "destroy a deleted key for good (admin socket)",
     ctl_cmd_key_purge},
    {"key", "rotate", "NAME", 1, 1, rotate_options, "make a key's next version, which serves at once", ctl_cmd_key_rotate},
    {"key", "set", "NAME[/V]", 1, 1, set_options, "change validity, rotation, retention and tags (admin socket)",
     ctl_cmd_key_set},
    {"key", "move", "NAME[/V]", 1, 1, move_options, "move a key into a token or pool (admin socket)", ctl_cmd_key_move},
    {"key", "adopt", "NAME [URI]", 1, 2, adopt_options, "use a key that somebody else made in a token (admin socket)",
     ctl_cmd_key_adopt},
    {"key", "backup", "NAME", 1, 1, out_options, "write all versions of a key, sealed, to a file (admin socket)",
     ctl_cmd_key_backup},
    {"key", "restore", "FILE", 1, 1, store_import_options, "bring a key back from its backup (admin socket)",
     ctl_cmd_store_import},
    {"key", "reference", "NAME[/V]", 1, 1, out_options,
     "print a key reference, which stands for the key's file", ctl_cmd_key_reference},
    {"key", "public", "NAME[/V]", 1, 1, out_options, "print the public key as PEM", ctl_cmd_key_public},
    {"cert", "self-signed", "NAME", 1, 1, self_signed_options,
     "make a self-signed certificate (admin socket)", ctl_cmd_cert_self_signed},
    {"cert", "csr", "NAME", 1, 1, csr_options, "make a certificate request (admin socket)", ctl_cmd_cert_csr},
    {"cert", "match", "NAME CERT", 2, 2, NULL, "say whether a certificate belongs to a key",
     ctl_cmd_cert_match},
    {"token", "create", "NAME", 1, 1, token_options, "make a token by which a caller proves who it is",
     ctl_cmd_token_create},
    {"kek", "rotate", "", 0, 0, kek_rotate_options, "seal the store under a new key-encryption key or passphrase while it serves (admin socket)",
     ctl_cmd_kek_rotate},
    {"pool", "init", "POOL", 1, 1, pool_init_options, "make the key of a new pool in all its partitions", ctl_cmd_pool_init},
    {"pool", "add", "POOL PARTITION", 2, 2, pool_add_options, "give a partition the key of the pool that the others have",
     ctl_cmd_pool_add},
    {"pool", "remove", "POOL PARTITION", 2, 2, pool_remove_options, "destroy what a token has of a pool (admin socket)",
     ctl_cmd_pool_remove},
    {"pool", "repair", "POOL", 1, 1, NULL, "place keys that partitions lack (admin socket)", ctl_cmd_pool_repair},
    {"pool", "status", "POOL", 1, 1, NULL, "say which partitions have the pool's key, asking each token",
     ctl_cmd_pool_status},
    {NULL, "ping", "", 0, 0, ping_options, "say whether the agent answers, and how fast", ctl_cmd_ping},
    {NULL, "status", "", 0, 0, status_options, "show load, latency, batches, queues and callers",
     ctl_cmd_status},
    {NULL, "check-nginx", "FILE", 1, 1, check_nginx_options,
     "say whether the agent has the key of each certificate", ctl_cmd_check_nginx},
    {"store", "backup", "FILE", 1, 1, NULL, "copy the store while the agent serves (admin socket)",
     ctl_cmd_store_backup},
    {"store", "restore", "FILE", 1, 1, restore_options, "put a backup in place while the agent is stopped",
     ctl_cmd_store_restore},
    {"store", "fsck", "", 0, 0, fsck_options,
     "check the store and every key in it (admin socket, or --store FILE)", ctl_cmd_store_fsck},
    {"store", "check", "", 0, 0, fsck_options, "the same as fsck", ctl_cmd_store_fsck},
    {"store", "export", "FILE", 1, 1, export_options,
     "write sealed keys for another agent with the same KEK (admin socket)", ctl_cmd_store_export},
    {"store", "import", "FILE", 1, 1, store_import_options, "take the keys of an export (admin socket)",
     ctl_cmd_store_import},
    {"store", "set", "", 0, 0, store_set_options, "change what holds for all keys (admin socket)", ctl_cmd_store_set},
    {NULL, "version", "", 0, 0, NULL, "print the version", ctl_cmd_version},
    {NULL, "help", "[COMMAND]", 0, 2, NULL, "say what there is, or more of one command", ctl_cmd_help},
    {NULL, "completion", "SHELL", 1, 1, NULL, "print the completion for a shell (bash)", ctl_cmd_completion},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};

/* --help and --version with or without a command. */
static kh_result run_asked(ctl_run *ctl)
{
    const ctl_command *command = ctl->args.command;

    if (ctl_args_value(&ctl->args, "help") == NULL) {
        return ctl_cmd_version(ctl);
    }
    if (command != NULL) {
        ctl->args.operand_count = command->group != NULL ? 2 : 1;
        ctl->args.operands[0] = command->group != NULL ? command->group : command->name;
        ctl->args.operands[1] = command->group != NULL ? command->name : NULL;
    } else {
        ctl->args.operand_count = 0;
    }
    return ctl_cmd_help(ctl);
}

static kh_result run(ctl_run *ctl, int argc, char **argv)
{
    long timeout_ms = 0;
    kh_result result = ctl_args_parse(commands, argc, argv, &ctl->args, &ctl->error);

    if (result != KH_OK) {
        return result;
    }
    if (ctl_args_value(&ctl->args, "help") != NULL || ctl_args_value(&ctl->args, "version") != NULL) {
        return run_asked(ctl);
    }
    result = ctl_args_number(&ctl->args, "timeout", 1, KH_DEADLINE_MAX_MS, 10000, &timeout_ms, &ctl->error);
    if (result != KH_OK) {
        return result;
    }
    ctl->timeout_ms = (uint32_t)timeout_ms;
    ctl->json = ctl_args_value(&ctl->args, "json") != NULL;
    return ctl->args.command->run(ctl);
}

int main(int argc, char **argv)
{
    ctl_run ctl = {.commands = commands};
    kh_result result = KH_OK;

    kh_descriptors_standard();
    ctl_secret_harden();
    (void)signal(SIGPIPE, SIG_IGN);
    result = run(&ctl, argc, argv);
    if (result == KH_OK && (fflush(stdout) != 0 || ferror(stdout)) && errno != EPIPE) {
        result = ctl_fail(&ctl.error, KH_E_IO, "cannot write to standard output: %s", strerror(errno));
    }
    if (result == KH_OK) {
        return CTL_OK;
    }
    if (ctl.error.text[0] == '\0') {
        (void)ctl_fail(&ctl.error, result, "%s; report this", kh_result_text(result));
    }
    (void)fprintf(stderr, "keyholdctl: %s\n", ctl.error.text);
    return ctl.error.exit_code;
}

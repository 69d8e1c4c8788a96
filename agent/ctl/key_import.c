/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key import: reads a private key, checks it against its certificate, and sends it sealed to the store's
 * pinned import key. The key is in the clear only in this process's locked memory.
 */
#include "agent.h"
#include "keyfile.h"
#include "keyplace.h"
#include "keyview.h"
#include "pin.h"

#include <openssl/crypto.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

typedef struct asking {
    ctl_run *ctl;
    const char *file;
} asking;

static kh_result ask_passphrase(void *ctx, ctl_secret *passphrase, ctl_error *error)
{
    const asking *ask = ctx;
    char prompt[512];
    ctl_passphrase_source source = {
        .file = ctl_args_value(&ask->ctl->args, "passphrase-file"),
        .environment = ctl_args_value(&ask->ctl->args, "passphrase-env"),
        .prompt = prompt,
    };

    (void)snprintf(prompt, sizeof(prompt), "Passphrase of %.400s", ask->file);
    return ctl_secret_passphrase(&source, passphrase, error);
}

static kh_result check_certificate(ctl_run *ctl, const char *path, const char *key_path, const keyfile *key)
{
    uint8_t id[KH_KEY_ID_LEN] = {0};
    kh_key_type type = KH_KEY_NONE;
    unsigned bits = 0;
    X509 *cert = NULL;
    kh_result result = keyfile_load_certificate(path, &cert, &ctl->error);

    if (result == KH_OK && (keyfile_certificate_id(cert, id, &type, &bits) != KH_OK ||
                            CRYPTO_memcmp(id, key->id, sizeof(id)) != 0)) {
        result = ctl_fail(&ctl->error, KH_E_MISMATCH,
                          "the certificate %s does not belong to the key in %s: their public keys differ; "
                          "give the certificate of this "
                          "key (the server's own comes first in a chain)",
                          path, key_path);
    }
    X509_free(cert);
    return result;
}

static kh_result seal_and_send(ctl_run *ctl, ctl_agent *agent, const kh_key_info *wanted, const keyfile *key,
                               kh_key_info *made)
{
    uint8_t import_public[KH_IMPORT_PUBLIC_LEN];
    uint8_t sealed[KH_IMPORT_PKCS8_MAX + KH_IMPORT_OVERHEAD];
    const kh_import_terms terms = {.name = wanted->name,
                                   .usage = wanted->usage,
                                   .flags = wanted->flags,
                                   .tier = wanted->tier,
                                   .place = wanted->place,
                                   .not_before = wanted->not_before,
                                   .expires = wanted->expires};
    size_t sealed_len = 0;
    kh_result result = ctl_agent_import_key(agent, import_public);

    if (result == KH_OK) {
        result = pin_check(ctl, import_public);
    }
    if (result != KH_OK) {
        return result;
    }
    result = kh_import_seal_as(import_public, &terms, key->pkcs8.data, key->pkcs8.len, sealed, sizeof(sealed), &sealed_len);
    if (result != KH_OK) {
        return ctl_fail(&ctl->error, result, "cannot seal the key for the agent: %s; report this",
                        kh_result_text(result));
    }
    return ctl_agent_import(agent, wanted, sealed, sealed_len, made);
}

/* The agent says only that there is one; its name is what the operator needs. */
static void name_duplicate(ctl_run *ctl, ctl_agent *agent, const kh_key_info *wanted, const keyfile *key)
{
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    ctl_error before = ctl->error;
    size_t count = 0;

    if (infos != NULL && ctl_agent_lookup(agent, NULL, key->id, infos, KH_LOOKUP_MAX, &count) == KH_OK) {
        ctl_fail(&ctl->error, KH_E_DUPLICATE,
                 "cannot import %s: the same key is already stored as %s/%u; use that one, or add "
                 "--allow-duplicate",
                 wanted->name, infos[0].name, infos[0].version);
    } else {
        ctl->error = before;
    }
    free(infos);
}

kh_result ctl_cmd_key_import(ctl_run *ctl)
{
    const char *path = ctl->args.operands[1];
    const char *cert = ctl_args_value(&ctl->args, "cert");
    const char *tags = ctl_args_value(&ctl->args, "tag");
    char what[KH_NAME_MAX + 32];
    asking ask = {ctl, path};
    kh_key_info wanted = {0};
    kh_key_info made = {0};
    keyfile key = {0};
    ctl_secret file = {0};
    ctl_agent *agent = NULL;
    kh_result result = keyview_wanted(ctl, &wanted);

    if (result == KH_OK) {
        result = ctl_secret_read_file(path, KEYFILE_MAX, &file, &ctl->error);
    }
    if (result == KH_OK) {
        result = keyfile_load(file.data, file.len, path, ask_passphrase, &ask, &key, &ctl->error);
    }
    if (result == KH_OK) {
        result = keyview_fits(&wanted, key.type, &ctl->error);
    }
    if (result == KH_OK && cert != NULL) {
        result = check_certificate(ctl, cert, path, &key);
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, tags != NULL ? CTL_WAY_ADMIN : CTL_WAY_ANY, &agent);
    }
    if (result == KH_OK) {
        (void)snprintf(what, sizeof(what), "cannot import %s", wanted.name);
        result = seal_and_send(ctl, agent, &wanted, &key, &made);
        result = result != KH_OK ? keyplace_explain(ctl, &wanted, what, result) : KH_OK;
        if (result == KH_E_DUPLICATE) {
            name_duplicate(ctl, agent, &wanted, &key);
        }
    }
    if (result == KH_OK && CRYPTO_memcmp(made.id, key.id, sizeof(made.id)) != 0) {
        result = ctl_fail(&ctl->error, KH_E_INTERNAL,
                          "the agent stored another key than the one in %s; delete %s and report this", path,
                          wanted.name);
    }
    if (result == KH_OK && tags != NULL) {
        result = keylife_tag(ctl, agent, wanted.name, tags);
    }
    if (result == KH_OK) {
        result = keyview_print(ctl, &made);
    }
    ctl_agent_close(agent);
    keyfile_free(&key);
    ctl_secret_free(&file);
    return result;
}

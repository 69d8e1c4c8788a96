/* SPDX-License-Identifier: Apache-2.0 */
/* The commands on certificates: self-signed ones, requests, and whether a certificate belongs to a key. */
#include "agent.h"
#include "certbuild.h"
#include "keyfile.h"
#include "output.h"

#include <openssl/crypto.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DAYS_MAX 36500
#define DAYS_DEFAULT 365

/* Only the admin socket signs what is not TLS with a key that is for TLS. */
static kh_result certify(ctl_agent *agent, const kh_key_info *info, const certbuild *build,
                         uint8_t *signature, size_t cap, size_t *len)
{
    kh_record record = {.op = KH_STORE_CERTIFY, .key_ref = info->ref, .scheme = certbuild_scheme(build)};
    char what[KH_NAME_MAX + 64];
    size_t tbs_len = 0;

    record.data = certbuild_tbs(build, &tbs_len);
    record.data_len = (uint32_t)tbs_len;
    (void)snprintf(what, sizeof(what), "cannot sign with %s", info->name);
    return ctl_agent_admin(agent, &record, what, signature, cap, len);
}

static kh_result make(ctl_run *ctl, const certbuild_wish *wish)
{
    const char *name = ctl->args.operands[0];
    const char *out = ctl_args_value(&ctl->args, "out");
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    uint8_t signature[KH_SIGNATURE_MAX];
    size_t signature_len = 0;
    size_t count = 0;
    char *pem = NULL;
    ctl_agent *agent = NULL;
    certbuild *build = NULL;
    kh_result result = KH_OK;

    if (infos == NULL) {
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot make a certificate: out of memory");
    } else if (wish->subject == NULL) {
        result = ctl_fail_usage(&ctl->error, "the subject is missing; give --subject \"/CN=www.example\"");
    } else if (out != NULL && strcmp(out, "-") != 0 && access(out, F_OK) == 0) {
        result = ctl_fail(&ctl->error, KH_E_EXISTS,
                          "%s exists already and is not overwritten; remove it or choose another name", out);
    } else {
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        result = ctl_agent_lookup(agent, name, NULL, infos, KH_LOOKUP_MAX, &count);
        if (result == KH_E_NOT_FOUND) {
            ctl_fail_no_key(agent, name);
        }
    }
    if (result == KH_OK) {
        result = certbuild_new(&infos[0], wish, &build, &ctl->error);
    }
    if (result == KH_OK) {
        result = certify(agent, &infos[0], build, signature, sizeof(signature), &signature_len);
    }
    if (result == KH_OK) {
        result = certbuild_finish(build, signature, signature_len, &pem, &ctl->error);
    }
    if (result == KH_OK) {
        result = output_text(out, pem, &ctl->error);
    }
    free(pem);
    certbuild_free(build);
    ctl_agent_close(agent);
    free(infos);
    return result;
}

kh_result ctl_cmd_cert_self_signed(ctl_run *ctl)
{
    certbuild_wish wish = {
        .subject = ctl_args_value(&ctl->args, "subject"),
        .san = ctl_args_value(&ctl->args, "san"),
        .not_before = time(NULL),
    };
    kh_result result =
        ctl_args_number(&ctl->args, "days", 1, DAYS_MAX, DAYS_DEFAULT, &wish.days, &ctl->error);

    return result == KH_OK ? make(ctl, &wish) : result;
}

kh_result ctl_cmd_cert_csr(ctl_run *ctl)
{
    certbuild_wish wish = {
        .subject = ctl_args_value(&ctl->args, "subject"),
        .san = ctl_args_value(&ctl->args, "san"),
        .request = true,
    };

    return make(ctl, &wish);
}

kh_result ctl_cmd_cert_match(ctl_run *ctl)
{
    const char *name = ctl->args.operands[0];
    const char *path = ctl->args.operands[1];
    kh_key_info *infos = calloc(KH_LOOKUP_MAX, sizeof(*infos));
    uint8_t id[KH_KEY_ID_LEN] = {0};
    char hex[2 * KH_KEY_ID_LEN + 1];
    kh_key_type type = KH_KEY_NONE;
    unsigned bits = 0;
    size_t count = 0;
    size_t match = 0;
    X509 *cert = NULL;
    ctl_agent *agent = NULL;
    kh_result result = infos != NULL ? keyfile_load_certificate(path, &cert, &ctl->error)
                                     : ctl_fail(&ctl->error, KH_E_MEMORY, "cannot compare: out of memory");

    if (result == KH_OK && keyfile_certificate_id(cert, id, &type, &bits) != KH_OK) {
        result = ctl_fail(&ctl->error, KH_E_UNSUPPORTED,
                          "the key of the certificate %s is of a kind that is not supported; use "
                          "another certificate",
                          path);
    }
    if (result == KH_OK) {
        result = ctl_agent_open(ctl, CTL_WAY_ANY, &agent);
    }
    if (result == KH_OK) {
        result = ctl_agent_lookup(agent, name, NULL, infos, KH_LOOKUP_MAX, &count);
        if (result == KH_E_NOT_FOUND) {
            ctl_fail_no_key(agent, name);
        }
    }
    if (result != KH_OK) {
        goto done;
    }
    while (match < count && CRYPTO_memcmp(infos[match].id, id, sizeof(id)) != 0) {
        match++;
    }
    if (match == count) {
        result = ctl_fail(&ctl->error, KH_E_MISMATCH,
                          "the certificate %s does not belong to the key %s: their public keys differ (the "
                          "certificate's key has the id "
                          "%.16s…); get a certificate for this key with keyholdctl cert csr",
                          path, name, output_hex(id, sizeof(id), hex));
    } else if (ctl->json) {
        result = output_json(json_pack("{s:b, s:s, s:I}", "match", 1, "name", infos[match].name, "version",
                                       (json_int_t)infos[match].version),
                             &ctl->error);
    } else {
        (void)printf("%s belongs to %s/%u\n", path, infos[match].name, infos[match].version);
    }
done:
    X509_free(cert);
    ctl_agent_close(agent);
    free(infos);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates for the tests of TLS. */
#include "tls_rig.h"
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "tls_rig: %s\n", #condition);                                                    \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

static FILE *open_file(const char *path, mode_t mode)
{
    FILE *file = fopen(path, "w");

    CHECK(file != NULL && chmod(path, mode) == 0);
    return file;
}

static void add_extension(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *extension = NULL;

    X509V3_set_ctx(&ctx, issuer, certificate, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    CHECK(extension != NULL && X509_add_ext(certificate, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

static void sign_and_write(tls_rig *rig, const tls_rig_party *ca, const char *name, tls_rig_party *party)
{
    FILE *file = NULL;

    CHECK(X509_sign(party->certificate, ca->key, EVP_sha256()) > 0);
    snprintf(party->certificate_file, sizeof party->certificate_file, "%s/%s.crt", rig->dir, name);
    snprintf(party->key_file, sizeof party->key_file, "%s/%s.key", rig->dir, name);
    file = open_file(party->certificate_file, 0644);
    CHECK(PEM_write_X509(file, party->certificate) == 1 && fclose(file) == 0);
    file = open_file(party->key_file, 0600);
    CHECK(PEM_write_PrivateKey(file, party->key, NULL, NULL, 0, NULL, NULL) == 1 && fclose(file) == 0);
}

static void fill(tls_rig *rig, const tls_rig_party *ca, const char *name, long from, long to, tls_rig_party *party)
{
    X509_NAME *subject = NULL;

    memset(party, 0, sizeof *party);
    party->key = EVP_EC_gen("P-256");
    party->certificate = X509_new();
    CHECK(party->key != NULL && party->certificate != NULL);
    subject = X509_get_subject_name(party->certificate);
    CHECK(X509_set_version(party->certificate, X509_VERSION_3) == 1 &&
          ASN1_INTEGER_set(X509_get_serialNumber(party->certificate), ++rig->serial) == 1 &&
          X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const uint8_t *)name, -1, -1, 0) == 1 &&
          X509_gmtime_adj(X509_getm_notBefore(party->certificate), from) != NULL &&
          X509_gmtime_adj(X509_getm_notAfter(party->certificate), to) != NULL &&
          X509_set_issuer_name(party->certificate, ca->certificate != NULL ? X509_get_subject_name(ca->certificate) : subject) == 1 &&
          X509_set_pubkey(party->certificate, party->key) == 1);
}

void tls_rig_authority(tls_rig *rig, const char *name, tls_rig_party *ca)
{
    const tls_rig_party nobody = {.key = NULL};

    fill(rig, &nobody, name, -3600, 86400, ca);
    add_extension(ca->certificate, ca->certificate, NID_basic_constraints, "critical,CA:TRUE");
    add_extension(ca->certificate, ca->certificate, NID_key_usage, "critical,keyCertSign,cRLSign");
    sign_and_write(rig, ca, name, ca);
}

void tls_rig_issue(tls_rig *rig, const tls_rig_party *ca, const char *name, const char *san, long from, long to,
                   tls_rig_party *party)
{
    fill(rig, ca, name, from, to, party);
    if (san != NULL) {
        add_extension(party->certificate, ca->certificate, NID_subject_alt_name, san);
    }
    sign_and_write(rig, ca, name, party);
}

void tls_rig_crl(const tls_rig *rig, const tls_rig_party *ca, const tls_rig_party *revoked, long seconds, char file[128])
{
    X509_CRL *crl = X509_CRL_new();
    X509_REVOKED *one = NULL;
    ASN1_TIME *now = X509_gmtime_adj(NULL, -60), *until = X509_gmtime_adj(NULL, seconds);
    FILE *out = NULL;

    CHECK(crl != NULL && X509_CRL_set_version(crl, 1) == 1 &&
          X509_CRL_set_issuer_name(crl, X509_get_subject_name(ca->certificate)) == 1 &&
          X509_CRL_set1_lastUpdate(crl, now) == 1 && X509_CRL_set1_nextUpdate(crl, until) == 1);
    if (revoked != NULL) {
        one = X509_REVOKED_new();
        CHECK(one != NULL && X509_REVOKED_set_serialNumber(one, X509_get_serialNumber(revoked->certificate)) == 1 &&
              X509_REVOKED_set_revocationDate(one, now) == 1 && X509_CRL_add0_revoked(crl, one) == 1);
    }
    CHECK(X509_CRL_sort(crl) == 1 && X509_CRL_sign(crl, ca->key, EVP_sha256()) > 0);
    snprintf(file, 128, "%s/list.crl", rig->dir);
    out = open_file(file, 0644);
    CHECK(PEM_write_X509_CRL(out, crl) == 1 && fclose(out) == 0);
    ASN1_TIME_free(now);
    ASN1_TIME_free(until);
    X509_CRL_free(crl);
}

void tls_rig_free(tls_rig_party *party)
{
    EVP_PKEY_free(party->key);
    X509_free(party->certificate);
    if (party->certificate_file[0] != '\0') {
        unlink(party->certificate_file);
        unlink(party->key_file);
    }
    memset(party, 0, sizeof *party);
}

void tls_rig_make(tls_rig *rig)
{
    memset(rig, 0, sizeof *rig);
    snprintf(rig->dir, sizeof rig->dir, "/tmp/keyhold-tls.XXXXXX");
    CHECK(mkdtemp(rig->dir) != NULL);
    tls_rig_authority(rig, "authority", &rig->ca);
}

void tls_rig_end(tls_rig *rig)
{
    char list[128];

    tls_rig_free(&rig->ca);
    snprintf(list, sizeof list, "%s/list.crl", rig->dir);
    unlink(list);
    CHECK(rmdir(rig->dir) == 0);
}
